//! Reading the boards of other processes: whoever is shown is alive, counts of the dead are summed up.

use super::{
    is_alive, namespace, Count, Header, LinkRow, Row, FOLDER, LANES, LAYOUT, LINKS, LINKS_AT, MAGIC, OWNERS_AT, PREFIX,
    ROWS, ROWS_AT, SIZE,
};
use crate::cache::redis::vitals::{adds_up, NUMBERS};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::mem::offset_of;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One board: a process that made it and those forked from it.
#[derive(Debug)]
pub struct Family {
    pub path: PathBuf,
    /// The process that made it.
    pub creator: u32,
    /// What contexts and processes counted that are not there any more, in the order of [`Count`].
    pub ended: [u64; Count::ALL],
    pub rows: Vec<Entry>,
    /// One for each process and URL, as far as they can be told apart.
    pub links: Vec<Link>,
    /// What links counted whose processes are not there any more, in the order of `Link::numbers`.
    pub ended_links: [u64; NUMBERS],
}

/// The link of a process to a Redis.
#[derive(Debug, Clone)]
pub struct Link {
    pub process: u32,
    pub cache: String,
    /// As in [`Vitals`](crate::cache::redis::vitals::Vitals::numbers).
    pub numbers: [u64; NUMBERS],
}

/// One context in one process.
#[derive(Debug, Clone)]
pub struct Entry {
    pub process: u32,
    /// The same for a context and its copies in forked processes.
    pub number: u32,
    /// Seconds since the epoch.
    pub created: u64,
    pub semantics: u32,
    pub libssl: String,
    pub cache: String,
    /// In the order of [`Count`].
    pub counts: [u64; Count::ALL],
    pub sessions: u64,
}

/// All boards that this user may read, and why others could not be read. Boards whose processes are all gone are removed.
pub fn all() -> (Vec<Family>, Vec<String>) {
    let (mut families, mut problems) = (Vec::new(), Vec::new());
    let mut processes = Processes::default();
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) || remove_if_left_over(&path) {
            continue;
        }
        match family(&path, &mut processes) {
            Ok(family) => families.push(family),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    families.sort_by_key(|family| family.creator);
    (families, problems)
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn of(path: &Path, most: usize) -> io::Result<Bytes> {
        let mut bytes = Vec::new();
        open(path)?.take(most as u64).read_to_end(&mut bytes)?;
        Ok(Bytes(bytes))
    }

    /// What is not there reads as 0, as a hole of the file does.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }

    fn text(&self, at: usize, size: usize) -> String {
        let bytes = self.0.get(at..at + size).unwrap_or_default();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).chars().filter(|c| !c.is_control()).collect()
    }

    fn owner(&self, index: usize) -> u32 {
        self.u32(OWNERS_AT + 4 * index)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn family(path: &Path, processes: &mut Processes) -> io::Result<Family> {
    let bytes = Bytes::of(path, SIZE)?;
    let (magic, layout) = (bytes.u64(offset_of!(Header, magic)), bytes.u32(offset_of!(Header, layout)));
    if magic != MAGIC {
        return Err(io::ErrorKind::NotFound.into()); // being made, or a shared cache with such a name
    }
    let sizes = (bytes.u32(offset_of!(Header, counts)) as usize, bytes.u32(offset_of!(Header, row_size)) as usize);
    let vitals = bytes.u32(offset_of!(Header, vitals)) as usize;
    if layout != LAYOUT || sizes != (Count::ALL, size_of::<Row>()) || vitals != NUMBERS {
        return Err(io::Error::other(format!(
            "its program runs with another version of Reprise (layout {layout}, this command reads {LAYOUT}): \
             use the `reprise` command of that version, or restart the program"
        )));
    }
    let mut family = Family {
        path: path.to_owned(),
        creator: bytes.u32(offset_of!(Header, creator)),
        ended: std::array::from_fn(|i| bytes.u64(offset_of!(Header, ended) + 8 * i)),
        rows: Vec::new(),
        links: Vec::new(),
        ended_links: std::array::from_fn(|i| bytes.u64(offset_of!(Header, ended_links) + 8 * i)),
    };
    let namespace_here = is_namespace_here(&bytes);
    for index in 0..ROWS {
        let at = ROWS_AT + index * size_of::<Row>();
        let (process, claimed) = (bytes.owner(index), bytes.u64(at + offset_of!(Row, claimed)));
        if process == 0 || claimed == 0 {
            continue;
        }
        let entry = entry(&bytes, at, process);
        // A process id of another namespace cannot be judged here.
        if !namespace_here || processes.uses(process, claimed, path) {
            family.rows.push(entry);
        } else {
            family.ended.iter_mut().zip(entry.counts).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        }
    }
    for index in 0..LINKS {
        let at = LINKS_AT + index * size_of::<LinkRow>();
        let process = bytes.u32(offset_of!(Header, link_owners) + 4 * index);
        let claimed = bytes.u64(at + offset_of!(LinkRow, claimed));
        if process == 0 || claimed == 0 {
            continue;
        }
        let numbers = std::array::from_fn(|i| bytes.u64(at + offset_of!(LinkRow, numbers) + 8 * i));
        if !namespace_here || processes.uses(process, claimed, path) {
            let cache = bytes.text(at + offset_of!(LinkRow, cache), size_of::<super::Label>());
            family.enter(Link { process, cache, numbers });
        } else {
            add(&mut family.ended_links, &numbers, adds_up);
        }
    }
    Ok(family)
}

impl Family {
    /// URLs that differ only in what is not shown are one.
    fn enter(&mut self, link: Link) {
        let same = |other: &&mut Link| (other.process, &other.cache) == (link.process, &link.cache);
        match self.links.iter_mut().find(same) {
            Some(other) => add(&mut other.numbers, &link.numbers, |_| true),
            None => self.links.push(link),
        }
    }
}

fn add(sums: &mut [u64; NUMBERS], numbers: &[u64; NUMBERS], which: fn(usize) -> bool) {
    let chosen = sums.iter_mut().zip(numbers).enumerate().filter(|(at, _)| which(*at));
    chosen.for_each(|(_, (sum, &number))| *sum = sum.wrapping_add(number));
}

fn entry(bytes: &Bytes, at: usize, process: u32) -> Entry {
    let lane = |lane: usize| at + offset_of!(Row, lanes) + lane * size_of::<super::Lane>();
    let sum = |word: usize| (0..LANES).fold(0u64, |sum, i| sum.wrapping_add(bytes.u64(lane(i) + 8 * word)));
    let counts: [u64; Count::ALL] = std::array::from_fn(sum);
    let left = [
        Count::Replaced,
        Count::Evicted,
        Count::Expired,
        Count::Flushed,
        Count::Removed,
        Count::Rejected,
        Count::Taken,
    ];
    let came = bytes
        .u64(at + offset_of!(Row, inherited))
        .wrapping_add(counts[Count::Stored as usize])
        .wrapping_add(sum(Count::ALL));
    let sessions = left.iter().fold(came, |sum, &why| sum.wrapping_sub(counts[why as usize]));
    Entry {
        process,
        number: bytes.u32(at + offset_of!(Row, number)),
        created: bytes.u64(at + offset_of!(Row, created)),
        semantics: bytes.u32(at + offset_of!(Row, semantics)),
        libssl: bytes.text(at + offset_of!(Row, libssl), 64),
        cache: bytes.text(at + offset_of!(Row, cache), size_of::<super::Label>()),
        counts,
        sessions: u64::try_from(sessions as i64).unwrap_or(0), // it may be read between two counts
    }
}

fn is_namespace_here(bytes: &Bytes) -> bool {
    let theirs = bytes.u64(offset_of!(Header, namespace));
    theirs == 0 || theirs == namespace()
}

/// Removes a board that nobody uses any more; whether it did. One of another layout or namespace is left alone.
pub(super) fn remove_if_left_over(path: &Path) -> bool {
    let creator = path.to_str().and_then(|path| path.rsplit('-').nth(1)?.parse().ok());
    if creator.is_none_or(is_alive) {
        return false;
    }
    let Ok(bytes) = Bytes::of(path, LINKS_AT) else { return false };
    let magic = bytes.u64(offset_of!(Header, magic));
    // With no magic its maker was killed before it was a board.
    if magic != 0 {
        let known = magic == MAGIC && bytes.u32(offset_of!(Header, layout)) == LAYOUT && is_namespace_here(&bytes);
        let entered = (0..super::PROCESSES).map(|i| bytes.u32(offset_of!(Header, processes) + 4 * i));
        let links = (0..LINKS).map(|i| bytes.u32(offset_of!(Header, link_owners) + 4 * i));
        let mut users = entered.chain((0..ROWS).map(|index| bytes.owner(index))).chain(links);
        if !known || users.any(|process| process != 0 && is_alive(process)) {
            return false;
        }
        // A forked child may not have entered itself yet. After a fork that failed, nobody has the file mapped.
        if bytes.u32(offset_of!(Header, forks)) != bytes.u32(offset_of!(Header, arrived)) && is_mapped(path) {
            return false;
        }
    }
    fs::remove_file(path).is_ok()
}

/// Whether a process has a file mapped, as far as this user may know.
fn is_mapped(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut maps = processes.filter_map(|process| fs::read_to_string(process.path().join("maps")).ok());
    maps.any(|maps| maps.contains(name))
}

/// What is known of the processes, asked once.
#[derive(Default)]
struct Processes(HashMap<u32, (Option<u64>, Option<String>)>);

impl Processes {
    /// Whether the process that has a row since `claimed` is still there: not another one with its id, and not the same with
    /// another program since.
    fn uses(&mut self, process: u32, claimed: u64, path: &Path) -> bool {
        let (started, maps) = self
            .0
            .entry(process)
            .or_insert_with(|| (started(process), fs::read_to_string(format!("/proc/{process}/maps")).ok()));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        is_alive(process)
            && started.is_none_or(|started| started <= claimed)
            && maps.as_ref().is_none_or(|maps| maps.is_empty() || maps.contains(name))
    }
}

/// When a process was started, in nanoseconds since boot.
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program may hold blanks and parentheses.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    // SAFETY: sysconf has no preconditions.
    let second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&ticks| ticks > 0)?;
    Some(ticks.saturating_mul(1_000_000_000 / second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::ptr::null_mut;

    /// nginx makes itself a daemon: its first process ends as soon as it has forked the next one, which may not have run yet.
    #[test]
    fn a_board_stays_while_a_child_is_on_its_way() {
        let mut process = Command::new("true").spawn().unwrap();
        let ended = process.id();
        process.wait().unwrap();
        let path = PathBuf::from(format!("{FOLDER}/{PREFIX}test-{ended}-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(SIZE as u64).unwrap();
        file.write_all_at(&MAGIC.to_ne_bytes(), offset_of!(Header, magic) as u64).unwrap();
        file.write_all_at(&LAYOUT.to_ne_bytes(), offset_of!(Header, layout) as u64).unwrap();
        file.write_all_at(&1u32.to_ne_bytes(), offset_of!(Header, forks) as u64).unwrap();
        // SAFETY: a new mapping at a place of the system's choice.
        let address = unsafe { libc::mmap(null_mut(), SIZE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(address, libc::MAP_FAILED);
        assert!(!remove_if_left_over(&path));
        // SAFETY: it was mapped above, and nothing refers to it.
        unsafe { libc::munmap(address, SIZE) };
        assert!(remove_if_left_over(&path));
        assert!(!path.exists());
    }
}
