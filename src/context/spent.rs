//! Tickets that were accepted for early data and must not be accepted again, though an external cache may still bring
//! them (REPLAY1). Each is remembered until it expires.

use crate::cache::{memory::Memory, Cache, Collision, Inserted, Key, Seconds, Session};

/// About 100 bytes each. Where there is no room for one more, early data is refused rather than accepted twice.
const MOST: usize = 1 << 20;

pub struct Spent(Memory<Ticket>);

#[derive(Clone)]
struct Ticket {
    key: Key,
    expiry: Seconds,
}

impl Session for Ticket {
    fn key(&self) -> Key {
        self.key
    }

    fn expiry(&self) -> Seconds {
        self.expiry
    }

    fn same(&self, _: &Self) -> bool {
        false
    }
}

impl Spent {
    pub fn new() -> Spent {
        Spent(Memory::new(0))
    }

    /// Whether the ticket had not been spent before; now it is.
    pub fn spend(&self, key: &Key, session: &impl Session, now: Seconds) -> bool {
        self.0.expire(now, 4, &mut drop);
        if self.0.len() >= MOST {
            return false;
        }
        let ticket = Ticket { key: *key, expiry: session.expiry() };
        self.0.insert(ticket, Collision::KeepUnlessExpired(Seconds::MIN), &mut |_, _| {}) == Inserted::Added
    }

    pub fn clear(&self) {
        self.0.clear(&mut drop);
    }
}
