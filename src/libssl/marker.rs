//! Marking a session not resumable. The mark is a private field that only SSL_CTX_remove_session sets.
//!
//! It is set through SSL_CTXs of our own, which cache nothing and have no callbacks: through the session's own context
//! it would deadlock inside libssl's flush, and one lock would serve all threads. A few of them spread that lock.
//! They live as long as the process; a forked child makes its own, since another thread of its parent may have held
//! a lock.

use super::context::{create, Make};
use super::{table, types::SSL_CTX, Session};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicPtr, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const MARKERS: usize = 16;
static MARKER: [AtomicPtr<SSL_CTX>; MARKERS] = [const { AtomicPtr::new(null_mut()) }; MARKERS];

pub fn mark(session: &Session) {
    if let Some(marker) = marker() {
        // SAFETY: a marker is a live SSL_CTX; it does not have the session, so it marks it and nothing else.
        unsafe { (table().SSL_CTX_remove_session)(marker, session.as_ptr()) };
    }
}

fn marker() -> Option<*mut SSL_CTX> {
    thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut mine = MINE.get();
    if mine == usize::MAX {
        mine = NEXT.fetch_add(1, Relaxed) % MARKERS;
        MINE.set(mine);
    }
    let mut found = MARKER[mine].load(Acquire);
    if found.is_null() {
        // SAFETY: TLS_method has no preconditions.
        found = place(mine, Make::Plain(unsafe { (table().TLS_method)() }));
    }
    // Where the default library context can make no SSL_CTX, one made by `prepare` serves all threads.
    Some(found)
        .filter(|found| !found.is_null())
        .or_else(|| MARKER.iter().map(|marker| marker.load(Acquire)).find(|marker| !marker.is_null()))
}

/// Makes sure that there is a marker in a process whose default library context may be of no use, while the one of
/// the program is known to be.
pub fn prepare(make: Make) {
    if matches!(make, Make::In(libctx, ..) if !libctx.is_null()) && MARKER[0].load(Acquire).is_null() {
        place(0, make);
    }
}

fn place(place: usize, make: Make) -> *mut SSL_CTX {
    // Where it fails, that is no error of the program's.
    // SAFETY: marks in the error queue of this thread have no preconditions.
    unsafe { (table().ERR_set_mark)() };
    let (_, made) = create(make);
    // SAFETY: as above.
    unsafe { (table().ERR_pop_to_mark)() };
    match MARKER[place].compare_exchange(null_mut(), made, AcqRel, Acquire) {
        Ok(_) => made,
        Err(theirs) => {
            // SAFETY: another thread was faster; this one has no other user. NULL is allowed.
            unsafe { (table().SSL_CTX_free)(made) };
            theirs
        }
    }
}

/// In a forked child: the markers inherited may have been locked by a thread that is not here.
pub fn forget() {
    /// Still known, so that a leak checker finds nothing lost.
    #[used]
    static INHERITED: [AtomicPtr<SSL_CTX>; MARKERS] = [const { AtomicPtr::new(null_mut()) }; MARKERS];
    for (marker, inherited) in MARKER.iter().zip(&INHERITED) {
        inherited.store(marker.swap(null_mut(), AcqRel), Release);
    }
}
