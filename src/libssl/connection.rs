//! A connection (SSL) as the hooks see it.
//!
//! In a QUIC connection some getters take the connection's mutex, which is held while a hook runs: what is asked here
//! is asked in a way that does not.

use super::types::*;
use super::{context, table, Ctx, Session, Tag};
use std::ptr::NonNull;

/// A live connection, borrowed for one call.
pub struct Connection(NonNull<SSL>);

impl Connection {
    /// # Safety
    /// `ssl` is NULL or a connection that stays alive as long as the result.
    pub unsafe fn borrow(ssl: *const SSL) -> Option<Connection> {
        NonNull::new(ssl.cast_mut()).map(Connection)
    }

    pub fn as_ptr(&self) -> *mut SSL {
        self.0.as_ptr()
    }

    /// The contexts in which libssl may cache for this connection, the likelier first.
    pub fn contexts(&self) -> (*mut SSL_CTX, *mut SSL_CTX) {
        // SAFETY: the connection is alive.
        unsafe { context::of_connection(self.as_ptr()) }
    }

    fn is_quic(&self) -> bool {
        // SAFETY: the connection is alive; SSL_is_quic only looks at its type.
        table().SSL_is_quic.is_some_and(|is_quic| unsafe { is_quic(self.as_ptr()) == 1 })
    }

    /// The protocol version that sessions of this connection have.
    pub fn version(&self) -> i32 {
        const QUIC: i32 = 1; // OSSL_QUIC1_VERSION, which runs TLS 1.3
                             // SAFETY: the connection is alive; SSL_version takes no lock.
        match unsafe { (table().SSL_version)(self.as_ptr()) } {
            QUIC => TLS1_3_VERSION as i32,
            version => version,
        }
    }

    pub fn is_tls13(&self) -> bool {
        self.version() == TLS1_3_VERSION as i32
    }

    pub fn is_server(&self) -> bool {
        // SAFETY: the connection is alive; SSL_is_server takes no lock.
        unsafe { (table().SSL_is_server)(self.as_ptr()) == 1 }
    }

    /// Whether this handshake resumed a session.
    pub fn is_resumed(&self) -> bool {
        // SAFETY: the connection is alive; SSL_session_reused takes no lock.
        unsafe { (table().SSL_session_reused)(self.as_ptr()) == 1 }
    }

    fn has_option(&self, ctx: Ctx, option: u64) -> bool {
        let options = if self.is_quic() {
            ctx.options()
        } else {
            // SAFETY: the connection is alive.
            unsafe { (table().SSL_get_options)(self.as_ptr()) }
        };
        options & option != 0
    }

    /// SSL_OP_NO_TICKET: TLS 1.3 tickets only name a session that the cache keeps.
    pub fn has_stateful_tickets(&self, ctx: Ctx) -> bool {
        self.has_option(ctx, OP_NO_TICKET.into())
    }

    /// From now on its tickets only name a session that the cache keeps. Not in a QUIC connection, whose own options
    /// these are not.
    pub fn make_tickets_stateful(&self) {
        if !self.is_quic() {
            // SAFETY: the connection is alive.
            unsafe { (table().SSL_set_options)(self.as_ptr(), OP_NO_TICKET.into()) };
        }
    }

    /// Undoes that.
    pub fn leave_tickets(&self, ctx: Ctx) {
        if !self.is_quic() && ctx.options() & u64::from(OP_NO_TICKET) == 0 {
            // SAFETY: the connection is alive.
            unsafe { (table().SSL_clear_options)(self.as_ptr(), OP_NO_TICKET.into()) };
        }
    }

    /// What [`Deviation::number`](super::Deviation::number) was when this connection's first handshake ended. 0: that is
    /// still to come.
    pub fn told(&self) -> usize {
        // SAFETY: the connection is alive.
        unsafe { context::noted(self.as_ptr(), context::TOLD) }
    }

    pub fn note_told(&self, number: usize) {
        // SAFETY: the connection is alive.
        unsafe { context::note(self.as_ptr(), context::TOLD, number) };
    }

    /// Whether a full handshake of this connection brings sessions: in TLS 1.3 a program may have switched that off, and ask for
    /// single tickets later (SSL_new_session_ticket(3)).
    pub fn brings_sessions(&self) -> bool {
        // SAFETY: the connection is alive.
        !self.is_tls13() || unsafe { (table().SSL_get_num_tickets)(self.as_ptr()) } > 0
    }

    /// A lookup has found `session` for this connection, or nothing. Tickets that are issued on a resumed connection are
    /// for those that could resume the first one.
    pub fn note_found(&self, session: Option<&Session>) {
        // Up to TLS 1.2 none are. A session that libssl passes over for the client's next one has not been resumed.
        let tag = session.filter(|session| self.is_tls13() && self.has_digest_of(session)).map_or([0; 2], Session::tag);
        if tag != [0; 2] || self.found() != [0; 2] {
            for (place, word) in context::RESUMED.into_iter().zip(tag) {
                // SAFETY: the connection is alive.
                unsafe { context::note(self.as_ptr(), place, word as usize) };
            }
        }
    }

    /// The tag of the session that was found last, all 0 if there was none.
    pub fn found(&self) -> Tag {
        // SAFETY: the connection is alive.
        context::RESUMED.map(|place| unsafe { context::noted(self.as_ptr(), place) } as u64)
    }

    /// The connection is used again for another one.
    pub fn forget_notes(&self) {
        if self.told() != 0 {
            self.note_told(0);
        }
        self.note_found(None);
    }

    /// Whether the cipher that libssl has chosen for a TLS 1.3 connection can resume `session`.
    fn has_digest_of(&self, session: &Session) -> bool {
        // SAFETY: both are alive, ciphers are static, and the digests of equal name are one object.
        unsafe {
            let chosen = (table().SSL_get_pending_cipher)(self.as_ptr());
            let before = (table().SSL_SESSION_get0_cipher)(session.as_ptr());
            let digest = |cipher| (table().SSL_CIPHER_get_handshake_digest)(cipher);
            !chosen.is_null() && !before.is_null() && digest(chosen) == digest(before)
        }
    }

    /// Whether libssl protects early data against replay: each session is then good for one connection.
    pub fn has_anti_replay(&self, ctx: Ctx) -> bool {
        // SAFETY: the connection is alive.
        self.is_tls13()
            && unsafe { (table().SSL_get_max_early_data)(self.as_ptr()) } > 0
            && !self.has_option(ctx, OP_NO_ANTI_REPLAY.into())
    }
}
