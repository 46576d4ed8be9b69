//! The identity of a service: a digest of all that decides which clients an SSL_CTX accepts, and how.
//!
//! Each part is written with a label and its length, so that no two configurations have the same transcript. What another
//! process has at another address (certificates, lists of revoked ones, names, ciphers, callbacks) is written by
//! content. What has no content to compare (a callback in code without a build id, or with an argument) is written as
//! a number that only this SSL_CTX has, and those forked from it.

use super::service::{self, Known};
use super::types::{OP_NO_ANTI_REPLAY, SSL, SSL_CTX, X509};
use super::{is_3_or_later, module, table};
use libc::{c_char, c_int, c_long, c_void};
use std::ffi::CStr;
use std::ptr::{null, null_mut, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use xxhash_rust::xxh3::xxh3_64;

/// Raised whenever what is digested changes: two versions of Reprise do not take their services for equal.
const FORMAT: u64 = 4;
const DIGEST: usize = 32;

/// The bits of SSL_CTX_set_options(3) that count: those that forbid a protocol version, and SSL_OP_NO_ANTI_REPLAY, with
/// which a ticket for early data is only looked up: others, who accept it once, must not have it in common.
pub const OPTIONS: u64 = 0x3e00_0000 | OP_NO_ANTI_REPLAY as u64;

pub const CERT_FLAGS: c_int = 99; // SSL_CTRL_CERT_FLAGS, which sets further ones and returns all
const SET_CURRENT_CERT: c_int = 117; // SSL_CTRL_SET_CURRENT_CERT
const GET_MIN_PROTO_VERSION: c_int = 130; // SSL_CTRL_GET_MIN_PROTO_VERSION
const GET_MAX_PROTO_VERSION: c_int = 131; // SSL_CTRL_GET_MAX_PROTO_VERSION
const GET_VERIFY_CERT_STORE: c_int = 137; // SSL_CTRL_GET_VERIFY_CERT_STORE, which 1.1.1 does not know

/// Parts, each after its label and length.
struct Transcript {
    parts: Vec<u8>,
    /// What no other SSL_CTX has.
    own: [u8; 16],
    /// Every object could be digested.
    complete: bool,
}

impl Transcript {
    fn new(own: [u8; 16]) -> Transcript {
        Transcript { parts: Vec::new(), own, complete: true }
    }

    fn bytes(&mut self, label: &str, bytes: &[u8]) {
        self.parts.push(label.len() as u8);
        self.parts.extend_from_slice(label.as_bytes());
        self.parts.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.parts.extend_from_slice(bytes);
    }

    fn number(&mut self, label: &str, number: u64) {
        self.bytes(label, &number.to_le_bytes());
    }

    fn digest(&mut self, sha256: impl FnOnce(*mut u8) -> c_int) -> [u8; DIGEST] {
        let mut digest = [0; DIGEST];
        self.complete &= sha256(digest.as_mut_ptr()) == 1;
        digest
    }

    /// # Safety
    /// `text` is NULL or a C string.
    unsafe fn text(&mut self, label: &str, text: *const c_char) {
        if !text.is_null() {
            // SAFETY: by the caller's promise.
            self.bytes(label, unsafe { CStr::from_ptr(text) }.to_bytes());
        }
    }

    /// A callback of the program, or one of libcrypto's own.
    fn callback(&mut self, label: &str, address: *const c_void) {
        if address.is_null() {
            return;
        }
        match module::function(address as usize) {
            Some(function) => {
                self.bytes(label, &function.build_id);
                self.number("offset", function.offset as u64);
            }
            None => self.only_here(label, address as usize),
        }
    }

    /// What cannot be compared with anything in another process.
    fn only_here(&mut self, label: &str, address: usize) {
        let own = self.own;
        self.bytes(label, &own);
        self.number("address", address as u64);
    }

    /// X509_VERIFY_PARAM
    ///
    /// # Safety
    /// `param` is NULL or alive.
    unsafe fn parameters(&mut self, param: *mut c_void) {
        if param.is_null() {
            return;
        }
        let table = table();
        // SAFETY: by the caller's promise; what is returned are numbers, or texts of the parameters.
        unsafe {
            self.number("flags", (table.X509_VERIFY_PARAM_get_flags)(param));
            self.number("depth", (table.X509_VERIFY_PARAM_get_depth)(param) as u64);
            self.number("auth level", (table.X509_VERIFY_PARAM_get_auth_level)(param) as u64);
            self.number("time", (table.X509_VERIFY_PARAM_get_time)(param) as u64);
            for place in hidden() {
                self.number("hidden", place.map_or(0, |place| place.read(param)) as u64);
            }
            if let Some(flags) = table.X509_VERIFY_PARAM_get_inh_flags {
                self.number("inherited", flags(param).into());
            }
            if let Some(flags) = table.X509_VERIFY_PARAM_get_hostflags {
                self.number("host flags", flags(param).into());
            }
            if let Some(host) = table.X509_VERIFY_PARAM_get0_host {
                (0..)
                    .map(|place| host(param, place))
                    .take_while(|host| !host.is_null())
                    .for_each(|host| self.text("host", host));
            }
            if let Some(email) = table.X509_VERIFY_PARAM_get0_email {
                self.text("email", email(param));
            }
            if let (Some(ip), Some(free)) = (table.X509_VERIFY_PARAM_get1_ip_asc, table.CRYPTO_free) {
                let ip = ip(param);
                self.text("ip", ip);
                free(ip.cast(), null(), 0);
            }
        }
    }

    /// X509_STORE: what it trusts, what it knows to be revoked, its parameters and its callbacks.
    ///
    /// # Safety
    /// `store` is NULL or alive.
    unsafe fn store(&mut self, label: &str, store: *mut c_void) {
        if store.is_null() {
            return;
        }
        let table = table();
        self.bytes(label, &[]);
        let mut digests: Vec<[u8; DIGEST + 1]> = Vec::new();
        for object in objects(store) {
            let digest = self.digest(|out| object.digest(out));
            let mut kind = [object.kind(); DIGEST + 1];
            kind[1..].copy_from_slice(&digest);
            digests.push(kind);
        }
        // The store sorts its objects when it searches for one.
        digests.sort_unstable();
        digests.iter().for_each(|digest| self.bytes("object", digest));
        // SAFETY: by the caller's promise; addresses are compared.
        unsafe {
            self.parameters((table.X509_STORE_get0_param)(store));
            for callback in store_callbacks(store) {
                match callback.is_null() {
                    true => self.bytes("no callback", &[]),
                    false => self.callback("callback", callback),
                }
            }
        }
    }

    fn finish(self) -> Option<[u64; 2]> {
        let mut digest = [0; DIGEST];
        // SAFETY: `parts` has `len` bytes, `digest` as many as SHA-256 writes.
        let done = unsafe {
            let md = (table().EVP_sha256)();
            let (from, to) = (self.parts.as_ptr().cast(), digest.as_mut_ptr());
            (table().EVP_Digest)(from, self.parts.len(), to, null_mut(), md, null_mut())
        };
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at * 8 + byte]));
        (self.complete && done == 1).then(|| [word(0), word(1)])
    }
}

/// The identity of `ctx`'s servers as it is configured now. `None` where SHA-256 is not to be had: the default library
/// context may have no provider of it.
pub fn identity(ctx: *mut SSL_CTX, known: &Known) -> Option<[u64; 2]> {
    let table = table();
    let mut all = Transcript::new(known.own);
    all.number("reprise", FORMAT);
    // Sessions of 1.1.1 and of later versions are not written alike.
    all.number("openssl", if is_3_or_later() { 3 } else { 1 });
    // The sessions of clients are in no shared cache.
    all.bytes("role", b"server");
    all.bytes("id context", &known.id_context);
    all.bytes("label", known.label.as_bytes());
    // SAFETY: the context is alive, and so is what it has.
    unsafe {
        all.number("verify mode", (table.SSL_CTX_get_verify_mode)(ctx) as u64);
        all.callback("verify callback", (table.SSL_CTX_get_verify_callback)(ctx));
        match known.cert_verify {
            [0, _] => {}
            [callback, 0] => all.callback("cert verify callback", callback as *const c_void),
            [callback, argument] => all.only_here("cert verify callback", callback.rotate_left(32) ^ argument),
        }
        all.callback("servername callback", known.servername_callback as *const c_void);
        for (command, value) in known.algorithms.iter().filter(|(&command, _)| command != CERT_FLAGS) {
            all.number("command", *command as u64);
            all.bytes("value", value);
        }
        all.parameters((table.SSL_CTX_get0_param)(ctx));
        all.store("store", (table.SSL_CTX_get_cert_store)(ctx));
        all.store("verify store", verify_store(ctx));
        for control in [GET_MIN_PROTO_VERSION, GET_MAX_PROTO_VERSION] {
            all.number("bound", (table.SSL_CTX_ctrl)(ctx, control, 0, null_mut()) as u64);
        }
        all.number("options", (table.SSL_CTX_get_options)(ctx) & OPTIONS);
        all.number("cert flags", (table.SSL_CTX_ctrl)(ctx, CERT_FLAGS, 0, null_mut()) as u64);
        all.number("security level", (table.SSL_CTX_get_security_level)(ctx) as u64);
        for_each((table.SSL_CTX_get_ciphers)(ctx), |cipher| {
            all.number("cipher", (table.SSL_CIPHER_get_id)(cipher.cast_const().cast()).into());
        });
        let mut leaf = |certificate: *const X509| {
            let digest = all.digest(|out| (table.X509_digest)(certificate, (table.EVP_sha256)(), out, null_mut()));
            all.bytes("certificate", &digest);
        };
        match Probe::new(ctx) {
            Some(probe) => probe.each_certificate(&mut leaf),
            // None can be made of some contexts of QUIC.
            None => match (table.SSL_CTX_get0_certificate)(ctx) {
                certificate if certificate.is_null() => {}
                certificate => leaf(certificate),
            },
        }
        for names in lists(ctx) {
            all.bytes("names", &[]);
            for_each(names, |name| {
                let digest = all.digest(|out| (table.X509_NAME_digest)(name, (table.EVP_sha256)(), out, null_mut()));
                all.bytes("name", &digest);
            });
        }
    }
    all.finish()
}

/// What a connection was told of verification that its context was not: the mode, the callback and the parameters.
///
/// # Safety
/// `param` is alive.
pub unsafe fn verification(mode: c_int, callback: *const c_void, param: *mut c_void, own: [u8; 16]) -> [u64; 2] {
    let mut all = Transcript::new(own);
    all.number("verify mode", mode as u64);
    all.callback("verify callback", callback);
    // SAFETY: by the caller's promise.
    service::quietly(|| unsafe { all.parameters(param) });
    // Without SHA-256 it is like nothing that another process has.
    all.finish().unwrap_or_else(|| service::words(&own))
}

/// A number that is another one for parameters that differ, for comparing them within one process. `with_ip`: also for
/// another IP address, of which libcrypto says by an error that there is none, and that takes longer than all the rest.
///
/// # Safety
/// `param` is alive.
pub unsafe fn parameters_number(param: *mut c_void, with_ip: bool) -> u64 {
    let table = table();
    let mut number = 1;
    let mut mix = |value: u64| number = mixed(number, value);
    // SAFETY: by the caller's promise; texts are C strings of the parameters.
    unsafe {
        mix((table.X509_VERIFY_PARAM_get_flags)(param));
        mix((table.X509_VERIFY_PARAM_get_depth)(param) as u64);
        mix((table.X509_VERIFY_PARAM_get_auth_level)(param) as u64);
        mix((table.X509_VERIFY_PARAM_get_time)(param) as u64);
        for place in hidden() {
            mix(place.map_or(0, |place| place.read(param)) as u64);
        }
        mix(table.X509_VERIFY_PARAM_get_hostflags.map_or(0, |flags| flags(param)).into());
        let text = |text: *const c_char| match text.is_null() {
            true => 0,
            false => xxh3_64(CStr::from_ptr(text).to_bytes()),
        };
        if let Some(host) = table.X509_VERIFY_PARAM_get0_host {
            (0..).map(|place| host(param, place)).take_while(|host| !host.is_null()).for_each(|host| mix(text(host)));
        }
        mix(table.X509_VERIFY_PARAM_get0_email.map_or(0, |email| text(email(param))));
        if let (Some(ip), Some(free), true) = (table.X509_VERIFY_PARAM_get1_ip_asc, table.CRYPTO_free, with_ip) {
            let ip = service::quietly(|| ip(param));
            if !ip.is_null() {
                mix(text(ip));
                free(ip.cast(), null(), 0);
            }
        }
    }
    number
}

/// Tells a list of ciphers from others, mostly: by where it is, how long it is, and three of it. A list that is replaced
/// twice may have the place of the first.
///
/// # Safety
/// `ciphers` is NULL or alive.
pub unsafe fn ciphers_number(ciphers: *const c_void) -> u64 {
    let table = table();
    // SAFETY: by the caller's promise. Ciphers are static, and NULL beyond the end of a list.
    unsafe {
        let count = (table.OPENSSL_sk_num)(ciphers);
        [0, count / 2, count - 1].into_iter().fold(mixed(ciphers as u64, count as u64), |sum, at| {
            mixed(sum, (table.OPENSSL_sk_value)(ciphers, at) as u64)
        })
    }
}

/// Of numbers, in their order.
pub fn mixed(number: u64, value: u64) -> u64 {
    (number ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The functions that a program has given a trust store. NULL: libcrypto's own.
///
/// # Safety
/// `store` is NULL or alive.
pub unsafe fn store_callbacks(store: *mut c_void) -> [*const c_void; 11] {
    if store.is_null() {
        return [null(); 11];
    }
    let table = table();
    [
        table.X509_STORE_get_verify,
        table.X509_STORE_get_verify_cb,
        table.X509_STORE_get_get_issuer,
        table.X509_STORE_get_check_issued,
        table.X509_STORE_get_check_revocation,
        table.X509_STORE_get_get_crl,
        table.X509_STORE_get_check_crl,
        table.X509_STORE_get_cert_crl,
        table.X509_STORE_get_check_policy,
        table.X509_STORE_get_lookup_certs,
        table.X509_STORE_get_lookup_crls,
    ]
    // SAFETY: by the caller's promise.
    .map(|callback| unsafe { callback(store) })
}

/// Tells a certificate from others; never 0.
///
/// # Safety
/// `certificate` is alive.
pub unsafe fn certificate_number(certificate: *const X509) -> u64 {
    let mut digest = [0; DIGEST];
    // SAFETY: by the caller's promise; the place is as long as SHA-256's digest.
    let done = unsafe { (table().X509_digest)(certificate, (table().EVP_sha256)(), digest.as_mut_ptr(), null_mut()) };
    if done != 1 {
        return certificate as u64;
    }
    u64::from_le_bytes(std::array::from_fn(|byte| digest[byte])).max(1)
}

/// The addresses of the certificates that a context has, one for each kind of key.
pub fn certificates(ctx: *mut SSL_CTX) -> Vec<usize> {
    let mut found = Vec::new();
    if let Some(probe) = Probe::new(ctx) {
        probe.each_certificate(&mut |certificate| found.push(certificate as usize));
    }
    found
}

/// The names of CAs that clients are told.
pub fn lists(ctx: *mut SSL_CTX) -> [*const c_void; 2] {
    // SAFETY: the context is alive.
    unsafe { [(table().SSL_CTX_get_client_CA_list)(ctx), (table().SSL_CTX_get0_CA_list)(ctx)] }
}

/// The store of SSL_CTX_set1_verify_cert_store(3), which comes before the context's own, or NULL. 1.1.1 does not tell it.
pub fn verify_store(ctx: *mut SSL_CTX) -> *mut c_void {
    let mut store: *mut c_void = null_mut();
    if is_3_or_later() {
        // SAFETY: the context is alive, and the command writes one pointer.
        unsafe { (table().SSL_CTX_ctrl)(ctx, GET_VERIFY_CERT_STORE, 0, (&raw mut store).cast()) };
    }
    store
}

/// The store of SSL_set1_verify_cert_store(3), or, where there is none, that of [`verify_store`]: a connection has it from
/// its context. NULL for none, and in 1.1.1.
pub fn connection_store(ssl: *mut SSL) -> *mut c_void {
    let mut store: *mut c_void = null_mut();
    if is_3_or_later() {
        // SAFETY: the connection is alive, and the command writes one pointer.
        unsafe { (table().SSL_ctrl)(ssl, GET_VERIFY_CERT_STORE, 0, (&raw mut store).cast()) };
    }
    store
}

/// The bounds of SSL_CTX_set_min_proto_version(3) and its counterpart.
pub fn bounds(ctx: *mut SSL_CTX) -> u64 {
    // SAFETY: the context is alive; the commands read a number.
    let bound = |control| unsafe { (table().SSL_CTX_ctrl)(ctx, control, 0, null_mut()) } as u64;
    bound(GET_MIN_PROTO_VERSION) << 32 | bound(GET_MAX_PROTO_VERSION)
}

/// The flags of SSL_set_cert_flags(3) that are flags of verifying, too: the two of Suite B.
///
/// # Safety
/// `ssl` is alive.
pub unsafe fn suite_b(ssl: *mut SSL) -> libc::c_ulong {
    const SUITE_B: libc::c_ulong = 0x30000; // SSL_CERT_FLAG_SUITEB_128_LOS, X509_V_FLAG_SUITEB_128_LOS
                                            // SAFETY: by the caller's promise; with 0 nothing changes.
    unsafe { (table().SSL_ctrl)(ssl, CERT_FLAGS, 0, null_mut()) as libc::c_ulong & SUITE_B }
}

/// Each element of an OpenSSL stack, which may be NULL.
pub fn for_each(stack: *const c_void, mut visit: impl FnMut(*mut c_void)) {
    // SAFETY: the stack is the context's, and NULL is allowed; libssl returns NULL beyond its end.
    unsafe {
        for at in 0..(table().OPENSSL_sk_num)(stack) {
            visit((table().OPENSSL_sk_value)(stack, at));
        }
    }
}

/// One counted reference to what a store has.
enum Object {
    Certificate(*mut X509),
    Revoked(*mut c_void),
}

impl Object {
    fn kind(&self) -> u8 {
        match self {
            Object::Certificate(_) => 1,
            Object::Revoked(_) => 2,
        }
    }

    fn digest(&self, out: *mut u8) -> c_int {
        // SAFETY: the object is alive, and the place as long as SHA-256's digest.
        unsafe {
            let md = (table().EVP_sha256)();
            match *self {
                Object::Certificate(certificate) => (table().X509_digest)(certificate, md, out, null_mut()),
                Object::Revoked(list) => (table().X509_CRL_digest)(list, md, out, null_mut()),
            }
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: one reference is ours, and it is given up once.
        unsafe {
            match *self {
                Object::Certificate(certificate) => (table().X509_free)(certificate),
                Object::Revoked(list) => (table().X509_CRL_free)(list),
            }
        }
    }
}

/// What a store has read. Other threads may be reading more into it, so its lock is held while references are taken.
fn objects(store: *mut c_void) -> Vec<Object> {
    const IS_CERTIFICATE: c_int = 1; // X509_LU_X509
    const IS_CRL: c_int = 2; // X509_LU_CRL
    let mut found = Vec::new();
    let table = table();
    // SAFETY: the store is alive, and its objects are while it is locked.
    unsafe {
        (table.X509_STORE_lock)(store);
        for_each((table.X509_STORE_get0_objects)(store), |object| match (table.X509_OBJECT_get_type)(object) {
            IS_CERTIFICATE => {
                let certificate = (table.X509_OBJECT_get0_X509)(object);
                (table.X509_up_ref)(certificate);
                found.push(Object::Certificate(certificate));
            }
            IS_CRL => {
                let list = (table.X509_OBJECT_get0_X509_CRL)(object);
                (table.X509_CRL_up_ref)(list);
                found.push(Object::Revoked(list));
            }
            _ => {}
        });
        (table.X509_STORE_unlock)(store);
    }
    found
}

/// Where X509_VERIFY_PARAM has an `int` that no function of older versions reads.
#[derive(Clone, Copy)]
pub struct Hidden(usize);

impl Hidden {
    /// # Safety
    /// `param` is alive.
    pub unsafe fn read(self, param: *const c_void) -> c_int {
        // SAFETY: by the caller's promise; the place lies within every version's struct.
        unsafe { param.cast::<c_int>().add(self.0).read() }
    }
}

/// Of purpose and trust, which have no getters in 1.1.1 and 3.0: found by setting them in parameters of our own and
/// looking which word changed. `None` where that does not tell.
pub fn hidden() -> [Option<Hidden>; 2] {
    /// The struct has 100 bytes and more in every version from 1.1.1 to 4.0; purpose and trust are before that.
    const WORDS: usize = 16;
    const UNKNOWN: usize = usize::MAX;
    static FOUND: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    let search = |set: unsafe extern "C-unwind" fn(*mut c_void, c_int) -> c_int| {
        const VALUE: c_int = 2; // X509_PURPOSE_SSL_SERVER and X509_TRUST_SSL_CLIENT
                                // SAFETY: the parameters are ours alone, and longer than WORDS.
        unsafe {
            let param = (table().X509_VERIFY_PARAM_new)();
            if param.is_null() {
                return UNKNOWN;
            }
            let words = || std::array::from_fn::<_, WORDS, _>(|word| Hidden(word).read(param));
            let before = words();
            let set = set(param, VALUE) == 1;
            let after = words();
            (table().X509_VERIFY_PARAM_free)(param);
            let mut changed = (0..WORDS).filter(|&word| before[word] != after[word]);
            match (changed.next(), changed.next()) {
                (Some(word), None) if set && after[word] == VALUE => word,
                _ => UNKNOWN,
            }
        }
    };
    let setters = [table().X509_VERIFY_PARAM_set_purpose, table().X509_VERIFY_PARAM_set_trust];
    std::array::from_fn(|which| {
        let mut word = FOUND[which].load(Relaxed);
        if word == 0 {
            word = search(setters[which]);
            FOUND[which].store(word, Relaxed);
        }
        (word != UNKNOWN).then_some(Hidden(word))
    })
}

/// A connection of the context that is never used, but for the certificates it has (one for each kind of key): going
/// through those of the context itself would change the context. The program's ex_data callbacks hear of it.
struct Probe(NonNull<SSL>);

impl Probe {
    fn new(ctx: *mut SSL_CTX) -> Option<Probe> {
        // SAFETY: the context is alive.
        unsafe {
            if (table().SSL_CTX_get0_certificate)(ctx).is_null() {
                return None;
            }
            NonNull::new((table().SSL_new)(ctx)).map(Probe)
        }
    }

    fn each_certificate(&self, visit: &mut dyn FnMut(*const X509)) {
        const FIRST: c_long = 1; // SSL_CERT_SET_FIRST
        const NEXT: c_long = 2; // SSL_CERT_SET_NEXT
        let mut which = FIRST;
        // SAFETY: the connection is ours alone.
        unsafe {
            while (table().SSL_ctrl)(self.0.as_ptr(), SET_CURRENT_CERT, which, null_mut()) == 1 {
                visit((table().SSL_get_certificate)(self.0.as_ptr()));
                which = NEXT;
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: the connection is ours alone.
        unsafe { (table().SSL_free)(self.0.as_ptr()) };
    }
}
