//! Which slot of a shard has which key: a hash table that threads read while another changes it.
//!
//! Everything in it is atomic. One writer at a time, under the shard's lock, makes `version` odd, changes what it has
//! to, and makes it even again; a reader whose version was odd, or is another one afterwards, has read nothing and
//! tries again. So a lookup writes no memory that other processors read, which is what lets lookups scale.
//!
//! Cells are probed one after the other from a key's home. A cell holds eight bits of the hash, so that a key is rarely read
//! in vain, and the slot. When the table has grown, the smaller ones stay allocated: a late reader may still be
//! there, and together they are no larger than the one in use.

use super::sync::atomic::{
    fence, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use super::sync::{spin_loop, OnceLock};
use std::array::from_fn;
use std::iter::repeat_with;

/// A key and, in the upper 24 bits of the last word, where its home is.
pub type Words = [u64; 5];
const HOME_SHIFT: u32 = 40;

type Cells = Box<[AtomicU32]>;
type Keys = Box<[[AtomicU64; 5]]>;

const FIRST_CELLS: usize = if cfg!(loom) { 4 } else { 16 };
const LEVELS: usize = if cfg!(loom) { 3 } else { 20 };
/// How often a lookup that writers disturb is made again before it takes the lock.
const ATTEMPTS: usize = if cfg!(loom) { 1 } else { 8 };
const EMPTY: u32 = 0;
const SLOT_BITS: u32 = 24;

/// Chunks come in groups of four of one size, the next group's being twice that: little is allocated ahead.
const GROUPS: usize = if cfg!(loom) { 2 } else { 16 };
const FIRST_CHUNK: usize = if cfg!(loom) { 1 } else { 8 };

/// How large an index may become.
#[derive(Clone, Copy)]
pub struct Size {
    levels: usize,
    groups: usize,
}

impl Size {
    pub const FULL: Size = Size { levels: LEVELS, groups: GROUPS };
    /// For some two hundred keys: it takes a few hundred bytes itself.
    pub const SMALL: Size =
        Size { levels: if cfg!(loom) { LEVELS } else { 6 }, groups: if cfg!(loom) { GROUPS } else { 3 } };
}

pub struct Index {
    version: AtomicU32,
    /// Which of `levels` is in use.
    level: AtomicUsize,
    levels: Box<[OnceLock<Cells>]>,
    keys: Box<[OnceLock<Keys>]>,
}

/// A key that is there: in the cell at `place`, for `slot`. Good while the lock is held.
#[derive(Clone, Copy)]
pub struct Found {
    place: usize,
    pub slot: u32,
}

/// The words of a key that hashes to `hash`, as the index keeps them.
pub fn words(mut words: Words, hash: u64) -> Words {
    words[4] |= hash << HOME_SHIFT;
    words
}

/// The words of a key as they were before.
pub fn without_home(mut words: Words) -> Words {
    words[4] &= (1 << HOME_SHIFT) - 1;
    words
}

fn home(words: &Words) -> usize {
    (words[4] >> HOME_SHIFT) as usize
}

/// Of the bits that tell neither the shard nor the home.
fn tag(hash: u64) -> u32 {
    (hash >> 56) as u32
}

fn cell(tag: u32, slot: u32) -> u32 {
    tag << SLOT_BITS | (slot + 1)
}

fn slot(cell: u32) -> u32 {
    (cell & ((1 << SLOT_BITS) - 1)) - 1
}

/// Which chunk a slot is in, and its place there.
fn chunk(slot: u32) -> (usize, usize) {
    const FIRST: usize = FIRST_CHUNK * 4;
    let place = slot as usize + FIRST;
    let group = (place.ilog2() - FIRST.ilog2()) as usize;
    let size = FIRST_CHUNK.ilog2() as usize + group;
    (group * 4 + (place >> size) % 4, place & ((1 << size) - 1))
}

/// `count` made by `make`; `None` where there is no memory for them.
fn allocate<T>(count: usize, make: impl FnMut() -> T) -> Option<Box<[T]>> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).ok()?;
    all.resize_with(count, make);
    Some(all.into_boxed_slice())
}

impl Index {
    pub fn new(size: Size) -> Index {
        Index {
            version: AtomicU32::new(0),
            level: AtomicUsize::new(0),
            levels: repeat_with(OnceLock::new).take(size.levels).collect(),
            keys: repeat_with(OnceLock::new).take(size.groups * 4).collect(),
        }
    }

    /// The words of the key of a slot that has one. Good while the lock is held.
    pub fn words(&self, slot: u32) -> Option<Words> {
        Some(self.key(slot)?.each_ref().map(|word| word.load(Relaxed)))
    }

    fn cells(&self) -> &[AtomicU32] {
        self.levels[self.level.load(Relaxed)].get().map_or(&[], |cells| cells)
    }

    fn key(&self, slot: u32) -> Option<&[AtomicU64; 5]> {
        let (chunk, place) = chunk(slot);
        self.keys.get(chunk)?.get()?.get(place)
    }

    /// Without the lock: whether a key is there. `None` when writers were in the way all the time.
    pub fn contains(&self, words: &Words, hash: u64) -> Option<bool> {
        for _ in 0..ATTEMPTS {
            let version = self.version.load(Acquire);
            if version.is_multiple_of(2) {
                let found = self.find(words, hash).is_some();
                fence(Acquire);
                if self.version.load(Relaxed) == version {
                    return Some(found);
                }
            }
            spin_loop();
        }
        None
    }

    /// Where a key is. Without the lock the answer may be wrong, but comes.
    pub fn find(&self, words: &Words, hash: u64) -> Option<Found> {
        let cells = self.cells();
        let mask = cells.len().wrapping_sub(1);
        let mut place = home(words) & mask;
        for _ in 0..cells.len() {
            let found = cells[place].load(Relaxed);
            if found == EMPTY {
                return None;
            }
            if found >> SLOT_BITS == tag(hash) {
                let slot = slot(found);
                let same = |key: &[AtomicU64; 5]| {
                    (0..5).fold(0, |differs, word| differs | (key[word].load(Relaxed) ^ words[word])) == 0
                };
                if self.key(slot).is_some_and(same) {
                    return Some(Found { place, slot });
                }
            }
            place = (place + 1) & mask;
        }
        None
    }

    fn change<R>(&self, change: impl FnOnce() -> R) -> R {
        let version = self.version.load(Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        fence(Release);
        let result = change();
        self.version.store(version.wrapping_add(2), Release);
        result
    }

    /// Makes room for one more key, which will be in `slot`, when `count` are there. Whether there is memory for it.
    pub fn reserve(&self, slot: u32, count: usize) -> bool {
        let (chunk, _) = chunk(slot);
        let Some(keys) = self.keys.get(chunk) else { return false };
        if keys.get().is_none() {
            let Some(new) = allocate(FIRST_CHUNK << (chunk / 4), || from_fn(|_| AtomicU64::new(0))) else {
                return false;
            };
            let _ = keys.set(new);
        }
        (count + 1) * 4 <= self.cells().len() * 3 || self.grow()
    }

    fn grow(&self) -> bool {
        let old = self.cells();
        let level = if old.is_empty() { 0 } else { self.level.load(Relaxed) + 1 };
        let Some(place) = self.levels.get(level) else { return false };
        if place.get().is_none() {
            let Some(new) = allocate(FIRST_CELLS << level, || AtomicU32::new(EMPTY)) else { return false };
            let _ = place.set(new);
        }
        let new = place.get().map_or(&[][..], |cells| cells);
        self.change(|| {
            new.iter().for_each(|cell| cell.store(EMPTY, Relaxed));
            for cell in old.iter().map(|cell| cell.load(Relaxed)).filter(|&cell| cell != EMPTY) {
                self.put(new, cell);
            }
            self.level.store(level, Relaxed);
        });
        true
    }

    /// Puts a cell into the first free place from the home of its key.
    fn put(&self, cells: &[AtomicU32], cell: u32) {
        let mask = cells.len() - 1;
        let mut place = self.home_of(cell) & mask;
        while cells[place].load(Relaxed) != EMPTY {
            place = (place + 1) & mask;
        }
        cells[place].store(cell, Relaxed);
    }

    fn home_of(&self, cell: u32) -> usize {
        self.key(slot(cell)).map_or(0, |key| (key[4].load(Relaxed) >> HOME_SHIFT) as usize)
    }

    /// After `reserve`.
    pub fn insert(&self, words: &Words, hash: u64, slot: u32) {
        self.change(|| {
            if let Some(key) = self.key(slot) {
                key.iter().zip(words).for_each(|(word, new)| word.store(*new, Relaxed));
            }
            self.put(self.cells(), cell(tag(hash), slot));
        });
    }

    /// Removes a key. Those behind it move up, so that no probe ends early.
    pub fn remove(&self, found: Found) {
        let mut free = found.place;
        let cells = self.cells();
        let mask = cells.len() - 1;
        self.change(|| {
            let mut next = free;
            loop {
                next = (next + 1) & mask;
                let cell = cells[next].load(Relaxed);
                if cell == EMPTY {
                    break;
                }
                let from_home = next.wrapping_sub(self.home_of(cell)) & mask;
                if from_home >= (next.wrapping_sub(free) & mask) {
                    cells[free].store(cell, Relaxed);
                    free = next;
                }
            }
            cells[free].store(EMPTY, Relaxed);
        });
    }

    /// Where the key of a slot is.
    pub fn find_slot(&self, slot: u32) -> Option<Found> {
        let cells = self.cells();
        let mask = cells.len().wrapping_sub(1);
        let home = (self.key(slot)?[4].load(Relaxed) >> HOME_SHIFT) as usize;
        (0..cells.len())
            .map(|step| (home + step) & mask)
            .take_while(|&place| cells[place].load(Relaxed) != EMPTY)
            .find(|&place| self::slot(cells[place].load(Relaxed)) == slot)
            .map(|place| Found { place, slot })
    }

    pub fn clear(&self) {
        self.change(|| {
            self.level.store(0, Relaxed);
            self.cells().iter().for_each(|cell| cell.store(EMPTY, Relaxed));
        });
    }
}
