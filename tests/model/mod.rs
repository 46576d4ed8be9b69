//! A sequential model of the internal cache, and a world in which the real one must do what the model does.
//!
//! Shared by `tests/cache_model.rs` (proptest) and `fuzz/` (cargo-fuzz): both make bytes, [`Step::decode`] makes steps
//! of them, [`run`] takes the steps on both sides and compares everything that can be seen.

pub mod session;

use reprise::cache::{memory::Memory, Cache, Collision, Departure, Eviction, Inserted, Key, Seconds};
use session::{Fake, Object};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicIsize, Ordering::SeqCst};
use std::sync::Arc;

/// When the world begins. Expiry times lie around it.
const START: Seconds = 1_000_000;

/// One call, its arguments small numbers that [`World`] makes keys, objects and times of.
#[derive(Clone, Debug)]
pub enum Op {
    Nothing,
    /// A new object.
    Insert {
        key: u16,
        expiry: u8,
        keep: bool,
    },
    /// An object made before, cached now or not.
    InsertAgain {
        object: u16,
        keep: bool,
    },
    /// Many new objects.
    Fill {
        seed: u16,
        count: u8,
    },
    Get(u16),
    Take(u16),
    TakeSame(u16),
    Contains(u16),
    SetExpiry {
        object: u16,
        expiry: u8,
    },
    HasExpired,
    Expire(u8),
    Clear,
    SetLimit(u8),
    SetEviction(Eviction),
    /// What is inserted again keeps its turn, or comes last among its equals.
    KeepTurns(bool),
    Snapshot,
    /// The clock goes on, or back.
    Clock(i8),
}

impl Op {
    pub fn decode(bytes: [u8; 4]) -> Op {
        let [kind, high, low, small] = bytes;
        let word = u16::from_be_bytes([high, low]);
        match kind % 40 {
            0 => Op::Nothing,
            1..=9 => Op::Insert { key: word, expiry: small, keep: kind % 3 == 0 },
            10..=12 => Op::InsertAgain { object: word, keep: kind % 2 == 0 },
            13..=14 => Op::Fill { seed: word, count: small },
            15..=17 => Op::Get(word),
            18..=20 => Op::Take(word),
            21..=22 => Op::TakeSame(word),
            23 => Op::Contains(word),
            24..=28 => Op::SetExpiry { object: word, expiry: small },
            29 => Op::HasExpired,
            30..=32 => Op::Expire(small),
            33 => Op::Clear,
            34..=35 => Op::SetLimit(small),
            36 => Op::Snapshot,
            37 if small % 4 == 0 => Op::SetEviction(Eviction::Soonest),
            37 if small % 4 == 1 => Op::SetEviction(Eviction::Oldest),
            37 => Op::KeepTurns(small % 4 == 2),
            _ => Op::Clock(small as i8),
        }
    }
}

/// A call, and another one that is made from within the first `left` that it causes.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub inside: Op,
}

impl Step {
    pub const BYTES: usize = 8;

    pub fn decode(bytes: [u8; Step::BYTES]) -> Step {
        let [a, b, c, d, e, f, g, h] = bytes;
        Step { op: Op::decode([a, b, c, d]), inside: Op::decode([e, f, g, h]) }
    }
}

/// Takes the steps, and at the end the cache itself goes. Panics where it differs from the model.
pub fn run(steps: impl IntoIterator<Item = Step>) {
    let mut world = World::new();
    for Step { op, inside } in steps {
        world.apply(op, inside);
        world.check();
    }
    world.end();
}

/// One of 1024 keys: ids of all lengths from 0 to 32, two versions.
pub fn key(number: u16) -> Key {
    let number = number % 1024;
    let length = match number {
        0..=3 => 0,
        4..=255 => usize::from(number % 33),
        _ => 32,
    };
    let mut id = [0; 32];
    id[..2].copy_from_slice(&(number / 2).to_le_bytes());
    Key::new(0x303 + i32::from(number % 2), &id[..length]).expect("32 bytes are allowed")
}

/// Of an object in [`World::objects`].
type Index = usize;

#[derive(Clone, Copy)]
struct Entry {
    object: Index,
    expiry: Seconds,
    /// Rises with each session that comes or whose expiry changes.
    came: u64,
    /// Rises with each session that comes while the oldest one is evicted.
    arrived: u64,
}

/// What the cache must be, as a list.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    limit: usize,
    eviction: Eviction,
    keeps_turns: bool,
    came: u64,
}

impl Model {
    fn position(&self, object: Index) -> Option<usize> {
        self.entries.iter().position(|entry| entry.object == object)
    }

    fn remove(&mut self, object: Index) {
        let position = self.position(object).expect("the model has what the cache gave away");
        self.entries.remove(position);
    }

    fn push(&mut self, object: Index, expiry: Seconds) {
        self.came += 1;
        self.entries.push(Entry { object, expiry, came: self.came, arrived: self.came });
    }

    /// Among its new equals it comes last, but it is no younger.
    fn set_expiry(&mut self, position: usize, expiry: Seconds) {
        self.came += 1;
        let Entry { object, arrived, .. } = self.entries[position];
        self.entries[position] = Entry { object, expiry, came: self.came, arrived };
    }

    fn set_eviction(&mut self, eviction: Eviction) {
        if eviction == Eviction::Oldest && self.eviction != eviction {
            self.entries.iter_mut().for_each(|entry| entry.arrived = entry.came);
        }
        self.eviction = eviction;
    }

    /// Soonest expiry first, among equals the one that came first; or the one that arrived first.
    fn evict(&mut self) -> Index {
        let first = (0..self.entries.len()).min_by_key(|&i| match (self.eviction, self.entries[i]) {
            (Eviction::Soonest, entry) => (entry.expiry, entry.came),
            (Eviction::Oldest, entry) => (0, entry.arrived),
        });
        self.entries.remove(first.expect("only a full cache evicts")).object
    }

    fn expired(&self, now: Seconds) -> usize {
        self.entries.iter().filter(|entry| entry.expiry < now).count()
    }
}

struct World {
    cache: Arc<Memory<Fake>>,
    model: Model,
    /// All that were ever made.
    objects: Vec<Arc<Object>>,
    alive: Arc<AtomicIsize>,
    now: Seconds,
}

impl World {
    fn new() -> World {
        World {
            cache: Arc::new(Memory::growing_at(5, 0)),
            model: Model::default(),
            objects: Vec::new(),
            alive: Arc::default(),
            now: START,
        }
    }

    fn make(&mut self, number: u16, expiry: Seconds) -> Index {
        self.objects.push(Object::new(key(number), expiry, &self.cache, &self.alive));
        self.objects.len() - 1
    }

    /// An object made before; among the last ones, which may still be cached.
    fn pick(&self, number: u16) -> Option<Index> {
        let made = self.objects.len();
        (made > 0).then(|| made - 1 - usize::from(number) % made.min(512))
    }

    fn index(&self, session: &Fake) -> Index {
        self.objects.iter().rposition(|object| Arc::ptr_eq(object, session.object())).expect("one of ours")
    }

    fn cached(&self, key: &Key) -> Option<Index> {
        self.model.entries.iter().map(|entry| entry.object).find(|&object| self.objects[object].key == *key)
    }

    fn collision(&self, keep: bool) -> Collision {
        if keep {
            Collision::KeepUnlessExpired(self.now)
        } else {
            Collision::Replace
        }
    }

    fn apply(&mut self, op: Op, inside: Op) {
        let cache = Arc::clone(&self.cache);
        match op {
            Op::Nothing => {}
            Op::Insert { key, expiry, keep } => {
                let object = self.make(key, START + Seconds::from(expiry));
                self.insert(object, keep, inside);
            }
            Op::InsertAgain { object, keep } => {
                if let Some(object) = self.pick(object) {
                    self.insert(object, keep, inside);
                }
            }
            Op::Fill { seed, count } => {
                let mut seed = seed;
                for _ in 0..count {
                    seed = seed.wrapping_mul(25173).wrapping_add(13849);
                    let object = self.make(seed >> 3, START + Seconds::from(seed >> 8));
                    self.insert(object, false, Op::Nothing);
                }
            }
            Op::Get(number) => {
                let key = key(number);
                assert_eq!(cache.get(&key).map(|session| self.index(&session)), self.cached(&key), "get");
            }
            Op::Take(number) => {
                let key = key(number);
                let taken = cache.take(&key).map(|session| self.index(&session));
                assert_eq!(taken, self.cached(&key), "take");
                taken.into_iter().for_each(|object| self.model.remove(object));
            }
            Op::TakeSame(object) => {
                let Some(object) = self.pick(object) else { return };
                let taken = cache.take_same(&Fake::of(&self.objects[object])).map(|session| self.index(&session));
                assert_eq!(taken, self.model.position(object).map(|_| object), "take_same");
                taken.into_iter().for_each(|object| self.model.remove(object));
            }
            Op::Contains(number) => {
                let key = key(number);
                assert_eq!(cache.contains(&key), self.cached(&key).is_some(), "contains");
            }
            Op::SetExpiry { object, expiry } => {
                let Some(object) = self.pick(object) else { return };
                let expiry = START + Seconds::from(expiry);
                if self.objects[object].set_expiry(expiry) == expiry {
                    return; // nothing changed: its place among its equals is not promised
                }
                cache.expiry_changed(&Fake::of(&self.objects[object]));
                if let Some(position) = self.model.position(object) {
                    self.model.set_expiry(position, expiry);
                }
            }
            Op::HasExpired => assert_eq!(cache.has_expired(self.now), self.model.expired(self.now) > 0, "has_expired"),
            Op::Expire(most) => self.expire(usize::from(most), inside),
            Op::Clear => self.clear(inside),
            Op::SetLimit(limit) => {
                self.model.limit = usize::from(limit);
                cache.set_limit(self.model.limit);
            }
            Op::KeepTurns(keep) => {
                self.model.keeps_turns = keep;
                cache.keep_turns(keep);
            }
            Op::SetEviction(eviction) => {
                self.model.set_eviction(eviction);
                cache.set_eviction(eviction);
            }
            Op::Snapshot => self.check_snapshot(),
            Op::Clock(by) => self.now += Seconds::from(by),
        }
    }

    fn insert(&mut self, object: Index, keep: bool, inside: Op) {
        let collision = self.collision(keep);
        let (expected, departures) = self.model_insert(object, keep);
        let session = Fake::of(&self.objects[object]);
        let mut departures = VecDeque::from(departures);
        let mut inside = Some(inside);
        let inserted = Arc::clone(&self.cache).insert(session, collision, &mut |session, why| {
            assert_eq!(Some((self.index(&session), why)), departures.pop_front(), "left, in this order");
            drop(session);
            // The insertion is over already, so the model knows exactly what is there now.
            if let Some(op) = inside.take() {
                self.apply(op, Op::Nothing);
            }
        });
        assert_eq!(inserted, expected);
        assert!(departures.is_empty(), "did not leave: {departures:?}");
    }

    fn model_insert(&mut self, object: Index, keep: bool) -> (Inserted, Vec<(Index, Departure)>) {
        let new = self.objects[object].expiry();
        if let Some(position) = self.model.position(object) {
            if !self.model.keeps_turns || self.model.entries[position].expiry != new {
                self.model.set_expiry(position, new);
            }
            return (Inserted::Same, Vec::new());
        }
        if let Some(other) = self.cached(&self.objects[object].key) {
            if keep && self.objects[other].expiry() >= self.now {
                return (Inserted::Kept, Vec::new());
            }
            self.model.remove(other);
            // The limit may have been lowered since. The new one stays, however soon it expires.
            let mut departures = vec![(other, Departure::Replaced)];
            while self.model.limit > 0 && self.model.entries.len() >= self.model.limit {
                departures.push((self.model.evict(), Departure::Evicted));
            }
            self.model.push(object, new);
            return (Inserted::Replaced, departures);
        }
        let mut evicted = Vec::new();
        while self.model.limit > 0 && self.model.entries.len() >= self.model.limit {
            evicted.push((self.model.evict(), Departure::Evicted));
        }
        self.model.push(object, new);
        (Inserted::Added, evicted)
    }

    /// Which of the expired ones leave first is not promised, only how many.
    fn expire(&mut self, most: usize, inside: Op) {
        let (now, expected) = (self.now, self.model.expired(self.now).min(most));
        let expired: HashSet<Index> =
            self.model.entries.iter().filter(|entry| entry.expiry < now).map(|entry| entry.object).collect();
        let mut inside = Inside::new(inside);
        let mut left = 0;
        let count = Arc::clone(&self.cache).expire(now, most, &mut |session| {
            let object = self.index(&session);
            assert!(expired.contains(&object) || inside.came.contains(&object), "it had not expired");
            left += 1;
            self.left_in_between(session, &mut inside);
        });
        assert_eq!(count, left, "expire says how many it handed out");
        assert!(count <= most);
        if !inside.acted {
            assert_eq!(count, expected, "expire");
        }
        self.settle(inside);
    }

    fn clear(&mut self, inside: Op) {
        let mut inside = Inside::new(inside);
        Arc::clone(&self.cache).clear(&mut |session| self.left_in_between(session, &mut inside));
        if !inside.acted {
            assert_eq!(inside.left.len(), self.model.entries.len(), "clear takes out everything");
        }
        self.settle(inside);
    }

    fn left_in_between(&mut self, session: Fake, inside: &mut Inside) {
        let object = self.index(&session);
        drop(session);
        inside.left.push(object);
        self.in_between(inside);
    }

    /// What `left` does while expire or clear is under way: how far those have come is not promised, so the model
    /// does not go along. Everything is counted, and compared when they are through.
    fn in_between(&mut self, inside: &mut Inside) {
        let cache = Arc::clone(&self.cache);
        let (object, keep) = match inside.op.take() {
            Some(Op::Insert { key, expiry, keep }) => (self.make(key, START + Seconds::from(expiry)), keep),
            // Most of all what has just left.
            Some(Op::InsertAgain { keep, .. }) => (*inside.left.last().expect("something left"), keep),
            Some(Op::Take(number)) => {
                inside.acted = true;
                cache.take(&key(number)).into_iter().for_each(|session| inside.left.push(self.index(&session)));
                return;
            }
            Some(Op::Clear) => {
                inside.acted = true;
                cache.clear(&mut |session| inside.left.push(self.index(&session)));
                return;
            }
            Some(Op::Expire(most)) => {
                inside.acted = true;
                cache.expire(self.now, usize::from(most), &mut |session| inside.left.push(self.index(&session)));
                return;
            }
            _ => {
                cache.len();
                return;
            }
        };
        inside.acted = true;
        let collision = self.collision(keep);
        let inserted = cache.insert(Fake::of(&self.objects[object]), collision, &mut |session, _| {
            inside.left.push(self.index(&session));
        });
        if matches!(inserted, Inserted::Added | Inserted::Replaced) {
            inside.came.push(object);
        }
    }

    /// What was there or came has left or is there, each as often as the other. The model learns which.
    fn settle(&mut self, inside: Inside) {
        let mut there: Vec<Index> = self.model.entries.iter().map(|entry| entry.object).collect();
        there.extend(&inside.came);
        for object in &inside.left {
            let position = there.iter().position(|other| other == object).expect("it left twice");
            there.swap_remove(position);
        }
        for object in inside.came {
            if self.model.position(object).is_some() {
                self.model.remove(object);
            }
            self.model.push(object, self.objects[object].expiry());
        }
        self.model.entries.retain(|entry| there.contains(&entry.object));
        self.check_snapshot();
    }

    fn check_snapshot(&self) {
        let mut cached: Vec<Index> = self.cache.snapshot().iter().map(|session| self.index(session)).collect();
        let mut expected: Vec<Index> = self.model.entries.iter().map(|entry| entry.object).collect();
        cached.sort_unstable();
        expected.sort_unstable();
        assert_eq!(cached, expected, "snapshot");
    }

    /// What must hold between any two steps.
    fn check(&self) {
        assert_eq!(self.cache.len(), self.model.entries.len(), "len");
        assert_eq!(self.cache.is_empty(), self.model.entries.is_empty(), "is_empty");
        assert_eq!(
            self.alive.load(SeqCst),
            self.model.entries.len() as isize,
            "references: one for each cached session"
        );
    }

    fn end(self) {
        self.check_snapshot();
        for (index, object) in self.objects.iter().enumerate() {
            let expected = isize::from(self.model.position(index).is_some());
            assert_eq!(object.references(), expected, "references to {:?}", object.key);
        }
        drop(self.cache);
        assert_eq!(self.alive.load(SeqCst), 0, "references outlive the cache");
    }
}

/// What happens in the callbacks of one expire or clear.
struct Inside {
    op: Option<Op>,
    /// The op changed something.
    acted: bool,
    came: Vec<Index>,
    left: Vec<Index>,
}

impl Inside {
    fn new(op: Op) -> Inside {
        Inside { op: Some(op), acted: false, came: Vec::new(), left: Vec::new() }
    }
}
