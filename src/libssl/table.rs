//! The functions of the real libssl and libcrypto, found at run time in the libssl that the program uses.
//!
//! Found at the first call, not when the program starts: before `main`, a libssl that comes with a plugin (Apache's
//! mod_ssl, CPython's _ssl) is not there yet. All of them come from one libssl, or from what it depends on.
//! A function that is not there answers with its documented failure value, so whoever passes a call through
//! need not ask.
#![allow(non_snake_case)]

use super::types::*;
use crate::log;
use libc::{c_char, c_int, c_long, c_uchar, c_uint, c_ulong, c_void, size_t, time_t};
use once_cell::race::OnceBox;
use std::ffi::CStr;
use std::ptr;

/// Libraries a process may have loaded, the newest last; the first that is there is used.
const SONAMES: [&CStr; 3] = [c"libssl.so.3", c"libssl.so.1.1", c"libssl.so.4"];

macro_rules! functions {
    (required { $($(#[$attribute:meta])* $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty = $failure:expr)?;)* }
     optional { $($optional:ident($($o_argument:ident: $o_kind:ty),*) $(-> $o_result:ty)?;)* }) => {
        pub struct Table {
            $(pub $name: unsafe extern "C" fn($($argument: $kind),*) $(-> $result)?,)*
            $(pub $optional: Option<unsafe extern "C" fn($($o_argument: $o_kind),*) $(-> $o_result)?>,)*
            /// The first function that Reprise needs and did not find.
            pub missing: Option<&'static str>,
        }

        impl Table {
            fn load(find: impl Fn(&CStr) -> *mut c_void) -> Table {
                let mut missing = None;
                Table {
                    $($name: {
                        unsafe extern "C" fn absent($(_: $kind),*) $(-> $result)? { $($failure)? }
                        let found = find(c_name(concat!(stringify!($name), "\0")));
                        if found.is_null() {
                            missing = missing.or(Some(stringify!($name)));
                            absent
                        } else {
                            // SAFETY: OpenSSL's function of this name has had this prototype since 1.1.1.
                            unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) $(-> $result)?>(found) }
                        }
                    },)*
                    $($optional: {
                        let found = find(c_name(concat!(stringify!($optional), "\0")));
                        // SAFETY: as above, and a null pointer is `None`.
                        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($o_kind),*) $(-> $o_result)?>>(found) }
                    },)*
                    missing,
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
        SSL_CTX_get_client_CA_list(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_CTX_get0_CA_list(ctx: *const SSL_CTX) -> *const c_void = ptr::null();
        SSL_set_generate_session_id(ssl: *mut SSL, generator: Generator) -> c_int = 0;
        SSL_new(ctx: *mut SSL_CTX) -> *mut SSL = ptr::null_mut();
        SSL_free(ssl: *mut SSL);
        SSL_clear(ssl: *mut SSL) -> c_int = 0;
        SSL_connect(ssl: *mut SSL) -> c_int = -1;
        SSL_set_connect_state(ssl: *mut SSL);
        SSL_ctrl(ssl: *mut SSL, command: c_int, number: c_long, pointer: *mut c_void) -> c_long = 0;
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
        i2d_SSL_SESSION(session: *const SSL_SESSION, out: *mut *mut c_uchar) -> c_int = 0;
        d2i_SSL_SESSION(into: *mut *mut SSL_SESSION, from: *mut *const c_uchar, length: c_long) -> *mut SSL_SESSION = ptr::null_mut();
        TLS_method() -> *const SSL_METHOD = ptr::null();
        CRYPTO_get_ex_new_index(class: c_int, argl: c_long, argp: *mut c_void, new: *mut c_void, dup: ExDup, free: *mut c_void) -> c_int = -1;
        OPENSSL_LH_new(hash: Option<Hash>, compare: Option<Compare>) -> *mut c_void = ptr::null_mut();
        OPENSSL_LH_insert(table: *mut c_void, data: *mut c_void) -> *mut c_void = ptr::null_mut();
        OPENSSL_LH_free(table: *mut c_void);
        OPENSSL_sk_num(stack: *const c_void) -> c_int = -1;
        OPENSSL_sk_value(stack: *const c_void, place: c_int) -> *mut c_void = ptr::null_mut();
        X509_up_ref(certificate: *mut X509) -> c_int = 0;
        X509_free(certificate: *mut X509);
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
        SSL_CTX_new_ex(libctx: *mut c_void, propq: *const c_char, method: *const SSL_METHOD) -> *mut SSL_CTX;
        SSL_CTX_flush_sessions_ex(ctx: *mut SSL_CTX, time: time_t);
        SSL_SESSION_set_time_ex(session: *mut SSL_SESSION, time: time_t) -> time_t;
        SSL_is_quic(ssl: *const SSL) -> c_int;
        OPENSSL_LH_set_thunks(
            table: *mut c_void,
            hash: Option<unsafe extern "C" fn(*const c_void, Hash) -> c_ulong>,
            compare: Option<unsafe extern "C" fn(*const c_void, *const c_void, Compare) -> c_int>,
            each: Option<unsafe extern "C" fn(*mut c_void, Each)>,
            each_with: Option<unsafe extern "C" fn(*mut c_void, *mut c_void, EachWith)>
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

/// The real functions. The first call looks for them; where a libssl comes into the process later, the next call
/// looks again.
pub fn table() -> &'static Table {
    static FOUND: OnceBox<Table> = OnceBox::new();
    if let Some(table) = FOUND.get() {
        return table;
    }
    match libssl() {
        Some(handle) => FOUND.get_or_init(|| {
            // SAFETY: `handle` is an open library and the name a C string.
            let table = Table::load(|name| unsafe { libc::dlsym(handle, name.as_ptr()) });
            if let Some(missing) = table.missing {
                log::once(format_args!("the loaded libssl has no {missing}: its own session cache stays in use"));
            }
            Box::new(table)
        }),
        None => {
            log::once(format_args!("no libssl found (tried libssl.so.3, .so.1.1, .so.4): nothing can be done here"));
            static NOTHING: OnceBox<Table> = OnceBox::new();
            NOTHING.get_or_init(|| Box::new(Table::load(|_| ptr::null_mut())))
        }
    }
}

/// The libssl that this process uses: the next one behind this library, else one that a plugin brought along
/// (RTLD_LOCAL), else, in a program that has none, the system's.
fn libssl() -> Option<*mut c_void> {
    // SAFETY: dlsym, dladdr and dlopen are called with C strings and a Dl_info of our own. RTLD_NOLOAD only counts a
    // reference to what is loaded; the handle is never closed.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"SSL_CTX_new".as_ptr());
        let mut info: libc::Dl_info = std::mem::zeroed();
        if !next.is_null() && libc::dladdr(next, &mut info) != 0 && !info.dli_fname.is_null() {
            let handle = libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
            if !handle.is_null() {
                return Some(handle);
            }
        }
        let open =
            |flags| SONAMES.iter().map(|name| libc::dlopen(name.as_ptr(), flags)).find(|handle| !handle.is_null());
        let found = open(libc::RTLD_LAZY | libc::RTLD_NOLOAD).or_else(|| open(libc::RTLD_LAZY));
        libc::dlerror(); // the program's next dlerror() is about its own calls
        found
    }
}
