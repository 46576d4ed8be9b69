//! How fast the shared cache is, its records alone: `cargo bench --bench shm`.

#[path = "../tests/shm_world/mod.rs"]
mod shm_world;

use reprise::cache::shm::Area;
use reprise::cache::Collision;
use shm_world::*;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const RECORDS: u64 = 200_000;
const FOR: Duration = Duration::from_secs(1);

fn put(area: &Area, number: u64, bytes: &[u8]) {
    area.insert([0, 0], &key(number), bytes, 4_000_000_000, Collision::Replace, 0, &mut Vec::new());
}

/// Operations a second of all the processes together.
fn rate(processes: u64, operation: &(dyn Fn(&mut Random, &mut Vec<u8>) + Sync)) -> f64 {
    let done = shared(processes as usize + 1);
    let work = |process: u64| {
        let (mut random, mut out) = (Random(process << 40), Vec::new());
        wait_for(&done[processes as usize]);
        let (began, mut count) = (Instant::now(), 0u64);
        while began.elapsed() < FOR {
            (0..256).for_each(|_| operation(&mut random, &mut out));
            count += 256;
        }
        done[process as usize].store((count as f64 / began.elapsed().as_secs_f64()) as u64, Relaxed);
    };
    let children: Vec<_> = (0..processes).map(|process| Child::run(move || work(process))).collect();
    std::thread::sleep(Duration::from_millis(50));
    done[processes as usize].store(1, Relaxed);
    children.into_iter().for_each(Child::succeeds);
    done[..processes as usize].iter().map(|rate| rate.load(Relaxed) as f64).sum()
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("not run by cargo bench: nothing is measured"); // cargo test --all-targets comes here
        return;
    }
    let area = own(64 << 20);
    let bytes = content(0, 0, 0, 140);
    (0..RECORDS).for_each(|number| put(&area, number, &bytes));
    let area = area.0;
    for processes in [1, 2, 4] {
        let hits = rate(processes, &|random, out| assert!(area.get([0, 0], &key(random.below(RECORDS)), out)));
        let misses =
            rate(processes, &|random, out| assert!(!area.get([0, 0], &key(RECORDS + random.below(RECORDS)), out)));
        println!("{processes} processes: {:.2} M hits/s, {:.2} M misses/s", hits / 1e6, misses / 1e6);
    }
    for processes in [1, 4] {
        let replaced = rate(processes, &|random, _| put(area, random.below(RECORDS), &bytes));
        println!("{processes} processes: {:.2} M insertions/s of the same", replaced / 1e6);
        let bytes = |random: &mut Random| content(0, 0, random.below(1 << 40), 140);
        let replaced = rate(processes, &|random, _| put(area, random.below(RECORDS), &bytes(random)));
        println!("{processes} processes: {:.2} M replacements/s", replaced / 1e6);
        let new = rate(processes, &|random, _| put(area, random.next(), &bytes(random)));
        println!("{processes} processes: {:.2} M new ones/s into a full cache", new / 1e6);
        let pairs = rate(processes, &|random, out| {
            let number = random.next();
            put(area, number, &bytes(random));
            area.take([0, 0], &key(number), out);
        });
        println!("{processes} processes: {:.2} M insertions and takings/s", pairs / 1e6);
    }
    println!("{:?}", area.info().counters);
}
