//! The cache in this process's memory: shards, each with an index by key and a heap by expiry under a lock of its own.
//!
//! A cache begins with one small shard, which is all that most contexts ever need. When that is full, its sessions move to
//! [`SHARDS`] large ones, and it stays empty from then on.
//!
//! An id finds its shard by a keyed hash, since ids in lookups are chosen by strangers. Whether an id is there can be told
//! without a lock; who wants a reference to the session takes the shard's. Each shard publishes when its
//! next session expires, so the one that expires soonest of all is found by reading one number per shard, and
//! sessions that have not expired cost nothing when the expired ones are cleared.
//!
//! Who holds a lock is inside the gate ([`crate::gate`]), which fork() closes: in a child, all of them are free. Only
//! [`Cache::set_limit`], which takes them in order, and the move to the large shards hold two of them.

mod directory;
mod few;
mod heap;
mod index;
mod keyed;
#[cfg(all(test, loom))]
mod loom;
mod order;
mod room;
mod shard;
mod sync;

use super::{Cache, Collision, Departure, Eviction, Inserted, Key, Seconds, Session};
use heap::Turn;
use index::{Found, Size};
use keyed::Keyed;
use room::Shared;
use shard::{Locked, Shard, Stored};
use smallvec::SmallVec;
use std::sync::PoisonError;
use sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed};
use sync::{enter, pause, Inside, Mutex, MutexGuard, OnceBox};

const SHARDS: usize = if cfg!(loom) { 2 } else { 16 };
/// How many sessions the small shard holds.
const FEW: u16 = 192;
/// When a session expires that is to leave after all others.
const LAST: Seconds = Seconds::MAX;

pub struct Memory<S: Session> {
    /// Allocated by the first insertion: most contexts of most programs never cache anything.
    small: OnceBox<Shard<S>>,
    /// From when the small one was full.
    shards: OnceBox<[Shard<S>; SHARDS]>,
    keyed: &'static Keyed,
    /// 0 for no limit, and then nobody keeps account of room.
    limit: AtomicUsize,
    /// No session has expired before this second has passed.
    none_expires_by: AtomicI64,
    /// Held while shards are allocated or the limit is set: who sees the shards sees that limit.
    setting_up: Mutex<()>,
    owner: Option<u32>,
    /// How many sessions the small shard takes.
    few: u16,
    /// Whether the oldest session is evicted, not the one that expires soonest.
    oldest_first: AtomicBool,
    /// Whether a session that is added again keeps its turn.
    keeps_turns: AtomicBool,
}

impl<S: Session> Memory<S> {
    /// An empty cache for up to `limit` sessions, 0 for no limit.
    pub fn new(limit: usize) -> Self {
        Memory {
            small: OnceBox::new(),
            shards: OnceBox::new(),
            keyed: Keyed::of_process(),
            limit: AtomicUsize::new(limit),
            none_expires_by: AtomicI64::new(Seconds::MIN),
            setting_up: Mutex::default(),
            owner: None,
            few: FEW,
            oldest_first: AtomicBool::new(false),
            keeps_turns: AtomicBool::new(false),
        }
    }

    /// One whose small shard is full with `few` sessions: tests need not add hundreds to see what happens then.
    pub fn growing_at(few: u16, limit: usize) -> Self {
        Memory { few: few.min(FEW), ..Memory::new(limit) }
    }

    /// One without a limit, whose owner [`each_owner`] tells.
    pub fn owned_by(owner: u32) -> Self {
        Memory { owner: Some(owner), ..Memory::new(0) }
    }

    fn hash(&self, key: &Key) -> u64 {
        self.keyed.hash(&key.words())
    }

    fn small(&self) -> Option<&Shard<S>> {
        self.small.get()
    }

    /// The room that all shards share. `None` before the first insertion.
    fn room(&self) -> Option<&Shared> {
        self.small.get().map(|small| &small.shared)
    }

    /// See [`Shard::fetch`].
    #[inline]
    fn fetch(&self, hash: u64) {
        let shard = self.shards.get().map(|shards| of_hash(shards, hash)).or_else(|| self.small());
        if let Some(shard) = shard {
            shard.fetch(hash);
        }
    }

    /// The shard for a hash, locked. `None` before the first insertion.
    #[inline]
    fn lock(&self, hash: u64) -> Option<Locked<'_, S>> {
        loop {
            if let Some(shards) = self.shards.get() {
                return Some(of_hash(shards, hash).lock());
            }
            let locked = self.small()?.lock();
            // It may have been emptied before it was locked.
            if self.shards.get().is_none() {
                return Some(locked);
            }
        }
    }

    /// Whether a key with this hash is there, without a lock.
    fn has(&self, hash: u64) -> bool {
        loop {
            if let Some(shards) = self.shards.get() {
                return of_hash(shards, hash).contains(hash);
            }
            let found = self.small().is_some_and(|small| small.contains(hash));
            // It may have moved before it was looked for.
            if found || self.shards.get().is_none() {
                return found;
            }
        }
    }

    fn set_up(&self) -> (MutexGuard<'_, ()>, Inside) {
        let inside = enter();
        (self.setting_up.lock().unwrap_or_else(PoisonError::into_inner), inside)
    }

    fn make_shard(&self, size: Size, listed: Option<u32>) -> Shard<S> {
        let shard = Shard::new(size, listed);
        if self.oldest_first.load(Relaxed) {
            shard.lock().set_eviction(Eviction::Oldest);
        }
        shard
    }

    #[cold]
    fn begin(&self) {
        let _alone = self.set_up();
        self.small.get_or_init(|| {
            let listed = self.owner.filter(|&owner| directory::enroll(owner));
            let small = self.make_shard(Size::SMALL, listed);
            small.shared.set(self.limit.load(Relaxed), 0);
            Box::new(small)
        });
    }

    /// The small shard is full: moves its sessions to the large ones. Whether there was memory for them.
    #[cold]
    #[inline(never)]
    fn grow(&self) -> bool {
        let alone = self.set_up();
        let (Some(small), None) = (self.small.get(), self.shards.get()) else { return true };
        // On the heap from the first: all of them are larger than the whole stack of some threads.
        let shards = std::iter::repeat_with(|| self.make_shard(Size::FULL, small.listed())).take(SHARDS);
        let Ok(shards) = <Box<[Shard<S>; SHARDS]>>::try_from(shards.collect::<Box<[_]>>()) else { return false };
        let mut locked = small.lock();
        let has_moved = locked.each().all(|(Turn { expiry, came }, arrived, session)| {
            let hash = self.hash(&session.key());
            let moving = Stored { session: session.clone(), hash, expiry };
            of_hash(&shards, hash).lock().insert_again(moving, came, arrived).is_ok()
        });
        // References are given back when nothing is locked any more.
        if !has_moved {
            drop(locked);
            drop(alone);
            return false;
        }
        let _ = self.shards.set(shards);
        small.shared.give(small.room.take_all() as usize);
        let moved: Vec<_> = locked.take_all().1.collect();
        drop(locked);
        drop(alone);
        drop(moved);
        true
    }

    /// The small one first: what moves while one goes through them is met twice rather than not at all.
    fn all(&self) -> impl Iterator<Item = &Shard<S>> {
        self.small().into_iter().chain(std::iter::once_with(|| self.shards.get()).flatten().flatten())
    }

    /// Whether one more session may be inserted into `shard`, which is locked.
    fn reserve(&self, shard: &Shard<S>) -> bool {
        self.limit.load(Relaxed) == 0
            || shard.room.take()
            || self.room().is_some_and(|room| room.take(&shard.room, self.all().map(|shard| &shard.room)))
    }

    /// After a session left `shard`, which is still locked, or was not inserted after all.
    fn release(&self, shard: &Shard<S>) {
        if let (Some(room), true) = (self.room(), self.limit.load(Relaxed) != 0) {
            shard.room.give(room);
        }
    }

    /// A session that expires then is there now.
    fn expires(&self, expiry: Seconds) {
        if expiry < self.none_expires_by.load(Relaxed) {
            self.none_expires_by.fetch_min(expiry, Relaxed);
        }
    }

    /// Whether there are more sessions than the limit allows, which is so after it was lowered.
    fn is_overdrawn(&self) -> bool {
        self.limit.load(Relaxed) > 0 && self.room().is_some_and(Shared::is_overdrawn)
    }

    /// Takes out the session that expires soonest of all (of those that expire in the same second the one that came
    /// first), or the oldest one. `None` if the cache is not full, which it may not be although there is no room to be found: other threads
    /// are carrying it from shard to shard, or are between their reservation and their insertion.
    fn evict(&self) -> Option<S> {
        loop {
            if self.len() < self.limit.load(Relaxed) {
                return None;
            }
            let shard = self.all().min_by_key(|shard| shard.next_out())?;
            if shard.is_empty() {
                return None;
            }
            let mut locked = shard.lock();
            if let Some(session) = locked.pop() {
                self.release(shard);
                return Some(session);
            }
        }
    }
}

impl<S: Session> Memory<S> {
    fn take_one(&self, hash: u64, find: impl FnOnce(&Locked<S>, u64) -> Option<Found>) -> Option<S> {
        self.fetch(hash);
        let mut locked = self.lock(hash)?;
        let found = find(&locked, hash)?;
        let session = locked.remove(found)?;
        self.release(locked.shard());
        Some(session)
    }

    /// [`Cache::expiry_changed`], for who knows the hash of the session's key.
    pub fn judge_anew(&self, session: &S, hash: u64) {
        // Mostly it is not here, which can be told without the lock.
        if !self.has(hash) {
            return;
        }
        let Some(mut locked) = self.lock(hash) else { return };
        if let Some(slot) = locked.find_same(hash, session) {
            let expiry = session.expiry();
            locked.set_expiry(slot, expiry, order::next());
            self.expires(expiry);
        }
    }
}

/// Tables use the lowest and the highest bits of a hash, so the shard is chosen by others.
fn of_hash<S>(shards: &[Shard<S>; SHARDS], hash: u64) -> &Shard<S> {
    &shards[(hash >> 32) as usize % SHARDS]
}

/// Names to `visit` the owners of the caches in which `session` may be: all in which it is, and hardly any other. With each
/// comes the hash of the session's key, for [`Memory::judge_anew`].
#[inline]
pub fn each_owner(session: &impl Session, mut visit: impl FnMut(u32, u64)) {
    if directory::is_used() {
        let hash = Keyed::of_process().hash(&session.key().words());
        directory::each_owner(hash, |owner| visit(owner, hash));
    }
}

/// Hands out what left together in the order in which it would have expired, as libssl does.
fn in_turn<S>(sessions: &mut SmallVec<impl smallvec::Array<Item = (Turn, S)>>, left: &mut dyn FnMut(S)) {
    sessions.sort_by_key(|(turn, _)| *turn);
    sessions.drain(..).for_each(|(_, session)| left(session));
}

impl<S: Session> Cache<S> for Memory<S> {
    fn insert(&self, session: S, collision: Collision, left: &mut dyn FnMut(S, Departure)) -> Inserted {
        let hash = self.hash(&session.key());
        self.fetch(hash);
        let expiry = session.expiry();
        let mut new = Stored { expiry, session, hash };
        let mut departed: SmallVec<[(S, Departure); 1]> = SmallVec::new();
        let mut round = 0;
        let mut surplus: Option<(Inside, Key)> = None;
        let (inserted, not_taken) = loop {
            let Some(mut locked) = self.lock(hash) else {
                self.begin();
                continue;
            };
            let shard = locked.shard();
            if let Some(slot) = locked.find_like(hash, &new.session) {
                if locked.session(slot).is_some_and(|cached| cached.same(&new.session)) {
                    if !self.keeps_turns.load(Relaxed) || locked.expiry(slot) != Some(expiry) {
                        locked.set_expiry(slot, expiry, order::next());
                    }
                    break (Inserted::Same, Some(new));
                }
                if matches!(collision, Collision::KeepUnlessExpired(now) if locked.expiry(slot) >= Some(now)) {
                    break (Inserted::Kept, Some(new));
                }
                // After the limit was lowered others have to leave, not the new one, however soon it expires. A fork
                // waits until that is done.
                surplus = self.is_overdrawn().then(|| (enter(), new.session.key()));
                if surplus.is_some() {
                    new.expiry = LAST;
                }
                departed.push((locked.replace(slot, new, order::next()), Departure::Replaced));
                break (Inserted::Replaced, None);
            }
            if locked.count() >= self.few.into() && self.shards.get().is_none() {
                drop(locked);
                if self.grow() {
                    continue;
                }
                break (Inserted::Refused, Some(new));
            }
            if self.reserve(shard) {
                let Err(refused) = locked.insert(new, order::next()) else { break (Inserted::Added, None) };
                self.release(shard);
                break (Inserted::Refused, Some(refused));
            }
            // Full. Another session leaves first, so that the new one stays however soon it expires.
            drop(locked);
            match self.evict() {
                Some(evicted) => departed.push((evicted, Departure::Evicted)),
                None => {
                    pause(round);
                    round += 1;
                }
            }
        };
        if let Some((_, key)) = &surplus {
            while self.is_overdrawn() {
                let Some(evicted) = self.evict() else { break };
                departed.push((evicted, Departure::Evicted));
            }
            if let Some(mut locked) = self.lock(hash) {
                let slot = locked.find(hash, key).filter(|&slot| locked.expiry(slot) == Some(LAST));
                slot.into_iter().for_each(|slot| locked.set_expiry(slot, expiry, order::next()));
            }
        }
        drop(surplus);
        self.expires(expiry);
        drop(not_taken);
        if !departed.is_empty() {
            departed.into_iter().for_each(|(session, why)| left(session, why));
        }
        inserted
    }

    fn get(&self, key: &Key) -> Option<S> {
        let hash = self.hash(key);
        let locked = self.lock(hash)?;
        let slot = locked.find(hash, key)?;
        locked.session(slot).cloned()
    }

    fn take(&self, key: &Key) -> Option<S> {
        self.take_one(self.hash(key), |locked, hash| locked.find(hash, key))
    }

    fn take_like(&self, session: &S) -> Option<S> {
        self.take_one(self.hash(&session.key()), |locked, hash| locked.find_like(hash, session))
    }

    fn take_same(&self, session: &S) -> Option<S> {
        self.take_one(self.hash(&session.key()), |locked, hash| locked.find_same(hash, session))
    }

    fn contains(&self, key: &Key) -> bool {
        self.has(self.hash(key))
    }

    fn expiry_changed(&self, session: &S) {
        self.judge_anew(session, self.hash(&session.key()));
    }

    fn has_expired(&self, now: Seconds) -> bool {
        /// How long the bound is trusted: a session may come while it is being raised.
        const TRUSTED: Seconds = 8;
        let bound = self.none_expires_by.load(Relaxed);
        if now <= bound {
            return false;
        }
        let soonest = self.all().map(|shard| shard.soonest().expiry).min().unwrap_or(Seconds::MAX);
        let _ = self.none_expires_by.compare_exchange(bound, soonest.min(now + TRUSTED), Relaxed, Relaxed);
        soonest < now
    }

    fn expire(&self, now: Seconds, most: usize, left: &mut dyn FnMut(S)) -> usize {
        let mut expired: SmallVec<[(Turn, S); 16]> = SmallVec::new();
        for shard in self.all() {
            while expired.len() < most && shard.soonest().expiry < now {
                // A few at a time: the lock is free in between.
                let before = expired.len();
                let mut locked = shard.lock();
                while expired.len() < most.min(before + 16) {
                    match locked.pop_expired(now) {
                        Some(session) => expired.push(session),
                        None => break,
                    }
                }
                (before..expired.len()).for_each(|_| self.release(shard));
                drop(locked);
                if expired.len() == before {
                    break;
                }
            }
        }
        let count = expired.len();
        in_turn(&mut expired, left);
        count
    }

    fn clear(&self, left: &mut dyn FnMut(S)) {
        let mut all = Vec::new();
        for shard in self.all() {
            let mut locked = shard.lock();
            let (count, sessions) = locked.take_all();
            if let (Some(room), true) = (self.room(), self.limit.load(Relaxed) != 0) {
                room.give(count);
            }
            drop(locked);
            all.extend(sessions);
        }
        in_turn(&mut SmallVec::<[(Turn, S); 0]>::from_vec(all), left);
    }

    fn len(&self) -> usize {
        let few = || self.small().map_or(0, Shard::count);
        match self.shards.get().map_or_else(few, |_| 0) {
            // They may have moved meanwhile.
            0 => self.shards.get().into_iter().flatten().map(Shard::count).sum(),
            few => few,
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn set_limit(&self, limit: usize) {
        if self.limit.load(Relaxed) == limit && !self.is_overdrawn() {
            return;
        }
        // Nothing comes or goes meanwhile, and neither does the first session.
        let _alone = self.set_up();
        let _frozen: SmallVec<[_; SHARDS + 1]> = self.all().map(Shard::freeze).collect();
        self.all().for_each(|shard| shard.room.clear());
        if let Some(room) = self.room() {
            room.set(limit, self.len());
        }
        self.limit.store(limit, Relaxed);
    }

    fn set_eviction(&self, eviction: Eviction) {
        let oldest_first = eviction == Eviction::Oldest;
        if self.oldest_first.load(Relaxed) == oldest_first {
            return;
        }
        let _alone = self.set_up();
        if self.oldest_first.swap(oldest_first, Relaxed) != oldest_first {
            self.all().for_each(|shard| shard.lock().set_eviction(eviction));
        }
    }

    fn keep_turns(&self, keep: bool) {
        self.keeps_turns.store(keep, Relaxed);
    }

    fn changes(&self) -> Option<u64> {
        Some(self.all().map(Shard::changes).sum())
    }

    fn snapshot(&self) -> Vec<S> {
        let mut sessions = Vec::new();
        let _nothing_moves = self.set_up();
        for shard in self.all() {
            shard.lock().clone_into(&mut sessions);
        }
        sessions
    }
}
