//! Files that are read again when they were changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells whether a file was changed; the default where it is not to be seen.
pub type Stamp = (u64, i64, i64);

pub fn stamp(path: &Path) -> Stamp {
    fs::metadata(path).map_or(Stamp::default(), |found| (found.ino(), found.mtime(), found.mtime_nsec()))
}
