//! The file of a cache: made whole before it gets its name, so that nobody ever sees half a cache, and opened with
//! mistrust, since anybody may put anything into /dev/shm.

use super::store::{Constants, CONSTANTS, JOURNAL_LENGTH, LARGEST_SIZE, LAYOUT, MAGIC, SMALLEST_SIZE};
use super::writer::EMPTY_JOURNAL;
use super::{memory, sys, Error, Spec};
use crate::board;
use std::cell::Cell;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

const DIRECTORY: &str = "/dev/shm";
const PREFIX: &str = "reprise-";

/// The file for a name of a cache, or for an absolute path.
pub fn path(name: &str) -> Result<PathBuf, Error> {
    if name.starts_with('/') {
        return Ok(PathBuf::from(name));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let sound = (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed);
    sound.then(|| Path::new(DIRECTORY).join(format!("{PREFIX}{name}"))).ok_or_else(|| Error::Name(name.to_string()))
}

/// The name for a file.
pub fn name(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.strip_prefix(DIRECTORY).and_then(|rest| rest.strip_prefix('/')?.strip_prefix(PREFIX)) {
        Some(name) => name.to_string(),
        None => text.into_owned(),
    }
}

/// The caches of this user that have names.
pub fn list() -> Result<Vec<String>, Error> {
    let directory = Path::new(DIRECTORY);
    let entries = std::fs::read_dir(directory).map_err(|error| Error::Io(directory.into(), error))?;
    let mine = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let found = entry.metadata().ok()?;
        let text = entry.file_name().into_string().ok()?;
        let name = text.strip_prefix(PREFIX)?;
        (found.is_file() && found.uid() == sys::effective_user() && path(name).is_ok()).then(|| name.to_string())
    };
    let mut names: Vec<String> = entries.filter_map(mine).collect();
    names.sort();
    Ok(names)
}

pub fn remove(name: &str) -> Result<(), Error> {
    let path = path(name)?;
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Error::Missing(path.clone()),
        _ => Error::Io(path.clone(), error),
    };
    let found = std::fs::symlink_metadata(&path).map_err(failed)?;
    is_ours(&path, &found)?;
    std::fs::remove_file(&path).map_err(failed)
}

/// Whether a cache may be in it. Another link or another user's access would make it anybody's.
fn is_ours(path: &Path, found: &Metadata) -> Result<(), Error> {
    let problem = if found.is_symlink() {
        "it is a symbolic link"
    } else if !found.is_file() {
        "it is not a regular file"
    } else if found.uid() != sys::effective_user() {
        "it belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "others than its owner have access to it"
    } else if found.nlink() > 1 {
        "it has more than one name"
    } else {
        return Ok(());
    };
    Err(Error::NotOurs(path.into(), problem))
}

/// A file that is there, with a cache in it. `None` if there is none.
pub fn open(path: &Path) -> Result<Option<(File, Metadata, Constants)>, Error> {
    let failed = |error| Error::Io(path.into(), error);
    // O_NONBLOCK for what is not a file at all: a pipe would let us wait.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // The reason is better told by what is there.
        Err(error) => {
            let found = std::fs::symlink_metadata(path).map_err(failed)?;
            is_ours(path, &found)?;
            return Err(failed(error));
        }
    };
    let found = file.metadata().map_err(failed)?;
    if found.nlink() == 0 {
        return Ok(None); // removed while it was opened
    }
    is_ours(path, &found)?;
    let words = match words(&file) {
        Ok(words) => words,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Error::NoCache(path.into())),
        Err(error) => return Err(failed(error)),
    };
    match words {
        [MAGIC, layout, ..] if layout != LAYOUT => Err(Error::Layout(path.into(), layout)),
        [MAGIC, ..] => match Constants::from_words(&words) {
            Some(constants) if found.len() == constants.size && is_size(constants.size) => {
                Ok(Some((file, found, constants)))
            }
            _ => Err(Error::Damaged(path.into())),
        },
        _ => Err(Error::NoCache(path.into())),
    }
}

/// What the file begins with.
fn words(file: &File) -> io::Result<[u64; CONSTANTS]> {
    let mut bytes = [0; CONSTANTS * 8];
    file.read_exact_at(&mut bytes, 0)?;
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte]));
    Ok(std::array::from_fn(word))
}

/// `None` if no cache is in it.
pub fn constants(file: &File) -> io::Result<Option<Constants>> {
    words(file).map(|words| Constants::from_words(&words))
}

/// Tells this boot from every other one; 0 if it is not known.
fn boot() -> u64 {
    // Nobody waits for another thread, which a forked child may not have.
    static BOOT: AtomicU64 = AtomicU64::new(0);
    if BOOT.load(Relaxed) == 0 {
        BOOT.store(std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| xxh3_64(&id)), Relaxed);
    }
    BOOT.load(Relaxed)
}

/// Where one of the two is not known, as in a chroot, the file is taken for one of this boot.
pub fn is_of_another_boot(constants: &Constants) -> bool {
    let known = boot() != 0 && constants.boot != 0;
    known && constants.boot != boot()
}

/// Whether `path` still names the file that was opened.
pub fn is_current(path: &Path, opened: &Metadata) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino()))
}

pub fn is_size(size: u64) -> bool {
    (SMALLEST_SIZE..=LARGEST_SIZE).contains(&size) && size.is_multiple_of(4096)
}

/// Marks the cache as used by this process, and those it forks, until all of them have ended. Closing the file is not enough
/// once it is mapped.
pub fn hold(file: &File) -> io::Result<()> {
    sys::flock(file, libc::LOCK_SH)
}

/// Removes the file if no process uses the cache, and says whether that was so.
pub fn remove_unused(path: &Path, file: &File, opened: &Metadata) -> bool {
    let unused = sys::flock(file, libc::LOCK_EX).is_ok();
    if unused && is_current(path, opened) {
        let _ = std::fs::remove_file(path);
    }
    unused
}

/// Makes the file with an empty cache in it, unless its name is taken: then it is `None`. It is in use
/// ([`hold`]) before others can see it.
pub fn create(path: &Path, spec: &Spec) -> Result<Option<File>, Error> {
    if !is_size(spec.size) {
        return Err(Error::Size(spec.size));
    }
    // The system would end the process with SIGXFSZ.
    let (largest, missing) = (board::largest_file(), Cell::new(u64::MAX));
    if spec.size > largest {
        return Err(Error::FileLimit { path: path.into(), asked: spec.size, limit: largest });
    }
    let made = nameless(path, |file| {
        file.set_permissions(Permissions::from_mode(0o600))?;
        if sys::is_in_memory(file) {
            if let Some(available) = memory::available().filter(|&available| available < spec.size) {
                missing.set(available);
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
        }
        sys::allocate(file, spec.size)?;
        fill(file, spec)?;
        hold(file)
    });
    match made {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(_) if missing.get() != u64::MAX => {
            Err(Error::NoMemory { path: path.into(), asked: spec.size, available: missing.get() })
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Err(Error::NoRoom(path.into(), spec.size)),
        Err(error) => Err(Error::Io(path.into(), error)),
    }
}

/// A file that gets its name when `prepare` is through with it.
fn nameless(path: &Path, prepare: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(directory) {
        prepare(&file)?;
        match sys::link(&file, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {} // no /proc, perhaps
            done => return done.map(|()| file),
        }
    }
    // A name of its own until it is ready, unless the process is killed right now: then that one stays.
    let number = RandomState::new().hash_one(path);
    let temporary = directory.join(format!(".{PREFIX}{number:016x}"));
    let file = options.create_new(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(&temporary)?;
    let done = prepare(&file).and_then(|()| sys::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done.map(|()| file)
}

fn fill(file: &File, spec: &Spec) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let random = RandomState::new();
    let constants = Constants {
        size: spec.size,
        created: now.as_secs() as i64,
        keep: spec.keep,
        boot: boot(),
        secret: std::array::from_fn(|word| random.hash_one(word)),
    };
    // All else begins with 0, as the file does.
    let bytes: Vec<u8> = constants.to_words().into_iter().flat_map(u64::to_ne_bytes).collect();
    file.write_all_at(&EMPTY_JOURNAL.to_ne_bytes(), JOURNAL_LENGTH as u64 * 8)?;
    file.write_all_at(&bytes, 0)
}
