//! The counts of a whole program, all its processes and contexts together, in a file mapped shared: with
//! `REPRISE_STATS=FILE` a test or an operator sees from outside that the takeover happened and what it does.
//!
//! The file is opened before `main`, so it is there after a fork, a chroot or a change of user, and what a
//! killed process had counted stays. Its layout: `uint32_t version` (1), `uint32_t size` in bytes, then one `uint64_t`
//! each for the contexts taken over, the sessions cached now, and the counts in the order of [`Count`].

use crate::board;
use crate::config;
use crate::context::counters::Count;
use once_cell::race::OnceBox;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

const VERSION: u32 = 1;

#[repr(C)]
struct Totals {
    version: AtomicU32,
    size: AtomicU32,
    contexts: AtomicU64,
    sessions: AtomicU64,
    counts: [AtomicU64; Count::ALL],
}

static TOTALS: OnceBox<&'static Totals> = OnceBox::new();
static COMPLAINT: OnceBox<String> = OnceBox::new();

/// Opens and maps the file that the environment names, if it names one.
pub fn open() {
    let Some(path) = &config::get().stats else { return };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match file.and_then(|file| map(&file)) {
        Ok(totals) => {
            totals.version.store(VERSION, Relaxed);
            totals.size.store(size_of::<Totals>() as u32, Relaxed);
            let _ = TOTALS.set(Box::new(totals));
        }
        Err(error) => {
            let complaint = format!("REPRISE_STATS={}: {error}: nothing is counted there", path.display());
            let _ = COMPLAINT.set(Box::new(complaint));
        }
    }
}

/// What went wrong in `open`, to be said where it matters: programs without TLS are not to hear of it.
pub fn complaint() -> Option<&'static String> {
    COMPLAINT.get()
}

/// Has all of its bytes taken now: on a full file system a hole in it would be a SIGBUS when it is first written to.
fn allocate(file: &File) -> std::io::Result<()> {
    const SIZE: usize = size_of::<Totals>();
    // Beyond this limit the system would send SIGXFSZ.
    if board::largest_file() < SIZE as u64 {
        return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
    }
    // SAFETY: a descriptor of our own.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, SIZE as libc::off_t) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

fn map(file: &File) -> std::io::Result<&'static Totals> {
    // A file that somebody named by mistake stays as it is.
    let found = file.metadata()?;
    let mut version = [0; 4];
    let ours = found.len() == size_of::<Totals>() as u64
        && file.read_exact_at(&mut version, 0).is_ok()
        && matches!(u32::from_ne_bytes(version), 0 | VERSION);
    if !found.is_file() || !(found.len() == 0 || ours) {
        return Err(std::io::Error::other("it is there and no file of counters"));
    }
    allocate(file)?;
    // SAFETY: the mapping is as long as the file was made, is never unmapped, and is only accessed atomically. A
    // file that somebody shortens meanwhile ends the process; it is the operator's own.
    unsafe {
        let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let address = libc::mmap(std::ptr::null_mut(), size_of::<Totals>(), read_write, shared, file.as_raw_fd(), 0);
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(&*address.cast::<Totals>())
    }
}

pub fn context_taken_over() {
    if let Some(totals) = TOTALS.get() {
        totals.contexts.fetch_add(1, Relaxed);
    }
}

/// How many more (or fewer) sessions are cached than before.
pub fn sessions(difference: i64) {
    if let Some(totals) = TOTALS.get() {
        totals.sessions.fetch_add(difference as u64, Relaxed);
    }
}

pub fn count(count: Count) {
    if let Some(totals) = TOTALS.get() {
        totals.counts[count as usize].fetch_add(1, Relaxed);
    }
}
