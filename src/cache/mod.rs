//! The internal cache: what it must do ([`Cache`]), whatever it keeps its sessions in, and its kinds.
//!
//! Nothing here knows libssl. A cache is generic over [`Session`], so that its logic also runs with made-up sessions.
//! No method calls `left` or drops a session while it holds a lock: both may run a stranger's code.

pub mod memory;
pub mod redis;
pub mod shm;

use std::fmt;

/// Seconds since the epoch.
pub type Seconds = i64;

/// Who may resume each other's sessions: 128 bits that the same configuration makes in each process.
pub type Service = [u64; 2];

/// SSL_MAX_SSL_SESSION_ID_LENGTH
pub const LONGEST: usize = 32;

/// What a cached session is found by: protocol version and session id, as libssl compares them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Key {
    version: i32,
    length: u8,
    id: [u8; LONGEST],
}

impl Key {
    /// `None` for an id longer than the protocol allows.
    #[inline]
    pub fn new(version: i32, id: &[u8]) -> Option<Key> {
        let length = u8::try_from(id.len()).ok()?;
        let id = match <[u8; LONGEST]>::try_from(id) {
            Ok(id) => id,
            Err(_) => {
                let mut padded = [0; LONGEST];
                padded.get_mut(..id.len())?.copy_from_slice(id);
                padded
            }
        };
        Some(Key { version, length, id })
    }

    pub fn id(&self) -> &[u8] {
        &self.id[..usize::from(self.length)]
    }

    pub fn version(&self) -> i32 {
        self.version
    }

    /// All of it: two keys are equal if their words are.
    #[inline]
    fn words(&self) -> [u64; 5] {
        let tail = u64::from(self.version as u32) << 8 | u64::from(self.length);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| self.id[at * 8 + byte]));
        [word(0), word(1), word(2), word(3), tail]
    }
}

/// A session as a cache sees it: a counted reference. `clone` takes one more, `drop` frees one.
pub trait Session: Clone + Send + Sync + 'static {
    fn key(&self) -> Key;
    /// The last second at which it may still be resumed: its time plus its timeout, as they are now.
    fn expiry(&self) -> Seconds;
    /// Whether both are references to one object.
    fn same(&self, other: &Self) -> bool;
}

/// A session that can leave the process as bytes.
pub trait Portable: Session {
    /// Appends what [`Portable::read`] makes an equal session of; `false` where that cannot be had.
    fn write(&self, out: &mut Vec<u8>) -> bool;
    /// A new object. `None` for bytes that are no session.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// What to do when another object with the same key is cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collision {
    Replace,
    /// Keep the cached one if it has not expired at this second.
    KeepUnlessExpired(Seconds),
}

/// Why a session left, or what became of one that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    Added,
    /// Another object with its key was there and has left.
    Replaced,
    /// This very object was there already. Nothing changed.
    Same,
    /// Another object with its key was there and stays.
    Kept,
    /// No memory could be had for it.
    Refused,
}

/// Why [`Cache::insert`] hands a session to `left`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departure {
    Evicted,
    Replaced,
}

/// Which session leaves first when the cache is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Eviction {
    /// The one that expires soonest.
    #[default]
    Soonest,
    /// The one that came first, as libssl 1.1.1 has it.
    Oldest,
}

/// The internal cache of one SSL_CTX. All methods may be called from any thread, also from within `left`.
pub trait Cache<S: Session>: Send + Sync {
    /// Takes over one reference to `session`. Calls `left` for what had to leave, after the insertion.
    fn insert(&self, session: S, collision: Collision, left: &mut dyn FnMut(S, Departure)) -> Inserted;
    /// A reference of the caller's own.
    fn get(&self, key: &Key) -> Option<S>;
    /// Out of the cache, to one caller only.
    fn take(&self, key: &Key) -> Option<S>;
    /// The same for a ticket with early data, and whether that may be accepted: nobody can have accepted it before.
    fn redeem(&self, key: &Key) -> Option<(S, bool)> {
        self.take(key).map(|session| (session, true))
    }
    /// Out of the cache, for good: also what another process has stored and is still on its way does not come back.
    fn remove(&self, key: &Key) -> Option<S> {
        self.take(key)
    }
    /// The same for what has the key of `session`.
    fn take_like(&self, session: &S) -> Option<S> {
        self.remove(&session.key())
    }
    /// Takes `session` out if this very object is cached.
    fn take_same(&self, session: &S) -> Option<S>;
    fn contains(&self, key: &Key) -> bool;
    /// Judges `session` anew after its time or timeout changed; nothing if it is not cached.
    fn expiry_changed(&self, session: &S);
    /// Whether a session has expired at `now`; cheap enough to ask on every connection. One that came this
    /// moment may be overlooked for a few seconds.
    fn has_expired(&self, now: Seconds) -> bool;
    /// Takes out up to `most` sessions that have expired at `now`, and says how many.
    fn expire(&self, now: Seconds, most: usize, left: &mut dyn FnMut(S)) -> usize;
    /// Takes out everything.
    fn clear(&self, left: &mut dyn FnMut(S));
    fn len(&self) -> usize;
    /// How many of them a process has that is forked now. Takes no lock.
    fn inherited(&self) -> usize {
        self.len()
    }
    fn is_empty(&self) -> bool;
    /// How many sessions it may hold, 0 for no limit. A lower limit takes effect at the next insertion.
    fn set_limit(&self, limit: usize);
    /// A shared cache, which others use as well, always evicts what expires soonest.
    fn set_eviction(&self, _eviction: Eviction) {}
    /// Whether a session that is added again keeps its turn among those that expire in the same second, or is the last one
    /// of them. In a shared cache nobody can say who came first.
    fn keep_turns(&self, _keep: bool) {}
    /// A reference to each session cached now.
    fn snapshot(&self) -> Vec<S>;
    /// A number that is another one when anything came or left since. `None` where nobody counts that.
    fn changes(&self) -> Option<u64> {
        None
    }
    /// Whether other processes use it, too, and it outlives this one. What comes out of it are then equal copies.
    fn is_shared(&self) -> bool {
        false
    }
    /// Tells a shared cache which of its sessions are meant from now on: those of contexts with the same identity.
    fn set_service(&self, _identity: Service) {}
    /// Whether the ids of new sessions shall vouch for themselves: `issue` makes such, and `refuses` tells others.
    fn issues_ids(&self) -> bool {
        false
    }
    /// Makes an id. `false` where none can be had.
    fn issue(&self, _id: &mut [u8; LONGEST]) -> bool {
        false
    }
    /// Whether no session with this id can be in the cache, which one need not ask for it then.
    fn refuses(&self, _id: &[u8]) -> bool {
        false
    }
    /// How a cache on another machine is doing.
    fn vitals(&self) -> Option<&redis::vitals::Vitals> {
        None
    }
}

/// Where a cache is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// In this process's memory.
    #[default]
    Memory,
    /// In memory that the processes of a machine share.
    Shm(shm::Spec),
    /// In a Redis that the machines of a fleet share.
    Redis(Box<redis::url::Spec>),
}

impl Place {
    /// What keeps services apart in it that are equal otherwise.
    pub fn label(&self) -> &str {
        match self {
            Place::Memory => "",
            Place::Shm(spec) => &spec.service,
            Place::Redis(spec) => &spec.service,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Memory => to.write_str("memory"),
            Place::Shm(spec) => write!(to, "shm:{}", spec.name),
            Place::Redis(spec) => spec.fmt(to),
        }
    }
}

/// The cache at `place`, made if it is not there, without a limit. The error is a sentence for a person.
pub fn open<S: Portable>(place: &Place) -> Result<Box<dyn Cache<S>>, String> {
    match place {
        Place::Memory => Ok(Box::new(memory::Memory::new(0))),
        Place::Shm(spec) => match shm::Area::open(spec) {
            Ok(area) => Ok(Box::new(shm::Shm::new(area))),
            Err(error) => Err(error.to_string()),
        },
        Place::Redis(spec) => Ok(Box::new(redis::Redis::open(spec)?)),
    }
}

/// Stops what goes on in the links to Redis until the result is dropped: nothing is half done in a process forked meanwhile.
/// (A cache in memory has the gate, and what a process forked in the middle of a change to a cache in shared memory has begun
/// is left to its parent.)
pub use redis::{hold, Held};

/// This is a process that was just forked.
pub fn forked() {
    shm::forked();
}

/// This process ends: caches that are only kept while they are used may go.
pub fn leave() {
    shm::leave();
    redis::leave();
}
