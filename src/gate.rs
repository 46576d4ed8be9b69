//! The gate that fork() closes. What must not be half done in a child is done by threads that have entered; fork() waits
//! until all of them have left, lets nobody in, and opens the gate again on both sides. So a child never finds a lock that a
//! thread which it does not have was holding, and a fork costs the same with one context and with thousands.
//!
//! Nothing that may take long happens inside: no callback, no I/O. Threads count themselves in lanes on cache lines of
//! their own, so they meet only where there are more threads than lanes.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Release, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LANES: usize = 32;

#[repr(align(128))]
struct Lane(AtomicUsize);

static INSIDE: [Lane; LANES] = [const { Lane(AtomicUsize::new(0)) }; LANES];
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Held by who closed the gate: others wait for it.
static FORKING: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy)]
struct Me {
    /// How often this thread has entered.
    depth: u32,
    lane: u32,
}

thread_local!(static ME: Cell<Me> = const { Cell::new(Me { depth: 0, lane: LANES as u32 }) });

/// This thread is inside until it is dropped.
pub struct Inside(PhantomData<*mut ()>);

pub fn enter() -> Inside {
    let me = ME.get();
    let lane = if me.depth == 0 { pass(me.lane) } else { me.lane };
    ME.set(Me { depth: me.depth + 1, lane });
    Inside(PhantomData)
}

fn pass(lane: u32) -> u32 {
    let lane = if (lane as usize) < LANES { lane } else { choose() };
    loop {
        INSIDE[lane as usize].0.fetch_add(1, SeqCst);
        // Either this thread sees that the gate is closed, or who closed it sees this thread.
        if !CLOSED.load(SeqCst) {
            return lane;
        }
        INSIDE[lane as usize].0.fetch_sub(1, SeqCst);
        drop(forking());
    }
}

#[cold]
fn choose() -> u32 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    (NEXT.fetch_add(1, SeqCst) % LANES) as u32
}

fn forking() -> MutexGuard<'static, ()> {
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Inside {
    fn drop(&mut self) {
        let me = ME.get();
        ME.set(Me { depth: me.depth - 1, ..me });
        if me.depth == 1 {
            INSIDE[me.lane as usize].0.fetch_sub(1, Release);
        }
    }
}

/// Nobody but this thread is inside until it is dropped. What this thread enters meanwhile it leaves first.
pub struct Closed {
    _forking: MutexGuard<'static, ()>,
}

pub fn close() -> Closed {
    let forking = forking();
    CLOSED.store(true, SeqCst);
    let me = ME.get();
    let mine = usize::from(me.depth > 0);
    while INSIDE.iter().map(|lane| lane.0.load(SeqCst)).sum::<usize>() > mine {
        std::thread::yield_now();
    }
    // This thread may go in and out meanwhile, uncounted.
    ME.set(Me { depth: me.depth + 1, lane: me.lane.min(LANES as u32 - 1) });
    Closed { _forking: forking }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let me = ME.get();
        ME.set(Me { depth: me.depth - 1, ..me });
        CLOSED.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
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
                let closed = close();
                let found = numbers.each_ref().map(|number| number.load(SeqCst));
                {
                    let _own = enter();
                    thread::yield_now();
                }
                assert_eq!((found[0], numbers[0].load(SeqCst)), (found[1], found[1]));
                drop(closed);
            }
            stop.store(true, SeqCst);
        });
        assert!(numbers[0].load(SeqCst) > 0);
        assert_eq!(INSIDE.iter().map(|lane| lane.0.load(SeqCst)).sum::<usize>(), 0);
    }
}
