//! Foreign ids: those that nobody in the fleet issued and that are in the cache all the same, because a program made them,
//! or added sessions with ids of its own.
//!
//! Each service has a number in Redis, until when there may be sessions with such ids, in seconds since the epoch. As
//! long as there may, no id is refused unasked. Who stores the first one raises the number; the others ask when they are
//! shown an id that they would refuse, at most once a second, and refuse none before they have heard. Who can write to
//! Redis can raise it, too: then lookups cost a round trip, as they would without.

use super::super::{Seconds, Service};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For so long nobody asks again.
const FRESH: Duration = Duration::from_secs(1);
/// So many seconds more than is needed, so that not every new session raises it. How long it stays in Redis is within
/// bounds whatever a session's own time is.
const MORE: Seconds = 600;
const LONGEST: Seconds = 10 * 365 * 24 * 3600;

#[derive(Default)]
pub struct ForeignIds(HashMap<Service, Known>);

#[derive(Default)]
struct Known {
    until: Seconds,
    /// When Redis was last asked, and whether it has answered.
    asked: Option<Instant>,
    heard: bool,
}

impl ForeignIds {
    /// Whether there may be some now, and whether to ask Redis about it.
    pub fn may_exist(&mut self, service: Service, now: Seconds) -> (bool, bool) {
        let known = self.0.entry(service).or_default();
        let asks = known.asked.is_none_or(|asked| asked.elapsed() > FRESH);
        if asks {
            known.asked = Some(Instant::now());
        }
        (!known.heard || known.until >= now, asks)
    }

    /// A session with such an id is stored that expires then. Whether Redis is to be told.
    pub fn announce(&mut self, service: Service, expiry: Seconds, now: Seconds) -> bool {
        let known = self.0.entry(service).or_default();
        let raises = known.until < expiry.min(now + LONGEST);
        if raises {
            known.until = expiry.saturating_add(MORE).min(now + LONGEST + MORE);
        }
        raises
    }

    /// Redis told so. What it is to be told instead, if that is more.
    pub fn learn(&mut self, service: Service, told: Option<Seconds>, now: Seconds) -> Option<Seconds> {
        let known = self.0.entry(service).or_default();
        known.heard = true;
        let told = told.unwrap_or_default().min(now + LONGEST + MORE);
        let tells = known.until > told && known.until >= now;
        known.until = known.until.max(told);
        tells.then_some(known.until)
    }
}
