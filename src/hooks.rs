//! The functions that libssl calls on a context that was taken over: a session was negotiated, is wanted, or is condemned,
//! and where the cache issues ids of its own, one is needed.

use crate::abi::border;
use crate::cache::LONGEST;
use crate::cancel;
use crate::context::{registry, Context};
use crate::libssl::types::{Generator, SSL, SSL_CTX, SSL_SESSION};
use crate::libssl::{context, Connection, Hooks, Session};
use libc::{c_int, c_uchar, c_uint};
use std::ptr::null_mut;

pub const HOOKS: Hooks = Hooks { new: Some(new), remove: Some(remove), get: Some(get) };
/// For a context whose cache issues the ids.
pub const GENERATE: Generator = Some(generate);

/// A session was negotiated, and one reference to it comes along: 1 when the program keeps it.
unsafe extern "C-unwind" fn new(ssl: *mut SSL, session: *mut SSL_SESSION) -> c_int {
    border(0, || {
        // SAFETY: libssl passes a live connection and a live session, whose reference it frees if we return 0.
        let (connection, session) = unsafe { (Connection::borrow(ssl)?, Session::borrow(session)?) };
        let context = Context::of(&connection)?;
        let keeps = context.negotiated(&connection, &session);
        context.lost(HOOKS, 0); // QUIC makes a server's connections without SSL_new
        Some(keeps.into())
    })
}

/// A client proposed an id. What is returned carries one reference for libssl (`*copy` is 0).
unsafe extern "C-unwind" fn get(
    ssl: *mut SSL,
    id: *const c_uchar,
    length: c_int,
    copy: *mut c_int,
) -> *mut SSL_SESSION {
    border(null_mut(), || {
        // SAFETY: libssl passes a live connection, an id of `length` bytes and a place for `copy`.
        let (connection, id) = unsafe {
            *copy = 0;
            (Connection::borrow(ssl)?, std::slice::from_raw_parts(id, usize::try_from(length).ok()?))
        };
        let context = Context::of(&connection)?;
        // Before the context goes back to libssl: what is cached is found once more.
        let found = context.lookup(&connection, id);
        context.lost(HOOKS, found.is_some().into());
        Some(found?.into_ptr())
    })
}

/// Libssl has marked a session not resumable, or frees the context: then it gives up the sentinel first.
unsafe extern "C-unwind" fn remove(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) {
    if context::is_inside(ctx) {
        return;
    }
    border((), || {
        let context = registry::find(ctx)?;
        // SAFETY: libssl passes a live session.
        let session = unsafe { Session::borrow(session)? };
        if context.is_sentinel(&session) {
            context.sentinel_left();
        } else if !session.is_placeholder() {
            context.condemned(&session);
        }
        Some(())
    });
}

/// A server's new session needs an id (SSL_CTX_set_generate_session_id(3)): 1 when it has one.
unsafe extern "C-unwind" fn generate(ssl: *mut SSL, id: *mut c_uchar, length: *mut c_uint) -> c_int {
    border(0, || {
        // SAFETY: libssl passes a live connection, and room for as many bytes as `length` says.
        let (connection, room) = unsafe { (Connection::borrow(ssl)?, *length) };
        // A connection keeps this function when its context has gone back to libssl or to another cache.
        let issued = Context::of(&connection).and_then(Context::issue).or_else(random_id)?;
        if (room as usize) < issued.len() {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(issued.as_ptr(), id, issued.len());
            *length = issued.len() as c_uint;
        }
        Some(1)
    })
}

fn random_id() -> Option<[u8; LONGEST]> {
    let _off = cancel::off();
    let mut id = [0; LONGEST];
    getrandom::fill(&mut id).ok().map(|()| id)
}
