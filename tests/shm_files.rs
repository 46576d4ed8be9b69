//! What may happen to the file of a shared cache: somebody cuts it short, there is no room or no memory for it, the process
//! may not write files so large, has dropped its rights, or finds what another user or an earlier boot has left. No signal
//! ends the process; it is told in words, and goes on.

mod shm_world;

use reprise::cache::shm::{self, Area, Counter, Error, Spec};
use reprise::cache::{Collision, Inserted};
use shm_world::*;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const A: [u64; 2] = [0, 1];

fn put(area: &Area, number: u64, length: usize) -> Inserted {
    let bytes = content(0, number, 0, length);
    area.insert(A, &key(number), &bytes, 4_000_000_000, Collision::Replace, 0, &mut Vec::new())
}

fn is_there(area: &Area, number: u64) -> bool {
    let mut bytes = Vec::new();
    let found = area.get(A, &key(number), &mut bytes);
    if found {
        assert_content(0, number, &bytes);
    }
    found
}

fn file(area: &Area) -> std::fs::File {
    let path = area.info().path;
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn said(result: Result<&'static Area, Error>) -> String {
    result.map(|area| area.name()).expect_err("it must not open").to_string()
}

fn is_root() -> bool {
    // SAFETY: it only asks.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("not root: nothing tested");
    }
    root
}

/// A file system in memory, gone with this.
struct Mounted(PathBuf);

impl Mounted {
    fn new(size: &str) -> Option<Mounted> {
        let folder = std::env::temp_dir().join(name());
        std::fs::create_dir(&folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&folder).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Mounted(folder));
        }
        println!("not root, or no mounts: nothing tested");
        std::fs::remove_dir(&folder).unwrap();
        None
    }

    fn spec(&self, size: u64) -> Spec {
        Spec { size, ..Spec::new(self.0.join("cache").to_str().unwrap()).unwrap() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

// --- cut short ----------------------------------------------------------------------------------------------------

/// Three processes work while somebody cuts the file short, somewhere. All of them go on, and find nothing that is wrong.
#[test]
fn truncation_ends_nobody() {
    for round in 0..60 {
        let area = own(1 << 20);
        (0..2000).for_each(|number| _ = put(&area, number, 140));
        let stop = shared(4);
        let work = |worker: usize| {
            let mut random = Random(round << 8 | worker as u64);
            let mut out = Vec::new();
            while stop[0].load(SeqCst) == 0 {
                let number = random.below(4000);
                match random.below(10) {
                    0..=3 => _ = put(&area, number, random.below(300) as usize),
                    4 => _ = area.take(A, &key(number), &mut out),
                    5 if random.below(100) == 0 => area.clear(A, &mut |_| {}),
                    _ => _ = is_there(&area, number),
                }
                stop[worker].fetch_add(1, SeqCst);
            }
        };
        let children: Vec<Child> = (1..4).map(|worker| Child::run(move || work(worker))).collect();
        stop[1..].iter().for_each(wait_for);
        let mut random = Random(round);
        let length = [0, 4096, 100_000, 500_000, random.below(1 << 20)][round as usize % 5];
        file(&area).set_len(length).unwrap();
        if round % 3 == 0 {
            file(&area).set_len(1 << 20).unwrap(); // the same length again, but empty
        }
        let before: Vec<u64> = stop.iter().map(|count| count.load(SeqCst)).collect();
        let all_go_on = || (1..4).all(|worker| stop[worker].load(SeqCst) > before[worker]);
        let begun = std::time::Instant::now();
        while !all_go_on() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "somebody hangs");
            std::thread::yield_now();
        }
        stop[0].store(1, SeqCst);
        children.into_iter().for_each(Child::succeeds);
    }
    assert_eq!(panicked().load(SeqCst), 0);
}

/// A handler that the program had for this signal is called for all other faults, and a program without one ends as before.
#[test]
fn other_faults_are_the_programs() {
    static CALLED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32) {
        CALLED.store(1, SeqCst);
    }
    let fault = || {
        // SAFETY: plain numbers.
        unsafe { libc::raise(libc::SIGBUS) };
    };
    let spec = spec(1 << 20);
    let child = Child::run(|| {
        // SAFETY: the handler lives on.
        unsafe { libc::signal(libc::SIGBUS, handler as *const () as usize) };
        Area::open(&spec).unwrap();
        fault();
        assert_eq!(CALLED.load(SeqCst), 1);
    });
    child.succeeds();
    let child = Child::run(|| {
        // Not that of the test's own runtime.
        // SAFETY: plain numbers.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        Area::open(&spec).unwrap();
        fault();
    });
    assert_eq!(child.wait() & 0x7f, libc::SIGBUS);
    shm::remove(&spec.name).unwrap();
}

// --- no room ------------------------------------------------------------------------------------------------------

/// Docker gives 64M: they hold a cache of the default size, and the status files of many programs besides.
#[test]
fn the_default_fits_into_a_container() {
    let Some(mounted) = Mounted::new("64M") else { return };
    let spec = mounted.spec(Spec::SIZE);
    let area = Area::open(&spec).unwrap();
    assert_eq!(put(area, 1, 140), Inserted::Added);
    let status = std::fs::File::create(mounted.0.join("status")).unwrap();
    status.write_all_at(&vec![1; 12 << 20], 0).expect("room for status files");
}

#[test]
fn a_full_file_system_is_an_error_and_leaves_nothing() {
    let Some(mounted) = Mounted::new("4M") else { return };
    let said = said(Area::open(&mounted.spec(8 << 20)));
    assert!(said.contains("there is no room for size=8M"), "{said}");
    assert_eq!(std::fs::read_dir(&mounted.0).unwrap().count(), 0);
    let area = Area::open(&mounted.spec(2 << 20)).unwrap();
    // Later it does not matter.
    let rest = std::fs::File::create(mounted.0.join("rest")).unwrap();
    while rest.write_all_at(&[1; 4096], rest.metadata().unwrap().len()).is_ok() {}
    (0..20_000).for_each(|number| assert_eq!(put(area, number, 140), Inserted::Added));
}

#[test]
fn a_limit_for_files_is_an_error_and_no_signal() {
    let spec = spec(4 << 20);
    Child::run(|| {
        let limit = libc::rlimit { rlim_cur: 2 << 20, rlim_max: 2 << 20 };
        // SAFETY: the struct lives until the call returns.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        let said = said(Area::open(&spec));
        assert!(said.contains("size=4M, and files of this process may have 2097152 bytes"), "{said}");
    })
    .succeeds();
    // One that is there can be used.
    let area = Own(Area::open(&spec).unwrap());
    Child::run(|| {
        let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        assert_eq!(put(Area::open(&spec).unwrap(), 1, 140), Inserted::Added);
    })
    .succeeds();
    assert!(is_there(&area, 1));
}

/// More than the control group of the process may have is refused, with both numbers, instead of ending some process.
#[test]
fn a_size_beyond_memory_is_refused_with_the_numbers() {
    let version_1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    let (folder, limit) = match version_1 {
        true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        false => ("/sys/fs/cgroup", "memory.max"),
    };
    let group = Path::new(folder).join(name());
    let made = std::fs::create_dir(&group).and_then(|()| std::fs::write(group.join(limit), "67108864"));
    if made.is_err() {
        println!("no control group can be made: nothing tested");
        let _ = std::fs::remove_dir(&group);
        return;
    }
    let spec = spec(256 << 20);
    Child::run(|| {
        std::fs::write(group.join("cgroup.procs"), "0").unwrap();
        let said = said(Area::open(&spec));
        assert!(said.contains("size=256M, and there are ") && said.contains("M of memory available"), "{said}");
        println!("{said}");
    })
    .succeeds();
    std::fs::remove_dir(&group).unwrap();
    assert!(!Path::new("/dev/shm").join(format!("reprise-{}", spec.name)).exists());
}

// --- users --------------------------------------------------------------------------------------------------------

fn become_nobody() {
    // SAFETY: plain numbers, in a process of its own.
    unsafe { assert_eq!(libc::setgid(65534) | libc::setuid(65534), 0) };
}

#[test]
fn a_server_drops_root_before_or_after_it_opens_the_cache() {
    if !is_root() {
        return;
    }
    let (before, after) = (spec(1 << 20), spec(1 << 20));
    Child::run(|| {
        become_nobody();
        let area = Area::open(&before).unwrap();
        assert_eq!(put(area, 1, 140), Inserted::Added);
        Child::run(|| assert!(is_there(area, 1) && put(area, 2, 140) == Inserted::Added)).succeeds();
        assert!(is_there(area, 2));
    })
    .succeeds();
    Child::run(|| {
        let area = Area::open(&after).unwrap();
        become_nobody();
        assert_eq!(put(area, 1, 140), Inserted::Added);
        // A context that is made now has the same one, though its file can be opened no more.
        assert!(std::ptr::eq(Area::open(&after).unwrap(), area));
        Child::run(|| assert!(is_there(area, 1) && put(area, 2, 140) == Inserted::Added)).succeeds();
        assert!(is_there(area, 2));
    })
    .succeeds();
    let owner = |spec: &Spec| std::fs::metadata(format!("/dev/shm/reprise-{}", spec.name)).unwrap().uid();
    assert_eq!((owner(&before), owner(&after)), (65534, 0));
    assert!(said(Area::open(&before)).contains("belongs to another user"), "not even root uses it");
    std::fs::remove_file(format!("/dev/shm/reprise-{}", before.name)).unwrap();
    assert!(is_there(&Own(Area::open(&after).unwrap()), 2));
}

/// Somebody else has made a cache under the name: it is not used, and stays as it is.
#[test]
fn a_name_that_another_user_has_taken_is_not_used() {
    if !is_root() {
        return;
    }
    let spec = spec(1 << 20);
    Child::run(|| {
        become_nobody();
        put(Area::open(&spec).unwrap(), 1, 140);
    })
    .succeeds();
    let path = format!("/dev/shm/reprise-{}", spec.name);
    let before = std::fs::read(&path).unwrap();
    let said = said(Area::open(&spec));
    assert!(said.contains("belongs to another user: remove the file or use another name"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
}

// --- another boot -------------------------------------------------------------------------------------------------

/// After a power loss any part of a file on a disk may be what it was some time ago: what was removed could be back.
#[test]
fn a_file_of_another_boot_is_made_anew() {
    let path = std::env::temp_dir().join(name());
    let spec = Spec { size: 1 << 20, ..Spec::new(path.to_str().unwrap()).unwrap() };
    Child::run(|| _ = put(Area::open(&spec).unwrap(), 1, 140)).succeeds();
    let age = |by: u64| {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path).unwrap();
        let mut words = [0u64; 17];
        for (at, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at as u64 * 8).unwrap();
            *word = u64::from_ne_bytes(bytes);
        }
        words[5] ^= by;
        // The check of the constants, as `store` has it.
        words[16] = words[..16].iter().fold(u64::from_le_bytes(*b"reprise!"), |sum, word| {
            xxhash_rust::xxh3::xxh3_64_with_seed(&word.to_le_bytes(), sum)
        });
        for (at, word) in words.iter().enumerate() {
            file.write_all_at(&word.to_ne_bytes(), at as u64 * 8).unwrap();
        }
    };
    age(0);
    Child::run(|| assert!(is_there(Area::open(&spec).unwrap(), 1), "of this boot")).succeeds();
    age(77);
    assert!(said(Area::find(&spec.name)).contains("from before the system was started"));
    // All who come at once have the same new one.
    let start = shared(1);
    let child = |number: u64| {
        let spec = &spec;
        Child::run(move || {
            wait_for(&start[0]);
            let area = Area::open(spec).unwrap();
            assert!(!is_there(area, 1));
            assert_eq!(put(area, 10 + number, 140), Inserted::Added);
        })
    };
    let children: Vec<Child> = (0..6).map(child).collect();
    start[0].store(1, SeqCst);
    children.into_iter().for_each(Child::succeeds);
    let area = Own(Area::open(&spec).unwrap());
    assert!((10..16).all(|number| is_there(&area, number)));
    assert_eq!(area.info().count(Counter::Reset), 0);
}
