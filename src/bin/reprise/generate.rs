//! Manual pages and shell completions, from the same source as `--help`. For packagers: `make install` calls it.

use crate::{wrong_use, Done};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};

/// The date that the manual pages show: when what they say last changed. Never today's, so that what is built twice is
/// the same.
const DATE: &str = "2026-11-21";

#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the manual pages into a folder
    Man { folder: PathBuf },
    /// Print the completions for a shell
    Completions { shell: Shell },
}

pub fn run(command: &Command, mut cli: clap::Command) -> Done {
    match command {
        Command::Man { folder } => std::fs::create_dir_all(folder)
            .and_then(|()| {
                cli = cli.disable_help_subcommand(true);
                cli.build();
                write_pages(&cli, folder)
            })
            .map_err(|error| wrong_use(format!("{}: {error}", folder.display())))?,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut cli, "reprise", &mut text);
            crate::say(&String::from_utf8_lossy(&text));
        }
    }
    Ok(0)
}

/// A page for `command` and one for each of its subcommands.
fn write_pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, folder)?;
    }
    Man::new(command.clone()).date(DATE).manual("Reprise").generate_to(folder).map(drop)
}
