//! `reprise cache`: the caches in shared memory. What they hold is counted and never shown.

use crate::{wrong_use, Done, Failure};

/// List, show, empty or remove the caches in shared memory
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  reprise cache ls
  reprise cache show web
  reprise cache flush web     # every session ends, the programs go on
  reprise cache rm web        # programs that are running keep what they have until they end")]
pub enum Command {
    /// List them: name, size, how full, sessions
    Ls,
    /// Show one with its services and counters
    Show { name: String },
    /// Remove every session from one
    Flush { name: String },
    /// Remove one
    Rm { name: String },
}

/// Makes sure that a program will find its cache, so that errors are said before it starts.
pub fn prepare(url: &str) -> Result<(), Failure> {
    match url {
        "memory:" => Ok(()),
        _ => Err(wrong_use(format!("REPRISE_CACHE={url:?} is unknown (use memory:)"))),
    }
}

pub fn run(_command: &Command) -> Done {
    Err(wrong_use("this version has no cache in shared memory"))
}
