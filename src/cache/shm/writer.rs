//! Changes, under the lock, such that a process may be killed before or after any single store.
//!
//! Each change of the structure is a transaction: before a word is overwritten, what it held goes into the journal, and the
//! change is done when the journal is empty again. Who gets the lock from a dead owner first puts back what the
//! journal has. For a killed process the order in its program is enough: the kernel has stopped it before
//! the lock is free. Space that nothing refers to yet is written without the journal.
//!
//! The ring is a log. Records are appended at the tail, and room is made at the head: what is dead is passed over, what is live is
//! moved to the tail if so much is dead that this pays, and evicted otherwise. So memory never fragments.
//!
//! What cannot be ([`Broken`]) empties the cache: then somebody wrote over it, and no part of it is to be trusted.

use super::super::{Collision, Departure, Inserted};
use super::lock::Guard;
use super::store::*;
use super::{order, Counter, Service};
use std::sync::atomic::{compiler_fence, fence, AtomicU64, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst};

/// Live records are moved out of the way if at least this part of the ring is dead.
const DEAD_PART: usize = 8;
/// They are from when less than this part of it is free. A whole round of moving is done before that is used up.
const EARLY_PART: usize = 16;
/// The most records, and words, moved for one that comes: what is dead may all lie behind what is live.
const MOST_MOVES: usize = 2048;
const MOST_MOVED_WORDS: usize = 1 << 17;
/// Words moved for each word that comes while there is still room; with one in eight dead, seven have to be.
const MOVED_WORDS: usize = 16;
/// The most expired sessions taken out for one that comes.
const MOST_EXPIRED: usize = 1024;
/// How many leave for a limit before others get the lock.
const MOST_EVICTED: usize = 64;
/// How many that nobody uses any more go at a time, for every so many that come.
const MOST_SWEPT: usize = 64;
const SWEPT_EVERY: u64 = 8;
/// After this time without a new session, what has expired of a service is nobody's.
const UNUSED_SECONDS: u64 = 24 * 3600;
/// How many dead records are passed over while there is room already.
const MOST_PASSED: usize = 512;

/// A session that leaves the cache, as bytes.
pub type Leaving = (Vec<u8>, Departure);

/// A session that comes.
pub struct New<'a> {
    pub service: Service,
    pub wanted: Wanted,
    pub bytes: &'a [u8],
    /// As [`Store::relative_expiry`] has it, and so is `now`.
    pub expiry: u32,
    pub now: u32,
    pub collision: Collision,
    /// Only in place of one with this key.
    pub rewrite: bool,
    /// The most sessions of the service, 0 for no limit.
    pub limit: u64,
    /// What [`Store::removals`] has to say still, for one that was put off.
    pub removals: Option<[u64; 2]>,
}

pub enum Put {
    Done(Inserted),
    /// More must leave first: let others work, and come again. Whether one with this key has left already.
    Again,
    /// There is none to rewrite.
    Absent,
}

/// The lock, and what may be done with it.
pub struct Writer<'a> {
    pub store: Store,
    entries: usize,
    changed: bool,
    _lock: Guard<'a>,
}

/// All changes of shared memory come by here.
fn write(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    super::crash::before_store();
    word.store(value, Relaxed);
}

/// A number that a stray write hardly makes.
fn sealed(number: usize) -> u64 {
    (number as u64) << 32 | u64::from(!(number as u32))
}

fn unsealed(word: u64) -> Found<usize> {
    let number = (word >> 32) as usize;
    (sealed(number) == word).then_some(number).ok_or(Broken)
}

/// The journal of a cache in which nothing is under way.
pub const EMPTY_JOURNAL: u64 = 0xffff_ffff;

impl<'a> Writer<'a> {
    /// Brings to an end, or undoes, what an owner of the lock before left.
    pub fn new(store: Store, lock: Guard<'a>) -> Writer<'a> {
        let abandoned = lock.abandoned;
        let mut writer = Writer { store, entries: 0, changed: false, _lock: lock };
        if abandoned || writer.is_unclean() != Ok(false) {
            writer.recover();
        } else if writer.is_sane() != Ok(true) {
            writer.reset();
        }
        if writer.tidy_up().is_err() {
            writer.reset();
        }
        writer
    }

    /// Overwrites the record that left last, if that is still to be done. Nothing refers to it any more.
    fn wipe(&mut self) -> Found<()> {
        let at = self.store.load(WIPE)? as usize;
        if at == 0 {
            return Ok(());
        }
        let meta = self.store.meta(at)?;
        if meta.is_live() || at < self.store.index(0) {
            return Err(Broken);
        }
        let from = at + record::CHECK;
        let words = self.store.words().get(from..at + meta.words()?).ok_or(Broken)?;
        words.iter().for_each(|word| write(word, 0));
        compiler_fence(SeqCst);
        self.plain(WIPE, 0)
    }

    /// Overwrites what may have been written beyond the tail and did not come.
    fn wipe_beyond_tail(&self) -> Found<()> {
        let (head, tail) = (self.store.load(HEAD)?, self.store.load(TAIL)?);
        let free = (self.store.ring_words() as u64).checked_sub(tail.checked_sub(head).ok_or(Broken)?).ok_or(Broken)?;
        for position in tail..tail + free.min(2 * LONGEST_WORDS as u64) {
            self.plain(self.store.index(position), 0)?;
        }
        Ok(())
    }

    /// Looks at one row each time, of another service than this one. What is void, and what has expired of a service that
    /// nobody has used for long, goes, a few at a time. So rows become free again.
    fn sweep(&mut self, service: Service, now: u32, out: &mut Vec<u8>) -> Found<()> {
        let number = self.store.load(SWEEP)? as usize;
        let row = self.store.row(number);
        if self.store.load(row + row::ROOT)? != 0 {
            let identity = self.store.identity(row)?;
            let is_found = self.store.load(row + row::SEAL)? == self.store.seal(identity);
            let is_unused = u64::from(now) > self.store.load(row + row::USED)?.saturating_add(UNUSED_SECONDS);
            let (before, why) = match is_found {
                false => (u32::MAX, Counter::Removed),
                true if is_unused && identity != service => (now, Counter::Expired),
                true => (0, Counter::Expired),
            };
            for count in 0.. {
                if !self.pop(row, before, why, out)? {
                    break;
                }
                if count == MOST_SWEPT {
                    return Ok(());
                }
            }
        }
        self.begin_change()?;
        self.plain(SWEEP, (number as u64 + 1) % ROW_COUNT as u64)
    }

    /// Takes out what was made void without the lock.
    fn tidy_up(&mut self) -> Found<()> {
        let void = self.store.word(VOID)?;
        let before = void.load(SeqCst);
        if before == 0 {
            return Ok(());
        }
        for slot in VOIDS..VOIDS + VOID_SLOTS {
            let slot = self.store.word(slot)?;
            let hash = slot.load(SeqCst);
            if hash == 0 {
                continue;
            }
            if let Some((_, at)) = self.store.find(hash)? {
                let record = self.store.record(at)?;
                self.remove_record(&record, Counter::Taken)?;
            }
            slot.store(0, SeqCst);
        }
        // Whoever made something void meanwhile has counted it since, and it is looked for again.
        let _ = void.compare_exchange(before, 0, SeqCst, SeqCst);
        Ok(())
    }

    fn is_unclean(&self) -> Found<bool> {
        let load = |at| self.store.load(at);
        Ok(load(JOURNAL_LENGTH)? != EMPTY_JOURNAL || load(VERSION)? % 2 == 1 || load(RESETTING)? != 0)
    }

    fn is_sane(&self) -> Found<bool> {
        let (head, tail, live) = (self.store.load(HEAD)?, self.store.load(TAIL)?, self.store.load(LIVE)?);
        Ok(head <= tail && tail - head <= self.store.ring_words() as u64 && live <= tail - head)
    }

    #[cold]
    fn recover(&mut self) {
        // What is undone may be more than what is recovered: somebody may have died with nothing under way.
        let undone = self.begin_change().and_then(|_| self.undo());
        // A process that opens the cache from now on reads them.
        for (at, word) in self.store.constants.to_words().into_iter().enumerate() {
            let _ = self.plain(at, word);
        }
        if undone.is_err()
            || self.store.load(RESETTING) != Ok(0)
            || self.is_sane() != Ok(true)
            || self.wipe().is_err()
            || self.wipe_beyond_tail().is_err()
        {
            self.reset();
        }
        self.add(Counter::Recovered, 1);
    }

    /// Backwards, since a word may be there more than once. Killed meanwhile, it begins again.
    fn undo(&mut self) -> Found<()> {
        let length = unsealed(self.store.load(JOURNAL_LENGTH)?)?;
        if length > JOURNAL_ENTRIES {
            return Err(Broken);
        }
        for entry in (0..length).rev() {
            let at = unsealed(self.store.load(JOURNAL + 2 * entry)?)?;
            if !is_journaled(at) {
                return Err(Broken);
            }
            self.plain(at, self.store.load(JOURNAL + 2 * entry + 1)?)?;
        }
        self.commit()
    }

    /// Empties the cache. Killed meanwhile, who comes next does it again.
    pub fn reset(&mut self) {
        self.empty();
        self.add(Counter::Reset, 1);
    }

    fn empty(&mut self) {
        let _ = self.begin_change();
        let _ = self.plain(RESETTING, 1);
        let _ = self.plain(JOURNAL_LENGTH, EMPTY_JOURNAL);
        self.entries = 0;
        compiler_fence(SeqCst);
        for word in self.store.tables() {
            write(word, 0);
        }
        // Nor do keys stay in what nobody refers to.
        let all = 0..self.store.ring_words() as u64;
        let used = match (self.is_sane(), self.store.load(HEAD), self.store.load(TAIL)) {
            (Ok(true), Ok(head), Ok(tail)) => head..tail,
            _ => all,
        };
        let ring = self.store.ring();
        used.filter_map(|position| ring.get((position % ring.len() as u64) as usize)).for_each(|word| write(word, 0));
        for at in [HEAD, TAIL, LIVE, SESSIONS, SWEEP, WIPE] {
            let _ = self.plain(at, 0);
        }
        compiler_fence(SeqCst);
        let _ = self.plain(RESETTING, 0);
    }

    /// Takes out everything of every service; nobody is told what it was.
    pub fn flush(&mut self) -> Found<u64> {
        let sessions = self.store.load(SESSIONS)?;
        self.empty();
        self.add(Counter::Removed, sessions);
        Ok(sessions)
    }

    /// From now on those who look up without the lock believe only what they find.
    fn begin_change(&mut self) -> Found<()> {
        if !self.changed {
            let version = self.store.load(VERSION)?;
            self.plain(VERSION, version | 1)?;
            fence(Release);
            self.changed = true;
        }
        Ok(())
    }

    /// Without the journal.
    fn plain(&self, at: usize, value: u64) -> Found<()> {
        write(self.store.word(at)?, value);
        Ok(())
    }

    fn set(&mut self, at: usize, value: u64) -> Found<()> {
        let word = self.store.word(at)?;
        if self.entries == JOURNAL_ENTRIES || !is_journaled(at) {
            return Err(Broken);
        }
        self.begin_change()?;
        self.plain(JOURNAL + 2 * self.entries, sealed(at))?;
        self.plain(JOURNAL + 2 * self.entries + 1, word.load(Relaxed))?;
        compiler_fence(SeqCst);
        self.entries += 1;
        self.plain(JOURNAL_LENGTH, sealed(self.entries))?;
        compiler_fence(SeqCst);
        write(word, value);
        Ok(())
    }

    pub fn link(&mut self, place: Place, to: usize) -> Found<()> {
        let word = self.store.load(place.word)?;
        self.set(place.word, place.write(word, to))
    }

    fn commit(&mut self) -> Found<()> {
        compiler_fence(SeqCst);
        self.plain(JOURNAL_LENGTH, EMPTY_JOURNAL)?;
        compiler_fence(SeqCst);
        self.entries = 0;
        Ok(())
    }

    fn change(&mut self, at: usize, by: impl FnOnce(u64) -> Option<u64>) -> Found<()> {
        let value = by(self.store.load(at)?).ok_or(Broken)?;
        self.set(at, value)
    }

    fn add(&mut self, counter: Counter, count: u64) {
        let at = COUNTERS + counter as usize;
        let _ = self.store.load(at).and_then(|before| self.plain(at, before.wrapping_add(count)));
    }

    /// The same, as part of a transaction.
    fn count(&mut self, counter: Counter) -> Found<()> {
        self.change(COUNTERS + counter as usize, |count| Some(count.wrapping_add(1)))
    }

    // --- records --------------------------------------------------------------------------------------------------

    fn row_of(&self, record: &Record) -> usize {
        self.store.row(record.meta.row())
    }

    /// Links a record that has been written.
    fn add_record(&mut self, record: &Record) -> Found<()> {
        let (row, place) = (self.row_of(record), self.store.bucket(self.store.bucket_number(record.hash)));
        self.link(Place::high(record.at + record::META), self.store.follow(place)?)?;
        self.link(place, record.at)?;
        order::insert(self, row, record)?;
        let soonest = self.store.load(row + row::SOONEST)?;
        if u64::from(record.expiry()) < soonest {
            self.set(row + row::SOONEST, record.expiry().into())?;
        }
        let (bytes, words) = (record.meta.length() as u64, record.meta.words()? as u64);
        self.change(row + row::SESSIONS, |count| count.checked_add(1))?;
        self.change(row + row::BYTES, |sum| sum.checked_add(bytes))?;
        self.change(LIVE, |sum| sum.checked_add(words))?;
        self.change(SESSIONS, |count| count.checked_add(1))
    }

    fn remove_record(&mut self, record: &Record, why: Counter) -> Found<()> {
        let row = self.row_of(record);
        let place = self.place_in_chain(record)?;
        self.link(place, record.next)?;
        order::remove(self, row, record)?;
        if self.store.load(row + row::SOONEST)? == record.expiry().into() {
            let soonest = order::first(self, row)?.map_or(row::NONE, |first| first.expiry().into());
            self.set(row + row::SOONEST, soonest)?;
        }
        let (bytes, words) = (record.meta.length() as u64, record.meta.words()? as u64);
        self.change(row + row::SESSIONS, |count| count.checked_sub(1))?;
        self.change(row + row::BYTES, |sum| sum.checked_sub(bytes))?;
        self.change(LIVE, |sum| sum.checked_sub(words))?;
        self.change(SESSIONS, |count| count.checked_sub(1))?;
        self.change(record.at + record::META, |meta| Some(meta & !0xffff_ffff | u64::from(record.meta.dead().0)))?;
        self.set(WIPE, record.at as u64)?;
        self.count(why)?;
        self.commit()?;
        self.wipe()
    }

    fn place_in_chain(&self, record: &Record) -> Found<Place> {
        // Hashes are unique in the cache, so the first one with this hash must be it.
        match self.store.find(record.hash)? {
            Some((place, at)) if at == record.at => Ok(place),
            _ => Err(Broken),
        }
    }

    /// The record with this key, its bytes in `out`. One that is not what it was when it came is thrown away.
    pub fn find(&mut self, wanted: &Wanted, out: &mut Vec<u8>) -> Found<Option<Record>> {
        let Some((_, at)) = self.store.find(wanted.hash)? else { return Ok(None) };
        let record = self.store.record(at)?;
        self.store.copy(&record, out)?;
        if !self.store.is_sound(&record, wanted, out)? {
            self.remove_record(&record, Counter::Corrupt)?;
        } else if self.store.is_void(&record)? {
            self.remove_void(&record)?;
        } else {
            return Ok(Some(record));
        }
        Ok(None)
    }

    /// Takes out a record that is void: whoever made it so was sure of it, and leaves the counting to this.
    fn remove_void(&mut self, record: &Record) -> Found<()> {
        let taken = self.store.is_taken(record)?;
        self.remove_record(record, if taken { Counter::Taken } else { Counter::Removed })
    }

    /// Takes a record out that [`Writer::find`] found.
    pub fn remove(&mut self, record: &Record, why: Counter) -> Found<()> {
        self.remove_record(record, why)
    }

    /// Takes out the session of a row that expires soonest, if that is before `before`, and gives its bytes to `out`: none
    /// if it is not what it was when it came, or was taken meanwhile.
    pub fn pop(&mut self, row: usize, before: u32, why: Counter, out: &mut Vec<u8>) -> Found<bool> {
        match order::first(self, row)? {
            Some(record) if record.expiry() < before => {
                let sound = self.store.copy_sound(&record, out)?;
                if sound && self.store.is_taken(&record)? {
                    out.clear();
                    self.remove_void(&record)?;
                } else {
                    self.remove_record(&record, if sound { why } else { Counter::Corrupt })?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    // --- services -------------------------------------------------------------------------------------------------

    /// The row of a service, made if there is none yet. If all rows are in use, the one goes in which no session came for
    /// the longest time. `None` as long as it has sessions.
    fn make_row(&mut self, service: Service, now: u32, out: &mut Vec<u8>) -> Found<Option<usize>> {
        if let Some(row) = self.store.find_row(service, 0)? {
            return Ok(Some(row));
        }
        let mut longest_unused = (u64::MAX, u64::MAX, 0);
        for number in self.store.probe(service) {
            let row = self.store.row(number);
            if self.is_unused(row)? {
                return self.begin_row(row, service, now).map(Some);
            }
            let used = match self.store.is_row_void(row)? {
                true => 0,
                false => self.store.load(row + row::USED)?,
            };
            longest_unused = longest_unused.min((used, self.store.load(row + row::SESSIONS)?, row));
        }
        let row = longest_unused.2;
        self.store.void_row(row, self.store.identity(row)?)?;
        for _ in 0..MOST_EVICTED {
            if !self.pop(row, u32::MAX, Counter::Evicted, out)? {
                return self.begin_row(row, service, now).map(Some);
            }
        }
        // The rest goes with the insertions to come.
        self.plain(SWEEP, Store::row_number(row) as u64)?;
        Ok(None)
    }

    fn is_unused(&self, row: usize) -> Found<bool> {
        let unused = self.store.load(row + row::SESSIONS)? == 0;
        (unused == (self.store.load(row + row::ROOT)? == 0)).then_some(unused).ok_or(Broken)
    }

    fn begin_row(&mut self, row: usize, service: Service, now: u32) -> Found<usize> {
        let words = [service[0], service[1], self.store.seal(service), 0, 0, 0, row::NONE, now.into()];
        for (at, word) in words.iter().enumerate() {
            self.set(row + at, *word)?;
        }
        self.commit()?;
        Ok(row)
    }

    // --- coming ---------------------------------------------------------------------------------------------------

    /// Puts a session in; what it drives out of its own service goes to `left`. `out` is for use meanwhile.
    pub fn put(&mut self, new: &New, out: &mut Vec<u8>, left: &mut Vec<Leaving>) -> Found<Put> {
        if new.bytes.len() > LONGEST {
            return Ok(Put::Done(Inserted::Refused));
        }
        if let Some(removals) = new.removals {
            // Whoever removes counts first and looks then: either it sees this change under way, or this sees its count.
            self.begin_change()?;
            fence(SeqCst);
            if self.store.removals(new.wanted.hash)? != removals {
                return Ok(Put::Done(Inserted::Refused));
            }
        }
        let mut replaced = false;
        if let Some(old) = self.find(&new.wanted, out)? {
            if old.expiry() == new.expiry && out == new.bytes {
                return Ok(Put::Done(Inserted::Same));
            }
            if matches!(new.collision, Collision::KeepUnlessExpired(now) if old.expiry() >= self.store.relative(now)) {
                return Ok(Put::Done(Inserted::Kept));
            }
            self.remove_record(&old, Counter::Replaced)?;
            left.push((std::mem::take(out), Departure::Replaced));
            replaced = true;
        } else if new.rewrite {
            return Ok(Put::Absent);
        }
        if self.store.load(CAME)? % SWEPT_EVERY == 0 {
            self.sweep(new.service, new.now, out)?;
        }
        let Some(row) = self.make_row(new.service, new.now, out)? else { return Ok(Put::Done(Inserted::Refused)) };
        if self.store.load(row + row::USED)? != u64::from(new.now) {
            self.begin_change()?;
            self.plain(row + row::USED, new.now.into())?;
        }
        for _ in 0..MOST_EVICTED {
            if new.limit == 0 || self.store.load(row + row::SESSIONS)? < new.limit {
                break;
            }
            if !self.pop(row, u32::MAX, Counter::Evicted, out)? {
                return Err(Broken);
            }
            leave(out, left);
        }
        if new.limit != 0 && self.store.load(row + row::SESSIONS)? >= new.limit {
            return Ok(Put::Again);
        }
        let words = words_for(new.bytes.len());
        self.make_room(words, row, new.now, out, left)?;
        let tail = self.store.load(TAIL)?;
        let record = self.write_record(self.store.index(tail), row, new)?;
        self.set(TAIL, tail.wrapping_add(words as u64))?;
        self.add_record(&record)?;
        self.count(Counter::Inserted)?;
        self.commit()?;
        Ok(Put::Done(if replaced { Inserted::Replaced } else { Inserted::Added }))
    }

    fn write_record(&mut self, at: usize, row: usize, new: &New) -> Found<Record> {
        let meta = Meta::record(new.bytes.len(), Store::row_number(row));
        let came = self.store.load(CAME)?;
        let turn = u64::from(new.expiry) << 32 | came & 0xffff_ffff;
        let check = new.wanted.check(new.bytes, new.expiry);
        self.begin_change()?;
        self.plain(CAME, came.wrapping_add(1))?;
        for (word, value) in [u64::from(meta.0), new.wanted.hash, check, turn, 0].into_iter().enumerate() {
            self.plain(at + word, value)?;
        }
        for (word, bytes) in self.store.body(at, new.bytes.len())?.iter().zip(new.bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            write(word, u64::from_ne_bytes(whole));
        }
        Ok(Record { at, meta, next: 0, hash: new.wanted.hash, turn })
    }

    // --- room -----------------------------------------------------------------------------------------------------

    /// How many words there are before a record of `words` could begin, if it would cross the end of the ring.
    fn filler(&self, words: usize) -> Found<usize> {
        let to_end = self.store.ring_words() - (self.store.index(self.store.load(TAIL)?) - self.store.index(0));
        Ok(if to_end < words { to_end } else { 0 })
    }

    /// Goes to where a record of `words` can be written.
    fn skip(&mut self, filler: usize) -> Found<()> {
        if filler > 0 {
            let tail = self.store.load(TAIL)?;
            self.begin_change()?;
            self.plain(self.store.index(tail), Meta::filler(filler).0.into())?;
            compiler_fence(SeqCst);
            self.plain(TAIL, tail.wrapping_add(filler as u64))?;
        }
        Ok(())
    }

    /// Makes the next `words` at the tail free, and as many again as the longest record has, so that one can be moved.
    /// Begins to move early, so that it comes to what is dead before anything has to be evicted.
    fn make_room(
        &mut self,
        words: usize,
        row: usize,
        now: u32,
        out: &mut Vec<u8>,
        left: &mut Vec<Leaving>,
    ) -> Found<()> {
        let ring = self.store.ring_words();
        let (mut moves, mut moved_words, mut expired, mut passed) = (0, 0, MOST_EXPIRED, 0);
        let early_words = MOVED_WORDS * words.max(64);
        // Each step goes on towards the tail, or takes or moves a record of which there are so many at most.
        for _ in 0..4 * ring {
            let (head, tail) = (self.store.load(HEAD)?, self.store.load(TAIL)?);
            let used = tail.checked_sub(head).ok_or(Broken)?;
            let free = (ring as u64).checked_sub(used).ok_or(Broken)? as usize;
            let dead = used.checked_sub(self.store.load(LIVE)?).ok_or(Broken)? as usize;
            let filler = self.filler(words)?;
            let needed = words + filler + LONGEST_WORDS;
            let enough = free >= needed;
            let much_dead = dead > ring / DEAD_PART;
            if enough && (!much_dead || free >= needed + ring / EARLY_PART || passed >= MOST_PASSED) {
                return self.skip(filler);
            }
            let at = self.store.index(head);
            let meta = self.store.meta(at)?;
            let length = meta.words()?;
            if length as u64 > used || at + length > self.store.index(0) + ring {
                return Err(Broken);
            }
            if !meta.is_live() {
                passed += 1;
                self.begin_change()?;
                self.plain(HEAD, head.wrapping_add(length as u64))?;
                compiler_fence(SeqCst); // before anything is written there
                continue;
            }
            let record = self.store.record(at)?;
            if self.store.is_void(&record)? {
                self.remove_void(&record)?;
                continue;
            }
            let has_expired = record.expiry() < now;
            let most_words = if enough { early_words } else { MOST_MOVED_WORDS };
            let few = moves < MOST_MOVES && moved_words + length <= most_words;
            let movable = few && free >= length + self.filler(length)?;
            if much_dead && movable && (enough || !has_expired) {
                moves += 1;
                moved_words += length;
                self.move_to_tail(&record)?;
                continue;
            }
            if enough {
                return self.skip(filler);
            }
            if !has_expired && expired > 0 {
                expired -= 1;
                if self.pop(row, now, Counter::Expired, out)? {
                    leave(out, left);
                    continue;
                }
                expired = 0;
            }
            if self.row_of(&record) == row && self.store.copy_sound(&record, out)? {
                leave(out, left);
            }
            self.remove_record(&record, if has_expired { Counter::Expired } else { Counter::Evicted })?;
        }
        Err(Broken)
    }

    fn move_to_tail(&mut self, record: &Record) -> Found<()> {
        let words = record.meta.words()?;
        self.skip(self.filler(words)?)?;
        let tail = self.store.load(TAIL)?;
        let to = self.store.index(tail);
        self.begin_change()?;
        for word in 0..words {
            self.plain(to + word, self.store.load(record.at + word)?)?;
        }
        let in_chain = self.place_in_chain(record)?;
        let in_tree = order::place_of(&self.store, self.row_of(record), record)?;
        self.link(in_chain, to)?;
        self.link(in_tree, to)?;
        self.change(record.at + record::META, |meta| Some(meta & !0xffff_ffff | u64::from(record.meta.dead().0)))?;
        self.set(WIPE, record.at as u64)?;
        self.set(TAIL, tail.wrapping_add(words as u64))?;
        self.commit()?;
        self.wipe()
    }

    // --- looking at everything ------------------------------------------------------------------------------------

    /// Follows every link and adds everything up. Takes as long as there are records.
    pub fn check(&self) -> Found<u64> {
        let store = &self.store;
        let true_or_broken = |sound: bool| sound.then_some(()).ok_or(Broken);
        true_or_broken(self.is_sane()?)?;
        let (head, tail) = (store.load(HEAD)?, store.load(TAIL)?);
        let (mut position, mut words, mut in_ring) = (head, 0, std::collections::HashMap::new());
        while position < tail {
            let at = store.index(position);
            let meta = store.meta(at)?;
            if meta.is_live() {
                in_ring.insert(at, store.record(at)?);
                words += meta.words()? as u64;
            }
            position = position.wrapping_add(meta.words()? as u64);
        }
        true_or_broken(position == tail && words == store.load(LIVE)?)?;
        let sessions = in_ring.len();
        true_or_broken(sessions as u64 == store.load(SESSIONS)?)?;
        let mut in_chains = 0;
        for number in 0..store.buckets() {
            let mut at = store.follow(store.bucket(number))?;
            while at != 0 {
                let record = in_ring.get(&at).ok_or(Broken)?;
                in_chains += 1;
                true_or_broken(store.bucket_number(record.hash) == number && in_chains <= sessions)?;
                at = store.follow(Place::high(at + record::META))?;
            }
        }
        true_or_broken(in_chains == sessions)?;
        let mut in_trees = 0;
        for number in 0..ROW_COUNT {
            let row = store.row(number);
            let records = order::check(self, row, sessions)?;
            true_or_broken(
                records.iter().all(|record| record.meta.row() == number && in_ring.contains_key(&record.at)),
            )?;
            let bytes = records.iter().map(|record| record.meta.length() as u64).sum::<u64>();
            true_or_broken(store.load(row + row::SESSIONS)? == records.len() as u64)?;
            true_or_broken(store.load(row + row::BYTES)? == bytes)?;
            if ![0, row::VOID].contains(&store.load(row + row::SEAL)?) {
                let soonest = records.first().map_or(row::NONE, |first| first.expiry().into());
                true_or_broken(store.load(row + row::SOONEST)? == soonest)?;
                true_or_broken(store.load(row + row::SEAL)? == store.seal(store.identity(row)?))?;
            }
            in_trees += records.len();
        }
        true_or_broken(in_trees == sessions)?;
        Ok(sessions as u64)
    }
}

impl Drop for Writer<'_> {
    /// Those who look up without the lock may believe again; then the lock goes.
    fn drop(&mut self) {
        if self.changed {
            if let Ok(version) = self.store.word(VERSION) {
                let value = (version.load(Relaxed) | 1).wrapping_add(1);
                #[cfg(test)]
                super::crash::before_store();
                version.store(value, Release);
            }
        }
    }
}

/// A session has to leave for another one: `bytes`, of which there are none if it was nobody's any more.
fn leave(bytes: &mut Vec<u8>, left: &mut Vec<Leaving>) {
    if !bytes.is_empty() {
        left.push((std::mem::take(bytes), Departure::Evicted));
    }
}

/// What transactions change: everything but the head's beginning and the journal.
fn is_journaled(at: usize) -> bool {
    (HEAD..JOURNAL).contains(&at) || at >= ROWS
}
