//! Processes are killed at any moment while they change a shared cache. The others go on within milliseconds, nothing
//! that is found is ever wrong, and the structure stays whole.
//!
//! `REPRISE_KILLS` is how many; 1000 without it.

mod shm_world;

use reprise::cache::shm::{Area, Counter, LONGEST};
use reprise::cache::Collision;
use shm_world::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const WORKERS: usize = 5;
const KEYS: u64 = 3000;
const SERVICES: u64 = 3;

/// One random operation, everything it returns compared.
fn operate(area: &Area, random: &mut Random, out: &mut Vec<u8>) {
    let service = random.below(SERVICES);
    let number = random.below(KEYS);
    let key = key(number);
    let whole = |out: &[u8]| assert_content(service, number, out);
    let identity = [service, 9];
    match random.below(100) {
        0..=39 => {
            let length = match random.below(200) {
                0 => random.below(LONGEST as u64) as usize,
                1..=5 => random.below(8192) as usize,
                _ => random.below(300) as usize,
            };
            let bytes = content(service, number, random.below(1000), length);
            let expiry = 1_700_000_000 + random.below(1_000_000_000) as i64;
            let limit = if service == 2 { 300 } else { 0 };
            let mut left = Vec::new();
            area.insert(identity, &key, &bytes, expiry, Collision::Replace, limit, &mut left);
            for (bytes, _) in left {
                let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                assert_content(service, number, &bytes);
            }
        }
        40..=59 => {
            if area.take(identity, &key, out) {
                whole(out);
            }
        }
        60..=64 => area.rewrite(identity, &key, &content(service, number, 1, 200), 2_000_000_000),
        65..=66 => {
            _ = area.expire(identity, 1_700_000_000 + random.below(300_000_000) as i64, 5, &mut |bytes| {
                assert_content(service, u64::from_le_bytes(bytes[8..16].try_into().unwrap()), bytes);
            })
        }
        67 if random.below(500) == 0 => _ = area.flush(),
        67 if random.below(50) == 0 => area.clear(identity, &mut |bytes| {
            assert_content(service, u64::from_le_bytes(bytes[8..16].try_into().unwrap()), bytes);
        }),
        _ => {
            if area.get(identity, &key, out) {
                whole(out);
            }
        }
    }
}

/// How many sessions there are, if the structure is whole. Under load a check may come too late to the lock.
fn check(area: &Area) -> u64 {
    // A living owner may have to wait long for a processor.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let busy = area.info().count(Counter::Busy);
        match area.check() {
            Some(sessions) => return sessions,
            None => assert!(area.info().count(Counter::Busy) > busy, "the structure is broken"),
        }
    }
    panic!("busy all the time")
}

/// Works until it is killed; the longest operation in microseconds into `longest`.
fn worker(area: &Area, seed: u64, longest: &AtomicU64) {
    let (mut random, mut out) = (Random(seed), Vec::new());
    loop {
        let began = Instant::now();
        operate(area, &mut random, &mut out);
        longest.fetch_max(began.elapsed().as_micros() as u64, Relaxed);
    }
}

#[test]
fn whoever_is_killed_the_others_go_on() {
    let kills = std::env::var("REPRISE_KILLS").map_or(1000, |kills| kills.parse().expect("a number"));
    let area = own(2 << 20);
    let longest = shared(1);
    let mut random = Random(1);
    let start = |random: &mut Random| {
        let seed = random.next();
        Child::run(move || worker(area.0, seed, &longest[0]))
    };
    let area = &area;
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| start(&mut random)).collect();
    let (mut stall, mut waited_in_vain, mut out) = (Duration::ZERO, 0, Vec::new());
    for _ in 0..kills {
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        let victim = std::mem::replace(&mut workers[random.below(WORKERS as u64) as usize], start(&mut random));
        victim.kill();
        let began = Instant::now();
        operate(area, &mut random, &mut out);
        let took = began.elapsed();
        stall = stall.max(took);
        waited_in_vain += u64::from(took > Duration::from_millis(18));
        // Killed by us: not ended by itself, which it does when something it finds is wrong.
        assert_eq!(victim.wait(), libc::SIGKILL);
        let sessions = check(area);
        assert!(sessions < KEYS * SERVICES);
    }
    for worker in workers {
        worker.kill();
        assert_eq!(worker.wait(), libc::SIGKILL);
    }
    let sessions = check(area);
    let info = area.info();
    let count = |counter| info.count(counter);
    println!(
        "{kills} kills, {} in the middle of a change; the longest call after a kill {stall:?}, of all {} us; {info:?}",
        count(Counter::Recovered),
        longest[0].load(Relaxed)
    );
    assert_eq!(panicked().load(Relaxed), 0, "a process found something wrong");
    assert_eq!((count(Counter::Corrupt), info.sessions), (0, sessions));
    // The kernel frees the lock of the dead: nobody has to wait for as long as an operation can. Else each of the others
    // would, after each death. (A busy machine lets some wait for a processor.)
    let recovered = count(Counter::Recovered);
    let others = WORKERS as u64 - 1;
    assert!(waited_in_vain < recovered * others, "{waited_in_vain} waited in vain, {recovered} died in a change");
    assert!(count(Counter::Recovered) * 200 >= kills, "hardly ever killed in the middle of a change");
    // Each that came has left in one way or is there; a flush that was killed is done again, as a reset.
    if count(Counter::Reset) == 0 {
        let left = [Counter::Evicted, Counter::Expired, Counter::Removed, Counter::Replaced, Counter::Taken];
        assert_eq!(count(Counter::Inserted), sessions + left.map(count).iter().sum::<u64>());
    }
    // Generous: the machine has other things to do. An operation waits 20 ms at most.
    assert!(stall < Duration::from_secs(2), "{stall:?}");
}

/// Tickets are taken by processes that are killed all the time: none is had twice.
#[test]
fn a_ticket_is_taken_once_though_takers_are_killed() {
    const TICKETS: u64 = 20_000;
    let area = own(8 << 20);
    for number in 0..TICKETS {
        let bytes = content(0, number, 0, 140);
        area.insert([0, 0], &key(number), &bytes, 2_000_000_000, Collision::Replace, 0, &mut Vec::new());
    }
    let taken = shared(TICKETS as usize);
    let work = |seed: u64| {
        let (mut random, mut out) = (Random(seed), Vec::new());
        loop {
            let number = random.below(TICKETS);
            if area.take([0, 0], &key(number), &mut out) {
                assert_content(0, number, &out);
                taken[number as usize].fetch_add(1, Relaxed);
            }
        }
    };
    let mut random = Random(3);
    let mut kills = 0;
    while area.info().sessions > TICKETS / 20 {
        let workers: Vec<_> = (0..4).map(|_| random.next()).map(|seed| Child::run(|| work(seed))).collect();
        std::thread::sleep(Duration::from_micros(random.below(150)));
        for worker in workers {
            worker.kill();
            assert_eq!(worker.wait(), libc::SIGKILL);
            kills += 1;
        }
    }
    let had: u64 = taken.iter().map(|taken| taken.load(Relaxed)).sum();
    assert!(taken.iter().all(|taken| taken.load(Relaxed) <= 1), "had twice");
    assert_eq!(panicked().load(Relaxed), 0, "a process found something wrong");
    // The check comes first: it ends what the last taker was killed in.
    let sessions = check(&area);
    let info = area.info();
    println!("{kills} kills, {} in a change, {had} had", info.count(Counter::Recovered));
    assert_eq!((info.sessions, info.count(Counter::Reset)), (sessions, 0));
    // A taker may be killed between taking and telling.
    let gone = TICKETS - info.sessions;
    assert!(gone >= had && gone - had <= kills, "{gone} gone, {had} had");
}
