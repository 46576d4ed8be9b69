//! The cache under the model checker loom: each test runs in every order of events, and with every old value that the
//! memory model lets a thread read.
//!
//!     RUSTFLAGS="--cfg loom" cargo test --release --lib loom

use super::index::{Index, Size};
use super::keyed::Keyed;
use super::sync::atomic::Ordering::Relaxed;
use super::{Cache, Collision, Key, Memory, Seconds, Session, SHARDS};
use loom::thread;
use std::sync::Arc;

/// Runs `test` in every order of events, or in those in which threads are interrupted so many times at the most: all of
/// them take minutes for some tests.
fn check(interruptions: Option<usize>, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = interruptions;
    model.check(test);
}

/// Does `one` in a thread of its own and `other` in this one.
fn at_once<T: Send + Sync + 'static, A: 'static, B>(
    shared: &Arc<T>,
    one: impl FnOnce(&T) -> A + 'static,
    other: impl FnOnce(&T) -> B,
) -> (A, B) {
    let thread = thread::spawn({
        let shared = shared.clone();
        move || one(&shared)
    });
    let other = other(shared);
    (thread.join().unwrap(), other)
}

// --- the index: one writer, one reader ------------------------------------------------------------------------------

/// All have one home, and no two hashes are equal.
const A: u64 = 0x100;
const B: u64 = 0x200;
const C: u64 = 0x300;
const D: u64 = 0x400;
/// Never there.
const E: u64 = 0x500;

fn put(index: &Index, hash: u64, slot: u32, count: usize) {
    assert!(index.reserve(slot, count));
    index.insert(hash, slot);
}

fn put_all(index: &Index, hashes: &[u64]) {
    hashes.iter().enumerate().for_each(|(slot, hash)| put(index, *hash, slot as u32, slot));
}

fn remove(index: &Index, hash: u64) {
    index.remove(index.find(hash, |_| true).expect("it is there"));
}

/// `None` where a reader would take the lock.
fn found(index: &Index, hash: u64) -> Option<bool> {
    index.contains(hash)
}

fn check_index(interruptions: Option<usize>, before: fn(&Index), write: fn(&Index), read: fn(&Index)) {
    check(interruptions, move || {
        let index = Arc::new(Index::new(Size::FULL));
        before(&index);
        at_once(&index, read, write);
    });
}

fn put_a(index: &Index) {
    put(index, A, 0, 0);
}

fn put_a_and_b(index: &Index) {
    put_all(index, &[A, B]);
}

/// In the place of `A`.
fn c_replaces_a(index: &Index) {
    remove(index, A);
    put(index, C, 0, 1);
}

#[test]
fn a_key_is_found_while_it_moves_up() {
    check_index(None, put_a_and_b, |index| remove(index, A), |index| assert_ne!(found(index, B), Some(false)));
}

#[test]
fn a_key_is_found_while_others_come_and_go() {
    check_index(Some(3), put_a_and_b, c_replaces_a, |index| assert_ne!(found(index, B), Some(false)));
}

#[test]
fn no_key_is_found_that_never_came() {
    check_index(Some(3), put_a, c_replaces_a, |index| assert_ne!(found(index, E), Some(true)));
}

#[test]
fn keys_are_seen_to_come_and_go_in_order() {
    check_index(None, put_a, c_replaces_a, |index| {
        if found(index, C) == Some(true) {
            assert_ne!(found(index, A), Some(true), "it left before the other one came");
        }
    });
}

#[test]
fn a_key_that_leaves_and_returns_is_there_or_not() {
    let write = |index: &Index| {
        remove(index, A);
        put(index, A, 0, 1);
        assert_eq!(found(index, A), Some(true));
    };
    check_index(Some(3), put_a_and_b, write, |index| {
        found(index, A);
        assert_ne!(found(index, B), Some(false));
    });
    check_index(Some(3), put_a_and_b, write, |index| assert_ne!(found(index, C), Some(true)));
}

#[test]
fn the_first_key_comes() {
    check_index(None, |_| (), put_a, |index| assert_ne!(found(index, C), Some(true)));
    check_index(
        None,
        |_| (),
        put_a,
        |index| {
            if found(index, A) == Some(true) {
                assert_ne!(found(index, A), Some(false), "it stays");
            }
        },
    );
}

#[test]
fn the_table_grows() {
    let before = |index: &Index| put_all(index, &[A, B, C]);
    let write = |index: &Index| put(index, D, 3, 3);
    check_index(None, before, write, |index| assert_ne!(found(index, C), Some(false)));
    check_index(None, before, write, |index| assert_ne!(found(index, E), Some(true)));
}

/// Into one that was in use before and still has what was there then.
#[test]
fn the_table_grows_again() {
    let before = |index: &Index| {
        put_all(index, &[A, B, C, D]);
        index.clear();
        put_all(index, &[C, B, A]);
    };
    let write = |index: &Index| put(index, E, 3, 3);
    check_index(Some(3), before, write, |index| assert_ne!(found(index, A), Some(false)));
    check_index(Some(3), before, write, |index| assert_ne!(found(index, D), Some(true)));
}

#[test]
fn the_table_is_cleared() {
    let write = |index: &Index| {
        index.clear();
        put(index, C, 0, 0);
    };
    check_index(Some(3), put_a_and_b, write, |index| assert_ne!(found(index, E), Some(true)));
    check_index(Some(3), put_a_and_b, write, |index| {
        if found(index, C) == Some(true) {
            assert_ne!(found(index, B), Some(true), "it left before the other one came");
        }
    });
}

/// Back to the first one, which still has what was there when it was left.
#[test]
fn the_table_shrinks() {
    let before = |index: &Index| {
        put_all(index, &[A, B, C, D]);
        remove(index, A);
    };
    check_index(None, before, Index::clear, |index| assert_ne!(found(index, A), Some(true)));
}

// --- the whole cache ------------------------------------------------------------------------------------------------

/// Known by its number, which is also when it expires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Fake {
    number: Seconds,
    id: [u8; 2],
}

impl Session for Fake {
    fn key(&self) -> Key {
        Key::new(0x303, &self.id).unwrap()
    }

    fn expiry(&self) -> Seconds {
        self.number
    }

    fn same(&self, other: &Fake) -> bool {
        self == other
    }
}

type Fakes = Memory<Fake>;

/// With all shards from the first.
fn cache(limit: usize) -> Arc<Fakes> {
    growing_cache(0, limit)
}

fn growing_cache(few: u16, limit: usize) -> Arc<Fakes> {
    let mut cache = Memory::growing_at(few, limit);
    // The same hash in every run, or loom would not know what it has seen.
    cache.keyed =
        Box::leak(Box::new(Keyed(std::array::from_fn(|word| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(word as u64 + 1)))));
    Arc::new(cache)
}

/// A session for each of these shards, numbered from one.
fn sessions<const COUNT: usize>(cache: &Fakes, shards: [usize; COUNT]) -> [Fake; COUNT] {
    let mut number = 0;
    shards.map(|shard| {
        number += 1;
        let session = |variant| Fake { number: number.into(), id: [number, variant] };
        let goes_there = |session: &Fake| (cache.hash(&session.key()) >> 32) as usize % SHARDS == shard;
        (0..).map(session).find(goes_there).unwrap()
    })
}

/// Returns what had to leave.
fn insert(cache: &Fakes, session: Fake) -> Vec<Fake> {
    let mut all = Vec::new();
    cache.insert(session, Collision::Replace, &mut |left, _| all.push(left));
    all
}

/// The limit is used up by the sessions cached and the room that is left.
fn check_room(cache: &Fakes, limit: usize) {
    let cached = cache.snapshot().len();
    assert_eq!(cached, cache.len());
    let rooms: u32 = cache.all().map(|shard| shard.room.0.load(Relaxed)).sum();
    let shared = cache.room().map_or(limit as i64, |room| room.0.load(Relaxed));
    assert_eq!(cached as i64 + i64::from(rooms) + shared, limit as i64);
}

/// Each session that came left once or is there still, and those are no more than the limit allows.
fn check_cache(cache: &Fakes, limit: usize, came: &[Fake], left: impl IntoIterator<Item = Fake>) {
    check_room(cache, limit);
    assert!(cache.len() <= limit);
    let mut found: Vec<Fake> = left.into_iter().chain(cache.snapshot()).collect();
    let mut came = came.to_vec();
    found.sort();
    came.sort();
    assert_eq!(found, came);
}

#[test]
fn one_thread_takes_a_session() {
    check(None, || {
        let cache = cache(1);
        let [a] = sessions(&cache, [0]);
        insert(&cache, a);
        let (one, other) = at_once(&cache, move |cache| cache.take(&a.key()), |cache| cache.take(&a.key()));
        assert!(one.is_some() != other.is_some());
        check_cache(&cache, 1, &[a], one.into_iter().chain(other));
    });
}

#[test]
fn two_threads_insert_the_first_session() {
    for shard in [0, 1] {
        check(None, move || {
            let cache = cache(1);
            let [a, b] = sessions(&cache, [0, shard]);
            let (one, other) = at_once(&cache, move |cache| insert(cache, a), |cache| insert(cache, b));
            check_cache(&cache, 1, &[a, b], one.into_iter().chain(other));
        });
    }
}

#[test]
fn two_threads_insert_and_take() {
    check(Some(2), || {
        let cache = cache(2);
        let [a, b, c, d] = sessions(&cache, [0, 1, 1, 0]);
        insert(&cache, a);
        insert(&cache, b);
        let exchange = |new: Fake, old: Fake| {
            move |cache: &Fakes| {
                let evicted = insert(cache, new);
                evicted.into_iter().chain(cache.take(&old.key())).collect::<Vec<_>>()
            }
        };
        let left = at_once(&cache, exchange(c, b), exchange(d, a));
        check_cache(&cache, 2, &[a, b, c, d], [left.0, left.1].concat());
    });
}

#[test]
fn a_session_is_evicted_or_taken() {
    for shard in [0, 1] {
        check(None, move || {
            let cache = cache(1);
            let [a, b] = sessions(&cache, [0, shard]);
            insert(&cache, a);
            let (taken, evicted) = at_once(&cache, move |cache| cache.take(&a.key()), |cache| insert(cache, b));
            assert!(taken.is_some() != (evicted == [a]));
            assert!(cache.contains(&b.key()));
            check_cache(&cache, 1, &[a, b], evicted.into_iter().chain(taken));
        });
    }
}

#[test]
fn a_session_is_evicted_while_it_is_looked_up() {
    for shard in [0, 1] {
        check(None, move || {
            let cache = cache(1);
            let [a, b] = sessions(&cache, [0, shard]);
            insert(&cache, a);
            let look = move |cache: &Fakes| (cache.get(&b.key()), cache.get(&a.key()));
            let ((new, old), evicted) = at_once(&cache, look, |cache| insert(cache, b));
            assert!(new.is_none() || old.is_none(), "one left before the other one came");
            check_cache(&cache, 1, &[a, b], evicted);
        });
    }
}

#[test]
fn a_session_stays_while_another_is_evicted() {
    check(None, || {
        let cache = cache(2);
        let [a, b, c] = sessions(&cache, [0, 0, 0]);
        insert(&cache, a);
        insert(&cache, b);
        let (there, evicted) = at_once(&cache, move |cache| cache.contains(&b.key()), |cache| insert(cache, c));
        assert!(there);
        check_cache(&cache, 2, &[a, b, c], evicted);
    });
}

#[test]
fn the_cache_is_cleared_while_a_session_comes() {
    check(Some(3), || {
        let cache = cache(2);
        let [a, b, c] = sessions(&cache, [0, 1, 1]);
        insert(&cache, a);
        insert(&cache, b);
        let clear = |cache: &Fakes| {
            let mut all = Vec::new();
            cache.clear(&mut |left| all.push(left));
            all
        };
        let (cleared, evicted) = at_once(&cache, clear, |cache| insert(cache, c));
        check_cache(&cache, 2, &[a, b, c], cleared.into_iter().chain(evicted));
    });
}

#[test]
fn the_limit_changes_while_a_session_comes() {
    for (before, after) in [(0, 2), (3, 1), (1, 2)] {
        check(None, move || {
            let cache = cache(before);
            let [a, b, c] = sessions(&cache, [0, 1, 1]);
            insert(&cache, a);
            let (_, evicted) = at_once(&cache, move |cache| cache.set_limit(after), |cache| insert(cache, b));
            check_room(&cache, after);
            let evicted = [evicted, insert(&cache, c)].concat();
            check_cache(&cache, after, &[a, b, c], evicted);
        });
    }
}

#[test]
fn the_limit_changes_while_the_first_session_comes() {
    for (before, after) in [(0, 2), (4, 2), (1, 2)] {
        check(None, move || {
            let cache = cache(before);
            let [a] = sessions(&cache, [0]);
            at_once(&cache, move |cache| cache.set_limit(after), |cache| insert(cache, a));
            check_room(&cache, after);
        });
    }
}

#[test]
fn two_threads_set_the_limit() {
    check(None, || {
        let cache = cache(0);
        at_once(&cache, |cache| cache.set_limit(1), |cache| cache.set_limit(2));
        check_room(&cache, cache.limit.load(Relaxed));
    });
}

/// The room for both is in one shard, and one of them fetches all of it.
#[test]
fn nothing_is_evicted_while_room_is_fetched() {
    check(None, || {
        let cache = cache(3);
        let [a, b, c, d, e] = sessions(&cache, [0, 1, 0, 0, 0]);
        for session in [a, d, e] {
            insert(&cache, session);
        }
        assert!(cache.take(&d.key()).is_some() && cache.take(&e.key()).is_some());
        let one = move |cache: &Fakes| insert(cache, c);
        let left = at_once(&cache, one, |cache| insert(cache, b));
        assert_eq!(left, (vec![], vec![]));
        check_cache(&cache, 3, &[a, b, c], []);
    });
}

/// A shard that has too much room returns all of it.
#[test]
fn nothing_is_evicted_while_room_is_returned() {
    check(None, || {
        let cache = cache(4);
        let [a, b, c, d, e] = sessions(&cache, [0, 1, 1, 0, 0]);
        for session in [b, a, d, e] {
            insert(&cache, session);
        }
        assert!(cache.take(&d.key()).is_some() && cache.take(&e.key()).is_some());
        let (taken, evicted) = at_once(&cache, move |cache| cache.take(&a.key()), |cache| insert(cache, c));
        assert_eq!((taken, evicted), (Some(a), vec![]));
        check_cache(&cache, 4, &[b, c], []);
    });
}

#[test]
fn an_expired_session_is_noticed_a_few_seconds_later() {
    check(None, || {
        let cache = cache(0);
        let [a] = sessions(&cache, [0]);
        at_once(&cache, |cache| _ = cache.has_expired(10), |cache| insert(cache, a));
        assert!(cache.has_expired(19));
    });
}

#[test]
fn sessions_stay_while_they_move_to_more_shards() {
    check(Some(2), || {
        let cache = growing_cache(1, 4);
        let [first, second] = sessions(&cache, [0, 1]);
        insert(&cache, first);
        let (_, is_there) = at_once(&cache, move |cache| insert(cache, second), |cache| cache.contains(&first.key()));
        assert!(is_there);
        check_cache(&cache, 4, &[first, second], []);
    });
}

#[test]
fn a_session_is_taken_once_while_it_moves() {
    check(Some(2), || {
        let cache = growing_cache(1, 4);
        let [first, second] = sessions(&cache, [0, 1]);
        insert(&cache, first);
        let (_, taken) = at_once(&cache, move |cache| insert(cache, second), |cache| cache.take(&first.key()));
        assert_eq!(taken, Some(first));
        check_cache(&cache, 4, &[second], []);
    });
}
