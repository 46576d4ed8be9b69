//! Who the owner of the lock is, and whether it lives, in words of the kernel's that are good in every PID namespace: each
//! process that writes has a *seat*, a number that goes with a lock of the kernel's on a byte of the file. The kernel
//! frees it when the process is gone, and not before.
//!
//! A lock of this kind belongs to an opening of the file. Each process opens the file for itself and keeps that opening by a
//! mapping which is not inherited, so a forked child has neither its parent's seat nor the power to keep or free it, and a
//! program that closes all descriptors does not lose it.
//!
//! A process that has dropped its rights may be unable to open the file once more for a child. That child then sits on the
//! *family's* seat, which belongs to the opening that all of them have inherited: it is free when all of them are gone. So
//! such a process, killed in the middle of a change, keeps others from writing until its family ends.

use super::sys;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{Error, Result};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// A number from 1 on.
pub type Seat = u16;

/// Far beyond the end of the largest file, so that it is in nobody's way.
const FIRST_BYTE: u64 = 1 << 40;

fn random() -> Seat {
    RandomState::new().hash_one(0) as Seat
}

pub struct Seats {
    path: PathBuf,
    /// The lock's word, whose low bits are the seat of its owner.
    lock: &'static AtomicU64,
    /// Device and inode.
    file: (u64, u64),
    /// The opening that is mapped, to ask about seats with and to open the file by; negative once it was given up.
    descriptor: AtomicI32,
    /// The seat of that opening, 0 once it was given up.
    family: AtomicU64,
    /// This process's seat, 0 if it has none yet; and what keeps its opening, 0 for the family's.
    own: &'static [AtomicU64; 2],
}

fn at(seat: u64) -> u64 {
    FIRST_BYTE + seat
}

/// A seat that nobody has, the first from `first` on. Not the one that owns the lock: if that is free, its owner died with
/// the lock, and whoever sat there would keep everybody from taking it.
fn take(file: &File, first: Seat, lock: &AtomicU64) -> Result<Seat> {
    for step in 0..=Seat::MAX {
        let seat = first.wrapping_add(step);
        let is_owner = || lock.load(SeqCst) as Seat == seat;
        if seat != 0 && !is_owner() && sys::lock_byte(file, at(seat.into()))? {
            return Ok(seat);
        }
    }
    Err(Error::from_raw_os_error(libc::EAGAIN))
}

impl Seats {
    /// Of the opening that is mapped.
    pub fn new(file: File, path: &Path, identity: (u64, u64), lock: &'static AtomicU64) -> Result<Seats> {
        let family = AtomicU64::new(take(&file, random(), lock)?.into());
        let own = sys::wiped_on_fork()?;
        let descriptor = AtomicI32::new(file.into_raw_fd());
        let seats = Seats { path: path.into(), lock, file: identity, descriptor, family, own };
        // Later the program may have forbidden itself to open files.
        let _ = seats.sit_down();
        Ok(seats)
    }

    /// The seat of this process. `None` if it can have none.
    pub fn own(&self) -> Option<Seat> {
        match self.own[0].load(Relaxed) {
            0 => self.sit_down(),
            seat => Some(seat as Seat),
        }
    }

    #[cold]
    fn sit_down(&self) -> Option<Seat> {
        let alone = || {
            let file = self.open_again()?;
            let seat = take(&file, random(), self.lock).ok()?;
            Some((seat, sys::keep_open(&file).ok()?))
        };
        let (seat, kept) = match alone() {
            Some((seat, kept)) => (seat.into(), kept),
            None => (self.family.load(SeqCst), 0),
        };
        if seat == 0 {
            return None;
        }
        match self.own[0].compare_exchange(0, seat, SeqCst, SeqCst) {
            Ok(_) => self.own[1].store(kept as u64, SeqCst),
            Err(others) => {
                // Another thread was faster.
                if kept != 0 {
                    sys::let_go(kept);
                }
                return Some(others as Seat);
            }
        }
        Some(seat as Seat)
    }

    /// This is a process that was just forked: it sits down while it still may.
    pub fn forked(&self) {
        self.own.iter().for_each(|own| own.store(0, Relaxed));
        let _ = self.sit_down();
    }

    /// This process has nothing to do with the file any more.
    pub fn stand_up(&self) {
        if let kept @ 1.. = self.own[1].swap(0, SeqCst) {
            sys::let_go(kept as usize);
        }
    }

    /// Gives up the opening that is mapped, and says whether that could be done.
    pub fn give_up_family(&self) -> bool {
        let family = self.family.load(SeqCst);
        // Somebody may be writing on that seat.
        if family != 0 && self.own[0].load(SeqCst) == family {
            return false;
        }
        self.family.store(0, SeqCst);
        let descriptor = self.descriptor.swap(-1, SeqCst);
        if descriptor >= 0 && sys::identity(descriptor) == Some(self.file) {
            sys::close(descriptor);
        }
        true
    }

    /// Whether nobody has this seat any more. `false` if the kernel does not say.
    pub fn is_free(&self, seat: Seat) -> bool {
        // Of an opening of its own the kernel would say that it is free.
        if [&self.own[0], &self.family].iter().any(|mine| mine.load(SeqCst) == u64::from(seat)) {
            return false;
        }
        let descriptor = self.descriptor.load(Relaxed);
        // The program may have closed it, and have another file there. It never comes back to this file.
        let is_ours = || descriptor >= 0 && sys::identity(descriptor) == Some(self.file);
        if is_ours() {
            let locked = sys::is_byte_locked(descriptor, at(seat.into()));
            if is_ours() {
                return matches!(locked, Ok(false));
            }
        }
        let Some(file) = self.open_again() else { return false };
        let descriptor = file.into_raw_fd();
        let locked = sys::is_byte_locked(descriptor, at(seat.into()));
        sys::close(descriptor);
        matches!(locked, Ok(false))
    }

    /// The same file, opened anew.
    fn open_again(&self) -> Option<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let opened = |options: &OpenOptions, path: &Path| {
            use std::os::fd::AsRawFd;
            let file = options.open(path).ok()?;
            (sys::identity(file.as_raw_fd()) == Some(self.file)).then_some(file)
        };
        let descriptor = self.descriptor.load(Relaxed);
        options.custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
        let is_ours = descriptor >= 0 && sys::identity(descriptor) == Some(self.file);
        let by_descriptor = is_ours.then(|| opened(&options, Path::new(&format!("/proc/self/fd/{descriptor}"))));
        by_descriptor.flatten().or_else(|| {
            options.custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOFOLLOW);
            opened(&options, &self.path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seat whose owner died with the lock stays free, so that others see it.
    #[test]
    fn nobody_sits_where_a_dead_owner_sat() {
        let path = std::env::temp_dir().join(format!("reprise-test-seat-{}", std::process::id()));
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let (one, other, lock) = (open(), open(), AtomicU64::new(0));
        assert_eq!(take(&one, 7, &lock).unwrap(), 7);
        assert_eq!(take(&other, 7, &lock).unwrap(), 8, "taken");
        drop((one, other));
        lock.store(5 << 40 | 7, SeqCst);
        assert_eq!(take(&open(), 7, &lock).unwrap(), 8, "the lock's");
        assert_eq!(take(&open(), Seat::MAX, &lock).unwrap(), Seat::MAX);
        std::fs::remove_file(path).unwrap();
    }
}
