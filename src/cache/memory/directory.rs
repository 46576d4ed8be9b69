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
//! words go to the largest table that has a place for them.

use smallvec::SmallVec;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::OnceLock;

/// How many lines the first table has, and how many tables there can be: for all sessions that memory can hold.
const FIRST_LINES: usize = 256;
const TABLES: usize = 24;
/// The owner's number and one more, in the lower bits of a word. An empty word is 0.
const OWNER_BITS: u32 = 21;

pub type Owners = SmallVec<[u32; 4]>;

/// The owner of the first cache, and one more; 0 for none.
static FIRST: AtomicU32 = AtomicU32::new(0);
/// The first ones are there.
static LISTED: [OnceLock<Box<[Line]>>; TABLES] = [const { OnceLock::new() }; TABLES];

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
fn lines(hash: u64) -> impl Iterator<Item = &'static Line> {
    let there = LISTED.iter().take_while(|table| table.get().is_some()).count();
    LISTED[..there].iter().rev().filter_map(OnceLock::get).map(move |table| &table[hash as usize & (table.len() - 1)])
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
    let Some((at, place)) = LISTED.iter().enumerate().find(|(_, table)| table.get().is_none()) else { return false };
    let mut lines = Vec::new();
    if lines.try_reserve_exact(FIRST_LINES << at).is_err() {
        return false;
    }
    lines.resize_with(FIRST_LINES << at, Line::default);
    let _ = place.set(lines.into_boxed_slice());
    true
}

/// A session with this hash comes to a cache. Whether there is memory to list it.
pub fn add(hash: u64, owner: u32) -> bool {
    let new = word(hash, owner);
    loop {
        let words = lines(hash).flat_map(|line| &line.0);
        let mut free = words.filter(|word| word.load(Relaxed) == 0);
        if free.any(|word| word.compare_exchange(0, new, AcqRel, Relaxed).is_ok()) {
            return true;
        }
        if !grow() {
            return false;
        }
    }
}

/// One leaves it.
pub fn remove(hash: u64, owner: u32) {
    let old = word(hash, owner);
    let words = lines(hash).flat_map(|line| &line.0);
    let mut found = words.filter(|word| word.load(Relaxed) == old);
    found.any(|word| word.compare_exchange(old, 0, AcqRel, Relaxed).is_ok());
}

/// Whether any cache has had a session.
pub fn is_used() -> bool {
    FIRST.load(Relaxed) != 0
}

/// Whose caches may have a session with this hash.
pub fn owners(hash: u64) -> Owners {
    let first = FIRST.load(Acquire).checked_sub(1);
    let listed = lines(hash).flat_map(|line| &line.0).map(|word| word.load(Acquire));
    let listed = listed.filter(|&word| word != 0 && (word ^ hash) >> OWNER_BITS == 0);
    let owner = |word: u64| (word & ((1 << OWNER_BITS) - 1)) as u32 - 1;
    first.into_iter().chain(listed.map(owner)).collect()
}
