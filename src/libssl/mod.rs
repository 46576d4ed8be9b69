//! The library below: its functions, found at run time, and its objects as Rust. Only this module calls it.

mod callbacks;
mod chain;
mod connection;
pub mod context;
mod deviation;
mod digest;
pub mod error;
pub mod generator;
mod lhash;
mod linked;
mod marker;
mod module;
mod service;
mod session;
mod table;
pub mod types;
pub mod unclean;
mod verify;

pub use callbacks::Slot;
pub use chain::Chain;
pub use connection::Connection;
pub use context::{Ctx, CtxCell, Hooks};
pub use deviation::{added_tag, kept_tag, Deviation, Expected, Learned, Tag};
pub use digest::CERT_FLAGS;
pub use lhash::SessionTable;
pub use linked::is_linked;
pub use marker::{forked, prepare as prepare_marker};
pub use service::{Service, Store};
pub use session::{now, Session};
pub use table::{elsewhere, elsewhere_session, look_ahead, table, table_of, version};

/// Whether the real libssl is 3.0 or later, where several deviations from the manual began.
pub fn is_3_or_later() -> bool {
    table().SSL_CTX_new_ex.is_some()
}
