//! System calls of ours are no cancellation points: a thread that pthread_cancel wants to end is to end where it would
//! without us, and not halfway through something that nobody else puts right.

use libc::c_int;
use std::marker::PhantomData;
use std::ptr::null_mut;

extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

const DISABLE: c_int = 1; // PTHREAD_CANCEL_DISABLE

/// This thread cannot be cancelled until it is dropped. No callback of the program's may be called meanwhile.
pub struct Off {
    before: c_int,
    /// It belongs to this thread.
    _thread: PhantomData<*mut ()>,
}

pub fn off() -> Off {
    let mut before = 0;
    // SAFETY: the place is our own. It is no cancellation point itself.
    unsafe { pthread_setcancelstate(DISABLE, &mut before) };
    Off { before, _thread: PhantomData }
}

impl Drop for Off {
    fn drop(&mut self) {
        // SAFETY: what it was before.
        unsafe { pthread_setcancelstate(self.before, null_mut()) };
    }
}
