//! The one lock of the writers: a word that holds its owner's seat (see [`super::seat`]). A futex keeps those who wait asleep.
//! Who waits asks the kernel whether the owner's seat is free: then the owner is gone, and who takes the lock from it is told
//! that the work may be half done. A living owner never loses it, in whatever PID namespace it is and however long it takes.
//!
//! It is never waited for long. A stopped process may hold it for hours, and a stray write may put anything into it: then
//! operations give up, first after [`PATIENCE`], then sooner, until it is free or its owner is gone.

use super::seat::{Seat, Seats};
use super::sys;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};

/// How long an operation waits.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long it waits for an owner for whom another one has waited in vain.
const LITTLE: Duration = Duration::from_millis(1);
/// How long it sleeps before it asks whether the owner lives.
const NAP: Duration = Duration::from_micros(300);

/// The word. Its low half, which is what the kernel compares, has the owner's seat, 0 for none, whether somebody sleeps, and
/// a check. Above them is a number that is another one each time the lock is taken: who has found that the owner was gone
/// takes it only from that very owner. (It comes again after a million million times.)
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

const SEAT: u64 = 0xffff;
const WAITERS: u64 = 1 << 16;
const CHECK_AT: u32 = 17;
const TENURE_AT: u32 = 24;

impl Word {
    fn new(seat: Seat, tenure: u64, waiters: u64) -> Word {
        let bare = tenure << TENURE_AT | u64::from(seat);
        // A word that a stray write has made is nobody's, most of the time.
        let check = bare.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
        Word(bare | check << CHECK_AT | waiters)
    }

    fn seat(self) -> Seat {
        (self.0 & SEAT) as Seat
    }

    fn tenure(self) -> u64 {
        self.0 >> TENURE_AT
    }

    fn waiters(self) -> u64 {
        self.0 & WAITERS
    }

    fn is_sound(self) -> bool {
        self == Word::new(self.seat(), self.tenure(), self.waiters()) || self.0 == 0
    }

    /// Taken next by `seat`.
    fn taken(self, seat: Seat, waiters: u64) -> Word {
        Word::new(seat, self.tenure().wrapping_add(1) & (u64::MAX >> TENURE_AT), waiters)
    }
}

pub struct Lock {
    word: &'static AtomicU64,
    pub seats: Seats,
    /// The word of the owner that was waited for in vain.
    given_up: AtomicU64,
}

pub struct Guard<'a> {
    lock: &'a Lock,
    held: Word,
    /// Whether the owner before may have left something half done.
    pub abandoned: bool,
}

impl Lock {
    pub fn new(word: &'static AtomicU64, seats: Seats) -> Lock {
        Lock { word, seats, given_up: AtomicU64::new(0) }
    }

    /// `None` if it could not be had in time.
    pub fn lock(&self) -> Option<Guard<'_>> {
        let seat = self.seats.own()?;
        let free = Word(self.word.load(Relaxed));
        let mut held = free.taken(seat, 0);
        let mut abandoned = false;
        let is_free = free.seat() == 0 && free.waiters() == 0 && free.is_sound();
        if !is_free || self.word.compare_exchange(free.0, held.0, Acquire, Relaxed).is_err() {
            (held, abandoned) = self.wait(seat)?;
        }
        if self.given_up.load(Relaxed) != 0 {
            self.given_up.store(0, Relaxed);
        }
        Some(Guard { lock: self, held, abandoned })
    }

    /// The word with which it is held, and whether it was abandoned; `None` if it could not be had in time.
    #[cold]
    fn wait(&self, seat: Seat) -> Option<(Word, bool)> {
        let began = Instant::now();
        let mut waited = 0;
        let mut spins = 0;
        let mut asked = false;
        loop {
            let word = Word(self.word.load(Relaxed));
            let mut abandoned = !word.is_sound();
            let mut free = word.seat() == 0 || abandoned;
            if !free && spins < 100 {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            if !free {
                let tenure = word.0 & !WAITERS;
                let patience = if self.given_up.load(Relaxed) == tenure { LITTLE } else { PATIENCE };
                let elapsed = began.elapsed();
                if asked || elapsed >= patience {
                    asked = false;
                    abandoned = self.seats.is_free(word.seat());
                    free = abandoned;
                    if !free && elapsed >= patience {
                        self.given_up.store(tenure, Relaxed);
                        return None;
                    }
                }
                if !free {
                    let sleeping = Word(word.0 | WAITERS);
                    if word == sleeping || self.word.compare_exchange(word.0, sleeping.0, Relaxed, Relaxed).is_ok() {
                        waited = WAITERS;
                        let slept = Instant::now();
                        sys::wait(self.word, sleeping.0, NAP.min(patience.saturating_sub(elapsed)));
                        asked = slept.elapsed() >= NAP;
                        // Others that run take it in the meantime: who sleeps again at once may never get it.
                        spins = 0;
                    }
                    continue;
                }
            }
            // Others may wait besides us, and nobody counts them.
            let taken = word.taken(seat, waited | word.waiters());
            if self.word.compare_exchange(word.0, taken.0, Acquire, Relaxed).is_ok() {
                return Some((taken, abandoned));
            }
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let word = &self.lock.word;
        loop {
            let now = Word(word.load(Relaxed));
            // Else somebody wrote over it, and it is not ours to free.
            if now.0 & !WAITERS != self.held.0 & !WAITERS {
                return;
            }
            let free = Word::new(0, now.tenure(), 0);
            if word.compare_exchange(now.0, free.0, Release, Relaxed).is_ok() {
                if now.waiters() != 0 {
                    sys::wake(word);
                }
                return;
            }
        }
    }
}
