//! Somebody writes over a shared cache while processes use it: into every part of it, a bit here or a page there. Nobody
//! crashes, nobody waits long, nothing wrong is ever found, and afterwards it works as before.

mod shm_world;

use reprise::cache::shm::{Area, Counter};
use reprise::cache::{Collision, Inserted};
use shm_world::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
const KEYS: u64 = 2500;
const A: [u64; 2] = [0, 1];

fn put(area: &Area, number: u64, random: &mut Random) -> Inserted {
    let length = if random.below(50) == 0 { random.below(20_000) } else { random.below(300) } as usize;
    let (bytes, expiry) = (content(0, number, random.below(100), length), 1_900_000_000 + random.below(100) as i64);
    area.insert(A, &key(number), &bytes, expiry, Collision::Replace, 1500, &mut Vec::new())
}

/// One operation on random keys; only what is found by key is verified, as only that is promised.
fn operate(area: &Area, random: &mut Random, out: &mut Vec<u8>) {
    let number = random.below(KEYS);
    let found = match random.below(20) {
        0..=7 => {
            put(area, number, random);
            false
        }
        8..=10 => area.take(A, &key(number), out),
        11 => return area.rewrite(A, &key(number), &content(0, number, 5, 100), 1_900_000_000),
        12 => area.expire(A, 1_900_000_000 + random.below(50) as i64, 3, &mut |_| {}) == usize::MAX,
        13 => match random.below(50) {
            0 => return area.clear(A, &mut |_| {}),
            1 => return area.for_each(A, &mut |_| {}),
            2 => area.info().name.is_empty(),
            _ => area.has_expired(A, 0),
        },
        _ => area.get(A, &key(number), out),
    };
    if found {
        assert_content(0, number, out);
    }
}

/// Words of the file, by what they are for. The layout is that of `store`.
fn parts(area: &Area) -> [(&'static str, std::ops::Range<usize>); 12] {
    let voids = 64 + 2 * 1024;
    let removals = voids + 4096;
    let rows = removals + 256;
    let buckets = rows + 4096 * 8;
    let ring = buckets + (SIZE / 256) as usize / 2;
    [
        ("constants", 0..17),
        ("lock", 24..25),
        ("version", 32..33),
        ("count of the void", 33..34),
        ("journal length", 40..42),
        ("ring, counts, counters", 42..64),
        ("journal", 64..voids),
        ("void", voids..removals),
        ("counts of removals", removals..rows),
        ("services", rows..buckets),
        ("buckets", buckets..ring),
        ("records", ring..area.raw().len()),
    ]
}

fn scribble(words: &[AtomicU64], random: &mut Random) {
    let at = random.below(words.len() as u64) as usize;
    let word = &words[at];
    match random.below(5) {
        0 => _ = word.fetch_xor(1 << random.below(64), Relaxed),
        1 => word.store(random.next(), Relaxed),
        2 => word.store(0, Relaxed),
        // What lies elsewhere: links, hashes and lengths that could be.
        3 => word.store(words[random.below(words.len() as u64) as usize].load(Relaxed), Relaxed),
        _ => (0..random.below(64) as usize).for_each(|step| {
            if let Some(word) = words.get(at + step) {
                word.store(random.next(), Relaxed);
            }
        }),
    }
}

fn damage(rounds: u64, workers: u64) {
    let area = own(SIZE);
    let longest = shared(1);
    let work = |seed: u64, end: u64| {
        let (mut random, mut out) = (Random(seed), Vec::new());
        let mut done = 0;
        while done < end {
            let began = Instant::now();
            operate(&area, &mut random, &mut out);
            longest[0].fetch_max(began.elapsed().as_micros() as u64, Relaxed);
            done += 1;
        }
    };
    let mut random = Random(11);
    for (name, part) in parts(&area) {
        let children: Vec<_> =
            (0..workers).map(|_| random.next()).map(|seed| Child::run(|| work(seed, u64::MAX))).collect();
        let counted = area.info();
        for _ in 0..rounds {
            scribble(&area.raw()[part.clone()], &mut random);
            work(random.next(), 20);
            if workers > 0 {
                std::thread::sleep(Duration::from_micros(random.below(200)));
            }
        }
        for child in children {
            child.kill();
            assert_eq!(child.wait(), libc::SIGKILL, "a process ended because of damage in: {name}");
        }
        // Soon it is as good as new. A lock that names a living stranger is believed for half a second.
        let began = Instant::now();
        while put(&area, 1, &mut random) == Inserted::Refused {
            assert!(began.elapsed() < Duration::from_secs(20), "still unusable after damage in: {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
        area.flush().expect("it is not busy");
        for number in 0..1000 {
            assert_eq!(put(&area, number, &mut random), Inserted::Added, "{name}");
        }
        assert_eq!(area.check(), Some(1000), "{name}");
        // The counters may have been written over as well.
        let info = area.info();
        let seen = [Counter::Corrupt, Counter::Recovered, Counter::Reset, Counter::Busy];
        println!(
            "{name}: {:?}",
            seen.map(|counter| (counter, info.count(counter).wrapping_sub(counted.count(counter))))
        );
    }
    let longest = longest[0].load(Relaxed);
    println!("the longest call: {longest} us");
    // Generous: the machine has other things to do. It waits 20 ms at most.
    assert!(longest < 2_000_000);
}

#[test]
fn damage_while_others_work() {
    damage(400, 3);
}

#[test]
fn damage_between_calls() {
    damage(1500, 0);
}
