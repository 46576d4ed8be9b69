//! Numbers that rise in the order sessions come, so that of those which expire in the same second the first one leaves
//! first. Each thread takes them by the block: in one thread they rise one by one, between threads that add in the same
//! second nobody could say who was first.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const BLOCK: u64 = 1024;

#[inline]
pub fn next() -> u64 {
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    let number = match NUMBER.get() {
        number if number % BLOCK == 0 => next_block(),
        number => number,
    };
    NUMBER.set(number + 1);
    number
}

#[cold]
fn next_block() -> u64 {
    static BLOCKS: AtomicU64 = AtomicU64::new(0);
    BLOCKS.fetch_add(BLOCK, Relaxed)
}
