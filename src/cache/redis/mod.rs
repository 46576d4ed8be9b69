//! The internal cache of a fleet, in Redis or Valkey.
//!
//! | file | what it is about |
//! |---|---|
//! | `url` | how it is named |
//! | `keys` | what keeps the sessions secret and whole there, and ids that vouch for themselves |
//! | `server` | one server, a Cluster, a master that Sentinel knows; the commands |
//! | `void` | what stands in the place of a session that was removed or used up |
//! | `generations` | what was flushed |
//! | `files` | those that are read again when they were changed |
//! | `foreign` | ids that no machine of the fleet issued, and that are not to be refused |
//! | `link` | deadlines, what was removed here; the breaker; the threads, one of which writes behind (`link::writer`) |
//! | `vitals` | how the link is doing |
//! | `check` | what an operator asks: whether it will do, what it says of itself, a flush |
//!
//! Here it is made a [`Cache`]. Whatever Redis does, a lookup ends within its deadline: with a session that a machine of
//! the fleet sealed for this id and this service, or with none.

pub mod check;
mod files;
mod foreign;
mod generations;
pub mod keys;
mod link;
mod server;
pub mod url;
pub mod vitals;
mod void;
mod wire;

use super::{Cache, Collision, Departure, Inserted, Key, Portable, Seconds, Service, LONGEST};
use link::{Answer, Link};
use once_cell::race::OnceBox;
use server::How;
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use url::Spec;
use vitals::{Vital, Vitals};

/// All links of the process: contexts with the same URL share one.
static LINKS: OnceBox<Opened> = OnceBox::new();

struct Opened {
    link: &'static Link,
    next: OnceBox<Opened>,
}

fn links() -> impl Iterator<Item = &'static Link> {
    std::iter::successors(LINKS.get(), |opened| opened.next.get()).map(|opened| opened.link)
}

/// A service's part of a cache in Redis.
pub struct Redis<S> {
    link: &'static Link,
    service: [AtomicU64; 2],
    /// The process in which the link knows that sessions of the service will come.
    prepared: AtomicU32,
    _sessions: PhantomData<fn() -> S>,
}

/// This process ends: what is on its way to Redis has a moment to arrive.
pub fn leave() {
    links().for_each(Link::leave);
}

/// The locks of the links; dropping it lets them go. Processes rarely have more than one link: nothing is allocated then.
pub struct Held {
    _links: SmallVec<[link::Held; 2]>,
}

/// Nothing is half done until the result is dropped. The threads of a link are at work when the last context that used it
/// has gone, too.
pub fn hold() -> Held {
    Held { _links: links().map(Link::hold).collect() }
}

impl<S: Portable> Redis<S> {
    /// Of service `[0, 0]`. Nothing is connected yet. The error is a sentence for a person.
    pub fn open(spec: &Spec) -> Result<Redis<S>, String> {
        let known = || links().find(|link| link.spec() == spec);
        let link = match known() {
            Some(link) => link,
            None => {
                let link: &'static Link = Box::leak(Box::new(Link::new(spec)?));
                let mut opened = Box::new(Opened { link, next: OnceBox::new() });
                let mut place = &LINKS;
                while let Err(mine) = place.set(opened) {
                    opened = mine;
                    let Some(other) = place.get() else { break };
                    place = &other.next;
                }
                link
            }
        };
        Ok(Redis { link, service: Default::default(), prepared: AtomicU32::new(0), _sessions: PhantomData })
    }

    fn service(&self) -> Service {
        self.service.each_ref().map(|word| word.load(Relaxed))
    }

    /// A connection of this service has begun.
    fn prepare(&self) {
        let process = std::process::id();
        if self.prepared.swap(process, Relaxed) != process {
            self.link.prepare(self.service());
        }
    }

    fn decode(key: &Key, answer: Answer) -> Option<S> {
        match answer {
            Answer::Session(bytes) | Answer::WithoutEarlyData(bytes) => {
                S::read(&bytes).filter(|session| session.key() == *key)
            }
            Answer::Nothing => None,
        }
    }

    fn put(&self, session: &S, how: How) -> bool {
        let mut bytes = Vec::new();
        if !session.write(&mut bytes) {
            return false;
        }
        let (service, key) = (self.service(), session.key());
        if how != How::Renew && !self.link.keys().vouches(service, key.id()) {
            self.link.announce_foreign_ids(service, session.expiry());
        }
        self.link.put((service, key), bytes, session.expiry(), how)
    }
}

impl<S: Portable> Cache<S> for Redis<S> {
    fn insert(&self, session: S, collision: Collision, _left: &mut dyn FnMut(S, Departure)) -> Inserted {
        let how = match collision {
            Collision::Replace => How::Replace,
            Collision::KeepUnlessExpired(_) => How::Keep,
        };
        if self.put(&session, how) {
            Inserted::Added
        } else {
            Inserted::Refused
        }
    }

    fn get(&self, key: &Key) -> Option<S> {
        Self::decode(key, self.link.get((self.service(), *key), link::now()))
    }

    fn take(&self, key: &Key) -> Option<S> {
        Self::decode(key, self.link.take((self.service(), *key), link::now()))
    }

    fn redeem(&self, key: &Key) -> Option<(S, bool)> {
        let answer = self.link.take((self.service(), *key), link::now());
        let with_early_data = matches!(answer, Answer::Session(_));
        Self::decode(key, answer).map(|session| (session, with_early_data))
    }

    fn remove(&self, key: &Key) -> Option<S> {
        Self::decode(key, self.link.remove((self.service(), *key), link::now()))
    }

    fn take_same(&self, session: &S) -> Option<S> {
        self.remove(&session.key())
    }

    fn contains(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    fn expiry_changed(&self, session: &S) {
        self.put(session, How::Renew);
    }

    /// Redis clears them.
    fn has_expired(&self, _now: Seconds) -> bool {
        false
    }

    fn expire(&self, _now: Seconds, _most: usize, _left: &mut dyn FnMut(S)) -> usize {
        0
    }

    fn clear(&self, _left: &mut dyn FnMut(S)) {
        self.link.flush(self.service());
    }

    /// Those of this process that are not written yet: nobody counts the others.
    fn len(&self) -> usize {
        self.link.pending(self.service()).len()
    }

    /// What is pending is the parent's to write.
    fn inherited(&self) -> usize {
        0
    }

    /// As far as is known.
    fn is_empty(&self) -> bool {
        !self.link.is_used()
    }

    /// How much there may be is for Redis to say.
    fn set_limit(&self, _limit: usize) {}

    fn snapshot(&self) -> Vec<S> {
        self.link.pending(self.service()).iter().filter_map(|bytes| S::read(bytes)).collect()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn set_service(&self, identity: [u64; 2]) {
        for (word, new) in self.service.iter().zip(identity) {
            if word.swap(new, Relaxed) != new {
                self.prepared.store(0, Relaxed);
            }
        }
    }

    fn issues_ids(&self) -> bool {
        true
    }

    fn issue(&self, id: &mut [u8; LONGEST]) -> bool {
        self.prepare();
        self.link.issue(self.service(), id)
    }

    fn refuses(&self, id: &[u8]) -> bool {
        self.prepare();
        let refused = !self.link.keys().vouches(self.service(), id) && !self.link.may_have_foreign_ids(self.service());
        if refused {
            self.link.vitals().count(Vital::RefusedIds);
        }
        refused
    }

    fn vitals(&self) -> Option<&Vitals> {
        Some(self.link.vitals())
    }
}
