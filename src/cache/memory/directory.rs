//! Which caches of this process may have a session: asked when the time of one changes, which then costs the same with
//! one cache and with thousands.
//!
//! The first cache that has sessions is always asked itself, and its sessions are not listed: most programs have no other.
//! What the others have is listed here, a word for each session: most bits of the hash of its key, and the number of the
//! cache's owner. The list says that a cache may have the session, and never that it has none while it has: it is changed
//! under the lock of the session's shard.
//!
//! The words lie in tables without locks. In each table a hash has one line of the processor's cache, in which its word may
//! be anywhere. A table is never given up: when a line is full in all of them, another table of twice the size comes. New
//! words go to the largest table that has a place for them. A key that many caches have would fill its line in every table:
//! what goes beyond [`MOST`] caches is in a map behind a lock. A table's lines are allocated by the page, when the first
//! word of a page comes: no session waits until a large table is ready.

use crate::gate;
use once_cell::race::OnceBox;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How many pages the first table has, and how many tables there can be: for all sessions that memory can hold.
const FIRST_PAGES: usize = 16;
const TABLES: usize = 24;
/// How many caches with the same key the tables list.
const MOST: usize = 4;
/// The owner's number and one more, in the lower bits of a word. An empty word is 0.
const OWNER_BITS: u32 = 21;

/// The owner of the first cache, and one more; 0 for none.
static FIRST: AtomicU32 = AtomicU32::new(0);
/// How many tables there are: the first ones.
static MADE: AtomicUsize = AtomicUsize::new(0);
static LISTED: [OnceLock<Table>; TABLES] = [const { OnceLock::new() }; TABLES];

/// The owners beyond [`MOST`], by the hash of the key; and how many these are.
static MORE: Mutex<Option<HashMap<u64, Vec<u32>>>> = Mutex::new(None);
static MORE_COUNT: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; 8]);

const PAGE: usize = 64; // lines, which are 4096 bytes
type Page = [Line; PAGE];

struct Table(Box<[OnceBox<Page>]>);

impl Table {
    /// `None` where there is no memory for it.
    fn new(pages: usize) -> Option<Table> {
        let mut table = Vec::new();
        table.try_reserve_exact(pages).ok()?;
        table.resize_with(pages, OnceBox::new);
        Some(Table(table.into_boxed_slice()))
    }

    /// The page of a hash, and the number of its line there.
    fn place(&self, hash: u64) -> (&OnceBox<Page>, usize) {
        let line = hash as usize & (self.0.len() * PAGE - 1);
        (&self.0[line / PAGE], line % PAGE)
    }

    /// The line of a hash; `None` where nothing was ever written near it.
    #[inline]
    fn line(&self, hash: u64) -> Option<&Line> {
        let (page, line) = self.place(hash);
        page.get().map(|page| &page[line])
    }

    /// The same for who is going to write there. `None` where there is no memory for it.
    fn line_to_fill(&self, hash: u64) -> Option<&Line> {
        let (page, line) = self.place(hash);
        let page = page.get_or_try_init(|| {
            let mut lines = Vec::new();
            lines.try_reserve_exact(PAGE).map_err(drop)?;
            lines.resize_with(PAGE, Line::default);
            <Box<Page>>::try_from(lines).map_err(drop)
        });
        page.ok().map(|page| &page[line])
    }
}

/// A cache is going to have its first session: whether its sessions are to be listed.
pub fn enroll(owner: u32) -> bool {
    FIRST.compare_exchange(0, owner + 1, AcqRel, Acquire).is_err()
}

fn word(hash: u64, owner: u32) -> u64 {
    hash >> OWNER_BITS << OWNER_BITS | u64::from(owner + 1)
}

/// The largest table first.
#[inline]
fn tables() -> impl Iterator<Item = &'static Table> {
    let made = MADE.load(Acquire).min(TABLES);
    LISTED[..made].iter().rev().filter_map(OnceLock::get)
}

/// The line of a hash in each table that has one.
#[inline]
fn lines(hash: u64) -> impl Iterator<Item = &'static Line> {
    tables().filter_map(move |table| table.line(hash))
}

/// See [`super::shard::Shard::fetch`].
pub fn fetch(hash: u64) {
    if let Some(line) = lines(hash).next() {
        line.0[0].load(Relaxed);
    }
}

/// Makes one more table. Whether there is memory for it; another thread may have made it.
#[cold]
#[inline(never)]
fn grow() -> bool {
    let at = MADE.load(Acquire);
    let Some(place) = LISTED.get(at) else { return false };
    let Some(table) = Table::new(FIRST_PAGES << at) else { return false };
    let _ = place.set(table);
    MADE.fetch_max(at + 1, AcqRel);
    true
}

/// For who is inside the gate.
fn more() -> MutexGuard<'static, Option<HashMap<u64, Vec<u32>>>> {
    MORE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_of(word: u64, hash: u64) -> bool {
    word != 0 && (word ^ hash) >> OWNER_BITS == 0
}

/// A session with this hash comes to a cache. Whether there is memory to list it. Inside the gate.
pub fn add(hash: u64, owner: u32) -> bool {
    let new = word(hash, owner);
    loop {
        let mut same = 0;
        for table in tables() {
            let Some(line) = table.line_to_fill(hash) else { return false };
            for word in &line.0 {
                match word.load(Relaxed) {
                    0 if word.compare_exchange(0, new, AcqRel, Relaxed).is_ok() => return true,
                    there => same += usize::from(is_of(there, hash)),
                }
            }
        }
        if same >= MOST {
            more().get_or_insert_default().entry(hash).or_default().push(owner);
            MORE_COUNT.fetch_add(1, AcqRel);
            return true;
        }
        if !grow() {
            return false;
        }
    }
}

/// One leaves it. Inside the gate.
pub fn remove(hash: u64, owner: u32) {
    let old = word(hash, owner);
    let words = lines(hash).flat_map(|line| &line.0);
    let mut found = words.filter(|word| word.load(Relaxed) == old);
    if !found.any(|word| word.compare_exchange(old, 0, AcqRel, Relaxed).is_ok()) {
        remove_from_more(hash, owner);
    }
}

#[cold]
fn remove_from_more(hash: u64, owner: u32) {
    let mut more = more();
    let Some(map) = more.as_mut() else { return };
    let Some(owners) = map.get_mut(&hash) else { return };
    if let Some(at) = owners.iter().position(|&other| other == owner) {
        owners.swap_remove(at);
        MORE_COUNT.fetch_sub(1, AcqRel);
    }
    if owners.is_empty() {
        map.remove(&hash);
    }
}

/// Whether any cache has had a session.
pub fn is_used() -> bool {
    FIRST.load(Relaxed) != 0
}

/// Names to `visit` whose caches may have a session with this hash. One may be named twice.
#[inline]
pub fn each_owner(hash: u64, mut visit: impl FnMut(u32)) {
    if let Some(first) = FIRST.load(Acquire).checked_sub(1) {
        visit(first);
    }
    for line in lines(hash) {
        for word in line.0.each_ref().map(|word| word.load(Acquire)) {
            if is_of(word, hash) {
                visit((word & ((1 << OWNER_BITS) - 1)) as u32 - 1);
            }
        }
    }
    if MORE_COUNT.load(Acquire) > 0 {
        owners_in_more(hash).into_iter().for_each(visit);
    }
}

#[cold]
fn owners_in_more(hash: u64) -> SmallVec<[u32; 4]> {
    let _inside = gate::enter();
    more().as_ref().and_then(|map| map.get(&hash)).into_iter().flatten().copied().collect()
}
