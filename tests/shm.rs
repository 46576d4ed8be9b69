//! The shared cache as one process sees it, and as several do that are well: the others are in `shm_kill.rs` and
//! `shm_corrupt.rs`.

mod shm_world;

use proptest::prelude::*;
use reprise::cache::shm::{self, Area, Counter, Error, Shm, Spec, LONGEST};
use reprise::cache::{Cache, Collision, Departure, Inserted, Seconds, Session};
use shm_world::*;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Instant;

const A: shm::Service = [1, 2];
const B: shm::Service = [1, 3];
const FAR: Seconds = 4_000_000_000;

fn put(area: &Area, number: u64, length: usize) -> Inserted {
    put_until(area, number, length, FAR)
}

fn put_until(area: &Area, number: u64, length: usize, expiry: Seconds) -> Inserted {
    let bytes = content(0, number, 0, length);
    area.insert(A, &key(number), &bytes, expiry, Collision::Replace, 0, &mut Vec::new())
}

fn is_there(area: &Area, number: u64) -> bool {
    let mut bytes = Vec::new();
    let found = area.get(A, &key(number), &mut bytes);
    if found {
        assert_content(0, number, &bytes);
    }
    found
}

// --- one process, against a model ---------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Op {
    Insert { key: u64, expiry: i64, length: usize, keep: bool },
    InsertAgain { object: usize, keep: bool },
    Get(u64),
    Take(u64),
    TakeSame(usize),
    SetExpiry { object: usize, expiry: i64 },
    Expire(usize),
    Clear,
    SetLimit(usize),
    Snapshot,
    Clock(i64),
}

fn ops() -> impl Strategy<Value = Vec<(bool, Op)>> {
    let (key, expiry, object) = (0..100u64, 0..200i64, 0..300usize);
    let op = prop_oneof![
        12 => (key.clone(), expiry.clone(), 24..1500usize, any::<bool>())
            .prop_map(|(key, expiry, length, keep)| Op::Insert { key, expiry, length, keep }),
        3 => (object.clone(), any::<bool>()).prop_map(|(object, keep)| Op::InsertAgain { object, keep }),
        3 => key.clone().prop_map(Op::Get),
        3 => key.prop_map(Op::Take),
        2 => object.clone().prop_map(Op::TakeSame),
        4 => (object, expiry).prop_map(|(object, expiry)| Op::SetExpiry { object, expiry }),
        2 => (0..5usize).prop_map(Op::Expire),
        1 => Just(Op::Clear),
        1 => (0..60usize).prop_map(Op::SetLimit),
        1 => Just(Op::Snapshot),
        3 => (-20..40i64).prop_map(Op::Clock),
    ];
    prop::collection::vec((any::<bool>(), op), 1..1500)
}

/// A service as a list, in the order the sessions expire.
struct Model {
    cache: Shm<Fake>,
    made: Vec<Fake>,
    /// Object, its expiry when it came, and when it came.
    cached: Vec<(Fake, Seconds, u64)>,
    limit: usize,
    came: u64,
}

impl Model {
    fn new(area: &'static Area, service: shm::Service) -> Model {
        let cache = Shm::new(area);
        cache.set_service(service);
        Model { cache, made: Vec::new(), cached: Vec::new(), limit: 0, came: 0 }
    }

    fn position(&self, key: u64) -> Option<usize> {
        self.cached.iter().position(|(cached, ..)| cached.0.key == key)
    }

    fn push(&mut self, session: &Fake) {
        self.came += 1;
        self.cached.push((session.clone(), session.expiry(), self.came));
        self.cached.sort_by_key(|&(_, expiry, came)| (expiry, came));
    }

    /// The same object with the same expiry: the same bytes.
    fn has(&self, at: usize, session: &Fake) -> bool {
        self.cached[at].0.same(session) && self.cached[at].1 == session.expiry()
    }

    fn insert(&mut self, session: &Fake, keep: bool, now: Seconds) {
        let mut expected = Vec::new();
        let outcome = match self.position(session.0.key) {
            Some(at) if self.has(at, session) => Inserted::Same,
            Some(at) if keep && self.cached[at].1 >= now => Inserted::Kept,
            Some(at) => {
                expected.push((self.cached.remove(at).0 .0.number, Departure::Replaced));
                Inserted::Replaced
            }
            None => Inserted::Added,
        };
        if matches!(outcome, Inserted::Added | Inserted::Replaced) {
            while self.limit > 0 && self.cached.len() >= self.limit {
                expected.push((self.cached.remove(0).0 .0.number, Departure::Evicted));
            }
            self.push(session);
        }
        let collision = if keep { Collision::KeepUnlessExpired(now) } else { Collision::Replace };
        let mut left = Vec::new();
        let inserted =
            self.cache.insert(session.clone(), collision, &mut |session, why| left.push((session.0.number, why)));
        assert_eq!((inserted, left), (outcome, expected));
    }

    fn apply(&mut self, op: Op, now: &mut Seconds) {
        let pick = |made: &Vec<Fake>, object: usize| made.iter().rev().nth(object).cloned();
        match op {
            Op::Insert { key, expiry, length, keep } => {
                let session = Fake::new(self.made.len() as u64, key, expiry, length);
                self.made.push(session.clone());
                self.insert(&session, keep, *now);
            }
            Op::InsertAgain { object, keep } => {
                if let Some(session) = pick(&self.made, object) {
                    self.insert(&session, keep, *now);
                }
            }
            Op::Get(number) => {
                let expected = self.position(number).map(|at| self.cached[at].0 .0.number);
                assert_eq!(self.cache.get(&key(number)).map(|session| session.0.number), expected, "get");
                assert_eq!(self.cache.contains(&key(number)), expected.is_some(), "contains");
            }
            Op::Take(number) => {
                let expected = self.position(number).map(|at| self.cached.remove(at).0 .0.number);
                assert_eq!(self.cache.take(&key(number)).map(|session| session.0.number), expected, "take");
            }
            Op::TakeSame(object) => {
                let Some(session) = pick(&self.made, object) else { return };
                let at = self.position(session.0.key).filter(|&at| self.has(at, &session));
                let expected = at.map(|at| self.cached.remove(at).0 .0.number);
                assert_eq!(self.cache.take_same(&session).map(|session| session.0.number), expected, "take_same");
            }
            Op::SetExpiry { object, expiry } => {
                let Some(session) = pick(&self.made, object) else { return };
                session.0.expiry.store(expiry, Relaxed);
                self.cache.expiry_changed(&session);
                // A cache of bytes cannot tell the object it was given: what has the key is replaced.
                match self.position(session.0.key) {
                    Some(at) if !self.has(at, &session) => {
                        self.cached.remove(at);
                        self.push(&session);
                    }
                    _ => {}
                }
            }
            Op::Expire(most) => {
                let count = self.cached.iter().filter(|cached| cached.1 < *now).count().min(most);
                let expected: Vec<_> = self.cached.drain(..count).map(|cached| cached.0 .0.number).collect();
                let mut left = Vec::new();
                assert_eq!(self.cache.expire(*now, most, &mut |session| left.push(session.0.number)), count);
                assert_eq!(left, expected, "expire, the soonest first");
            }
            Op::Clear => {
                let expected: Vec<_> = self.cached.drain(..).map(|cached| cached.0 .0.number).collect();
                let mut left = Vec::new();
                self.cache.clear(&mut |session| left.push(session.0.number));
                assert_eq!(left, expected, "clear");
            }
            Op::SetLimit(limit) => {
                self.limit = limit;
                self.cache.set_limit(limit);
            }
            Op::Snapshot => {
                let expected: Vec<_> = self.cached.iter().map(|cached| cached.0 .0.number).collect();
                let snapshot: Vec<_> = self.cache.snapshot().iter().map(|session| session.0.number).collect();
                assert_eq!(snapshot, expected, "snapshot");
            }
            Op::Clock(by) => *now += by,
        }
        assert_eq!(self.cache.len(), self.cached.len());
        assert_eq!(self.cache.is_empty(), self.cached.is_empty());
        let expired = self.cached.first().is_some_and(|first| first.1 < *now);
        assert_eq!(self.cache.has_expired(*now), expired, "has_expired");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Two services take turns in one small cache, over many rounds of its ring: each sees what a list would do.
    #[test]
    fn each_service_does_what_the_model_does(ops in ops()) {
        let area = own(1 << 20);
        let mut models = [Model::new(area.0, A), Model::new(area.0, B)];
        let mut now = 100;
        for (number, (which, op)) in ops.into_iter().enumerate() {
            models[usize::from(which)].apply(op, &mut now);
            if number % 32 == 0 {
                assert_eq!(area.check(), Some(area.info().sessions));
            }
        }
        assert_eq!(area.check(), Some((models[0].cached.len() + models[1].cached.len()) as u64));
        assert_eq!(area.info().count(Counter::Reset) + area.info().count(Counter::Busy), 0);
    }
}

#[test]
fn what_cannot_be_bytes_is_refused() {
    let area = own(2 << 20);
    assert_eq!(put(&area, 1, LONGEST), Inserted::Added);
    assert_eq!(put(&area, 2, LONGEST + 1), Inserted::Refused);
    assert!(is_there(&area, 1) && !is_there(&area, 2));
}

#[test]
fn a_service_sees_only_its_own() {
    let area = own(1 << 20);
    let (a, b) = (Shm::<Fake>::new(area.0), Shm::<Fake>::new(area.0));
    a.set_service(A);
    b.set_service(B);
    for number in 0..100 {
        a.insert(Fake::new(number, number, 10, 100), Collision::Replace, &mut |_, _| {});
    }
    assert_eq!((a.len(), b.len()), (100, 0));
    assert!(b.get(&key(5)).is_none() && b.take(&key(5)).is_none() && !b.contains(&key(5)));
    assert!(!b.has_expired(50) && a.has_expired(50));
    b.clear(&mut |_| panic!("it has none"));
    assert_eq!(b.expire(50, 100, &mut |_| panic!("it has none")), 0);
    b.insert(Fake::new(1000, 5, 10, 100), Collision::Replace, &mut |_, _| panic!("the other's is no collision"));
    assert_eq!(a.get(&key(5)).unwrap().0.number, 5);
    assert_eq!(b.get(&key(5)).unwrap().0.number, 1000);
    let info = area.info();
    let services: HashMap<_, _> = info.services.iter().map(|service| (service.identity, service.sessions)).collect();
    assert_eq!(services, HashMap::from([(A, 100), (B, 1)]));
    assert_eq!(info.services.iter().map(|service| service.soonest_expiry).collect::<HashSet<_>>(), HashSet::from([10]));
}

#[test]
fn services_come_and_go_and_the_longest_unused_makes_room() {
    let area = own(4 << 20);
    let insert =
        |service: u64| area.insert([service, 0], &key(1), &[1; 100], FAR, Collision::Replace, 0, &mut Vec::new());
    for service in 0..4096 {
        assert_eq!(insert(service), Inserted::Added);
    }
    let mut bytes = Vec::new();
    assert!(area.take([77, 0], &key(1), &mut bytes));
    assert_eq!(insert(5000), Inserted::Added, "a row without sessions is used again");
    assert!((0..4096).all(|service| (service == 77) != area.get([service, 0], &key(1), &mut bytes)));
    assert_eq!(area.check(), Some(4096));
    // A certificate is renewed each day, for ever. The services of before are still there, in the order of last use.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    for service in (0..4096).filter(|&service| service != 1234 && service != 77) {
        area.insert([service, 0], &key(2), &[2; 100], FAR, Collision::Replace, 0, &mut Vec::new());
    }
    area.insert([5000, 0], &key(2), &[2; 100], FAR, Collision::Replace, 0, &mut Vec::new());
    assert_eq!(insert(6000), Inserted::Added);
    assert!(!area.get([1234, 0], &key(1), &mut bytes), "the one that nobody used has gone");
    let left = (0..4096).chain([5000]).filter(|&service| ![77, 1234].contains(&service));
    assert!(left.clone().all(|service| area.get([service, 0], &key(1), &mut bytes)));
    for service in 10_000..30_000 {
        assert_eq!(insert(service), Inserted::Added, "{service}");
    }
    assert_eq!(insert(29_999), Inserted::Same);
    assert_eq!((area.check(), area.info().count(Counter::Reset)), (Some(area.info().sessions), 0));
}

/// A service with many sessions that makes room for another one goes bit by bit, and none of its sessions is found meanwhile.
#[test]
fn a_large_service_makes_room_bit_by_bit() {
    let area = own(4 << 20);
    let insert = |service: u64, number: u64| {
        area.insert([service, 0], &key(number), &[1; 100], FAR, Collision::Replace, 0, &mut Vec::new())
    };
    (0..5000).for_each(|number| assert_eq!(insert(0, number), Inserted::Added));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    (1..4096).for_each(|service| assert_eq!(insert(service, 1), Inserted::Added));
    let mut bytes = Vec::new();
    let mut tries = 0;
    while insert(5000, 1) == Inserted::Refused {
        assert!((0..5000).all(|number| !area.get([0, 0], &key(number), &mut bytes)));
        tries += 1;
        assert!(tries < 200);
    }
    println!("{tries} insertions were refused");
    assert!((1..4096).all(|service| area.get([service, 0], &key(1), &mut bytes)));
    assert_eq!((area.check(), area.info().count(Counter::Reset)), (Some(4096), 0));
}

/// What is left of a service that is gone expires, though nobody asks for it.
#[test]
fn the_expired_sessions_of_a_service_that_is_gone_leave() {
    let area = own(2 << 20);
    let insert = |service: u64, number: u64, expiry: i64| {
        area.insert([service, 0], &key(number), &[1; 100], expiry, Collision::Replace, 0, &mut Vec::new())
    };
    (0..100).for_each(|number| assert_eq!(insert(1, number, 1000), Inserted::Added));
    (0..100).for_each(|number| assert_eq!(insert(2, number, 1000), Inserted::Added));
    // Service 1 was last used the day before yesterday.
    let rows = &area.raw()[64 + 2048 + 4096 + 256..];
    let row = rows.chunks(8).find(|row| [0, 1].map(|at| row[at].load(Relaxed)) == [1, 0]).unwrap();
    row[7].fetch_sub(2 * 24 * 3600, Relaxed);
    (0..9 * 4096).for_each(|number| _ = insert(3, number % 100, 2_000_000_000 + number as i64));
    assert_eq!((area.sessions([1, 0]), area.sessions([2, 0])), (0, 100));
    assert!(area.check().is_some());
}

/// Each removal overwrites what it removes, and a flush all of it: no key can be read in the file afterwards.
#[test]
fn what_was_removed_is_overwritten() {
    const SECRET: u64 = 0x5ec3_e75e_c3e7_5ec3;
    let area = own(2 << 20);
    let found = || {
        let bytes = std::fs::read(format!("/dev/shm/reprise-{}", area.name())).unwrap();
        bytes.chunks(8).filter(|word| *word == SECRET.to_le_bytes()).count()
    };
    let insert = |service: shm::Service, number: u64, expiry: i64, limit: usize| {
        let bytes = SECRET.to_le_bytes().repeat(10 + number as usize % 20);
        area.insert(service, &key(number), &bytes, expiry, Collision::Replace, limit, &mut Vec::new())
    };
    let mut out = Vec::new();
    let fill = || (0..200).for_each(|number| _ = insert(A, number, FAR, 0));
    fill();
    assert!(found() > 2000);
    (0..100).for_each(|number| assert!(area.take(A, &key(number), &mut out)));
    (100..200).for_each(|number| _ = insert(A, number, FAR + 1, 0));
    (100..199).for_each(|number| area.rewrite(A, &key(number), &[1; 100], FAR));
    assert_eq!(found(), 10 + 199 % 20, "taken or replaced");
    fill();
    assert_eq!(area.expire(A, FAR + 10, usize::MAX, &mut |_| {}), 200);
    assert_eq!(found(), 0, "expired");
    fill();
    insert(A, 1000, FAR + 100, 1);
    insert(A, 1000, FAR + 100, 1);
    while area.sessions(A) > 1 {
        insert(A, 1000, FAR + 99, 1);
    }
    assert_eq!(found(), 10, "beyond the limit");
    fill();
    area.clear(A, &mut |_| {});
    assert_eq!(found(), 0, "cleared");
    // Moved and evicted, over many rounds of the ring.
    for number in 0..60_000u64 {
        insert(A, number, FAR, 0);
        if number % 3 == 0 {
            area.take(A, &key(number - number.min(500) / 2), &mut out);
        }
    }
    let mut alive = 0;
    area.for_each(A, &mut |bytes| alive += bytes.len() / 8);
    assert!(alive > 10_000);
    assert_eq!(found(), alive, "moved or evicted");
    area.flush();
    assert_eq!(found(), 0, "flushed");
    assert_eq!(area.info().count(Counter::Reset), 0);
}

/// A large cache in which a service of many sessions was flushed goes on: what is dead is passed over a part at a time.
#[test]
fn a_healthy_cache_does_not_empty_itself() {
    let area = own(256 << 20);
    let insert = |service: shm::Service, number: u64| {
        area.insert(service, &key(number), &[1; 24], FAR, Collision::Replace, 0, &mut Vec::new())
    };
    // The ring is full of small sessions, of which the last ones are another service's.
    let mut number = 0;
    while area.info().count(Counter::Evicted) == 0 {
        (0..1000).for_each(|step| assert_eq!(insert(A, number + step), Inserted::Added));
        number += 1000;
    }
    (0..50_000).for_each(|number| assert_eq!(insert(B, number), Inserted::Added));
    area.clear(A, &mut |_| {});
    let mut longest = std::time::Duration::ZERO;
    for number in 50_000..400_000 {
        let began = Instant::now();
        assert_eq!(insert(B, number), Inserted::Added);
        longest = longest.max(began.elapsed());
    }
    println!("{number} sessions were flushed; the longest insertion after that: {longest:?}");
    let mut bytes = Vec::new();
    assert!((0..400_000).all(|number| area.get(B, &key(number), &mut bytes)));
    assert_eq!((area.info().count(Counter::Reset), area.check()), (0, Some(400_000)));
}

/// An insertion that finds a stopped writer is made up for when the lock is free, unless the session was removed meanwhile.
#[test]
fn insertions_that_were_put_off_come_later() {
    let area = own(2 << 20);
    let stopped = stopped_in_the_lock(&area, &|| {
        (0..30).for_each(|number| _ = put(&area, 5000 + number, 30_000));
    });
    let mut out = Vec::new();
    for number in 0..10 {
        assert_eq!(put(&area, number, 140), Inserted::Refused);
    }
    // Removed here, and by somebody else.
    assert!(!area.take(A, &key(3), &mut out));
    Child::run(|| assert!(!area.take(A, &key(4), &mut Vec::new()))).succeeds();
    stopped.kill();
    stopped.wait();
    (100..110).for_each(|number| assert!(matches!(put(&area, number, 140), Inserted::Added | Inserted::Replaced)));
    let there: Vec<u64> = (0..10).filter(|&number| is_there(&area, number)).collect();
    // Removals are counted in 255 places: another one may be taken for removed, too.
    assert!(!there.contains(&3) && !there.contains(&4) && there.len() >= 6, "{there:?}");
    // After a flush none of them comes.
    let stopped = stopped_in_the_lock(&area, &|| {
        (0..30).for_each(|number| _ = put(&area, 5000 + number, 30_000));
    });
    (200..210).for_each(|number| assert_eq!(put(&area, number, 140), Inserted::Refused));
    area.clear(A, &mut |_| {});
    stopped.kill();
    stopped.wait();
    (100..110).for_each(|number| _ = put(&area, number, 140));
    assert!((200..210).all(|number| !is_there(&area, number)));
    assert!(area.check().is_some());
}

#[test]
fn a_flush_takes_everything() {
    let area = own(1 << 20);
    (0..500).for_each(|number| assert_eq!(put(&area, number, 140), Inserted::Added));
    assert_eq!(area.flush(), Some(500));
    assert_eq!((area.check(), area.info().used, area.info().count(Counter::Removed)), (Some(0), 0, 500));
    (0..500).for_each(|number| assert!(!is_there(&area, number)));
    assert_eq!(put(&area, 1, 140), Inserted::Added);
}

// --- room ---------------------------------------------------------------------------------------------------------

#[test]
fn sixty_four_mib_hold_300_000_sessions_of_140_bytes() {
    let area = own(64 << 20);
    for number in 0..300_000 {
        assert_eq!(put(&area, number, 140), Inserted::Added);
    }
    assert!((0..300_000).all(|number| is_there(&area, number)));
    let info = area.info();
    assert_eq!((info.sessions, info.count(Counter::Evicted)), (300_000, 0));
    assert!(info.used <= 300_000 * (140 + 64), "{} bytes a session", info.used / 300_000);
    // Full: the oldest leave, and the service is told.
    let (mut number, mut left) = (300_000, Vec::new());
    while left.is_empty() {
        area.insert(A, &key(number), &content(0, number, 0, 140), FAR, Collision::Replace, 0, &mut left);
        number += 1;
    }
    println!("{} sessions of 140 bytes in 64 MiB", number - 1);
    assert_content(0, 0, &left[0].0);
    assert!(!is_there(&area, 0) && is_there(&area, 299_999) && is_there(&area, number - 1));
}

/// Sizes from tiny to the longest, for 40 times the cache: the bytes it holds stay, and so do the newest sessions.
#[test]
fn memory_does_not_fragment() {
    for churn in [false, true] {
        let area = own(16 << 20);
        let room = area.info().room;
        let mut random = Random(5);
        let mut written = 0;
        let mut out = Vec::new();
        let (mut number, mut least) = (0u64, u64::MAX);
        while written < 40 * room {
            let length = match random.below(100) {
                0 => random.below(LONGEST as u64 - 24) as usize + 24,
                1..=20 => random.below(8192) as usize + 24,
                _ => random.below(300) as usize + 24,
            };
            assert_eq!(put(&area, number, length), Inserted::Added);
            written += length as u64;
            // Holes everywhere: every second one is taken out some time.
            if churn && number % 2 == 0 {
                area.take(A, &key(number - random.below(number.min(2000) + 1)), &mut out);
            }
            if written > 2 * room && number % 64 == 0 {
                least = least.min(area.info().used);
                assert!((number.saturating_sub(50)..number).filter(|&number| is_there(&area, number)).count() >= 20);
            }
            number += 1;
        }
        println!("{number} sessions, churn {churn}: never less than {}% held", least * 100 / room);
        assert!(least > room * if churn { 78 } else { 97 } / 100, "{least} of {room}, churn {churn}");
        assert_eq!(area.check(), Some(area.info().sessions));
        assert_eq!(area.info().count(Counter::Reset), 0);
    }
}

/// What is dead makes room before anything alive is evicted, wherever in the ring it is.
#[test]
fn nothing_is_evicted_while_a_fifth_is_dead() {
    let area = own(8 << 20);
    let many = area.info().room * 3 / 4 / (40 + 144);
    (0..many).for_each(|number| assert_eq!(put(&area, number, 140), Inserted::Added));
    let mut out = Vec::new();
    for number in many..20 * many {
        assert_eq!(put(&area, number, 140), Inserted::Added);
        assert!(area.take(A, &key(number), &mut out));
    }
    assert!((0..many).all(|number| is_there(&area, number)));
    assert_eq!(area.info().count(Counter::Evicted), 0);
}

#[test]
fn under_pressure_expired_sessions_go_first() {
    let area = own(1 << 20);
    // Older ones that have not expired, then some that have.
    (0..1000).for_each(|number| _ = put(&area, number, 140));
    (1000..2000).for_each(|number| _ = put_until(&area, number, 140, 1000));
    (2000..4400).for_each(|number| _ = put(&area, number, 140));
    assert!((0..1000).all(|number| is_there(&area, number)), "{:?}", area.info());
    assert!(area.info().count(Counter::Expired) > 0);
    assert_eq!(area.info().count(Counter::Evicted), 0);
}

#[test]
fn a_limit_lowered_by_much_is_reached_by_the_next_insertion() {
    let area = own(8 << 20);
    let cache = Shm::<Fake>::new(area.0);
    for number in 0..5000 {
        cache.insert(Fake::new(number, number, number as i64, 100), Collision::Replace, &mut |_, _| {});
    }
    cache.set_limit(10);
    let mut left = Vec::new();
    let inserted = cache.insert(Fake::new(9999, 4999, 1, 100), Collision::Replace, &mut |session, why| {
        assert_eq!(cache.len(), 10, "it is over when they leave");
        left.push((session.0.number, why));
    });
    assert_eq!((inserted, left.len(), cache.len()), (Inserted::Replaced, 4991, 10));
    assert_eq!(left[0], (4999, Departure::Replaced));
    assert!(left[1..].iter().enumerate().all(|(at, left)| *left == (at as u64, Departure::Evicted)));
}

// --- several processes --------------------------------------------------------------------------------------------

#[test]
fn processes_find_each_other_by_name() {
    let spec = spec(1 << 20);
    // Both come first, as far as they know.
    let children: Vec<_> = (0..8u64)
        .map(|child| {
            let spec = spec.clone();
            Child::run(move || assert_eq!(put(Area::open(&spec).unwrap(), child, 140), Inserted::Added))
        })
        .collect();
    children.into_iter().for_each(Child::succeeds);
    let area = Own(Area::find(&spec.name).unwrap());
    assert!((0..8).all(|child| is_there(&area, child)), "they all had the same one");
    assert!(std::ptr::eq(area.0, Area::open(&spec).unwrap()), "one mapping in a process");
    assert!(shm::list().unwrap().contains(&spec.name));
}

#[test]
fn a_ticket_is_taken_once() {
    const TICKETS: u64 = 5000;
    let area = own(4 << 20);
    (0..TICKETS).for_each(|number| _ = put(&area, number, 140));
    let taken = shared(TICKETS as usize + 1);
    let start = &taken[TICKETS as usize];
    let child = |_| {
        Child::run(|| {
            wait_for(start);
            let mut bytes = Vec::new();
            for number in 0..TICKETS {
                if area.take(A, &key(number), &mut bytes) {
                    assert_content(0, number, &bytes);
                    taken[number as usize].fetch_add(1, SeqCst);
                }
            }
        })
    };
    let children: Vec<_> = (0..6).map(child).collect();
    start.store(1, SeqCst);
    children.into_iter().for_each(Child::succeeds);
    let taken = |times| taken[..TICKETS as usize].iter().filter(|taken| taken.load(SeqCst) == times).count() as u64;
    let (by_nobody, once) = (taken(0), taken(1));
    assert_eq!(TICKETS - by_nobody - once, 0, "taken twice");
    assert_eq!(by_nobody, 0, "taken by nobody");
    // On a busy machine some are taken without the lock, which the next writer counts.
    assert_eq!(put(&area, TICKETS, 140), Inserted::Added);
    assert_eq!((area.check(), area.info().count(Counter::Taken)), (Some(1), TICKETS));
}

#[test]
fn threads_and_forks_while_others_hold_the_lock() {
    let area = own(2 << 20);
    let stop = shared(1);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let area = area.0;
            scope.spawn(move || {
                let mut random = Random(thread);
                while stop[0].load(SeqCst) == 0 {
                    put(area, random.below(3000), 140);
                }
            });
        }
        for child in 0..100 {
            Child::run(|| (0..50).for_each(|number| _ = put(&area, 10_000 + child * 50 + number, 140))).succeeds();
        }
        stop[0].store(1, SeqCst);
    });
    assert!((0..50).all(|number| is_there(&area, 14_950 + number)));
    assert!(area.check().is_some());
    assert_eq!(area.info().count(Counter::Reset) + area.info().count(Counter::Recovered), 0);
}

#[test]
fn a_stopped_owner_delays_but_does_not_block() {
    let area = own(2 << 20);
    (0..1000).for_each(|number| _ = put(&area, number, 140));
    let mut delayed = 0;
    // Stopped in the lock sometimes; the work is nothing but changes.
    for round in 0..60 {
        let child = Child::run(|| loop {
            area.flush();
            (0..50).for_each(|number| _ = put(&area, 5000 + number, 60_000));
        });
        std::thread::sleep(std::time::Duration::from_micros(1500 + round * 50));
        child.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: it is our child, and `status` is there.
        unsafe { libc::waitpid(child.0, &mut status, libc::WUNTRACED) };
        let began = Instant::now();
        let inserted = put(&area, 1, 140);
        let took = began.elapsed().as_millis();
        delayed += u64::from(inserted == Inserted::Refused);
        assert!(took < 2000, "{took} ms"); // 20, and what a busy machine adds
        child.kill();
        child.wait();
        assert!(matches!(put(&area, 1, 140), Inserted::Added | Inserted::Same), "free again when the owner is dead");
    }
    assert!(delayed > 0, "it was never stopped in the lock");
    assert_eq!(area.info().count(Counter::Busy), delayed);
}

/// GONE1: with a writer stopped at any instruction, what is removed, taken or flushed is gone at once, for all processes,
/// taken by one caller only, and does not come back when the writer goes on, or is killed and its change undone.
#[test]
fn gone1_nothing_waits_for_a_stopped_writer() {
    const KEYS: u64 = 1000;
    let area = own(2 << 20);
    let identity = [1, 77];
    let mut in_lock = 0;
    let mut random = Random(11);
    for round in 0..600 {
        if in_lock == 20 {
            break;
        }
        (0..KEYS).for_each(|number| {
            area.insert(A, &key(number), &content(0, number, 0, 140), FAR, Collision::Replace, 0, &mut Vec::new());
        });
        // It moves the records of others, too: much is dead, and the ring goes round.
        let child = Child::run(|| {
            let mut random = Random(round);
            let mut out = Vec::new();
            loop {
                let number = random.below(200);
                let bytes = content(1, number, random.below(9), 2000);
                area.insert(identity, &key(number), &bytes, FAR, Collision::Replace, 0, &mut Vec::new());
                area.take(A, &key(random.below(KEYS)), &mut out);
            }
        });
        std::thread::sleep(std::time::Duration::from_micros(1500 + round * 37));
        child.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: it is our child, and `status` is there.
        unsafe { libc::waitpid(child.0, &mut status, libc::WUNTRACED) };
        if put(&area, KEYS + 1, 140) != Inserted::Refused {
            child.kill();
            child.wait();
            continue;
        }
        in_lock += 1;
        let mut out = Vec::new();
        let gone: Vec<u64> = (0..40).map(|_| random.below(KEYS)).collect();
        for &number in &gone {
            let there = is_there(&area, number);
            let took = [(); 2].map(|()| area.take(A, &key(number), &mut out));
            assert!(!took[1], "taken twice");
            // A half-done change may hide a record, and then nobody has it.
            assert!(!took[0] || there, "round {round}");
            assert!(!is_there(&area, number), "round {round}: it is there after its removal");
        }
        let cut_short = KEYS - 1 - round % 50;
        area.rewrite(A, &key(cut_short), &content(0, cut_short, 1, 140), 2_000_000_000);
        assert!(!is_there(&area, cut_short), "round {round}: it lives as long as before");
        let flush = round % 3 == 0;
        if flush {
            area.clear(A, &mut |_| ());
            assert!((0..KEYS).all(|number| !is_there(&area, number)), "round {round}: not flushed");
        }
        if round % 2 == 0 {
            child.signal(libc::SIGCONT);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill();
        child.wait();
        assert!(gone.iter().all(|&number| !is_there(&area, number)), "round {round}: it came back");
        assert!(!flush || (0..KEYS).all(|number| !is_there(&area, number)), "round {round}: flushed ones came back");
        assert!(matches!(put(&area, KEYS + 1, 140), Inserted::Added | Inserted::Same | Inserted::Replaced));
        assert!(gone.iter().all(|&number| !is_there(&area, number)), "round {round}: tidying up brought it back");
        assert!(area.check().is_some(), "round {round}");
    }
    println!("stopped in the lock {in_lock} times");
    assert!(in_lock >= 5, "it was hardly ever stopped in the lock: {in_lock}");
    assert_eq!(area.info().count(Counter::Reset), 0);
}

// --- files --------------------------------------------------------------------------------------------------------

fn text(result: Result<&'static Area, Error>) -> String {
    result.map(|area| area.name()).expect_err("it must not open").to_string()
}

#[test]
fn another_size_or_keeping_is_told_in_words() {
    let area = own(1 << 20);
    let name = area.name();
    let spec = |size, keep| Spec { size, keep, ..Spec::new(&name).unwrap() };
    assert_eq!(
        text(Area::open(&spec(2 << 20, true))),
        format!(
            "the shared cache /dev/shm/reprise-{name} was made with size=1M, this process asks for 2M: remove it with \
             `reprise cache rm {name}` or use the same size"
        )
    );
    assert!(text(Area::open(&spec(1 << 20, false))).contains("made with keep=on, this process asks for keep=off"));
    assert!(text(Area::open(&spec(1000, true))).contains("cannot have size=1000"));
    shm::remove(&name).unwrap();
    assert!(matches!(shm::remove(&name), Err(Error::Missing(_))));
    assert!(matches!(Area::find(&name), Err(Error::Missing(_))));
    let again = Own(Area::open(&spec(2 << 20, true)).unwrap());
    assert!(!std::ptr::eq(again.0, area.0), "the removed one is not used for it");
}

#[test]
fn names_are_plain() {
    for name in ["", ".hidden", "a/b", "ä", "a b", &"x".repeat(65), "..", "a\0"] {
        let opened = Area::open(&Spec { name: name.to_string(), size: 1 << 20, keep: true, service: String::new() });
        assert!(matches!(opened, Err(Error::Name(_))), "{name:?}");
    }
}

#[test]
fn a_path_is_used_as_it_is() {
    let path = std::env::temp_dir().join(name());
    let spec = Spec { name: path.to_str().unwrap().to_string(), size: 1 << 20, keep: true, service: String::new() };
    let area = Own(Area::open(&spec).unwrap());
    put(&area, 1, 140);
    assert_eq!(area.name(), spec.name);
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.permissions().mode() & 0o7777), (1 << 20, 0o600));
}

/// Whatever lies under the name, the process neither follows nor changes it.
#[test]
fn what_is_not_ours_is_not_used() {
    let refused = |prepare: &dyn Fn(&PathBuf), reason: &str| {
        let path = std::env::temp_dir().join(name());
        prepare(&path);
        let spec = Spec { name: path.to_str().unwrap().to_string(), size: 1 << 20, keep: true, service: String::new() };
        let read = |path: &PathBuf| path.is_file().then(|| std::fs::read(path).ok());
        let before = read(&path);
        let said = text(Area::open(&spec));
        assert!(said.contains(reason), "{said}");
        assert_eq!(read(&path), before);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir(&path);
    };
    // A sound cache of the right size, with one thing wrong.
    let make = |path: &PathBuf| {
        Area::open(&Spec {
            name: path.to_str().unwrap().to_string(),
            size: 1 << 20,
            keep: true,
            service: String::new(),
        })
        .unwrap();
    };
    let with_byte = |path: &PathBuf, at: usize| {
        make(path);
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    };
    let elsewhere = std::env::temp_dir().join(name());
    make(&elsewhere);
    refused(&|path| symlink(&elsewhere, path).unwrap(), "a symbolic link");
    refused(&|path| std::fs::hard_link(&elsewhere, path).unwrap(), "more than one name");
    std::fs::remove_file(&elsewhere).unwrap();
    refused(&|path| std::fs::create_dir(path).unwrap(), "not a regular file");
    refused(
        &|path| {
            let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: a string that ends with NUL.
            assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        },
        "not a regular file",
    );
    refused(
        &|path| {
            make(path);
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
        },
        "others than its owner",
    );
    refused(&|path| with_byte(path, 0), "something else");
    refused(&|path| with_byte(path, 8), "another version of Reprise");
    for at in [16, 17, 24, 32, 40, 100, 127] {
        refused(&|path| with_byte(path, at), "is damaged");
    }
    refused(
        &|path| {
            std::fs::write(path, "short").unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        },
        "something else",
    );
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } == 0 {
        refused(
            &|path| {
                make(path);
                std::os::unix::fs::chown(path, Some(65534), None).unwrap();
            },
            "another user",
        );
    }
}

#[test]
fn no_room_is_an_error_and_leaves_nothing() {
    // A file system of its own, where this may be made.
    let directory = std::env::temp_dir().join(name());
    std::fs::create_dir(&directory).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4M", "tmpfs"])
        .arg(&directory)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("not root, or no mounts: nothing tested");
        std::fs::remove_dir(&directory).unwrap();
        return;
    }
    let spec = Spec {
        name: directory.join("cache").to_str().unwrap().to_string(),
        size: 8 << 20,
        keep: true,
        service: String::new(),
    };
    let said = text(Area::open(&spec));
    let left = std::fs::read_dir(&directory).unwrap().count();
    let fits = Area::open(&Spec { size: 2 << 20, ..spec }).map(|area| put(area, 1, 140));
    let _ = std::process::Command::new("umount").arg("-l").arg(&directory).status();
    let _ = std::fs::remove_dir(&directory);
    assert!(said.contains("no room for size=8M"), "{said}");
    assert_eq!((left, fits.unwrap()), (0, Inserted::Added));
}

// --- a cache that is not kept -------------------------------------------------------------------------------------

fn not_kept() -> (Spec, PathBuf) {
    let spec = Spec { keep: false, ..spec(1 << 20) };
    let path = PathBuf::from(format!("/dev/shm/reprise-{}", spec.name));
    (spec, path)
}

#[test]
fn the_last_one_to_leave_removes_it() {
    let (spec, path) = not_kept();
    let (ready, go) = (&shared(2)[0], &shared(2)[1]);
    let child = Child::run(|| {
        put(Area::open(&spec).unwrap(), 1, 140);
        ready.store(1, SeqCst);
        wait_for(go);
        shm::leave();
    });
    wait_for(ready);
    // Another one came and leaves: it stays.
    Child::run(|| {
        assert!(is_there(Area::open(&spec).unwrap(), 1));
        shm::leave();
    })
    .succeeds();
    assert!(path.exists());
    // Who only looks keeps nothing.
    assert!(is_there(Area::find(&spec.name).unwrap(), 1));
    go.store(1, SeqCst);
    child.succeeds();
    assert!(!path.exists());
}

#[test]
fn a_killed_last_user_leaves_a_cache_that_is_made_anew() {
    let (spec, path) = not_kept();
    let child = Child::run(|| {
        put(Area::open(&spec).unwrap(), 1, 140);
        // SAFETY: plain numbers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    child.wait();
    assert!(path.exists());
    let area = Area::open(&spec).unwrap();
    assert!(!is_there(area, 1));
    put(area, 2, 140);
    // A fork holds it as well, also when the first one has left; what it inherited is not taken from it.
    let go = &shared(1)[0];
    let child = Child::run(|| {
        wait_for(go);
        assert!(is_there(Area::open(&spec).unwrap(), 2));
        shm::leave();
    });
    Child::run(shm::leave).succeeds();
    assert!(path.exists(), "two others have it");
    area.leave();
    assert!(path.exists(), "one other has it");
    Child::run(|| assert!(is_there(Area::find(&spec.name).unwrap(), 2))).succeeds();
    go.store(1, SeqCst);
    child.succeeds();
    assert!(!path.exists());
}

/// Many come and go at once: each gets one that works, and none stays behind.
#[test]
fn coming_and_leaving_at_the_same_time() {
    let (spec, path) = not_kept();
    let child = |child: u64| {
        let spec = spec.clone();
        Child::run(move || {
            for round in 0..20 {
                Child::run(|| {
                    let area = Area::open(&spec).unwrap();
                    let number = child * 1000 + round;
                    assert_eq!(put(area, number, 140), Inserted::Added);
                    assert!(is_there(area, number));
                    shm::leave();
                })
                .succeeds();
            }
        })
    };
    let children: Vec<_> = (0..6).map(child).collect();
    children.into_iter().for_each(Child::succeeds);
    // Two that leave at the same time may each see the other one.
    if path.exists() {
        Area::open(&spec).unwrap().leave();
    }
    assert!(!path.exists());
}

/// Nothing is parsed that is not what it was when it came: not on the way out either.
#[test]
fn a_damaged_record_is_handed_to_nobody() {
    let own = own(1 << 20);
    let area = own.0;
    let bytes = content(0, 1, 0, 200);
    area.insert([0, 9], &key(1), &bytes, 4_000_000_000, Collision::Replace, 0, &mut Vec::new());
    let part = u64::from_ne_bytes(bytes[64..72].try_into().unwrap());
    let word = area.raw().iter().find(|word| word.load(Relaxed) == part).expect("it lies there in clear");
    word.fetch_xor(1 << 17, Relaxed);
    area.for_each([0, 9], &mut |seen| assert!(seen.is_empty(), "shown"));
    assert_eq!(area.sessions([0, 9]), 1);
    area.clear([0, 9], &mut |seen| assert!(seen.is_empty(), "handed out"));
    assert_eq!((area.sessions([0, 9]), area.info().count(Counter::Corrupt)), (0, 1));
}

/// In a chroot, or for another user, a file that is open here cannot be opened again.
#[test]
fn what_is_open_stays_in_use_when_its_file_is_out_of_reach() {
    let folder = std::env::temp_dir().join(format!("reprise-reach-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let spec = Spec { size: 1 << 20, ..Spec::new(folder.join("cache").to_str().unwrap()).unwrap() };
    let area = Area::open(&spec).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "no folder any more").unwrap();
    let again = Area::open(&spec);
    std::fs::remove_file(&folder).unwrap();
    assert!(std::ptr::eq(area, again.unwrap()));
}
