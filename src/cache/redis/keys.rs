//! The fleet keys: what machines that share a Redis have in common, and Redis never sees.
//!
//! Each key of the file has four subkeys (HKDF-Expand of RFC 5869 with SHA-256, the label as its info), so that nothing
//! made for one purpose serves another:
//!
//! | label | what it makes |
//! |---|---|
//! | `reprise names` | what Redis calls a session: HMAC of service, version and id |
//! | `reprise ids` | the second half of an issued id: HMAC of service and its first half, 16 random bytes |
//! | `reprise seal` | the sealed record: XChaCha20-Poly1305 |
//! | `reprise hint` | four bytes that tell which key sealed a record |
//!
//! A sealed record is format (1 byte), hint (4), nonce (24, random), ciphertext, tag (16). Its associated data is
//! format, service (two little-endian words), version (4, little-endian), length of the id (1) and the id: it opens as
//! what it was sealed as, or not at all. What is sealed is the length (4 bytes, little-endian), the content, and zeros up
//! to a multiple of 128 bytes: the length of a record tells little of the server name and the certificates in it.
//!
//! Rotation is to disturb nobody. The file goes from `A` to `A B`, to `B A`, to `B`, and each step is complete
//! on all machines before the next one begins. So two machines are never more than a step apart, and
//! - every machine can open what another one seals: the first key of one is always somewhere in the file of the other;
//! - an issued id has one name for all, under the key that issued it. Any other id is named under the first key of who
//!   writes it, and looked for under all;
//! - no name that is keyed with one of these keys can be the same on all: `A` and `A B` would have to agree on A, `B A` and
//!   `B` on B, and `A B` and `B A` with each other. What has to be the same on all is the name of a service. So the file
//!   has a secret for that which stays in a rotation: the line `fleet`. Without that line the name is a plain hash, which
//!   tells who knows a server's certificate and configuration that this server is there.

use super::super::{shm, Key, Service, LONGEST};
use chacha20poly1305::{aead::AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// As many keys a file may have.
pub const MOST_KEYS: usize = 64;
/// Of a key, in bytes.
const KEY: usize = 32;
const LONGEST_FILE: usize = 64 << 10;

/// The first byte of a sealed record.
const FORMAT: u8 = 2;
const HINT: usize = 4;
const NONCE: usize = 24;
const TAG: usize = 16;
/// What goes before the ciphertext.
const HEAD: usize = 1 + HINT + NONCE;
/// What goes before the content.
const LENGTH: usize = 4;
/// Contents are filled up to a multiple of this.
const BLOCK: usize = 128;

/// How long the sealed record of so many bytes is.
pub const fn sealed_length(content: usize) -> usize {
    HEAD + (LENGTH + content).div_ceil(BLOCK) * BLOCK + TAG
}

/// What begins the line of the secret that the names of services are keyed with.
const FLEET: &str = "fleet ";

/// Of an issued id: so many random bytes, then the MAC.
const RANDOM: usize = 16;

/// 16 bytes as hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex([u8; 32]);

impl Hex {
    fn new(bytes: &[u8]) -> Hex {
        let nibble = |at: usize| bytes.get(at / 2).map_or(0, |byte| byte >> (4 * (1 - at % 2)) & 15);
        Hex(std::array::from_fn(|at| b"0123456789abcdef"[usize::from(nibble(at))]))
    }
}

impl Deref for Hex {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(self)
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(self)
    }
}

/// What Redis calls a session. Who has no fleet key cannot tell the session's id from it, nor make it from an id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Name {
    /// Spreads the sessions of a service; independent of `text`.
    pub bucket: u8,
    pub text: Hex,
}

/// At least one. What they hold is overwritten when they are dropped.
pub struct Keys {
    keys: Vec<Subkeys>,
    services: Option<Hmac<Sha256>>,
}

struct Subkeys {
    hint: [u8; HINT],
    names: Hmac<Sha256>,
    ids: Hmac<Sha256>,
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for Keys {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        write!(to, "{} keys", self.keys.len())
    }
}

/// Keyed with 32 bytes.
fn hmac(key: &[u8; KEY]) -> Hmac<Sha256> {
    let mut block = Zeroizing::new([0; 64]);
    block[..KEY].copy_from_slice(key);
    Hmac::new((&*block).into())
}

impl Subkeys {
    fn new(key: &[u8; KEY]) -> Subkeys {
        let expand = |label: &str| {
            let block = hmac(key).chain_update(label).chain_update([1]).finalize().into_bytes();
            Zeroizing::new(<[u8; KEY]>::from(block))
        };
        let hint = expand("reprise hint");
        Subkeys {
            hint: std::array::from_fn(|byte| hint[byte]),
            names: hmac(&expand("reprise names")),
            ids: hmac(&expand("reprise ids")),
            cipher: XChaCha20Poly1305::new((&*expand("reprise seal")).into()),
        }
    }

    fn name(&self, bound: &Bound) -> Name {
        let hash = self.names.clone().chain_update(bound.without_format()).finalize().into_bytes();
        Name { bucket: hash[16], text: Hex::new(&hash[..16]) }
    }

    /// Over which the second half of an issued id is made.
    fn id_mac(&self, service: Service, random: &[u8]) -> Hmac<Sha256> {
        self.ids.clone().chain_update(bytes(service)).chain_update(random)
    }
}

fn bytes(service: Service) -> [u8; 16] {
    (u128::from(service[1]) << 64 | u128::from(service[0])).to_le_bytes()
}

/// All that a record is bound to, each part of a fixed length but the last.
struct Bound {
    bytes: [u8; Bound::ID + LONGEST],
    length: usize,
}

impl Bound {
    const ID: usize = 1 + 16 + 4 + 1;

    fn new(service: Service, key: &Key) -> Bound {
        let mut all = [0; Self::ID + LONGEST];
        all[0] = FORMAT;
        all[1..17].copy_from_slice(&bytes(service));
        all[17..21].copy_from_slice(&key.version.to_le_bytes());
        all[21] = key.length;
        all[Self::ID..].copy_from_slice(&key.id);
        Bound { bytes: all, length: Self::ID + usize::from(key.length) }
    }

    fn all(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Names outlive a format.
    fn without_format(&self) -> &[u8] {
        &self.bytes[1..self.length]
    }
}

impl Keys {
    /// From a file that only root or this user can change and only they and the file's group can read. The error is a
    /// sentence for a person and shows nothing of a key.
    pub fn read(path: &Path) -> Result<Keys, String> {
        let text = Keys::text(path)?;
        Keys::parse(&text).map_err(|error| format!("the key file {}: {error}", path.display()))
    }

    /// What is in such a file.
    pub fn text(path: &Path) -> Result<Zeroizing<String>, String> {
        let says = |problem: &str| format!("the key file {}: {problem}", path.display());
        // Whoever put a pipe there is not waited for.
        let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).clone();
        let file = options.open(path).map_err(|error| says(&error.to_string()))?;
        let found = file.metadata().map_err(|error| says(&error.to_string()))?;
        if !found.is_file() {
            return Err(says("it is no regular file"));
        }
        if found.uid() != 0 && found.uid() != shm::effective_user() {
            return Err(says("it belongs to another user (chown it to root or to this one)"));
        }
        if found.mode() & 0o037 != 0 {
            let mode = found.mode() & 0o777;
            return Err(says(&format!("others can get at it, its mode is {mode:04o} (chmod it to 0600 or 0640)")));
        }
        // All the room at once: a buffer that grows would leave copies.
        let mut content = Zeroizing::new(Vec::with_capacity(LONGEST_FILE + 64));
        file.take(LONGEST_FILE as u64 + 1).read_to_end(&mut content).map_err(|error| says(&error.to_string()))?;
        if content.len() > LONGEST_FILE {
            return Err(says("it is too long for a file of keys"));
        }
        match std::str::from_utf8(&content) {
            Ok(text) => Ok(Zeroizing::new(text.into())),
            Err(_) => Err(says("it is no text")),
        }
    }

    /// From lines of 64 hex digits. From a `#` on, a line is a comment.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let mut keys: Vec<(usize, Zeroizing<[u8; KEY]>)> = Vec::with_capacity(MOST_KEYS);
        let mut services = None;
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(secret) = fleet(line) {
                let secret = decode(secret).map_err(|problem| format!("line {number}: {problem}"))?;
                if services.replace(hmac(&secret)).is_some() {
                    return Err(format!("line {number} is another line `fleet`"));
                }
                continue;
            }
            let Some(digits) = digits(line) else { continue };
            let key = decode(digits).map_err(|problem| format!("line {number}: {problem}"))?;
            if let Some((first, _)) = keys.iter().find(|(_, known)| *known == key) {
                return Err(format!("line {number} has the key of line {first} again"));
            }
            if keys.len() == MOST_KEYS {
                return Err(format!("there are more than {MOST_KEYS} keys"));
            }
            keys.push((number, key));
        }
        if keys.is_empty() {
            return Err("there is no key in it (`reprise keygen` makes one)".into());
        }
        Ok(Keys { keys: keys.iter().map(|(_, key)| Subkeys::new(key)).collect(), services })
    }

    /// A fresh line, without its end. For the command and for tests: it panics where the system has no random numbers.
    pub fn generate() -> String {
        let mut key = Zeroizing::new([0; KEY]);
        getrandom::fill(&mut *key).expect("the system has no random numbers");
        let (first, second) = key.split_at(KEY / 2);
        let mut line = String::with_capacity(2 * KEY);
        [first, second].iter().for_each(|half| line.push_str(&Hex::new(half)));
        line
    }

    /// A fresh line `fleet`, without its end.
    pub fn generate_fleet() -> String {
        FLEET.to_owned() + &Keys::generate()
    }

    /// Whether the names of services are keyed.
    pub fn hides_services(&self) -> bool {
        self.services.is_some()
    }

    /// The keys in words that show nothing of them, the one that seals first: the four bytes that records begin with.
    pub fn hints(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.hint.iter().map(|byte| format!("{byte:02x}")).collect()).collect()
    }

    /// Of which key an id was issued under.
    fn voucher(&self, service: Service, id: &[u8]) -> Option<&Subkeys> {
        let (random, mac) = id.split_at_checked(RANDOM).filter(|_| id.len() == LONGEST)?;
        self.keys.iter().find(|key| key.id_mac(service, random).verify_truncated_left(mac).is_ok())
    }

    /// What Redis is to call the session: under the key that vouches for its id, or else the first one.
    pub fn name(&self, service: Service, key: &Key) -> Name {
        let subkeys = self.voucher(service, key.id()).or(self.keys.first());
        let bound = Bound::new(service, key);
        subkeys.map_or(Name { bucket: 0, text: Hex([b'0'; 32]) }, |subkeys| subkeys.name(&bound))
    }

    /// Where to look for a session, [`Keys::name`] first: another machine may have named one with an id of the
    /// program's own under another key.
    pub fn names(&self, service: Service, key: &Key) -> impl Iterator<Item = Name> + '_ {
        let voucher = self.voucher(service, key.id());
        let others = if voucher.is_some() { &[] } else { &self.keys[..] };
        let bound = Bound::new(service, key);
        voucher.into_iter().chain(others).map(move |subkeys| subkeys.name(&bound))
    }

    /// What Redis is to call the service: the same whatever the keys are, see above.
    pub fn service_name(&self, service: Service) -> Hex {
        match &self.services {
            Some(secret) => {
                let keyed = secret.clone().chain_update("reprise service").chain_update(bytes(service));
                Hex::new(&keyed.finalize().into_bytes())
            }
            None => Hex::new(&Sha256::new().chain_update("reprise service").chain_update(bytes(service)).finalize()),
        }
    }

    /// Appends the sealed record, [`sealed_length`] bytes. `false`, with nothing appended, where there
    /// is no memory or no random number for it.
    pub fn seal(&self, service: Service, key: &Key, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let sealed = self.try_seal(service, key, plain, out).is_some();
        if !sealed {
            out.truncate(before);
        }
        sealed
    }

    fn try_seal(&self, service: Service, key: &Key, plain: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let subkeys = self.keys.first()?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let length = u32::try_from(plain.len()).ok()?;
        out.try_reserve(sealed_length(plain.len())).ok()?;
        out.push(FORMAT);
        out.extend_from_slice(&subkeys.hint);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(plain);
        out.resize(start + (LENGTH + plain.len()).div_ceil(BLOCK) * BLOCK, 0);
        let bound = Bound::new(service, key);
        let buffer = out.get_mut(start..)?.into();
        let tag = subkeys.cipher.encrypt_inout_detached(&XNonce::from(nonce), bound.all(), buffer).ok()?;
        out.extend_from_slice(&tag);
        Some(())
    }

    /// The content of a record that was sealed for this very session under any of the keys; `None` for all else.
    pub fn open(&self, service: Service, key: &Key, sealed: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = sealed.split_first_chunk::<HEAD>()?;
        let (content, tag) = rest.split_last_chunk::<TAG>()?;
        let (hint, nonce) = head[1..].split_first_chunk::<HINT>()?;
        let (nonce, tag) = (XNonce::try_from(nonce).ok()?, Tag::from(*tag));
        if head[0] != FORMAT {
            return None;
        }
        let bound = Bound::new(service, key);
        self.keys.iter().filter(|subkeys| subkeys.hint == *hint).find_map(|subkeys| {
            let mut plain = Vec::new();
            plain.try_reserve_exact(content.len()).ok()?;
            plain.extend_from_slice(content);
            let buffer = plain.as_mut_slice().into();
            subkeys.cipher.decrypt_inout_detached(&nonce, bound.all(), buffer, &tag).ok()?;
            let (length, _) = plain.split_first_chunk()?;
            let end = LENGTH.checked_add(u32::from_le_bytes(*length) as usize)?;
            plain.get(LENGTH..end)?;
            plain.truncate(end);
            plain.drain(..LENGTH);
            Some(plain)
        })
    }

    /// Makes a new id that vouches for itself: 128 random bits, and a MAC. `false` where the system has no random number.
    pub fn issue(&self, service: Service, id: &mut [u8; LONGEST]) -> bool {
        let (random, mac) = id.split_at_mut(RANDOM);
        let Some(subkeys) = self.keys.first().filter(|_| getrandom::fill(random).is_ok()) else { return false };
        let made = subkeys.id_mac(service, random).finalize().into_bytes();
        mac.copy_from_slice(&made[..LONGEST - RANDOM]);
        true
    }

    /// Whether a machine of the fleet issued this id for the service. How long it takes does not tell how nearly right
    /// a wrong one is.
    pub fn vouches(&self, service: Service, id: &[u8]) -> bool {
        self.voucher(service, id).is_some()
    }
}

/// The digits of a line with a key. From a `#` on, a line is a comment.
pub fn digits(line: &str) -> Option<&str> {
    let digits = line.split('#').next().unwrap_or_default().trim();
    (!digits.is_empty() && fleet(line).is_none()).then_some(digits)
}

/// The digits of the line `fleet`.
fn fleet(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap_or_default().trim();
    line.strip_prefix(FLEET).map(str::trim)
}

fn decode(digits: &str) -> Result<Zeroizing<[u8; KEY]>, String> {
    if let Some((at, _)) = (1..).zip(digits.chars()).find(|(_, digit)| !digit.is_ascii_hexdigit()) {
        return Err(format!("character {at} is no hex digit"));
    }
    if digits.len() != 2 * KEY {
        return Err(format!("it has {} hex digits, a key has {}", digits.len(), 2 * KEY));
    }
    let mut key = Zeroizing::new([0; KEY]);
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Ok(key)
}
