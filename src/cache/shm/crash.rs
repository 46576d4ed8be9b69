//! A process is killed before each single store of an operation, one process for each store: whatever had been done,
//! the cache is whole afterwards, and it is as before the operation or as after a part of it that stands alone.

use super::store::{BUCKETS, TAIL};
use super::{Area, Counter, Spec};
use crate::cache::{Collision, Inserted, Key};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// How many more stores are allowed; negative for any number.
static ALLOWED: AtomicI64 = AtomicI64::new(-1);

pub fn before_store() {
    match ALLOWED.load(Relaxed) {
        // SAFETY: plain numbers; it does not return.
        0 => unsafe { _ = libc::kill(libc::getpid(), libc::SIGKILL) },
        allowed if allowed > 0 => ALLOWED.store(allowed - 1, Relaxed),
        _ => {}
    }
}

const SERVICE: [u64; 2] = [1, 1];

fn key(number: u64) -> Key {
    Key::new(0x304, &number.to_le_bytes()).unwrap()
}

fn put(area: &Area, number: u64, variant: u8, length: usize, limit: usize) -> Inserted {
    let expiry = 2_000_000_000 + (number * 7919 % 1000) as i64;
    let bytes = vec![number as u8 ^ variant; length];
    area.insert(SERVICE, &key(number), &bytes, expiry, Collision::Replace, limit, &mut Vec::new())
}

/// What is there for each key.
fn contents(area: &Area, keys: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut all = BTreeMap::new();
    for number in 0..keys {
        let mut bytes = Vec::new();
        if area.get(SERVICE, &key(number), &mut bytes) {
            all.insert(number, bytes);
        }
    }
    all
}

/// Forks for each store of `operation`, and gives what was there before, is there now, and would be if it had gone on to
/// its end, to `judge`.
fn kill_at_each_store(
    size: u64,
    prepare: impl Fn(&Area),
    operation: impl Fn(&Area),
    judge: impl Fn(&BTreeMap<u64, Vec<u8>>, &BTreeMap<u64, Vec<u8>>, &BTreeMap<u64, Vec<u8>>),
) -> i64 {
    const KEYS: u64 = 6000;
    let name = format!("test-crash-{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "");
    let area = Area::open(&Spec { name: name.clone(), size, keep: true, service: String::new() }).unwrap();
    prepare(area);
    let image: Vec<u64> = area.raw().iter().map(|word| word.load(Relaxed)).collect();
    let restore = || area.raw().iter().zip(&image).for_each(|(word, &before)| word.store(before, Relaxed));
    let before = contents(area, KEYS);
    operation(area);
    let after = contents(area, KEYS);
    let mut allowed = 0;
    loop {
        restore();
        // SAFETY: the child only works on the cache, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            ALLOWED.store(allowed, Relaxed);
            operation(area);
            // SAFETY: it ends at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: our child, and `status` is there.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        // Who looks up before anybody has the lock finds what is whole, though it may be undone a moment later.
        let seen = contents(area, KEYS);
        assert!(seen.iter().all(|(number, bytes)| [before.get(number), after.get(number)].contains(&Some(bytes))));
        let sessions = area.check();
        let found = contents(area, KEYS);
        assert_eq!(sessions, Some(found.len() as u64), "store {allowed}");
        assert_eq!(area.info().count(Counter::Reset) + area.info().count(Counter::Corrupt), 0, "store {allowed}");
        assert!(area.info().services.iter().map(|service| service.sessions).sum::<u64>() == found.len() as u64);
        judge(&before, &found, &after);
        assert!(matches!(put(area, 1, 9, 140, 0), Inserted::Added | Inserted::Replaced));
        if status == 0 {
            break;
        }
        assert_eq!(status, libc::SIGKILL);
        allowed += 1;
    }
    super::remove(&name).unwrap();
    allowed
}

fn fill(area: &Area, count: u64) {
    (0..count).for_each(|number| assert_eq!(put(area, number, 0, 140, 0), Inserted::Added));
}

type Contents = BTreeMap<u64, Vec<u8>>;

fn before_or_after(before: &Contents, found: &Contents, after: &Contents) {
    assert!(found == before || found == after);
}

#[test]
fn an_insertion_is_there_or_not() {
    let stores =
        kill_at_each_store(1 << 20, |area| fill(area, 300), |area| _ = put(area, 1000, 0, 140, 0), before_or_after);
    assert!(stores > 50);
}

/// GONE1: what did not come leaves no bytes either, once somebody has recovered.
#[test]
fn an_insertion_that_was_killed_leaves_no_bytes() {
    const BYTES: u64 = u64::from_ne_bytes([0xc8; 8]);
    let bytes_in = |area: &Area| area.raw().iter().filter(|word| word.load(Relaxed) == BYTES).count();
    let (name, mut most) = ("test-crash-bytes", 0);
    let _ = super::remove(name);
    let area = Area::open(&Spec { name: name.into(), size: 1 << 20, keep: true, service: String::new() }).unwrap();
    fill(area, 100);
    for allowed in 0.. {
        // SAFETY: the child only works on the cache, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            ALLOWED.store(allowed, Relaxed);
            put(area, 200, 0, 1000, 0);
            // SAFETY: it ends at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: our child, and `status` is there.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        most = most.max(bytes_in(area));
        if area.check() == Some(101) {
            break;
        }
        assert_eq!(bytes_in(area), 0, "store {allowed}");
    }
    assert!(most > 100, "it was never killed with bytes written");
    super::remove(name).unwrap();
}

#[test]
fn the_first_insertion_of_a_service_is_there_or_not() {
    kill_at_each_store(1 << 20, |_| {}, |area| _ = put(area, 1000, 0, 140, 0), before_or_after);
}

#[test]
fn what_is_taken_is_gone_or_not() {
    let take = |area: &Area| _ = area.take(SERVICE, &key(77), &mut Vec::new());
    let stores = kill_at_each_store(1 << 20, |area| fill(area, 300), take, before_or_after);
    assert!(stores > 30);
}

/// The old one may be gone without the new one, but they are never both there, and nothing else changes.
#[test]
fn a_replacement_is_the_old_one_or_the_new_one_or_none() {
    let judge = |before: &Contents, found: &Contents, after: &Contents| {
        let without = |all: &Contents| all.iter().filter(|one| *one.0 != 77).map(|one| *one.0).collect::<Vec<_>>();
        assert_eq!(without(before), without(found));
        assert!([before.get(&77), after.get(&77), None].contains(&found.get(&77)));
    };
    kill_at_each_store(1 << 20, |area| fill(area, 300), |area| _ = put(area, 77, 1, 300, 0), judge);
}

#[test]
fn for_a_limit_only_the_soonest_leave() {
    let judge = |before: &Contents, found: &Contents, after: &Contents| {
        assert!(found
            .iter()
            .all(|(number, bytes)| before.get(number) == Some(bytes) || after.get(number) == Some(bytes)));
        assert!(after.keys().all(|number| found.contains_key(number) || *number == 1000));
    };
    kill_at_each_store(1 << 20, |area| fill(area, 50), |area| _ = put(area, 1000, 0, 140, 40), judge);
}

/// Room is made by moving and evicting, across the end of the ring.
#[test]
fn making_room_loses_only_what_it_evicts() {
    let prepare = |area: &Area| {
        fill(area, 3800);
        // Every third is dead, and the tail is near the end.
        (0..3800).filter(|number| number % 3 == 0).for_each(|number| {
            area.take(SERVICE, &key(number), &mut Vec::new());
        });
        let ring = area.raw().len() - (BUCKETS + (1 << 20) / 256 / 2);
        let to_end = || ring - area.raw()[TAIL].load(Relaxed) as usize % ring;
        (0..20_000).take_while(|_| to_end() > 80).for_each(|came| {
            put(area, 3800 + came % 900, (came / 900) as u8, 140, 0);
        });
        assert!(to_end() < 80 + 23);
    };
    let judge = |before: &Contents, found: &Contents, after: &Contents| {
        assert!(
            before.len() > 2000
                && after.iter().all(|(number, bytes)| found.get(number) == Some(bytes) || *number == 4800)
        );
        assert!(found.iter().all(|(number, bytes)| before.get(number).or(after.get(number)) == Some(bytes)));
    };
    let stores = kill_at_each_store(1 << 20, prepare, |area| _ = put(area, 4800, 0, 1000, 0), judge);
    assert!(stores > 300, "{stores}: nothing was moved");
}
