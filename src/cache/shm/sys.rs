//! What the kernel does for the cache: mapping its file, the futex and the seats of its lock, and the calls on files that
//! `std` does not have. Everything unsafe about shared memory is here.

use std::ffi::{c_long, c_void, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// `file` mapped shared, which is `words` long. Never unmapped: a forked child or a late destructor may use it.
pub fn map(file: &File, words: usize) -> Result<&'static [AtomicU64]> {
    // SAFETY: the kernel chooses an address where nothing else is. The file is as long as the mapping (the caller has
    // allocated it or asked), all access is atomic, and nobody unmaps it. Where the file is shortened meanwhile, other
    // memory is put in its place (`bus`).
    unsafe {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let address = libc::mmap(ptr::null_mut(), words * 8, access, shared, file.as_raw_fd(), 0);
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // Keys of sessions have no place in a core file. Kernels that cannot do it map all the same.
        libc::madvise(address, words * 8, libc::MADV_DONTDUMP);
        Ok(std::slice::from_raw_parts(address.cast::<AtomicU64>(), words))
    }
}

/// Puts another opening of the same file in the place of the one that is mapped, whose locks go if nobody else has it.
pub fn remap(file: &File, words: &'static [AtomicU64]) -> Result<()> {
    // SAFETY: as in `map`, and the same memory: who reads or writes there meanwhile does not notice.
    unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        let place = words.as_ptr().cast_mut().cast();
        let address = libc::mmap(place, size_of_val(words), access, flags, file.as_raw_fd(), 0);
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        libc::madvise(address, size_of_val(words), libc::MADV_DONTDUMP);
    }
    Ok(())
}

/// Puts empty memory of this process's own in the place of the mapping. A signal handler may do that.
pub fn forget(words: &'static [AtomicU64]) -> Result<()> {
    // SAFETY: as in `remap`: who reads or writes there meanwhile finds zeros, which nobody believes.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let (place, access) = (words.as_ptr().cast_mut().cast(), libc::PROT_READ | libc::PROT_WRITE);
        match libc::mmap(place, size_of_val(words), access, flags, -1, 0) {
            libc::MAP_FAILED => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Gives up a mapping that nobody has seen.
pub fn unmap(words: &'static [AtomicU64]) {
    // SAFETY: the caller made it and has handed it to nobody.
    unsafe { libc::munmap(words.as_ptr().cast_mut().cast(), size_of_val(words)) };
}

fn result(returned: i32) -> Result<()> {
    match returned {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes the whole file have its memory now: later there would be a SIGBUS instead of an error.
pub fn allocate(file: &File, bytes: u64) -> Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain numbers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        error => Err(Error::from_raw_os_error(error)),
    }
}

/// flock(2) without waiting.
pub fn flock(file: &File, operation: i32) -> Result<()> {
    // SAFETY: plain numbers.
    result(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) })
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::from_raw_os_error(libc::EINVAL))
}

/// Gives a nameless file its name, unless that is taken.
pub fn link(file: &File, path: &Path) -> Result<()> {
    let from = c_path(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))?;
    let to = c_path(path)?;
    // SAFETY: both are strings that end with NUL and live until the call returns.
    let linked =
        unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    result(linked)
}

/// Renames a file, unless the new name is taken.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: as in `link`. The system call, since not every libc has the function.
    let renamed =
        unsafe { libc::syscall(libc::SYS_renameat2, here, from.as_ptr(), here, to.as_ptr(), libc::RENAME_NOREPLACE) };
    result(renamed as i32)
}

pub fn effective_user() -> u32 {
    // SAFETY: it only asks.
    unsafe { libc::geteuid() }
}

/// The half of a word that the kernel sees as a futex: the low one.
fn futex(word: &AtomicU64) -> *const u32 {
    word.as_ptr().cast::<u32>().wrapping_add(usize::from(cfg!(target_endian = "big")))
}

/// Sleeps while the low half of `word` is that of `value`, at most so long; may wake for no reason. Processes share the word.
pub fn wait(word: &AtomicU64, value: u64, most: Duration) {
    let most = libc::timespec { tv_sec: most.as_secs() as libc::time_t, tv_nsec: most.subsec_nanos() as c_long };
    // SAFETY: the word and the time live until the call returns.
    unsafe { libc::syscall(libc::SYS_futex, futex(word), libc::FUTEX_WAIT, value as u32, &most) };
}

/// Wakes one that waits.
pub fn wake(word: &AtomicU64) {
    // SAFETY: the kernel looks for sleepers at this address, and does not touch what is there.
    unsafe { libc::syscall(libc::SYS_futex, futex(word), libc::FUTEX_WAKE, 1) };
}

// --- locks of the kernel's on single bytes ------------------------------------------------------------------------

fn byte(kind: i32, at: u64) -> libc::flock {
    // SAFETY: a struct of integers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = at as libc::off_t;
    lock.l_len = 1;
    lock
}

/// Locks the byte `at`, which need not exist, for this opening of the file: `false` if another opening has it.
pub fn lock_byte(file: &File, at: u64) -> Result<bool> {
    let lock = byte(libc::F_WRLCK, at);
    // SAFETY: the struct lives until the call returns.
    match result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether another opening of the file has the byte `at` locked. The descriptor may be somebody else's by now.
pub fn is_byte_locked(file: i32, at: u64) -> Result<bool> {
    let mut lock = byte(libc::F_WRLCK, at);
    // SAFETY: the struct lives until the call returns. It only asks, of whatever file it is.
    result(unsafe { libc::fcntl(file, libc::F_OFD_GETLK, &mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Device and inode of a descriptor, if it is open.
pub fn identity(file: i32) -> Option<(u64, u64)> {
    // SAFETY: a struct of integers, which lives until the call returns.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        (libc::fstat(file, &mut found) == 0).then_some((found.st_dev, found.st_ino))
    }
}

pub fn close(file: i32) {
    // SAFETY: the caller has kept it open and uses it no more.
    unsafe { libc::close(file) };
}

/// Keeps this opening of the file until the process ends or execs, whatever descriptors are closed; forked children do not
/// have it. What locks it holds are held as long. The result is for [`let_go`].
pub fn keep_open(file: &File) -> Result<usize> {
    // SAFETY: a new mapping at a place of the kernel's choice, which nobody reads or writes.
    unsafe {
        let address = libc::mmap(ptr::null_mut(), PAGE, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        match libc::madvise(address, PAGE, libc::MADV_DONTFORK) {
            0 => Ok(address as usize),
            _ => {
                let error = Error::last_os_error();
                libc::munmap(address, PAGE);
                Err(error)
            }
        }
    }
}

/// Ends what [`keep_open`] has begun in this process.
pub fn let_go(kept: usize) {
    // SAFETY: a mapping of `keep_open`'s, which nobody reads or writes.
    unsafe { libc::munmap(kept as *mut c_void, PAGE) };
}

const PAGE: usize = 4096;

/// Numbers that are 0 again in each process that is forked from this one, also by a bare clone(2) where the kernel can do that.
/// Never unmapped.
pub fn wiped_on_fork() -> Result<&'static [AtomicU64; 2]> {
    // SAFETY: new memory of zeros, used for these numbers alone.
    unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let address = libc::mmap(ptr::null_mut(), PAGE, access, flags, -1, 0);
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        libc::madvise(address, PAGE, libc::MADV_WIPEONFORK);
        Ok(&*address.cast::<[AtomicU64; 2]>())
    }
}

/// Whether the file lies in memory, and not on a disk.
pub fn is_in_memory(file: &File) -> bool {
    const RAMFS: u32 = 0x8584_58f6;
    // SAFETY: a struct of integers, which lives until the call returns.
    unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        libc::fstatfs(file.as_raw_fd(), &mut found) == 0
            && [libc::TMPFS_MAGIC as u32, RAMFS].contains(&(found.f_type as u32))
    }
}
