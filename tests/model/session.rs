//! A made-up session that counts the references to each object, and to all of them.

use reprise::cache::{memory::Memory, Cache, Key, Seconds, Session};
use std::sync::atomic::{AtomicI64, AtomicIsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};

/// What references refer to. A test keeps it, so that a reference freed twice is seen instead of being undefined.
pub struct Object {
    pub key: Key,
    expiry: AtomicI64,
    references: AtomicIsize,
    /// References of the test's objects taken together.
    alive: Arc<AtomicIsize>,
    /// The cache it is meant for, which is used whenever a reference is freed: that needs its locks to be free.
    cache: Weak<Memory<Fake>>,
}

impl Object {
    pub fn new(key: Key, expiry: Seconds, cache: &Arc<Memory<Fake>>, alive: &Arc<AtomicIsize>) -> Arc<Object> {
        Arc::new(Object {
            key,
            expiry: AtomicI64::new(expiry),
            references: AtomicIsize::new(0),
            alive: Arc::clone(alive),
            cache: Arc::downgrade(cache),
        })
    }

    pub fn expiry(&self) -> Seconds {
        self.expiry.load(SeqCst)
    }

    /// Returns the previous one.
    pub fn set_expiry(&self, expiry: Seconds) -> Seconds {
        self.expiry.swap(expiry, SeqCst)
    }

    pub fn references(&self) -> isize {
        self.references.load(SeqCst)
    }
}

/// One counted reference.
pub struct Fake(Arc<Object>);

impl Fake {
    pub fn of(object: &Arc<Object>) -> Fake {
        object.references.fetch_add(1, SeqCst);
        object.alive.fetch_add(1, SeqCst);
        Fake(Arc::clone(object))
    }

    pub fn object(&self) -> &Arc<Object> {
        &self.0
    }
}

impl Clone for Fake {
    fn clone(&self) -> Fake {
        Fake::of(&self.0)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(cache) = self.0.cache.upgrade() {
            cache.contains(&self.0.key);
        }
        assert!(self.0.references.fetch_sub(1, SeqCst) > 0, "freed twice: {:?}", self.0.key);
        self.0.alive.fetch_sub(1, SeqCst);
    }
}

impl Session for Fake {
    fn key(&self) -> Key {
        self.0.key
    }

    fn expiry(&self) -> Seconds {
        self.0.expiry()
    }

    fn same(&self, other: &Fake) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
