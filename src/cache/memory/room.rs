//! How many more sessions a cache may hold: exact, without a number that every thread has to write.
//!
//! Shards keep a little room of their own, which a session that leaves gives back to its shard and the next one takes
//! from it. Only when that is used up or has become too much does a shard turn to what all share, and only when that
//! is used up too is the room of the other shards collected. Nothing is lost on the way: what the shards have, what
//! they share and the sessions cached always add up to the limit.

use super::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

/// How much a shard takes at a time, and how much it keeps at the most.
const PORTION: i64 = if cfg!(loom) { 2 } else { 8 };
const MOST: u32 = if cfg!(loom) { 2 } else { 32 };

/// The room of one shard.
#[derive(Default)]
pub struct Room(pub(super) AtomicU32);

/// The room that all shards share; below zero after the limit was lowered.
#[derive(Default)]
pub struct Shared(pub(super) AtomicI64);

impl Room {
    pub fn take(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |room| room.checked_sub(1)).is_ok()
    }

    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    pub fn take_all(&self) -> i64 {
        match self.0.load(Relaxed) {
            0 => 0,
            _ => self.0.swap(0, Relaxed).into(),
        }
    }

    /// One session less: its room stays here or goes to all, which it does while there are more than the limit allows.
    pub fn give(&self, shared: &Shared) {
        if shared.0.load(Relaxed) < 0 {
            shared.give(1);
        } else if self.0.fetch_add(1, Relaxed) >= MOST {
            shared.0.fetch_add(self.take_all(), Relaxed);
        }
    }
}

impl Shared {
    /// What is left when `cached` of `limit` are there. No shard has room then.
    pub fn set(&self, limit: usize, cached: usize) {
        self.0.store(number(limit) - number(cached), Relaxed);
    }

    /// Whether there are more sessions than the limit allows.
    pub fn is_overdrawn(&self) -> bool {
        self.0.load(Relaxed) < 0
    }

    /// So many sessions less.
    pub fn give(&self, count: usize) {
        self.0.fetch_add(number(count), Relaxed);
    }

    /// Room for one session in a shard that has none.
    pub fn take<'a>(&self, room: &Room, shards: impl Iterator<Item = &'a Room>) -> bool {
        self.portion(room) || {
            let collected = shards.map(Room::take_all).sum();
            self.0.fetch_add(collected, Relaxed);
            self.portion(room)
        }
    }

    fn portion(&self, room: &Room) -> bool {
        let mut taken = 0;
        let update = self.0.fetch_update(Relaxed, Relaxed, |left| {
            taken = left.clamp(0, PORTION);
            (taken > 0).then_some(left - taken)
        });
        if update.is_ok() && taken > 1 {
            room.0.fetch_add(taken as u32 - 1, Relaxed);
        }
        update.is_ok()
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 2)
}
