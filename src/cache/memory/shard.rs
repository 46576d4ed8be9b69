//! One shard: a hash table of slots, the sessions in their slots, and the heap that orders them by expiry.

use super::super::{Key, Seconds, Session};
use super::heap::{Heap, Turn};
use hashbrown::HashTable;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// No session: later than every turn.
const NONE: Turn = Turn { expiry: Seconds::MAX, came: u64::MAX };
/// The end of the list of free slots.
const END: u32 = u32::MAX;

/// A line of its own for each shard: no thread waits for a neighbour's lock word.
#[repr(align(128))]
pub struct Shard<S> {
    contents: Mutex<Contents<S>>,
    /// The first turn in the heap, readable without the lock.
    soonest_expiry: AtomicI64,
    soonest_came: AtomicU64,
}

/// A session on its way into the cache or in it.
pub struct Stored<S> {
    pub session: S,
    pub key: Key,
    pub hash: u64,
    pub expiry: Seconds,
}

struct Entry<S> {
    session: S,
    key: Key,
    hash: u64,
    /// Where the heap has it.
    place: u32,
}

enum Slot<S> {
    Taken(Entry<S>),
    Free { next: u32 },
}

pub struct Contents<S> {
    table: HashTable<u32>,
    slots: Vec<Slot<S>>,
    free: u32,
    heap: Heap,
    /// The last `came` given out here.
    came: u64,
}

impl<S> Default for Contents<S> {
    fn default() -> Self {
        Contents { table: HashTable::new(), slots: Vec::new(), free: END, heap: Heap::default(), came: 0 }
    }
}

/// The locked contents. Publishes the soonest turn when it is done.
pub struct Locked<'a, S> {
    contents: MutexGuard<'a, Contents<S>>,
    shard: &'a Shard<S>,
}

impl<S> Drop for Locked<'_, S> {
    fn drop(&mut self) {
        let turn = self.contents.heap.first().map_or(NONE, |(turn, _)| turn);
        if turn != self.shard.soonest() {
            self.shard.soonest_expiry.store(turn.expiry, Relaxed);
            self.shard.soonest_came.store(turn.came, Relaxed);
        }
    }
}

impl<S> Shard<S> {
    pub fn new() -> Self {
        Shard {
            contents: Mutex::default(),
            soonest_expiry: AtomicI64::new(NONE.expiry),
            soonest_came: AtomicU64::new(NONE.came),
        }
    }

    pub fn lock(&self) -> Locked<'_, S> {
        Locked { contents: self.contents.lock().unwrap_or_else(PoisonError::into_inner), shard: self }
    }

    /// The turn of the session that leaves first; a moment old when other threads are at work.
    pub fn soonest(&self) -> Turn {
        Turn { expiry: self.soonest_expiry.load(Relaxed), came: self.soonest_came.load(Relaxed) }
    }

    pub fn is_empty(&self) -> bool {
        self.soonest() == NONE
    }
}

/// Nanoseconds of a clock that all shards share, so that sessions of one second leave in the order they came.
/// Where it steps back, `Contents::came` still rises within a shard.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl<S: Session> Contents<S> {
    fn entry(&self, slot: u32) -> Option<&Entry<S>> {
        match self.slots.get(slot as usize) {
            Some(Slot::Taken(entry)) => Some(entry),
            _ => None,
        }
    }

    fn came(&mut self) -> u64 {
        self.came = now().max(self.came + 1);
        self.came
    }
}

/// Where the heap moved a slot's session to.
fn moved<S>(slots: &mut [Slot<S>]) -> impl FnMut(u32, u32) + '_ {
    |slot, place| {
        if let Some(Slot::Taken(entry)) = slots.get_mut(slot as usize) {
            entry.place = place;
        }
    }
}

impl<S: Session> Locked<'_, S> {
    pub fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        let contents = &*self.contents;
        let same = |&slot: &u32| contents.entry(slot).is_some_and(|entry| entry.hash == hash && entry.key == *key);
        contents.table.find(hash, same).copied()
    }

    /// The session in a slot that `find` gave.
    pub fn session(&self, slot: u32) -> Option<&S> {
        self.contents.entry(slot).map(|entry| &entry.session)
    }

    pub fn expiry(&self, slot: u32) -> Option<Seconds> {
        self.contents.entry(slot).map(|entry| self.contents.heap.turn(entry.place).expiry)
    }

    /// Gives it back when there is no memory for it.
    pub fn insert(&mut self, new: Stored<S>) -> Result<(), Stored<S>> {
        let contents = &mut *self.contents;
        let slots = &contents.slots;
        let rehash = |&slot: &u32| match slots.get(slot as usize) {
            Some(Slot::Taken(entry)) => entry.hash,
            _ => 0,
        };
        let room = contents.table.try_reserve(1, rehash).is_ok()
            && contents.heap.try_reserve().is_ok()
            && (contents.free != END || contents.slots.len() < END as usize && contents.slots.try_reserve(1).is_ok());
        if !room {
            return Err(new);
        }
        let Stored { session, key, hash, expiry } = new;
        let turn = Turn { expiry, came: contents.came() };
        let entry = Slot::Taken(Entry { session, key, hash, place: 0 });
        let slot = match contents.slots.get_mut(contents.free as usize) {
            Some(free) => {
                let slot = contents.free;
                if let Slot::Free { next } = *free {
                    contents.free = next;
                }
                *free = entry;
                slot
            }
            None => {
                contents.slots.push(entry);
                contents.slots.len() as u32 - 1
            }
        };
        let slots = &contents.slots;
        contents.table.insert_unique(hash, slot, |&slot| match slots.get(slot as usize) {
            Some(Slot::Taken(entry)) => entry.hash,
            _ => 0,
        });
        contents.heap.push(turn, slot, moved(&mut contents.slots));
        Ok(())
    }

    /// Puts `new` in the place of the session in `slot`, which has the same key, and returns that one.
    pub fn replace(&mut self, slot: u32, new: Stored<S>) -> S {
        let expiry = new.expiry;
        let old = match &mut self.contents.slots[slot as usize] {
            Slot::Taken(entry) => std::mem::replace(&mut entry.session, new.session),
            Slot::Free { .. } => return new.session,
        };
        self.set_expiry(slot, expiry);
        old
    }

    pub fn set_expiry(&mut self, slot: u32, expiry: Seconds) {
        let contents = &mut *self.contents;
        let came = contents.came();
        if let Some(place) = contents.entry(slot).map(|entry| entry.place) {
            contents.heap.set(place, Turn { expiry, came }, moved(&mut contents.slots));
        }
    }

    pub fn remove(&mut self, slot: u32) -> Option<S> {
        let contents = &mut *self.contents;
        let (hash, place) = contents.entry(slot).map(|entry| (entry.hash, entry.place))?;
        if let Ok(found) = contents.table.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        contents.heap.remove(place, moved(&mut contents.slots));
        let freed = std::mem::replace(&mut contents.slots[slot as usize], Slot::Free { next: contents.free });
        contents.free = slot;
        match freed {
            Slot::Taken(entry) => Some(entry.session),
            Slot::Free { .. } => None,
        }
    }

    /// Takes out the session whose turn is next.
    pub fn pop(&mut self) -> Option<S> {
        let (_, slot) = self.contents.heap.first()?;
        self.remove(slot)
    }

    /// Takes out the session whose turn is next if it has expired at `now`.
    pub fn pop_expired(&mut self, now: Seconds) -> Option<S> {
        let (_, slot) = self.contents.heap.first().filter(|(turn, _)| turn.expiry < now)?;
        self.remove(slot)
    }

    /// Takes out everything and gives the memory back.
    pub fn take_all(&mut self) -> impl ExactSizeIterator<Item = S> {
        let contents = std::mem::take(&mut *self.contents);
        let count = contents.table.len();
        Sessions { slots: contents.slots.into_iter(), count }
    }

    pub fn clone_into(&self, sessions: &mut Vec<S>) {
        if sessions.try_reserve(self.contents.table.len()).is_ok() {
            sessions.extend(self.contents.slots.iter().filter_map(|slot| match slot {
                Slot::Taken(entry) => Some(entry.session.clone()),
                Slot::Free { .. } => None,
            }));
        }
    }
}

struct Sessions<S> {
    slots: std::vec::IntoIter<Slot<S>>,
    count: usize,
}

impl<S> Iterator for Sessions<S> {
    type Item = S;

    fn next(&mut self) -> Option<S> {
        let session = self.slots.find_map(|slot| match slot {
            Slot::Taken(entry) => Some(entry.session),
            Slot::Free { .. } => None,
        })?;
        self.count -= 1;
        Some(session)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl<S> ExactSizeIterator for Sessions<S> {}
