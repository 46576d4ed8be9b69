//! Which slot of a shard has which key: a hash table that threads read while another changes it.
//!
//! Everything in it is atomic. One writer at a time, under the shard's lock, makes `version` odd, changes what it has
//! to, and makes it even again; a reader whose version was odd, or is another one afterwards, has read nothing and
//! tries again. So a lookup writes no memory that other processors read, which is what lets lookups scale.
//!
//! A key is known by its hash, all 64 bits of it: two keys have the same one with a probability of 2^-64, whoever chose them
//! (see [`super::keyed`]). Who holds the lock compares the keys themselves, too.
//!
//! Cells are probed one after the other from a key's home. A cell holds eight bits of the hash, so that a slot is rarely read
//! in vain, and the slot. The first cells and hashes lie in the index itself: a cache of few sessions is one piece of memory.
//! When the table has grown, the smaller ones stay allocated: a late reader may still be there, and together they are no
//! larger than the one in use.

use super::sync::atomic::{
    fence, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use super::sync::{spin_loop, OnceBox, OnceLock};
use std::array::from_fn;
use std::iter::repeat_with;

type Cells = Box<[AtomicU32]>;
type Hashes = Box<[AtomicU64]>;

const FIRST_CELLS: usize = if cfg!(loom) { 4 } else { 16 };
/// As many as the first cells are for.
const FIRST_HASHES: usize = if cfg!(loom) { 2 } else { 12 };
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
    levels: u8,
    groups: u8,
}

impl Size {
    pub const FULL: Size = Size { levels: LEVELS as u8, groups: GROUPS as u8 };
    /// For some two hundred keys.
    pub const SMALL: Size = if cfg!(loom) { Size::FULL } else { Size { levels: 5, groups: 3 } };
}

pub struct Index {
    version: AtomicU32,
    /// Which cells are in use: 0 for the first, 1 for the first of `More`, and so on.
    level: AtomicU32,
    size: Size,
    cells: [AtomicU32; FIRST_CELLS],
    hashes: [AtomicU64; FIRST_HASHES],
    more: OnceBox<More>,
}

/// What more keys need.
struct More {
    levels: Box<[OnceLock<Cells>]>,
    hashes: Box<[OnceLock<Hashes>]>,
}

/// A key that is there: in the cell at `place`, for `slot`. Good while the lock is held.
#[derive(Clone, Copy)]
pub struct Found {
    place: usize,
    pub slot: u32,
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

/// Which chunk a hash is in that is not among the first, and its place there.
fn chunk(hash: usize) -> (usize, usize) {
    const FIRST: usize = FIRST_CHUNK * 4;
    let place = hash + FIRST;
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
            level: AtomicU32::new(0),
            size,
            cells: from_fn(|_| AtomicU32::new(EMPTY)),
            hashes: from_fn(|_| AtomicU64::new(0)),
            more: OnceBox::new(),
        }
    }

    /// See [`super::shard::Shard::fetch`].
    #[inline]
    pub fn fetch(&self, hash: u64) {
        self.version.load(Relaxed);
        self.cells[hash as usize % FIRST_CELLS].load(Relaxed);
        self.hashes[FIRST_HASHES / 2].load(Relaxed);
    }

    /// The hash of the key of a slot that has one. Good while the lock is held.
    pub fn hash(&self, slot: u32) -> Option<u64> {
        Some(self.place(slot)?.load(Relaxed))
    }

    #[inline]
    fn cells(&self) -> &[AtomicU32] {
        match self.level.load(Relaxed) as usize {
            0 => &self.cells,
            level => self.more.get().and_then(|more| more.levels.get(level - 1)?.get()).map_or(&[], |cells| cells),
        }
    }

    /// Where the hash of a slot is.
    #[inline]
    fn place(&self, slot: u32) -> Option<&AtomicU64> {
        let slot = slot as usize;
        if slot < FIRST_HASHES {
            return self.hashes.get(slot);
        }
        let (chunk, place) = chunk(slot - FIRST_HASHES);
        self.more.get()?.hashes.get(chunk)?.get()?.get(place)
    }

    /// Without the lock: whether a key is there. `None` when writers were in the way all the time.
    pub fn contains(&self, hash: u64) -> Option<bool> {
        for _ in 0..ATTEMPTS {
            let version = self.version.load(Acquire);
            if version.is_multiple_of(2) {
                let found = self.find(hash, |_| true).is_some();
                fence(Acquire);
                if self.version.load(Relaxed) == version {
                    return Some(found);
                }
            }
            spin_loop();
        }
        None
    }

    /// Where the key with a hash is of which `is_meant` says that it is in its slot. Without the lock the answer may be wrong,
    /// but comes.
    #[inline]
    pub fn find(&self, hash: u64, is_meant: impl Fn(u32) -> bool) -> Option<Found> {
        let cells = self.cells();
        let mask = cells.len().wrapping_sub(1);
        let mut place = hash as usize & mask;
        for _ in 0..cells.len() {
            let found = cells[place].load(Relaxed);
            if found == EMPTY {
                return None;
            }
            if found >> SLOT_BITS == tag(hash) {
                let slot = slot(found);
                if self.hash(slot) == Some(hash) && is_meant(slot) {
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

    fn more(&self) -> &More {
        self.more.get_or_init(|| {
            Box::new(More {
                levels: repeat_with(OnceLock::new).take(self.size.levels.into()).collect(),
                hashes: repeat_with(OnceLock::new).take(usize::from(self.size.groups) * 4).collect(),
            })
        })
    }

    /// Makes room for one more key, which will be in `slot`, when `count` are there. Whether there is memory for it.
    pub fn reserve(&self, slot: u32, count: usize) -> bool {
        if slot as usize >= FIRST_HASHES && !self.reserve_hash(slot as usize - FIRST_HASHES) {
            return false;
        }
        (count + 1) * 4 <= self.cells().len() * 3 || self.grow()
    }

    fn reserve_hash(&self, hash: usize) -> bool {
        let (chunk, _) = chunk(hash);
        let Some(hashes) = self.more().hashes.get(chunk) else { return false };
        if hashes.get().is_none() {
            let Some(new) = allocate(FIRST_CHUNK << (chunk / 4), || AtomicU64::new(0)) else { return false };
            let _ = hashes.set(new);
        }
        true
    }

    #[cold]
    fn grow(&self) -> bool {
        let old = self.cells();
        let level = self.level.load(Relaxed) as usize + 1;
        let Some(place) = self.more().levels.get(level - 1) else { return false };
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
            self.level.store(level as u32, Relaxed);
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
        self.hash(slot(cell)).map_or(0, |hash| hash as usize)
    }

    /// After `reserve`.
    pub fn insert(&self, hash: u64, slot: u32) {
        self.change(|| {
            if let Some(place) = self.place(slot) {
                place.store(hash, Relaxed);
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
        self.find(self.hash(slot)?, |found| found == slot)
    }

    pub fn clear(&self) {
        self.change(|| {
            self.level.store(0, Relaxed);
            self.cells().iter().for_each(|cell| cell.store(EMPTY, Relaxed));
        });
    }
}
