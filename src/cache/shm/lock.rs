//! The one lock of the writers: a futex that holds its owner's thread number, as those of the libc do, so that the
//! kernel frees it when the owner is killed. Who gets it then is told that the work may be half done.
//!
//! It never waits long. A stopped process may hold it for hours, and a stray write may put anything into it: then
//! operations give up, first after [`PATIENCE`], then sooner, until it is free or found to be held by nobody.

use super::sys::{self, Deathbed};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};

/// How long an operation waits.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long it waits for an owner for whom another one has waited in vain.
const LITTLE: Duration = Duration::from_millis(1);
/// After this time a lock is taken from a living thread that never said it was the owner.
const DOUBT: Duration = Duration::from_millis(500);

const WAITERS: u32 = libc::FUTEX_WAITERS;
const DIED: u32 = libc::FUTEX_OWNER_DIED;
const THREAD: u32 = libc::FUTEX_TID_MASK;

pub struct Lock {
    word: &'static AtomicU32,
    /// The owner once more, with its PID namespace: a number in `word` alone may be a stray write.
    owner: &'static AtomicU64,
    namespace: u32,
    /// The owner that was waited for in vain, and since when (milliseconds after `epoch`).
    given_up: AtomicU32,
    since: AtomicU64,
    epoch: Instant,
}

pub struct Guard<'a> {
    lock: &'a Lock,
    thread: u32,
    /// Whether the owner before may have left something half done.
    pub abandoned: bool,
    _deathbed: Deathbed,
}

impl Lock {
    pub fn new(word: &'static AtomicU32, owner: &'static AtomicU64) -> Lock {
        let namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino() as u32);
        let (given_up, since, epoch) = (AtomicU32::new(0), AtomicU64::new(0), Instant::now());
        Lock { word, owner, namespace, given_up, since, epoch }
    }

    /// `None` if it could not be had in time.
    pub fn lock(&self) -> Option<Guard<'_>> {
        let thread = sys::thread();
        let deathbed = Deathbed::new(thread, self.word)?;
        let abandoned = match self.word.compare_exchange(0, thread, Acquire, Relaxed) {
            Ok(_) => false,
            Err(_) => self.wait(thread)?,
        };
        self.owner.store(u64::from(self.namespace) << 32 | u64::from(thread), Relaxed);
        if self.given_up.load(Relaxed) != 0 {
            self.given_up.store(0, Relaxed);
        }
        Some(Guard { lock: self, thread, abandoned, _deathbed: deathbed })
    }

    /// Whether it was abandoned; `None` if it could not be had in time.
    #[cold]
    fn wait(&self, thread: u32) -> Option<bool> {
        let began = Instant::now();
        let mut waited = 0;
        let mut spins = 0;
        loop {
            let word = self.word.load(Relaxed);
            let owner = word & THREAD;
            let mut free = owner == 0 || word & DIED != 0;
            if !free && spins < 100 {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            let mut judged = false;
            if !free {
                let patience = if self.given_up.load(Relaxed) == owner { LITTLE } else { PATIENCE };
                let elapsed = began.elapsed();
                if elapsed < patience {
                    if word & WAITERS != 0 || self.word.compare_exchange(word, word | WAITERS, Relaxed, Relaxed).is_ok()
                    {
                        waited = WAITERS;
                        sys::wait(self.word, word | WAITERS, patience - elapsed);
                        // Others that run take it in the meantime: who sleeps again at once may never get it.
                        spins = 0;
                    }
                    continue;
                }
                judged = self.is_nobodys(owner, thread);
                free = judged;
            }
            if !free {
                return None;
            }
            // Others may wait besides us, and nobody counts them.
            let taken = thread | waited | word & WAITERS;
            if self.word.compare_exchange(word, taken, Acquire, Relaxed).is_ok() {
                return Some(judged || word & !WAITERS != 0);
            }
        }
    }

    /// Of an owner that was waited for in vain, whether there is no such one.
    fn is_nobodys(&self, owner: u32, thread: u32) -> bool {
        let now = self.epoch.elapsed().as_millis() as u64;
        if self.given_up.swap(owner, Relaxed) != owner {
            self.since.store(now, Relaxed);
        }
        let said = self.owner.load(Relaxed);
        if said as u32 == owner {
            // In another namespace the same number is another thread.
            return (said >> 32) as u32 == self.namespace && (owner == thread || sys::is_gone(owner));
        }
        now.saturating_sub(self.since.load(Relaxed)) > DOUBT.as_millis() as u64
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let word = &self.lock.word;
        let mut held = word.load(Relaxed);
        // Else somebody wrote over it, and it is not ours to free.
        while held & THREAD == self.thread {
            match word.compare_exchange(held, 0, Release, Relaxed) {
                Ok(_) if held & WAITERS != 0 => return sys::wake(word),
                Ok(_) => return,
                Err(now) => held = now,
            }
        }
    }
}
