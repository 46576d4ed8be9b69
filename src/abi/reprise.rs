//! Reprise's own functions. Errors are on OpenSSL's error queue, from the library "reprise".

use super::border;
use crate::cache::redis::url::without_password;
use crate::config::{Internal, Semantics, Tickets, Unclean, LONGEST_AGE};
use crate::context::counters::Count;
use crate::context::{registry, Context};
use crate::hooks::GENERATE;
use crate::libssl::error::{raise, raise_in, raise_with, Error};
use crate::libssl::table_of;
use crate::libssl::types::SSL_CTX;
use libc::{c_char, c_int, size_t};
use std::ffi::CStr;

/// Do what the manual pages promise.
pub const REPRISE_SEMANTICS_DOCUMENTED: c_int = 0;
const _: () = assert!(REPRISE_SEMANTICS_DOCUMENTED == Semantics::Documented as c_int);
/// Do what the loaded libssl does where it differs from the manual pages.
pub const REPRISE_SEMANTICS_STOCK: c_int = 1;
const _: () = assert!(REPRISE_SEMANTICS_STOCK == Semantics::Stock as c_int);

/// Tickets as the program asks libssl for them.
pub const REPRISE_TICKETS_AS_IS: c_int = 0;
const _: () = assert!(REPRISE_TICKETS_AS_IS == Tickets::AsIs as c_int);
/// Only tickets that name a session in the cache.
pub const REPRISE_TICKETS_STATEFUL: c_int = 1;
const _: () = assert!(REPRISE_TICKETS_STATEFUL == Tickets::Stateful as c_int);

/// The internal cache as the program's session cache mode has it.
pub const REPRISE_INTERNAL_AS_IS: c_int = 0;
const _: () = assert!(REPRISE_INTERNAL_AS_IS == Internal::AsIs as c_int);
/// Servers use it even if that switches it off.
pub const REPRISE_INTERNAL_ALWAYS: c_int = 1;
const _: () = assert!(REPRISE_INTERNAL_ALWAYS == Internal::Always as c_int);

/// A connection that ends without close_notify costs the session, as libssl has it.
pub const REPRISE_UNCLEAN_DROP: c_int = 0;
const _: () = assert!(REPRISE_UNCLEAN_DROP == Unclean::Drop as c_int);
/// It does not; a fatal alert still does.
pub const REPRISE_UNCLEAN_KEEP: c_int = 1;
const _: () = assert!(REPRISE_UNCLEAN_KEEP == Unclean::Keep as c_int);

/// The version of the struct that follows.
pub const REPRISE_STATS_VERSION: u32 = 1;

/// What happened in the cache of an SSL_CTX since it was made. Later versions only add fields at the end.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct reprise_stats {
    /// REPRISE_STATS_VERSION of the library.
    pub version: u32,
    /// The bytes that the library filled in.
    pub size: u32,
    /// Sessions in the cache now.
    pub sessions: u64,
    /// Sessions that entered the cache.
    pub stored: u64,
    /// Left because another object with the same id came.
    pub replaced: u64,
    /// Left because the cache was full.
    pub evicted: u64,
    /// Cleared on their own after they had expired.
    pub expired: u64,
    /// Left through SSL_CTX_flush_sessions.
    pub flushed: u64,
    /// Left through SSL_CTX_remove_session, called by the program or by libssl.
    pub removed: u64,
    /// Left because new_cb returned 0.
    pub rejected: u64,
    /// Left to the one connection that may use them for early data.
    pub taken: u64,
    /// Removals of sessions that were not cached.
    pub condemned: u64,
    /// A server asked the cache for a session and had it.
    pub hits: u64,
    /// A server asked the cache for a session that was not there.
    pub misses: u64,
    /// A server asked for a session that is there but marked not resumable.
    pub unusable: u64,
    /// get_cb had the session.
    pub external_hits: u64,
    /// get_cb had none.
    pub external_misses: u64,
    /// get_cb returned one that could not be used: another id or version, incomplete, marked not resumable.
    pub external_refused: u64,
    /// Tickets for early data that were shown again after they had been accepted.
    pub replays: u64,
    /// Sessions that libssl negotiated and handed to the cache.
    pub negotiated: u64,
    /// Sessions that could not be stored for want of memory.
    pub store_errors: u64,
}

/// The version of the library, "MAJOR.MINOR.PATCH". Static.
#[no_mangle]
pub extern "C" fn reprise_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

fn ours(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    let context = registry::find(ctx);
    if context.is_none() {
        // SAFETY: every function here requires that it is NULL or alive.
        let table = unsafe { table_of(ctx) };
        raise_in(table, if ctx.is_null() { Error::NullArgument } else { Error::NotTakenOver });
    }
    context
}

/// Chooses REPRISE_SEMANTICS_DOCUMENTED or REPRISE_SEMANTICS_STOCK for one SSL_CTX, best before it is used; the
/// environment variable REPRISE_SEMANTICS chooses for all. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_semantics(ctx: *mut SSL_CTX, semantics: c_int) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        context.set_semantics(known(Semantics::from_number(semantics), Error::UnknownSemantics)?);
        Some(1)
    })
}

/// The semantics of an SSL_CTX, or -1 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_get_semantics(ctx: *mut SSL_CTX) -> c_int {
    border(-1, || Some(ours(ctx)?.semantics() as c_int))
}

/// Chooses where the sessions of one SSL_CTX are cached, best before it is used: "memory:", in this process, or
/// "shm:NAME?size=64M", in memory that all processes of this user share which name it. The environment variable
/// REPRISE_CACHE chooses for all contexts. What is cached in this process moves along. Returns 1, or 0 with an
/// error on the queue, and then nothing has changed.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `url` is NULL or a string.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_cache(ctx: *mut SSL_CTX, url: *const c_char) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        if url.is_null() {
            raise(Error::NullArgument);
            return None;
        }
        // SAFETY: by the caller's promise.
        let url = unsafe { CStr::from_ptr(url) }.to_string_lossy();
        match url.parse().and_then(|place| context.set_cache(&place, GENERATE)) {
            Ok(()) => Some(1),
            Err(error) => {
                raise_with(Error::Cache, &format!("{}: {error}", without_password(&url)));
                None
            }
        }
    })
}

/// Chooses REPRISE_TICKETS_AS_IS or REPRISE_TICKETS_STATEFUL for the servers of one SSL_CTX. Stateful tickets only name a
/// session in the cache: it can be revoked, and whoever shares the cache knows them without ticket keys. The environment
/// variable REPRISE_TICKETS chooses for all contexts. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_tickets(ctx: *mut SSL_CTX, tickets: c_int) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        context.set_tickets(known(Tickets::from_number(tickets), Error::UnknownTickets)?);
        Some(1)
    })
}

/// Chooses REPRISE_INTERNAL_AS_IS or REPRISE_INTERNAL_ALWAYS for the servers of one SSL_CTX: whether the internal cache is
/// used even under SSL_SESS_CACHE_OFF and SSL_SESS_CACHE_NO_INTERNAL. The environment variable REPRISE_INTERNAL chooses
/// for all contexts, for programs that cannot be told otherwise. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_internal(ctx: *mut SSL_CTX, internal: c_int) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        context.set_internal(known(Internal::from_number(internal), Error::UnknownInternal)?);
        Some(1)
    })
}

/// Chooses REPRISE_UNCLEAN_DROP or REPRISE_UNCLEAN_KEEP for the servers of one SSL_CTX: whether a session stays whose
/// connection ends without close_notify, as most of the web's do. The environment variable REPRISE_UNCLEAN chooses for
/// all contexts. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_unclean(ctx: *mut SSL_CTX, unclean: c_int) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        context.set_unclean(known(Unclean::from_number(unclean), Error::UnknownUnclean)?);
        Some(1)
    })
}

/// Sets the most seconds for which a session of an SSL_CTX is resumed after its full handshake, however often it was renewed;
/// 0 for no limit. The environment variable REPRISE_MAX_AGE sets it for all contexts. Returns 1, or 0 with an error on the
/// queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_set_max_age(ctx: *mut SSL_CTX, seconds: u32) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        context.set_max_age(known(Some(seconds).filter(|&seconds| seconds <= LONGEST_AGE), Error::WrongAge)?);
        Some(1)
    })
}

fn known<T>(choice: Option<T>, error: Error) -> Option<T> {
    if choice.is_none() {
        raise(error);
    }
    choice
}

/// Fills in `*stats`, which has `size` bytes: pass sizeof(reprise_stats). A program made for an older version gets the
/// fields it knows. Returns 1, or 0 with an error on the queue.
///
/// # Safety
/// `ctx` is NULL or a live SSL_CTX, `stats` is NULL or `size` writable bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn reprise_ctx_stats(ctx: *mut SSL_CTX, stats: *mut reprise_stats, size: size_t) -> c_int {
    border(0, || {
        let context = ours(ctx)?;
        if stats.is_null() {
            raise(Error::NullArgument);
            return None;
        }
        if size < std::mem::offset_of!(reprise_stats, sessions) || !size.is_multiple_of(8) {
            raise(Error::WrongSize);
            return None;
        }
        let filled = size.min(size_of::<reprise_stats>());
        let all = collect(context, filled as u32);
        // SAFETY: both are at least `filled` bytes, by the caller's promise and by the minimum; bytes have no alignment.
        unsafe { std::ptr::copy_nonoverlapping((&raw const all).cast::<u8>(), stats.cast::<u8>(), filled) };
        Some(1)
    })
}

fn collect(context: &Context, size: u32) -> reprise_stats {
    reprise_stats {
        version: REPRISE_STATS_VERSION,
        size,
        sessions: context.number() as u64,
        stored: context.counter(Count::Stored),
        replaced: context.counter(Count::Replaced),
        evicted: context.counter(Count::Evicted),
        expired: context.counter(Count::Expired),
        flushed: context.counter(Count::Flushed),
        removed: context.counter(Count::Removed),
        rejected: context.counter(Count::Rejected),
        taken: context.counter(Count::Taken),
        condemned: context.counter(Count::Condemned),
        hits: context.counter(Count::Hits),
        misses: context.counter(Count::Misses),
        unusable: context.counter(Count::Unusable),
        external_hits: context.counter(Count::ExternalHits),
        external_misses: context.counter(Count::ExternalMisses),
        external_refused: context.counter(Count::ExternalRefused),
        replays: context.counter(Count::Replays),
        negotiated: context.counter(Count::Negotiated),
        store_errors: context.counter(Count::StoreErrors),
    }
}
