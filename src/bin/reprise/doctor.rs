//! `reprise doctor`: whether Reprise would take over a program, or did, and if not, why and what to do; and whether the
//! cache that it is to use can be. Nothing of the program runs for it.

use crate::elf::{libraries, Elf, Library};
use crate::run::find_program;
use crate::{say, wrong_use, Done};
use reprise::board::read::all;
use reprise::cache::redis::{check, url::without_password, url::Spec};
use reprise::cache::shm::{Area, Error};
use reprise::cache::Place;
use reprise::config::Semantics;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Say whether Reprise works for a program, or does in a running process, and whether a cache can be used
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  reprise doctor nginx
  reprise doctor ./server.py
  reprise doctor 4711
  reprise doctor --cache 'redis://10.0.0.5/0?key=/etc/reprise/key'

Without --cache it is REPRISE_CACHE as the process was started with it, or for a program as it is set here. Of a cache in
Redis, which is asked as a server would ask it, is said whether it answers, how fast, and what would go wrong; never a
password.

Exit code: 0 if it works, 1 if it does not, 2 if there is no such program.")]
pub struct Args {
    /// A program, looked for in PATH, or the id of a process
    #[arg(value_name = "CMD|PID", required_unless_present = "cache")]
    what: Option<String>,
    /// Say whether this cache can be used from here
    #[arg(long, value_name = "URL")]
    cache: Option<String>,
}

/// What was found out, in sentences, and the verdict.
struct Findings {
    sentences: Vec<String>,
    works: bool,
}

impl Findings {
    fn new() -> Findings {
        Findings { sentences: Vec::new(), works: false }
    }

    fn note(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }

    fn verdict(mut self, works: bool, sentence: impl Into<String>) -> Findings {
        self.note(sentence);
        self.works = works;
        self
    }
}

pub fn run(args: &Args) -> Done {
    let process = args.what.as_ref().and_then(|what| what.parse::<u32>().ok());
    let mut findings = match (&args.what, process) {
        (None, _) => Findings { works: true, ..Findings::new() },
        (_, Some(process)) => running(process)?,
        (Some(what), _) => {
            let found = find_program(OsStr::new(what))
                .ok_or_else(|| wrong_use(format!("{what}: no such program (in PATH)")))?;
            program(&found, Findings::new(), 0)
        }
    };
    let url = args.cache.clone().or_else(|| match process {
        Some(process) => variable(process, "REPRISE_CACHE"),
        None => std::env::var_os("REPRISE_CACHE").map(|url| url.to_string_lossy().into_owned()),
    });
    if let Some(url) = url.filter(|url| !url.is_empty()) {
        findings.works &= cache(&url, &mut findings.sentences);
    }
    say(&(findings.sentences.join("\n") + "\n"));
    Ok(i32::from(!findings.works))
}

// ---- A cache --------------------------------------------------------------------------------------------------

/// What can be said of the cache at `url`, and whether it can be used.
fn cache(url: &str, sentences: &mut Vec<String>) -> bool {
    let (sentence, works) = match url.parse() {
        Err(error) => (format!("The cache {:?} cannot be: {error}.", without_password(url)), false),
        Ok(Place::Memory) => ("Its cache is in memory: each process caches for itself.".into(), true),
        Ok(Place::Shm(spec)) => match Area::find(&spec.name) {
            Ok(area) => {
                (format!("Its cache shm:{} is there, with {} sessions.", spec.name, area.info().sessions), true)
            }
            Err(Error::Missing(_)) => (format!("Its cache shm:{} will be made when it is started.", spec.name), true),
            Err(error) => (format!("Its cache cannot be used: {error}."), false),
        },
        Ok(Place::Redis(spec)) => return redis(&spec, sentences),
    };
    sentences.push(sentence);
    works
}

fn redis(spec: &Spec, sentences: &mut Vec<String>) -> bool {
    let report = match check::check(spec) {
        Ok(report) => report,
        Err(error) => {
            sentences.push(format!(
                "The cache cannot be used until somebody puts this right: {}.",
                error.trim_end_matches('.')
            ));
            return false;
        }
    };
    let mut works = report.warnings.is_empty();
    match report.round_trip {
        None => sentences.push(
            "The cache cannot be reached from here now. Programs start all the same; until it answers, each process finds \
             its own sessions only:"
                .into(),
        ),
        Some(time) => {
            let version =
                if report.version.is_empty() { String::new() } else { format!(" (version {})", report.version) };
            sentences.push(format!("The cache {spec}{version} answers, in {:.2} ms.", time.as_secs_f64() * 1000.0));
            if time > spec.deadline {
                works = false;
                sentences.push(format!(
                    "That is longer than a lookup may take ({:?}): they would be misses. Raise deadline=, or move it \
                     nearer.",
                    spec.deadline
                ));
            }
        }
    }
    sentences.extend(report.warnings.iter().map(|warning| warning.trim_end_matches('.').to_owned() + "."));
    if let Some((seals, others)) = report.keys.split_first() {
        let others = if others.is_empty() {
            String::new()
        } else {
            format!(", and opens also what {} sealed", others.join(" or "))
        };
        sentences.push(format!("The key {seals} seals here{others}: these are the keys that machines must agree on."));
    }
    sentences.extend(report.advice);
    works
}

/// What a process found in its environment when it was started.
fn variable(process: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
    let start = format!("{name}=");
    let value = environment.split(|&byte| byte == 0).find_map(|line| line.strip_prefix(start.as_bytes()))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

// ---- A program ------------------------------------------------------------------------------------------------

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "fish"];
const ABOUT_SHELLS: &str =
    "A shell does no TLS itself, but the preload reaches the programs that it starts: ask about those.";

fn program(path: &Path, mut findings: Findings, depth: usize) -> Findings {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let shown =
        if real == path { path.display().to_string() } else { format!("{} ({})", path.display(), real.display()) };
    let start = match start_of(&real) {
        Ok(start) => start,
        Err(error) => return findings.verdict(false, format!("{shown} cannot be read: {error}.")),
    };
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = String::from_utf8_lossy(line.split(|&byte| byte == b'\n').next().unwrap_or_default()).into_owned();
        let Some(interpreter) = interpreter(&line).filter(|_| depth < 4) else {
            return findings.verdict(false, format!("{shown} is a script, and its interpreter is not found: {line}."));
        };
        findings.note(format!("{shown} is a script for {}.", interpreter.display()));
        let name = interpreter.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SHELLS.contains(&name.as_str()) {
            return findings.verdict(false, ABOUT_SHELLS);
        }
        return program(&interpreter, findings, depth + 1);
    }
    if !start.starts_with(b"\x7fELF") {
        return findings.verdict(false, format!("{shown} is neither an ELF program nor a script with #!."));
    }
    match Elf::read(&real) {
        Ok(elf) => native(&real, &shown, &elf, findings),
        Err(error) => findings.verdict(false, format!("{shown} is a damaged ELF file: {error}.")),
    }
}

fn start_of(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(path)?.take(256).read_to_end(&mut start)?;
    Ok(start)
}

/// The program that a `#!` line names, behind `env` too.
fn interpreter(line: &str) -> Option<PathBuf> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if Path::new(first).file_name()? != "env" {
        return find_program(OsStr::new(first));
    }
    let named = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    find_program(OsStr::new(named))
}

fn native(path: &Path, shown: &str, elf: &Elf, mut findings: Findings) -> Findings {
    let ours = std::env::current_exe().and_then(|path| Elf::read(&path));
    if let Ok(ours) = &ours {
        if (ours.machine, ours.is_64) != (elf.machine, elf.is_64) {
            let bits = if elf.is_64 { 64 } else { 32 };
            return findings.verdict(
                false,
                format!("{shown} is a {bits}-bit program for another kind of machine than Reprise was built for: build Reprise for that one."),
            );
        }
    }
    let Some(loader) = &elf.interpreter else {
        findings.note(format!("{shown} is statically linked: nothing can be preloaded into it."));
        let inside = inside(elf).unwrap_or_else(|| "No TLS library that this command knows is inside.".into());
        return findings.verdict(false, inside);
    };
    if loader.contains("ld-musl") {
        return findings.verdict(false, format!("{shown} uses musl as its C library; Reprise is built for glibc."));
    }
    findings.note(format!("{shown} is dynamically linked."));
    let privileged = privileges(path);
    if elf.exports("SSL_CTX_new") {
        let version = elf.openssl_inside().unwrap_or_else(|| "OpenSSL or a relative of it".into());
        return findings.verdict(
            false,
            format!("It has {version} inside and calls its own copy, which a preload does not reach. Use a build that links \
                     libssl dynamically (for Node.js: the distribution's package, or --shared-openssl)."),
        );
    }
    let all = match libraries(loader, path) {
        Ok(all) => all,
        Err(error) => return findings.verdict(false, format!("Its libraries cannot be found out: {error}.")),
    };
    if let Some(libssl) = libssl_of(&all) {
        let through = if elf.needed.contains(&libssl.name) { String::new() } else { through(&all, &libssl.name) };
        findings.note(format!("It loads {}{through}: {}.", libssl.name, version_of(&all, libssl)));
        if let Err(why) = is_served(&libssl.name) {
            return findings.verdict(false, why);
        }
        return match is_linked_ahead(&elf.needed) {
            Some(true) => findings.verdict(
                true,
                format!(
                    "It is linked with Reprise ahead of libssl: Reprise takes it over as it is, with {}.",
                    semantics(true)
                ),
            ),
            Some(false) => findings.verdict(
                false,
                "It is linked with Reprise, but after libssl, where it has no effect: link -lreprise before -lssl. Until \
                 then, `reprise run -- CMD` takes it over.",
            ),
            None => judge(findings, privileged, "Reprise takes it over: `reprise run -- CMD`"),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if SHELLS.contains(&name.as_str()) {
        return findings.verdict(false, ABOUT_SHELLS);
    }
    if let Some((plugin, libssl)) = plugin(path, loader) {
        findings.note(format!(
            "It loads {libssl} later, with {}, when a program asks for TLS. Reprise finds it then.",
            plugin.display()
        ));
        if let Err(why) = is_served(&libssl) {
            return findings.verdict(false, why);
        }
        return judge(findings, privileged, "Reprise takes it over: `reprise run -- CMD`");
    }
    if let Some(inside) = inside(elf) {
        return findings.verdict(false, inside);
    }
    if let Some((_, places)) = PLUGINS.iter().find(|(known, _)| name.starts_with(known)) {
        return findings.verdict(
            false,
            format!(
                "It does TLS with a plugin that loads libssl, but there is none where they are known to be: {}.",
                places.join(", ").replace("@/..", "..")
            ),
        );
    }
    let other = all.iter().find_map(|library| {
        OTHERS.iter().find(|(name, _)| library.name.starts_with(name)).map(|(_, what)| (*what, &library.name))
    });
    match other {
        Some((what, name)) => findings.verdict(false, format!("Its TLS is {what} ({name}), which Reprise does not serve.")),
        None => findings.verdict(
            false,
            "It does not load libssl at its start, and no plugin of it that does is known here. If it loads one later, \
             start it with `reprise run` and look with `reprise doctor PID`.",
        ),
    }
}

/// Those that a program gets unless REPRISE_SEMANTICS is set.
fn semantics(is_linked: bool) -> String {
    match Semantics::default_for(is_linked) {
        Semantics::Documented => "the semantics of the manual pages (`documented`)".into(),
        Semantics::Stock => "the semantics of its libssl (`stock`)".into(),
    }
}

fn judge(findings: Findings, privileged: Option<String>, works: &str) -> Findings {
    match privileged {
        Some(why) => findings.verdict(false, why),
        None => findings.verdict(true, format!("{works}, with {}.", semantics(false))),
    }
}

const OTHERS: [(&str, &str); 5] = [
    ("libgnutls", "GnuTLS"),
    ("libssl3.so", "NSS"),
    ("libmbedtls", "Mbed TLS"),
    ("libwolfssl", "wolfSSL"),
    ("libboringssl", "BoringSSL"),
];

/// A TLS library whose code is in the program itself.
fn inside(elf: &Elf) -> Option<String> {
    let advice = "which a preload does not reach.";
    if elf.contains("/boringssl/src/ssl/") || elf.has_inside("BORINGSSL_self_test") {
        return Some(format!("It has BoringSSL inside, {advice}"));
    }
    if elf.bytes_contain(b"\xff Go buildinf:") {
        return Some("It is a Go program: Go brings its own TLS.".into());
    }
    if elf.has_inside("SSL_CTX_new") || elf.contains("SSL_CTX_new\0") {
        let version = elf.openssl_inside().unwrap_or_else(|| "OpenSSL".into());
        return Some(format!("It has {version} inside, {advice} Use a build that links libssl dynamically."));
    }
    if let Some(version) = elf.openssl_inside() {
        return Some(format!("It seems to have {version} inside, {advice} Use a build that links libssl dynamically."));
    }
    elf.contains("rustls").then(|| "It seems to use rustls: Rust's own TLS.".into())
}

/// Why the loader would ignore LD_PRELOAD for this user.
fn privileges(path: &Path) -> Option<String> {
    let advice = "the loader ignores LD_PRELOAD for it. Name the library in /etc/ld.so.preload instead; no REPRISE_ \
                  variable counts then.";
    let found = fs::metadata(path).ok()?;
    let user = rustix::process::geteuid().as_raw();
    let mode = found.permissions().mode();
    if mode & 0o4000 != 0 && found.uid() != user
        || mode & 0o2000 != 0 && found.gid() != rustix::process::getegid().as_raw()
    {
        return Some(format!("It is a set-user-ID or set-group-ID program: {advice}"));
    }
    let mut value = [0; 64];
    let has_capabilities = rustix::fs::getxattr(path, "security.capability", &mut value[..]).is_ok();
    (has_capabilities && user != 0).then(|| format!("It has file capabilities: {advice}"))
}

fn libssl_of(all: &[Library]) -> Option<&Library> {
    all.iter().find(|library| library.name.starts_with("libssl.so"))
}

/// The library that brings `name` along.
fn through(all: &[Library], name: &str) -> String {
    let brings =
        |library: &&Library| Elf::read(&library.path).is_ok_and(|elf| elf.needed.iter().any(|needed| needed == name));
    all.iter().find(brings).map(|library| format!(" through {}", library.name)).unwrap_or_default()
}

/// The version stands in libcrypto.
fn version_of(all: &[Library], libssl: &Library) -> String {
    let crypto = all.iter().find(|library| library.name.starts_with("libcrypto.so")).unwrap_or(libssl);
    let version = Elf::read(&crypto.path).ok().and_then(|elf| elf.openssl_inside());
    format!("{}, {}", libssl.path.display(), version.unwrap_or_else(|| "of a version that it does not tell".into()))
}

fn is_served(libssl: &str) -> Result<(), String> {
    match libssl {
        "libssl.so.1.1" | "libssl.so.3" | "libssl.so.4" => Ok(()),
        other => Err(format!("Reprise serves OpenSSL 1.1.1 to 4 (libssl.so.1.1, .so.3, .so.4), not {other}.")),
    }
}

/// Programs that load libssl with a plugin, and where that is.
#[rustfmt::skip]
const PLUGINS: [(&str, &[&str]); 6] = [
    ("python", &["@/../lib/python3*/lib-dynload/_ssl*.so", "/usr/lib/python3*/lib-dynload/_ssl*.so"]),
    ("apache2", &["/usr/lib/apache2/modules/mod_ssl.so"]),
    ("httpd", &["@/../modules/mod_ssl.so", "/usr/lib*/httpd/modules/mod_ssl.so", "/usr/local/apache2/modules/mod_ssl.so"]),
    ("perl", &["/usr/lib/*/perl5/*/auto/Net/SSLeay/SSLeay.so", "/usr/lib*/perl5/**/Net/SSLeay/SSLeay.so", "/usr/local/lib/*/perl/*/auto/Net/SSLeay/SSLeay.so"]),
    ("ruby", &["/usr/lib/*/ruby/*/openssl.so", "@/../lib/ruby/*/*/openssl.so"]),
    ("php", &["/usr/lib/php/*/openssl.so", "@/../lib/php/extensions/*/openssl.so"]),
];

/// The plugin that brings libssl, and the name of that.
fn plugin(program: &Path, loader: &str) -> Option<(PathBuf, String)> {
    let name = program.file_name()?.to_str()?;
    let folder = glob::Pattern::escape(program.parent()?.to_str()?);
    let (_, places) = PLUGINS.iter().find(|(known, _)| name.starts_with(known))?;
    let found =
        places.iter().flat_map(|place| glob::glob(&place.replace('@', &folder)).into_iter().flatten().flatten());
    // Several versions of Python may share a folder: the one that the program's name tells.
    let version = name.trim_start_matches("python");
    let mut found: Vec<PathBuf> = found.filter_map(|path| path.canonicalize().ok()).collect();
    found
        .sort_by_key(|path| !(version.contains('.') && path.to_string_lossy().contains(&format!("/python{version}/"))));
    found.into_iter().find_map(|path| {
        let libssl = libssl_of(&libraries(loader, &path).ok()?)?.name.clone();
        Some((path, libssl))
    })
}

// ---- A process ------------------------------------------------------------------------------------------------

fn running(process: u32) -> Result<Findings, crate::Failure> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    if !folder.is_dir() {
        return Err(wrong_use(format!("there is no process {process}")));
    }
    let unreadable =
        |error: std::io::Error| wrong_use(format!("process {process} belongs to somebody else: ask as root ({error})"));
    let maps = fs::read_to_string(folder.join("maps")).map_err(unreadable)?;
    let program_path = fs::read_link(folder.join("exe")).map_err(unreadable)?;
    let mut findings = Findings::new();
    findings.note(format!("Process {process} runs {}.", program_path.display()));
    let mapped = |start: &str| {
        let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        let mut found: Vec<&str> =
            paths.filter(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(start))).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let (ours, libssl) = (mapped("libreprise.so"), mapped("libssl.so"));
    let libssl_text = libssl.join(" and ");
    let Some(ours) = ours.first() else {
        findings.note("Reprise is not loaded in it: restart it with `reprise run -- CMD`. About the program:");
        let findings = program(&program_path, findings, 0);
        return Ok(Findings { works: false, ..findings });
    };
    findings.note(format!("It has loaded {ours}{}.", position(&folder, &program_path)));
    if ours.ends_with("(deleted)") {
        findings.note("That file was replaced since: a restart takes the new one.");
    }
    if libssl.len() > 1 {
        findings
            .note(format!("It has more than one libssl, and Reprise serves the first that was used: {libssl_text}."));
    }
    let (families, _) = all();
    let contexts: Vec<_> =
        families.iter().flat_map(|family| &family.rows).filter(|entry| entry.process == process).collect();
    if let Some(first) = contexts.first() {
        findings.note(format!(
            "It serves {} SSL_CTX of {}: `reprise status {process}` shows them.",
            contexts.len(),
            if first.libssl.is_empty() { "its libssl" } else { &first.libssl }
        ));
        return Ok(findings.verdict(true, "Reprise has taken it over."));
    }
    Ok(match libssl.first() {
        None => findings.verdict(true, "It has loaded no libssl yet. When it does, Reprise takes over."),
        Some(_) if !is_ahead(&folder, &program_path) => findings.verdict(
            false,
            format!("It has loaded {libssl_text}, and Reprise is not ahead of it: link -lreprise before -lssl, or use `reprise run`."),
        ),
        Some(_) => findings.verdict(
            true,
            format!("It has loaded {libssl_text} and, as far as can be seen, made no SSL_CTX yet, or none since it was forked: \
                     a process is on the board from its first session on, unless REPRISE_STATUS=off."),
        ),
    })
}

/// Whether it was preloaded, as its start environment or the system's file says.
fn is_preloaded(folder: &Path) -> Option<&'static str> {
    let environment = fs::read(folder.join("environ")).unwrap_or_default();
    let is_ours = |text: &[u8]| text.windows(10).any(|window| window == b"libreprise");
    if environment.split(|&byte| byte == 0).any(|line| line.starts_with(b"LD_PRELOAD=") && is_ours(line)) {
        return Some("LD_PRELOAD");
    }
    fs::read("/etc/ld.so.preload").is_ok_and(|text| is_ours(&text)).then_some("/etc/ld.so.preload")
}

fn linked_before(program: &Path) -> Option<bool> {
    is_linked_ahead(&Elf::read(program).ok()?.needed)
}

/// Whether -lreprise came before -lssl; `None` if it was not there.
fn is_linked_ahead(needed: &[String]) -> Option<bool> {
    let at = |start: &str| needed.iter().position(|name| name.starts_with(start));
    Some(at("libreprise.so")? < at("libssl.so").unwrap_or(usize::MAX))
}

fn is_ahead(folder: &Path, program: &Path) -> bool {
    is_preloaded(folder).is_some() || linked_before(program) != Some(false)
}

fn position(folder: &Path, program: &Path) -> String {
    match (is_preloaded(folder), linked_before(program)) {
        (Some(how), _) => format!(", preloaded by {how} and so ahead of libssl"),
        (None, Some(true)) => ", linked ahead of libssl".into(),
        (None, Some(false)) => ", linked after libssl, where it has no effect".into(),
        (None, None) => ", in a way that cannot be seen any more".into(),
    }
}
