//! One shared cache as a process has it: opened by name once, used by all that ask for it, never closed.

use super::super::{Collision, Inserted, Key, Seconds};
use super::lock::Lock;
use super::seat::Seats;
use super::store::*;
use super::writer::{Leaving, New, Put, Writer};
use super::{bus, order, Counter, Error, Info, Service, ServiceInfo, Spec, COUNTERS as COUNTER_NAMES};
use super::{file, sys};
use crate::log;
use once_cell::race::OnceBox;
use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many leave before others get the lock.
const BATCH: usize = 64;
/// How many insertions that found the lock busy are tried again, how long, and how many with one that comes.
const MOST_PUT_OFF: usize = 64;
const LONGEST_PUT_OFF: Duration = Duration::from_secs(10);
const RETRIES: usize = 4;

pub struct Area {
    store: Store,
    lock: Lock,
    path: PathBuf,
    /// Which file it is, whatever the path names now.
    file: (u64, u64),
    /// Whom it belongs to.
    user: u32,
    /// Whether the mapped file is locked, which keeps a cache that is not kept.
    holds: AtomicBool,
    /// The file was cut short while it was mapped: what is here now is this process's alone.
    lost: AtomicBool,
    /// Insertions that found the lock busy. Nobody waits for the lock of this list: a child may inherit it locked.
    put_off: Mutex<VecDeque<PutOff>>,
    put_off_count: AtomicUsize,
}

struct PutOff {
    service: Service,
    wanted: Wanted,
    bytes: Vec<u8>,
    expiry: u32,
    limit: u64,
    removals: [u64; 2],
    since: Instant,
}

/// The caches this process has open, as a list that only grows. No lock: a fork may come while another thread opens one.
static OPEN: OnceBox<Opened> = OnceBox::new();

struct Opened {
    area: &'static Area,
    next: OnceBox<Opened>,
}

fn open_areas() -> impl Iterator<Item = &'static Area> {
    std::iter::successors(OPEN.get(), |opened| opened.next.get()).map(|opened| opened.area)
}

impl Area {
    /// The cache of this name, made if it is not there.
    pub fn open(spec: &Spec) -> Result<&'static Area, Error> {
        Area::look_up(spec).or_else(|error| match error {
            // Out of reach since, as in a chroot or for another user: what is mapped stays in use.
            Error::Io(ref path, _) => {
                open_areas().find(|area| area.path == *path && area.store.constants.size == spec.size).ok_or(error)
            }
            // Opened by a server that has dropped root since.
            Error::NotOurs(ref path, _) => std::fs::symlink_metadata(path)
                .ok()
                .and_then(|found| {
                    let area = Area::known(&found)?;
                    let unchanged = found.uid() == area.user && found.mode() & 0o077 == 0 && found.nlink() == 1;
                    (unchanged && area.user != sys::effective_user()).then_some(area)
                })
                .filter(|area| area.store.constants.size == spec.size)
                .ok_or(error),
            error => Err(error),
        })
    }

    fn look_up(spec: &Spec) -> Result<&'static Area, Error> {
        /// Others make and remove the file at the same time; none of them takes long.
        const TRIES: usize = 500;
        let path = file::path(&spec.name)?;
        if !file::is_size(spec.size) {
            return Err(Error::Size(spec.size));
        }
        for _ in 0..TRIES {
            let Some((file, found, constants)) = file::open(&path)? else {
                if let Some(file) = file::create(&path, spec)? {
                    return Area::new(file, &path, spec.keep);
                }
                continue;
            };
            // Not all that was written before a crash has reached the disk.
            if file::is_of_another_boot(&constants) {
                if !file::remove_unused(&path, &file, &found) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                continue;
            }
            if constants.size != spec.size {
                return Err(Error::OtherSize { path, there: constants.size, asked: spec.size });
            }
            if constants.keep != spec.keep {
                return Err(Error::OtherKeep { path, there: constants.keep });
            }
            if let Some(area) = Area::known(&found) {
                return Ok(area);
            }
            if spec.keep {
                return Area::new(file, &path, true);
            }
            if file::remove_unused(&path, &file, &found) {
                continue;
            }
            // Whoever is about to remove it has it for itself. Once this process holds it, it stays.
            if file::hold(&file).is_ok() && file::is_current(&path, &found) {
                return Area::new(file, &path, false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Error::Busy(path))
    }

    /// The cache of this name as it is. To look at: it does not keep a cache that is not kept.
    pub fn find(name: &str) -> Result<&'static Area, Error> {
        let path = file::path(name)?;
        match file::open(&path)? {
            Some((.., constants)) if file::is_of_another_boot(&constants) => Err(Error::Stale(path)),
            Some((_, found, _)) if Area::known(&found).is_some() => Area::known(&found).ok_or(Error::Missing(path)),
            Some((file, ..)) => Area::new(file, &path, true),
            None => Err(Error::Missing(path)),
        }
    }

    fn known(found: &Metadata) -> Option<&'static Area> {
        open_areas().find(|area| area.file == (found.dev(), found.ino()))
    }

    /// Maps a file in which there is a cache; `keep` if it is not locked. The mapping keeps what is open, and with it the lock.
    fn new(file: File, path: &Path, keep: bool) -> Result<&'static Area, Error> {
        let failed = |error| Error::Io(path.into(), error);
        let found = file.metadata().map_err(failed)?;
        let size = usize::try_from(found.len()).map_err(|_| Error::Size(found.len()))?;
        let constants = file::constants(&file).map_err(failed)?.filter(|constants| constants.size == found.len());
        let Some(constants) = constants else { return Err(Error::Damaged(path.into())) };
        bus::handle();
        let words = sys::map(&file, size / 8).map_err(failed)?;
        let identity = (found.dev(), found.ino());
        let seats = Seats::new(file, path, identity, &words[LOCK]).map_err(|error| {
            sys::unmap(words);
            Error::Locks(path.into(), error)
        })?;
        let area: &'static Area = Box::leak(Box::new(Area {
            store: Store::new(words, constants),
            lock: Lock::new(&words[LOCK], seats),
            path: path.into(),
            file: identity,
            user: found.uid(),
            holds: AtomicBool::new(!keep),
            lost: AtomicBool::new(false),
            put_off: Mutex::default(),
            put_off_count: AtomicUsize::new(0),
        }));
        let mut place = &OPEN;
        let mut opened = Box::new(Opened { area, next: OnceBox::new() });
        while let Err(mine) = place.set(opened) {
            opened = mine;
            let Some(other) = place.get() else { break };
            // Another thread may have opened the same one meanwhile. Then this one is not used, and nothing of it is.
            if other.area.file == area.file {
                area.lock.seats.stand_up();
                area.lock.seats.give_up_family();
                sys::unmap(words);
                return Ok(other.area);
            }
            place = &other.next;
        }
        Ok(area)
    }

    /// This process ends: a cache that is not kept goes with the last one. It can still be used.
    pub fn leave(&self) {
        if !self.holds.swap(false, Relaxed) {
            return;
        }
        // Opened anew: the lock on the one that is mapped is also that of the processes forked from here, or this from them.
        if let Ok(Some((file, found, _))) = file::open(&self.path) {
            if (found.dev(), found.ino()) == self.file
                && self.lock.seats.give_up_family()
                && sys::remap(&file, self.store.words()).is_ok()
            {
                file::remove_unused(&self.path, &file, &found);
            }
        }
    }

    /// As it was given, or as `find` takes it.
    pub fn name(&self) -> String {
        file::name(&self.path)
    }

    fn now(&self) -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.store.relative(now as Seconds)
    }

    /// `None` if the lock could not be had in time, or the cache had to be emptied.
    fn write<T>(&self, work: impl FnOnce(&mut Writer) -> Found<T>) -> Option<T> {
        if self.lost.load(Relaxed) {
            self.is_lost();
            return None;
        }
        let Some(lock) = self.lock.lock() else {
            if let Ok(busy) = self.store.word(COUNTERS + Counter::Busy as usize) {
                busy.fetch_add(1, Relaxed);
            }
            return None;
        };
        let mut writer = Writer::new(self.store, lock);
        let done = work(&mut writer);
        if done.is_err() {
            writer.reset();
        }
        done.ok()
    }

    /// Whether this address is in the mapping. For the handler of SIGBUS.
    pub fn contains(&self, address: usize) -> bool {
        self.store.words().as_ptr_range().contains(&(address as *const _))
    }

    /// Replaces the mapping by empty memory of this process's own. For the handler of SIGBUS.
    pub fn lose(&self) -> bool {
        self.lost.store(true, SeqCst);
        sys::forget(self.store.words()).is_ok()
    }

    #[cold]
    fn is_lost(&self) {
        // What it was changing when it found out is left to others.
        self.lock.seats.stand_up();
        log::once(format_args!(
            "the shared cache {} was cut short by somebody: this process goes on without it",
            self.path.display()
        ));
    }

    fn row(&self, service: Service) -> Found<Option<usize>> {
        self.store.find_row(service, 0)
    }

    /// The bytes of the session with this key into `out`, and whether it is there. Writes nothing to the shared memory.
    pub fn get(&self, service: Service, key: &Key, out: &mut Vec<u8>) -> bool {
        let wanted = self.store.wanted(service, key);
        if let Some(found) = self.store.get(&wanted, out) {
            return found;
        }
        self.write(|writer| Ok(writer.find(&wanted, out)?.is_some())).unwrap_or(false)
    }

    /// Takes the session with this key out; only one caller of all processes gets it.
    pub fn take(&self, service: Service, key: &Key, out: &mut Vec<u8>) -> bool {
        self.take_if(service, key, out, |_| true)
    }

    /// The same, if `bytes` are its bytes.
    pub fn take_same(&self, service: Service, key: &Key, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        self.take_if(service, key, out, |found| found == bytes)
    }

    fn take_if(&self, service: Service, key: &Key, out: &mut Vec<u8>, wish: impl Fn(&[u8]) -> bool) -> bool {
        let wanted = self.store.wanted(service, key);
        let hash = wanted.hash;
        let _ = self.store.count_removal(Some(hash));
        if self.store.stable(|| Ok(self.store.find(hash)?.is_none()), |_| false) == Some(true) {
            return false;
        }
        self.store.fetch(hash);
        let taken = self.write(|writer| match writer.find(&wanted, out)? {
            // Somebody who did not wait for the lock may be faster still. (Without room nobody else can be.)
            Some(record) if wish(out) && writer.store.claim(hash)?.unwrap_or(true) => {
                writer.remove(&record, Counter::Taken)?;
                writer.store.release(hash)?;
                Ok(true)
            }
            _ => Ok(false),
        });
        taken.unwrap_or_else(|| self.take_without_lock(service, &wanted, out, wish).unwrap_or(false))
    }

    /// The same while a writer is stopped: the session is void from now on, a writer tidies up later.
    fn take_without_lock(
        &self,
        service: Service,
        wanted: &Wanted,
        out: &mut Vec<u8>,
        wish: impl Fn(&[u8]) -> bool,
    ) -> Found<bool> {
        // What is half changed may hide it: then it is void all the same, and nobody's.
        if matches!(self.store.read(wanted, out), Ok(true)) && !wish(out) {
            return Ok(false);
        }
        let claimed = self.store.claim(wanted.hash)?;
        if claimed.is_none() {
            // The table is full: all of the service goes, rather than that one stays.
            self.flush_without_lock(service)?;
        }
        // It may have been taken before it was void.
        let mut is_there = || {
            let Some((_, at)) = self.store.find(wanted.hash)? else { return Ok(false) };
            let record = self.store.record(at)?;
            self.store.copy(&record, out)?;
            self.store.is_sound(&record, wanted, out)
        };
        Ok(claimed == Some(true) && is_there()?)
    }

    /// Makes all sessions of a service void, without the lock.
    fn flush_without_lock(&self, service: Service) -> Found<()> {
        match self.store.find_row(service, 0)? {
            Some(row) => self.store.void_row(row, service),
            None => Ok(()),
        }
    }

    /// Puts a session in, and what has to leave its service for it into `left`. `limit` is that of the service, 0 for none.
    #[allow(clippy::too_many_arguments)]
    pub fn insert(
        &self,
        service: Service,
        key: &Key,
        bytes: &[u8],
        expiry: Seconds,
        collision: Collision,
        limit: usize,
        left: &mut Vec<Leaving>,
    ) -> Inserted {
        let new = self.new_record(service, key, bytes, expiry, collision, limit as u64, false);
        let removals = self.store.removals(new.wanted.hash);
        match self.put(&new, left) {
            Some(inserted) => {
                if self.put_off_count.load(Relaxed) > 0 {
                    self.retry(service, left);
                }
                inserted
            }
            None => {
                if let Ok(removals) = removals {
                    self.put_off(&new, removals);
                }
                Inserted::Refused
            }
        }
    }

    /// Notes an insertion for when the lock is free.
    fn put_off(&self, new: &New, removals: [u64; 2]) {
        let Ok(mut list) = self.put_off.try_lock() else { return };
        if self.lost.load(Relaxed) || new.bytes.len() > LONGEST {
            return;
        }
        if list.len() == MOST_PUT_OFF {
            list.pop_front();
        }
        let New { service, wanted, expiry, limit, .. } = *new;
        let (bytes, since) = (new.bytes.to_vec(), Instant::now());
        list.push_back(PutOff { service, wanted, bytes, expiry, limit, removals, since });
        self.put_off_count.store(list.len(), Relaxed);
    }

    /// Tries insertions of this service again. What has to leave for them belongs to the caller's service, too.
    #[cold]
    fn retry(&self, service: Service, left: &mut Vec<Leaving>) {
        for _ in 0..RETRIES {
            let next = || {
                let mut list = self.put_off.try_lock().ok()?;
                while list.front().is_some_and(|first| first.since.elapsed() > LONGEST_PUT_OFF) {
                    list.pop_front();
                }
                let first = list.iter().position(|waiting| waiting.service == service);
                let first = first.and_then(|at| list.remove(at));
                self.put_off_count.store(list.len(), Relaxed);
                first
            };
            let Some(waiting) = next() else { return };
            let PutOff { service, wanted, expiry, limit, .. } = waiting;
            // One that came since is newer.
            let collision = Collision::KeepUnlessExpired(self.store.absolute(self.now()));
            let (bytes, now, removals) = (&waiting.bytes[..], self.now(), Some(waiting.removals));
            let new = New { service, wanted, bytes, expiry, now, collision, rewrite: false, limit, removals };
            if self.put(&new, left).is_none() {
                return;
            }
        }
    }

    /// Other bytes and another expiry for the session with this key; nothing if it is not there. Where the lock could not be had
    /// in time, one that is to expire sooner is removed: it must not live on.
    pub fn rewrite(&self, service: Service, key: &Key, bytes: &[u8], expiry: Seconds) {
        let new = self.new_record(service, key, bytes, expiry, Collision::Replace, 0, true);
        if self.put(&new, &mut Vec::new()).is_some() {
            return;
        }
        let lives_longer = || {
            let Some((_, at)) = self.store.find(new.wanted.hash)? else { return Ok(None) };
            Ok(Some(self.store.record(at)?.expiry() > new.expiry))
        };
        // What is half changed may hide it.
        let lives_longer = self.store.stable(lives_longer, Option::is_some).unwrap_or(Some(true));
        // Nor does one come later that was put off.
        let _ = self.store.count_removal(Some(new.wanted.hash));
        if lives_longer == Some(true) {
            let _ = self.take_without_lock(service, &new.wanted, &mut Vec::new(), |_| true);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn new_record<'a>(
        &self,
        service: Service,
        key: &Key,
        bytes: &'a [u8],
        expiry: Seconds,
        collision: Collision,
        limit: u64,
        rewrite: bool,
    ) -> New<'a> {
        let wanted = self.store.wanted(service, key);
        let expiry = self.store.relative_expiry(expiry);
        New { service, wanted, bytes, expiry, now: self.now(), collision, rewrite, limit, removals: None }
    }

    fn put(&self, new: &New, left: &mut Vec<Leaving>) -> Option<Inserted> {
        let mut out = Vec::new();
        self.store.fetch(new.wanted.hash);
        self.store.fetch_leaving();
        loop {
            let before = left.len();
            match self.write(|writer| writer.put(new, &mut out, left))? {
                Put::Done(inserted) => {
                    // It may have been replaced before others had to leave.
                    let replaced = left.iter().any(|(_, why)| *why == super::Departure::Replaced);
                    return Some(if inserted == Inserted::Added && replaced { Inserted::Replaced } else { inserted });
                }
                Put::Again if left.len() > before => {}
                Put::Again | Put::Absent => return None,
            }
        }
    }

    /// Takes out up to `most` sessions of the service that expire before `before`, the soonest first.
    fn pop(&self, service: Service, before: u32, most: usize, why: Counter, out: &mut Vec<Vec<u8>>) -> Option<usize> {
        self.write(|writer| {
            let Some(row) = writer.store.find_row(service, 0)? else { return Ok(0) };
            let mut count = 0;
            let mut bytes = Vec::new();
            while count < most && writer.pop(row, before, why, &mut bytes)? {
                count += 1;
                if !bytes.is_empty() {
                    out.push(std::mem::take(&mut bytes));
                }
            }
            Ok(count)
        })
    }

    /// Takes out up to `most` sessions of the service that have expired at `now`, a few at a time, and gives them to
    /// `left` in between.
    pub fn expire(&self, service: Service, now: Seconds, most: usize, left: &mut dyn FnMut(&[u8])) -> usize {
        let now = self.store.relative(now);
        self.pop_all(service, now, most, Counter::Expired, left)
    }

    /// Takes out the sessions of the service that are there now, in the same way.
    pub fn clear(&self, service: Service, left: &mut dyn FnMut(&[u8])) {
        let _ = self.store.count_removal(None);
        let known = self.of_row(service, row::SESSIONS).map(|sessions| sessions as usize);
        let popped = known.map(|sessions| self.pop_all(service, u32::MAX, sessions, Counter::Removed, left));
        if known.is_none() || popped < known {
            // A writer is stopped, or others were faster. Nobody finds what is left.
            let _ = self.flush_without_lock(service);
        }
    }

    fn pop_all(&self, service: Service, before: u32, most: usize, why: Counter, left: &mut dyn FnMut(&[u8])) -> usize {
        let mut count = 0;
        let mut batch = Vec::new();
        while count < most && self.soonest(service).is_some_and(|soonest| soonest < u64::from(before)) {
            // They have left even if the cache was emptied after some of them.
            let popped = self.pop(service, before, BATCH.min(most - count), why, &mut batch);
            count += batch.len();
            batch.drain(..).for_each(|bytes| left(&bytes));
            if popped.unwrap_or(0) == 0 {
                break;
            }
        }
        count
    }

    /// Whether a session of the service has expired at `now`. Writes nothing.
    pub fn has_expired(&self, service: Service, now: Seconds) -> bool {
        self.soonest(service).is_some_and(|soonest| soonest < u64::from(self.store.relative(now)))
    }

    fn of_row(&self, service: Service, at: usize) -> Option<u64> {
        let read = || self.row(service)?.map(|row| self.store.load(row + at)).transpose();
        match self.store.stable(read, |_| false) {
            Some(found) => found,
            None => self.write(|_| read()).flatten(),
        }
    }

    fn soonest(&self, service: Service) -> Option<u64> {
        self.of_row(service, row::SOONEST).filter(|&soonest| soonest != row::NONE)
    }

    /// How many sessions the service has.
    pub fn sessions(&self, service: Service) -> usize {
        self.of_row(service, row::SESSIONS).unwrap_or(0) as usize
    }

    /// The bytes of each session that the service has all the while.
    pub fn for_each(&self, service: Service, seen: &mut dyn FnMut(&[u8])) {
        let mut last = (0, 0);
        let mut most = self.sessions(service).saturating_mul(2);
        loop {
            let mut batch: Vec<Vec<u8>> = Vec::new();
            let read = self.write(|writer| {
                let Some(row) = writer.store.find_row(service, 0)? else { return Ok(()) };
                while batch.len() < BATCH {
                    let Some(record) = order::after(writer, row, last)? else { break };
                    let mut bytes = Vec::new();
                    writer.store.copy_sound(&record, &mut bytes)?;
                    batch.push(bytes);
                    last = record.order();
                }
                Ok(())
            });
            most = most.saturating_sub(batch.len());
            let more = batch.len() == BATCH && most > 0;
            batch.iter().for_each(|bytes| seen(bytes));
            if read.is_none() || !more {
                return;
            }
        }
    }

    /// Takes out everything, of every service. `None` if the cache was busy.
    pub fn flush(&self) -> Option<u64> {
        let _ = self.store.count_removal(None);
        self.write(|writer| writer.flush())
    }

    /// Follows every link, for tests and for who doubts: how many sessions there are, `None` if something was wrong
    /// (then it is empty now) or the cache was busy. Holds the lock for as long as it takes.
    pub fn check(&self) -> Option<u64> {
        self.write(|writer| writer.check())
    }

    pub fn counters(&self) -> [u64; COUNTER_NAMES.len()] {
        std::array::from_fn(|counter| self.store.load(COUNTERS + counter).unwrap_or(0))
    }

    pub fn info(&self) -> Info {
        let load = |at| self.store.load(at).unwrap_or(0);
        let service = |number: usize| {
            let row = self.store.row(number);
            let (sessions, soonest) = (load(row + row::SESSIONS), load(row + row::SOONEST));
            let is_void = self.store.is_row_void(row).unwrap_or(true);
            (sessions > 0 && !is_void).then(|| ServiceInfo {
                identity: self.store.identity(row).unwrap_or_default(),
                sessions,
                bytes: load(row + row::BYTES),
                soonest_expiry: self.store.absolute(soonest.min(u32::MAX.into()) as u32),
            })
        };
        let read = || Info {
            name: self.name(),
            path: self.path.clone(),
            size: self.store.constants.size,
            keep: self.store.constants.keep,
            created: self.store.constants.created,
            used: load(LIVE).saturating_mul(8),
            room: self.store.ring_words() as u64 * 8,
            sessions: load(SESSIONS),
            services: (0..ROW_COUNT).filter_map(service).collect(),
            counters: self.counters(),
        };
        // Numbers that belong together, if that can be had.
        self.store.stable(|| Ok(read()), |_| false).unwrap_or_else(read)
    }

    /// Whether somebody holds the lock now, for tests.
    #[doc(hidden)]
    pub fn is_busy(&self) -> bool {
        self.write(|_| Ok(())).is_none()
    }

    /// Where it lies in this process, for tests that write over it.
    #[doc(hidden)]
    pub fn raw(&self) -> &'static [std::sync::atomic::AtomicU64] {
        self.store.words()
    }
}

/// The cache that has this address in its mapping. For the handler of SIGBUS.
pub fn at(address: usize) -> Option<&'static Area> {
    open_areas().find(|area| area.contains(address))
}

/// This is a process that was just forked.
pub fn forked() {
    open_areas().for_each(|area| area.lock.seats.forked());
}

/// This process ends: [`Area::leave`] for each cache it has open.
pub fn leave() {
    open_areas().for_each(Area::leave);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = [1, 1];

    /// A cache with one session in it, whose file is removed at once.
    fn with_one(name: &str) -> (&'static Area, Key, Wanted) {
        let name = format!("test-area-{}-{name}", std::process::id());
        let area = Area::open(&Spec { name: name.clone(), size: 1 << 20, keep: true, service: String::new() }).unwrap();
        super::super::remove(&name).unwrap();
        let key = Key::new(0x304, &[7; 32]).unwrap();
        let inserted = area.insert(SERVICE, &key, b"a session", 4_000_000_000, Collision::Replace, 0, &mut Vec::new());
        assert_eq!(inserted, Inserted::Added);
        (area, key, area.store.wanted(SERVICE, &key))
    }

    fn take_without_lock(area: &Area, wanted: &Wanted) -> bool {
        area.take_without_lock(SERVICE, wanted, &mut Vec::new(), |_| true) == Ok(true)
    }

    /// ONCE1: one that does not wait for the lock comes between the steps of one that has it.
    #[test]
    fn of_two_who_take_a_session_at_once_one_has_it() {
        let (area, key, wanted) = with_one("two");
        let other = std::cell::Cell::new(false);
        let faster = |_: &[u8]| {
            other.set(take_without_lock(area, &wanted));
            true
        };
        let had = area.take_if(SERVICE, &key, &mut Vec::new(), faster);
        assert_eq!((had, other.get()), (false, true));
        assert!(!take_without_lock(area, &wanted), "void already");
        assert_eq!((area.check(), area.info().count(Counter::Taken)), (Some(0), 1));
    }

    /// TRUE1: each of the ways in which a writer meets what was taken without the lock meanwhile.
    #[test]
    fn what_was_taken_without_the_lock_counts_as_taken() {
        type Meet<'a> = &'a dyn Fn(&mut Writer, &Wanted) -> Found<bool>;
        let ways: [(&str, Meet); 2] = [
            ("find", &|writer, wanted| Ok(writer.find(wanted, &mut Vec::new())?.is_none())),
            ("pop", &|writer, _| {
                let (row, mut out) = (writer.store.find_row(SERVICE, 0)?.ok_or(Broken)?, Vec::new());
                Ok(writer.pop(row, u32::MAX, Counter::Expired, &mut out)? && out.is_empty())
            }),
        ];
        for (name, meet) in ways {
            let (area, key, wanted) = with_one(name);
            let met = area.write(|writer| {
                assert!(take_without_lock(area, &wanted));
                meet(writer, &wanted)
            });
            assert_eq!(met, Some(true), "{name}");
            assert!(!area.get(SERVICE, &key, &mut Vec::new()), "{name}");
            let info = area.info();
            let left = [Counter::Taken, Counter::Removed, Counter::Expired].map(|counter| info.count(counter));
            assert_eq!((area.check(), left), (Some(0), [1, 0, 0]), "{name}");
        }
    }
}
