//! The certificates that a client showed beside its own. libssl keeps them with the session object
//! (SSL_get_peer_cert_chain(3)) and leaves them out when it writes one as DER, so a record of a shared cache has them
//! beside the DER, and a session that is read from a record has them with its client's certificate: in its ex_data, from
//! which they go when it is freed. So they are there for as long as libssl's own would be, and tickets that are issued on
//! a resumed connection, whose sessions share the certificate, have them as well.
//!
//! Each library context numbers the places of ex_data by itself, so that a place of ours may be the program's where
//! OSSL_LIB_CTX_set0_default has changed the counter. There the certificates are not kept.

use super::digest::for_each;
use super::types::{SSL_SESSION, X509};
use super::{context, table, Connection, Session};
use libc::{c_int, c_long, c_void};
use std::ptr::{null, null_mut, NonNull};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::Arc;

/// The certificates as DER, one after another. They help to find the way from the client's certificate to one that is
/// trusted, and are trusted in nothing themselves.
pub type Chain = Arc<Vec<u8>>;

/// Longer ones are not kept: a record has an end, and few clients have more than two.
const LONGEST: usize = 16 << 10;

/// Where in a certificate's ex_data they are. Negative until the first session with a client's certificate is read.
static PLACE: AtomicI32 = AtomicI32::new(-1);
const X509_CLASS: c_int = 3; // CRYPTO_EX_INDEX_X509

/// A stack of certificates (`STACK_OF(X509)`) with a reference to each.
pub struct Certificates(NonNull<c_void>);

impl Certificates {
    /// `None` where there is no memory; what is no certificate ends the chain.
    pub fn read(chain: &[u8]) -> Option<Certificates> {
        // SAFETY: no preconditions.
        let stack = Certificates(NonNull::new(unsafe { (table().OPENSSL_sk_new_null)() })?);
        let (mut at, end) = (chain.as_ptr(), chain.as_ptr_range().end);
        while at < end {
            // SAFETY: between the two are bytes of `chain`, and d2i_X509 moves `at` within them.
            let certificate = unsafe { (table().d2i_X509)(null_mut(), &mut at, end.offset_from(at) as c_long) };
            if certificate.is_null() {
                break;
            }
            // SAFETY: both are ours. What the stack does not take is freed here.
            unsafe {
                if (table().OPENSSL_sk_push)(stack.as_ptr(), certificate.cast()) <= 0 {
                    (table().X509_free)(certificate);
                    return None;
                }
            }
        }
        Some(stack)
    }

    pub fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    fn into_ptr(self) -> *mut c_void {
        std::mem::ManuallyDrop::new(self).as_ptr()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        for_each(self.as_ptr(), |certificate| {
            // SAFETY: each reference is the stack's, and it is given up once.
            unsafe { (table().X509_free)(certificate.cast()) };
        });
        // SAFETY: the stack is ours alone.
        unsafe { (table().OPENSSL_sk_free)(self.as_ptr()) };
    }
}

/// Of a certificate that is being freed.
unsafe extern "C" fn free(
    _certificate: *mut c_void,
    chain: *mut c_void,
    _data: *mut c_void,
    _place: c_int,
    _number: c_long,
    _argument: *mut c_void,
) {
    drop(NonNull::new(chain).map(Certificates));
}

fn place() -> Option<c_int> {
    context::note_default();
    if context::has_other_default() {
        return None;
    }
    if PLACE.load(Relaxed) < 0 {
        // SAFETY: the function lives as long as the process, since the library is never unloaded.
        let place = unsafe {
            let free = free as unsafe extern "C" fn(_, _, _, _, _, _);
            (table().CRYPTO_get_ex_new_index)(X509_CLASS, 0, null_mut(), null_mut(), null_mut(), free as *mut c_void)
        };
        // Two that are given out at once are both ours, and the later one stays unused.
        let _ = PLACE.compare_exchange(-1, place, Relaxed, Relaxed);
    }
    Some(PLACE.load(Relaxed)).filter(|&place| place >= 0)
}

/// What [`Session::keep_chain`] has kept with a certificate, NULL for nothing.
///
/// # Safety
/// `certificate` is NULL or alive.
unsafe fn kept(certificate: *const X509) -> *const c_void {
    let place = PLACE.load(Relaxed);
    if certificate.is_null() || place < 0 || context::has_other_default() {
        return null();
    }
    // SAFETY: by the caller's promise.
    unsafe { (table().X509_get_ex_data)(certificate, place) }
}

impl Session {
    fn peer(&self) -> *mut X509 {
        // SAFETY: the session is alive.
        unsafe { (table().SSL_SESSION_get0_peer)(self.as_ptr() as *mut SSL_SESSION) }
    }

    /// Keeps this session's chain with its client's certificate. Nobody else has the session yet.
    pub(super) fn keep_chain(&self) {
        let (Some(chain), peer) = (self.chain(), self.peer()) else { return };
        if peer.is_null() {
            return;
        }
        let Some((place, certificates)) = place().and_then(|place| Some((place, Certificates::read(chain)?))) else {
            return;
        };
        // SAFETY: the certificate is alive, and nobody else has it. The stack is given away.
        unsafe {
            if (table().X509_set_ex_data)(peer, place, certificates.as_ptr()) == 1 {
                certificates.into_ptr();
            }
        }
    }

    /// The chain that was kept, NULL for none. It lives as long as the session.
    pub fn kept_chain(&self) -> *const c_void {
        // SAFETY: the certificate is the session's.
        unsafe { kept(self.peer()) }
    }
}

impl Connection {
    /// SSL_get_peer_cert_chain(3): what libssl has, or what was kept with the session that is resumed. It lives as long as
    /// the session. NULL where there is none.
    pub fn peer_chain(&self) -> *const c_void {
        // SAFETY: the connection is alive, and so is its session, which may be NULL.
        unsafe {
            let shown = (table().SSL_get_peer_cert_chain)(self.as_ptr());
            if !shown.is_null() || PLACE.load(Relaxed) < 0 {
                return shown;
            }
            match Session::borrow((table().SSL_get_session)(self.as_ptr())) {
                Some(session) => session.kept_chain(),
                None => null(),
            }
        }
    }

    /// The same for a record. `None` if it is not known, or too long.
    pub fn chain(&self) -> Option<Chain> {
        let shown = self.peer_chain();
        if shown.is_null() {
            return None;
        }
        let mut chain = Vec::new();
        for_each(shown, |certificate| write(certificate.cast(), &mut chain));
        (chain.len() <= LONGEST).then(|| Arc::new(chain))
    }
}

/// Appends a certificate as DER.
fn write(certificate: *mut X509, out: &mut Vec<u8>) {
    // SAFETY: the certificate is alive; first the length is asked for, then so many bytes are written.
    unsafe {
        let length = (table().i2d_X509)(certificate, null_mut());
        let Some(length) = usize::try_from(length).ok().filter(|&length| length > 0) else { return };
        let before = out.len();
        // One byte more than may be kept says that it is too long.
        if before + length > LONGEST {
            out.resize(LONGEST + 1, 0);
            return;
        }
        out.resize(before + length, 0);
        let mut end = out[before..].as_mut_ptr();
        (table().i2d_X509)(certificate, &mut end);
    }
}
