//! What the kernel does for the cache: mapping its file, the futex under its lock, and the calls on files that `std`
//! does not have. Everything unsafe about shared memory is here.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_long, c_void, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{compiler_fence, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// `file` mapped shared, which is `words` long, and the word at `futex` as the futex it is. The rest of that word and
/// the futex must not be reached through the slice. Never unmapped: a forked child or a late destructor may use it.
pub fn map(file: &File, words: usize, futex: usize) -> Result<(&'static [AtomicU64], &'static AtomicU32)> {
    assert!(futex < words);
    // SAFETY: the kernel chooses an address where nothing else is. The file is as long as the mapping (the caller has
    // allocated it or asked), all access is atomic, and nobody unmaps it. A file that is shortened meanwhile ends
    // the process; only its own user can do that.
    unsafe {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let address = libc::mmap(ptr::null_mut(), words * 8, access, shared, file.as_raw_fd(), 0);
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // Keys of sessions have no place in a core file. Kernels that cannot do it map all the same.
        libc::madvise(address, words * 8, libc::MADV_DONTDUMP);
        let first = address.cast::<AtomicU64>();
        Ok((std::slice::from_raw_parts(first, words), &*first.add(futex).cast::<AtomicU32>()))
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

/// The calling thread, as futexes name it. Asked each time: a fork changes it.
pub fn thread() -> u32 {
    // SAFETY: it only asks.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Whether no thread has this number in our PID namespace. `false` if the kernel will not say.
pub fn is_gone(thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    let sent = unsafe { libc::syscall(libc::SYS_tkill, thread as libc::pid_t, 0) };
    sent == -1 && Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Sleeps while `word` has this value, at most so long; may wake for no reason. Processes share the word.
pub fn wait(word: &AtomicU32, value: u32, most: Duration) {
    let most = libc::timespec { tv_sec: most.as_secs() as libc::time_t, tv_nsec: most.subsec_nanos() as c_long };
    // SAFETY: the word and the time live until the call returns.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &most) };
}

/// Wakes one that waits.
pub fn wake(word: &AtomicU32) {
    // SAFETY: the kernel looks for sleepers at this address, and does not touch what is there.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// struct robust_list_head of linux/futex.h
#[repr(C)]
struct Robust {
    list: *mut c_void,
    offset: c_long,
    pending: *mut c_void,
}

thread_local! {
    /// Where the kernel looks when this thread dies, as it was found by the thread of this number.
    static FOUND: Cell<(u32, *mut Robust)> = const { Cell::new((0, ptr::null_mut())) };
    /// For threads of a libc that has not registered any.
    static OWN: UnsafeCell<Robust> =
        const { UnsafeCell::new(Robust { list: ptr::null_mut(), offset: 0, pending: ptr::null_mut() }) };
}

fn robust(thread: u32) -> *mut Robust {
    let (owner, found) = FOUND.get();
    if owner == thread {
        return found;
    }
    let mut head: *mut Robust = ptr::null_mut();
    let mut length = 0usize;
    // SAFETY: the kernel writes both. What it names was registered by this thread's libc (or by us) and lives as long
    // as the thread.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &mut head, &mut length) };
    if head.is_null() {
        // SAFETY: it is this thread's alone, an empty list is a circle, and the kernel is told its size. It lies
        // in memory of the thread, which is there until the kernel has looked.
        head = OWN.with(|own| unsafe {
            let own = own.get();
            (*own).list = own.cast();
            libc::syscall(libc::SYS_set_robust_list, own, size_of::<Robust>());
            own
        });
    }
    FOUND.set((thread, head));
    head
}

/// While it lives, the death of this thread marks the futex and wakes a waiter, if the futex then names the
/// thread as its owner: what a robust mutex of the libc does while it is being taken. Unlike such a mutex it
/// follows no pointer in shared memory, where anything may be written.
pub struct Deathbed {
    robust: *mut Robust,
    before: *mut c_void,
}

impl Deathbed {
    /// `None` if this thread, interrupted by a signal, is already dealing with this futex.
    pub fn new(thread: u32, futex: &AtomicU32) -> Option<Deathbed> {
        let robust = robust(thread);
        // SAFETY: `robust` is this thread's, see there. The kernel adds the offset to find the futex.
        unsafe {
            let entry = futex.as_ptr().cast::<c_void>().wrapping_byte_offset(-((*robust).offset as isize));
            let before = ptr::read_volatile(&raw const (*robust).pending);
            if before == entry {
                return None;
            }
            ptr::write_volatile(&raw mut (*robust).pending, entry);
            compiler_fence(SeqCst);
            Some(Deathbed { robust, before })
        }
    }
}

impl Drop for Deathbed {
    fn drop(&mut self) {
        compiler_fence(SeqCst);
        // SAFETY: as in `new`; a `Deathbed` stays in its thread, since it has pointers.
        unsafe { ptr::write_volatile(&raw mut (*self.robust).pending, self.before) };
    }
}
