//! SSL_CTX_new(3), SSL_CTX_set_session_id_context(3), SSL_new(3): where the takeover and the connections begin

use super::{border, ours};
use crate::context::{Context, LATE_CERTIFICATE};
use crate::hooks::{GENERATE, HOOKS};
use crate::libssl::context::{self, Make};
use crate::libssl::types::*;
use crate::libssl::{prepare_marker, table, table_of, Connection, Ctx};
use libc::{c_char, c_int, c_long, c_uchar, c_uint, c_void};
use std::ptr::null_mut;
use std::slice::from_raw_parts;

/// Makes an SSL_CTX whose session cache Reprise serves. NULL on failure, with libssl's error on the queue.
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_new(method: *const SSL_METHOD) -> *mut SSL_CTX {
    // SAFETY: by the caller's promise.
    border(null_mut(), || unsafe { Some(made(Make::Plain(method))) })
}

/// The same in a library context and with a property query (OpenSSL has it since 3.0).
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_new_ex(
    libctx: *mut OSSL_LIB_CTX,
    propq: *const c_char,
    method: *const SSL_METHOD,
) -> *mut SSL_CTX {
    // SAFETY: by the caller's promise.
    border(null_mut(), || unsafe { Some(made(Make::In(libctx, propq, method))) })
}

/// Makes a connection. Here expired sessions are cleared a few at a time (MODE5): a connection that is resumed by a ticket,
/// and a client's, may not touch the cache at all. NULL on failure, with libssl's error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_new(ctx: *mut SSL_CTX) -> *mut SSL {
    border(null_mut(), || {
        let context = ours(ctx).filter(|context| !context.lost(HOOKS, 0));
        if let Some(context) = context {
            context::note_default();
            context.connection();
            context.choose_id_context();
        }
        // SAFETY: by the caller's promise; libssl allows NULL. What it made is alive.
        unsafe {
            let ssl = (table_of(ctx).SSL_new)(ctx);
            if let Some((context, connection)) = context.zip(Connection::borrow(ssl)) {
                context.made(&connection);
            }
            Some(ssl)
        }
    })
}

/// Says which sessions may be resumed in `ctx` (SSL_CTX_set_session_id_context(3)). In a cache that others use as well
/// they do not cross to contexts where it is another one. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `sid_ctx` is `sid_ctx_len` bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_set_session_id_context(
    ctx: *mut SSL_CTX,
    sid_ctx: *const c_uchar,
    sid_ctx_len: c_uint,
) -> c_int {
    border(0, || {
        if ctx.is_null() {
            return None;
        }
        // SAFETY: by the caller's promise; what libssl accepted has at most 32 bytes and may be NULL only if empty.
        unsafe {
            let set = (table_of(ctx).SSL_CTX_set_session_id_context)(ctx, sid_ctx, sid_ctx_len);
            if let Some(context) = ours(ctx).filter(|_| set == 1) {
                let empty = sid_ctx.is_null() || sid_ctx_len == 0;
                context.set_id_context(if empty { &[] } else { from_raw_parts(sid_ctx, sid_ctx_len as usize) });
            }
            Some(set)
        }
    })
}

/// Sets how the peers of a context's connections are verified (SSL_CTX_set_cert_verify_callback(3)). In a cache that
/// others use as well, sessions do not cross to contexts where that is done in another way.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `cb` a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_set_cert_verify_callback(
    ctx: *mut SSL_CTX,
    cb: Option<unsafe extern "C-unwind" fn(store: *mut X509_STORE_CTX, arg: *mut c_void) -> c_int>,
    arg: *mut c_void,
) {
    border((), || {
        if ctx.is_null() {
            return None;
        }
        // SAFETY: by the caller's promise.
        unsafe { (table_of(ctx).SSL_CTX_set_cert_verify_callback)(ctx, cb, arg) };
        ours(ctx)?.set_cert_verify(cb, arg);
        Some(())
    });
}

/// Sets a callback of a context by its number: of all there are, SSL_CTX_set_tlsext_servername_callback(3), a macro, is
/// noted here. Where a cache is shared, what that callback does with a connection tells which sessions are for it. NULL: 0.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `fp` a function of the type that `cmd` asks for.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_callback_ctrl(
    ctx: *mut SSL_CTX,
    cmd: c_int,
    fp: Option<unsafe extern "C-unwind" fn()>,
) -> c_long {
    const SET_TLSEXT_SERVERNAME_CB: c_int = 53; // SSL_CTRL_SET_TLSEXT_SERVERNAME_CB
    border(0, || {
        if ctx.is_null() {
            return None;
        }
        if let Some(context) = ours(ctx).filter(|_| cmd == SET_TLSEXT_SERVERNAME_CB) {
            context.set_servername_callback(fp);
        }
        // SAFETY: by the caller's promise.
        Some(unsafe { (table_of(ctx).SSL_CTX_callback_ctrl)(ctx, cmd, fp) })
    })
}

/// Sets the callback that chooses a connection's certificate (SSL_CTX_set_cert_cb(3)). As to sessions in a shared cache, see
/// SSL_CTX_callback_ctrl.
///
/// # Safety
/// `c` is NULL or a live SSL_CTX, `cb` a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_set_cert_cb(
    c: *mut SSL_CTX,
    cb: Option<unsafe extern "C-unwind" fn(ssl: *mut SSL, arg: *mut c_void) -> c_int>,
    arg: *mut c_void,
) {
    border((), || {
        if c.is_null() {
            return None;
        }
        if let Some(context) = ours(c).filter(|_| cb.is_some()) {
            context.note_late(LATE_CERTIFICATE);
        }
        // SAFETY: by the caller's promise.
        unsafe { (table_of(c).SSL_CTX_set_cert_cb)(c, cb, arg) };
        Some(())
    });
}

/// # Safety
/// `make` holds what libssl requires.
unsafe fn made(make: Make) -> *mut SSL_CTX {
    let nested = context::is_creating(); // Debian's SSL_CTX_new calls SSL_CTX_new_ex: the outer call takes over
    let (is_served, made) = context::create(make);
    if is_served && !nested && table().missing.is_none() {
        // SAFETY: it was just made, or is NULL.
        if let Some(ctx) = unsafe { Ctx::new(made) } {
            prepare_marker(make);
            Context::take_over(ctx, HOOKS, GENERATE);
        }
    }
    made
}
