//! The program's callbacks: kept as they were given, called as libssl calls them.

use super::types::*;
use super::{Connection, Ctx, Session};
use libc::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicPtr,
    Ordering::{Acquire, Release},
};

/// A function pointer that may be NULL, and may be set while other threads call it.
pub struct Slot<F> {
    function: AtomicPtr<c_void>,
    kind: PhantomData<fn() -> F>,
}

macro_rules! slot {
    ($callback:ty) => {
        impl Slot<$callback> {
            pub const fn empty() -> Self {
                Slot { function: AtomicPtr::new(null_mut()), kind: PhantomData }
            }

            pub fn set(&self, callback: $callback) {
                self.function.store(callback.map_or(null_mut(), |function| function as *mut c_void), Release);
            }

            pub fn get(&self) -> $callback {
                // SAFETY: the pointer came from a `$callback` in `set`, and NULL is `None`.
                unsafe { std::mem::transmute::<*mut c_void, $callback>(self.function.load(Acquire)) }
            }
        }
    };
}

impl<F> Slot<F> {
    pub fn is_set(&self) -> bool {
        !self.function.load(Acquire).is_null()
    }
}

slot!(NewCallback);
slot!(RemoveCallback);
slot!(GetCallback);

impl Slot<NewCallback> {
    /// Offers `session` with one reference of its own, as libssl gave it to us. Whether the program keeps that
    /// reference; `None` without a callback.
    pub fn call(&self, connection: &Connection, session: &Session) -> Option<bool> {
        // SAFETY: both are alive during the call, and the reference that libssl took for its callback stands.
        self.get().map(|callback| unsafe { callback(connection.as_ptr(), session.as_ptr()) != 0 })
    }
}

impl Slot<RemoveCallback> {
    pub fn call(&self, ctx: Ctx, session: &Session) {
        if let Some(callback) = self.get() {
            // SAFETY: both are alive during the call.
            unsafe { callback(ctx.as_ptr(), session.as_ptr()) };
        }
    }
}

impl Slot<GetCallback> {
    /// The program's session for this id, with one reference for us whichever way it chose.
    pub fn call(&self, connection: &Connection, id: &[u8]) -> Option<Session> {
        let mut copy: c_int = 1;
        // SAFETY: the connection and the id are alive during the call. What comes back is NULL or a live session: with
        // `copy` 0 its reference is ours, else the program keeps its own and we take another (RULES CB8).
        unsafe {
            let session = self.get()?(connection.as_ptr(), id.as_ptr(), id.len() as c_int, &mut copy);
            if copy == 0 {
                Session::from_owned(session)
            } else {
                Session::borrow(session).map(|session| session.clone())
            }
        }
    }
}
