//! What the preload reaches must not be hurt by it: programs without TLS make no system call more than loading a library
//! takes; and servers that confine themselves (another user, another root, no descriptors, limits, seccomp) work as on stock,
//! whether they do it before their first SSL_CTX or after it, and with every cache.
//!
//! c_tests/tools/ways_in.c does the confining and the handshakes, step by step. Each case runs on stock first: what stock
//! cannot do proves nothing. REPRISE_TEST_LIBSSL=DIR takes that libssl instead of the system's.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{compiler, libreprise, program, repository, run, succeed, text, Sandbox, SharedCache, Stats};

const NOBODY: &str = "65534";

fn is_root() -> bool {
    // SAFETY: no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped what only root can do");
    }
    root
}

fn build(sandbox: &Sandbox, source: &Path, name: &str, args: &[&str]) -> PathBuf {
    let out = sandbox.file(name);
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    cc.args(["-std=c11", "-D_GNU_SOURCE", "-O2"]).arg(source).arg("-o").arg(&out);
    if let Some(folder) = std::env::var_os("REPRISE_TEST_LIBSSL") {
        let folder = PathBuf::from(folder);
        cc.arg(format!("-I{}/include", folder.display())).arg(format!("-L{}/lib", folder.display()));
        cc.arg(format!("-Wl,-rpath,{}/lib", folder.display()));
    }
    succeed(cc.args(args));
    out
}

/// The program that takes steps.
fn stepper(sandbox: &Sandbox) -> PathBuf {
    build(sandbox, &repository("c_tests/tools/ways_in.c"), "stepper", &["-lssl", "-lcrypto", "-lpthread", "-ldl"])
}

/// Without a variable of ours.
fn bare(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REPRISE_")) {
        command.env_remove(name);
    }
    command.env_remove("LD_PRELOAD");
    command
}

fn steps(stepper: &Path, sandbox: &Sandbox, version: &str, steps: &[&str]) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = bare(stepper);
    command.arg(version).arg(cert).arg(key).args(steps);
    command
}

// ---- Programs without TLS ---------------------------------------------------------------------------------------

/// The system calls of a command, and the files that it opened or asked for.
fn trace(sandbox: &Sandbox, command: &[&str], preload: bool) -> (BTreeMap<String, i64>, Vec<String>) {
    let log = sandbox.file("trace");
    let mut strace = bare(program("strace", "strace"));
    strace.args(["-f", "-qq", "-o"]).arg(&log).args(["-E", "LC_ALL=C"]);
    if preload {
        strace.arg("-E").arg(format!("LD_PRELOAD={}", libreprise().display()));
    }
    succeed(strace.args(command));
    let (mut calls, mut files) = (BTreeMap::new(), Vec::new());
    for line in fs::read_to_string(log).unwrap().lines() {
        let call = line.split_once(' ').unwrap().1.trim_start();
        let Some((name, arguments)) = call.split_once('(').filter(|_| !call.starts_with(['<', '-', '+'])) else {
            continue;
        };
        *calls.entry(name.to_owned()).or_default() += 1;
        if let Some(path) = arguments.split('"').nth(1).filter(|_| name.starts_with("open") || name.contains("stat")) {
            files.push(path.to_owned());
        }
    }
    (calls, files)
}

/// Also around fork, where Reprise has handlers.
#[test]
fn programs_without_tls_pay_for_the_loader_alone() {
    /// What loading libreprise.so and its libgcc_s.so takes.
    const LOADER: [&str; 9] =
        ["openat", "read", "pread64", "newfstatat", "fstat", "mmap", "mprotect", "munmap", "close"];
    let sandbox = Sandbox::new();
    if !run(bare(program("strace", "strace")).args(["-o", "/dev/null", "true"])).status.success() {
        eprintln!("skipped: this user may not trace");
        return;
    }
    for (command, processes) in [
        (&["true"][..], 1),
        (&["cat", "/dev/null"], 1),
        (&["ls", "/"], 1),
        (&["sh", "-c", "(exit 0); (exit 0); exec true"], 2),
    ] {
        let (stock, stock_files) = trace(&sandbox, command, false);
        let (preloaded, files) = trace(&sandbox, command, true);
        let mut more: Vec<_> = files.clone();
        more.retain(|file| !stock_files.contains(file));
        let named = |file: &String, name: &str| file.rsplit('/').next().is_some_and(|found| found.starts_with(name));
        assert!(more.iter().any(|file| named(file, "libreprise.so")), "{command:?}: not preloaded");
        more.retain(|file| !named(file, "libreprise.so") && !named(file, "libgcc_s.so"));
        assert!(more.is_empty(), "{command:?} looks for {more:?}");
        for name in stock.keys().chain(preloaded.keys()) {
            let difference = preloaded.get(name).unwrap_or(&0) - stock.get(name).unwrap_or(&0);
            let allowed = if LOADER.contains(&name.as_str()) { 12 * processes } else { 0 };
            // A signal that comes while a process waits has it ask again.
            let noise = ["wait4", "rt_sigreturn"].contains(&name.as_str());
            assert!(noise || (0..=allowed).contains(&difference), "{command:?}: {difference} more {name}");
        }
    }
}

#[test]
fn static_programs_and_empty_environments() {
    let sandbox = Sandbox::new();
    let source = sandbox.file("plain.c");
    fs::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"out\") < 0; }").unwrap();
    let program = build(&sandbox, &source, "static", &["-static"]);
    let output = run(bare(program).env("LD_PRELOAD", libreprise()).env("REPRISE_CACHE", "nonsense"));
    assert_eq!((output.status.code(), &output.stdout[..], &output.stderr[..]), (Some(0), &b"out\n"[..], &b""[..]));

    let inner = steps(&stepper(&sandbox), &sandbox, "-tls1_3", &["own"]);
    let mut command = Command::new("env");
    command.arg("-i").arg(inner.get_program()).args(inner.get_args());
    let seen = succeed(command.env_remove("LD_PRELOAD"));
    assert!(seen.contains("Reprise is not there"), "{seen}");
    let mut command = Command::new("env");
    command.arg("-i").arg(format!("LD_PRELOAD={}", libreprise().display()));
    let seen = succeed(command.arg(inner.get_program()).args(inner.get_args()).env_remove("LD_PRELOAD"));
    assert!(seen.contains(": taken: full=1 resumed=20"), "{seen}");
}

// ---- Programs that confine themselves ---------------------------------------------------------------------------

/// The lines of `output`, which succeeded: who keeps the sessions, after each step that tells.
#[track_caller]
fn told(command: &Command, output: &Output) -> Vec<String> {
    let all = text(&output.stdout);
    assert!(output.status.success(), "{command:?}: {}\n{all}{}", output.status, text(&output.stderr));
    let line = |line: &str| {
        let known = line.strip_suffix(": full=1 resumed=20").unwrap_or_else(|| panic!("{command:?}: {line}"));
        known.split_once(": ").unwrap().1.to_owned()
    };
    all.lines().map(line).collect()
}

/// The steps work on stock and in the same way with Reprise, which takes over. `lines` is how much may be said with a
/// cache that needs a file, after steps that put files out of reach.
fn confined(cases: &[(&[&str], usize)]) {
    let sandbox = Sandbox::new();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(sandbox.file("root")).unwrap();
    let root = format!("chroot={}", sandbox.file("root").display());
    let stepper = stepper(&sandbox);
    for (case, lines) in cases {
        let case: Vec<&str> = case.iter().map(|step| if *step == "chroot" { &root } else { *step }).collect();
        for version in ["-tls1_2", "-tls1_3"] {
            let mut stock = steps(&stepper, &sandbox, version, &case);
            let output = run(&mut stock);
            let expected = told(&stock, &output).len();
            for (cache, status) in [("memory", "on"), ("shm", "on"), ("shm", "off")] {
                let (shared, stats) = (SharedCache::new(), sandbox.file("stats"));
                let _ = fs::remove_file(&stats);
                let mut command = steps(&stepper, &sandbox, version, &case);
                command.env("LD_PRELOAD", libreprise()).env("REPRISE_STATS", &stats).env("REPRISE_STATUS", status);
                if cache == "shm" {
                    command.env("REPRISE_CACHE", shared.url());
                }
                let output = run(&mut command);
                assert_eq!(told(&command, &output), vec!["taken"; expected], "{command:?}");
                let said = text(&output.stderr);
                let allowed = if cache == "shm" { *lines } else { 0 };
                let ours = said.lines().all(|line| line.starts_with("reprise: REPRISE_CACHE: "));
                assert!(said.lines().count() <= allowed && ours, "{command:?}: {said}");
                // What is counted goes where it went, whatever the process gave up.
                if expected > 0 {
                    assert!(
                        Stats::read(&stats)["hits"] >= 20 * expected as u64,
                        "{command:?}: {:?}",
                        Stats::read(&stats)
                    );
                }
            }
        }
    }
}

#[test]
fn no_descriptors() {
    confined(&[
        (&["close", "context", "own"], 0),
        (&["context", "close", "own", "own"], 0),
        (&["own", "close", "own"], 0),
        (&["own", "fork", "close", "own"], 0),
        (&["close", "own", "descriptors", "fork", "own", "descriptors"], 0),
    ]);
}

#[test]
fn children() {
    confined(&[
        (&["fork", "own"], 0),
        (&["context", "fork", "own", "fork", "own"], 0),
        (&["vfork", "clone", "own", "vfork", "clone", "own"], 0),
        (&["own", "abort"], 0),
        (&["abort"], 0),
    ]);
}

/// nofile=3: there is no descriptor left to open anything. as: less than the cache and the board would like to map.
#[test]
fn limits() {
    confined(&[
        (&["nofile=3", "context", "own"], 1),
        (&["context", "nofile=3", "own"], 1),
        (&["memlock=0", "context", "own"], 0),
        (&["as=33554432", "context", "own", "own"], 1),
        (&["context", "as=67108864", "own", "fork", "own"], 1),
    ]);
}

#[test]
fn seccomp() {
    confined(&[(&["wx", "context", "own"], 0), (&["context", "wx", "fork", "own"], 0)]);
    // What it takes to serve once the contexts are there: nothing that stock does not ask of the system, but with a shared
    // cache the thread's id and list of robust locks, and for `reprise status` that the board is removed at the end.
    let sandbox = Sandbox::new();
    let stepper = stepper(&sandbox);
    for (filter, cache, status) in
        [("strict", "memory", "off"), ("strict=exit", "memory", "on"), ("strict=shm", "shm", "off")]
    {
        for version in ["-tls1_2", "-tls1_3"] {
            let case = ["context", "serve", "close", filter, "serve", "serve"];
            let mut stock = steps(&stepper, &sandbox, version, &case);
            let output = run(&mut stock);
            let expected = told(&stock, &output).len();
            let (shared, stats) = (SharedCache::new(), sandbox.file("stats"));
            let mut command = steps(&stepper, &sandbox, version, &case);
            command.env("LD_PRELOAD", libreprise()).env("REPRISE_STATS", &stats).env("REPRISE_STATUS", status);
            if cache == "shm" {
                command.env("REPRISE_CACHE", shared.url());
            }
            let output = run(&mut command);
            assert_eq!(told(&command, &output), vec!["taken"; expected], "{command:?}");
        }
    }
}

/// Before the first SSL_CTX is made and after it.
#[test]
fn another_user_and_another_root() {
    if !is_root() {
        return;
    }
    let user = format!("user={NOBODY}");
    confined(&[
        (&["context", &user, "own", "own"], 1),
        (&[&user, "context", "own"], 0),
        (&["own", "fork", &user, "own"], 1),
        (&["context", "chroot", "own"], 1),
        (&["chroot", "context", "own"], 1),
        (&["own", "chroot", "own", "fork", "own"], 1),
        (&["context", "chroot", &user, "close", "nofile=3", "own", "own"], 1),
        (&["chroot", &user, "close", "nofile=3", "wx", "own"], 1),
    ]);
}

/// A set-user-ID program that /etc/ld.so.preload reaches: nothing in its environment counts, and no file is made.
#[test]
fn set_user_id() {
    if !is_root() {
        return;
    }
    const NAMESPACE: [&str; 5] = ["--mount", "sh", "-c", "mount --bind \"$1\" /etc && shift && exec \"$@\"", "sh"];
    if !run(Command::new("unshare").args(NAMESPACE).args(["/etc", "true"])).status.success() {
        eprintln!("skipped: no mount namespace may be made");
        return;
    }
    let sandbox = Sandbox::new();
    let (stepper, etc, stats) = (stepper(&sandbox), sandbox.file("etc"), sandbox.file("stats"));
    fs::create_dir(&etc).unwrap();
    fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
    fs::write(etc.join("ld.so.preload"), format!("{}\n", libreprise().display())).unwrap();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&stepper, fs::Permissions::from_mode(0o4755)).unwrap();
    let inner = steps(&stepper, &sandbox, "-tls1_3", &["own"]);
    fs::set_permissions(sandbox.certificate().1, fs::Permissions::from_mode(0o644)).unwrap();
    let cache = SharedCache::new();
    let mut command = bare("unshare");
    command.args(NAMESPACE).arg(&etc);
    command.args(["setpriv", "--reuid", NOBODY, "--clear-groups", "env", "REPRISE_SEMANTICS=nonsense"]);
    command.arg(format!("REPRISE_STATS={}", stats.display())).arg(format!("REPRISE_CACHE={}", cache.url()));
    command.arg(inner.get_program()).args(inner.get_args());
    let output = run(&mut command);
    if !output.status.success() && text(&output.stderr).contains("ermission denied") {
        eprintln!("skipped: another user cannot reach {}", stepper.display());
        return;
    }
    assert_eq!(told(&command, &output), ["taken"], "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    assert!(!stats.exists() && !cache.file().exists());
}
