//! Connections that end without close_notify: when libssl condemns a session for that and nothing else.
//!
//! It does so when a connection is freed or cleared that was not shut down, and, from 3.0 on, when the end of the
//! stream comes while it reads. (A fatal alert is an error of another name, and condemns the session at once.)

use super::{is_3_or_later, table, types::SSL, Connection};
use libc::{c_int, c_ulong, c_void};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

thread_local!(static FREEING: Cell<bool> = const { Cell::new(false) });

/// Whether anybody wants to know.
static WATCHED: AtomicBool = AtomicBool::new(false);

pub fn watch() {
    WATCHED.store(true, Relaxed);
}

/// Marks that a server's connection is freed while it lives.
struct Freeing(bool);

impl Freeing {
    /// # Safety
    /// `ssl` is NULL or alive.
    unsafe fn begin(ssl: *mut SSL) -> Option<Freeing> {
        if !WATCHED.load(Relaxed) {
            return None;
        }
        // SAFETY: by the caller's promise.
        let connection = unsafe { Connection::borrow(ssl)? };
        Some(Freeing(FREEING.replace(connection.is_server())))
    }
}

impl Drop for Freeing {
    fn drop(&mut self) {
        FREEING.set(self.0);
    }
}

/// SSL_free(3)
///
/// # Safety
/// As libssl requires.
pub unsafe fn free(ssl: *mut SSL) {
    // SAFETY: by the caller's promise.
    unsafe {
        let _freeing = Freeing::begin(ssl);
        (table().SSL_free)(ssl);
    }
}

/// SSL_clear(3)
///
/// # Safety
/// As libssl requires.
pub unsafe fn clear(ssl: *mut SSL) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        let _freeing = Freeing::begin(ssl);
        if let Some(connection) = Connection::borrow(ssl) {
            connection.forget_notes();
        }
        (table().SSL_clear)(ssl)
    }
}

/// Whether what libssl condemns on this thread now is condemned for an unclean end.
pub fn is_why() -> bool {
    const LIBRARY: c_ulong = 20; // ERR_LIB_SSL
    const REASON: c_ulong = 294; // SSL_R_UNEXPECTED_EOF_WHILE_READING
    FREEING.get()
        // SAFETY: reading this thread's error queue has no preconditions.
        || is_3_or_later() && unsafe { (table().ERR_peek_last_error)() } == LIBRARY << 23 | REASON
}

/// Whether `address` is in the code of the real libssl: there its own calls through the PLT come from.
pub fn is_in_libssl(address: usize) -> bool {
    let base = |address: *const c_void| {
        // SAFETY: a Dl_info of our own; any address may be asked for.
        unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            (libc::dladdr(address, &mut info) != 0).then_some(info.dli_fbase)
        }
    };
    let libssl = base(table().SSL_CTX_remove_session as *const c_void);
    libssl.is_some() && base(address as *const c_void) == libssl
}
