//! SSL_CTX_new(3), SSL_new(3): where the takeover and the connections begin

use super::{border, ours};
use crate::context::Context;
use crate::hooks::HOOKS;
use crate::libssl::context::{self, Make};
use crate::libssl::types::*;
use crate::libssl::{prepare_marker, table, Ctx};
use libc::c_char;
use std::ptr::null_mut;

/// Makes an SSL_CTX whose session cache Reprise serves. NULL on failure, with libssl's error on the queue.
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C" fn SSL_CTX_new(method: *const SSL_METHOD) -> *mut SSL_CTX {
    // SAFETY: by the caller's promise.
    border(null_mut(), || unsafe { Some(made(Make::Plain(method))) })
}

/// The same in a library context and with a property query (OpenSSL has it since 3.0).
///
/// # Safety
/// As libssl requires.
#[no_mangle]
pub unsafe extern "C" fn SSL_CTX_new_ex(
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
pub unsafe extern "C" fn SSL_new(ctx: *mut SSL_CTX) -> *mut SSL {
    border((), || {
        let context = ours(ctx)?;
        if !context.lost(HOOKS) {
            context.connection();
        }
        Some(())
    });
    // SAFETY: by the caller's promise; libssl allows NULL.
    border(null_mut(), || Some(unsafe { (table().SSL_new)(ctx) }))
}

/// # Safety
/// `make` holds what libssl requires.
unsafe fn made(make: Make) -> *mut SSL_CTX {
    let nested = context::is_creating(); // Debian's SSL_CTX_new calls SSL_CTX_new_ex: the outer call takes over
    let made = context::create(make);
    if !nested && table().missing.is_none() {
        // SAFETY: it was just made, or is NULL.
        if let Some(ctx) = unsafe { Ctx::new(made) } {
            prepare_marker(make);
            Context::take_over(ctx, HOOKS);
        }
    }
    made
}
