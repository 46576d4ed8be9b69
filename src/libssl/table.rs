//! The functions of the real libssl and libcrypto, found at run time in the libssl that the program uses.
//!
//! Found at the first call, not when the program starts: before `main`, a libssl that comes with a plugin (Apache's
//! mod_ssl, CPython's _ssl) is not there yet. A function that is not there answers with its documented failure value,
//! so whoever passes a call through need not ask.
//!
//! **Several libssl in one process** (a program with one, a plugin that brings another along): our exports have no symbol
//! version, so the calls to all of them arrive here. One is served: the first that an SSL_CTX is made with. Calls for
//! the others go on to their own functions, as if we were not there. Whose an object is, it tells itself. An SSL_METHOD
//! is static data of its libssl; an SSL_CTX and an SSL point to theirs in one of their first three words, from 1.1.1 to
//! 4.0. A session points to its cipher, and one of 1.1.1 is another struct. (Who calls does not tell: a plugin's last
//! call before it returns comes from the plugin's caller.) What says nothing is an object that is just being made, which
//! belongs to the libssl that makes it, and a session that was never negotiated, in a process with both 3 and 4: there the
//! caller decides after all, by the libssl that it is linked with. With one libssl nothing of this is asked.
//!
//! **A libssl ahead of us** (linked before -lreprise, or there when a program loads Reprise late) is reached by some
//! calls or all without our seeing them. It is not served: better no context than half of one.
//!
//! What remains: a libssl that is loaded after the first SSL_CTX was made becomes known with its own first SSL_CTX.
//! Sessions that are made and dated with it before that are taken for the first one's.
#![allow(non_snake_case)]

use super::types::*;
use crate::log;
use libc::{c_char, c_int, c_long, c_uchar, c_uint, c_ulong, c_void, size_t, time_t};
use once_cell::race::{OnceBox, OnceNonZeroUsize};
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Libraries a process may have loaded, the newest last; the first that is there is used.
const SONAMES: [&CStr; 3] = [c"libssl.so.3", c"libssl.so.1.1", c"libssl.so.4"];

macro_rules! functions {
    (required { $($(#[$attribute:meta])* $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty = $failure:expr)?;)* }
     optional { $($optional:ident($($o_argument:ident: $o_kind:ty),*) $(-> $o_result:ty)?;)* }) => {
        pub struct Table {
            $(pub $name: unsafe extern "C-unwind" fn($($argument: $kind),*) $(-> $result)?,)*
            $(pub $optional: Option<unsafe extern "C-unwind" fn($($o_argument: $o_kind),*) $(-> $o_result)?>,)*
            /// The first function that Reprise needs and did not find.
            pub missing: Option<&'static str>,
            /// The number that its libcrypto gave to our errors.
            pub errors: OnceNonZeroUsize,
        }

        impl Table {
            fn load(find: impl Fn(&CStr) -> *mut c_void) -> Table {
                let mut missing = None;
                Table {
                    $($name: {
                        unsafe extern "C-unwind" fn absent($(_: $kind),*) $(-> $result)? { $($failure)? }
                        let found = find(c_name(concat!(stringify!($name), "\0")));
                        if found.is_null() {
                            missing = missing.or(Some(stringify!($name)));
                            absent
                        } else {
                            // SAFETY: OpenSSL's function of this name has had this prototype since 1.1.1.
                            unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($kind),*) $(-> $result)?>(found) }
                        }
                    },)*
                    $($optional: {
                        let found = find(c_name(concat!(stringify!($optional), "\0")));
                        // SAFETY: as above, and a null pointer is `None`.
                        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C-unwind" fn($($o_kind),*) $(-> $o_result)?>>(found) }
                    },)*
                    missing,
                    errors: OnceNonZeroUsize::new(),
                }
            }
        }
    };
}

functions! {
    required {
        SSL_CTX_new(method: *const SSL_METHOD) -> *mut SSL_CTX = ptr::null_mut();
        SSL_CTX_up_ref(ctx: *mut SSL_CTX) -> c_int = 0;
        SSL_CTX_free(ctx: *mut SSL_CTX);
        SSL_CTX_ctrl(ctx: *mut SSL_CTX, command: c_int, number: c_long, pointer: *mut c_void) -> c_long = 0;
        SSL_CTX_add_session(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) -> c_int = 0;
        SSL_CTX_remove_session(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) -> c_int = 0;
        SSL_CTX_flush_sessions(ctx: *mut SSL_CTX, time: c_long);
        SSL_CTX_sessions(ctx: *mut SSL_CTX) -> *mut c_void = ptr::null_mut();
        SSL_CTX_sess_set_new_cb(ctx: *mut SSL_CTX, callback: NewCallback);
        SSL_CTX_sess_set_remove_cb(ctx: *mut SSL_CTX, callback: RemoveCallback);
        SSL_CTX_sess_set_get_cb(ctx: *mut SSL_CTX, callback: GetCallback);
        SSL_CTX_sess_get_new_cb(ctx: *mut SSL_CTX) -> NewCallback = None;
        SSL_CTX_sess_get_remove_cb(ctx: *mut SSL_CTX) -> RemoveCallback = None;
        SSL_CTX_sess_get_get_cb(ctx: *mut SSL_CTX) -> GetCallback = None;
        SSL_CTX_set_generate_session_id(ctx: *mut SSL_CTX, generator: Generator) -> c_int = 0;
        SSL_CTX_get_options(ctx: *const SSL_CTX) -> u64 = 0;
        SSL_CTX_set_session_id_context(ctx: *mut SSL_CTX, id_context: *const c_uchar, length: c_uint) -> c_int = 0;
        SSL_CTX_get0_certificate(ctx: *const SSL_CTX) -> *mut X509 = ptr::null_mut();
        SSL_CTX_get_verify_mode(ctx: *const SSL_CTX) -> c_int = 0;
        SSL_CTX_get_verify_callback(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_CTX_set_cert_verify_callback(ctx: *mut SSL_CTX, callback: CertVerifyCallback, argument: *mut c_void);
        SSL_CTX_get0_param(ctx: *mut SSL_CTX) -> *mut c_void = ptr::null_mut();
        SSL_CTX_get_cert_store(ctx: *const SSL_CTX) -> *mut c_void = ptr::null_mut();
        SSL_CTX_get_ciphers(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_CTX_get_security_level(ctx: *const SSL_CTX) -> c_int = 0;
        SSL_CIPHER_get_id(cipher: *const SSL_CIPHER) -> u32 = 0;
        SSL_CTX_get_client_CA_list(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_CTX_get0_CA_list(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_set_generate_session_id(ssl: *mut SSL, generator: Generator) -> c_int = 0;
        SSL_new(ctx: *mut SSL_CTX) -> *mut SSL = ptr::null_mut();
        SSL_free(ssl: *mut SSL);
        SSL_clear(ssl: *mut SSL) -> c_int = 0;
        SSL_connect(ssl: *mut SSL) -> c_int = -1;
        SSL_set_connect_state(ssl: *mut SSL);
        SSL_ctrl(ssl: *mut SSL, command: c_int, number: c_long, pointer: *mut c_void) -> c_long = 0;
        SSL_get_verify_mode(ssl: *const SSL) -> c_int = 0;
        SSL_get_num_tickets(ssl: *const SSL) -> size_t = 1;
        SSL_get_servername(ssl: *const SSL, kind: c_int) -> *const c_char = ptr::null();
        SSL_client_hello_get0_ext(ssl: *mut SSL, kind: c_uint, out: *mut *const c_uchar, length: *mut size_t) -> c_int = 0;
        SSL_get_verify_callback(ssl: *const SSL) -> *const c_void = ptr::null();
        SSL_get0_param(ssl: *mut SSL) -> *mut c_void = ptr::null_mut();
        SSL_get_security_level(ssl: *const SSL) -> c_int = 0;
        SSL_get_psk_identity(ssl: *const SSL) -> *const c_char = ptr::null();
        SSL_get_pending_cipher(ssl: *const SSL) -> *const SSL_CIPHER = ptr::null();
        SSL_CIPHER_get_handshake_digest(cipher: *const SSL_CIPHER) -> *const c_void = ptr::null();
        SSL_CTX_callback_ctrl(ctx: *mut SSL_CTX, command: c_int, callback: Callback) -> c_long = 0;
        SSL_CTX_set_cert_cb(ctx: *mut SSL_CTX, callback: CertCallback, argument: *mut c_void);
        SSL_set_cert_cb(ssl: *mut SSL, callback: CertCallback, argument: *mut c_void);
        SSL_get_ex_data_X509_STORE_CTX_idx() -> c_int = -1;
        X509_STORE_CTX_set_ex_data(ctx: *mut X509_STORE_CTX, index: c_int, data: *mut c_void) -> c_int = 0;
        SSL_get_peer_cert_chain(ssl: *const SSL) -> *const c_void = ptr::null();
        SSL_get_certificate(ssl: *const SSL) -> *mut X509 = ptr::null_mut();
        SSL_set_options(ssl: *mut SSL, options: u64) -> u64 = 0;
        SSL_clear_options(ssl: *mut SSL, options: u64) -> u64 = 0;
        SSL_has_matching_session_id(ssl: *const SSL, id: *const c_uchar, length: c_uint) -> c_int = 0;
        SSL_get_session(ssl: *const SSL) -> *mut SSL_SESSION = ptr::null_mut();
        SSL_get1_session(ssl: *mut SSL) -> *mut SSL_SESSION = ptr::null_mut();
        SSL_get_SSL_CTX(ssl: *const SSL) -> *mut SSL_CTX = ptr::null_mut();
        SSL_set_SSL_CTX(ssl: *mut SSL, ctx: *mut SSL_CTX) -> *mut SSL_CTX = ptr::null_mut();
        SSL_get_options(ssl: *const SSL) -> u64 = 0;
        SSL_get_max_early_data(ssl: *const SSL) -> u32 = 0;
        SSL_get_ex_data(ssl: *const SSL, index: c_int) -> *mut c_void = ptr::null_mut();
        SSL_set_ex_data(ssl: *mut SSL, index: c_int, data: *mut c_void) -> c_int = 0;
        SSL_session_reused(ssl: *const SSL) -> c_int = 0;
        SSL_is_server(ssl: *const SSL) -> c_int = 0;
        SSL_version(ssl: *const SSL) -> c_int = 0;
        SSL_SESSION_new() -> *mut SSL_SESSION = ptr::null_mut();
        SSL_SESSION_up_ref(session: *mut SSL_SESSION) -> c_int = 0;
        SSL_SESSION_free(session: *mut SSL_SESSION);
        SSL_SESSION_get_id(session: *const SSL_SESSION, length: *mut c_uint) -> *const c_uchar = ptr::null();
        SSL_SESSION_set1_id(session: *mut SSL_SESSION, id: *const c_uchar, length: c_uint) -> c_int = 0;
        SSL_SESSION_get_protocol_version(session: *const SSL_SESSION) -> c_int = 0;
        SSL_SESSION_set_protocol_version(session: *mut SSL_SESSION, version: c_int) -> c_int = 0;
        SSL_SESSION_get_time(session: *const SSL_SESSION) -> c_long = 0;
        SSL_SESSION_get_timeout(session: *const SSL_SESSION) -> c_long = 0;
        SSL_SESSION_set_time(session: *mut SSL_SESSION, time: c_long) -> c_long = 0;
        SSL_SESSION_set_timeout(session: *mut SSL_SESSION, timeout: c_long) -> c_long = 0;
        SSL_SESSION_is_resumable(session: *const SSL_SESSION) -> c_int = 0;
        SSL_SESSION_get0_cipher(session: *const SSL_SESSION) -> *const SSL_CIPHER = ptr::null();
        SSL_SESSION_get_master_key(session: *const SSL_SESSION, out: *mut c_uchar, size: size_t) -> size_t = 0;
        SSL_SESSION_get_max_early_data(session: *const SSL_SESSION) -> u32 = 0;
        SSL_SESSION_set1_ticket_appdata(session: *mut SSL_SESSION, data: *const c_void, length: size_t) -> c_int = 0;
        SSL_SESSION_get0_ticket_appdata(session: *mut SSL_SESSION, data: *mut *mut c_void, length: *mut size_t) -> c_int = 0;
        SSL_SESSION_has_ticket(session: *const SSL_SESSION) -> c_int = 0;
        SSL_SESSION_get0_peer(session: *mut SSL_SESSION) -> *mut X509 = ptr::null_mut();
        SSL_SESSION_get_ex_data(session: *const SSL_SESSION, index: c_int) -> *mut c_void = ptr::null_mut();
        i2d_SSL_SESSION(session: *const SSL_SESSION, out: *mut *mut c_uchar) -> c_int = 0;
        d2i_SSL_SESSION(into: *mut *mut SSL_SESSION, from: *mut *const c_uchar, length: c_long) -> *mut SSL_SESSION = ptr::null_mut();
        TLS_method() -> *const SSL_METHOD = ptr::null();
        CRYPTO_get_ex_new_index(class: c_int, argl: c_long, argp: *mut c_void, new: *mut c_void, dup: *mut c_void, free: *mut c_void) -> c_int = -1;
        OPENSSL_LH_new(hash: Option<Hash>, compare: Option<Compare>) -> *mut c_void = ptr::null_mut();
        OPENSSL_LH_insert(table: *mut c_void, data: *mut c_void) -> *mut c_void = ptr::null_mut();
        OPENSSL_LH_free(table: *mut c_void);
        OPENSSL_sk_num(stack: *const c_void) -> c_int = -1;
        OPENSSL_sk_value(stack: *const c_void, place: c_int) -> *mut c_void = ptr::null_mut();
        X509_up_ref(certificate: *mut X509) -> c_int = 0;
        X509_free(certificate: *mut X509);
        X509_set_ex_data(certificate: *mut X509, index: c_int, data: *mut c_void) -> c_int = 0;
        X509_get_ex_data(certificate: *const X509, index: c_int) -> *mut c_void = ptr::null_mut();
        X509_CRL_up_ref(list: *mut c_void) -> c_int = 0;
        X509_CRL_free(list: *mut c_void);
        X509_CRL_digest(list: *const c_void, kind: *const c_void, digest: *mut c_uchar, length: *mut c_uint) -> c_int = 0;
        X509_OBJECT_get_type(object: *const c_void) -> c_int = 0;
        X509_OBJECT_get0_X509(object: *const c_void) -> *mut X509 = ptr::null_mut();
        X509_OBJECT_get0_X509_CRL(object: *mut c_void) -> *mut c_void = ptr::null_mut();
        X509_STORE_up_ref(store: *mut c_void) -> c_int = 0;
        X509_STORE_free(store: *mut c_void);
        X509_STORE_lock(store: *mut c_void) -> c_int = 0;
        X509_STORE_unlock(store: *mut c_void) -> c_int = 0;
        X509_STORE_get0_objects(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get0_param(store: *const c_void) -> *mut c_void = ptr::null_mut();
        X509_STORE_get_verify(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_verify_cb(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_get_issuer(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_check_issued(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_check_revocation(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_get_crl(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_check_crl(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_cert_crl(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_check_policy(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_lookup_certs(store: *const c_void) -> *const c_void = ptr::null();
        X509_STORE_get_lookup_crls(store: *const c_void) -> *const c_void = ptr::null();
        X509_VERIFY_PARAM_new() -> *mut c_void = ptr::null_mut();
        X509_VERIFY_PARAM_free(param: *mut c_void);
        X509_VERIFY_PARAM_set_purpose(param: *mut c_void, purpose: c_int) -> c_int = 0;
        X509_VERIFY_PARAM_set_trust(param: *mut c_void, trust: c_int) -> c_int = 0;
        X509_VERIFY_PARAM_get_flags(param: *mut c_void) -> c_ulong = 0;
        X509_VERIFY_PARAM_get_depth(param: *const c_void) -> c_int = 0;
        X509_VERIFY_PARAM_get_auth_level(param: *const c_void) -> c_int = 0;
        X509_VERIFY_PARAM_get_time(param: *const c_void) -> time_t = 0;
        X509_VERIFY_PARAM_set_auth_level(param: *mut c_void, level: c_int);
        X509_VERIFY_PARAM_set1(to: *mut c_void, from: *const c_void) -> c_int = 0;
        X509_STORE_CTX_new() -> *mut X509_STORE_CTX = ptr::null_mut();
        X509_STORE_CTX_init(ctx: *mut X509_STORE_CTX, store: *mut c_void, certificate: *mut X509, untrusted: *mut c_void) -> c_int = 0;
        X509_STORE_CTX_free(ctx: *mut X509_STORE_CTX);
        X509_STORE_CTX_set_default(ctx: *mut X509_STORE_CTX, name: *const c_char) -> c_int = 0;
        X509_STORE_CTX_get0_param(ctx: *const X509_STORE_CTX) -> *mut c_void = ptr::null_mut();
        X509_STORE_CTX_set_verify_cb(ctx: *mut X509_STORE_CTX, callback: unsafe extern "C" fn(c_int, *mut X509_STORE_CTX) -> c_int);
        X509_STORE_CTX_set_flags(ctx: *mut X509_STORE_CTX, flags: c_ulong);
        X509_STORE_CTX_get_error(ctx: *const X509_STORE_CTX) -> c_int = 0;
        X509_verify_cert(ctx: *mut X509_STORE_CTX) -> c_int = -1;
        X509_get0_notAfter(certificate: *const X509) -> *const c_void = ptr::null();
        X509_cmp_current_time(time: *const c_void) -> c_int = 0;
        i2d_X509(certificate: *const X509, out: *mut *mut c_uchar) -> c_int = -1;
        d2i_X509(into: *mut *mut X509, from: *mut *const c_uchar, length: c_long) -> *mut X509 = ptr::null_mut();
        OPENSSL_sk_new_null() -> *mut c_void = ptr::null_mut();
        OPENSSL_sk_push(stack: *mut c_void, data: *const c_void) -> c_int = 0;
        OPENSSL_sk_free(stack: *mut c_void);
        X509_digest(certificate: *const X509, kind: *const c_void, digest: *mut c_uchar, length: *mut c_uint) -> c_int = 0;
        X509_NAME_digest(name: *const c_void, kind: *const c_void, digest: *mut c_uchar, length: *mut c_uint) -> c_int = 0;
        EVP_sha256() -> *const c_void = ptr::null();
        EVP_Digest(data: *const c_void, count: size_t, digest: *mut c_uchar, length: *mut c_uint, kind: *const c_void, engine: *mut c_void) -> c_int = 0;
        ERR_peek_last_error() -> c_ulong = 0;
        ERR_set_mark() -> c_int = 0;
        ERR_pop_to_mark() -> c_int = 0;
        ERR_get_next_error_library() -> c_int = 0;
        ERR_load_strings(library: c_int, strings: *mut ERR_STRING_DATA) -> c_int = 0;
    }
    optional {
        OpenSSL_version(what: c_int) -> *const c_char;
        OSSL_LIB_CTX_get0_global_default() -> *mut c_void;
        OSSL_LIB_CTX_set0_default(libctx: *mut c_void) -> *mut c_void;
        SSL_CTX_new_ex(libctx: *mut c_void, propq: *const c_char, method: *const SSL_METHOD) -> *mut SSL_CTX;
        SSL_CTX_flush_sessions_ex(ctx: *mut SSL_CTX, time: time_t);
        SSL_SESSION_set_time_ex(session: *mut SSL_SESSION, time: time_t) -> time_t;
        SSL_is_quic(ssl: *const SSL) -> c_int;
        SSL_get_srp_username(ssl: *mut SSL) -> *mut c_char;
        SSL_SESSION_get0_peer_rpk(session: *mut SSL_SESSION) -> *mut c_void;
        X509_VERIFY_PARAM_get_inh_flags(param: *const c_void) -> u32;
        X509_VERIFY_PARAM_get_hostflags(param: *const c_void) -> c_uint;
        X509_VERIFY_PARAM_get0_host(param: *mut c_void, place: c_int) -> *const c_char;
        X509_VERIFY_PARAM_get0_email(param: *mut c_void) -> *const c_char;
        X509_VERIFY_PARAM_get1_ip_asc(param: *mut c_void) -> *mut c_char;
        CRYPTO_free(memory: *mut c_void, file: *const c_char, line: c_int);
        OPENSSL_LH_set_thunks(
            table: *mut c_void,
            hash: Option<unsafe extern "C-unwind" fn(*const c_void, Hash) -> c_ulong>,
            compare: Option<unsafe extern "C-unwind" fn(*const c_void, *const c_void, Compare) -> c_int>,
            each: Option<unsafe extern "C-unwind" fn(*mut c_void, Each)>,
            each_with: Option<unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, EachWith)>
        ) -> *mut c_void;
        ERR_new();
        ERR_set_debug(file: *const c_char, line: c_int, function: *const c_char);
        ERR_vset_error(library: c_int, reason: c_int, format: *const c_char, arguments: *mut c_void);
        ERR_set_error_data(data: *mut c_char, flags: c_int);
        CRYPTO_strdup(text: *const c_char, file: *const c_char, line: c_int) -> *mut c_char;
        ERR_put_error(library: c_int, function: c_int, reason: c_int, file: *const c_char, line: c_int);
    }
}

fn c_name(name: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(name.as_bytes()).unwrap_or(c"")
}

/// A libssl that this process has loaded, and its functions.
struct Library {
    /// Where it is mapped.
    range: Range<usize>,
    path: String,
    table: Table,
    /// See `look_ahead`.
    is_ahead: bool,
    next: OnceBox<Library>,
}

/// The one that is served, and behind it the others that are known.
static FIRST: OnceBox<Library> = OnceBox::new();
/// Where each libssl is mapped that we stand behind.
static AHEAD: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
/// Whether there are others: mostly not, and then nobody need ask whose an object is.
static SEVERAL: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The other libssl that this thread is making an object in, which does not tell yet whose it is.
    static MAKING: Cell<Option<&'static Library>> = const { Cell::new(None) };
}

/// The real functions of the libssl that is served. Where none is in use yet, the first call looks for one; where a
/// libssl comes into the process later, the next call looks again.
#[inline]
pub fn table() -> &'static Table {
    match FIRST.get() {
        Some(library) => &library.table,
        None => find_table(),
    }
}

#[cold]
#[inline(never)]
fn find_table() -> &'static Table {
    match next_libssl() {
        Some(function) => {
            register(function).map_or_else(nothing, |_| FIRST.get().map_or_else(nothing, |first| &first.table))
        }
        None => {
            log::once(format_args!("no libssl found (tried libssl.so.3, .so.1.1, .so.4): nothing can be done here"));
            nothing()
        }
    }
}

/// Every function fails as documented.
fn nothing() -> &'static Table {
    static NOTHING: OnceBox<Table> = OnceBox::new();
    NOTHING.get_or_init(|| Box::new(Table::load(|_| ptr::null_mut())))
}

/// What the loaded libssl calls itself, as in "OpenSSL 3.5.7 9 Jun 2026"; empty if it does not say.
pub fn version() -> &'static str {
    // SAFETY: OpenSSL's function of this name returns a static text.
    let text = table().OpenSSL_version.map(|version| unsafe { version(0) });
    // SAFETY: as above, a C string.
    text.filter(|text| !text.is_null()).and_then(|text| unsafe { CStr::from_ptr(text) }.to_str().ok()).unwrap_or("")
}

/// Notes, when this library is loaded, which libssl was there before and is not behind it: linked ahead, or brought by a
/// program that loads Reprise late. Its functions are bound already, some or all, so that what is made with it is
/// not ours, not even in part.
pub fn look_ahead() {
    let mut ahead = AHEAD.iter();
    each_object(|path, range| {
        if let Some(place) = is_libssl(path).then(|| ahead.next()).flatten() {
            place.store(range.start, Relaxed);
        }
    });
    if AHEAD[0].load(Relaxed) == 0 {
        return;
    }
    if let Some((_, behind)) = next().and_then(object) {
        AHEAD.iter().filter(|start| start.load(Relaxed) == behind.start).for_each(|start| start.store(1, Relaxed));
    }
}

/// Makes an SSL_CTX with the libssl that `method` is part of; whether that is the one that is served. The first one that
/// an SSL_CTX is made with is.
pub fn with_method<T>(method: *const SSL_METHOD, make: impl FnOnce(&'static Table) -> T) -> (bool, T) {
    let address = method as usize;
    if FIRST.get().is_some_and(|first| !first.is_ahead && first.range.contains(&address)) {
        return (true, make(table()));
    }
    let library = known().find(|library| library.range.contains(&address)).or_else(|| {
        let (path, _) = object(address)?;
        register(in_object(&path)?)
    });
    match library {
        Some(other) if !other.is_first() => {
            let first = FIRST.get().map_or("", |first| &first.path);
            log::once(format_args!("{} keeps its own sessions: Reprise serves {first} in this process", other.path));
            (false, other.make(make))
        }
        _ => {
            let table = table();
            let Some(first) = FIRST.get().filter(|first| first.is_ahead) else { return (true, make(table)) };
            log::once(format_args!(
                "{} was loaded before Reprise and keeps its sessions: preload Reprise, or link -lreprise before -lssl",
                first.path
            ));
            (false, make(table))
        }
    }
}

/// The functions for an SSL_CTX or SSL, if they are not those of [`table`].
///
/// # Safety
/// `object` is NULL or a live SSL_CTX or SSL.
#[inline]
pub unsafe fn elsewhere<T>(object: *const T) -> Option<&'static Table> {
    if !SEVERAL.load(Relaxed) || object.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise, and either is hundreds of bytes long.
    let owner = unsafe { owner(object.cast(), METHOD) }.or_else(|| MAKING.get());
    owner.filter(|owner| !owner.is_first()).map(|owner| &owner.table)
}

/// The functions for an SSL_CTX or SSL.
///
/// # Safety
/// As for `elsewhere`.
pub unsafe fn table_of<T>(object: *const T) -> &'static Table {
    // SAFETY: by the caller's promise.
    unsafe { elsewhere(object) }.unwrap_or_else(table)
}

/// The functions for a session, if they are not those of [`table`].
///
/// # Safety
/// `session` is NULL or alive.
#[inline]
pub unsafe fn elsewhere_session(session: *const SSL_SESSION) -> Option<&'static Table> {
    if !SEVERAL.load(Relaxed) || session.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise. All sessions reach beyond REFERENCES_1_1, those of 3.0 and later beyond CIPHER.
    let owner = unsafe {
        match known().find(|library| library.table.SSL_CTX_new_ex.is_none()) {
            Some(library) if session.cast::<usize>().add(REFERENCES_1_1).read() as u32 != 0 => Some(library),
            _ => owner(session.cast(), CIPHER).or_else(of_caller),
        }
    };
    owner.filter(|owner| !owner.is_first()).map(|owner| &owner.table)
}

/// Where, in words, an SSL_CTX (0 or 1) and an SSL (1 or 2) have their SSL_METHOD.
const METHOD: Range<usize> = 0..3;
/// Where a session of 3.0 and later has its cipher.
const CIPHER: Range<usize> = 95..96;
/// Where one of 1.1.1, which is shorter, counts its references, in 32 bits. Later ones have the end of a buffer there, 384
/// bytes behind the start of a secret of at most 64, and so a zero.
const REFERENCES_1_1: usize = 58;

/// The libssl that one of the `words` of an object points into.
///
/// # Safety
/// The object is that long.
unsafe fn owner(object: *const usize, mut words: Range<usize>) -> Option<&'static Library> {
    words.find_map(|at| {
        // SAFETY: by the caller's promise. Libssl writes these words while it makes the object, not later.
        let word = unsafe { object.add(at).read() };
        known().find(|library| library.range.contains(&word))
    })
}

/// The libssl that the code which called us is part of, or is linked with.
fn of_caller() -> Option<&'static Library> {
    let (path, range) = object(caller()?)?;
    let of = |function| known().find(|library| library.range.contains(&function));
    of(range.start).or_else(|| of(in_object(&path)?)).or_else(|| of(next_libssl()?))
}

extern "C" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

/// Exceptions of C++ and pthread_cancel unwind our frames with the program's libgcc_s, and for that our frames call functions
/// of the unwinder that is linked into this library. These rely on a table that its first use fills in: here that is.
fn set_up_unwinder() {
    extern "C" fn stop(_: *mut c_void, _: *mut c_void) -> c_int {
        4 // _URC_NORMAL_STOP
    }
    // SAFETY: `stop` looks at nothing.
    unsafe { _Unwind_Backtrace(stop, ptr::null_mut()) };
}

/// Where a call came from into this library.
fn caller() -> Option<usize> {
    struct Search {
        own: Range<usize>,
        found: Option<usize>,
    }
    extern "C" fn frame(frame: *mut c_void, search: *mut c_void) -> c_int {
        const GO_ON: c_int = 0;
        const STOP: c_int = 4; // _URC_NORMAL_STOP
                               // SAFETY: the unwinder passes a frame and what is passed below.
        let (address, search) = unsafe { (_Unwind_GetIP(frame), &mut *search.cast::<Search>()) };
        if search.own.contains(&address) {
            return GO_ON;
        }
        search.found = Some(address);
        STOP
    }
    let mut search = Search { own: own_range()?, found: None };
    // SAFETY: `frame` gets `search` and is called before this returns; only frames of our own are left behind.
    unsafe { _Unwind_Backtrace(frame, (&raw mut search).cast()) };
    search.found
}

fn own_range() -> Option<Range<usize>> {
    Some(object(own_range as *const () as usize)?.1)
}

fn known() -> impl Iterator<Item = &'static Library> {
    std::iter::successors(FIRST.get(), |library| library.next.get())
}

impl Library {
    fn is_first(&self) -> bool {
        FIRST.get().is_some_and(|first| ptr::eq(first, self))
    }

    fn make<T>(&'static self, make: impl FnOnce(&'static Table) -> T) -> T {
        struct Making(Option<&'static Library>);
        impl Drop for Making {
            fn drop(&mut self) {
                MAKING.set(self.0);
            }
        }
        let _making = Making(MAKING.replace(Some(self)));
        make(&self.table)
    }

    /// The libssl that has `function` (its SSL_CTX_new).
    fn open(function: usize) -> Option<Library> {
        set_up_unwinder();
        let (path, range) = object(function)?;
        let handle = open(&path, libc::RTLD_NOLOAD);
        // SAFETY: `handle` is an open library, which stays open, and the name a C string.
        let table = Table::load(|name| match handle {
            Some(handle) => unsafe { libc::dlsym(handle, name.as_ptr()) },
            None => ptr::null_mut(),
        });
        let path = path.to_string_lossy().into_owned();
        if let Some(missing) = table.missing {
            log::once(format_args!("the loaded libssl has no {missing}: its own session cache stays in use"));
        }
        let is_ahead = AHEAD.iter().any(|start| start.load(Relaxed) == range.start);
        Some(Library { range, path, table, is_ahead, next: OnceBox::new() })
    }
}

/// Enters the libssl that has `function`. It becomes the one that is served where there is none yet; then all the others
/// that are loaded are entered, too, as objects of theirs may be about.
fn register(function: usize) -> Option<&'static Library> {
    let mut place = &FIRST;
    while let Some(library) = place.get() {
        if library.range.contains(&function) {
            return Some(library);
        }
        SEVERAL.store(true, Relaxed);
        place = &library.next;
    }
    // Another thread may be faster, and with another one.
    if place.set(Box::new(Library::open(function)?)).is_err() {
        return register(function);
    }
    if ptr::eq(place, &FIRST) {
        for path in loaded() {
            in_object(&path).and_then(register);
        }
    }
    place.get()
}

/// The SSL_CTX_new of the libssl that this process uses: the next one behind this library, else one that a plugin brought
/// along (RTLD_LOCAL), else, in a program that has none, the system's.
fn next_libssl() -> Option<usize> {
    let found = next().or_else(|| {
        let any = |flags| SONAMES.iter().find_map(|name| new_of(open(name, flags)?));
        any(libc::RTLD_NOLOAD).or_else(|| any(0))
    });
    // SAFETY: no preconditions: the program's next dlerror() is about its own calls.
    unsafe { libc::dlerror() };
    found
}

fn next() -> Option<usize> {
    // SAFETY: a C string; and as above.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"SSL_CTX_new".as_ptr()) as usize;
        libc::dlerror();
        (next != 0).then_some(next)
    }
}

fn is_libssl(path: &CStr) -> bool {
    path.to_bytes().rsplit(|&byte| byte == b'/').next().is_some_and(|name| name.starts_with(b"libssl.so"))
}

/// The SSL_CTX_new that the object at `path`, which is loaded, is or is linked with.
fn in_object(path: &CStr) -> Option<usize> {
    let found = open(path, libc::RTLD_NOLOAD).and_then(new_of);
    // SAFETY: as above.
    unsafe { libc::dlerror() };
    found
}

fn new_of(handle: *mut c_void) -> Option<usize> {
    // SAFETY: `handle` is an open library and the name a C string.
    let found = unsafe { libc::dlsym(handle, c"SSL_CTX_new".as_ptr()) } as usize;
    // A program linked with -lreprise finds ours.
    (found != 0 && !own_range()?.contains(&found)).then_some(found)
}

/// RTLD_NOLOAD only counts a reference to what is loaded; the handle is never closed.
fn open(path: &CStr, flags: c_int) -> Option<*mut c_void> {
    // SAFETY: a C string.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | flags) };
    (!handle.is_null()).then_some(handle)
}

/// The object that is mapped at `address`: its path, as dlopen takes it, and where it is.
fn object(address: usize) -> Option<(CString, Range<usize>)> {
    let mut found = None;
    each_object(|path, range| {
        if range.contains(&address) {
            found = Some((path.to_owned(), range));
        }
    });
    found
}

/// Every libssl that is loaded.
fn loaded() -> Vec<CString> {
    let mut found = Vec::new();
    each_object(|path, _| {
        if is_libssl(path) {
            found.push(path.to_owned());
        }
    });
    found
}

fn each_object(mut visit: impl FnMut(&CStr, Range<usize>)) {
    unsafe extern "C" fn one(info: *mut libc::dl_phdr_info, _: size_t, visit: *mut c_void) -> c_int {
        // SAFETY: the loader passes what it says it does, `visit` is what is passed below.
        unsafe {
            let (info, visit) = (&*info, &mut *visit.cast::<&mut dyn FnMut(&CStr, Range<usize>)>());
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            let loads = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
            let start = loads.clone().map(|header| header.p_vaddr as usize).min();
            let end = loads.map(|header| header.p_vaddr as usize + header.p_memsz as usize).max();
            if let (Some(start), Some(end), false) = (start, end, info.dlpi_name.is_null()) {
                let base = info.dlpi_addr as usize;
                visit(CStr::from_ptr(info.dlpi_name), base + start..base + end);
            }
        }
        0
    }
    let mut visit: &mut dyn FnMut(&CStr, Range<usize>) = &mut visit;
    // SAFETY: `one` gets the address of `visit` and is called before this returns. It does not unwind: `visit` only
    // compares, copies and may fail to allocate, which ends the process.
    unsafe { libc::dl_iterate_phdr(Some(one), (&raw mut visit).cast()) };
}
