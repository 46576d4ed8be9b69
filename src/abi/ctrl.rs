//! SSL_CTX_set_session_cache_mode(3), SSL_CTX_sess_set_cache_size(3), SSL_CTX_sess_number(3)
//!
//! In C these names are macros over SSL_CTX_ctrl, so that is what programs call (ABI1). A program that includes
//! reprise.h calls the functions.

use super::{border, ours};
use crate::context::{registry, Context};
use crate::libssl::types::*;
use crate::libssl::{table_of, CERT_FLAGS};
use libc::{c_int, c_long, c_void};
use std::ffi::CStr;
use std::ptr::null_mut;

/// SSL_CTX_ctrl(3): the cache mode (44, 45), the cache size (42, 43) and the counters (20 to 31) are answered here,
/// everything else by libssl.
///
/// # Safety
/// As libssl requires for `cmd`.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_ctrl(ctx: *mut SSL_CTX, cmd: c_int, larg: c_long, parg: *mut c_void) -> c_long {
    border(0, || {
        // Nobody looks for the context of a command that is libssl's.
        let answer = match u32::try_from(cmd) {
            Ok(command) if Context::answers(command) => ours(ctx).and_then(|context| control(context, command, larg)),
            _ => None,
        };
        Some(answer.unwrap_or_else(|| {
            // SAFETY: by the caller's promise.
            let answer = unsafe { (table_of(ctx).SSL_CTX_ctrl)(ctx, cmd, larg, parg) };
            // SAFETY: as above; libssl has read what `parg` points to.
            if let Some((command, value)) = unsafe { algorithms(cmd, larg, parg, answer) } {
                if let Some(context) = ours(ctx) {
                    context.set_algorithms(command, &value);
                }
            }
            answer + correction(ctx, cmd)
        }))
    })
}

/// What a command has set of the algorithms that clients may sign with, which libssl does not tell afterwards. `None` for
/// other commands, and for one that failed.
///
/// # Safety
/// `parg` is what libssl requires for `cmd`.
unsafe fn algorithms(cmd: c_int, larg: c_long, parg: *const c_void, answer: c_long) -> Option<(c_int, Vec<u8>)> {
    const SET_GROUPS: c_int = 91; // SSL_CTRL_SET_GROUPS, an array of `larg` numbers
    const SET_GROUPS_LIST: c_int = 92; // SSL_CTRL_SET_GROUPS_LIST, a text
    const SET_SIGALGS: c_int = 97;
    const SET_SIGALGS_LIST: c_int = 98;
    const CLEAR_CERT_FLAGS: c_int = 100;
    const SET_CLIENT_SIGALGS: c_int = 101;
    const SET_CLIENT_SIGALGS_LIST: c_int = 102;
    match cmd {
        CERT_FLAGS | CLEAR_CERT_FLAGS => Some((CERT_FLAGS, answer.to_le_bytes().into())),
        _ if answer != 1 || parg.is_null() => None,
        SET_GROUPS | SET_SIGALGS | SET_CLIENT_SIGALGS => {
            let bytes = usize::try_from(larg).ok()?.checked_mul(size_of::<c_int>())?;
            // SAFETY: by the caller's promise.
            Some((cmd, unsafe { std::slice::from_raw_parts(parg.cast::<u8>(), bytes) }.into()))
        }
        SET_GROUPS_LIST | SET_SIGALGS_LIST | SET_CLIENT_SIGALGS_LIST => {
            // SAFETY: by the caller's promise.
            Some((cmd, unsafe { CStr::from_ptr(parg.cast()) }.to_bytes().into()))
        }
        _ => None,
    }
}

/// What libssl's counters lack in an SSL_CTX that was handed back.
fn correction(ctx: *mut SSL_CTX, command: c_int) -> c_long {
    match u32::try_from(command) {
        Ok(command) if Context::corrects(command) => {
            registry::retired(ctx).map_or(0, |context| context.correction(command))
        }
        _ => 0,
    }
}

/// `None` for a command that is not the session cache's.
fn control(context: &Context, command: u32, number: c_long) -> Option<c_long> {
    match command {
        SSL_CTRL_SESS_NUMBER..=SSL_CTRL_SESS_CACHE_FULL => Some(context.statistic(command)),
        SSL_CTRL_SET_SESS_CACHE_SIZE => match u64::try_from(number) {
            Ok(size) => Some(context.set_size(size) as c_long),
            Err(_) => Some(0),
        },
        SSL_CTRL_GET_SESS_CACHE_SIZE => Some(context.size() as c_long),
        // libssl keeps the mode in 32 bits as well
        SSL_CTRL_SET_SESS_CACHE_MODE => Some(context.set_mode(number as u32).into()),
        SSL_CTRL_GET_SESS_CACHE_MODE => Some(context.mode().into()),
        _ => None,
    }
}

/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
unsafe fn call(ctx: *mut SSL_CTX, command: u32, number: c_long) -> c_long {
    // SAFETY: by the caller's promise; these commands take no pointer.
    unsafe { SSL_CTX_ctrl(ctx, command as c_int, number, null_mut()) }
}

/// Sets the cache mode, all bits as given, and returns the previous one (MODE1 to MODE10). NULL: 0.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_set_session_cache_mode(ctx: *mut SSL_CTX, mode: c_long) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SET_SESS_CACHE_MODE, mode) }
}

/// The cache mode; SSL_SESS_CACHE_SERVER unless it was set (MODE1). NULL: 0.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_get_session_cache_mode(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_GET_SESS_CACHE_MODE, 0) }
}

/// Sets how many sessions the internal cache holds, 0 for no limit, and returns the previous size (SIZE1, SIZE2). NULL
/// and a negative size: 0, and nothing changes.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_set_cache_size(ctx: *mut SSL_CTX, t: c_long) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SET_SESS_CACHE_SIZE, t) }
}

/// How many sessions the internal cache holds at most, 0 for no limit; 20480 unless it was set (SIZE1). NULL: 0.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_get_cache_size(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_GET_SESS_CACHE_SIZE, 0) }
}

// The counters of SSL_CTX_sess_number(3), as functions that cbindgen can see.

/// Sessions in the internal cache now (STAT1). NULL: 0, here and below.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_number(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_NUMBER, 0) }
}

/// Handshakes begun as a client (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_connect(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_CONNECT, 0) }
}

/// Handshakes finished as a client (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_connect_good(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_CONNECT_GOOD, 0) }
}

/// Renegotiations begun as a client (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_connect_renegotiate(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_CONNECT_RENEGOTIATE, 0) }
}

/// Handshakes begun as a server (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_accept(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_ACCEPT, 0) }
}

/// Handshakes finished as a server (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_accept_good(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_ACCEPT_GOOD, 0) }
}

/// Renegotiations begun as a server (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_accept_renegotiate(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_ACCEPT_RENEGOTIATE, 0) }
}

/// Sessions reused (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_hits(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_HIT, 0) }
}

/// Sessions that get_cb had (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_cb_hits(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_CB_HIT, 0) }
}

/// Sessions that were proposed by clients and not found in the internal cache (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_misses(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_MISSES, 0) }
}

/// Sessions that were proposed by clients and had expired (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_timeouts(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_TIMEOUTS, 0) }
}

/// Sessions that left because the cache was full (STAT1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_cache_full(ctx: *mut SSL_CTX) -> c_long {
    // SAFETY: by the caller's promise.
    unsafe { call(ctx, SSL_CTRL_SESS_CACHE_FULL, 0) }
}
