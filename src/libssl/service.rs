//! Which service an SSL_CTX is. Where several contexts share a cache, a session must not cross from one to another that
//! would not have accepted its peer: what a context is configured to accept decides ([`digest`] says what that is), as
//! it is configured now. (Programs that set no session id context, or all the same one, rely on their contexts having
//! caches of their own.)

use super::digest;
use super::types::{CertVerifyCallback, SSL_CTX, X509};
use super::{table, Connection, Ctx, Deviation};
use crate::{gate, log};
use libc::{c_int, c_void};
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The service of one SSL_CTX, worked out anew when the context was changed.
#[derive(Default)]
pub struct Service {
    /// What `outline` was when the identity was worked out, 0 where it has to be worked out.
    outline: AtomicU64,
    /// 0 where it is not known.
    identity: [AtomicU64; 2],
    follows_store: AtomicBool,
    details: Mutex<Details>,
}

/// What the program's setters change comes first, in one or two cache lines with the lock: with thousands of contexts, a
/// setter waits for each line that it reads.
#[derive(Default)]
#[repr(C)]
struct Details {
    /// How often `known` was changed.
    changes: u64,
    known: Known,
    /// Kept, so that no other object has their addresses.
    certificate: Option<Certificate>,
    /// The addresses of all of them, one for each kind of key.
    certificates: Vec<usize>,
    stores: [Option<Store>; 2],
}

/// What libssl does not tell of an SSL_CTX.
#[derive(Clone, Default)]
#[repr(C)]
pub struct Known {
    /// The callback of SSL_CTX_set_cert_verify_callback(3) and its argument.
    pub cert_verify: [usize; 2],
    /// The callback of SSL_CTX_set_tlsext_servername_callback(3), 0 for none. It decides what clients must show, and by what
    /// its contexts tell it.
    pub servername_callback: usize,
    /// Of SSL_CTX_set_session_id_context(3), which allows 32 bytes.
    pub id_context: SmallVec<[u8; 32]>,
    /// Of the cache's URL: keeps apart what is equal otherwise.
    pub label: String,
    /// The signature algorithms and groups that the program has set, by the command of SSL_CTX_ctrl(3) that set them.
    pub algorithms: BTreeMap<c_int, Vec<u8>>,
    /// What no other SSL_CTX has, except in processes that were forked from this one.
    pub own: [u8; 16],
}

/// The details, locked inside the gate: a fork waits until the lock is free.
struct Locked<'a> {
    details: MutexGuard<'a, Details>,
    /// Left after the lock was given back.
    _inside: gate::Inside,
}

impl Deref for Locked<'_> {
    type Target = Details;
    fn deref(&self) -> &Details {
        &self.details
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.details
    }
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

/// One counted reference to an X509_STORE.
pub struct Store(NonNull<c_void>);

// SAFETY: libcrypto counts references to stores atomically, and only the reference is used.
unsafe impl Send for Store {}

impl Store {
    pub fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// # Safety
    /// `store` is NULL or alive.
    unsafe fn keep(store: *mut c_void) -> Option<Store> {
        let store = NonNull::new(store)?;
        // SAFETY: by the caller's promise.
        (unsafe { (table().X509_STORE_up_ref)(store.as_ptr()) } == 1).then_some(Store(store))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: one reference is ours, and it is given up once.
        unsafe { (table().X509_STORE_free)(self.0.as_ptr()) };
    }
}

impl Service {
    /// For another SSL_CTX.
    pub fn reset(&self) {
        let fresh = Details { known: Known { own: own(), ..Known::default() }, ..Details::default() };
        let mut details = self.details();
        self.forget_identity();
        let changes = details.changes + 1;
        let fresh = Details { changes, ..fresh };
        let before = std::mem::replace(&mut *details, fresh);
        drop(details);
        drop(before);
    }

    /// The SSL_CTX ends: what was kept of it goes.
    pub fn end(&self) {
        let mut details = self.details();
        self.forget_identity();
        details.changes += 1;
        let kept = (details.certificate.take(), std::mem::take(&mut details.stores));
        drop(details);
        drop(kept);
    }

    /// SSL_CTX_set_session_id_context(3) was called.
    pub fn set_id_context(&self, id_context: &[u8]) {
        self.change(
            |known| known.id_context = SmallVec::from_slice(id_context),
            |known| known.id_context[..] == *id_context,
        );
    }

    /// Changes what is known, if it `is` not that already. Under the lock, with the identity as not known.
    fn change(&self, change: impl FnOnce(&mut Known), is: impl FnOnce(&Known) -> bool) {
        let mut details = self.details();
        if !is(&details.known) {
            self.outline.store(0, Release);
            details.changes += 1;
            change(&mut details.known);
        }
    }

    fn forget_identity(&self) {
        self.outline.store(0, Release);
        self.identity.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Whether the program has set one that is not empty.
    pub fn has_id_context(&self) -> bool {
        !self.details().known.id_context.is_empty()
    }

    /// The cache's URL gives the service a label.
    pub fn set_label(&self, label: &str) {
        self.change(|known| known.label = label.into(), |known| known.label == label);
    }

    /// Whether it has one. With it a program's functions that are in the same place of the same module are taken for
    /// equal, whatever data they look at.
    pub fn has_label(&self) -> bool {
        !self.details().known.label.is_empty()
    }

    /// What only this SSL_CTX has, and those in processes that were forked since it was made.
    pub fn own(&self) -> [u8; 16] {
        self.details().known.own
    }

    /// Whether the program verifies certificates by a function of its own (SSL_CTX_set_cert_verify_callback(3)).
    pub fn has_cert_verify(&self) -> bool {
        self.details().known.cert_verify[0] != 0
    }

    /// Whether what the trust store reads at run time makes the context another service. Not where certificates are
    /// verified again: a store that reads folders when it needs them would be another service each time.
    pub fn follow_store(&self, follow: bool) {
        self.follows_store.store(follow, Relaxed);
    }

    /// SSL_CTX_set_cert_verify_callback(3) was called.
    pub fn set_cert_verify(&self, callback: CertVerifyCallback, argument: *mut c_void) {
        let set = [callback.map_or(0, |callback| callback as usize), argument as usize];
        self.change(|known| known.cert_verify = set, |known| known.cert_verify == set);
    }

    /// SSL_CTX_set_tlsext_servername_callback(3) was called.
    pub fn set_servername_callback(&self, callback: usize) {
        self.change(|known| known.servername_callback = callback, |known| known.servername_callback == callback);
    }

    /// SSL_CTX_set1_sigalgs(3), SSL_CTX_set1_groups(3) and their like were called, or the flags of certificates changed.
    pub fn set_algorithms(&self, command: c_int, value: &[u8]) {
        self.change(
            |known| drop(known.algorithms.insert(command, value.to_vec())),
            |known| known.algorithms.get(&command).is_some_and(|known| known == value),
        );
    }

    /// Contexts with equal identities are the same service.
    pub fn identity(&self, ctx: Ctx) -> [u64; 2] {
        let outline = self.outline_of(ctx);
        if self.outline.load(Acquire) != outline {
            // A callback of the program's that asks while it is being worked out hears of no other process's sessions.
            return match Working::begin() {
                Some(_working) => self.work_out(ctx, outline),
                None => words(&self.own()),
            };
        }
        self.identity.each_ref().map(|word| word.load(Relaxed))
    }

    /// The same without working it out: `None` if the context was changed since that was last done.
    pub fn known_identity(&self, ctx: Ctx) -> Option<[u64; 2]> {
        let identity = self.identity.each_ref().map(|word| word.load(Relaxed));
        (self.outline.load(Acquire) == self.outline_of(ctx) && identity != [0; 2]).then_some(identity)
    }

    fn outline_of(&self, ctx: Ctx) -> u64 {
        outline(ctx.as_ptr(), self.follows_store.load(Relaxed))
    }

    /// What its context verifies clients with, as of when the identity was last worked out: the SSL_CTX may be gone.
    pub fn store(&self) -> Option<Store> {
        let details = self.details();
        let [own, verify] = &details.stores;
        // SAFETY: a reference that is kept is to a store that is alive.
        verify.as_ref().or(own.as_ref()).and_then(|store| unsafe { Store::keep(store.as_ptr()) })
    }

    /// How a connection deviates from this service's context. `current` is the service of the context that it has now,
    /// `with_ip` as in [`digest::parameters_number`].
    pub fn deviation(&self, connection: &Connection, ctx: Ctx, current: Option<&Service>, with_ip: bool) -> Deviation {
        let knows =
            |certificate: usize| current.is_some_and(|current| current.details().certificates.contains(&certificate));
        connection.deviation(ctx, knows, || self.own(), with_ip)
    }

    /// Outside the lock and the gate: libssl calls the program's ex_data callbacks when the certificates are asked for. What
    /// was changed meanwhile is worked out again by the next who asks.
    #[cold]
    fn work_out(&self, ctx: Ctx, outline: u64) -> [u64; 2] {
        let (known, changes) = {
            let details = self.details();
            (details.known.clone(), details.changes)
        };
        // SAFETY: the context is alive, and so are its certificate and its stores.
        let (certificate, stores) = unsafe {
            (
                certificate(ctx.as_ptr()),
                [(table().SSL_CTX_get_cert_store)(ctx.as_ptr()), digest::verify_store(ctx.as_ptr())]
                    .map(|store| Store::keep(store)),
            )
        };
        let certificates = quietly(|| digest::certificates(ctx.as_ptr()));
        let identity = quietly(|| digest::identity(ctx.as_ptr(), &known));
        let identity = identity.unwrap_or_else(|| nobody_else(&known));
        let mut details = self.details();
        if details.changes != changes {
            return identity;
        }
        details.certificates = certificates;
        let before =
            (std::mem::replace(&mut details.certificate, certificate), std::mem::replace(&mut details.stores, stores));
        self.identity[0].store(identity[0], Relaxed);
        self.identity[1].store(identity[1], Relaxed);
        self.outline.store(outline, Release);
        drop(details);
        drop(before);
        identity
    }

    fn details(&self) -> Locked<'_> {
        let inside = gate::enter();
        Locked { details: self.details.lock().unwrap_or_else(PoisonError::into_inner), _inside: inside }
    }
}

/// A number that is another one when the context was changed in what its identity is made of. Never 0.
///
/// It is asked for at each lookup, so it looks at addresses and numbers: another store, another certificate, other
/// parameters (by content), callbacks, names, bounds, ciphers (see [`digest::ciphers_number`]). With
/// `follows_store` also more objects in a store (none is ever removed from one), and another IP address: where certificates
/// are verified again, that judges them as they are.
fn outline(ctx: *mut SSL_CTX, follows_store: bool) -> u64 {
    let table = table();
    let mut outline = 1;
    let mut mix = |value: u64| outline = digest::mixed(outline, value);
    // SAFETY: the context is alive. Addresses are compared; the parameters and stores are the context's.
    unsafe {
        mix((table.SSL_CTX_get0_certificate)(ctx) as u64);
        mix((table.SSL_CTX_get_verify_mode)(ctx) as u64);
        mix((table.SSL_CTX_get_verify_callback)(ctx) as u64);
        mix(digest::parameters_number((table.SSL_CTX_get0_param)(ctx), follows_store));
        for store in [(table.SSL_CTX_get_cert_store)(ctx), digest::verify_store(ctx)] {
            mix(store as u64);
            if !store.is_null() {
                mix((table.X509_VERIFY_PARAM_get_flags)((table.X509_STORE_get0_param)(store)));
                digest::store_callbacks(store).iter().for_each(|&callback| mix(callback as u64));
                if follows_store {
                    mix((table.OPENSSL_sk_num)((table.X509_STORE_get0_objects)(store)) as u64);
                }
            }
        }
        mix(digest::bounds(ctx));
        mix((table.SSL_CTX_get_options)(ctx) & digest::OPTIONS);
        mix((table.SSL_CTX_get_security_level)(ctx) as u64);
        mix(digest::ciphers_number((table.SSL_CTX_get_ciphers)(ctx)));
    }
    for names in digest::lists(ctx) {
        mix(names as u64);
        digest::for_each(names, |name| mix(name as u64));
    }
    outline.max(1)
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
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: marks in the error queue of this thread have no preconditions.
    unsafe { (table().ERR_set_mark)() };
    let result = work();
    // SAFETY: as above.
    unsafe { (table().ERR_pop_to_mark)() };
    result
}

/// A number of an SSL_CTX's own: random, or, where the system has no random numbers, by time, process and order.
fn own() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut own = [0; 16];
    if getrandom::fill(&mut own).is_err() {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        own[..8].copy_from_slice(&(since.as_nanos() as u64).to_le_bytes());
        let order = u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Relaxed);
        own[8..].copy_from_slice(&order.to_le_bytes());
    }
    own
}

/// The identity of a context that cannot be told from others: it shares with those who were forked from this process.
fn nobody_else(known: &Known) -> [u64; 2] {
    log::once(format_args!("the default library context has no SHA-256: sessions are not shared between programs"));
    words(&known.own)
}

pub fn words(own: &[u8; 16]) -> [u64; 2] {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| own[at * 8 + byte]));
    [word(0), word(1)]
}

thread_local!(static WORKING: Cell<bool> = const { Cell::new(false) });

/// While this thread works an identity out, until it is dropped.
struct Working;

impl Working {
    /// `None` if it does so already.
    fn begin() -> Option<Working> {
        (!WORKING.replace(true)).then_some(Working)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.set(false);
    }
}
