//! What the threads of a cache share: of the standard library, or in builds with `--cfg loom` of the model checker loom,
//! which runs the tests in `loom.rs` in every order of events that the memory model allows.

#[cfg(not(loom))]
pub use {
    crate::gate::{enter, Inside},
    crate::thread::pause,
    once_cell::race::OnceBox,
    std::{
        hint::spin_loop,
        sync::{atomic, Mutex, MutexGuard, OnceLock},
    },
};

/// Lets other threads run.
#[cfg(loom)]
pub fn pause(_round: u32) {
    loom::thread::yield_now();
}

/// The model checker knows no fork.
#[cfg(loom)]
pub struct Inside;

#[cfg(loom)]
pub fn enter() -> Inside {
    Inside
}

#[cfg(loom)]
pub use {
    loom::{
        hint::spin_loop,
        sync::{atomic, Mutex, MutexGuard},
    },
    once::{OnceBox, OnceLock},
};

/// Loom has none of these. Who sees that the value is there sees all that was done before it was put there, and no
/// more: a thread may also see for a while that it is not.
#[cfg(loom)]
mod once {
    use super::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};

    pub struct OnceLock<T> {
        there: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub fn new() -> Self {
            OnceLock { there: AtomicBool::new(false), value: std::sync::OnceLock::new() }
        }

        pub fn get(&self) -> Option<&T> {
            self.there.load(Acquire).then(|| self.value.get())?
        }

        /// Loom changes threads only before one of its own operations: the value is there as soon as `there` says so.
        pub fn set(&self, value: T) -> Result<(), T> {
            match self.there.compare_exchange(false, true, Release, Acquire) {
                Ok(_) => self.value.set(value),
                Err(_) => Err(value),
            }
        }
    }

    pub struct OnceBox<T>(OnceLock<Box<T>>);

    impl<T> OnceBox<T> {
        pub fn new() -> Self {
            OnceBox(OnceLock::new())
        }

        pub fn get(&self) -> Option<&T> {
            self.0.get().map(|value| &**value)
        }

        pub fn set(&self, value: Box<T>) -> Result<(), Box<T>> {
            self.0.set(value)
        }

        pub fn get_or_init(&self, make: impl FnOnce() -> Box<T>) -> &T {
            if self.get().is_none() {
                let _ = self.0.set(make());
            }
            self.get().expect("it was put there by this thread or before")
        }
    }
}
