//! The gate that fork() closes. What must not be half done in a child is done by threads that have entered; fork() waits
//! until all of them have left, lets nobody in, and opens the gate again on both sides. So a child never finds a lock that a
//! thread which it does not have was holding, and a fork costs the same with one context and with thousands.
//!
//! Nothing that may take long happens inside: no callback, no I/O. While the gate is closed nothing is allocated, and no lock
//! is waited for without an end.
//!
//! **Lanes.** Each thread has a lane, on a cache line of its own, which says how often the thread has entered. Only the thread
//! itself writes it; who closes the gate reads the lanes of all others. A thread that ends gives its lane back.
//!
//! **Signals.** A signal handler may fork at any instruction of this file, also of `close` and `open`: a thread never waits for
//! its own lane, and one that has closed the gate may close it again. Where a handler interrupts a thread that is inside, others
//! may wait for what that thread holds. So neither side waits longer than [`LONGEST`]: at worst a child finds something half
//! done, but no fork and no handshake hangs.

use crate::thread::{self, Waiting};
use libc::c_void;
use once_cell::race::OnceBox;
use std::cell::Cell;
use std::iter::{successors, zip};
use std::marker::PhantomData;
use std::sync::atomic::{
    AtomicI32, AtomicU32, AtomicUsize,
    Ordering::{AcqRel, Relaxed, Release, SeqCst},
};
use std::time::Duration;

/// Neither side waits longer for the other. Even on a crowded machine a thread that is inside gets on before that.
const LONGEST: Duration = Duration::from_secs(5);
/// The same where a signal handler forks in a thread that is inside: others may be waiting for that thread.
const LONGEST_INSIDE: Duration = Duration::from_millis(20);

/// How often a thread has entered.
#[repr(align(128))]
struct Lane {
    depth: AtomicUsize,
    /// The kernel's number of the thread.
    thread: AtomicI32,
}

const LANES: usize = 16;

/// Lanes are never freed. A program with more threads has more blocks of them.
struct Block {
    /// The identity of the thread that has each lane, 0 where nobody has.
    owners: [AtomicUsize; LANES],
    lanes: [Lane; LANES],
    next: OnceBox<Block>,
}

impl Block {
    const fn new() -> Block {
        Block {
            owners: [const { AtomicUsize::new(0) }; LANES],
            lanes: [const { Lane { depth: AtomicUsize::new(0), thread: AtomicI32::new(0) } }; LANES],
            next: OnceBox::new(),
        }
    }
}

static FIRST: Block = Block::new();

const OPEN: usize = 0;
/// The identity of the thread that closed the gate.
static CLOSED: AtomicUsize = AtomicUsize::new(OPEN);
/// How often that thread has closed it once more, in signal handlers.
static AGAIN: AtomicU32 = AtomicU32::new(0);

thread_local!(static MINE: Cell<Option<&'static Lane>> = const { Cell::new(None) });

fn lanes() -> impl Iterator<Item = (&'static AtomicUsize, &'static Lane)> {
    successors(Some(&FIRST), |block| block.next.get()).flat_map(|block| zip(&block.owners, &block.lanes))
}

/// A lane for this thread.
#[cold]
fn claim() -> &'static Lane {
    let me = thread::identity();
    let mut block = &FIRST;
    let lane = loop {
        let mut free = zip(&block.owners, &block.lanes).filter(|(owner, _)| match owner.load(Relaxed) {
            0 => owner.compare_exchange(0, me, AcqRel, Relaxed).is_ok(),
            // Of a thread that has ended without giving it back.
            owner => owner == me,
        });
        match free.next() {
            Some((_, lane)) => break lane,
            None => block = block.next.get_or_init(|| Box::new(Block::new())),
        }
    };
    lane.thread.store(thread::number(), Relaxed);
    lane.depth.store(0, Release);
    MINE.set(Some(lane));
    thread::note_end();
    lane
}

/// In a thread that ends.
pub extern "C" fn thread_ends(_: *mut c_void) {
    MINE.set(None);
    free(|owner| owner == thread::identity());
}

fn free(is_free: impl Fn(usize) -> bool) {
    for (owner, lane) in lanes().filter(|(owner, _)| is_free(owner.load(Relaxed))) {
        lane.depth.store(0, Relaxed);
        owner.store(0, Release);
    }
}

/// This thread is inside until it is dropped.
pub struct Inside {
    lane: &'static Lane,
    _thread: PhantomData<*mut ()>,
}

#[inline]
pub fn enter() -> Inside {
    let lane = MINE.get().unwrap_or_else(claim);
    let depth = lane.depth.load(Relaxed);
    if depth == 0 {
        lane.depth.store(1, SeqCst);
        // Either this thread sees that the gate is closed, or who closed it sees this thread.
        if CLOSED.load(SeqCst) != OPEN {
            lane.wait_outside();
        }
    } else {
        lane.depth.store(depth + 1, Relaxed);
    }
    Inside { lane, _thread: PhantomData }
}

impl Inside {
    /// A number that differs between most threads, to spread them over things that they share.
    #[inline]
    pub fn number(&self) -> usize {
        std::ptr::from_ref(self.lane).addr() / size_of::<Lane>()
    }
}

impl Lane {
    /// Goes out again until the gate is open. Who closed it is not kept out.
    #[cold]
    fn wait_outside(&self) {
        let me = thread::identity();
        let mut waiting = Waiting::at_most(LONGEST);
        let is_open = || [OPEN, me].contains(&CLOSED.load(SeqCst));
        let mut goes_on = true;
        while goes_on && !is_open() {
            self.depth.store(0, Release);
            while goes_on && !is_open() {
                goes_on = waiting.goes_on();
            }
            self.depth.store(1, SeqCst);
        }
    }

    /// Waits until its thread is outside. A thread that is not there (of the parent, after a fork that called no handlers)
    /// does not go out any more.
    fn wait_for(&self, waiting: &mut Waiting) {
        while self.depth.load(SeqCst) > 0 && waiting.goes_on() && thread::exists(self.thread.load(Relaxed)) {}
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let depth = self.lane.depth.load(Relaxed);
        self.lane.depth.store(depth.saturating_sub(1), Release);
    }
}

/// From now on nobody but this thread is inside, until it calls [`open`] as often as this. What this thread enters meanwhile it
/// leaves first.
pub fn close() {
    let me = thread::identity();
    let is_inside = lanes().any(|(owner, lane)| owner.load(Relaxed) == me && lane.depth.load(Relaxed) > 0);
    let mut waiting = Waiting::at_most(if is_inside { LONGEST_INSIDE } else { LONGEST });
    if CLOSED.load(SeqCst) == me {
        AGAIN.fetch_add(1, Relaxed);
    } else {
        // Without it in the end: another fork takes very long.
        while CLOSED.compare_exchange(OPEN, me, SeqCst, SeqCst).is_err() && waiting.goes_on() {}
    }
    for (_, lane) in lanes().filter(|(owner, _)| ![0, me].contains(&owner.load(Relaxed))) {
        lane.wait_for(&mut waiting);
    }
}

/// Whether this thread has closed it, and once only.
pub fn is_closed_once() -> bool {
    CLOSED.load(SeqCst) == thread::identity() && AGAIN.load(Relaxed) == 0
}

pub fn open() {
    if CLOSED.load(SeqCst) != thread::identity() {
        return; // it was not to be had
    }
    if AGAIN.load(Relaxed) > 0 {
        AGAIN.fetch_sub(1, Relaxed);
    } else {
        CLOSED.store(OPEN, SeqCst);
    }
}

/// In a forked child: the other threads are not there, and neither is who may have closed the gate instead of this thread.
pub fn forked() {
    let me = thread::identity();
    free(|owner| owner != me);
    for (_, lane) in lanes().filter(|(owner, _)| owner.load(Relaxed) == me) {
        lane.thread.store(thread::number(), Relaxed);
    }
    if CLOSED.load(SeqCst) != me {
        AGAIN.store(0, Relaxed);
        CLOSED.store(OPEN, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::thread;

    /// Each thread raises two numbers inside; they are equal whenever the gate is closed.
    #[test]
    fn nothing_is_half_done_while_it_is_closed() {
        let numbers = [const { AtomicU64::new(0) }; 2];
        let stop = AtomicBool::new(false);
        let rounds = if cfg!(miri) { 5 } else { 500 };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let _inside = enter();
                        numbers[0].fetch_add(1, SeqCst);
                        let _again = enter();
                        thread::yield_now();
                        numbers[1].fetch_add(1, SeqCst);
                    }
                });
            }
            for _ in 0..rounds {
                close();
                let found = numbers.each_ref().map(|number| number.load(SeqCst));
                {
                    let _own = enter();
                    thread::yield_now();
                }
                assert_eq!((found[0], numbers[0].load(SeqCst)), (found[1], found[1]));
                open();
            }
            stop.store(true, SeqCst);
        });
        assert!(numbers[0].load(SeqCst) > 0);
        assert!(lanes().all(|(_, lane)| lane.depth.load(SeqCst) == 0));
    }
}
