//! SSL_get_session(3), SSL_get_peer_cert_chain(3), SSL_set_SSL_CTX(3), SSL_CTX_set_generate_session_id(3): what is asked
//! of a connection

use super::{border, ours};
use crate::context::{Context, LATE_CERTIFICATE};
use crate::hooks::GENERATE;
use crate::libssl::types::*;
use crate::libssl::{context, elsewhere, generator, table, table_of, unclean, Connection};
use libc::{c_int, c_uchar, c_uint, c_void};
use std::ptr::null_mut;

/// The session of a connection, without a reference: it may go with the next operation (GET1, GET3, GET4). NULL where
/// there is none.
///
/// # Safety
/// `ssl` is NULL or a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_get_session(ssl: *const SSL) -> *mut SSL_SESSION {
    border(null_mut(), || {
        // SAFETY: by the caller's promise.
        (!ssl.is_null()).then(|| unsafe { (table_of(ssl).SSL_get_session)(ssl) })
    })
}

/// The same as SSL_get_session (GET1).
///
/// # Safety
/// `ssl` is NULL or a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_get0_session(ssl: *const SSL) -> *mut SSL_SESSION {
    // SAFETY: by the caller's promise.
    unsafe { SSL_get_session(ssl) }
}

/// The session of a connection with a reference for the caller, who frees it (GET2). NULL where there is none.
///
/// # Safety
/// `ssl` is NULL or a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_get1_session(ssl: *mut SSL) -> *mut SSL_SESSION {
    border(null_mut(), || {
        // SAFETY: by the caller's promise.
        (!ssl.is_null()).then(|| unsafe { (table_of(ssl).SSL_get1_session)(ssl) })
    })
}

/// The certificates that the peer showed, on a server without the peer's own. After a resumption they are those of the full
/// handshake, also where the session came from a cache that others use. No reference is taken: they go with the session.
/// NULL where the peer showed none.
///
/// # Safety
/// `ssl` is NULL or a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_get_peer_cert_chain(ssl: *const SSL) -> *mut stack_st_X509 {
    border(null_mut(), || {
        // SAFETY: by the caller's promise.
        let (connection, other) = unsafe { (Connection::borrow(ssl)?, elsewhere(ssl)) };
        let chain = match other {
            // SAFETY: by the caller's promise.
            Some(other) => unsafe { (other.SSL_get_peer_cert_chain)(ssl) },
            None => connection.peer_chain(),
        };
        Some(chain.cast_mut().cast())
    })
}

/// Moves a connection to another SSL_CTX, as a servername callback does. Sessions go on being cached in the one that the
/// connection was made with. Returns the connection's SSL_CTX, NULL on failure.
///
/// # Safety
/// `ssl` is NULL or a live connection, `ctx` NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_set_SSL_CTX(ssl: *mut SSL, ctx: *mut SSL_CTX) -> *mut SSL_CTX {
    border(null_mut(), || {
        // SAFETY: by the caller's promise.
        (!ssl.is_null()).then(|| unsafe {
            match elsewhere(ssl) {
                Some(other) => (other.SSL_set_SSL_CTX)(ssl, ctx),
                None => {
                    if let Some(context) = ours(ctx) {
                        context.switched_to();
                    }
                    context::switch(ssl, ctx)
                }
            }
        })
    })
}

/// Sets the callback that chooses the certificate of one connection: see SSL_CTX_set_cert_cb.
///
/// # Safety
/// `s` is NULL or a live connection, `cb` a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_set_cert_cb(
    s: *mut SSL,
    cb: Option<unsafe extern "C-unwind" fn(ssl: *mut SSL, arg: *mut c_void) -> c_int>,
    arg: *mut c_void,
) {
    border((), || {
        // SAFETY: by the caller's promise.
        let (connection, other) = unsafe { (Connection::borrow(s)?, elsewhere(s)) };
        if other.is_none() && cb.is_some() {
            if let Some(context) = Context::of(&connection) {
                context.note_late(LATE_CERTIFICATE);
            }
        }
        // SAFETY: by the caller's promise.
        unsafe { (other.unwrap_or_else(table).SSL_set_cert_cb)(s, cb, arg) };
        Some(())
    });
}

/// Whether a session with this id, of the connection's protocol version, is in the internal cache: 1 or 0 (ID1).
///
/// # Safety
/// `ssl` is NULL or a live connection, `id` is NULL or `id_len` bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_has_matching_session_id(
    ssl: *const SSL,
    id: *const c_uchar,
    id_len: c_uint,
) -> c_int {
    border(0, || {
        // SAFETY: by the caller's promise.
        let connection = unsafe { Connection::borrow(ssl)? };
        if id.is_null() {
            return None;
        }
        // SAFETY: by the caller's promise.
        if let Some(other) = unsafe { elsewhere(ssl) } {
            // SAFETY: by the caller's promise.
            return Some(unsafe { (other.SSL_has_matching_session_id)(ssl, id, id_len) });
        }
        match Context::of(&connection) {
            // SAFETY: by the caller's promise.
            Some(context) => Some(
                context.has(connection.version(), unsafe { std::slice::from_raw_parts(id, id_len as usize) }).into(),
            ),
            // SAFETY: by the caller's promise.
            None => Some(unsafe { (table().SSL_has_matching_session_id)(ssl, id, id_len) }),
        }
    })
}

/// Sets the function that makes the session ids of a context's servers, NULL for libssl's own. An id that is in the
/// internal cache fails the handshake (ID1). Returns 1; 0 for NULL.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `cb` a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_set_generate_session_id(ctx: *mut SSL_CTX, cb: Generator) -> c_int {
    border(0, || {
        if ctx.is_null() {
            return None;
        }
        let cb = match ours(ctx) {
            Some(context) => context.choose_generator(generator::wrap(cb, SSL_has_matching_session_id), GENERATE),
            None => cb,
        };
        // SAFETY: by the caller's promise.
        Some(unsafe { (table_of(ctx).SSL_CTX_set_generate_session_id)(ctx, cb) })
    })
}

/// The same for one connection, whose function wins over its context's.
///
/// # Safety
/// `ssl` is NULL or a live connection, `cb` a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_set_generate_session_id(ssl: *mut SSL, cb: Generator) -> c_int {
    border(0, || {
        // SAFETY: by the caller's promise.
        let (connection, other) = unsafe { (Connection::borrow(ssl)?, elsewhere(ssl)) };
        if let Some(other) = other {
            // SAFETY: by the caller's promise.
            return Some(unsafe { (other.SSL_set_generate_session_id)(ssl, cb) });
        }
        let cb = match Context::of(&connection) {
            Some(_) => generator::wrap(cb, SSL_has_matching_session_id),
            None => cb,
        };
        // SAFETY: by the caller's promise.
        Some(unsafe { (table().SSL_set_generate_session_id)(ssl, cb) })
    })
}

/// Frees a reference to a connection. Under REPRISE_UNCLEAN=keep the session of one that was not shut down stays.
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_free(ssl: *mut SSL) {
    border((), || {
        // SAFETY: by the caller's promise.
        match unsafe { elsewhere(ssl) } {
            // SAFETY: by the caller's promise.
            Some(other) => unsafe { (other.SSL_free)(ssl) },
            // SAFETY: by the caller's promise.
            None => unsafe { unclean::free(ssl) },
        }
        Some(())
    })
}

/// Makes a connection ready to be used again. As to its session, see SSL_free.
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_clear(s: *mut SSL) -> c_int {
    // SAFETY: by the caller's promise.
    border(0, || unsafe {
        Some(match elsewhere(s) {
            Some(other) => (other.SSL_clear)(s),
            None => unclean::clear(s),
        })
    })
}

/// Makes a connection a client's, which has tickets as its program wants them, whatever REPRISE_TICKETS says of servers.
///
/// # Safety
/// `s` is a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_set_connect_state(s: *mut SSL) {
    border((), || {
        // SAFETY: by the caller's promise.
        unsafe {
            (table_of(s).SSL_set_connect_state)(s);
            turned_out_client(s);
        }
        Some(())
    })
}

/// Starts a client's handshake: see SSL_set_connect_state.
///
/// # Safety
/// `ssl` is a live connection.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_connect(ssl: *mut SSL) -> c_int {
    border(-1, || {
        // SAFETY: by the caller's promise.
        unsafe {
            turned_out_client(ssl);
            Some((table_of(ssl).SSL_connect)(ssl))
        }
    })
}

/// # Safety
/// `ssl` is NULL or alive.
unsafe fn turned_out_client(ssl: *mut SSL) {
    // SAFETY: by the caller's promise.
    if let (Some(connection), None) = unsafe { (Connection::borrow(ssl), elsewhere(ssl)) } {
        if let Some(context) = Context::of(&connection) {
            context.turned_out_client(&connection);
        }
    }
}
