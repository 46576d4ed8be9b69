//! What a connection has been told otherwise than its context: SSL_set_SSL_CTX and SSL_set_verify in a servername
//! callback, certificates of a cert_cb, and the like. A session in a shared cache carries a tag, a digest of the server
//! name that its client asked for and of all of this, and is only for connections with the same tag.
//!
//! libssl looks a session up after the client_hello callback and before the servername callback and the cert_cb. Where
//! neither of these two is set, a lookup sees what the connection has been told. Where one is, the lookup relies on what
//! became of the connections with the same server name in this process ([`Learned`]); what is not known is a miss.

use super::types::SSL_CTX;
use super::{digest, table, Connection, Ctx};
use crate::gate;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null;

/// What a session carries in a shared cache. All 0: it carries none.
pub type Tag = [u64; 2];

const VERIFY_MODE: i32 = 3; // SSL_VERIFY_PEER and SSL_VERIFY_FAIL_IF_NO_PEER_CERT

/// All 0 for a connection that is as its context has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deviation {
    /// The address of the context that it was switched to, which is compared and not followed.
    pub ctx: usize,
    /// The verify mode and a digest of the mode, the callback and all parameters, where one of these differs.
    mode: i32,
    verify: [u64; 2],
    certificate: u64,
    /// It has a trust store of its own, which is not compared.
    pub has_store: bool,
}

impl Deviation {
    /// The tag of such connections whose clients asked for `name`. `switched` is the identity of `ctx`.
    pub fn tag(&self, name: &[u8], switched: [u64; 2]) -> Tag {
        // Most connections: no digest is needed to tell them from others.
        if *self == Deviation::default() && name.is_empty() {
            return [1, 0];
        }
        let switched = if self.ctx == 0 { [0; 2] } else { switched };
        let words = [switched[0], switched[1], self.verify[0], self.verify[1], self.certificate, self.has_store.into()];
        digest_of("connection", &words, name)
    }

    /// Tells it from others on the same connection; never 0.
    pub fn number(&self) -> usize {
        let words = [self.ctx as u64, self.verify[0], self.certificate, self.has_store.into()];
        digest_of("deviation", &words, &[])[0].max(1) as usize
    }

    /// Whether it asks less of a client than a connection with the verify mode `mode`, in the same context.
    fn is_laxer_than(&self, mode: i32) -> bool {
        self.ctx == 0 && self.verify != [0; 2] && mode & !self.mode & VERIFY_MODE != 0
    }
}

/// The tag of sessions that are like those with `tag` and stay with one SSL_CTX, in the processes that were forked since
/// it was made. `own` is what only these know.
pub fn kept_tag(tag: Tag, own: [u8; 16]) -> Tag {
    digest_of("kept", &tag, &own)
}

/// The tag of sessions that a program itself put into the cache of one SSL_CTX.
pub fn added_tag(own: [u8; 16]) -> Tag {
    digest_of("added", &[], &own)
}

/// Clients choose the names, so that it takes a digest of which nobody finds two equal ones.
fn digest_of(label: &str, words: &[u64], bytes: &[u8]) -> Tag {
    let mut hash = Sha256::new();
    hash.update(label.as_bytes());
    words.iter().for_each(|word| hash.update(word.to_le_bytes()));
    hash.update(bytes);
    let digest = hash.finalize();
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at * 8 + byte]));
    [word(0).max(2), word(1)]
}

impl Connection {
    /// The context that the connection has now.
    pub fn current(&self) -> *mut SSL_CTX {
        // SAFETY: the connection is alive.
        unsafe { (table().SSL_get_SSL_CTX)(self.as_ptr()) }
    }

    /// SSL_get_verify_mode(3)
    pub fn verify_mode(&self) -> i32 {
        // SAFETY: the connection is alive.
        unsafe { (table().SSL_get_verify_mode)(self.as_ptr()) }
    }

    /// How this connection deviates from `ctx`, in which its sessions are cached. `knows` tells a certificate that the
    /// connection's present context has for another kind of key. `own` is a number that only this SSL_CTX and those
    /// forked from it have.
    pub fn deviation(
        &self,
        ctx: Ctx,
        knows: impl Fn(usize) -> bool,
        own: impl Fn() -> [u8; 16],
        with_ip: bool,
    ) -> Deviation {
        let (table, ssl, current) = (table(), self.as_ptr(), self.current());
        // SAFETY: the connection is alive, and so are its context, certificate and parameters.
        unsafe {
            let (mode, callback) = (self.verify_mode(), (table.SSL_get_verify_callback)(ssl));
            let param = (table.SSL_get0_param)(ssl);
            let same_verify = mode == (table.SSL_CTX_get_verify_mode)(current)
                && callback == (table.SSL_CTX_get_verify_callback)(current)
                && digest::parameters_number(param, with_ip)
                    == digest::parameters_number((table.SSL_CTX_get0_param)(current), with_ip);
            let has_store = digest::connection_store(ssl) != digest::verify_store(current);
            let certificate = (table.SSL_get_certificate)(ssl);
            let same_certificate = certificate.is_null()
                || certificate == (table.SSL_CTX_get0_certificate)(current)
                || knows(certificate as usize);
            if same_verify && same_certificate && !has_store && current == ctx.as_ptr() {
                return Deviation::default();
            }
            Deviation {
                ctx: if current == ctx.as_ptr() { 0 } else { current as usize },
                mode: if same_verify { 0 } else { mode },
                verify: if same_verify { [0; 2] } else { digest::verification(mode, callback, param, own()) },
                certificate: if same_certificate { 0 } else { digest::certificate_number(certificate) },
                has_store,
            }
        }
    }

    /// Whether a function of the program's takes part in judging a client's certificate, beside SSL_CTX's
    /// cert_verify_callback, which libssl does not tell.
    pub fn calls_back(&self) -> bool {
        let table = table();
        // SAFETY: the connection is alive, and so is its context with its stores.
        unsafe {
            let current = self.current();
            let stores = [digest::connection_store(self.as_ptr()), (table.SSL_CTX_get_cert_store)(current)];
            !(table.SSL_get_verify_callback)(self.as_ptr()).is_null()
                || stores.iter().any(|&store| digest::store_callbacks(store).iter().any(|callback| !callback.is_null()))
        }
    }

    /// Whether its client has proved that it knows a key of both (PSK) or a password (SRP), up to TLS 1.2.
    pub fn has_shared_secret(&self) -> bool {
        let (table, ssl) = (table(), self.as_ptr());
        // SAFETY: the connection is alive.
        unsafe {
            !(table.SSL_get_psk_identity)(ssl).is_null()
                || table.SSL_get_srp_username.is_some_and(|username| !username(ssl).is_null())
        }
    }

    /// The server name that the client asks for, in lower case, while its ClientHello is being read. Empty if there is
    /// none.
    pub fn asked_name(&self) -> Vec<u8> {
        const SERVER_NAME: libc::c_uint = 0;
        let (mut data, mut length) = (null(), 0);
        // SAFETY: the connection is alive, and the extension has `length` bytes.
        let extension = unsafe {
            match (table().SSL_client_hello_get0_ext)(self.as_ptr(), SERVER_NAME, &mut data, &mut length) {
                1 if !data.is_null() => std::slice::from_raw_parts(data, length),
                _ => &[],
            }
        };
        // The length of the list, the kind of the name (a host), its length.
        match extension.split_first_chunk::<5>() {
            Some((&[_, _, 0, high, low], rest)) => {
                rest.get(..usize::from(high) << 8 | usize::from(low)).unwrap_or_default().to_ascii_lowercase()
            }
            _ => Vec::new(),
        }
    }

    /// The same, once a handshake has been made.
    pub fn name(&self) -> Vec<u8> {
        const HOST_NAME: libc::c_int = 0;
        // SAFETY: the connection is alive, and the name a C string of it.
        unsafe {
            match (table().SSL_get_servername)(self.as_ptr(), HOST_NAME) {
                name if name.is_null() => Vec::new(),
                name => CStr::from_ptr(name).to_bytes().to_ascii_lowercase(),
            }
        }
    }
}

/// What the connections with one server name turned out as: mostly one.
type Outcomes = SmallVec<[Deviation; 1]>;

/// How connections of a context turned out, by the server name that their clients asked for.
#[derive(Default)]
pub struct Learned {
    names: RwLock<HashMap<Vec<u8>, Outcomes>>,
}

/// What is known of a server name.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    /// No connection with that name has been seen.
    Unknown,
    /// The connection is going to be like this.
    Outcome(Deviation),
    /// Connections with that name differ, or it would ask less of its client than it does now.
    Unclear,
}

impl Learned {
    /// Names are chosen by clients. A table that is full learns no further ones.
    const MOST: usize = 1024;
    /// Of one name.
    const MOST_OUTCOMES: usize = 4;

    pub fn forget(&self) {
        let inside = gate::enter();
        let forgotten = std::mem::take(&mut *self.names.write());
        drop(inside);
        drop(forgotten);
    }

    /// A full handshake ended like this. `is_alive` tells whether there is an SSL_CTX at an address.
    pub fn note(&self, name: Vec<u8>, outcome: Deviation, is_alive: impl Fn(usize) -> bool) {
        let _inside = gate::enter();
        if self.names.read().get(&name).is_some_and(|outcomes| outcomes.contains(&outcome)) {
            return;
        }
        let mut names = self.names.write();
        if names.len() >= Learned::MOST && !names.contains_key(&name) {
            return;
        }
        let outcomes = names.entry(name).or_default();
        outcomes.retain(|known| is_alive(known.ctx));
        // One more than that says that there were too many.
        if outcomes.len() <= Learned::MOST_OUTCOMES {
            outcomes.push(outcome);
        }
    }

    /// How the connection will turn out that is `now` like this, and has the verify mode `mode`.
    pub fn expect(&self, name: &[u8], now: Deviation, mode: i32, is_alive: impl Fn(usize) -> bool) -> Expected {
        let _inside = gate::enter();
        let names = self.names.read();
        let Some(outcomes) = names.get(name) else { return Expected::Unknown };
        if outcomes.len() > Learned::MOST_OUTCOMES {
            return Expected::Unclear;
        }
        if now != Deviation::default() {
            // The program told it something before its ClientHello was read.
            return if outcomes.contains(&now) { Expected::Outcome(now) } else { Expected::Unclear };
        }
        let mut alive = outcomes.iter().filter(|known| is_alive(known.ctx));
        match (alive.next(), alive.next()) {
            (Some(&outcome), None) if !outcome.is_laxer_than(mode) => Expected::Outcome(outcome),
            (None, _) => Expected::Unknown,
            _ => Expected::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifying(mode: i32) -> Deviation {
        Deviation { mode, verify: [mode as u64 + 1, 0], ..Deviation::default() }
    }

    fn switched(ctx: usize) -> Deviation {
        Deviation { ctx, ..Deviation::default() }
    }

    #[test]
    fn a_tag_has_the_name_and_all_that_deviates() {
        let mut tags = Vec::new();
        for name in [&b""[..], b"a.test", b"b.test"] {
            for deviation in [
                Deviation::default(),
                verifying(1),
                verifying(3),
                switched(7),
                Deviation { certificate: 1, ..Deviation::default() },
                Deviation { has_store: true, ..Deviation::default() },
            ] {
                tags.push(deviation.tag(name, [5, 6]));
                tags.push(kept_tag(deviation.tag(name, [5, 6]), [1; 16]));
            }
        }
        tags.push(added_tag([1; 16]));
        tags.push([0; 2]);
        tags.push(switched(7).tag(b"", [6, 5]));
        for (at, tag) in tags.iter().enumerate() {
            assert!(!tags[..at].contains(tag), "{at}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_expected() {
        let (learned, now, alive) = (Learned::default(), Deviation::default(), |_: usize| true);
        assert_eq!(learned.expect(b"a", now, 0, alive), Expected::Unknown);
        learned.note(b"a".to_vec(), verifying(3), alive);
        assert_eq!(learned.expect(b"a", now, 0, alive), Expected::Outcome(verifying(3)));
        assert_eq!(learned.expect(b"b", now, 0, alive), Expected::Unknown);
        assert_eq!(learned.expect(b"a", switched(9), 0, alive), Expected::Unclear);
        assert_eq!(learned.expect(b"a", verifying(3), 3, alive), Expected::Outcome(verifying(3)));
        // Two ways for one name, of which one is of a context that goes.
        learned.note(b"a".to_vec(), switched(9), alive);
        assert_eq!(learned.expect(b"a", now, 0, alive), Expected::Unclear);
        assert_eq!(learned.expect(b"a", switched(9), 0, alive), Expected::Outcome(switched(9)));
        assert_eq!(learned.expect(b"a", now, 0, |ctx| ctx == 0), Expected::Outcome(verifying(3)));
        // Less than what is asked for already.
        learned.note(b"c".to_vec(), verifying(0), alive);
        assert_eq!(learned.expect(b"c", now, 1, alive), Expected::Unclear);
        assert_eq!(learned.expect(b"c", now, 0, alive), Expected::Outcome(verifying(0)));
        // Too many ways.
        (0..9).for_each(|ctx| learned.note(b"d".to_vec(), switched(100 + ctx), alive));
        assert_eq!(learned.expect(b"d", switched(100), 0, alive), Expected::Unclear);
    }

    #[test]
    fn a_full_table_keeps_what_it_has() {
        let (learned, now) = (Learned::default(), Deviation::default());
        learned.note(b"secret".to_vec(), verifying(3), |_| true);
        for name in 0..2 * Learned::MOST {
            learned.note(name.to_string().into_bytes(), now, |_| true);
        }
        assert_eq!(learned.expect(b"secret", now, 0, |_| true), Expected::Outcome(verifying(3)));
        assert_eq!(learned.expect(b"2000", now, 0, |_| true), Expected::Unknown);
    }
}
