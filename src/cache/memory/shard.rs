//! One shard: the sessions in their slots, the index by key and the heap by expiry.

use super::super::{Seconds, Session};
use super::heap::{Heap, Turn};
use super::index::{self, Found, Index, Words};
use super::room::Room;
use super::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use super::sync::{Mutex, MutexGuard, OnceBox};
use std::sync::PoisonError;

/// No session: later than every turn.
const NONE: Turn = Turn { expiry: Seconds::MAX, came: u64::MAX };
/// The end of the list of free slots.
const END: u32 = u32::MAX;

/// A line of its own for each shard: no thread waits for a neighbour's lock word.
#[repr(align(128))]
pub struct Shard<S> {
    contents: Mutex<Contents<S>>,
    /// Allocated by the first insertion. Read without the lock, changed under it.
    index: OnceBox<Index>,
    /// How many more sessions may come without asking the other shards.
    pub room: Room,
    /// How many sessions are here, readable without the lock.
    count: AtomicUsize,
    soonest: Soonest,
}

/// The first turn in the heap, readable without the lock. Who looks for the next one to evict reads it in all shards, and
/// shall not wait for lines that change with each session that comes.
#[repr(align(128))]
struct Soonest {
    expiry: AtomicI64,
    came: AtomicU64,
}

/// A session on its way into the cache.
pub struct Stored<S> {
    pub session: S,
    pub words: Words,
    pub hash: u64,
    pub expiry: Seconds,
}

enum Slot<S> {
    /// The session, and where the heap has it.
    Taken(S, u32),
    Free {
        next: u32,
    },
}

struct Contents<S> {
    slots: Vec<Slot<S>>,
    count: usize,
    free: u32,
    heap: Heap,
}

impl<S> Default for Contents<S> {
    fn default() -> Self {
        Contents { slots: Vec::new(), count: 0, free: END, heap: Heap::default() }
    }
}

/// A shard and the right to change it. Publishes the count and the soonest turn when it is done.
pub struct Locked<'a, S> {
    contents: MutexGuard<'a, Contents<S>>,
    index: &'a Index,
    shard: &'a Shard<S>,
}

impl<S> Drop for Locked<'_, S> {
    fn drop(&mut self) {
        let turn = self.contents.heap.first().map_or(NONE, |(turn, _)| turn);
        if turn != self.shard.soonest() {
            self.shard.soonest.expiry.store(turn.expiry, Relaxed);
            self.shard.soonest.came.store(turn.came, Relaxed);
        }
        self.shard.count.store(self.contents.count, Relaxed);
    }
}

impl<S> Shard<S> {
    pub fn new() -> Self {
        Shard {
            contents: Mutex::default(),
            index: OnceBox::new(),
            room: Room::default(),
            count: AtomicUsize::new(0),
            soonest: Soonest { expiry: AtomicI64::new(NONE.expiry), came: AtomicU64::new(NONE.came) },
        }
    }

    pub fn lock(&self) -> Locked<'_, S> {
        let index = self.index.get_or_init(|| Box::new(Index::new()));
        Locked { contents: self.contents.lock().unwrap_or_else(PoisonError::into_inner), index, shard: self }
    }

    /// Nothing comes or goes until the result is dropped.
    pub fn freeze(&self) -> impl Sized + '_ {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of the session that leaves first; a moment old when other threads are at work.
    pub fn soonest(&self) -> Turn {
        Turn { expiry: self.soonest.expiry.load(Relaxed), came: self.soonest.came.load(Relaxed) }
    }

    /// A moment old, too, unless the shard is frozen.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.soonest() == NONE
    }
}

impl<S: Session> Shard<S> {
    /// Whether a key is there, without the lock where that is possible.
    pub fn contains(&self, words: &Words, hash: u64) -> bool {
        match self.index.get() {
            Some(index) => index.contains(words, hash).unwrap_or_else(|| self.lock().find(words, hash).is_some()),
            None => false,
        }
    }
}

/// Where the heap moved a slot's session to.
fn moved<S>(slots: &mut [Slot<S>]) -> impl FnMut(u32, u32) + '_ {
    |slot, place| {
        if let Some(Slot::Taken(_, known)) = slots.get_mut(slot as usize) {
            *known = place;
        }
    }
}

impl<S: Session> Locked<'_, S> {
    pub fn find(&self, words: &Words, hash: u64) -> Option<Found> {
        self.index.find(words, hash)
    }

    fn slot(&self, slot: u32) -> Option<(&S, u32)> {
        match self.contents.slots.get(slot as usize) {
            Some(Slot::Taken(session, place)) => Some((session, *place)),
            _ => None,
        }
    }

    pub fn session(&self, found: Found) -> Option<&S> {
        self.slot(found.slot).map(|(session, _)| session)
    }

    pub fn expiry(&self, found: Found) -> Option<Seconds> {
        self.slot(found.slot).map(|(_, place)| self.contents.heap.turn(place).expiry)
    }

    /// Gives it back when there is no memory for it. `came` tells the order of those that expire in one second.
    pub fn insert(&mut self, new: Stored<S>, came: u64) -> Result<(), Stored<S>> {
        let contents = &mut *self.contents;
        let slot = if contents.free == END { contents.slots.len() as u32 } else { contents.free };
        let room = (slot as usize) < index::SLOTS
            && self.index.reserve(slot, contents.count)
            && contents.heap.try_reserve().is_ok()
            && (contents.free != END || contents.slots.try_reserve(1).is_ok());
        if !room {
            return Err(new);
        }
        let taken = Slot::Taken(new.session, 0);
        match contents.slots.get_mut(slot as usize) {
            Some(place) => {
                if let Slot::Free { next } = *place {
                    contents.free = next;
                }
                *place = taken;
            }
            None => contents.slots.push(taken),
        }
        contents.count += 1;
        self.index.insert(&new.words, new.hash, slot);
        contents.heap.push(Turn { expiry: new.expiry, came }, slot, moved(&mut contents.slots));
        Ok(())
    }

    /// Puts `new` in the place of the session that was found, which has the same key, and returns that one.
    pub fn replace(&mut self, found: Found, new: Stored<S>, came: u64) -> S {
        let old = match self.contents.slots.get_mut(found.slot as usize) {
            Some(Slot::Taken(session, _)) => std::mem::replace(session, new.session),
            _ => return new.session,
        };
        self.set_expiry(found, new.expiry, came);
        old
    }

    pub fn set_expiry(&mut self, found: Found, expiry: Seconds, came: u64) {
        let contents = &mut *self.contents;
        if let Some(Slot::Taken(_, place)) = contents.slots.get(found.slot as usize) {
            contents.heap.set(*place, Turn { expiry, came }, moved(&mut contents.slots));
        }
    }

    pub fn remove(&mut self, found: Found) -> Option<S> {
        let contents = &mut *self.contents;
        let free = Slot::Free { next: contents.free };
        match contents.slots.get_mut(found.slot as usize) {
            Some(place @ Slot::Taken(..)) => {
                let Slot::Taken(session, place) = std::mem::replace(place, free) else { return None };
                contents.free = found.slot;
                contents.count -= 1;
                self.index.remove(found);
                contents.heap.remove(place, moved(&mut contents.slots));
                Some(session)
            }
            _ => None,
        }
    }

    /// Takes out the session whose turn is next.
    pub fn pop(&mut self) -> Option<S> {
        let (_, slot) = self.contents.heap.first()?;
        self.remove(self.index.find_slot(slot)?)
    }

    /// Takes out the session whose turn is next if it has expired at `now`.
    pub fn pop_expired(&mut self, now: Seconds) -> Option<S> {
        let (_, slot) = self.contents.heap.first().filter(|(turn, _)| turn.expiry < now)?;
        self.remove(self.index.find_slot(slot)?)
    }

    /// Takes out everything. Says how many there are first.
    pub fn take_all(&mut self) -> (usize, impl Iterator<Item = S>) {
        let contents = std::mem::take(&mut *self.contents);
        self.index.clear();
        let sessions = contents.slots.into_iter().filter_map(|slot| match slot {
            Slot::Taken(session, _) => Some(session),
            Slot::Free { .. } => None,
        });
        (contents.count, sessions)
    }

    pub fn clone_into(&self, sessions: &mut Vec<S>) {
        if sessions.try_reserve(self.contents.count).is_ok() {
            sessions.extend(self.contents.slots.iter().filter_map(|slot| match slot {
                Slot::Taken(session, _) => Some(session.clone()),
                Slot::Free { .. } => None,
            }));
        }
    }
}
