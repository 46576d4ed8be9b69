//! SSL_CTX_add_session(3), SSL_CTX_flush_sessions(3), SSL_CTX_sessions(3): the internal cache by hand

use super::{border, ours};
use crate::libssl::types::*;
use crate::libssl::{table_of, Ctx, Session};
use libc::{c_int, c_long, time_t};
use std::ptr::null_mut;

/// Puts `session` into the internal cache, which takes one reference (ADD1). Another object with its id leaves (ADD2).
/// Works under NO_INTERNAL_STORE and with caching off, too (ADD4).
///
/// Returns 1, or 0 if this very object is cached already (ADD3), if it has no id, or if there is no memory for it.
///
/// # Safety
/// `ctx` and `session` are NULL or live.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_add_session(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) -> c_int {
    border(0, || {
        // SAFETY: by the caller's promise.
        let borrowed = unsafe { Session::borrow(session)? };
        match ours(ctx) {
            Some(context) => Some(context.add(&borrowed).into()),
            None if ctx.is_null() => None,
            // SAFETY: by the caller's promise.
            None => Some(unsafe { (table_of(ctx).SSL_CTX_add_session)(ctx, session) }),
        }
    })
}

/// Removes the session with the id of `session` from the internal cache, which frees its reference, marks it and
/// `session` not resumable and calls remove_cb (ADD5, ADD6, CB5, CB6).
///
/// Returns 1, or 0 if no such session is cached; NULL and a session without an id are not.
///
/// # Safety
/// `ctx` and `session` are NULL or live.
// One item for all machines, so that the header declares the function once.
#[cfg_attr(any(target_arch = "x86_64", target_arch = "aarch64"), unsafe(naked))]
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_remove_session(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) -> c_int {
    // The address that the call returns to becomes the third argument.
    #[cfg(target_arch = "x86_64")]
    std::arch::naked_asm!("mov rdx, [rsp]", "jmp {}", sym remove_session);
    #[cfg(target_arch = "aarch64")]
    std::arch::naked_asm!("mov x2, x30", "b {}", sym remove_session);
    // Elsewhere nothing tells who calls: the program is taken to.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    // SAFETY: by the caller's promise.
    unsafe {
        remove_session(ctx, session, 0)
    }
}

unsafe extern "C-unwind" fn remove_session(ctx: *mut SSL_CTX, session: *mut SSL_SESSION, caller: usize) -> c_int {
    border(0, || {
        // SAFETY: by the caller's promise.
        let borrowed = unsafe { Session::borrow(session)? };
        match ours(ctx) {
            Some(context) => Some(context.remove(&borrowed, caller).into()),
            None if ctx.is_null() => None,
            // SAFETY: by the caller's promise.
            None => Some(unsafe { (table_of(ctx).SSL_CTX_remove_session)(ctx, session) }),
        }
    })
}

/// Removes every session that has expired at `tm`, in seconds since the epoch, all of them for 0 (FLUSH1). Each is
/// marked not resumable, remove_cb is called for it, and the cache's reference is freed.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_flush_sessions(ctx: *mut SSL_CTX, tm: c_long) {
    border((), || {
        // SAFETY: by the caller's promise.
        unsafe {
            if !flush(ctx, tm) {
                (table_of(ctx).SSL_CTX_flush_sessions)(ctx, tm);
            }
        }
        Some(())
    })
}

/// SSL_CTX_flush_sessions with a time_t, for every libssl (OpenSSL has it since 3.4).
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_flush_sessions_ex(ctx: *mut SSL_CTX, tm: time_t) {
    border((), || {
        // SAFETY: by the caller's promise.
        unsafe {
            if !flush(ctx, tm) {
                match table_of(ctx).SSL_CTX_flush_sessions_ex {
                    Some(flush_ex) => flush_ex(ctx, tm),
                    None => (table_of(ctx).SSL_CTX_flush_sessions)(ctx, tm as c_long),
                }
            }
        }
        Some(())
    })
}

/// Whether the flush was ours to do or there is nothing to do.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
unsafe fn flush(ctx: *mut SSL_CTX, time: time_t) -> bool {
    let Some(context) = ours(ctx) else { return ctx.is_null() };
    // SAFETY: by the caller's promise.
    match unsafe { Ctx::new(ctx) } {
        // Where libssl's own calls arrive here, this is how SSL_CTX_free announces the end.
        Some(ctx) if time == 0 && !context.is_ending() && ctx.is_ending() => {
            context.end();
            ctx.flush_own();
        }
        _ => context.flush(time),
    }
    true
}

/// The sessions in the internal cache as an LHASH. It is a picture of the cache as it is now: it does not change with the
/// cache, and is good until the next call for this `ctx` or the end of `ctx`.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn SSL_CTX_sessions(ctx: *mut SSL_CTX) -> *mut lhash_st_SSL_SESSION {
    border(null_mut(), || match ours(ctx) {
        Some(context) => Some(context.table().cast()),
        None if ctx.is_null() => None,
        // SAFETY: by the caller's promise.
        None => Some(unsafe { (table_of(ctx).SSL_CTX_sessions)(ctx) }.cast()),
    })
}
