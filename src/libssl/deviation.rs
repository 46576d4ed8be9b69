//! What a connection has been told otherwise than its context: SSL_set_SSL_CTX and SSL_set_verify in a servername
//! callback, certificates of a cert_cb, and the like. A session in a shared cache is only for connections that were told
//! the same.
//!
//! libssl looks a session up before it calls those callbacks, so a lookup cannot see what they are going to do. What they
//! did last for a client of the same server name is taken for it ([`Learned`]); a process in which there has been none
//! finds nothing for such a name until the first full handshake.

use super::types::SSL_CTX;
use super::{digest, module, table, Connection, Ctx};
use crate::gate;
use libc::c_void;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::RwLock;
use xxhash_rust::xxh3::Xxh3;

/// All 0 for a connection that is as its context has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deviation {
    /// The address of the context that it was switched to, which is compared and not followed.
    pub ctx: usize,
    verify: u64,
    certificate: u64,
}

impl Deviation {
    /// What sessions of such connections carry, 0 for those that do not deviate. `switched` is the identity of `ctx`.
    pub fn tag(&self, switched: [u64; 2]) -> [u64; 2] {
        if *self == Deviation::default() {
            return [0; 2];
        }
        let mut hash = Xxh3::new();
        let switched = if self.ctx == 0 { [0; 2] } else { switched };
        [switched[0], switched[1], self.verify, self.certificate]
            .iter()
            .for_each(|word| hash.update(&word.to_le_bytes()));
        let hash = hash.digest128();
        [(hash as u64).max(1), (hash >> 64) as u64]
    }
}

impl Connection {
    /// How this connection deviates from `ctx`, in which its sessions are cached. `knows` tells a certificate that the
    /// context has for another kind of key. `own` is a number that only this SSL_CTX and those forked from it have.
    pub fn deviation(&self, ctx: Ctx, knows: impl Fn(usize) -> bool, own: impl Fn() -> [u8; 16]) -> Deviation {
        let (table, ssl) = (table(), self.as_ptr());
        // SAFETY: the connection is alive, and so are its context, certificate and parameters.
        unsafe {
            let current: *mut SSL_CTX = (table.SSL_get_SSL_CTX)(ssl);
            let (mode, callback) = ((table.SSL_get_verify_mode)(ssl), (table.SSL_get_verify_callback)(ssl));
            let same_verify = mode == (table.SSL_CTX_get_verify_mode)(current)
                && callback == (table.SSL_CTX_get_verify_callback)(current)
                && parameters((table.SSL_get0_param)(ssl)) == parameters((table.SSL_CTX_get0_param)(current));
            let certificate = (table.SSL_get_certificate)(ssl);
            let same_certificate = certificate.is_null()
                || certificate == (table.SSL_CTX_get0_certificate)(current)
                || knows(certificate as usize);
            if same_verify && same_certificate && current == ctx.as_ptr() {
                return Deviation::default();
            }
            Deviation {
                ctx: if current == ctx.as_ptr() { 0 } else { current as usize },
                verify: if same_verify { 0 } else { hash_verify(mode, callback, (table.SSL_get0_param)(ssl), own) },
                certificate: if same_certificate { 0 } else { digest::certificate_number(certificate) },
            }
        }
    }

    /// The server name that the client asks for, while its ClientHello is being read. Empty if there is none.
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
                rest.get(..usize::from(high) << 8 | usize::from(low)).unwrap_or_default().to_vec()
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
                name => CStr::from_ptr(name).to_bytes().to_vec(),
            }
        }
    }
}

/// # Safety
/// `param` is alive.
unsafe fn parameters(param: *mut c_void) -> [u64; 6] {
    let table = table();
    // SAFETY: by the caller's promise.
    unsafe {
        let hidden = digest::hidden().map(|place| place.map_or(0, |place| place.read(param)) as u64);
        let host = table.X509_VERIFY_PARAM_get0_host.map_or(null(), |host| host(param, 0));
        [
            (table.X509_VERIFY_PARAM_get_flags)(param),
            (table.X509_VERIFY_PARAM_get_depth)(param) as u64,
            (table.X509_VERIFY_PARAM_get_auth_level)(param) as u64,
            hidden[0],
            hidden[1],
            if host.is_null() { 0 } else { xxhash_rust::xxh3::xxh3_64(CStr::from_ptr(host).to_bytes()) },
        ]
    }
}

/// Never 0.
///
/// # Safety
/// `param` is alive.
unsafe fn hash_verify(mode: i32, callback: *const c_void, param: *mut c_void, own: impl Fn() -> [u8; 16]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&mode.to_le_bytes());
    // SAFETY: by the caller's promise.
    unsafe { parameters(param) }.iter().for_each(|word| hash.update(&word.to_le_bytes()));
    if !callback.is_null() {
        match module::function(callback as usize) {
            Some(function) => {
                hash.update(&function.build_id);
                hash.update(&function.offset.to_le_bytes());
            }
            None => {
                hash.update(&own());
                hash.update(&(callback as usize).to_le_bytes());
            }
        }
    }
    hash.digest().max(1)
}

/// How connections of a context turned out, by the server name that their clients asked for.
#[derive(Default)]
pub struct Learned {
    any: AtomicBool,
    names: RwLock<HashMap<Vec<u8>, Deviation>>,
}

impl Learned {
    /// Names are chosen by clients.
    const MOST: usize = 1024;

    pub fn forget(&self) {
        self.any.store(false, Relaxed);
        let _inside = gate::enter();
        if let Ok(mut names) = self.names.write() {
            let forgotten = std::mem::take(&mut *names);
            drop(names);
            drop(forgotten);
        }
    }

    /// A full handshake ended like this.
    pub fn note(&self, name: Vec<u8>, deviation: Deviation) {
        if deviation == Deviation::default() && !self.any.load(Relaxed) || self.look(&name) == Some(deviation) {
            return;
        }
        let _inside = gate::enter();
        let Ok(mut names) = self.names.try_write() else { return };
        if names.len() >= Learned::MOST {
            names.clear();
        }
        self.any.store(true, Relaxed);
        names.insert(name, deviation);
    }

    pub fn look(&self, name: &[u8]) -> Option<Deviation> {
        let _inside = gate::enter();
        self.names.try_read().ok()?.get(name).copied()
    }

    /// How the connection will turn out that is `now` like this.
    pub fn expect(&self, connection: &Connection, now: Deviation) -> Option<Deviation> {
        if !self.any.load(Relaxed) {
            return Some(now);
        }
        match self.look(&connection.asked_name()) {
            None => Some(now),
            Some(learned) if now == Deviation::default() || now == learned => Some(learned),
            Some(_) => None,
        }
    }
}
