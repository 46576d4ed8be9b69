//! Tickets that were accepted for early data and must not be accepted again, though an external cache may still bring
//! them (REPLAY1). Each is remembered until it expires.

use crate::cache::{memory::Memory, Cache, Collision, Inserted, Key, Seconds, Session};
use once_cell::race::OnceBox;

/// About 100 bytes each. Where there is no room for one more, early data is refused rather than accepted twice.
const MOST: usize = 1 << 20;

/// Made by the first one: most contexts never see any.
#[derive(Default)]
pub struct Spent(OnceBox<Memory<Ticket>>);

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
    /// Whether the ticket had not been spent before; now it is.
    pub fn spend(&self, key: &Key, session: &impl Session, now: Seconds) -> bool {
        let spent = self.0.get_or_init(|| Box::new(Memory::new(0)));
        spent.expire(now, 4, &mut drop);
        if spent.len() >= MOST {
            return false;
        }
        let ticket = Ticket { key: *key, expiry: session.expiry() };
        spent.insert(ticket, Collision::KeepUnlessExpired(Seconds::MIN), &mut |_, _| {}) == Inserted::Added
    }

    pub fn clear(&self) {
        if let Some(spent) = self.0.get() {
            spent.clear(&mut drop);
        }
    }
}
