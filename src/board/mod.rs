//! The status board: what `reprise status` reads. The counters of every context live in a file mapped shared, a row for
//! each context and process, so that they can be read from outside and counting costs what it costs on the heap. So do
//! the numbers of a process's links to a Redis, a row for each process and URL.
//!
//! A process makes its board with its first SSL_CTX, and its forked children count on the same one. The file is mapped
//! once and closed: it survives a fork, a chroot, another user and a program that closes every descriptor. It lies in
//! `/dev/shm` as `reprise-status-UID-PID-TIME`, is sparse, and memory is had from the system before it is written to, so
//! that a full tmpfs is an error and no SIGBUS. Whatever fails, the context counts on the heap and nobody is told.
//!
//! The file goes with the last process that uses it. Who is killed leaves it to the next program or `reprise status`.

pub mod read;

use crate::cache::redis::vitals::{self, Numbers};
use crate::config;
pub use crate::context::counters::Count;
use once_cell::race::OnceBox;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::{SystemTime, UNIX_EPOCH};

pub const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "reprise-status-";

const MAGIC: u64 = u64::from_le_bytes(*b"reprboar");
/// Raised with every change of what follows.
const LAYOUT: u32 = 3;

const ROWS: usize = 1024;
/// Rows whose memory is asked for together.
const CHUNK: usize = 16;
/// Where the system cannot be asked for memory row by row (Linux before 5.14), all of it is asked for at once.
const FEW_ROWS: usize = 4 * CHUNK;
const PROCESSES: usize = 256;
/// Rows for links to a Redis.
const LINKS: usize = 256;
/// Threads count in different lanes, on cache lines of their own.
pub(crate) const LANES: usize = 4;

/// The numbers of a context in the order of [`Count`].
pub type Sums = [AtomicU64; Count::ALL];

#[derive(Default)]
#[repr(C, align(64))]
pub struct Lane {
    pub counts: Sums,
    /// Those of [`Count::Taken`] that were not in the cache, so that the others tell how many sessions it holds.
    pub taken_outside: AtomicU64,
}

#[repr(C)]
struct Header {
    magic: AtomicU64,
    layout: AtomicU32,
    counts: AtomicU32,
    row_size: AtomicU32,
    /// How many rows may be used.
    rows: AtomicU32,
    /// Seconds since the epoch.
    created: AtomicU64,
    /// The inode of the namespace that the process ids belong to, 0 if unknown.
    namespace: AtomicU64,
    creator: AtomicU32,
    /// Forks begun, and children that have entered themselves in `processes`: while they differ, one may be on its way.
    forks: AtomicU32,
    arrived: AtomicU32,
    /// `processes` was full once: some are missing in it.
    crowded: AtomicU32,
    /// The last number given to a context.
    numbers: AtomicU32,
    /// No row below is free, as far as is known.
    lowest: AtomicU32,
    /// The second since boot in which rows of dead processes were last looked for.
    reclaimed: AtomicU64,
    /// How many numbers a link has.
    vitals: AtomicU32,
    /// The second since boot in which links of dead processes were last looked for.
    reclaimed_links: AtomicU64,
    /// The counts of rows that are not there any more.
    ended: Sums,
    /// The same for links.
    ended_links: Numbers,
    /// 1 for each chunk of rows whose memory is there.
    ready: [AtomicU32; ROWS / CHUNK],
    processes: [AtomicU32; PROCESSES],
    /// The process that has a link, 0 for none.
    link_owners: [AtomicU32; LINKS],
}

/// One context in one process.
#[repr(C)]
pub struct Row {
    /// Nanoseconds since boot when it was filled in, the last of all; 0 before. No process that started later has it.
    claimed: AtomicU64,
    /// Seconds since the epoch when the SSL_CTX was made.
    created: AtomicU64,
    /// The same for a context and its copies in forked processes.
    number: AtomicU32,
    semantics: AtomicU32,
    /// Sessions that came with the fork.
    inherited: AtomicU64,
    libssl: [AtomicU64; 8],
    cache: Label,
    pub lanes: [Lane; LANES],
}

/// The text that names a cache, in words: it may be read while it is written.
pub type Label = [AtomicU64; 16];

/// The link of one process to one Redis. It is its process's until that ends.
#[repr(C, align(128))]
struct LinkRow {
    /// As that of a [`Row`].
    claimed: AtomicU64,
    cache: Label,
    numbers: Numbers,
}

const OWNERS_AT: usize = 4096;
const LINKS_AT: usize = 8192;
const ROWS_AT: usize = LINKS_AT + LINKS * size_of::<LinkRow>();
const SIZE: usize = ROWS_AT + ROWS * size_of::<Row>();
const _: () = assert!(size_of::<Header>() <= OWNERS_AT && OWNERS_AT + 4 * ROWS <= LINKS_AT);
const _: () =
    assert!(ROWS_AT.is_multiple_of(align_of::<Row>()) && size_of::<Lane>() == 192 && size_of::<Row>() == 1024);

/// What a row says of its context beside the counts.
pub struct About<'a> {
    pub number: u32,
    pub created: u64,
    pub semantics: u32,
    pub inherited: u64,
    pub cache: &'a Label,
}

impl Row {
    fn fill(&self, about: &About) {
        self.created.store(about.created, Relaxed);
        self.number.store(about.number, Relaxed);
        self.semantics.store(about.semantics, Relaxed);
        self.inherited.store(about.inherited, Relaxed);
        write_text(&self.libssl, crate::libssl::version().as_bytes());
        self.set_cache(about.cache);
        self.claimed.store(since_boot(), Release);
    }

    pub fn set_semantics(&self, semantics: u32) {
        self.semantics.store(semantics, Relaxed);
    }

    pub fn set_cache(&self, label: &Label) {
        self.cache.iter().zip(label).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
    }

    fn clear(&self) {
        self.claimed.store(0, Relaxed);
        for lane in &self.lanes {
            lane.counts.iter().chain([&lane.taken_outside]).for_each(|word| word.store(0, Relaxed));
        }
    }
}

/// As much of `text` as there is room for, and zeros.
pub fn write_text(to: &[AtomicU64], text: &[u8]) {
    for (at, word) in to.iter().enumerate() {
        let byte = |i| text.get(at * 8 + i).copied().unwrap_or(0);
        word.store(u64::from_ne_bytes(std::array::from_fn(byte)), Relaxed);
    }
}

/// Where the numbers of a link are: a row of the board, or nowhere.
#[derive(Default)]
pub struct LinkPlace(AtomicPtr<LinkRow>);

impl LinkPlace {
    pub fn numbers(&self) -> Option<&'static Numbers> {
        let row = self.0.load(Acquire);
        // SAFETY: other than null it is the address of a row that `claim_link` returned; those are mapped for ever.
        (!row.is_null()).then(|| unsafe { &(*row).numbers })
    }

    /// A row for a link of this process, if there is a board with room. What was another process's is left to that.
    pub fn find(&self, label: &str) {
        let row = BOARD.get().and_then(|board| board.claim_link(label));
        self.0.store(row.map_or(null_mut(), |row| (row as *const LinkRow).cast_mut()), Release);
    }
}

struct Board {
    header: &'static Header,
    /// The process that has a row, 0 for none.
    owners: &'static [AtomicU32; ROWS],
    /// Only through [`Board::link`].
    links: *const LinkRow,
    /// Only rows of a ready chunk may be touched.
    rows: *const Row,
    path: PathBuf,
}

// SAFETY: all that the pointers lead to is atomic and stays mapped.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

static BOARD: OnceBox<Board> = OnceBox::new();
/// Whether a thread makes the board, or one did and failed. Nobody waits.
static STATE: AtomicU32 = AtomicU32::new(NOT_MADE);
const NOT_MADE: u32 = 0;
const BEING_MADE: u32 = 1;
const DONE: u32 = 2;

/// Where a context counts: a row of the board, or its own memory.
#[derive(Default)]
pub struct Place(AtomicPtr<Row>);

/// Instead of a row's address: there is none to be had.
const HEAP: usize = 1;

impl Place {
    pub fn row(&self) -> Option<&'static Row> {
        let row = self.0.load(Acquire);
        // SAFETY: other than null and HEAP it is the address of a row that `claim` returned; those are mapped for ever.
        (row as usize > HEAP).then(|| unsafe { &*row })
    }

    /// The row, looked for if nobody did yet. `None`: the context counts on the heap, for now or for ever.
    pub fn find(&self, about: &About) -> Option<&'static Row> {
        if !self.0.load(Acquire).is_null() {
            return self.row();
        }
        let board = match board() {
            Some(board) => board,
            None if STATE.load(Relaxed) == DONE => return self.set(HEAP as *mut Row),
            None => return None,
        };
        let Some(index) = board.claim() else { return self.set(HEAP as *mut Row) };
        let Some(row) = board.row(index) else { return self.set(HEAP as *mut Row) };
        row.fill(about);
        let found = self.set((row as *const Row).cast_mut());
        if !found.is_some_and(|found| std::ptr::eq(found, row)) {
            board.free(index); // another thread was first
        }
        found
    }

    fn set(&self, row: *mut Row) -> Option<&'static Row> {
        let _ = self.0.compare_exchange(null_mut(), row, AcqRel, Acquire);
        self.row()
    }

    /// Nobody looked for a row yet: a new context, or one in a new process.
    pub fn forget(&self) {
        self.0.store(null_mut(), Release);
    }

    /// The context is gone. What it counted stays in the sums of the program.
    pub fn leave(&self) {
        let row = self.0.swap(HEAP as *mut Row, AcqRel);
        if let Some(board) = BOARD.get().filter(|_| row as usize > HEAP) {
            board.free((row as usize - board.rows as usize) / size_of::<Row>());
        }
    }
}

/// A number for a new context: unique among the processes of this board.
pub fn number() -> u32 {
    board().map_or(0, |board| board.header.numbers.fetch_add(1, Relaxed) + 1)
}

fn board() -> Option<&'static Board> {
    if let Some(board) = BOARD.get() {
        return Some(board);
    }
    if STATE.compare_exchange(NOT_MADE, BEING_MADE, AcqRel, Relaxed).is_err() {
        return None;
    }
    let made = Board::make();
    if let Some(board) = made {
        let _ = BOARD.set(Box::new(board));
    }
    STATE.store(DONE, Release);
    BOARD.get()
}

impl Board {
    fn make() -> Option<Board> {
        // Beyond RLIMIT_FSIZE the system would send SIGXFSZ.
        if config::get().status == config::Status::Off || largest_file() < SIZE as u64 {
            return None;
        }
        // SAFETY: geteuid has no preconditions.
        let user = unsafe { libc::geteuid() };
        let prefix = format!("{PREFIX}{user}-");
        remove_leftovers(&prefix);
        let path = PathBuf::from(format!("{FOLDER}/{prefix}{}-{}", std::process::id(), since_boot()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .ok()?;
        let board = Board::map(&file, path.clone());
        if board.is_none() {
            let _ = fs::remove_file(path);
        }
        board
    }

    fn map(file: &File, path: PathBuf) -> Option<Board> {
        file.set_len(SIZE as u64).ok()?;
        // SAFETY: a new mapping at a place of the system's choice.
        let address = unsafe {
            let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            libc::mmap(null_mut(), SIZE, access, shared, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return None;
        }
        let start = address.cast::<u8>();
        let rows = if populate(start, LINKS_AT) {
            ROWS
        } else if reserve(file, ROWS_AT + FEW_ROWS * size_of::<Row>()) {
            FEW_ROWS
        } else {
            // SAFETY: it was mapped above, and nothing refers to it.
            unsafe { libc::munmap(address, SIZE) };
            return None;
        };
        // SAFETY: the mapping is as long as the file, is never unmapped from here on, aligned to a page, and the memory of
        // these parts is there. All of it is atomic, and any bits are valid. The file belongs to this user alone; who
        // shortens it ends the process.
        let board = unsafe {
            Board {
                header: &*start.cast::<Header>(),
                owners: &*start.add(OWNERS_AT).cast::<[AtomicU32; ROWS]>(),
                links: start.add(LINKS_AT).cast::<LinkRow>(),
                rows: start.add(ROWS_AT).cast::<Row>(),
                path,
            }
        };
        let header = board.header;
        let me = std::process::id();
        header.layout.store(LAYOUT, Relaxed);
        header.counts.store(Count::ALL as u32, Relaxed);
        header.row_size.store(size_of::<Row>() as u32, Relaxed);
        header.vitals.store(vitals::NUMBERS as u32, Relaxed);
        header.rows.store(rows as u32, Relaxed);
        header.created.store(now(), Relaxed);
        header.namespace.store(namespace(), Relaxed);
        header.creator.store(me, Relaxed);
        header.processes[0].store(me, Relaxed);
        if rows == FEW_ROWS {
            header.ready[..FEW_ROWS / CHUNK].iter().for_each(|ready| ready.store(1, Relaxed));
        }
        header.magic.store(MAGIC, Release);
        Some(board)
    }

    /// A row whose memory is there.
    fn row(&self, index: usize) -> Option<&'static Row> {
        if self.header.ready.get(index / CHUNK)?.load(Acquire) == 0 {
            return None;
        }
        // SAFETY: `index` is below ROWS, so the row lies in the mapping, and its chunk is ready.
        Some(unsafe { &*self.rows.add(index) })
    }

    fn prepare(&self, chunk: usize) -> bool {
        let Some(ready) = self.header.ready.get(chunk) else { return false };
        if ready.load(Acquire) == 0 {
            let size = CHUNK * size_of::<Row>();
            // The address is only asked for memory.
            if !populate(self.rows.cast::<u8>().wrapping_add(chunk * size).cast_mut(), size) {
                return false;
            }
            ready.store(1, Release);
        }
        true
    }

    /// A row for this process, empty; `None` if there is none or no memory for it.
    fn claim(&self) -> Option<usize> {
        let me = std::process::id();
        let rows = (self.header.rows.load(Relaxed) as usize).min(ROWS);
        let lowest = (self.header.lowest.load(Relaxed) as usize).min(rows);
        for index in (lowest..rows).chain(0..lowest) {
            if index % CHUNK == 0 && !self.prepare(index / CHUNK) {
                return None;
            }
            let ready = self.header.ready[index / CHUNK].load(Acquire) != 0;
            if ready && self.owners[index].compare_exchange(0, me, AcqRel, Relaxed).is_ok() {
                self.header.lowest.store(index as u32 + 1, Relaxed);
                return Some(index);
            }
        }
        self.reclaim(me, rows)
    }

    /// The row of a process that was killed or ended without a word. All such rows become free, at most once a second.
    fn reclaim(&self, me: u32, rows: usize) -> Option<usize> {
        let second = since_boot() / 1_000_000_000;
        if self.header.reclaimed.swap(second, Relaxed) == second {
            return None;
        }
        let mut found = None;
        for (index, owner) in self.owners[..rows].iter().enumerate() {
            let process = owner.load(Relaxed);
            let dead = process != 0 && !is_alive(process);
            if dead && owner.compare_exchange(process, me, AcqRel, Relaxed).is_ok() {
                self.settle(index);
                match found {
                    None => found = Some(index),
                    Some(_) => self.open(index),
                }
            }
        }
        found
    }

    fn link(&self, index: usize) -> Option<&'static LinkRow> {
        // Where the system cannot be asked for memory, it was all there from the first.
        let is_there = self.header.rows.load(Relaxed) as usize == FEW_ROWS
            || populate(self.links.wrapping_add(index).cast::<u8>().cast_mut(), size_of::<LinkRow>());
        // SAFETY: `index` is below LINKS, so the row lies in the mapping, and its memory is there.
        (index < LINKS && is_there).then(|| unsafe { &*self.links.add(index) })
    }

    fn claim_link(&self, label: &str) -> Option<&'static LinkRow> {
        let me = std::process::id();
        let take = |from: u32| {
            let mut owners = self.header.link_owners.iter();
            owners.position(|owner| owner.compare_exchange(from, me, AcqRel, Relaxed).is_ok())
        };
        let index = take(0).or_else(|| {
            self.reclaim_links();
            take(0)
        })?;
        let Some(row) = self.link(index) else {
            self.header.link_owners[index].store(0, Release);
            return None;
        };
        row.numbers.iter().for_each(|number| number.store(0, Relaxed));
        write_text(&row.cache, label.as_bytes());
        row.claimed.store(since_boot(), Release);
        Some(row)
    }

    /// Links of dead processes become free, at most once a second.
    fn reclaim_links(&self) {
        let second = since_boot() / 1_000_000_000;
        if self.header.reclaimed_links.swap(second, Relaxed) == second {
            return;
        }
        for (index, owner) in self.header.link_owners.iter().enumerate() {
            let process = owner.load(Relaxed);
            // While it is this process's nobody else takes it.
            let mine = std::process::id();
            if process == 0 || is_alive(process) || owner.compare_exchange(process, mine, AcqRel, Relaxed).is_err() {
                continue;
            }
            if let Some(row) = self.link(index).filter(|row| row.claimed.swap(0, Acquire) != 0) {
                for number in (0..vitals::NUMBERS).filter(|&number| vitals::adds_up(number)) {
                    let counted = row.numbers[number].load(Relaxed);
                    self.header.ended_links[number].fetch_add(counted, Relaxed);
                }
            }
            owner.store(0, Release);
        }
    }

    /// What a row counted goes to the sums.
    fn settle(&self, index: usize) {
        let Some(row) = self.row(index) else { return };
        if row.claimed.load(Acquire) != 0 {
            for lane in &row.lanes {
                for (sum, count) in self.header.ended.iter().zip(&lane.counts) {
                    sum.fetch_add(count.load(Relaxed), Relaxed);
                }
            }
        }
        row.clear();
    }

    fn open(&self, index: usize) {
        self.owners[index].store(0, Release);
        self.header.lowest.fetch_min(index as u32, Relaxed);
    }

    fn free(&self, index: usize) {
        if index < ROWS {
            self.settle(index);
            self.open(index);
        }
    }
}

impl Header {
    /// Whether there was room for this process.
    fn enter(&self, me: u32) -> bool {
        let take = || self.processes.iter().any(|process| process.compare_exchange(0, me, AcqRel, Relaxed).is_ok());
        if take() {
            return true;
        }
        // Children that ended without a word. With that many alive, the search would only slow every fork down.
        if self.crowded.load(Relaxed) == 0 {
            for process in &self.processes {
                let found = process.load(Relaxed);
                if !is_alive(found) {
                    let _ = process.compare_exchange(found, 0, AcqRel, Relaxed);
                }
            }
        }
        take()
    }
}

/// Before a fork.
pub fn before_fork() {
    if let Some(board) = BOARD.get() {
        board.header.forks.fetch_add(1, Relaxed);
    }
}

/// In the child.
pub fn forked() {
    // The thread that was making it is not there any more.
    let _ = STATE.compare_exchange(BEING_MADE, NOT_MADE, Relaxed, Relaxed);
    let Some(header) = BOARD.get().map(|board| board.header) else { return };
    if !header.enter(std::process::id()) {
        header.crowded.store(1, Relaxed);
    }
    header.arrived.fetch_add(1, Release);
}

/// The process ends in an orderly way. The last one removes the file; in doubt it stays, for others to clear away.
pub fn leave() {
    let Some(Board { header, path, .. }) = BOARD.get() else { return };
    let me = std::process::id();
    for process in &header.processes {
        let _ = process.compare_exchange(me, 0, AcqRel, Relaxed);
    }
    let used = header.crowded.load(Relaxed) != 0
        || header.forks.load(Relaxed) != header.arrived.load(Acquire)
        || header
            .processes
            .iter()
            .map(|process| process.load(Acquire))
            .any(|process| process != 0 && is_alive(process));
    if !used {
        let _ = fs::remove_file(path);
    }
}

/// Files of this user whose processes are all gone. What a folder with thousands of files hides is not worth the time.
fn remove_leftovers(prefix: &str) {
    let Ok(folder) = fs::read_dir(FOLDER) else { return };
    for entry in folder.take(1000).flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            read::remove_if_left_over(&entry.path());
        }
    }
}

/// Asks for the memory of pages that are about to be used, so that its want is an error here and no SIGBUS later.
fn populate(start: *mut u8, size: usize) -> bool {
    // SAFETY: sysconf has no preconditions. The pages belong to the mapping of the board, also when the range is widened
    // to whole ones, as both ends of a mapping are; the advice changes no content.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096).max(1);
        let offset = start as usize % page;
        libc::madvise(start.wrapping_sub(offset).cast(), size + offset, libc::MADV_POPULATE_WRITE) == 0
    }
}

fn reserve(file: &File, size: usize) -> bool {
    // SAFETY: a descriptor of our own.
    unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size as libc::off_t) == 0 }
}

/// The size beyond which a file of this process cannot grow.
pub(crate) fn largest_file() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is our own.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

/// Also true for a process that belongs to somebody else.
fn is_alive(process: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let asked = unsafe { libc::kill(process as libc::pid_t, 0) };
    asked == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

/// Nanoseconds since boot.
fn since_boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is our own.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
