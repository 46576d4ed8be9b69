//! Many threads on one internal cache. What must hold is exact: each session that came left once, to one thread, or is
//! still there; the limit holds whenever nobody is at work; every reference is freed once.

#[path = "model/session.rs"]
mod session;

use reprise::cache::{memory::Memory, Cache, Collision, Inserted, Key, Seconds};
use session::{Fake, Object};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

const THREADS: usize = 8;
const ROUNDS: usize = if cfg!(miri) { 40 } else { 30_000 };
const KEYS: u64 = if cfg!(miri) { 16 } else { 300 };

/// Small random numbers, the same in each run for each thread.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What `work` returns in each of the threads, which start together.
fn in_threads<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (work, start) = (&work, &Barrier::new(THREADS));
    thread::scope(|scope| {
        let run = |thread| {
            scope.spawn(move || {
                start.wait();
                work(thread)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn key(number: u64) -> Key {
    Key::new(0x303, &number.to_le_bytes()).unwrap()
}

fn new_cache(limit: usize) -> (Arc<Memory<Fake>>, Arc<AtomicIsize>) {
    (Arc::new(Memory::growing_at(20, limit)), Arc::default())
}

/// What one thread saw.
#[derive(Default)]
struct Seen {
    /// All it made, so that no address is used twice.
    made: Vec<Arc<Object>>,
    came: usize,
    /// Given to this thread, for good.
    given: Vec<*const Object>,
}

// SAFETY: the addresses are compared, never followed.
unsafe impl Send for Seen {}

impl Seen {
    fn given(&mut self, session: Fake) {
        self.given.push(Arc::as_ptr(session.object()));
    }
}

fn use_everything(cache: &Arc<Memory<Fake>>, alive: &Arc<AtomicIsize>, thread: usize) -> Seen {
    let mut random = Random(0x9e37_79b9 + thread as u64);
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        let now = random.below(1000) as Seconds;
        let wanted = key(random.below(KEYS));
        match random.below(100) {
            0..=44 => {
                let object = Object::new(wanted, now + random.below(300) as Seconds, cache, alive);
                let collision = match random.below(2) {
                    0 => Collision::Replace,
                    _ => Collision::KeepUnlessExpired(now),
                };
                let inserted = cache.insert(Fake::of(&object), collision, &mut |session, _| seen.given(session));
                seen.came += usize::from(matches!(inserted, Inserted::Added | Inserted::Replaced));
                seen.made.push(object);
            }
            45..=64 => {
                if let Some(session) = cache.get(&wanted) {
                    assert_eq!(session.object().key, wanted);
                }
            }
            65..=79 => cache.take(&wanted).into_iter().for_each(|session| seen.given(session)),
            80..=84 => {
                if let Some(object) = seen.made.last().cloned() {
                    cache.take_same(&Fake::of(&object)).into_iter().for_each(|session| seen.given(session));
                }
            }
            85..=92 => {
                if let Some(session) = cache.get(&wanted) {
                    session.object().set_expiry(now);
                    cache.expiry_changed(&session);
                }
            }
            93..=97 => {
                let most = random.below(40) as usize;
                assert!(cache.expire(now / 2, most, &mut |session| seen.given(session)) <= most);
            }
            98 => cache.snapshot().iter().for_each(|session| assert_eq!(session.object().key.version(), 0x303)),
            _ if random.below(20) == 0 => cache.clear(&mut |session| seen.given(session)),
            _ => _ = cache.has_expired(now),
        }
    }
    seen
}

fn hammer(limit: usize) {
    let (cache, alive) = new_cache(limit);
    let seen = in_threads(|thread| use_everything(&cache, &alive, thread));

    let left = cache.len();
    assert!(limit == 0 || left <= limit, "{left} sessions, limit {limit}");
    assert_eq!(cache.snapshot().len(), left);
    assert_eq!(alive.load(SeqCst), left as isize);

    let came: usize = seen.iter().map(|seen| seen.came).sum();
    let given: Vec<_> = seen.iter().flat_map(|seen| &seen.given).collect();
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len(), "a session was given to two");
    assert_eq!(came, given.len() + left);

    let mut rest = 0;
    assert_eq!(cache.expire(Seconds::MAX, left + 1, &mut |_| rest += 1), left);
    assert_eq!((rest, cache.len(), alive.load(SeqCst)), (left, 0, 0));
    for object in seen.iter().flat_map(|seen| &seen.made) {
        assert_eq!(object.references(), 0);
    }
}

#[test]
fn nothing_is_lost_without_a_limit() {
    hammer(0);
}

#[test]
fn nothing_is_lost_with_a_limit() {
    hammer(if cfg!(miri) { 5 } else { 100 });
}

#[test]
fn nothing_is_lost_where_one_session_fits() {
    hammer(1);
}

/// REPLAY1 stands on this.
#[test]
fn a_session_is_taken_by_one_thread() {
    let sessions = if cfg!(miri) { 10 } else { 5_000 };
    let (cache, alive) = new_cache(0);
    let objects: Vec<_> = (0..sessions).map(|number| Object::new(key(number), 1, &cache, &alive)).collect();
    for object in &objects {
        cache.insert(Fake::of(object), Collision::Replace, &mut |_, _| panic!("there is room"));
    }
    let taken: usize = in_threads(|thread| match thread % 3 {
        0 => objects.iter().filter_map(|object| cache.take(&object.key)).count(),
        1 => objects.iter().filter_map(|object| cache.take_same(&Fake::of(object))).count(),
        _ => (0..sessions).map(|_| cache.expire(2, 1, &mut drop)).sum(),
    })
    .into_iter()
    .sum();
    assert_eq!(taken as u64, sessions);
    assert_eq!((cache.len(), alive.load(SeqCst)), (0, 0));
}

/// What a fork relies on: while the gate is closed, no thread gets beyond the call it is in.
#[test]
fn nothing_changes_while_the_gate_is_closed() {
    let cache: &'static Memory<Fake> = Box::leak(Box::new(Memory::growing_at(20, 50)));
    let (unused, alive) = new_cache(0);
    let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let insert = |number: u64| {
        let object = Object::new(key(number), 1, &unused, &alive);
        cache.insert(Fake::of(&object), Collision::Replace, &mut |_, _| {});
    };
    (0..40).for_each(insert);
    thread::scope(|scope| {
        for thread in 1..=THREADS as u64 {
            let (insert, done, stop) = (&insert, &done, &stop);
            scope.spawn(move || {
                let mut random = Random(thread);
                while !stop.load(SeqCst) {
                    insert(random.below(KEYS));
                    cache.take(&key(random.below(KEYS)));
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for _ in 0..if cfg!(miri) { 2 } else { 200 } {
            let before = done.load(SeqCst);
            while done.load(SeqCst) < before + THREADS {
                thread::yield_now();
            }
            reprise::gate::close();
            let begun = done.load(SeqCst);
            (0..100).for_each(|_| thread::yield_now());
            assert!(done.load(SeqCst) <= begun + THREADS, "each ends the round it is in, at most");
            reprise::gate::open();
        }
        stop.store(true, SeqCst);
    });
    cache.clear(&mut drop);
    assert_eq!((cache.len(), alive.load(SeqCst)), (0, 0));
}
