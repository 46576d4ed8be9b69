//! Which caches of this process may have a session: asked when the time of one changes, which then costs the same with
//! one cache and with thousands.
//!
//! The first cache that has sessions is always asked itself, and its sessions are not listed: most programs have no other.
//! What the others have is listed here, by the hash of the key and the number of the cache's owner. A list says that a cache
//! may have the session, and never that it has none while it has: it is changed under the lock of the session's shard.

use crate::gate;
use once_cell::race::OnceBox;
use smallvec::SmallVec;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LISTS: usize = 64;

pub type Owners = SmallVec<[u32; 4]>;

/// The owner of the first cache, and one more; 0 for none.
static FIRST: AtomicU32 = AtomicU32::new(0);
static LISTED: OnceBox<[List; LISTS]> = OnceBox::new();

#[derive(Default)]
#[repr(align(64))]
struct List(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    owner: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    /// Where another owner has the key, too.
    more: HashMap<u64, Vec<u32>, BuildHasherDefault<Hashed>>,
}

/// The keys are hashes.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A cache is going to have its first session: whether its sessions are to be listed.
pub fn enroll(owner: u32) -> bool {
    if FIRST.compare_exchange(0, owner + 1, AcqRel, Acquire).is_ok() {
        return false;
    }
    LISTED.get_or_init(|| {
        // On the heap from the first: some threads have little stack.
        let lists: Box<[List]> = std::iter::repeat_with(List::default).take(LISTS).collect();
        match lists.try_into() {
            Ok(lists) => lists,
            Err(_) => unreachable!("as many as were asked for"),
        }
    });
    true
}

fn list(hash: u64) -> Option<MutexGuard<'static, Entries>> {
    let list = LISTED.get()?.get((hash >> 40) as usize % LISTS)?;
    Some(list.0.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A session with this hash comes to a cache. Inside the gate.
pub fn add(hash: u64, owner: u32) {
    let Some(mut entries) = list(hash) else { return };
    let Entries { owner: first, more } = &mut *entries;
    match first.entry(hash) {
        Entry::Vacant(free) => {
            free.insert(owner);
        }
        Entry::Occupied(_) => more.entry(hash).or_default().push(owner),
    }
}

/// One leaves it. Inside the gate.
pub fn remove(hash: u64, owner: u32) {
    let Some(mut entries) = list(hash) else { return };
    let Entries { owner: first, more } = &mut *entries;
    let Some(others) = more.get_mut(&hash) else {
        first.remove(&hash);
        return;
    };
    match others.iter().position(|&other| other == owner) {
        Some(at) => {
            others.swap_remove(at);
        }
        None => {
            if let Some(other) = others.pop() {
                first.insert(hash, other);
            }
        }
    }
    if others.is_empty() {
        more.remove(&hash);
    }
}

/// Whose caches may have a session with the hash that is asked for, if any cache has had a session.
pub fn owners(hash: impl FnOnce() -> u64) -> Owners {
    let mut owners = Owners::new();
    let Some(first) = FIRST.load(Acquire).checked_sub(1) else { return owners };
    owners.push(first);
    if LISTED.get().is_some() {
        let hash = hash();
        let _inside = gate::enter();
        if let Some(entries) = list(hash) {
            owners.extend(entries.owner.get(&hash).copied());
            owners.extend(entries.more.get(&hash).into_iter().flatten().copied());
        }
    }
    owners
}
