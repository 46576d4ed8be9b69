//! An LHASH_OF(SSL_SESSION), as SSL_CTX_sessions(3) promises one, with the sessions of a cache as they are now.

use super::types::{Compare, Each, EachWith, Hash, SSL_SESSION};
use super::{table, Session};
use crate::cache::Session as _;
use libc::{c_int, c_ulong, c_void};
use std::ptr::NonNull;

/// The table and a reference to every session in it.
pub struct SessionTable {
    lhash: NonNull<c_void>,
    _sessions: Vec<Session>,
}

// SAFETY: an LHASH may move between threads; concurrent use is the program's to prevent, as with libssl's own.
unsafe impl Send for SessionTable {}

impl SessionTable {
    /// `None` where there is no memory for it.
    pub fn new(sessions: Vec<Session>) -> Option<SessionTable> {
        // SAFETY: the callbacks are for SSL_SESSION pointers, and only such are inserted.
        let lhash = NonNull::new(unsafe { (table().OPENSSL_LH_new)(Some(hash as Hash), Some(compare as Compare)) })?;
        if let Some(set_thunks) = table().OPENSSL_LH_set_thunks {
            // SAFETY: from 3.3 on the table calls every function through these, which do just that.
            unsafe {
                set_thunks(lhash.as_ptr(), Some(call_hash), Some(call_compare), Some(call_each), Some(call_each_with))
            };
        }
        for session in &sessions {
            // SAFETY: the session lives as long as the table, which holds a reference.
            unsafe { (table().OPENSSL_LH_insert)(lhash.as_ptr(), session.as_ptr().cast()) };
        }
        Some(SessionTable { lhash, _sessions: sessions })
    }

    pub fn as_ptr(&self) -> *mut c_void {
        self.lhash.as_ptr()
    }
}

impl Drop for SessionTable {
    fn drop(&mut self) {
        // SAFETY: the table is ours; freeing it frees none of its members.
        unsafe { (table().OPENSSL_LH_free)(self.lhash.as_ptr()) };
    }
}

/// The hash libssl itself uses, so that a program that brings an SSL_SESSION to look for finds it: the first four
/// bytes of the id.
unsafe extern "C-unwind" fn hash(session: *const c_void) -> c_ulong {
    // SAFETY: members and what is looked for are live sessions.
    match unsafe { Session::borrow(session.cast_mut().cast::<SSL_SESSION>()) } {
        Some(session) => session.id().iter().take(4).rev().fold(0, |hash, &byte| hash << 8 | c_ulong::from(byte)),
        None => 0,
    }
}

unsafe extern "C-unwind" fn compare(one: *const c_void, other: *const c_void) -> c_int {
    // SAFETY: as above.
    let keys = [one, other].map(|session| {
        unsafe { Session::borrow(session.cast_mut().cast::<SSL_SESSION>()) }.map(|session| session.key())
    });
    c_int::from(keys[0] != keys[1])
}

unsafe extern "C-unwind" fn call_hash(session: *const c_void, hash: Hash) -> c_ulong {
    // SAFETY: the table passes its own hash function and a member.
    unsafe { hash(session) }
}

unsafe extern "C-unwind" fn call_compare(one: *const c_void, other: *const c_void, compare: Compare) -> c_int {
    // SAFETY: as above.
    unsafe { compare(one, other) }
}

unsafe extern "C-unwind" fn call_each(session: *mut c_void, each: Each) {
    // SAFETY: the program's function for each member.
    unsafe { each(session) }
}

unsafe extern "C-unwind" fn call_each_with(session: *mut c_void, argument: *mut c_void, each: EachWith) {
    // SAFETY: as above, with the program's argument.
    unsafe { each(session, argument) }
}
