//! The `reprise` command: runs programs under Reprise, shows what it does in them, and says where it would work.

mod cache;
mod doctor;
mod elf;
mod generate;
mod keygen;
mod run;
mod status;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::exit;

/// OpenSSL's session cache as a library of its own: run programs under it and watch them.
#[derive(Parser)]
#[command(name = "reprise", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Status(status::Args),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Cache(cache::Command),
    Keygen(keygen::Args),
    #[command(subcommand, hide = true)]
    Generate(generate::Command),
}

/// The exit code of a command line that cannot be obeyed.
const WRONG_USE: i32 = 2;

/// Why a command ends without doing what it was asked, and its exit code.
pub struct Failure(pub i32, pub String);

type Done = Result<i32, Failure>;

fn wrong_use(message: impl Into<String>) -> Failure {
    Failure(WRONG_USE, message.into())
}

/// Writes to stdout. Who reads no further, as `head`, ends the command.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        exit(0);
    }
}

fn main() {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Cache(command) => cache::run(&command),
        Command::Keygen(args) => keygen::run(&args),
        Command::Generate(command) => generate::run(&command, Cli::command()),
    };
    exit(done.unwrap_or_else(|Failure(code, message)| {
        let _ = writeln!(std::io::stderr(), "reprise: {message}");
        code
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
