//! One shard: the sessions in their slots, the index by key and the heap by expiry.

use super::super::{Eviction, Key, Seconds, Session};
use super::directory;
use super::few::{make_room, Few};
use super::heap::{Heap, Turn};
use super::index::{Found, Index, Size};
use super::room::{Room, Shared};
use super::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use super::sync::{enter, Inside, Mutex, MutexGuard};
use std::sync::PoisonError;

/// No session: later than every turn.
const NONE: Turn = Turn { expiry: Seconds::MAX, came: u64::MAX };
/// The end of the list of free slots.
const END: u32 = u32::MAX;

/// Lines of its own for each shard: no thread waits for a neighbour's lock word.
#[repr(C, align(128))]
pub struct Shard<S> {
    /// How many sessions are here, readable without the lock.
    count: AtomicUsize,
    /// How often something came or left, readable without the lock.
    changes: AtomicU64,
    /// How many more sessions may come without asking the other shards.
    pub room: Room,
    /// Whose sessions these are, where they are listed in the directory.
    listed: Option<u32>,
    contents: Mutex<Contents<S>>,
    /// Read without the lock, changed under it.
    index: Index,
    /// The room that all shards share; only that of the small shard is used. It takes no memory: it lies where the alignment
    /// of the next field leaves a gap.
    pub shared: Shared,
    soonest: Soonest,
}

/// The first turn in the heap, readable without the lock. Who looks for the next one to evict reads it in all shards, and
/// shall not wait for lines that change with each session that comes.
#[repr(align(64))]
struct Soonest {
    expiry: AtomicI64,
    came: AtomicU64,
    /// The number of the oldest session where that one leaves first, else [`NONE`]'s.
    oldest: AtomicU64,
}

/// A session on its way into the cache.
pub struct Stored<S> {
    pub session: S,
    pub hash: u64,
    pub expiry: Seconds,
}

enum Slot<S> {
    Taken(Taken<S>),
    Free { next: u32 },
}

struct Taken<S> {
    session: S,
    /// Where the heap by expiry has it.
    place: u32,
    /// Where the heap by arrival has it, if there is one.
    arrival: u32,
}

struct Contents<S> {
    slots: Few<Slot<S>>,
    count: usize,
    changes: u64,
    free: u32,
    heap: Heap,
    /// Where the oldest session leaves first: all of them in the order in which they came.
    arrivals: Option<Box<Heap>>,
}

impl<S> Default for Contents<S> {
    fn default() -> Self {
        Contents { slots: Few::new(), count: 0, changes: 0, free: END, heap: Heap::default(), arrivals: None }
    }
}

/// A shard and the right to change it. Publishes the count and the soonest turn when it is done.
pub struct Locked<'a, S> {
    contents: MutexGuard<'a, Contents<S>>,
    shard: &'a Shard<S>,
    _inside: Inside,
}

impl<S> Drop for Locked<'_, S> {
    fn drop(&mut self) {
        let turn = self.contents.heap.first().map_or(NONE, |(turn, _)| turn);
        if turn != self.shard.soonest() {
            self.shard.soonest.expiry.store(turn.expiry, Relaxed);
            self.shard.soonest.came.store(turn.came, Relaxed);
        }
        let oldest = self
            .contents
            .arrivals
            .as_ref()
            .and_then(|arrivals| arrivals.first())
            .map_or(NONE.came, |(turn, _)| turn.came);
        if oldest != self.shard.soonest.oldest.load(Relaxed) {
            self.shard.soonest.oldest.store(oldest, Relaxed);
        }
        self.shard.count.store(self.contents.count, Relaxed);
        self.shard.changes.store(self.contents.changes, Relaxed);
    }
}

impl<S> Shard<S> {
    /// `size` is how large the index may become.
    pub fn new(size: Size, listed: Option<u32>) -> Self {
        Shard {
            contents: Mutex::default(),
            index: Index::new(size),
            room: Room::default(),
            shared: Shared::default(),
            count: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            listed,
            soonest: Soonest {
                expiry: AtomicI64::new(NONE.expiry),
                came: AtomicU64::new(NONE.came),
                oldest: AtomicU64::new(NONE.came),
            },
        }
    }

    pub fn lock(&self) -> Locked<'_, S> {
        let inside = enter();
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { contents, shard: self, _inside: inside }
    }

    /// Nothing comes or goes until the result is dropped. For who is inside the gate.
    pub fn freeze(&self) -> impl Sized + '_ {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of the session that expires first; a moment old when other threads are at work.
    pub fn soonest(&self) -> Turn {
        Turn { expiry: self.soonest.expiry.load(Relaxed), came: self.soonest.came.load(Relaxed) }
    }

    /// What to compare with other shards' to find the session that is evicted next; as old.
    pub fn next_out(&self) -> Turn {
        match self.soonest.oldest.load(Relaxed) {
            oldest if oldest == NONE.came => self.soonest(),
            oldest => Turn::of_arrival(oldest),
        }
    }

    /// A moment old, too, unless the shard is frozen.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.soonest() == NONE
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub fn listed(&self) -> Option<u32> {
        self.listed
    }

    /// Fetches what a change of a session with this hash is going to need. Each step of the change that takes a lock or counts
    /// waits until all that is being fetched is there, so that one thing would be fetched after the other: in a program with
    /// thousands of contexts most of the time would go there.
    #[inline]
    pub fn fetch(&self, hash: u64) {
        if !cfg!(loom) {
            self.count.load(Relaxed);
            self.soonest.expiry.load(Relaxed);
            self.index.fetch(hash);
            if self.listed.is_some() {
                directory::fetch(hash);
            }
        }
    }
}

impl<S: Session> Shard<S> {
    /// Whether a key with this hash is there, without the lock where that is possible.
    pub fn contains(&self, hash: u64) -> bool {
        self.index.contains(hash).unwrap_or_else(|| self.lock().shard.index.find(hash, |_| true).is_some())
    }
}

/// Where the heap moved a slot's session to.
fn moved<S>(slots: &mut [Slot<S>]) -> impl FnMut(u32, u32) + '_ {
    |slot, place| {
        if let Some(Slot::Taken(taken)) = slots.get_mut(slot as usize) {
            taken.place = place;
        }
    }
}

/// The same for the heap by arrival.
fn moved_up<S>(slots: &mut [Slot<S>]) -> impl FnMut(u32, u32) + '_ {
    |slot, place| {
        if let Some(Slot::Taken(taken)) = slots.get_mut(slot as usize) {
            taken.arrival = place;
        }
    }
}

impl<'s, S: Session> Locked<'s, S> {
    /// The session with a hash that `is_meant`.
    fn find_one(&self, hash: u64, is_meant: impl Fn(&S) -> bool) -> Option<Found> {
        self.shard.index.find(hash, |slot| self.at(slot).is_some_and(|taken| is_meant(&taken.session)))
    }

    /// The session with a key that has this hash.
    pub fn find(&self, hash: u64, key: &Key) -> Option<Found> {
        self.find_one(hash, |cached| cached.key() == *key)
    }

    /// The one that has the key of `session`, which has this hash.
    pub fn find_like(&self, hash: u64, session: &S) -> Option<Found> {
        self.find_one(hash, |cached| cached.same(session) || cached.key() == session.key())
    }

    /// The one that is this very object, whose key has this hash.
    pub fn find_same(&self, hash: u64, session: &S) -> Option<Found> {
        self.find_one(hash, |cached| cached.same(session))
    }

    fn at(&self, slot: u32) -> Option<&Taken<S>> {
        match self.contents.slots.get(slot as usize) {
            Some(Slot::Taken(taken)) => Some(taken),
            _ => None,
        }
    }

    fn taken(&self, found: Found) -> Option<&Taken<S>> {
        self.at(found.slot)
    }

    pub fn session(&self, found: Found) -> Option<&S> {
        self.taken(found).map(|taken| &taken.session)
    }

    pub fn expiry(&self, found: Found) -> Option<Seconds> {
        self.taken(found).map(|taken| self.contents.heap.turn(taken.place).expiry)
    }

    /// From now on sessions leave in this order. Where there is no memory for that, nothing changes.
    pub fn set_eviction(&mut self, eviction: Eviction) {
        let contents = &mut *self.contents;
        contents.arrivals = None;
        if eviction == Eviction::Soonest {
            return;
        }
        let mut arrivals = Box::<Heap>::default();
        if !arrivals.make_room_for(contents.count) {
            return;
        }
        for slot in 0..contents.slots.len() {
            if let Slot::Taken(taken) = &contents.slots[slot] {
                let turn = Turn::of_arrival(contents.heap.turn(taken.place).came);
                arrivals.push(turn, slot as u32, moved_up(&mut contents.slots));
            }
        }
        contents.arrivals = Some(arrivals);
    }

    /// Gives it back when there is no memory for it. `came` tells the order of those that expire in one second.
    pub fn insert(&mut self, new: Stored<S>, came: u64) -> Result<(), Stored<S>> {
        self.insert_again(new, came, came)
    }

    /// The same for one that was in another shard: a session whose time was changed has another place among those that
    /// expire in one second, and keeps the one that it has by its arrival.
    pub fn insert_again(&mut self, new: Stored<S>, came: u64, arrived: u64) -> Result<(), Stored<S>> {
        let contents = &mut *self.contents;
        let slot = if contents.free == END { contents.slots.len() as u32 } else { contents.free };
        let room = self.shard.index.reserve(slot, contents.count)
            && contents.heap.make_room()
            && contents.arrivals.as_mut().is_none_or(|arrivals| arrivals.make_room())
            && (contents.free != END || make_room(&mut contents.slots))
            && self.shard.listed.is_none_or(|owner| directory::add(new.hash, owner));
        if !room {
            return Err(new);
        }
        let taken = Slot::Taken(Taken { session: new.session, place: 0, arrival: 0 });
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
        contents.changes += 1;
        self.shard.index.insert(new.hash, slot);
        contents.heap.push(Turn { expiry: new.expiry, came }, slot, moved(&mut contents.slots));
        if let Some(arrivals) = &mut contents.arrivals {
            arrivals.push(Turn::of_arrival(arrived), slot, moved_up(&mut contents.slots));
        }
        Ok(())
    }

    /// Puts `new` in the place of the session that was found, which has the same key, and returns that one.
    pub fn replace(&mut self, found: Found, new: Stored<S>, came: u64) -> S {
        let contents = &mut *self.contents;
        let (old, arrival) = match contents.slots.get_mut(found.slot as usize) {
            Some(Slot::Taken(taken)) => (std::mem::replace(&mut taken.session, new.session), taken.arrival),
            _ => return new.session,
        };
        if let Some(arrivals) = &mut contents.arrivals {
            arrivals.set(arrival, Turn::of_arrival(came), moved_up(&mut contents.slots));
        }
        contents.changes += 1;
        self.set_expiry(found, new.expiry, came);
        old
    }

    pub fn set_expiry(&mut self, found: Found, expiry: Seconds, came: u64) {
        let contents = &mut *self.contents;
        if let Some(Slot::Taken(taken)) = contents.slots.get(found.slot as usize) {
            contents.heap.set(taken.place, Turn { expiry, came }, moved(&mut contents.slots));
        }
    }

    /// After the session of a slot has left, and before the slot is used again.
    fn strike(&self, slot: u32) {
        if let (Some(owner), Some(hash)) = (self.shard.listed, self.shard.index.hash(slot)) {
            directory::remove(hash, owner);
        }
    }

    pub fn remove(&mut self, found: Found) -> Option<S> {
        self.strike(found.slot);
        let contents = &mut *self.contents;
        let free = Slot::Free { next: contents.free };
        match contents.slots.get_mut(found.slot as usize) {
            Some(place @ Slot::Taken(..)) => {
                let Slot::Taken(taken) = std::mem::replace(place, free) else { return None };
                contents.free = found.slot;
                contents.count -= 1;
                contents.changes += 1;
                self.shard.index.remove(found);
                contents.heap.remove(taken.place, moved(&mut contents.slots));
                if let Some(arrivals) = &mut contents.arrivals {
                    arrivals.remove(taken.arrival, moved_up(&mut contents.slots));
                }
                Some(taken.session)
            }
            _ => None,
        }
    }

    /// Takes out the session whose turn is next.
    pub fn pop(&mut self) -> Option<S> {
        let (_, slot) = self.contents.arrivals.as_deref().unwrap_or(&self.contents.heap).first()?;
        self.remove(self.shard.index.find_slot(slot)?)
    }

    /// Takes out the session that expires first if it has expired at `now`, and tells its turn.
    pub fn pop_expired(&mut self, now: Seconds) -> Option<(Turn, S)> {
        let (turn, slot) = self.contents.heap.first().filter(|(turn, _)| turn.expiry < now)?;
        Some((turn, self.remove(self.shard.index.find_slot(slot)?)?))
    }

    /// Takes out everything, each with its turn. Says how many there are first.
    pub fn take_all(&mut self) -> (usize, impl Iterator<Item = (Turn, S)>) {
        if self.shard.listed.is_some() {
            let slots = self.contents.slots.iter().enumerate();
            let taken = slots.filter(|(_, slot)| matches!(slot, Slot::Taken(_)));
            taken.for_each(|(slot, _)| self.strike(slot as u32));
        }
        let contents = std::mem::take(&mut *self.contents);
        self.contents.arrivals = contents.arrivals.map(|_| Box::default());
        self.contents.changes = contents.changes + 1;
        self.shard.index.clear();
        let heap = contents.heap;
        let sessions = contents.slots.into_iter().filter_map(move |slot| match slot {
            Slot::Taken(taken) => Some((heap.turn(taken.place), taken.session)),
            Slot::Free { .. } => None,
        });
        (contents.count, sessions)
    }

    pub fn shard(&self) -> &'s Shard<S> {
        self.shard
    }

    /// How many are here.
    pub fn count(&self) -> usize {
        self.contents.count
    }

    /// All of them, each with its turn and the number with which it arrived.
    pub fn each(&self) -> impl Iterator<Item = (Turn, u64, &S)> {
        self.contents.slots.iter().filter_map(|slot| match slot {
            Slot::Taken(taken) => {
                let turn = self.contents.heap.turn(taken.place);
                let arrivals = self.contents.arrivals.as_ref();
                let arrived = arrivals.map_or(turn.came, |arrivals| arrivals.turn(taken.arrival).came);
                Some((turn, arrived, &taken.session))
            }
            Slot::Free { .. } => None,
        })
    }

    pub fn clone_into(&self, sessions: &mut Vec<S>) {
        if sessions.try_reserve(self.contents.count).is_ok() {
            sessions.extend(self.contents.slots.iter().filter_map(|slot| match slot {
                Slot::Taken(taken) => Some(taken.session.clone()),
                Slot::Free { .. } => None,
            }));
        }
    }
}
