//! What the tests of the shared cache have in common: sessions whose bytes tell whether they are whole, caches of their own,
//! and real processes.
#![allow(dead_code)]

use reprise::cache::shm::{self, Area, Spec};
use reprise::cache::{Key, Portable, Seconds, Session};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// A random number generator; the same numbers in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

pub fn key(number: u64) -> Key {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Key::new(0x303, &id).unwrap()
}

/// Bytes of this length that say which key and which service they belong to, and how they go on.
pub fn content(service: u64, number: u64, variant: u64, length: usize) -> Vec<u8> {
    let mut random = Random(service << 56 ^ number << 16 ^ variant);
    let mut bytes = Vec::with_capacity(length + 8);
    for word in [service, number, variant] {
        bytes.extend(word.to_le_bytes());
    }
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length.max(24));
    bytes
}

/// Panics unless these are bytes that `content` made for this key.
pub fn assert_content(service: u64, number: u64, bytes: &[u8]) {
    let variant = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let expected = content(service, number, variant, bytes.len());
    let same = bytes.iter().zip(&expected).position(|(is, expected)| is != expected);
    let (length, begins) = (bytes.len(), &bytes[..24]);
    assert!(
        bytes == expected,
        "a wrong record for {service}/{number}: {length} bytes, wrong from {same:?}: {begins:?}"
    );
}

/// A cache of this test's own, whose file goes with it.
pub struct Own(pub &'static Area);

impl std::ops::Deref for Own {
    type Target = Area;

    fn deref(&self) -> &Area {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = shm::remove(&self.0.name());
    }
}

pub fn name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

pub fn spec(size: u64) -> Spec {
    Spec { name: name(), size, keep: true, service: String::new() }
}

pub fn own(size: u64) -> Own {
    Own(Area::open(&spec(size)).unwrap())
}

/// How many children have panicked. One that is killed meanwhile cannot say so when it ends.
pub fn panicked() -> &'static AtomicU64 {
    static PANICKED: std::sync::OnceLock<&AtomicU64> = std::sync::OnceLock::new();
    PANICKED.get_or_init(|| &shared(1)[0])
}

/// A child of this process that does `work` and ends.
pub struct Child(pub i32);

impl Child {
    pub fn run(work: impl FnOnce()) -> Child {
        let panicked = panicked();
        // SAFETY: the child uses what the parent has left, and libc's allocator is made for that.
        match unsafe { libc::fork() } {
            0 => {
                // It does not outlive a test that fails.
                // SAFETY: plain numbers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                panicked.fetch_add(done.is_err() as u64, Relaxed);
                // SAFETY: it ends, without destructors of the parent's things.
                unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
            }
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            pid => Child(pid),
        }
    }

    pub fn kill(&self) {
        // SAFETY: plain numbers; it has not been waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0, signal) };
    }

    /// Stopped when it returns.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: it is our child, and `status` is there.
        unsafe { libc::waitpid(self.0, &mut status, libc::WUNTRACED) };
    }

    /// The same in a PID namespace of its own, where it is number 1. Needs root.
    pub fn run_in_namespace(work: impl FnOnce()) -> Child {
        let panicked = panicked();
        // SAFETY: like fork, past the libc: the child does no more than in `run`.
        match unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) } {
            0 => {
                // SAFETY: as in `run`.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                panicked.fetch_add(done.is_err() as u64, Relaxed);
                // SAFETY: as in `run`.
                unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
            }
            -1 => panic!("clone: {}", std::io::Error::last_os_error()),
            pid => Child(pid as i32),
        }
    }

    /// The status of wait(2).
    pub fn wait(self) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is there.
        assert_eq!(unsafe { libc::waitpid(self.0, &mut status, 0) }, self.0);
        status
    }

    pub fn succeeds(self) {
        assert_eq!(self.wait(), 0, "the child's status");
    }
}

/// A child that does `work` again and again, stopped while it holds the lock of the writers.
pub fn stopped_in_the_lock(area: &Area, work: &dyn Fn()) -> Child {
    stopped_in_the_lock_of(area, &|| {
        Child::run(|| loop {
            work();
        })
    })
}

/// The same of the children that `start` makes.
pub fn stopped_in_the_lock_of(area: &Area, start: &dyn Fn() -> Child) -> Child {
    let mut random = Random(17);
    for _ in 0..300 {
        let child = start();
        std::thread::sleep(std::time::Duration::from_micros(1500 + random.below(3000)));
        child.stop();
        if area.is_busy() {
            return child;
        }
        child.kill();
        child.wait();
    }
    panic!("it was never stopped in the lock");
}

/// Until another process has set it.
pub fn wait_for(number: &AtomicU64) {
    let began = std::time::Instant::now();
    while number.load(Relaxed) == 0 {
        assert!(began.elapsed().as_secs() < 20, "the other process is gone");
        std::thread::yield_now();
    }
}

/// Numbers that children share with the test.
pub fn shared(count: usize) -> &'static [AtomicU64] {
    // SAFETY: an anonymous mapping of zeros, never unmapped.
    unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let address = libc::mmap(std::ptr::null_mut(), count * 8, access, flags, -1, 0);
        assert_ne!(address, libc::MAP_FAILED);
        std::slice::from_raw_parts(address.cast::<AtomicU64>(), count)
    }
}

/// A session that can leave the process. No two objects have the same bytes.
#[derive(Clone, Debug)]
pub struct Fake(pub Arc<Object>);

#[derive(Debug)]
pub struct Object {
    pub number: u64,
    pub key: u64,
    pub expiry: AtomicI64,
    pub length: usize,
}

impl Fake {
    pub fn new(number: u64, key: u64, expiry: Seconds, length: usize) -> Fake {
        Fake(Arc::new(Object { number, key, expiry: AtomicI64::new(expiry), length }))
    }
}

impl Session for Fake {
    fn key(&self) -> Key {
        key(self.0.key)
    }

    fn expiry(&self) -> Seconds {
        self.0.expiry.load(Relaxed)
    }

    fn same(&self, other: &Self) -> bool {
        self.0.number == other.0.number
    }
}

impl Portable for Fake {
    fn write(&self, out: &mut Vec<u8>) -> bool {
        out.extend(self.expiry().to_le_bytes());
        out.extend(content(0, self.0.key, self.0.number, self.0.length));
        true
    }

    fn read(bytes: &[u8]) -> Option<Fake> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (expiry, key, number) = (word(0) as Seconds, word(16), word(24));
        assert_content(0, key, &bytes[8..]);
        Some(Fake::new(number, key, expiry, bytes.len() - 8))
    }
}
