//! The calling thread, as the libc and the kernel know it, and how it waits for others. Nothing here takes a lock or
//! allocates, so that signal handlers and the handlers of fork() may call it.

use crate::cancel;
use libc::{c_int, c_void, pthread_key_t};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// No other thread of the process has this number now. It is the same in a forked child, and never 0.
pub fn identity() -> usize {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() as usize }
}

/// The kernel's number of this thread, which is another one in a forked child.
pub fn number() -> c_int {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

/// Whether this process has a thread of that number.
pub fn exists(number: c_int) -> bool {
    // SAFETY: signal 0 only asks.
    let asked = !cfg!(miri) && unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, 0) } == -1;
    !asked || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

const NONE: u32 = u32::MAX;
static KEY: AtomicU32 = AtomicU32::new(NONE);

/// From now on `ends` is called in each thread that called [`note_end`], when the thread ends. (A `Drop` in a thread-local
/// would do the same, but registering it takes the lock of dlopen.)
#[cfg_attr(miri, allow(dead_code))]
pub fn watch_ends(ends: extern "C" fn(*mut c_void)) {
    let mut key: pthread_key_t = 0;
    // SAFETY: the place is our own, and the function lives as long as the process, since the library is never unloaded.
    if unsafe { libc::pthread_key_create(&mut key, Some(ends)) } == 0 {
        KEY.store(key, Relaxed);
    }
}

/// The end of this thread is of interest.
pub fn note_end() {
    let key = KEY.load(Relaxed);
    if key != NONE {
        // SAFETY: the key exists. The value is not followed: it only must not be NULL.
        unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(1)) };
    }
}

/// Lets others run. The first rounds only yield; later ones sleep, so that a thread of a lower priority runs, too.
pub fn pause(round: u32) {
    const YIELDS: u32 = 10;
    if round < YIELDS || cfg!(miri) {
        std::thread::yield_now();
    } else {
        let _off = cancel::off();
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Waits for other threads, but not for ever.
pub struct Waiting {
    most: Duration,
    began: Option<Instant>,
    round: u32,
}

impl Waiting {
    pub fn at_most(most: Duration) -> Waiting {
        Waiting { most, began: None, round: 0 }
    }

    /// Waits a moment more. `false` if the time is up.
    pub fn goes_on(&mut self) -> bool {
        if self.began.get_or_insert_with(Instant::now).elapsed() >= self.most {
            return false;
        }
        pause(self.round);
        self.round = self.round.saturating_add(1);
        true
    }
}
