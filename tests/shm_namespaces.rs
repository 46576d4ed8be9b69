//! Processes in PID namespaces of their own, where every one of them has the same number, share a cache: containers of one
//! pod with a common volume. Who holds the lock keeps it while it lives, and loses it when it is killed; whoever dies
//! beside it changes nothing. Needs root; without it nothing is tested.
//!
//! `REPRISE_KILLS` is how many are killed; 3000 without it.

mod shm_world;

use reprise::cache::shm::{Area, Counter};
use reprise::cache::{Collision, Inserted};
use shm_world::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const A: [u64; 2] = [0, 1];
const FAR: i64 = 4_000_000_000;

fn is_root() -> bool {
    // SAFETY: it only asks.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("not root: nothing tested");
    }
    root
}

fn put(area: &Area, number: u64, length: usize) -> Inserted {
    let bytes = content(0, number, 0, length);
    area.insert(A, &key(number), &bytes, FAR, Collision::Replace, 0, &mut Vec::new())
}

/// REPLAY1, GONE1: processes in namespaces of their own, all of them number 1, change and take while they are killed and
/// stopped. No ticket is taken twice, nothing that was removed comes back, and the structure stays whole.
#[test]
fn replay1_gone1_kills_across_namespaces() {
    const TICKETS: u64 = 400_000;
    const WORKERS: u64 = 5;
    if !is_root() {
        return;
    }
    let kills: u64 = std::env::var("REPRISE_KILLS").map_or(3000, |kills| kills.parse().expect("a number"));
    let area = own(8 << 20);
    // Each ticket is added once, by whoever has drawn its number.
    let (drawn, taken) = (&shared(1)[0], shared(TICKETS as usize));
    let added = shared(TICKETS as usize);
    let work = |seed: u64| {
        let (mut random, mut out) = (Random(seed), Vec::new());
        loop {
            let last = drawn.load(SeqCst).min(TICKETS - 1);
            match random.below(4) {
                0 | 1 if last < TICKETS - 1 => {
                    let number = drawn.fetch_add(1, SeqCst);
                    if number < TICKETS && put(&area, number, 24 + random.below(500) as usize) == Inserted::Added {
                        added[number as usize].store(1, SeqCst);
                    }
                }
                _ => {
                    // Mostly such as others ask for as well.
                    let number = last.saturating_sub(random.below(64));
                    let was_taken = taken[number as usize].load(SeqCst) > 0;
                    if area.take(A, &key(number), &mut out) {
                        assert_content(0, number, &out);
                        let before = taken[number as usize].fetch_add(1, SeqCst);
                        assert_eq!(before, 0, "ticket {number} taken twice");
                        assert!(!was_taken, "ticket {number} came back");
                    }
                    if was_taken {
                        assert!(!area.get(A, &key(number), &mut out), "ticket {number} is there after it was taken");
                    }
                }
            }
        }
    };
    let mut random = Random(23);
    let start = |random: &mut Random| {
        let seed = random.next();
        Child::run_in_namespace(|| work(seed))
    };
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| start(&mut random)).collect();
    let (mut killed, mut stopped) = (0, 0);
    while killed < kills {
        std::thread::sleep(Duration::from_micros(random.below(1500)));
        let victim = random.below(WORKERS) as usize;
        // One in eight is stopped for a while first, maybe in the lock.
        if random.below(8) == 0 {
            workers[victim].signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            stopped += 1;
            if random.below(2) == 0 {
                workers[victim].signal(libc::SIGCONT);
                continue;
            }
        }
        let victim = std::mem::replace(&mut workers[victim], start(&mut random));
        victim.kill();
        assert_eq!(victim.wait(), libc::SIGKILL, "it ended by itself");
        killed += 1;
    }
    for worker in workers {
        worker.kill();
        assert_eq!(worker.wait(), libc::SIGKILL, "it ended by itself");
    }
    // Its namespace ends with it, and with that its lock.
    let began = Instant::now();
    while area.is_busy() {
        assert!(began.elapsed() < Duration::from_secs(2), "nobody frees the lock");
    }
    let info = area.info();
    let count = |of: &[AtomicU64]| of.iter().map(|number| number.load(SeqCst)).sum::<u64>();
    println!(
        "{killed} kills, {} in the middle of a change, {stopped} stops; {} added, {} taken",
        info.count(Counter::Recovered),
        count(added),
        count(taken)
    );
    assert_eq!(panicked().load(SeqCst), 0, "a process found something wrong");
    assert_eq!((info.count(Counter::Reset), info.count(Counter::Corrupt)), (0, 0));
    assert!(taken.iter().all(|taken| taken.load(SeqCst) <= 1), "taken twice");
    assert!(info.count(Counter::Recovered) * 100 >= kills, "hardly ever killed in the middle of a change");
    assert!(area.check().is_some());
    let mut out = Vec::new();
    let gone = (0..TICKETS).filter(|&number| taken[number as usize].load(SeqCst) > 0);
    assert!(gone.into_iter().all(|number| !area.get(A, &key(number), &mut out)), "one came back");
}

/// A living owner keeps the lock, though to others its number names nobody, or themselves; they are killed while they wait.
#[test]
fn a_living_owner_in_another_namespace_keeps_the_lock() {
    if !is_root() {
        return;
    }
    let area = own(2 << 20);
    for owner_elsewhere in [false, true] {
        let work = || (0..30).for_each(|number| _ = put(&area, number, 30_000));
        let owner = stopped_in_the_lock_of(&area, &|| match owner_elsewhere {
            true => Child::run_in_namespace(|| loop {
                work();
            }),
            false => Child::run(|| loop {
                work();
            }),
        });
        let recovered = area.info().count(Counter::Recovered);
        for round in 0..200 {
            let child = Child::run_in_namespace(|| assert_eq!(put(&area, 9000, 140), Inserted::Refused));
            if round % 2 == 0 {
                child.succeeds();
            } else {
                std::thread::sleep(Duration::from_micros(round * 5));
                child.kill();
                child.wait();
            }
        }
        let stolen = area.info().count(Counter::Recovered) - recovered;
        assert_eq!((stolen, area.is_busy()), (0, true), "the lock was taken from a living owner");
        owner.kill();
        owner.wait();
        let began = Instant::now();
        while area.is_busy() {
            assert!(began.elapsed() < Duration::from_secs(2), "nobody frees the lock");
        }
    }
    assert_eq!((area.info().count(Counter::Reset), area.check().is_some()), (0, true));
    assert_eq!(panicked().load(SeqCst), 0);
}

/// A forked child has neither its parent's seat nor can it free or keep it.
#[test]
fn the_lock_of_a_dead_parent_is_free_though_its_children_live() {
    let area = own(2 << 20);
    for bare_clone in [false, true] {
        if bare_clone && !is_root() {
            return;
        }
        let stop = shared(1);
        let parent = stopped_in_the_lock_of(&area, &|| {
            Child::run(|| {
                put(&area, 1, 140);
                // Not past the libc: the child of a bare clone has the parent's descriptors, too.
                match bare_clone {
                    true => Child::run_in_namespace(|| outlive(&area, &stop[0])),
                    false => Child::run(|| outlive(&area, &stop[0])),
                };
                loop {
                    (0..30).for_each(|number| _ = put(&area, number, 30_000));
                }
            })
        });
        parent.kill();
        parent.wait();
        let began = Instant::now();
        while area.is_busy() {
            assert!(began.elapsed() < Duration::from_secs(2), "a child keeps its parent's lock");
        }
        stop[0].store(1, SeqCst);
        assert!(area.check().is_some());
    }
}

/// Writes once, and lives until it is told to end.
fn outlive(area: &Area, stop: &AtomicU64) {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    put(area, 2, 140);
    let began = Instant::now();
    while stop.load(SeqCst) == 0 && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A server opens the cache as root, becomes somebody else, and forks then: its children cannot open the file any more, and
/// write all the same, also with all descriptors closed.
#[test]
fn children_of_a_process_without_rights_write() {
    if !is_root() {
        return;
    }
    let area = own(2 << 20);
    let name = area.name();
    Child::run(|| {
        let area = Area::find(&name).unwrap();
        put(area, 1, 140);
        // SAFETY: plain numbers; this process alone.
        unsafe {
            assert_eq!(libc::setgid(65534) | libc::setuid(65534), 0);
            // What daemons do.
            (3..64).for_each(|descriptor| _ = libc::close(descriptor));
        }
        Child::run(|| {
            assert_eq!(put(area, 2, 140), Inserted::Added);
            Child::run(|| assert_eq!(put(area, 3, 140), Inserted::Added)).succeeds();
        })
        .succeeds();
        assert_eq!(put(area, 4, 140), Inserted::Added);
    })
    .succeeds();
    let mut out = Vec::new();
    assert!([1, 2, 3, 4].iter().all(|&number| area.get(A, &key(number), &mut out)));
    assert_eq!((area.info().count(Counter::Busy), area.info().count(Counter::Recovered)), (0, 0));
}
