//! What Reprise has to say to a person: rare, one line, on stderr. `REPRISE_LOG=off` silences it.

use crate::cancel;
use crate::config::{self, Log};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Says it, unless the same was said before. Whether it could be written concerns nobody.
pub fn once(message: fmt::Arguments<'_>) {
    static SAID: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let line = format!("reprise: {message}\n");
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&line).max(1);
    for place in &SAID {
        match place.compare_exchange(0, hash, Relaxed, Relaxed) {
            Ok(_) if config::get().log == Log::Error => {
                let _off = cancel::off();
                let _ = std::io::stderr().write_all(line.as_bytes());
                return;
            }
            Err(said) if said != hash => continue,
            _ => return,
        }
    }
}
