//! SSL_CTX_sess_set_get_cb(3): callback functions for server side external session caching

use super::{border, ours};
use crate::libssl::table_of;
use crate::libssl::types::*;
use libc::{c_int, c_uchar};

/// Sets the callback for each session that was negotiated. It is given a reference of its own: returning 1 keeps it,
/// returning 0 gives it back, and the session leaves the internal cache (CB2 to CB4). NULL sets none.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, the callback a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_set_new_cb(
    ctx: *mut SSL_CTX,
    new_session_cb: Option<unsafe extern "C-unwind" fn(ssl: *mut SSL, sess: *mut SSL_SESSION) -> c_int>,
) {
    border((), || {
        match ours(ctx) {
            Some(context) => context.new_callback.set(new_session_cb),
            None if ctx.is_null() => {}
            // SAFETY: by the caller's promise.
            None => unsafe { (table_of(ctx).SSL_CTX_sess_set_new_cb)(ctx, new_session_cb) },
        }
        Some(())
    })
}

/// Sets the callback for each session that leaves the internal cache or that libssl condemns (CB5, CB6). Its result
/// does not exist; the session stays the library's.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, the callback a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_set_remove_cb(
    ctx: *mut SSL_CTX,
    remove_session_cb: Option<unsafe extern "C-unwind" fn(ctx: *mut SSL_CTX, sess: *mut SSL_SESSION)>,
) {
    border((), || {
        match ours(ctx) {
            Some(context) => context.remove_callback.set(remove_session_cb),
            None if ctx.is_null() => {}
            // SAFETY: by the caller's promise.
            None => unsafe { (table_of(ctx).SSL_CTX_sess_set_remove_cb)(ctx, remove_session_cb) },
        }
        Some(())
    })
}

/// Sets the callback that a server asks for a session which the internal cache does not have (CB7 to CB10). `*copy` is
/// 1 before the call; a callback that sets it to 0 passes its own reference on.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, the callback a function of this type.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_set_get_cb(
    ctx: *mut SSL_CTX,
    get_session_cb: Option<
        unsafe extern "C-unwind" fn(
            ssl: *mut SSL,
            data: *const c_uchar,
            len: c_int,
            copy: *mut c_int,
        ) -> *mut SSL_SESSION,
    >,
) {
    border((), || {
        match ours(ctx) {
            Some(context) => context.get_callback.set(get_session_cb),
            None if ctx.is_null() => {}
            // SAFETY: by the caller's promise.
            None => unsafe { (table_of(ctx).SSL_CTX_sess_set_get_cb)(ctx, get_session_cb) },
        }
        Some(())
    })
}

/// The callback that was set, NULL if none is (CB1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_get_new_cb(
    ctx: *mut SSL_CTX,
) -> Option<unsafe extern "C-unwind" fn(ssl: *mut SSL, sess: *mut SSL_SESSION) -> c_int> {
    border(None, || match ours(ctx) {
        Some(context) => Some(context.new_callback.get()),
        None if ctx.is_null() => None,
        // SAFETY: by the caller's promise.
        None => Some(unsafe { (table_of(ctx).SSL_CTX_sess_get_new_cb)(ctx) }),
    })
}

/// The callback that was set, NULL if none is (CB1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_get_remove_cb(
    ctx: *mut SSL_CTX,
) -> Option<unsafe extern "C-unwind" fn(ctx: *mut SSL_CTX, sess: *mut SSL_SESSION)> {
    border(None, || match ours(ctx) {
        Some(context) => Some(context.remove_callback.get()),
        None if ctx.is_null() => None,
        // SAFETY: by the caller's promise.
        None => Some(unsafe { (table_of(ctx).SSL_CTX_sess_get_remove_cb)(ctx) }),
    })
}

/// The callback that was set, NULL if none is (CB1).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sess_get_get_cb(
    ctx: *mut SSL_CTX,
) -> Option<
    unsafe extern "C-unwind" fn(ssl: *mut SSL, data: *const c_uchar, len: c_int, copy: *mut c_int) -> *mut SSL_SESSION,
> {
    border(None, || match ours(ctx) {
        Some(context) => Some(context.get_callback.get()),
        None if ctx.is_null() => None,
        // SAFETY: by the caller's promise.
        None => Some(unsafe { (table_of(ctx).SSL_CTX_sess_get_get_cb)(ctx) }),
    })
}
