//! SSL_SESSION_get_time(3): a session whose time or timeout changes while it is cached is judged anew (FLUSH2)

use super::border;
use crate::context;
use crate::libssl::types::SSL_SESSION;
use crate::libssl::{elsewhere_session, table, Session};
use libc::{c_long, time_t};

/// # Safety
/// `session` is NULL or live.
unsafe fn changed<T>(session: *mut SSL_SESSION, result: T) -> Option<T> {
    // SAFETY: by the caller's promise.
    if let Some(session) = unsafe { Session::borrow(session) } {
        context::expiry_changed(&session);
    }
    Some(result)
}

/// Sets when `s` was established, in seconds since the epoch, and returns `t`; 0 for NULL.
///
/// # Safety
/// `s` is NULL or a live session.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_SESSION_set_time(s: *mut SSL_SESSION, t: c_long) -> c_long {
    // SAFETY: by the caller's promise; libssl allows NULL.
    border(0, || unsafe {
        match elsewhere_session(s) {
            Some(other) => Some((other.SSL_SESSION_set_time)(s, t)),
            None => changed(s, (table().SSL_SESSION_set_time)(s, t)),
        }
    })
}

/// SSL_SESSION_set_time with a time_t, for every libssl (OpenSSL has it since 3.3).
///
/// # Safety
/// `s` is NULL or a live session.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_SESSION_set_time_ex(s: *mut SSL_SESSION, t: time_t) -> time_t {
    border(0, || {
        // SAFETY: by the caller's promise; libssl allows NULL.
        unsafe {
            let other = elsewhere_session(s);
            let table = other.unwrap_or_else(table);
            let result = match table.SSL_SESSION_set_time_ex {
                Some(set_time_ex) => set_time_ex(s, t),
                None => (table.SSL_SESSION_set_time)(s, t as c_long),
            };
            if other.is_some() {
                return Some(result);
            }
            changed(s, result)
        }
    })
}

/// Sets how many seconds after its time `s` expires. Returns 1; 0 for NULL.
///
/// # Safety
/// `s` is NULL or a live session.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_SESSION_set_timeout(s: *mut SSL_SESSION, t: c_long) -> c_long {
    // SAFETY: by the caller's promise; libssl allows NULL.
    border(0, || unsafe {
        match elsewhere_session(s) {
            Some(other) => Some((other.SSL_SESSION_set_timeout)(s, t)),
            None => changed(s, (table().SSL_SESSION_set_timeout)(s, t)),
        }
    })
}
