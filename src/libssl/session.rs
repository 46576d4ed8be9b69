//! An SSL_SESSION as Rust: who holds a [`Session`] owns one reference, who holds a `&Session` borrows one.

use super::{chain::Chain, marker, table, types::SSL_SESSION};
use crate::cache::{self, Key, Seconds};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{null_mut, NonNull};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The time, as libssl itself asks for it: some milliseconds late, and for less than a precise one costs.
pub fn now() -> Seconds {
    // SAFETY: NULL is allowed.
    unsafe { libc::time(null_mut()) }
}

/// One counted reference to a session, and what is known of it beside that, which is mostly nothing.
pub struct Session {
    object: NonNull<SSL_SESSION>,
    more: Option<Box<More>>,
}

#[derive(Clone, Default, PartialEq)]
struct More {
    /// What its client showed beside its certificate: libssl writes a session without it.
    chain: Option<Chain>,
    /// See [`super::Deviation::tag`].
    tag: [u64; 2],
    /// See [`Session::with_inherited_mark`].
    inherits_mark: bool,
}

// SAFETY: libssl counts references atomically and hands sessions from thread to thread itself; what is read here
// (id, version, times, marks) libssl reads without a lock as well.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

/// A session that somebody else keeps alive meanwhile.
pub struct Borrowed(ManuallyDrop<Session>);

impl Deref for Borrowed {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Session {
    /// Takes over one reference from the caller; `None` for NULL.
    ///
    /// # Safety
    /// `session` is NULL or a session of which the caller owns a reference and gives it away.
    pub unsafe fn from_owned(session: *mut SSL_SESSION) -> Option<Session> {
        Some(Session { object: NonNull::new(session)?, more: None })
    }

    /// Borrows for as long as the caller's reference lasts; `None` for NULL.
    ///
    /// # Safety
    /// `session` is NULL or a session that stays alive as long as the result.
    pub unsafe fn borrow(session: *mut SSL_SESSION) -> Option<Borrowed> {
        // There is no more than the object, so nothing is left undropped.
        Some(Borrowed(ManuallyDrop::new(Session { object: NonNull::new(session)?, more: None })))
    }

    /// A new, empty session that can be found under `key`.
    pub fn placeholder(key: &Key) -> Option<Session> {
        // SAFETY: the session is new and ours alone, the id outlives the call.
        unsafe {
            let session = Session::from_owned((table().SSL_SESSION_new)())?;
            let id = key.id();
            let named = (table().SSL_SESSION_set1_id)(session.as_ptr(), id.as_ptr(), id.len() as u32) == 1;
            let versioned = (table().SSL_SESSION_set_protocol_version)(session.as_ptr(), key.version()) == 1;
            (named && versioned).then_some(session)
        }
    }

    const PLACEHOLDER: [u8; 20] = *b"reprise: placeholder";

    /// A placeholder that libssl may hand to a callback: it can be told from the program's sessions.
    pub fn labelled_placeholder(key: &Key) -> Option<Session> {
        let session = Session::placeholder(key)?;
        let label = Session::PLACEHOLDER;
        // SAFETY: the session is ours alone, and libssl copies the label.
        let labelled =
            unsafe { (table().SSL_SESSION_set1_ticket_appdata)(session.as_ptr(), label.as_ptr().cast(), label.len()) };
        (labelled == 1).then_some(session)
    }

    pub fn is_placeholder(&self) -> bool {
        let (mut data, mut length) = (null_mut(), 0);
        // SAFETY: the session is alive, and so is its data while it is compared.
        unsafe {
            (table().SSL_SESSION_get0_ticket_appdata)(self.as_ptr(), &mut data, &mut length);
            length == Session::PLACEHOLDER.len()
                && !data.is_null()
                && *data.cast::<[u8; Session::PLACEHOLDER.len()]>() == Session::PLACEHOLDER
        }
    }

    /// Gives the reference away as a raw pointer.
    pub fn into_ptr(mut self) -> *mut SSL_SESSION {
        self.more = None;
        ManuallyDrop::new(self).as_ptr()
    }

    /// The object, for a call that does not keep it.
    #[inline]
    pub fn as_ptr(&self) -> *mut SSL_SESSION {
        self.object.as_ptr()
    }

    pub fn chain(&self) -> Option<&Chain> {
        self.more.as_ref()?.chain.as_ref()
    }

    /// One more reference, with this chain.
    pub fn with_chain(&self, chain: Option<Chain>) -> Session {
        self.with(|more| more.chain = chain)
    }

    /// What connections must have been told to resume it.
    pub fn tag(&self) -> [u64; 2] {
        self.more.as_ref().map_or([0; 2], |more| more.tag)
    }

    /// One more reference, with this tag.
    pub fn with_tag(&self, tag: [u64; 2]) -> Session {
        self.with(|more| more.tag = tag)
    }

    /// One more reference to a session that was marked when it was negotiated. Up to 3.0.13 libssl copies the mark of a ticket
    /// that is used up by early data into the sessions of the tickets that it issues then. Such a session is as good as any.
    pub fn with_inherited_mark(&self) -> Session {
        self.with(|more| more.inherits_mark = true)
    }

    /// Whether it may be resumed: nobody has condemned it.
    pub fn is_usable(&self) -> bool {
        self.is_resumable() || self.more.as_ref().is_some_and(|more| more.inherits_mark)
    }

    fn with(&self, change: impl FnOnce(&mut More)) -> Session {
        let mut session = self.clone();
        let mut more = session.more.take().map_or_else(More::default, |more| *more);
        change(&mut more);
        session.more = (more != More::default()).then(|| Box::new(more));
        session
    }

    /// Whether both have the same secret.
    pub fn has_secret_of(&self, other: &Session) -> bool {
        let secret = |session: &Session| {
            let mut secret = Zeroizing::new([0; 64]);
            // SAFETY: the session is alive, and the place as long as is said.
            let length =
                unsafe { (table().SSL_SESSION_get_master_key)(session.as_ptr(), secret.as_mut_ptr(), secret.len()) };
            (length, secret)
        };
        secret(self) == secret(other)
    }

    #[inline]
    pub fn id(&self) -> &[u8] {
        let mut length = 0;
        // SAFETY: the session is alive; libssl's id has `length` bytes (at most 32) in the object itself.
        unsafe {
            let id = (table().SSL_SESSION_get_id)(self.as_ptr(), &mut length);
            match NonNull::new(id.cast_mut()) {
                Some(id) => std::slice::from_raw_parts(id.as_ptr(), length as usize),
                None => &[],
            }
        }
    }

    #[inline]
    pub fn version(&self) -> i32 {
        // SAFETY: the session is alive.
        unsafe { (table().SSL_SESSION_get_protocol_version)(self.as_ptr()) }
    }

    /// SSL_SESSION_is_resumable(3): it has an id or a ticket and has not been marked.
    pub fn is_resumable(&self) -> bool {
        // SAFETY: the session is alive.
        unsafe { (table().SSL_SESSION_is_resumable)(self.as_ptr()) == 1 }
    }

    /// Whether it has what a resumption cannot do without: stock crashes where there is no cipher.
    pub fn has_cipher(&self) -> bool {
        // SAFETY: the session is alive.
        unsafe { !(table().SSL_SESSION_get0_cipher)(self.as_ptr()).is_null() }
    }

    /// The same for the secret, without which stock breaks off the handshake.
    pub fn has_master_key(&self) -> bool {
        // SAFETY: the session is alive; with size 0 the length of the secret is returned and nothing is written.
        unsafe { (table().SSL_SESSION_get_master_key)(self.as_ptr(), null_mut(), 0) > 0 }
    }

    pub fn allows_early_data(&self) -> bool {
        // SAFETY: the session is alive.
        unsafe { (table().SSL_SESSION_get_max_early_data)(self.as_ptr()) > 0 }
    }

    /// Whether a server sent a ticket for it: then it is a client's.
    pub fn has_ticket(&self) -> bool {
        // SAFETY: the session is alive.
        unsafe { (table().SSL_SESSION_has_ticket)(self.as_ptr()) == 1 }
    }

    /// Sets the time its timeout counts from.
    pub fn set_time(&self, now: Seconds) {
        // SAFETY: the session is alive. Libssl itself writes the time of a shared session without a lock.
        unsafe { (table().SSL_SESSION_set_time)(self.as_ptr(), now as libc::c_long) };
    }

    /// Has libssl refuse early data with it and resume it all the same: a server accepts early data only where the client's
    /// age of the ticket is, but for ten seconds, its own. For a session that nobody else has.
    pub fn refuse_early_data(&self) {
        const FAR_OFF: Seconds = 30;
        self.set_time(self.time() - FAR_OFF);
    }

    pub fn set_timeout(&self, seconds: Seconds) {
        // SAFETY: as above.
        unsafe { (table().SSL_SESSION_set_timeout)(self.as_ptr(), seconds as libc::c_long) };
    }

    /// Marks it not resumable, for good and for everyone who holds it.
    pub fn mark(&self) {
        marker::mark(self);
    }
}

/// When a session began that was renewed since. Renewed tickets and DER take along what is attached to a session for
/// tickets (SSL_SESSION_set1_ticket_appdata(3)), so the time of the full handshake is kept there, unless the program
/// keeps something there itself.
impl Session {
    const ORIGIN: [u8; 8] = *b"reprise\x01";

    /// When its client last went through a full handshake. `None` if it was not noted.
    pub fn origin(&self) -> Option<Seconds> {
        let (mut data, mut length) = (null_mut(), 0);
        // SAFETY: the session is alive, and so is its data while it is copied.
        let data = unsafe {
            (table().SSL_SESSION_get0_ticket_appdata)(self.as_ptr(), &mut data, &mut length);
            NonNull::new(data.cast::<[u8; 16]>()).filter(|_| length == 16)?.as_ptr().read()
        };
        let (label, time) = data.split_first_chunk::<8>()?;
        (*label == Session::ORIGIN).then(|| Some(Seconds::from_le_bytes(*time.first_chunk()?)))?
    }

    /// Notes when this new session began, which no other thread has yet. Nothing happens if that is known, or the
    /// program has attached something.
    pub fn note_origin(&self, time: Seconds) {
        let (mut data, mut length) = (null_mut(), 0);
        // SAFETY: the session is alive, and libssl copies what is passed.
        unsafe {
            (table().SSL_SESSION_get0_ticket_appdata)(self.as_ptr(), &mut data, &mut length);
            if length == 0 {
                let mut note = [0; 16];
                note[..8].copy_from_slice(&Session::ORIGIN);
                note[8..].copy_from_slice(&time.to_le_bytes());
                (table().SSL_SESSION_set1_ticket_appdata)(self.as_ptr(), note.as_ptr().cast(), note.len());
            }
        }
    }

    /// The time its timeout counts from.
    pub fn time(&self) -> Seconds {
        // SAFETY: the session is alive.
        Seconds::from(unsafe { (table().SSL_SESSION_get_time)(self.as_ptr()) })
    }
}

/// What stands before a session that leaves the process; then come its tag, the length of its chain, the chain, and its
/// DER.
const PLAIN: u8 = 2;
const MARKED: u8 = 3;
/// The length of a chain that is not known.
const UNKNOWN: u32 = u32::MAX;

impl Session {
    /// An equal session that is not marked, without the data that programs attach to it (ex_data).
    pub fn unmarked_copy(&self) -> Option<Session> {
        let mut der = Vec::new();
        let copy = (!self.is_judged() && self.write_der(&mut der)).then(|| Session::read_der(&der))??;
        Some(copy.with(|more| (more.chain, more.tag) = (self.chain().cloned(), self.tag())))
    }

    /// Whether the program has noted something (ex_data) on a session whose peer showed a certificate. It may be all that
    /// tells a peer it trusts from one it does not: stunnel notes there whom to redirect, and takes a session
    /// without the note for a trusted one. DER carries no notes, so such a session must not be had by it. Where each new
    /// session is given a value of its own, nothing can be told.
    fn is_judged(&self) -> bool {
        // Of all kinds of data that are registered for sessions, mostly one or two.
        const INDICES: libc::c_int = 32;
        // SAFETY: the sessions are alive, nothing is kept, and an index that nobody registered has NULL.
        unsafe {
            if (table().SSL_SESSION_get0_peer)(self.as_ptr()).is_null() {
                return false;
            }
            let new = || Session::from_owned((table().SSL_SESSION_new)());
            let (Some(one), Some(two)) = (new(), new()) else { return true };
            let value = |session: &Session, index| (table().SSL_SESSION_get_ex_data)(session.as_ptr(), index);
            (0..INDICES).any(|index| {
                let usual = value(&one, index);
                usual == value(&two, index) && usual != value(self, index)
            })
        }
    }

    /// Whether its peer showed a raw public key in place of a certificate (3.2 and later): nothing verifies that again.
    fn has_raw_key(&self) -> bool {
        // SAFETY: the session is alive.
        table().SSL_SESSION_get0_peer_rpk.is_some_and(|key| unsafe { !key(self.as_ptr()).is_null() })
    }

    /// Whether its peer showed a certificate.
    pub fn has_peer(&self) -> bool {
        // SAFETY: the session is alive.
        unsafe { !(table().SSL_SESSION_get0_peer)(self.as_ptr()).is_null() }
    }

    /// i2d_SSL_SESSION(3). A session without a cipher cannot be had as DER.
    pub(super) fn write_der(&self, out: &mut Vec<u8>) -> bool {
        // SAFETY: the session is alive; first the length is asked for, then so many bytes are written.
        unsafe {
            let length = (table().i2d_SSL_SESSION)(self.as_ptr(), null_mut());
            let Some(length) = usize::try_from(length).ok().filter(|&length| length > 0) else { return false };
            let before = out.len();
            if out.try_reserve(length).is_err() {
                return false;
            }
            out.resize(before + length, 0);
            let mut end = out[before..].as_mut_ptr();
            (table().i2d_SSL_SESSION)(self.as_ptr(), &mut end) as usize == length
        }
    }

    /// d2i_SSL_SESSION(3)
    fn read_der(der: &[u8]) -> Option<Session> {
        let mut at = der.as_ptr();
        // SAFETY: `der` is as long as is said, and the new session is ours. What was no session is no error of the
        // program's.
        unsafe {
            (table().ERR_set_mark)();
            let session = (table().d2i_SSL_SESSION)(null_mut(), &mut at, der.len() as libc::c_long);
            (table().ERR_pop_to_mark)();
            Session::from_owned(session)
        }
    }
}

impl cache::Portable for Session {
    fn write(&self, out: &mut Vec<u8>) -> bool {
        out.push(if self.is_usable() { PLAIN } else { MARKED });
        self.tag().iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        let chain = self.chain();
        out.extend_from_slice(&chain.map_or(UNKNOWN, |chain| chain.len() as u32).to_le_bytes());
        out.extend_from_slice(chain.map_or(&[], |chain| chain));
        !self.is_judged() && !self.has_raw_key() && self.write_der(out)
    }

    fn read(bytes: &[u8]) -> Option<Session> {
        let (&mark, rest) = bytes.split_first()?;
        let (tag, rest) = rest.split_first_chunk::<16>()?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| tag[at * 8 + byte]));
        let (length, rest) = rest.split_first_chunk()?;
        let length = Some(u32::from_le_bytes(*length)).filter(|&length| length != UNKNOWN);
        let (chain, der) = rest.split_at_checked(length.unwrap_or(0) as usize)?;
        let session = Session::read_der(der)?;
        match mark {
            PLAIN => {}
            MARKED => session.mark(),
            _ => return None,
        }
        let chain = length.filter(|_| session.has_peer()).map(|_| Arc::new(chain.to_vec()));
        let session = session.with(|more| (more.chain, more.tag) = (chain, [word(0), word(1)]));
        session.keep_chain();
        Some(session)
    }
}

impl Clone for Session {
    fn clone(&self) -> Session {
        // SAFETY: the session is alive, and the new reference is what the result owns.
        unsafe { (table().SSL_SESSION_up_ref)(self.as_ptr()) };
        Session { object: self.object, more: self.more.clone() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: one reference is ours, and it is given up once.
        unsafe { (table().SSL_SESSION_free)(self.as_ptr()) };
    }
}

impl cache::Session for Session {
    fn key(&self) -> Key {
        Key::new(self.version(), self.id()).unwrap_or_default()
    }

    #[inline]
    fn expiry(&self) -> Seconds {
        // From 3.3 on libssl counts nanoseconds in 64 bits, and what is beyond them never comes.
        const END_OF_TIME: Seconds = (u64::MAX / 1_000_000_000) as Seconds;
        // SAFETY: the session is alive.
        let (time, timeout) = unsafe {
            ((table().SSL_SESSION_get_time)(self.as_ptr()), (table().SSL_SESSION_get_timeout)(self.as_ptr()))
        };
        match Seconds::from(time).saturating_add(Seconds::from(timeout).max(0)) {
            END_OF_TIME.. => Seconds::MAX,
            expiry => expiry,
        }
    }

    #[inline]
    fn same(&self, other: &Session) -> bool {
        self.object == other.object
    }
}
