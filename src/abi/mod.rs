//! The exported C functions, a file for each manual page. Nothing is decided here: arguments become Rust, results
//! become C, and what is not ours goes straight through to libssl.

mod callbacks;
mod connection;
mod contexts;
mod ctrl;
mod load;
mod manage;
mod reprise;
mod sessions;

use crate::context::{registry, Context};
use crate::libssl::context as libssl_context;
use crate::libssl::types::SSL_CTX;

/// Runs the body of an exported function: a panic or `None` becomes the documented failure value. An exception of the
/// program's, and the end of a thread that is cancelled, pass through.
#[inline]
pub(crate) fn border<T>(failure: T, body: impl FnOnce() -> Option<T>) -> T {
    crate::unwind::catch(body).flatten().unwrap_or(failure)
}

/// The context that answers for `ctx`; `None` where libssl does: it is not ours, or this call comes from
/// inside the real library, some of whose own calls arrive here.
fn ours(ctx: *mut SSL_CTX) -> Option<&'static Context> {
    if libssl_context::is_inside(ctx) {
        return None;
    }
    registry::find(ctx)
}
