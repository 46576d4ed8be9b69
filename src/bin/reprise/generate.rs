//! Manual pages and shell completions, from the same source as `--help`. For packagers: `make install` calls it.

use crate::{wrong_use, Done};
use clap_complete::Shell;
use std::path::PathBuf;

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
            .and_then(|()| clap_mangen::generate_to(cli, folder))
            .map_err(|error| wrong_use(format!("{}: {error}", folder.display())))?,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut cli, "reprise", &mut text);
            crate::say(&String::from_utf8_lossy(&text));
        }
    }
    Ok(0)
}
