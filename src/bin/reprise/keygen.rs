//! `reprise keygen`: makes fleet keys and takes a key file through a rotation, a step at a time.

use crate::{say, Done, Failure};
use reprise::cache::redis::keys::{self, Keys};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{fchown, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Make a key for a cache in Redis, or change a key file
///
/// The machines of a fleet share a file of keys, which their REPRISE_CACHE names (key=FILE). The first key seals what
/// goes to Redis, every key opens what comes from there. Without --key-file a line for such a file is printed; with
/// it alone the file is made (mode 0600). Give servers that drop root's rights a file that their group may read:
/// chgrp and chmod 0640. The line `fleet` of a file that is made here keeps the names of services secret; it stays in a
/// rotation. Key contents are never printed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  reprise keygen                                          # print a line
  reprise keygen --key-file /etc/reprise/key              # make a file; copy it to all machines

Rotation, after each step copy the file to all machines before the next one:
  reprise keygen --key-file /etc/reprise/key --add        # a new key, last: every machine can open what it seals
  reprise keygen --key-file /etc/reprise/key --rotate     # the last key becomes the first: it seals from now on
  reprise keygen --key-file /etc/reprise/key --retire     # the last key goes; not before the longest session timeout

Exit code: 0 if it was done, 1 if not, 2 for a wrong command line.")]
pub struct Args {
    /// The file to make or change
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Add a new key as the last one
    #[arg(long, requires = "key_file", group = "step")]
    add: bool,
    /// Make the last key the first one
    #[arg(long, requires = "key_file", group = "step")]
    rotate: bool,
    /// Remove the last key
    #[arg(long, requires = "key_file", group = "step")]
    retire: bool,
}

pub fn run(args: &Args) -> Done {
    let line = || Zeroizing::new(Keys::generate() + "\n");
    let Some(path) = &args.key_file else {
        say(&line());
        return Ok(0);
    };
    let said = if args.add {
        change(path, |lines| {
            lines.push(line());
            Ok(())
        })
        .map(|keys| format!("has {keys}, the last one is new. Next, on all machines: this file, then --rotate."))
    } else if args.rotate {
        change(path, rotate).map(|keys| {
            format!("has {keys}, what was the last one now seals. Next: this file on all machines; --retire once the longest session timeout has passed.")
        })
    } else if args.retire {
        change(path, |lines| last_of_several(lines).map(|last| drop(lines.remove(last))))
            .map(|keys| format!("has {keys}, what was the last one is gone. Next: this file on all machines."))
    } else {
        // The names of services are keyed with the first line, which no rotation changes.
        create(path, &Zeroizing::new(Keys::generate_fleet() + "\n" + &line()))
            .map(|()| "has 1 key. Next: this file on all machines, and key= in their REPRISE_CACHE.".into())
    };
    let said: String = said.map_err(|error| Failure(1, error))?;
    say(&format!("{} {said}\n", path.display()));
    Ok(0)
}

/// With their ends, so that together they are the file.
type Lines = Vec<Zeroizing<String>>;

fn is_key(line: &str) -> bool {
    keys::digits(line).is_some()
}

fn last_of_several(lines: &Lines) -> Result<usize, String> {
    let mut keys = lines.iter().enumerate().filter(|(_, line)| is_key(line)).map(|(at, _)| at);
    keys.next_back().filter(|_| keys.next().is_some()).ok_or("it has one key only: --add comes first".into())
}

fn rotate(lines: &mut Lines) -> Result<(), String> {
    let last = last_of_several(lines)?;
    let first = lines.iter().position(|line| is_key(line)).unwrap_or(last);
    let line = lines.remove(last);
    lines.insert(first, line);
    Ok(())
}

fn create(path: &Path, line: &str) -> Result<(), String> {
    let says = |error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => format!("{} is there already (--add and --rotate change it)", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(says)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = fs::remove_file(path);
        says(error)
    })
}

/// Replaces the file at once, with the same owner and mode: who reads it meanwhile sees the old one or the new one.
/// The result is how many keys it has then, in words.
fn change(path: &Path, step: impl FnOnce(&mut Lines) -> Result<(), String>) -> Result<String, String> {
    let says = |error: io::Error| format!("{}: {error}", path.display());
    let target = fs::canonicalize(path).map_err(says)?;
    // Made before the old one is read: of two commands at a time, the second one ends here.
    let new = New::beside(&target)?;
    let text = Keys::text(&target)?;
    let mut lines: Lines = text.split_inclusive('\n').map(|line| Zeroizing::new(line.to_owned())).collect();
    if let Some(last) = lines.last_mut().filter(|line| !line.ends_with('\n')) {
        last.push('\n');
    }
    step(&mut lines).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut text = Zeroizing::new(String::with_capacity(text.len() + 100));
    lines.iter().for_each(|line| text.push_str(line));
    Keys::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    new.replace(&target, &text).map_err(says)?;
    let keys = lines.iter().filter(|line| is_key(line)).count();
    Ok(format!("{keys} key{}", if keys == 1 { "" } else { "s" }))
}

/// The file that is to take the place of another one, gone if it does not come to that.
struct New {
    file: File,
    /// `None` once it has the other one's name.
    path: Option<PathBuf>,
}

impl New {
    fn beside(target: &Path) -> Result<New, String> {
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(".new");
        let path = target.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok(New { file, path: Some(path) }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(format!(
                "{} is being changed by another command (if by none, remove {})",
                target.display(),
                path.display()
            )),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn replace(mut self, target: &Path, text: &str) -> io::Result<()> {
        let (old, new) = (fs::metadata(target)?, self.file.metadata()?);
        self.file.write_all(text.as_bytes())?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
        }
        // After the owner: until then nobody else is to read it.
        self.file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
        }
        // From here on a file of that name is another command's.
        self.path = None;
        File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}
