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
//! what goes beyond [`MOST`] caches is in a map behind a lock.

use crate::gate;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How many lines the first table has, and how many tables there can be: for all sessions that memory can hold.
const FIRST_LINES: usize = 256;
const TABLES: usize = 24;
/// How many caches with the same key the tables list.
const MOST: usize = 4;
/// The owner's number and one more, in the lower bits of a word. An empty word is 0.
const OWNER_BITS: u32 = 21;

/// The owner of the first cache, and one more; 0 for none.
static FIRST: AtomicU32 = AtomicU32::new(0);
/// How many tables there are: the first ones.
static MADE: AtomicUsize = AtomicUsize::new(0);
static LISTED: [OnceLock<Box<[Line]>>; TABLES] = [const { OnceLock::new() }; TABLES];

/// The owners beyond [`MOST`], by the hash of the key; and how many these are.
static MORE: Mutex<Option<HashMap<u64, Vec<u32>>>> = Mutex::new(None);
static MORE_COUNT: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; 8]);

/// A cache is going to have its first session: whether its sessions are to be listed.
pub fn enroll(owner: u32) -> bool {
    FIRST.compare_exchange(0, owner + 1, AcqRel, Acquire).is_err()
}

fn word(hash: u64, owner: u32) -> u64 {
    hash >> OWNER_BITS << OWNER_BITS | u64::from(owner + 1)
}

/// The line of a hash in each table, the largest table first.
#[inline]
fn lines(hash: u64) -> impl Iterator<Item = &'static Line> {
    let made = MADE.load(Acquire).min(TABLES);
    LISTED[..made].iter().rev().filter_map(OnceLock::get).map(move |table| &table[hash as usize & (table.len() - 1)])
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
    let mut lines = Vec::new();
    if lines.try_reserve_exact(FIRST_LINES << at).is_err() {
        return false;
    }
    lines.resize_with(FIRST_LINES << at, Line::default);
    let _ = place.set(lines.into_boxed_slice());
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
        for word in lines(hash).flat_map(|line| &line.0) {
            match word.load(Relaxed) {
                0 if word.compare_exchange(0, new, AcqRel, Relaxed).is_ok() => return true,
                there => same += usize::from(is_of(there, hash)),
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
