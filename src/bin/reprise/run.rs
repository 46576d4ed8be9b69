//! `reprise run`: checks the configuration, puts the library in front of libssl and becomes the program.

use crate::{cache, elf, wrong_use, Done, Failure};
use reprise::cache::Place;
use reprise::config::{Config, Tickets};
use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Run a program with its TLS sessions kept by Reprise
///
/// The program and all that it starts get the library in front of libssl (LD_PRELOAD). What is not given here is
/// taken from the environment (REPRISE_CACHE, REPRISE_SEMANTICS, ...). With a cache that processes share, servers use it
/// whatever they do by themselves (--tickets stateful --internal always --unclean keep) unless either says otherwise.
/// `reprise doctor CMD` tells whether it works for a program, `reprise status` shows what happens.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  reprise run -- nginx -g 'daemon off;'
  reprise run --cache 'shm:web?size=64M' -- nginx      # one cache for all worker processes
  reprise run --cache 'redis://10.0.0.5/0?key=/etc/reprise/key' -- nginx    # one for all machines
  reprise run --semantics documented -- python3 server.py

A cache in Redis is tried before anything starts: what somebody has to put right (the URL, the key file, a certificate,
user and password or what they may do, a Redis older than 6.2) is an error. That Redis cannot be reached right now, or
does not answer, is a warning on stderr: the program starts, finds the sessions of its own processes, and the others once
Redis is there. A password is better given in REPRISE_CACHE than with --cache, which `ps` shows.

Exit code: the program's; 2 if nothing was started because an option or variable is wrong, 126 if the program cannot be
executed, 127 if it is not found.")]
pub struct Args {
    /// Where the sessions are kept: memory:, shm:NAME?size=64M or redis://HOST/0?key=FILE
    #[arg(long, value_name = "URL")]
    cache: Option<String>,
    /// What the manual pages promise, or what the loaded libssl does [default: stock; documented in a program that is linked
    /// with Reprise]
    #[arg(long, value_parser = ["documented", "stock"])]
    semantics: Option<String>,
    /// Let tickets refer to the cache, or leave them as the program has them [default: stateful with a shared cache]
    #[arg(long, value_parser = ["stateful", "as-is"])]
    tickets: Option<String>,
    /// Whether servers use the internal cache even if they switch it off [default: always with a shared cache]
    #[arg(long, value_parser = ["always", "as-is"])]
    internal: Option<String>,
    /// Whether sessions of connections closed without close_notify stay usable [default: keep with a shared cache]
    #[arg(long, value_parser = ["keep", "drop"])]
    unclean: Option<String>,
    /// Where a client's certificate is verified again when its session is resumed [default: shared caches]
    #[arg(long, value_name = "WHERE", value_parser = ["shared", "on", "off"])]
    reverify: Option<String>,
    /// The most seconds for which a session is resumed after its full handshake
    #[arg(long, value_name = "SECONDS")]
    max_age: Option<String>,
    /// A session id context for servers that ask for client certificates and set none
    #[arg(long, value_parser = ["auto", "as-is"])]
    id_context: Option<String>,
    /// What is said on stderr
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "off"])]
    log: Option<String>,
    /// The library, where it is not found by itself [env: REPRISE_LIBRARY]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What a cache that processes share brings along, where nothing else is said.
const IMPLIED: [(&str, &str); 3] =
    [("REPRISE_TICKETS", "stateful"), ("REPRISE_INTERNAL", "always"), ("REPRISE_UNCLEAN", "keep")];

pub fn run(args: &Args) -> Done {
    let mut variables = variables(args);
    let value = |variables: &BTreeMap<&str, String>, name: &str| match variables.get(name) {
        Some(value) => Some(OsString::from(value)),
        None => env::var_os(name),
    };
    let config = Config::from(|name| value(&variables, name));
    // The library itself would say it and go on with a default; here is a person who can mend it.
    if let Some(complaint) = config.complaints.into_iter().next() {
        return Err(wrong_use(complaint));
    }
    if config.cache == Place::Memory {
        if config.tickets == Tickets::Stateful {
            let _ = writeln!(
                std::io::stderr(),
                "reprise: with --tickets stateful, a session is known to the process that made it and to no other: name a \
                 cache that all of them share, as --cache shm:NAME"
            );
        }
    } else {
        // Who names a cache wants it used. Most servers keep their sessions in tickets, and some switch the cache off.
        for (name, implied) in IMPLIED {
            if value(&variables, name).is_none_or(|value| value.is_empty()) {
                variables.insert(name, implied.into());
            }
        }
    }
    let value = |name: &str| value(&variables, name);
    if let Some(url) = value("REPRISE_CACHE").filter(|url| !url.is_empty()) {
        cache::prepare(&url.to_string_lossy())?;
    }
    let library = library(args.library.as_deref())?;
    let (program, arguments) = args.command.split_first().ok_or_else(|| wrong_use("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(&variables).env("LD_PRELOAD", preload(&library, env::var_os("LD_PRELOAD")));
    let error = command.exec();
    let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
    Err(Failure(code, format!("{}: {error}", program.to_string_lossy())))
}

/// What the program finds in its environment beside what is there.
fn variables(args: &Args) -> BTreeMap<&'static str, String> {
    let options = [
        ("REPRISE_CACHE", &args.cache),
        ("REPRISE_SEMANTICS", &args.semantics),
        ("REPRISE_TICKETS", &args.tickets),
        ("REPRISE_INTERNAL", &args.internal),
        ("REPRISE_UNCLEAN", &args.unclean),
        ("REPRISE_REVERIFY", &args.reverify),
        ("REPRISE_MAX_AGE", &args.max_age),
        ("REPRISE_ID_CONTEXT", &args.id_context),
        ("REPRISE_LOG", &args.log),
    ];
    options.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}

/// Ours first, then what was to be preloaded anyway.
fn preload(library: &Path, others: Option<OsString>) -> OsString {
    let mut preload = library.as_os_str().to_owned();
    let others = others.unwrap_or_default();
    for other in others.to_string_lossy().split([':', ' ']).filter(|other| !other.is_empty()) {
        if Path::new(other) != library {
            preload.push(":");
            preload.push(other);
        }
    }
    preload
}

/// The library as it is to be preloaded: an absolute path. It keeps the name of a link such as libreprise.so.0, which
/// stays when an upgrade replaces the file behind it.
pub fn library(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let named = named
        .map(Path::to_owned)
        .or_else(|| env::var_os("REPRISE_LIBRARY").filter(|path| !path.is_empty()).map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => beside_us().ok_or_else(|| {
            wrong_use("libreprise.so.0 is not found beside this command: name it with --library or REPRISE_LIBRARY")
        })?,
    };
    let path = absolute(&path).map_err(|error| wrong_use(format!("library {}: {error}", path.display())))?;
    if !elf::Elf::read(&path).is_ok_and(|elf| elf.exports("reprise_version")) {
        return Err(wrong_use(format!("{} is not the library of Reprise", path.display())));
    }
    if path.to_string_lossy().contains([':', ' ']) {
        return Err(wrong_use(format!("{} cannot be preloaded: its path has a colon or a blank", path.display())));
    }
    Ok(path)
}

/// The real folder of an existing file, and the file's name there.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    path.metadata()?;
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok(Path::new(".").join(folder).canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

/// As installed (bin/ and lib/ are neighbours), or as built (both in one folder). Debian's folders for several
/// architectures may each have one: only that of this command's architecture can be meant.
fn beside_us() -> Option<PathBuf> {
    let command = env::current_exe().ok()?.canonicalize().ok()?;
    let architecture = elf::architecture(&command).ok()?;
    let folder = glob::Pattern::escape(command.parent()?.to_str()?);
    ["/libreprise.so.0", "/libreprise.so", "/../lib*/libreprise.so.0", "/../lib/*/libreprise.so.0"]
        .iter()
        .flat_map(|place| glob::glob(&format!("{folder}{place}")).into_iter().flatten().flatten())
        .find(|path| elf::architecture(path).is_ok_and(|found| found == architecture))
}

/// Where a program is that a shell would start by this name.
pub fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.to_string_lossy().contains('/') {
        let path = PathBuf::from(name);
        return path.is_file().then_some(path);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}
