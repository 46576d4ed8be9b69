//! Marking a session not resumable. The mark is a private field that only SSL_CTX_remove_session sets.
//!
//! It is set through SSL_CTXs of our own, which cache nothing and have no callbacks: through the session's own context
//! it would deadlock inside libssl's flush, and one lock would serve all threads. They live as long as the process.
//!
//! **Fork.** A child cannot make an SSL_CTX: another thread of its parent may have been holding one of libcrypto's locks.
//! It uses the markers that it inherits. One is made with the first SSL_CTX of the program; threads that find all in use make
//! more, in a process that was never forked. A marker has one user at a time, who is inside the gate: in a
//! child none is in use, and their own locks are free.

use super::context::{create, Make};
use super::types::{OSSL_LIB_CTX, SSL_CTX};
use super::{table, Session};
use crate::{gate, thread};
use std::ptr::{null, null_mut};
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const MARKERS: usize = 16;
static MARKER: [Marker; MARKERS] =
    [const { Marker { ctx: AtomicPtr::new(null_mut()), used: AtomicBool::new(false) } }; MARKERS];
/// How many there are: the first ones.
static MADE: AtomicUsize = AtomicUsize::new(0);
/// Whether this process was forked from one that had contexts.
static FORKED: AtomicBool = AtomicBool::new(false);
/// Whether threads of a forked process have waited for each other: its next SSL_CTX brings a marker along.
static CROWDED: AtomicBool = AtomicBool::new(false);

#[repr(align(128))]
struct Marker {
    ctx: AtomicPtr<SSL_CTX>,
    used: AtomicBool,
}

struct InUse(&'static Marker);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.used.store(false, Release);
    }
}

impl Marker {
    /// Whether it is there and nobody used it.
    fn mark(&'static self, session: &Session) -> bool {
        let ctx = self.ctx.load(Acquire);
        if ctx.is_null() || self.used.load(Relaxed) || self.used.swap(true, Acquire) {
            return false;
        }
        let _used = InUse(self);
        // SAFETY: a marker is a live SSL_CTX; it does not have the session, so it marks it and nothing else.
        unsafe { (table().SSL_CTX_remove_session)(ctx, session.as_ptr()) };
        true
    }
}

#[inline]
pub fn mark(session: &Session) {
    let inside = gate::enter();
    let made = MADE.load(Acquire).min(MARKERS);
    // Threads begin with different ones.
    let first = inside.number().checked_rem(made).and_then(|first| MARKER.get(first));
    if !first.is_some_and(|marker| marker.mark(session)) {
        drop(inside);
        mark_with_any(session);
    }
}

#[cold]
#[inline(never)]
fn mark_with_any(session: &Session) {
    let mut round = 0;
    loop {
        let inside = gate::enter();
        let made = MADE.load(Acquire).min(MARKERS);
        let first = inside.number().checked_rem(made).unwrap_or(0);
        let (before, from) = MARKER[..made].split_at(first);
        if from.iter().chain(before).any(|marker| marker.mark(session)) {
            return;
        }
        drop(inside);
        if FORKED.load(Relaxed) && made > 0 {
            CROWDED.store(true, Relaxed);
            thread::pause(round);
            round += 1;
        } else if !make(null_mut()) {
            if made == 0 {
                return; // libssl makes none, not even for the program
            }
            thread::pause(round);
            round += 1;
        }
    }
}

/// An SSL_CTX of the program is being made in `libctx`: here one more can be made, too.
pub fn prepare(make_like: Make) {
    if MADE.load(Relaxed) == 0 || CROWDED.swap(false, Relaxed) {
        let libctx = match make_like {
            Make::In(libctx, ..) => libctx,
            Make::Plain(_) => null_mut(),
        };
        make(libctx);
    }
}

/// Makes one, if there is room. It belongs to the default library context of the process, which nobody frees; to `libctx` only
/// where the default one has no algorithms.
fn make(libctx: *mut OSSL_LIB_CTX) -> bool {
    let Some(free) = MARKER.iter().find(|marker| marker.ctx.load(Acquire).is_null()) else { return false };
    // Where it fails, that is no error of the program's.
    // SAFETY: marks in the error queue of this thread have no preconditions.
    unsafe { (table().ERR_set_mark)() };
    // SAFETY: no preconditions.
    let (method, default) =
        unsafe { ((table().TLS_method)(), table().OSSL_LIB_CTX_get0_global_default.map(|default| default())) };
    let (_, mut made) = match default {
        Some(default) => create(Make::In(default, null(), method)),
        None => create(Make::Plain(method)),
    };
    if made.is_null() && !libctx.is_null() {
        made = create(Make::In(libctx, null(), method)).1;
    }
    // SAFETY: as above.
    unsafe { (table().ERR_pop_to_mark)() };
    if made.is_null() {
        return false;
    }
    match free.ctx.compare_exchange(null_mut(), made, AcqRel, Acquire) {
        Ok(_) => {
            MADE.fetch_add(1, Release);
        }
        // SAFETY: another thread was faster; this one has no other user.
        Err(_) => unsafe { (table().SSL_CTX_free)(made) },
    }
    true
}

/// In a forked child.
pub fn forked() {
    FORKED.store(true, Relaxed);
}
