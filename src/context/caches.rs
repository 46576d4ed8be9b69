//! Where the sessions of a context are: in the memory of this process, or where a cache URL says.
//!
//! A place that was chosen once stays open as long as the process: other threads may be using it, and contexts are used
//! again for the next SSL_CTX, which mostly chooses the same.

use crate::cache::{self, memory::Memory, Cache, Place};
use crate::libssl::Session;
use once_cell::race::OnceBox;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// Whether a context of this process has, or had, a cache elsewhere.
static ANY_ELSEWHERE: AtomicBool = AtomicBool::new(false);

pub fn any_elsewhere() -> bool {
    ANY_ELSEWHERE.load(Relaxed)
}

pub struct Caches {
    /// 0 for `memory`, 1 for the first of `others`, and so on.
    chosen: AtomicUsize,
    others: OnceBox<Other>,
    memory: Memory<Session>,
}

struct Other {
    place: Place,
    cache: Box<dyn Cache<Session>>,
    next: OnceBox<Other>,
}

impl Caches {
    /// `owner` is named by [`cache::memory::each_owner`].
    pub fn new(owner: u32) -> Caches {
        Caches { chosen: AtomicUsize::new(0), others: OnceBox::new(), memory: Memory::owned_by(owner) }
    }

    fn others(&self) -> impl Iterator<Item = &Other> {
        std::iter::successors(self.others.get(), |other| other.next.get())
    }

    /// The cache in use.
    #[inline]
    pub fn current(&self) -> &(dyn Cache<Session> + 'static) {
        match self.chosen.load(Acquire) {
            0 => &self.memory,
            chosen => self.others().nth(chosen - 1).map_or(&self.memory, |other| &*other.cache),
        }
    }

    /// Whether the cache in use is one that others use, too.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.chosen.load(Acquire) != 0 && self.current().is_shared()
    }

    /// The memory of this process, whatever is in use.
    pub fn memory(&self) -> &Memory<Session> {
        &self.memory
    }

    /// Where that is, for people: "memory" or "shm:NAME".
    pub fn label(&self) -> String {
        let chosen = self.chosen.load(Acquire).checked_sub(1);
        chosen.and_then(|chosen| self.others().nth(chosen)).map_or("memory".into(), |other| other.place.to_string())
    }

    /// From now on the cache is at `place`. The error is a sentence for a person, and then nothing has changed.
    pub fn choose(&self, place: &Place) -> Result<(), String> {
        let chosen = match place {
            Place::Memory => 0,
            place => {
                ANY_ELSEWHERE.store(true, Relaxed);
                match self.others().position(|other| other.place == *place) {
                    Some(known) => known + 1,
                    None => self.open(place)?,
                }
            }
        };
        self.chosen.store(chosen, Release);
        Ok(())
    }

    fn open(&self, place: &Place) -> Result<usize, String> {
        let mut new = Some(Box::new(Other { place: place.clone(), cache: cache::open(place)?, next: OnceBox::new() }));
        let mut end = &self.others;
        let mut number = 1;
        loop {
            while let Some(other) = end.get() {
                end = &other.next;
                number += 1;
            }
            match new.take().map(|new| end.set(new)) {
                Some(Err(not_set)) => new = Some(not_set),
                _ => return Ok(number),
            }
        }
    }
}
