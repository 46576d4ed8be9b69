//! A connection (SSL) as the hooks see it.
//!
//! In a QUIC connection some getters take the connection's mutex, which is held while a hook runs: what is asked here
//! is asked in a way that does not.

use super::types::*;
use super::{context, table, Ctx};
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

    /// Whether libssl protects early data against replay: each session is then good for one connection.
    pub fn has_anti_replay(&self, ctx: Ctx) -> bool {
        // SAFETY: the connection is alive.
        self.is_tls13()
            && unsafe { (table().SSL_get_max_early_data)(self.as_ptr()) } > 0
            && !self.has_option(ctx, OP_NO_ANTI_REPLAY.into())
    }
}
