//! A process that is killed before each of its stores, one after the other.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// How many more stores are allowed; negative for any number.
pub static ALLOWED: AtomicI64 = AtomicI64::new(-1);

pub fn before_store() {
    match ALLOWED.load(Relaxed) {
        0 => {
            // SAFETY: plain numbers; it does not return.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            loop {
                std::hint::spin_loop();
            }
        }
        allowed if allowed > 0 => ALLOWED.store(allowed - 1, Relaxed),
        _ => {}
    }
}
