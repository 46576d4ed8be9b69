//! The internal cache of all processes of a machine, in one shared mapping that outlives them.
//!
//! A process may be killed at any instruction, or write all over the mapping; the others go on. What that rests on:
//!
//! | file | what it is about |
//! |---|---|
//! | `file` | made whole, then named; opened with mistrust |
//! | `sys` | the system calls: all that is unsafe |
//! | `memory` | how much memory there is for one |
//! | `bus` | a file that somebody cuts short |
//! | `lock` | one lock for those who change something, never waited for long |
//! | `seat` | whether the lock's owner lives, in whatever PID namespace: the kernel says so |
//! | `store` | the layout; looking up without a lock, each record verified against the key asked for |
//! | `writer` | changes that are undone if they were not finished; the ring; making room |
//! | `order` | the records of a service by expiry |
//! | `area` | the cache as raw operations on bytes |
//!
//! Here it is made a [`Cache`]: sessions are written to bytes before and read from them after the lock was held. Each
//! service (those contexts that may resume each other's sessions) sees only its own.

mod area;
mod bus;
mod file;
mod lock;
mod memory;
mod order;
mod seat;
mod store;
mod sys;
mod writer;

#[cfg(test)]
mod crash;

pub use super::Service;
use super::{Cache, Collision, Departure, Inserted, Key, Portable, Seconds};
pub use area::{forked, leave, Area};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
pub use store::{LARGEST_SIZE, LONGEST, SMALLEST_SIZE};
pub(super) use sys::effective_user;

/// Which cache, and how it is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// 1 to 64 of `A-Za-z0-9._-` and no dot first, for /dev/shm/reprise-NAME; or an absolute path.
    pub name: String,
    /// In bytes, of the whole file: a multiple of 4096.
    pub size: u64,
    /// Whether it stays when nobody uses it.
    pub keep: bool,
    /// Keeps services apart that are equal otherwise; mostly empty.
    pub service: String,
}

impl Spec {
    /// The size when none is asked for. Containers mostly have 64M for all that is in /dev/shm.
    pub const SIZE: u64 = 48 << 20;

    /// With that size, to stay. An error if there can be no cache of this name.
    pub fn new(name: &str) -> Result<Spec, Error> {
        file::path(name)?;
        Ok(Spec { name: name.into(), size: Spec::SIZE, keep: true, service: String::new() })
    }
}

/// What happened in a cache since it was made, in [`Info::counters`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    Inserted,
    /// Left before they expired, for a limit or for room.
    Evicted,
    Expired,
    /// Cleared or flushed.
    Removed,
    Replaced,
    Taken,
    /// Records that were not what they had been; thrown away.
    Corrupt,
    /// A process died while it changed something; the others put it right.
    Recovered,
    /// The structure was damaged: everything was thrown away.
    Reset,
    /// Operations that gave up waiting for the lock.
    Busy,
}

/// The names of the counters, in their order.
pub const COUNTERS: [&str; 10] =
    ["inserted", "evicted", "expired", "removed", "replaced", "taken", "corrupt", "recovered", "reset", "busy"];

/// A cache seen from outside.
#[derive(Clone, Debug)]
pub struct Info {
    pub name: String,
    pub path: PathBuf,
    /// Of the file, in bytes.
    pub size: u64,
    pub keep: bool,
    pub created: Seconds,
    /// Bytes that sessions take, with what goes with each.
    pub used: u64,
    /// Bytes that there are for sessions. A full cache has a part of them free.
    pub room: u64,
    pub sessions: u64,
    /// Those that have sessions.
    pub services: Vec<ServiceInfo>,
    pub counters: [u64; COUNTERS.len()],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    pub identity: Service,
    pub sessions: u64,
    /// Of the sessions alone.
    pub bytes: u64,
    pub soonest_expiry: Seconds,
}

impl Info {
    pub fn count(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }
}

/// Why a cache cannot be had. Its text is for a person, and says what to do.
#[derive(Debug)]
pub enum Error {
    Name(String),
    Size(u64),
    OtherSize { path: PathBuf, there: u64, asked: u64 },
    OtherKeep { path: PathBuf, there: bool },
    Layout(PathBuf, u64),
    NotOurs(PathBuf, &'static str),
    NoCache(PathBuf),
    Damaged(PathBuf),
    NoRoom(PathBuf, u64),
    NoMemory { path: PathBuf, asked: u64, available: u64 },
    FileLimit { path: PathBuf, asked: u64, limit: u64 },
    Locks(PathBuf, io::Error),
    Stale(PathBuf),
    Missing(PathBuf),
    Busy(PathBuf),
    Io(PathBuf, io::Error),
}

/// A size in bytes as a person writes it.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 30) => format!("{}G", bytes >> 30),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 10) => format!("{}K", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn keep(keep: bool) -> &'static str {
    if keep {
        "on"
    } else {
        "off"
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |path: &PathBuf| format!("the shared cache {}", path.display());
        let remove = |path: &PathBuf| format!("remove it with `reprise cache rm {}`", file::name(path));
        match self {
            Error::Name(name) => write!(
                f,
                "{name:?} cannot name a shared cache: use 1 to 64 letters, digits, '.', '_' or '-', no '.' first, or an \
                 absolute path"
            ),
            Error::Size(bytes) => write!(
                f,
                "a shared cache cannot have size={}: use {} to {}, in steps of 4K",
                size(*bytes),
                size(SMALLEST_SIZE),
                size(LARGEST_SIZE)
            ),
            Error::OtherSize { path, there, asked } => write!(
                f,
                "{} was made with size={}, this process asks for {}: {} or use the same size",
                quoted(path),
                size(*there),
                size(*asked),
                remove(path)
            ),
            Error::OtherKeep { path, there } => write!(
                f,
                "{} was made with keep={}, this process asks for keep={}: {} or use the same",
                quoted(path),
                keep(*there),
                keep(!there),
                remove(path)
            ),
            Error::Layout(path, layout) => write!(
                f,
                "{} was made by another version of Reprise (its layout is {layout}, this one uses {}): {} or use another \
                 name",
                quoted(path),
                store::LAYOUT,
                remove(path)
            ),
            Error::NotOurs(path, problem) => {
                write!(f, "{} is not used because {problem}: remove the file or use another name", quoted(path))
            }
            Error::NoCache(path) => {
                write!(f, "{} has something else in it: remove the file or use another name", path.display())
            }
            Error::Damaged(path) => write!(f, "{} is damaged: {}", quoted(path), remove(path)),
            Error::NoRoom(path, bytes) => write!(
                f,
                "{} cannot be made: there is no room for size={} (see `df {}`)",
                quoted(path),
                size(*bytes),
                path.parent().unwrap_or(path).display()
            ),
            Error::NoMemory { path, asked, available } => write!(
                f,
                "{} cannot be made: size={}, and there are {}M of memory available: use a smaller size",
                quoted(path),
                size(*asked),
                available >> 20
            ),
            Error::FileLimit { path, asked, limit } => write!(
                f,
                "{} cannot be made: size={}, and files of this process may have {limit} bytes (see `ulimit -f`)",
                quoted(path),
                size(*asked)
            ),
            Error::Locks(path, error) => {
                write!(f, "{} is not used because its file system has no locks on bytes of files: {error}", quoted(path))
            }
            Error::Stale(path) => {
                write!(f, "{} is from before the system was started: it is made anew when it is used", quoted(path))
            }
            Error::Missing(path) => write!(f, "{} is not there", quoted(path)),
            Error::Busy(path) => write!(f, "{} is being made and removed by others: try again", quoted(path)),
            Error::Io(path, error) => write!(f, "{}: {error}", quoted(path)),
        }
    }
}

impl std::error::Error for Error {}

/// The names of this user's caches, without those that have a path instead.
pub fn list() -> Result<Vec<String>, Error> {
    file::list()
}

/// Removes the file of a cache. Processes that use it go on with it, and it ends with them.
pub fn remove(name: &str) -> Result<(), Error> {
    file::remove(name)
}

/// A service's part of a shared cache.
pub struct Shm<S> {
    area: &'static Area,
    service: [AtomicU64; 2],
    limit: AtomicUsize,
    _sessions: PhantomData<fn() -> S>,
}

impl<S: Portable> Shm<S> {
    /// Of service `[0, 0]`, without a limit.
    pub fn new(area: &'static Area) -> Self {
        Shm { area, service: Default::default(), limit: AtomicUsize::new(0), _sessions: PhantomData }
    }

    pub fn area(&self) -> &'static Area {
        self.area
    }

    fn service(&self) -> Service {
        self.service.each_ref().map(|word| word.load(Relaxed))
    }

    /// The session of these bytes, if they are one with this key.
    fn decode(key: &Key, bytes: &[u8]) -> Option<S> {
        S::read(bytes).filter(|session| session.key() == *key)
    }

    fn encode(session: &S) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        (session.write(&mut bytes) && bytes.len() <= LONGEST).then_some(bytes)
    }
}

impl<S: Portable> Cache<S> for Shm<S> {
    fn insert(&self, session: S, collision: Collision, left: &mut dyn FnMut(S, Departure)) -> Inserted {
        let Some(bytes) = Self::encode(&session) else { return Inserted::Refused };
        let (key, expiry, limit) = (session.key(), session.expiry(), self.limit.load(Relaxed));
        let mut leaving = Vec::new();
        let inserted = self.area.insert(self.service(), &key, &bytes, expiry, collision, limit, &mut leaving);
        drop(session);
        for (bytes, why) in leaving {
            if let Some(session) = S::read(&bytes) {
                left(session, why);
            }
        }
        inserted
    }

    fn get(&self, key: &Key) -> Option<S> {
        let mut bytes = Vec::new();
        self.area.get(self.service(), key, &mut bytes).then(|| Self::decode(key, &bytes))?
    }

    fn take(&self, key: &Key) -> Option<S> {
        let mut bytes = Vec::new();
        self.area.take(self.service(), key, &mut bytes).then(|| Self::decode(key, &bytes))?
    }

    fn take_same(&self, session: &S) -> Option<S> {
        let (key, bytes, mut found) = (session.key(), Self::encode(session)?, Vec::new());
        self.area.take_same(self.service(), &key, &bytes, &mut found).then(|| Self::decode(&key, &found))?
    }

    fn contains(&self, key: &Key) -> bool {
        self.area.get(self.service(), key, &mut Vec::new())
    }

    fn expiry_changed(&self, session: &S) {
        if let Some(bytes) = Self::encode(session) {
            self.area.rewrite(self.service(), &session.key(), &bytes, session.expiry());
        }
    }

    fn has_expired(&self, now: Seconds) -> bool {
        self.area.has_expired(self.service(), now)
    }

    fn expire(&self, now: Seconds, most: usize, left: &mut dyn FnMut(S)) -> usize {
        self.area.expire(self.service(), now, most, &mut |bytes| S::read(bytes).into_iter().for_each(&mut *left))
    }

    fn clear(&self, left: &mut dyn FnMut(S)) {
        self.area.clear(self.service(), &mut |bytes| S::read(bytes).into_iter().for_each(&mut *left));
    }

    fn len(&self) -> usize {
        self.area.sessions(self.service())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }

    fn snapshot(&self) -> Vec<S> {
        let mut sessions = Vec::new();
        self.area.for_each(self.service(), &mut |bytes| sessions.extend(S::read(bytes)));
        sessions
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// Not to be changed while others use it.
    fn set_service(&self, service: Service) {
        // Told again and again: a store each time would take the line from the other threads.
        if self.service() != service {
            self.service.iter().zip(service).for_each(|(to, from)| to.store(from, Relaxed));
        }
    }
}
