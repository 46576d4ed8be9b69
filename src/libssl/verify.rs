//! A client's certificate, verified again: libssl verifies one in a full handshake only, and a session may come back long
//! after its client was revoked, by another process, or from one that trusts others.

use super::chain::Certificates;
use super::digest::{connection_store, store_callbacks, suite_b};
use super::types::{SSL_SESSION, X509, X509_STORE_CTX};
use super::{table, Connection, Session, Store};
use crate::cancel;
use libc::{c_int, c_long, c_void};
use std::ptr::{null_mut, NonNull};

impl Connection {
    /// Whether this connection's context would come to the result that `session` carries, if the client showed its
    /// certificate now. Verify callbacks of the program are not called: where there is one, it is taken for one that lets
    /// the handshake go on and leaves the result as it is. Other functions of its trust store are.
    ///
    /// `store` is what is going to be verified with where that is not the store of the connection's present context.
    pub fn would_accept(&self, session: &Session, store: Option<&Store>) -> bool {
        // SAFETY: the session is alive.
        let peer = unsafe { (table().SSL_SESSION_get0_peer)(session.as_ptr()) };
        if peer.is_null() {
            return true;
        }
        // SAFETY: marks in the error queue of this thread have no preconditions.
        unsafe { (table().ERR_set_mark)() };
        // What a session has that was read from a record was parsed with it.
        let parsed = session.kept_chain();
        let result = match session.chain().filter(|_| parsed.is_null()).map(|chain| Certificates::read(chain)) {
            // SAFETY: the certificates are the session's, or this function's, and outlive the call.
            None => unsafe { self.verify(peer, parsed, store) },
            // SAFETY: as above.
            Some(Some(untrusted)) => unsafe { self.verify(peer, untrusted.as_ptr(), store) },
            Some(None) => None,
        };
        // SAFETY: as above. What went wrong is no error of the program's.
        unsafe { (table().ERR_pop_to_mark)() };
        result.is_some() && result == session.verify_result()
    }

    /// The result of verifying a client's certificate, as libssl does it in a handshake. `None` where it cannot be done.
    /// `untrusted` are the certificates that the client showed beside it.
    ///
    /// # Safety
    /// `peer` is alive, and `untrusted` is NULL or a live stack of certificates.
    unsafe fn verify(&self, peer: *mut X509, untrusted: *const c_void, store: Option<&Store>) -> Option<c_long> {
        let (table, ssl) = (table(), self.as_ptr());
        // SAFETY: the connection is alive and so are its context, store and parameters; the rest is this function's own.
        unsafe {
            let mut store: *mut c_void = store.map_or(null_mut(), Store::as_ptr);
            if store.is_null() {
                store = connection_store(ssl);
            }
            if store.is_null() {
                store = (table.SSL_CTX_get_cert_store)((table.SSL_get_SSL_CTX)(ssl));
            }
            let context = StoreContext(NonNull::new((table.X509_STORE_CTX_new)())?);
            let freed_at_the_end = context;
            let context = freed_at_the_end.0.as_ptr();
            if (table.X509_STORE_CTX_init)(context, store, peer, untrusted.cast_mut()) != 1 {
                return None;
            }
            (table.X509_STORE_CTX_set_default)(context, c"ssl_client".as_ptr());
            let param = (table.X509_STORE_CTX_get0_param)(context);
            (table.X509_VERIFY_PARAM_set_auth_level)(param, (table.SSL_get_security_level)(ssl));
            if (table.X509_VERIFY_PARAM_set1)(param, (table.SSL_get0_param)(ssl)) != 1 {
                return None;
            }
            (table.X509_STORE_CTX_set_flags)(context, suite_b(ssl));
            // As in a handshake, functions of the program's find the connection.
            (table.X509_STORE_CTX_set_ex_data)(context, (table.SSL_get_ex_data_X509_STORE_CTX_idx)(), ssl.cast());
            let callbacks = store_callbacks(store);
            if !(table.SSL_get_verify_callback)(ssl).is_null() || !(table.X509_STORE_get_verify_cb)(store).is_null() {
                (table.X509_STORE_CTX_set_verify_cb)(context, go_on);
            }
            // Verifying may read files, which is no cancellation point of the program's, and functions of its own may be.
            let _off = callbacks.iter().all(|callback| callback.is_null()).then(cancel::off);
            let verified = (table.X509_verify_cert)(context);
            let result = c_long::from((table.X509_STORE_CTX_get_error)(context));
            (verified >= 0 && (verified == 1 || result != 0)).then_some(result)
        }
    }
}

unsafe extern "C" fn go_on(_: c_int, _: *mut X509_STORE_CTX) -> c_int {
    1
}

struct StoreContext(NonNull<X509_STORE_CTX>);

impl Drop for StoreContext {
    fn drop(&mut self) {
        // SAFETY: it is ours alone.
        unsafe { (table().X509_STORE_CTX_free)(self.0.as_ptr()) };
    }
}

/// What a session remembers of its client's verification, and when its client's certificate ends.
impl Session {
    /// SSL_get_verify_result(3) of its connections. `None` if it cannot be had as DER.
    fn verify_result(&self) -> Option<c_long> {
        let mut der = Vec::new();
        self.write_der(&mut der).then(|| verify_result(&der))?
    }

    /// Whether the certificate of its peer has ended by now.
    pub fn outlived_its_peer(&self) -> bool {
        // SAFETY: the session is alive, and so is its certificate.
        unsafe {
            let peer = (table().SSL_SESSION_get0_peer)(self.as_ptr() as *mut SSL_SESSION);
            !peer.is_null() && (table().X509_cmp_current_time)((table().X509_get0_notAfter)(peer)) <= 0
        }
    }
}

/// Of a session as DER: an INTEGER in the field with the tag [5], which is left out for 0 (X509_V_OK).
fn verify_result(der: &[u8]) -> Option<c_long> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    const VERIFY_RESULT: u8 = 0xa5;
    let (SEQUENCE, mut fields, _) = element(der)? else { return None };
    while !fields.is_empty() {
        let (tag, content, rest) = element(fields)?;
        if tag == VERIFY_RESULT {
            let (INTEGER, number, _) = element(content)? else { return None };
            let sign = if *number.first()? & 0x80 == 0 { 0 } else { -1 };
            return (number.len() <= 8).then(|| number.iter().fold(sign, |sum, &byte| sum << 8 | c_long::from(byte)));
        }
        fields = rest;
    }
    Some(0)
}

/// The first element of DER with a tag of one byte: its tag and content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_read_from_der() {
        let session = |fields: &[u8]| [&[0x30, fields.len() as u8][..], fields].concat();
        let before = [0x02, 1, 1, 0xa1, 3, 0x02, 1, 9];
        assert_eq!(verify_result(&session(&before)), Some(0));
        assert_eq!(verify_result(&session(&[&before[..], &[0xa5, 3, 0x02, 1, 23]].concat())), Some(23));
        assert_eq!(verify_result(&session(&[&before[..], &[0xa5, 4, 0x02, 2, 1, 0]].concat())), Some(256));
        let whole = session(&[&before[..], &[0xa5, 3, 0x02, 1, 23]].concat());
        for end in 0..whole.len() {
            assert_eq!(verify_result(&whole[..end]), None, "{end}");
        }
        assert_eq!(verify_result(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
