//! Which service an SSL_CTX is. Where several contexts share a cache, a session must not cross from one to another that
//! would not have negotiated it: the session id context, the certificates shown and what is demanded of clients
//! decide. (Programs that set no session id context, or all the same one, rely on their contexts having caches of
//! their own.)

use super::types::{SSL, SSL_CTX, X509};
use super::{is_3_or_later, table, Ctx};
use crate::log;
use libc::{c_int, c_long, c_void};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

const DIGEST: usize = 32;

/// The service of one SSL_CTX, worked out anew when the context was changed.
#[derive(Default)]
pub struct Service {
    /// What `outline` was when the identity was worked out.
    outline: AtomicU64,
    identity: [AtomicU64; 2],
    details: Mutex<Details>,
}

#[derive(Default)]
pub struct Details {
    id_context: Vec<u8>,
    /// Kept, so that no other certificate has its address.
    certificate: Option<Certificate>,
}

/// One counted reference to a certificate.
struct Certificate(NonNull<X509>);

// SAFETY: libssl counts references to certificates atomically, and only the reference is used.
unsafe impl Send for Certificate {}

impl Drop for Certificate {
    fn drop(&mut self) {
        // SAFETY: one reference is ours, and it is given up once.
        unsafe { (table().X509_free)(self.0.as_ptr()) };
    }
}

impl Service {
    /// For another SSL_CTX.
    pub fn reset(&self) {
        let mut details = self.details();
        self.outline.store(0, Release);
        *details = Details::default();
    }

    /// SSL_CTX_set_session_id_context(3) was called.
    pub fn set_id_context(&self, id_context: &[u8]) {
        let mut details = self.details();
        self.outline.store(0, Release);
        details.id_context = id_context.to_vec();
    }

    /// Contexts with equal identities are the same service.
    pub fn identity(&self, ctx: Ctx) -> [u64; 2] {
        let outline = outline(ctx.as_ptr());
        if self.outline.load(Acquire) != outline {
            let mut details = self.details();
            let identity = quietly(|| digest(ctx.as_ptr(), &details.id_context)).unwrap_or_else(nobody_else);
            details.certificate = certificate(ctx.as_ptr());
            self.identity[0].store(identity[0], Relaxed);
            self.identity[1].store(identity[1], Relaxed);
            self.outline.store(outline, Release);
        }
        self.identity.each_ref().map(|word| word.load(Relaxed))
    }

    /// Nothing is half-done until the result is dropped.
    pub fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that is another one when the context shows another certificate or demands something else of its clients.
/// Never 0.
fn outline(ctx: *mut SSL_CTX) -> u64 {
    let mut outline = 1;
    let mut mix = |value: u64| outline = (outline ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    // SAFETY: the context is alive. Addresses are compared, not followed.
    unsafe {
        mix((table().SSL_CTX_get0_certificate)(ctx) as u64);
        mix((table().SSL_CTX_get_verify_mode)(ctx) as u64);
    }
    for names in lists(ctx) {
        mix(names as u64);
        for_each(names, |name| mix(name as u64));
    }
    outline.max(1)
}

/// The names of CAs that clients are told.
fn lists(ctx: *mut SSL_CTX) -> [*const c_void; 2] {
    // SAFETY: the context is alive.
    unsafe { [(table().SSL_CTX_get_client_CA_list)(ctx), (table().SSL_CTX_get0_CA_list)(ctx)] }
}

/// Each element of an OpenSSL stack, which may be NULL.
fn for_each(stack: *const c_void, mut visit: impl FnMut(*mut c_void)) {
    // SAFETY: the stack is the context's, and NULL is allowed; libssl returns NULL beyond its end.
    unsafe {
        for at in 0..(table().OPENSSL_sk_num)(stack) {
            visit((table().OPENSSL_sk_value)(stack, at));
        }
    }
}

fn certificate(ctx: *mut SSL_CTX) -> Option<Certificate> {
    // SAFETY: the context is alive, and so is its certificate; the new reference is what the result owns.
    unsafe {
        let certificate = NonNull::new((table().SSL_CTX_get0_certificate)(ctx))?;
        (table().X509_up_ref)(certificate.as_ptr());
        Some(Certificate(certificate))
    }
}

/// Where it fails, that is no error of the program's.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: marks in the error queue of this thread have no preconditions.
    unsafe { (table().ERR_set_mark)() };
    let result = work();
    // SAFETY: as above.
    unsafe { (table().ERR_pop_to_mark)() };
    result
}

/// The identity of a context that cannot be told from others: it shares with those who were forked from this process.
fn nobody_else() -> [u64; 2] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    log::once(format_args!("the default library context has no SHA-256: sessions are not shared between programs"));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    [since.as_nanos() as u64, u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Relaxed)]
}

/// `None` where SHA-256 is not to be had: the default library context may have no provider of it.
fn digest(ctx: *mut SSL_CTX, id_context: &[u8]) -> Option<[u64; 2]> {
    // Sessions of 1.1.1 and of later versions are not written alike.
    let mut all = vec![1, if is_3_or_later() { 3 } else { 1 }, id_context.len() as u8];
    all.extend_from_slice(id_context);
    // SAFETY: the context is alive.
    let verify = unsafe { (table().SSL_CTX_get_verify_mode)(ctx) };
    all.extend_from_slice(&verify.to_le_bytes());
    let mut complete = true;
    let mut add = |sha256: &dyn Fn(*mut u8) -> c_int| {
        let mut one = [0; DIGEST];
        complete &= sha256(one.as_mut_ptr()) == 1;
        all.extend_from_slice(&one);
    };
    let table = table();
    // SAFETY: what is digested is alive, and the place for the digest as long as SHA-256's.
    unsafe {
        let mut leaf = |certificate: *const X509| {
            add(&|out| (table.X509_digest)(certificate, (table.EVP_sha256)(), out, null_mut()));
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
            for_each(names, |name| {
                add(&|out| (table.X509_NAME_digest)(name, (table.EVP_sha256)(), out, null_mut()));
            });
        }
    }
    let mut digest = [0; DIGEST];
    // SAFETY: `all` has `len` bytes, `digest` as many as SHA-256 writes.
    unsafe {
        let (md, engine) = ((table.EVP_sha256)(), null_mut());
        let result = (table.EVP_Digest)(all.as_ptr().cast(), all.len(), digest.as_mut_ptr(), null_mut(), md, engine);
        complete &= result == 1;
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at * 8 + byte]));
    complete.then(|| [word(0), word(1)])
}

/// A connection of the context that is never used, but for the certificates it has (one for each kind of key): going
/// through those of the context itself would change the context.
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
        const SET_CURRENT_CERT: c_int = 117; // SSL_CTRL_SET_CURRENT_CERT
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
