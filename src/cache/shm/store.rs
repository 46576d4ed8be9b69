//! What lies where in the mapping, and how it is read.
//!
//! The mapping is an array of 64-bit words. A fixed head (what the cache is, the lock, the journal, the counters) is
//! followed by the table of services, the buckets, and the ring in which the records lie. A link is the index of
//! a word, 0 for none, so two of them fit into a word. Nothing read here is believed: an index is checked before it is used,
//! a walk has an end, and a record counts only if its check is that of the key asked for.

use super::super::{Key, Seconds};
use super::{order, Service};
use std::sync::atomic::{fence, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::SeqCst};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// "reprise!" as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"reprise!");
/// Raised with every change of what is described here.
pub const LAYOUT: u64 = 3;

/// The longest record in bytes.
pub const LONGEST: usize = 64 << 10;
pub const SMALLEST_SIZE: u64 = 1 << 20;
/// Links have 32 bits.
pub const LARGEST_SIZE: u64 = 16 << 30;

// The head. What never changes comes first, then each line of the processor's cache by who writes it.
/// Magic, layout, size in bytes, when it was made, whether it is kept, the boot it was made in, the secret, and a check of these.
pub const CONSTANTS: usize = 7 + SECRET_WORDS;
const SECRET_WORDS: usize = 10;
pub const LOCK: usize = 24;
/// Odd while something changes.
pub const VERSION: usize = 32;
/// How many sessions are void in [`VOIDS`]: mostly none, and then nobody looks there. On the line that all readers have.
pub const VOID: usize = 33;
/// How many entries of the journal are to be undone.
pub const JOURNAL_LENGTH: usize = 40;
/// Not 0 while everything is being thrown away.
pub const RESETTING: usize = 41;
/// Positions in the ring: words since the beginning, never wrapped.
pub const HEAD: usize = 42;
pub const TAIL: usize = 43;
/// Words of the ring that are in use by records that count.
pub const LIVE: usize = 44;
/// How many records ever came.
pub const CAME: usize = 45;
pub const SESSIONS: usize = 46;
pub const COUNTERS: usize = 48;
/// Which row is looked at next for what nobody uses any more.
pub const SWEEP: usize = 62;
/// A record that has left and is still to be overwritten, 0 for none.
pub const WIPE: usize = 63;
pub const JOURNAL: usize = 64;
pub const JOURNAL_ENTRIES: usize = 1024;
/// Hashes of sessions that were taken out without the lock, or are being taken out: see [`Store::claim`].
pub const VOIDS: usize = JOURNAL + 2 * JOURNAL_ENTRIES;
pub const VOID_SLOTS: usize = 4096;
/// Where one hash may be, from its place on.
const VOID_WINDOW: usize = 32;
/// How often something was flushed, then how often something with such a hash was removed: see [`Store::removals`].
pub const REMOVALS: usize = VOIDS + VOID_SLOTS;
const REMOVAL_WORDS: usize = 256;
pub const ROWS: usize = REMOVALS + REMOVAL_WORDS;
pub const ROW_COUNT: usize = 4096;
pub const BUCKETS: usize = ROWS + ROW_COUNT * row::WORDS;

/// Of the table of services.
pub mod row {
    pub const WORDS: usize = 8;
    pub const IDENTITY: usize = 0;
    /// Tells a row that was written whole. 0 for one never used, [`VOID`] for one whose sessions are all void.
    pub const SEAL: usize = 2;
    pub const SESSIONS: usize = 3;
    pub const BYTES: usize = 4;
    pub const ROOT: usize = 5;
    /// The soonest expiry, [`NONE`] without sessions.
    pub const SOONEST: usize = 6;
    /// When a session last came, as [`super::Store::relative`] has it.
    pub const USED: usize = 7;
    pub const NONE: u64 = u64::MAX;
    /// No service has this seal: they are odd.
    pub const VOID: u64 = 2;
}

/// Of a record: its header, before the bytes.
pub mod record {
    /// The link to the next one of the bucket (high half), and [`super::Meta`].
    pub const META: usize = 0;
    pub const HASH: usize = 1;
    pub const CHECK: usize = 2;
    /// Expiry (high half) and the number it came with: the order of the service's records.
    pub const TURN: usize = 3;
    /// The two links of the tree.
    pub const SIDES: usize = 4;
    pub const BYTES: usize = 5;
}

/// The words of a record of so many bytes.
pub const fn words_for(bytes: usize) -> usize {
    record::BYTES + bytes.div_ceil(8)
}

pub const LONGEST_WORDS: usize = words_for(LONGEST);
/// How many of those that may have to leave are fetched for one that comes.
const FETCHED: usize = 2;
/// With a keyed hash no honest chain comes near it.
const LONGEST_CHAIN: usize = 256;

/// Something read cannot be: the mapping was written to by others, and what it says is not to be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

pub type Found<T> = Result<T, Broken>;

/// The lower half of a record's first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta(pub u32);

impl Meta {
    const LENGTH: u32 = (1 << 17) - 1;
    const LIVE: u32 = 1 << 17;
    const FILLER: u32 = 1 << 18;
    const RESERVED: u32 = 1 << 19;

    pub fn record(length: usize, row: usize) -> Meta {
        Meta(length as u32 | Meta::LIVE | (row as u32) << 20)
    }

    /// Nothing for so many words, where a record would cross the end of the ring.
    pub fn filler(words: usize) -> Meta {
        Meta(words as u32 | Meta::FILLER)
    }

    pub fn dead(self) -> Meta {
        Meta(self.0 & !Meta::LIVE)
    }

    /// Of the bytes.
    pub fn length(self) -> usize {
        (self.0 & Meta::LENGTH) as usize
    }

    pub fn is_live(self) -> bool {
        self.0 & Meta::LIVE != 0
    }

    pub fn row(self) -> usize {
        (self.0 >> 20) as usize
    }

    /// How far the next one is.
    pub fn words(self) -> Found<usize> {
        match self.0 & (Meta::FILLER | Meta::RESERVED) {
            0 if self.length() <= LONGEST => Ok(words_for(self.length())),
            Meta::FILLER if !self.is_live() && (1..LONGEST_WORDS).contains(&self.length()) => Ok(self.length()),
            _ => Err(Broken),
        }
    }
}

/// Half of a word, where a link is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub word: usize,
    high: bool,
}

impl Place {
    pub fn low(word: usize) -> Place {
        Place { word, high: false }
    }

    pub fn high(word: usize) -> Place {
        Place { word, high: true }
    }

    fn read(self, word: u64) -> usize {
        (if self.high { word >> 32 } else { word & 0xffff_ffff }) as usize
    }

    /// `word` with this half replaced.
    pub fn write(self, word: u64, link: usize) -> u64 {
        match self.high {
            true => word & 0xffff_ffff | (link as u64) << 32,
            false => word & !0xffff_ffff | link as u64,
        }
    }
}

/// A record's header as it is, once it is known to lie in the ring and to be live.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub at: usize,
    pub meta: Meta,
    pub next: usize,
    pub hash: u64,
    pub turn: u64,
}

impl Record {
    /// As [`Store::relative`] has it.
    pub fn expiry(&self) -> u32 {
        (self.turn >> 32) as u32
    }

    /// What the tree is ordered by. The number alone is no longer unique after four thousand million records.
    pub fn order(&self) -> (u64, u64) {
        (self.turn, self.hash)
    }
}

/// A key of a service as the cache has it. Its parts depend on the secret of one cache.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub hash: u64,
    seed: u64,
}

impl Wanted {
    /// Tells a record from every other one, and from any part or mixture of others.
    pub fn check(&self, bytes: &[u8], expiry: u32) -> u64 {
        xxh3_64_with_seed(bytes, self.seed ^ u64::from(expiry).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// What is fixed when a cache is made: each process reads it once, when it opens the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    pub size: u64,
    pub created: Seconds,
    pub keep: bool,
    /// What is left of one boot in another may be anything.
    pub boot: u64,
    /// Makes places and checks unpredictable for those who choose ids.
    pub secret: [u64; SECRET_WORDS],
}

impl Constants {
    pub fn to_words(self) -> [u64; CONSTANTS] {
        let mut words = [0; CONSTANTS];
        words[..6].copy_from_slice(&[MAGIC, LAYOUT, self.size, self.created as u64, self.keep.into(), self.boot]);
        words[6..6 + SECRET_WORDS].copy_from_slice(&self.secret);
        words[CONSTANTS - 1] = Constants::seal(&words);
        words
    }

    /// `None` if this is not what `to_words` made.
    pub fn from_words(words: &[u64; CONSTANTS]) -> Option<Constants> {
        let sound = words[0] == MAGIC && words[1] == LAYOUT && words[CONSTANTS - 1] == Constants::seal(words);
        let [_, _, size, created, keep, boot, ..] = *words;
        sound.then(|| Constants {
            size,
            created: created as Seconds,
            keep: keep != 0,
            boot,
            secret: std::array::from_fn(|word| words[6 + word]),
        })
    }

    fn seal(words: &[u64; CONSTANTS]) -> u64 {
        words[..CONSTANTS - 1].iter().fold(MAGIC, |sum, word| xxh3_64_with_seed(&word.to_le_bytes(), sum))
    }
}

#[derive(Clone, Copy)]
pub struct Store {
    words: &'static [AtomicU64],
    pub constants: Constants,
    buckets: usize,
    ring: usize,
}

impl Store {
    /// Over a mapping of `constants.size` bytes.
    pub fn new(words: &'static [AtomicU64], constants: Constants) -> Store {
        let buckets = (constants.size / 256) as usize;
        Store { words, constants, buckets, ring: BUCKETS + buckets / 2 }
    }

    pub fn word(&self, at: usize) -> Found<&'static AtomicU64> {
        self.words.get(at).ok_or(Broken)
    }

    pub fn load(&self, at: usize) -> Found<u64> {
        Ok(self.word(at)?.load(Relaxed))
    }

    /// The words of services and buckets.
    pub fn tables(&self) -> &'static [AtomicU64] {
        self.words.get(ROWS..self.ring).unwrap_or_default()
    }

    /// The words of records.
    pub fn ring(&self) -> &'static [AtomicU64] {
        self.words.get(self.ring..).unwrap_or_default()
    }

    /// How many words records have.
    pub fn ring_words(&self) -> usize {
        self.words.len() - self.ring
    }

    /// The index of the word at a position.
    pub fn index(&self, position: u64) -> usize {
        self.ring + (position % self.ring_words() as u64) as usize
    }

    pub fn buckets(&self) -> usize {
        self.buckets
    }

    pub fn bucket_number(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets as u128) >> 64) as usize
    }

    pub fn bucket(&self, number: usize) -> Place {
        Place { word: BUCKETS + number / 2, high: number % 2 == 1 }
    }

    /// The index of a record's header, 0 for none.
    pub fn follow(&self, place: Place) -> Found<usize> {
        match place.read(self.load(place.word)?) {
            0 => Ok(0),
            link if link >= self.ring && link + record::BYTES <= self.words.len() => Ok(link),
            _ => Err(Broken),
        }
    }

    pub fn meta(&self, at: usize) -> Found<Meta> {
        Ok(Meta(self.load(at + record::META)? as u32))
    }

    pub fn record(&self, at: usize) -> Found<Record> {
        let first = self.load(at + record::META)?;
        let meta = Meta(first as u32);
        if at < self.ring || !meta.is_live() || at + meta.words()? > self.words.len() {
            return Err(Broken);
        }
        let (hash, turn) = (self.load(at + record::HASH)?, self.load(at + record::TURN)?);
        Ok(Record { at, meta, next: (first >> 32) as usize, hash, turn })
    }

    /// The words with a record's bytes.
    pub fn body(&self, at: usize, length: usize) -> Found<&'static [AtomicU64]> {
        self.words.get(at + record::BYTES..at + words_for(length)).ok_or(Broken)
    }

    /// The one with this hash, and the link to it.
    pub fn find(&self, hash: u64) -> Found<Option<(Place, usize)>> {
        let mut place = self.bucket(self.bucket_number(hash));
        for _ in 0..LONGEST_CHAIN {
            let at = self.follow(place)?;
            if at == 0 {
                return Ok(None);
            }
            if self.load(at + record::HASH)? == hash {
                return Ok(Some((place, at)));
            }
            place = Place::high(at + record::META);
        }
        Err(Broken)
    }

    // --- fetching ---------------------------------------------------------------------------------------------------
    //
    // Whoever holds the lock would wait for memory most of the time, and everybody else for the lock. So what a change is
    // going to look at is read before, by all at once: then it is in the processor's cache. Nothing depends on what is read.

    /// For a change of the record with this hash: its chain, and its path in the tree.
    pub fn fetch(&self, hash: u64) {
        if let Ok(Some((_, at))) = self.find(hash) {
            let _ = self.record(at).and_then(|record| order::place_of(self, self.row(record.meta.row()), &record));
        }
    }

    /// For those that may have to leave for one that comes: the first ones at the head, of which other writers may take some
    /// meanwhile.
    pub fn fetch_leaving(&self) {
        let _ = self.load(HEAD).and_then(|head| (0..FETCHED).try_fold(head, |position, _| self.fetch_at(position)));
    }

    /// The chain of the record at this position of the ring, if it is live. The position of the next one.
    fn fetch_at(&self, position: u64) -> Found<u64> {
        let at = self.index(position);
        let meta = self.meta(at)?;
        if meta.is_live() {
            let _ = self.find(self.load(at + record::HASH)?);
        }
        Ok(position.wrapping_add(meta.words()? as u64))
    }

    /// Copies the bytes of a record; it counts only if the check is right. `out` is not worth anything else.
    pub fn copy(&self, record: &Record, out: &mut Vec<u8>) -> Found<()> {
        let length = record.meta.length();
        let body = self.body(record.at, length)?;
        out.clear();
        // Without memory it cannot be had, as if it were not there.
        out.try_reserve(body.len() * 8).map_err(|_| Broken)?;
        out.resize(body.len() * 8, 0);
        for (bytes, word) in out.chunks_exact_mut(8).zip(body) {
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        out.truncate(length);
        Ok(())
    }

    /// Whether `bytes` are those of `record`, whole, and it is the one wanted.
    pub fn is_sound(&self, record: &Record, wanted: &Wanted, bytes: &[u8]) -> Found<bool> {
        Ok(record.hash == wanted.hash && self.load(record.at + record::CHECK)? == wanted.check(bytes, record.expiry()))
    }

    /// Looks up without the lock: right whenever it finds something. `None` may also mean that something changed.
    pub fn read(&self, wanted: &Wanted, out: &mut Vec<u8>) -> Found<bool> {
        let Some((_, at)) = self.find(wanted.hash)? else { return Ok(false) };
        let record = self.record(at)?;
        self.copy(&record, out)?;
        match self.is_sound(&record, wanted, out)? {
            true => Ok(!self.is_void(&record)?),
            false => Err(Broken),
        }
    }

    // --- void -----------------------------------------------------------------------------------------------------
    //
    // Removing, taking and flushing must not wait for a writer that is stopped. A session is made void by entering its hash
    // into a table, a service by the seal of its row: readers miss what is void at once, and a writer tidies up later.
    // Nothing here is undone by the journal.

    /// Whether a record is there only because nobody has tidied up yet.
    pub fn is_void(&self, record: &Record) -> Found<bool> {
        Ok(self.is_taken(record)? || self.is_row_void(self.row(record.meta.row()))?)
    }

    /// Whether it was taken out without the lock, or is being taken out.
    pub fn is_taken(&self, record: &Record) -> Found<bool> {
        Ok(self.word(VOID)?.load(SeqCst) != 0 && self.voided(record.hash)? > 0)
    }

    /// The same of all records of a row.
    pub fn is_row_void(&self, row: usize) -> Found<bool> {
        Ok(self.word(row + row::SEAL)?.load(SeqCst) == row::VOID)
    }

    fn window(&self, hash: u64) -> impl Iterator<Item = Found<&'static AtomicU64>> + '_ {
        (0..VOID_WINDOW).map(move |step| self.word(VOIDS + (hash as usize).wrapping_add(step) % VOID_SLOTS))
    }

    /// How often a hash is in the table.
    fn voided(&self, hash: u64) -> Found<usize> {
        self.window(hash).try_fold(0, |sum, slot| Ok(sum + usize::from(slot?.load(SeqCst) == hash)))
    }

    /// Makes what has this hash void. `Some(true)` for one caller of all; it may have been gone before, so whoever takes
    /// it looks again. Where two try at once, it may be nobody's. `None` if there is no room.
    pub fn claim(&self, hash: u64) -> Found<Option<bool>> {
        if self.voided(hash)? > 0 {
            return Ok(Some(false));
        }
        for slot in self.window(hash) {
            if slot?.compare_exchange(0, hash, SeqCst, SeqCst).is_ok() {
                self.word(VOID)?.fetch_add(1, SeqCst);
                return Ok(Some(self.voided(hash)? == 1));
            }
        }
        Ok(None)
    }

    /// What was claimed is gone: under the lock.
    pub fn release(&self, hash: u64) -> Found<()> {
        for slot in self.window(hash) {
            if slot?.compare_exchange(hash, 0, SeqCst, SeqCst).is_ok() {
                self.word(VOID)?.fetch_sub(1, SeqCst);
            }
        }
        Ok(())
    }

    /// Makes all void that a service has now: nobody finds the row any more.
    pub fn void_row(&self, row: usize, service: Service) -> Found<()> {
        let _ = self.word(row + row::SEAL)?.compare_exchange(self.seal(service), row::VOID, SeqCst, SeqCst);
        Ok(())
    }

    /// Two numbers that are others after a removal of what has this hash (or another of 255), and after a flush. Who has
    /// put off an insertion compares them, so that it brings back nothing that was removed since.
    pub fn removals(&self, hash: u64) -> Found<[u64; 2]> {
        Ok([self.word(REMOVALS)?.load(SeqCst), self.word(removal(hash))?.load(SeqCst)])
    }

    /// Something with this hash is about to be looked for and removed, or everything of a service.
    pub fn count_removal(&self, hash: Option<u64>) -> Found<()> {
        self.word(hash.map_or(REMOVALS, removal))?.fetch_add(1, SeqCst);
        fence(SeqCst);
        Ok(())
    }

    /// Looks up without the lock. `None` if it could not be found out: too much changed meanwhile, or something is broken.
    pub fn get(&self, wanted: &Wanted, out: &mut Vec<u8>) -> Option<bool> {
        // A hit is a hit, whatever changes. Only what is missing must have been missing all the while.
        self.stable(|| self.read(wanted, out), |hit| *hit)
    }

    /// What `read` says if nothing changed meanwhile, or else if it is `good` all the same.
    pub fn stable<T>(&self, mut read: impl FnMut() -> Found<T>, good: impl Fn(&T) -> bool) -> Option<T> {
        const TRIES: usize = 16;
        let version = self.words.get(VERSION)?;
        for _ in 0..TRIES {
            let before = version.load(Acquire);
            let found = read();
            fence(Acquire);
            let certain = before % 2 == 0 && version.load(Relaxed) == before;
            match found {
                Ok(found) if certain || good(&found) => return Some(found),
                _ => (0..32).for_each(|_| std::hint::spin_loop()),
            }
        }
        None
    }

    #[doc(hidden)]
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// The first word of a service's row. `guess` is where it was last time; without it the search takes longer.
    pub fn find_row(&self, service: Service, guess: usize) -> Found<Option<usize>> {
        if self.is_row_of(guess, service)? {
            return Ok(Some(self.row(guess)));
        }
        for number in self.probe(service) {
            match self.load(self.row(number) + row::SEAL)? {
                0 => return Ok(None),
                _ if self.is_row_of(number, service)? => return Ok(Some(self.row(number))),
                _ => {}
            }
        }
        Ok(None)
    }

    pub fn row(&self, number: usize) -> usize {
        ROWS + number % ROW_COUNT * row::WORDS
    }

    pub fn row_number(at: usize) -> usize {
        (at - ROWS) / row::WORDS
    }

    /// The rows in which a service may be, in the order they are tried.
    pub fn probe(&self, service: Service) -> impl Iterator<Item = usize> {
        let first = self.seal(service) as usize >> 8;
        (0..ROW_COUNT).map(move |step| first.wrapping_add(step) % ROW_COUNT)
    }

    fn is_row_of(&self, number: usize, service: Service) -> Found<bool> {
        let at = self.row(number);
        Ok(self.identity(at)? == service && self.load(at + row::SEAL)? == self.seal(service))
    }

    pub fn identity(&self, row: usize) -> Found<Service> {
        Ok([self.load(row + row::IDENTITY)?, self.load(row + row::IDENTITY + 1)?])
    }

    /// Never 0.
    pub fn seal(&self, service: Service) -> u64 {
        let [a, b] = service;
        xxh3_64_with_seed(&a.to_le_bytes(), xxh3_64_with_seed(&b.to_le_bytes(), self.constants.secret[9])) | 1
    }

    /// Seconds since the epoch in 32 bits, saturating: 68 years around the making of the cache. Nothing expires later than
    /// at the last but one, so that the last is after everything.
    pub fn relative(&self, time: Seconds) -> u32 {
        let relative = i128::from(time) - i128::from(self.constants.created) + (1 << 31);
        relative.clamp(0, u32::MAX.into()) as u32
    }

    pub fn relative_expiry(&self, expiry: Seconds) -> u32 {
        self.relative(expiry).clamp(1, u32::MAX - 1)
    }

    pub fn absolute(&self, relative: u32) -> Seconds {
        self.constants.created.saturating_add(Seconds::from(relative) - (1 << 31))
    }

    /// NH, the universal hash of UMAC (RFC 4418): whoever chooses the keys, two of them collide with a probability
    /// of 2^-64.
    pub fn wanted(&self, service: Service, key: &Key) -> Wanted {
        let k = &self.constants.secret;
        let [a, b, c, d, e] = key.words();
        let [s, t] = service;
        let sum = product(a.wrapping_add(k[0]), b.wrapping_add(k[1]))
            .wrapping_add(product(c.wrapping_add(k[2]), d.wrapping_add(k[3])))
            .wrapping_add(product(e.wrapping_add(k[4]), s.wrapping_add(k[5])))
            .wrapping_add(product(t.wrapping_add(k[6]), k[7]));
        let spread = product(sum as u64 ^ k[7], (sum >> 64) as u64 ^ k[8]);
        self.hashed(spread as u64 ^ (spread >> 64) as u64)
    }

    /// The key that has this hash, which is how a record can be verified by itself.
    fn hashed(&self, hash: u64) -> Wanted {
        Wanted { hash, seed: xxh3_64_with_seed(&hash.to_le_bytes(), self.constants.secret[9] ^ LAYOUT) }
    }

    /// Copies the bytes of a record; none if it is not whole. Whether it is.
    pub fn copy_sound(&self, record: &Record, out: &mut Vec<u8>) -> Found<bool> {
        self.copy(record, out)?;
        let sound = self.is_sound(record, &self.hashed(record.hash), out)?;
        if !sound {
            out.clear();
        }
        Ok(sound)
    }
}

/// Where removals of this hash are counted.
fn removal(hash: u64) -> usize {
    REMOVALS + 1 + (hash % (REMOVAL_WORDS as u64 - 1)) as usize
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}
