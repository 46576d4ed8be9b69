//! Errors of Reprise's own functions on OpenSSL's error queue, under the library name "reprise".

use super::table::Table;
use super::{table, types::ERR_STRING_DATA};
use libc::{c_int, c_ulong};
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// What can be wrong, in words a person can act on.
#[derive(Clone, Copy)]
pub enum Error {
    NullArgument = 100,
    NotTakenOver,
    UnknownSemantics,
    WrongSize,
    Cache,
    UnknownTickets,
    UnknownUnclean,
    UnknownInternal,
    WrongAge,
}

const REASONS: [(Error, &std::ffi::CStr); 9] = [
    (Error::NullArgument, c"an argument is NULL"),
    (Error::NotTakenOver, c"this SSL_CTX is not served by Reprise: it was made before libreprise was loaded or with a second libssl, or libreprise stands behind libssl: link -lreprise before -lssl"),
    (Error::UnknownSemantics, c"unknown semantics: pass REPRISE_SEMANTICS_DOCUMENTED or REPRISE_SEMANTICS_STOCK"),
    (Error::WrongSize, c"the size is not that of a reprise_stats of any version: pass sizeof(reprise_stats)"),
    (Error::Cache, c"the cache cannot be used"),
    (Error::UnknownTickets, c"unknown policy: pass REPRISE_TICKETS_AS_IS or REPRISE_TICKETS_STATEFUL"),
    (Error::UnknownUnclean, c"unknown policy: pass REPRISE_UNCLEAN_DROP or REPRISE_UNCLEAN_KEEP"),
    (Error::UnknownInternal, c"unknown policy: pass REPRISE_INTERNAL_AS_IS or REPRISE_INTERNAL_ALWAYS"),
    (Error::WrongAge, c"the maximum age is longer than ten years: pass seconds, or 0 for no limit"),
];

/// Puts `error` on this thread's error queue.
pub fn raise(error: Error) {
    raise_in(table(), error);
}

/// The same, on the queue of a libcrypto that need not be that of the libssl that is served.
pub fn raise_in(table: &'static Table, error: Error) {
    let library = library(table);
    // SAFETY: the strings are static; without a format ERR_vset_error reads no arguments.
    unsafe {
        if let (Some(new), Some(debug), Some(set)) = (table.ERR_new, table.ERR_set_debug, table.ERR_vset_error) {
            new();
            debug(c"reprise".as_ptr(), 0, c"".as_ptr());
            set(library, error as c_int, std::ptr::null(), null_mut());
        } else if let Some(put) = table.ERR_put_error {
            put(library, 0, error as c_int, c"reprise".as_ptr(), 0);
        }
    }
}

/// The same with what is to be said of this very case.
pub fn raise_with(error: Error, details: &str) {
    raise(error);
    let table = table();
    // SAFETY: OpenSSL frees the copy, which is a string of its own allocator, with the error.
    unsafe {
        if let (Some(set), Some(copy), Ok(text)) =
            (table.ERR_set_error_data, table.CRYPTO_strdup, CString::new(details))
        {
            const OWNED_TEXT: c_int = 1 | 2; // ERR_TXT_MALLOCED | ERR_TXT_STRING
            set(copy(text.as_ptr(), c"reprise".as_ptr(), 0), OWNED_TEXT);
        }
    }
}

/// The number of our library, its name and reasons registered.
fn library(table: &'static Table) -> c_int {
    /// So that a leak checker finds nothing lost.
    #[used]
    static KEPT: AtomicPtr<ERR_STRING_DATA> = AtomicPtr::new(null_mut());
    let library = table.errors.get_or_init(|| {
        // SAFETY: ERR_load_strings keeps the array, which is never freed, and writes the library's number into it.
        unsafe {
            let library = (table.ERR_get_next_error_library)();
            let entry = |error, string: *const libc::c_char| ERR_STRING_DATA { error, string };
            let mut strings = vec![entry(0, c"reprise".as_ptr())];
            strings.extend(REASONS.iter().map(|(error, text)| entry(*error as c_ulong, text.as_ptr())));
            // OpenSSL recognizes the entry of the library's name by its packed number alone, and the end by zeros.
            strings[0].error = pack(table, library);
            strings.push(entry(0, std::ptr::null()));
            let strings = strings.leak().as_mut_ptr();
            KEPT.store(strings, Relaxed);
            (table.ERR_load_strings)(library, strings);
            NonZeroUsize::new(library as usize).unwrap_or(NonZeroUsize::MIN)
        }
    });
    library.get() as c_int
}

/// ERR_PACK(library, 0, 0), which 3.0 changed. ERR_load_strings only adds the same bits again.
fn pack(table: &Table, library: c_int) -> c_ulong {
    let shift = if table.ERR_new.is_some() { 23 } else { 24 };
    (library as c_ulong & 0xff) << shift
}
