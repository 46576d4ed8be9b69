//! The `reprise` command on real programs: it starts them, shows what they counted, also of processes that were forked,
//! dropped their rights or were killed, and judges programs of every kind.

mod common;
mod redis_world;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    free_port, libreprise, openssl, program, reconnect, repository, run, s_client, text, Sandbox, Server, SharedCache,
    Stats,
};
use redis_world::{key_file, wait_until, Certificates, Cluster, Redis};
use reprise::cache::redis::keys::Keys;
use reprise::cache::{shm, Collision, Inserted, Key};
use serde_json::Value;

/// The command with none of our variables but the library under test.
fn reprise(args: &[&str]) -> Command {
    let mut command = Command::new(common::command());
    for name in ["LD_PRELOAD", "REPRISE_CACHE", "REPRISE_SEMANTICS", "REPRISE_LOG", "REPRISE_STATS", "REPRISE_STATUS"] {
        command.env_remove(name);
    }
    command.env("REPRISE_LIBRARY", libreprise()).args(args);
    command
}

/// What the command said, and its exit code.
fn ask(args: &[&str]) -> (i32, String, String) {
    answer(run(&mut reprise(args)))
}

fn answer(output: Output) -> (i32, String, String) {
    (output.status.code().expect("it was not killed"), text(&output.stdout), text(&output.stderr))
}

/// `status --json` of one program, named by the id of its first process.
fn status(process: u32) -> Option<Value> {
    let (code, out, err) = ask(&["status", &process.to_string(), "--json"]);
    // Of others on this machine, or of the test that makes such a board.
    let err: Vec<&str> = err.lines().filter(|line| !line.contains("another version of Reprise")).collect();
    assert_eq!((code, err), (0, Vec::new()));
    let all: Value = serde_json::from_str(&out).unwrap();
    let programs = all["programs"].as_array().unwrap();
    assert!(programs.len() <= 1, "{out}");
    programs.first().cloned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The boards that a process made.
fn boards(process: u32) -> Vec<PathBuf> {
    let is_its = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .strip_prefix("reprise-status-")
            .is_some_and(|rest| rest.split('-').nth(1) == Some(&process.to_string()))
    };
    fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path()).filter(is_its).collect()
}

fn s_server(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let (cert, key) = sandbox.certificate();
    let openssl = openssl();
    let accept = format!("127.0.0.1:{port}");
    let words = [openssl.to_str().unwrap(), "s_server", "-www", "-no_ticket", "-tls1_2", "-accept", &accept];
    let files = ["-cert", cert.to_str().unwrap(), "-key", key.to_str().unwrap()];
    words.iter().chain(&files).map(ToString::to_string).collect()
}

const TLS12: &[&str] = &["-tls1_2", "-no_ticket", "-n", "20"];

// ---- run ------------------------------------------------------------------------------------------------------

#[test]
fn run_takes_over_and_status_shows_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = Server::start(reprise(&["run", "--"]).args(s_server(&sandbox, port)), &sandbox, port);
    assert_eq!(reconnect(port, TLS12).resumed, 20);
    let seen = status(server.id()).expect("it is on the board");
    // s_server makes a second context for SNI.
    let busy = seen["contexts"].as_array().unwrap().iter().find(|context| context["figures"]["hits"] != 0).unwrap();
    assert_eq!(busy["program"], "openssl");
    assert_eq!(busy["pid"], server.id());
    assert_eq!(busy["semantics"], "stock", "it is preloaded");
    assert_eq!(busy["cache"], "memory");
    assert_eq!(busy["figures"]["hits"], 20);
    assert_eq!(busy["figures"]["sessions"], 1);
    assert!(busy["libssl"].as_str().unwrap().starts_with("OpenSSL "), "{busy}");

    let pid = server.id().to_string();
    let (code, table, _) = ask(&["status", &pid]);
    let line = table.lines().find(|line| line.contains(" 20 ")).unwrap_or_else(|| panic!("{table}"));
    assert!(code == 0 && line.starts_with("openssl"), "{table}");
    let (code, metrics, _) = ask(&["status", &pid, "--prometheus"]);
    let wanted = format!("reprise_hits_total{{program=\"openssl\",pid=\"{pid}\",");
    let line = metrics.lines().find(|line| line.starts_with(&wanted) && line.ends_with(" 20"));
    assert!(code == 0 && line.is_some(), "{metrics}");
    assert_eq!(metrics.matches("# TYPE reprise_hits_total counter\n").count(), 1);

    let (code, said, _) = ask(&["doctor", &pid]);
    assert!(code == 0 && said.contains("Reprise has taken it over") && said.contains("LD_PRELOAD"), "{said}");
    server.stop(libc::SIGTERM);
}

/// Ours comes first, what was to be preloaded stays, options win over the environment.
#[test]
fn run_sets_the_environment() {
    let print = ["sh", "-c", "echo $LD_PRELOAD $REPRISE_SEMANTICS $REPRISE_TICKETS"];
    let ours = libreprise().canonicalize().unwrap();
    let ours = ours.to_str().unwrap();
    let other = Path::new("/lib/x86_64-linux-gnu/libm.so.6");
    let other = if other.exists() { other.to_str().unwrap().to_owned() } else { ours.to_owned() };
    let said = |command: &mut Command| answer(run(command)).1;
    assert_eq!(said(reprise(&["run", "--"]).args(print)), format!("{ours}\n"), "which semantics, the library knows");
    let both = format!("{other}:{ours}");
    let expected = if other == ours { ours.to_owned() } else { format!("{ours}:{other}") };
    assert_eq!(said(reprise(&["run"]).args(print).env("LD_PRELOAD", both)), format!("{expected}\n"));
    let documented = said(reprise(&["run", "--tickets", "as-is"]).args(print).env("REPRISE_SEMANTICS", "documented"));
    assert_eq!(documented, format!("{ours} documented as-is\n"));
    let option = reprise(&["run", "--semantics=stock"]).args(print).env("REPRISE_SEMANTICS", "documented").output();
    assert_eq!(answer(option.unwrap()).1, format!("{ours} stock\n"));
}

/// A cache that processes share is used, unless somebody says otherwise.
#[test]
fn run_with_a_shared_cache_implies_its_use() {
    let print = ["sh", "-c", "echo $REPRISE_TICKETS $REPRISE_INTERNAL $REPRISE_UNCLEAN"];
    let cache = SharedCache::new();
    let shared = format!("--cache={}", cache.url());
    let said = |args: &[&str], variable: &str| {
        let answer = answer(run(reprise(args).args(print).env("REPRISE_INTERNAL", variable)));
        (answer.1.trim_end().to_owned(), answer.2)
    };
    assert_eq!(said(&["run", &shared], "").0, "stateful always keep");
    assert_eq!(said(&["run", &shared], "as-is").0, "stateful as-is keep");
    assert_eq!(said(&["run", &shared, "--tickets=as-is", "--unclean=drop"], "").0, "as-is always drop");
    assert_eq!(said(&["run", "--cache=memory:"], ""), (String::new(), String::new()));
    // In memory, what a ticket names is known to one process.
    let (policies, warning) = said(&["run", "--tickets=stateful"], "");
    assert!(policies == "stateful" && warning.contains("to no other"), "{warning}");
}

#[test]
fn run_ends_as_the_program_or_as_a_shell_would() {
    let sandbox = Sandbox::new();
    assert_eq!(ask(&["run", "--", "sh", "-c", "exit 7"]).0, 7);
    let (code, _, said) = ask(&["run", "--", "no-such-program"]);
    assert!(code == 127 && said.contains("no-such-program"), "{said}");
    let plain = sandbox.file("plain");
    fs::write(&plain, "no program").unwrap();
    let (code, _, said) = ask(&["run", plain.to_str().unwrap()]);
    assert!(code == 126 && said.contains("Permission denied"), "{said}");
}

/// Nothing starts, and a sentence says why.
#[test]
fn wrong_use_is_refused() {
    let sandbox = Sandbox::new();
    let marker = sandbox.file("started");
    let touch = marker.to_str().unwrap();
    let library = sandbox.file("lib");
    fs::write(&library, "not a library").unwrap();
    let wrong: [(&[&str], &str); 7] = [
        (&["run"], "CMD"),
        (&["run", "--semantics", "loud", "touch", touch], "documented, stock"),
        (&["run", "--cache", "nonsense:x", "touch", touch], "REPRISE_CACHE=\"nonsense:x\""),
        (&["run", "--library", "/missing.so", "touch", touch], "/missing.so"),
        (&["run", "--library", library.to_str().unwrap(), "touch", touch], "not the library of Reprise"),
        (&["status", "--json", "--prometheus"], "cannot be used with"),
        (&["doctor", "no-such-program"], "no such program"),
    ];
    for (args, sentence) in wrong {
        let (code, out, said) = ask(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {said}");
        assert!(said.contains(sentence), "{args:?}: {said}");
    }
    let (code, _, said) = answer(run(reprise(&["run", "touch", touch]).env("REPRISE_LOG", "shout")));
    assert!(code == 2 && said.contains("REPRISE_LOG=\"shout\" is unknown"), "{said}");
    assert!(!marker.exists());
}

// ---- status: what real servers counted --------------------------------------------------------------------------

/// Four workers that have dropped root's rights count on rows of their own; the sums are what the counters of
/// REPRISE_STATS say, also after a reload, when the first workers are gone.
#[test]
fn nginx_workers_are_seen_and_counted_once() {
    let sandbox = Sandbox::new();
    sandbox.certificate();
    let port = free_port();
    let stats = sandbox.file("stats");
    let conf = sandbox.file("nginx.conf");
    let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
    let filled = template.replace("@WORKERS@", "4").replace("@PORT@", &port.to_string());
    fs::write(&conf, filled.replace("@PROTOCOL@", "TLSv1.2").replace("@CACHE@", "builtin:1000")).unwrap();
    let mut command = reprise(&["run", "--"]);
    command.arg(program("nginx", "nginx")).arg("-p").arg(sandbox.path()).arg("-c").arg(&conf).args(["-e", "error.log"]);
    let server = Server::start(command.env("REPRISE_STATS", &stats), &sandbox, port);
    let visit = || reconnect(port, &["-tls1_2", "-no_ticket", "-n", "100"]);
    // The last connection is counted when the server is done with it.
    let agree = |visits: u64| {
        let until = Instant::now() + Duration::from_secs(20);
        let seen = loop {
            let stats = Stats::read(&stats);
            let seen = status(server.id()).expect("it is on the board");
            let differs = ["stored", "hits", "misses", "negotiated", "removed", "evicted"]
                .into_iter()
                .find(|name| number(&seen["sums"]["counters"][*name]) != stats[name]);
            let Some(name) = differs else { break seen };
            assert!(Instant::now() < until, "{name}: {seen:#}, {stats:?}");
            thread::sleep(Duration::from_millis(50));
        };
        let sums = &seen["sums"]["counters"];
        let lookups = number(&sums["hits"]) + number(&sums["misses"]);
        assert!(lookups >= 100 * visits, "{sums}");
        seen
    };
    visit();
    let seen = agree(1);
    let rows = seen["contexts"].as_array().unwrap();
    let busy = rows.iter().filter(|row| row["pid"] != server.id() && row["figures"]["misses"] != 0).count();
    assert_eq!(busy, 4, "{seen:#}");
    let user = fs::metadata(format!("/proc/{}", server.id())).unwrap();
    if std::os::unix::fs::MetadataExt::uid(&user) == 0 {
        let worker = number(&rows.iter().find(|row| row["pid"] != server.id()).unwrap()["pid"]);
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        assert!(!status.contains("Uid:\t0"), "{status}");
    }
    server.signal(libc::SIGHUP);
    let deadline = Instant::now() + Duration::from_secs(20);
    let gone = |row: &Value| !Path::new(&format!("/proc/{}", row["pid"])).exists() || row["pid"] == server.id();
    while !rows.iter().all(gone) {
        assert!(Instant::now() < deadline, "the first workers stay");
        thread::sleep(Duration::from_millis(20));
    }
    visit();
    let seen = agree(2);
    assert!(number(&seen["ended"]["misses"]) > 0, "{seen:#}");
    let process = server.id();
    assert_eq!(boards(process).len(), 1);
    assert!(server.stop(libc::SIGQUIT).success());
    assert_eq!(boards(process), Vec::<PathBuf>::new(), "the last process removes the board");
}

/// On a terminal it is drawn until q is pressed, and the terminal is given back as it was; elsewhere it is printed
/// until somebody has enough.
#[test]
fn watch_shows_and_ends() {
    let sandbox = Sandbox::new();
    let (child, _) = Handshakes::start(reprise(&["run", "--"]), &sandbox, ["0", "7", "0"]);
    let pid = child.0.id().to_string();
    let script = "import os, pty, sys, time\n\
                  process, terminal = pty.fork()\n\
                  if process == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
                  seen = b''\n\
                  while b'q ends' not in seen: seen += os.read(terminal, 65536)\n\
                  os.write(terminal, b'q')\n\
                  try:\n\
                  \x20   while True: seen += os.read(terminal, 65536)\n\
                  except OSError: pass\n\
                  sys.stdout.buffer.write(seen); sys.exit(os.waitpid(process, 0)[1])";
    let mut terminal = Command::new(program("python3", "python3"));
    terminal.args(["-c", script, common::command().to_str().unwrap(), "status", &pid, "--watch"]);
    let (code, seen, said) = answer(run(&mut terminal));
    assert_eq!((code, said.as_str()), (0, ""), "{seen:?}");
    assert!(seen.contains("PROGRAM") && seen.contains(&pid), "{seen:?}");
    assert!(seen.starts_with("\x1b[?1049h") && seen.ends_with("\x1b[?25h\x1b[?1049l"), "{seen:?}");

    let mut lines = reprise(&["status", &pid, "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let printed = BufReader::new(lines.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(printed.filter(|line| line.contains(&pid)).take(2).count(), 2);
    assert_eq!(lines.wait().unwrap().code(), Some(0), "nobody reads any more");
    child.end();
}

struct Handshakes(Child);

impl Handshakes {
    /// Runs tests/programs/handshakes.py; the statistics that its first child printed.
    fn start(mut command: Command, sandbox: &Sandbox, args: [&str; 3]) -> (Handshakes, Value) {
        sandbox.certificate();
        // Python itself: what pyenv puts before it is a shell script.
        command.arg("/usr/bin/python3").arg(repository("tests/programs/handshakes.py")).args(args);
        let child = command.current_dir(sandbox.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = Handshakes(child.unwrap());
        let lines: Vec<String> = BufReader::new(child.0.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .take_while(|line| line != "done")
            .collect();
        let statistics = lines.first().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
        (child, statistics)
    }

    fn end(mut self) -> u32 {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
        self.0.id()
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a child SSL_CTX_sess_hits and its like go on from the parent's numbers; on the board nothing is counted twice.
/// More children come than a board has rows, and none leaves its row by itself.
#[test]
fn forked_children_count_on_rows_of_their_own() {
    let sandbox = Sandbox::new();
    let (child, statistics) = Handshakes::start(reprise(&["run", "--"]), &sandbox, ["1100", "10", "3"]);
    let seen = status(child.0.id()).expect("it is on the board");
    assert_eq!(statistics["hits"], 13, "{statistics}");
    assert_eq!(statistics["misses"], 1, "{statistics}");
    assert_eq!(seen["sums"]["counters"]["hits"], 10 + 3 * 1100, "{}", seen["sums"]);
    let own = seen["contexts"].as_array().unwrap().iter().find(|row| row["figures"]["hits"] == 10).unwrap();
    assert_eq!(own["figures"]["sessions"], 1);
    assert_eq!(boards(child.end()), Vec::<PathBuf>::new());
}

#[test]
fn killed_programs_leave_nothing_for_long() {
    let sandbox = Sandbox::new();
    let start = |args: [&str; 3]| Handshakes::start(reprise(&["run", "--"]), &sandbox, args).0;
    let mut killed = [start(["0", "1", "0"]), start(["0", "1", "0"])].map(|mut child| {
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        child.0.id()
    });
    // The next program of this user removes them, if none did meanwhile.
    let next = start(["0", "1", "0"]);
    assert!(killed.iter().all(|&process| boards(process).is_empty()));
    killed[0] = next.0.id();
    drop(next);
    // And so does the command.
    assert_eq!(status(killed[0]), None);
    assert_eq!(boards(killed[0]).len(), 0);
}

/// A child is a copy of this test first.
fn wait_until_it_is(name: &str, pid: u32) {
    let until = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != name {
        assert!(Instant::now() < until, "{pid} does not become {name}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn status_can_be_switched_off() {
    let sandbox = Sandbox::new();
    let mut command = reprise(&["run", "--"]);
    command.env("REPRISE_STATUS", "off");
    let (child, _) = Handshakes::start(command, &sandbox, ["1", "5", "1"]);
    assert_eq!(status(child.0.id()), None);
    assert_eq!(boards(child.end()), Vec::<PathBuf>::new());
    // A program without TLS makes none.
    let mut sleeper = reprise(&["run", "--", "sleep", "30"]).spawn().unwrap();
    wait_until_it_is("sleep", sleeper.id());
    let made = boards(sleeper.id());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(made, Vec::<PathBuf>::new());
}

/// No room for the board, or a limit that would end the process with a signal: statistics are right, nothing is said.
#[test]
fn a_board_that_cannot_be_made_hurts_nobody() {
    let sandbox = Sandbox::new();
    let wrap = |script: &str| {
        let mut command = Command::new("sh");
        let reprise = reprise(&[]);
        for (name, value) in reprise.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.arg("-c").arg(format!("{script} exec {} run -- \"$@\"", common::command().display())).arg("sh");
        command
    };
    // Python ignores SIGXFSZ; this one would die of it.
    let output = run(wrap("ulimit -f 1;").arg(openssl()).args(["s_client", "-connect", "127.0.0.1:1"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let mut sides = vec![wrap("ulimit -f 1;")];
    let can_mount = run(Command::new("unshare").args(["-m", "true"])).status.success();
    if can_mount {
        for kilobytes in [0, 4, 8, 12, 40, 48, 64] {
            let mut command = Command::new("unshare");
            let size = if kilobytes == 0 { "ro".into() } else { format!("size={kilobytes}k") };
            let inner = wrap(&format!("mount -t tmpfs -o {size} none /dev/shm || exit 9;"));
            command.arg("-m").arg("sh").args(inner.get_args());
            inner.get_envs().for_each(|(name, value)| match value {
                Some(value) => drop(command.env(name, value)),
                None => drop(command.env_remove(name)),
            });
            sides.push(command);
        }
    } else {
        eprintln!("not run: a full /dev/shm, which needs the right to mount");
    }
    for command in sides {
        let what = format!("{command:?}");
        let (child, statistics) = Handshakes::start(command, &sandbox, ["2", "10", "3"]);
        assert_eq!(statistics["hits"], 13, "{what}: {statistics}");
        child.end();
    }
}

/// A board of another version is named, not guessed at.
#[test]
fn a_board_of_another_version_is_refused_in_words() {
    let sandbox = Sandbox::new();
    let (child, _) = Handshakes::start(reprise(&["run", "--"]), &sandbox, ["0", "1", "0"]);
    let board = boards(child.0.id()).pop().unwrap();
    let mut bytes = fs::read(&board).unwrap();
    bytes[8] = 99; // the layout follows the magic
    let copy = Path::new("/dev/shm").join(format!("reprise-status-0-{}-1", std::process::id()));
    fs::write(&copy, bytes).unwrap();
    let (code, _, said) = ask(&["status"]);
    fs::remove_file(&copy).unwrap();
    assert!(code == 0 && said.contains("another version of Reprise (layout 99"), "{said}");
    child.end();
}

// ---- doctor -----------------------------------------------------------------------------------------------------

/// The exit code and that all of `words` are said.
#[track_caller]
fn doctor(program: &str, code: i32, words: &[&str]) {
    let (seen, said, _) = ask(&["doctor", program]);
    assert_eq!(seen, code, "{program}: {said}");
    for word in words {
        assert!(said.contains(word), "{program}: {word:?} is not in: {said}");
    }
}

#[test]
fn doctor_knows_programs_that_are_served() {
    doctor(program("nginx", "nginx").to_str().unwrap(), 0, &["It loads libssl.so.", "OpenSSL ", "takes it over"]);
    doctor("curl", 0, &["through libcurl"]);
    doctor("/usr/bin/python3", 0, &["later, with", "_ssl"]);
    let sandbox = Sandbox::new();
    let script = sandbox.file("server");
    fs::write(&script, "#!/usr/bin/env -S curl --config\n").unwrap();
    doctor(script.to_str().unwrap(), 0, &["is a script for", "curl"]);
}

#[test]
fn doctor_knows_programs_that_are_not() {
    let sandbox = Sandbox::new();
    let compile = |name: &str, source: &str, args: &[&str]| {
        let (file, out) = (sandbox.file(&format!("{name}.c")), sandbox.file(name));
        fs::write(&file, source).unwrap();
        let mut cc = common::compiler("CC", "cc", "gcc libc6-dev");
        common::succeed(cc.args(args).arg(&file).arg("-o").arg(&out));
        out.to_str().unwrap().to_owned()
    };
    let plain = "int main(void) { return 0; }";
    doctor(&compile("static", plain, &["-static"]), 1, &["statically linked"]);
    doctor(&compile("plain", plain, &[]), 1, &["does not load libssl"]);
    // As Node.js does: libssl inside, its functions exported.
    let inside = "const char text[] = \"OpenSSL 3.5.7 9 Jun 2026\"; void *SSL_CTX_new(void *m) { return m; } \
                  int main(void) { return text[0] == 0; }";
    doctor(&compile("exports", inside, &["-rdynamic"]), 1, &["OpenSSL 3.5.7 9 Jun 2026", "its own copy"]);
    doctor(&compile("hidden", inside, &[]), 1, &["OpenSSL 3.5.7 9 Jun 2026 inside"]);
    doctor("sh", 1, &["A shell does no TLS itself"]);
    let script = sandbox.file("script.sh");
    fs::write(&script, "#!/bin/sh\ncurl\n").unwrap();
    doctor(script.to_str().unwrap(), 1, &["is a script for", "reaches the programs that it starts"]);
    fs::write(&script, "plain text").unwrap();
    doctor(script.to_str().unwrap(), 1, &["neither an ELF program"]);
    fs::write(&script, b"\x7fELF and nothing more").unwrap();
    doctor(script.to_str().unwrap(), 1, &["damaged"]);
    let gone = sandbox.file("gone");
    fs::write(&script, format!("#!{}\n", gone.display())).unwrap();
    doctor(script.to_str().unwrap(), 1, &["interpreter is not found"]);
    if let Ok(node) = fs::canonicalize("/usr/bin/node") {
        // Whichever way it was built, the verdict comes with its reason.
        let (code, said, _) = ask(&["doctor", node.to_str().unwrap()]);
        assert!(code == 1 && said.contains("its own copy") || code == 0 && said.contains("It loads libssl"), "{said}");
    }
}

#[test]
fn doctor_knows_a_process_that_was_not_started_with_it() {
    let mut sleeper = Command::new("sleep").arg("30").env_remove("LD_PRELOAD").spawn().unwrap();
    wait_until_it_is("sleep", sleeper.id());
    doctor(&sleeper.id().to_string(), 1, &["Reprise is not loaded in it", "reprise run"]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let (code, _, said) = ask(&["doctor", &sleeper.id().to_string()]);
    assert!(code == 2 && said.contains("there is no process"), "{said}");
}

// ---- Finding the library, and what is generated -----------------------------------------------------------------

/// As installed: bin/reprise and lib/libreprise.so.0, or a lib folder with the machine's name.
#[test]
fn the_library_is_found_where_it_is_installed() {
    for folder in ["lib", "lib64", "lib/x86_64-linux-gnu"] {
        let sandbox = Sandbox::new();
        let command = sandbox.file("bin/reprise");
        fs::create_dir_all(sandbox.file("bin")).unwrap();
        fs::create_dir_all(sandbox.file(folder)).unwrap();
        fs::hard_link(common::command(), &command).unwrap();
        let mut print = Command::new(&command);
        print
            .args(["run", "--", "sh", "-c", "echo $LD_PRELOAD"])
            .env_remove("LD_PRELOAD")
            .env_remove("REPRISE_LIBRARY");
        let (code, _, said) = answer(print.output().unwrap());
        assert!(code == 2 && said.contains("--library"), "{said}");
        // One for another processor (its machine is 0xffff) comes first in the order of names.
        let mut foreign = fs::read(libreprise()).unwrap();
        foreign[18..20].fill(0xff);
        fs::create_dir_all(sandbox.file("lib/a-foreign-triplet")).unwrap();
        fs::write(sandbox.file("lib/a-foreign-triplet/libreprise.so.0"), foreign).unwrap();
        let (code, _, said) = answer(print.output().unwrap());
        assert!(code == 2 && said.contains("--library"), "{said}");

        // The link is named, and not what it leads to today: an upgrade replaces that.
        let link = sandbox.file(folder).canonicalize().unwrap().join("libreprise.so.0");
        symlink(libreprise(), &link).unwrap();
        let found = answer(print.output().unwrap()).1;
        assert_eq!(found.trim(), link.to_str().unwrap());
    }
}

#[test]
fn manual_pages_and_completions_come_from_the_same_source() {
    let sandbox = Sandbox::new();
    let (code, _, said) = ask(&["generate", "man", sandbox.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let page = fs::read_to_string(sandbox.file("reprise-status.1")).unwrap();
    assert!(page.contains("prometheus") && page.contains("REPLAYS"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = ask(&["generate", "completions", shell]);
        assert!(code == 0 && script.contains("doctor"), "{shell}: {script}");
    }
    for subcommand in ["run", "status", "doctor", "cache", "keygen"] {
        let (code, help, _) = ask(&[subcommand, "--help"]);
        assert!(code == 0 && help.contains("Examples:\n  reprise "), "{help}");
    }
}

// ---- cache ------------------------------------------------------------------------------------------------------

/// A cache in shared memory, gone at the end of the test.
struct Shared(String);

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = shm::remove(&self.0);
    }
}

#[test]
fn caches_are_listed_shown_emptied_and_removed() {
    let cache = Shared(format!("command-{}", std::process::id()));
    let name = cache.0.as_str();
    let url = format!("shm:{name}?size=1M");
    assert_eq!(ask(&["run", "--cache", &url, "--", "true"]).0, 0, "made beforehand");
    let (code, _, said) = ask(&["run", "--cache", &format!("shm:{name}?size=2M"), "--", "true"]);
    assert!(code == 2 && said.contains("was made with size=1M") && said.contains("2M"), "{said}");

    let area = shm::Area::find(name).unwrap();
    let secret = b"the bytes of a session";
    for number in 0..3u8 {
        let key = Key::new(0x304, &[0xa5, number]).unwrap();
        let inserted = area.insert([1, 2], &key, secret, i64::from(u32::MAX), Collision::Replace, 0, &mut Vec::new());
        assert_eq!(inserted, Inserted::Added);
    }
    let (code, list, _) = ask(&["cache", "ls"]);
    let line = list.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{list}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(code == 0 && words[1] == "1M" && words[4] == "3", "{line}");
    let (code, shown, _) = ask(&["cache", "show", name]);
    assert!(code == 0 && shown.contains("sessions  3\n") && shown.contains("inserted  3\n"), "{shown}");
    assert!(!shown.contains("a5") && !shown.contains("the bytes"), "no ids, no bytes: {shown}");
    let (_, json, _) = ask(&["cache", "show", name, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["sessions"], &json["services"][0]["sessions"]), (&3.into(), &3.into()), "{json}");

    assert_eq!(ask(&["cache", "flush", name]), (0, format!("3 sessions removed from {name}.\n"), String::new()));
    assert_eq!(area.info().sessions, 0);
    assert_eq!(ask(&["cache", "rm", name]).0, 0);
    let (code, _, said) = ask(&["cache", "show", name]);
    assert!(code == 1 && said.contains("is not there"), "{said}");
    assert_eq!(ask(&["cache", "rm", "../etc/passwd"]).0, 1);
}

// ---- keygen -----------------------------------------------------------------------------------------------------

#[test]
fn keygen_prints_a_fresh_line() {
    let (code, line, _) = ask(&["keygen"]);
    assert!(code == 0 && line.len() == 65 && line.ends_with('\n') && Keys::parse(&line).is_ok(), "{line}");
    assert_ne!(ask(&["keygen"]).1, line);
}

/// A file goes from A to A B, to B A, to B; what else it says, its owner and its mode stay.
#[test]
fn keygen_takes_a_file_through_a_rotation() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("key");
    let path = file.to_str().unwrap();
    let step = |step: &str| {
        let (code, said, err) = ask(&["keygen", "--key-file", path, step]);
        let content = fs::read_to_string(&file).unwrap();
        let shown = content
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .any(|key| format!("{said}{err}").contains(key));
        assert!(!shown, "no key is shown: {said}{err}");
        assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 2, "nothing is left beside the file and its link");
        (code, said + &err, content)
    };
    // As a deployment tool may have it.
    let link = sandbox.file("link");
    symlink(&file, &link).unwrap();
    let (code, said, _) = ask(&["keygen", "--key-file", path]);
    assert!(code == 0 && said.contains("has 1 key"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    let a = fs::read_to_string(&file).unwrap();
    let (code, _, said) = ask(&["keygen", "--key-file", path]);
    assert!(code == 1 && said.contains("is there already"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), a);
    for alone in ["--rotate", "--retire"] {
        let (code, said, content) = step(alone);
        assert!(code == 1 && said.contains("one key only") && content == a, "{said}");
    }

    let (names, a) = a.trim().split_once('\n').unwrap();
    assert!(names.starts_with("fleet ") && names.len() == 70, "it keys the names of services");
    fs::write(&file, format!("# fleet\n\n{names}\n{a} # old")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root {
        std::os::unix::fs::chown(&file, None, Some(12345)).unwrap();
    }
    let (code, said, content) = step("--add");
    let b = content.lines().last().unwrap().to_owned();
    assert!(code == 0 && said.contains("has 2 keys"), "{said}");
    assert_eq!(content, format!("# fleet\n\n{names}\n{a} # old\n{b}\n"));
    assert_eq!(step("--rotate").2, format!("# fleet\n\n{names}\n{b}\n{a} # old\n"));
    let (code, _, said) = ask(&["keygen", "--key-file", link.to_str().unwrap(), "--retire"]);
    assert_eq!((code, said.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("# fleet\n\n{names}\n{b}\n"));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let found = fs::metadata(&file).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o640);
    assert!(!root || found.gid() == 12345);
}

#[test]
fn keygen_refuses_what_it_cannot_do_safely() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("key");
    let path = file.to_str().unwrap();
    let refused = |step: &str, says: &str| {
        let before = fs::read(&file).ok();
        let (code, _, said) = ask(&["keygen", "--key-file", path, step]);
        assert!(code == 1 && said.contains(says) && said.lines().count() == 1, "{said}");
        assert_eq!(fs::read(&file).ok(), before);
    };
    refused("--add", "No such file");
    let (code, _, said) = ask(&["keygen", "--key-file", sandbox.file("no/key").to_str().unwrap()]);
    assert!(code == 1 && said.contains("No such file"), "{said}");
    let keys: String = (0..64).map(|_| Keys::generate() + "\n").collect();
    fs::write(&file, keys).unwrap();
    refused("--add", "its mode is 0644");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    refused("--add", "more than 64 keys");
    fs::write(sandbox.file(".key.new"), "").unwrap();
    refused("--rotate", "being changed by another command");
    fs::remove_file(sandbox.file(".key.new")).unwrap();
    fs::write(&file, "0123\n").unwrap();
    refused("--add", "line 1: it has 4 hex digits");
    assert!(!sandbox.file(".key.new").exists());
    for wrong in [&["keygen", "--add"][..], &["keygen", "--key-file", path, "--add", "--rotate"]] {
        assert_eq!(ask(wrong).0, 2);
    }
}

/// A URL of a Redis is checked with its key file before the program starts, and what is said hides the password.
#[test]
fn run_checks_the_key_file_and_hides_the_password() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("key");
    let url = |more: &str| format!("redis://me:SECRET@127.0.0.1:1/0?key={}{more}", file.display());
    let refused = |url: &str, says: &str| {
        let (code, _, said) = ask(&["run", "--cache", url, "--", "true"]);
        assert!(code == 2 && said.contains(says) && !said.contains("SECRET"), "{said}");
    };
    refused(&url(""), "No such file");
    assert_eq!(ask(&["keygen", "--key-file", file.to_str().unwrap()]).0, 0);
    refused(&url("&deadline=1h"), "redis://me:***@127.0.0.1:1/0");
    refused(&url("&deadline=1h"), "deadline=\"1h\" is no time");
    let (code, _, said) = ask(&["run", "--cache", &url(""), "--", "true"]);
    assert!(code == 0 && said.contains("Connection refused") && !said.contains("SECRET"), "{said}");
}

// ---- Redis ------------------------------------------------------------------------------------------------------

/// A redis-server with the password SECRET, and a key file.
struct Guarded {
    redis: Redis,
    key: String,
}

impl Guarded {
    fn start(sandbox: &Sandbox, more: &[&str]) -> Guarded {
        let redis = Redis::start(sandbox, &[&["requirepass SECRET"], more].concat());
        Guarded { redis, key: key_file(sandbox, "fleet", &[1]) }
    }

    fn url(&self, more: &str) -> String {
        self.url_as(":SECRET@", more)
    }

    fn url_as(&self, who: &str, more: &str) -> String {
        format!("redis://{who}{}/0?key={}{more}", self.redis.address(), self.key)
    }

    /// As status and messages name it.
    fn name(&self) -> String {
        format!("redis://{}/0", self.redis.address())
    }
}

/// Waits until `status` of the program says `what` of its links, and returns it.
#[track_caller]
fn wait_for(process: u32, what: impl Fn(&[Value]) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let seen = status(process).expect("it is on the board");
        if what(seen["links"].as_array().unwrap()) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{:#}", seen["links"]);
        thread::sleep(Duration::from_millis(20));
    }
}

fn visit(port: u16) -> String {
    let mut command = Command::new(openssl());
    command.env_remove("LD_PRELOAD").args(["s_client", "-connect", &format!("127.0.0.1:{port}")]);
    text(&run(&mut command).stdout)
}

/// What a link counts is seen from outside, and how it is, also while nobody visits the server.
#[test]
fn status_shows_the_link_to_redis() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    let port = free_port();
    let mut command = reprise(&["run", "--cache", &redis.url(""), "--"]);
    let server = Server::start(command.args(s_server(&sandbox, port)), &sandbox, port);
    let pid = server.id().to_string();
    assert_eq!(status(server.id()).unwrap()["links"].as_array().unwrap().len(), 0, "nothing was asked yet");
    assert_eq!(reconnect(port, TLS12).resumed, 20);
    // A process that has written a session has heard whether there are ids that nobody issued.
    wait_for(server.id(), |links| links.iter().any(|link| link["counters"]["written"] == 1));
    // A client that may do TLS 1.3 makes up an id for its first connection.
    assert!(visit(port).contains("New, TLSv1.2"));
    let session = sandbox.file("session.pem");
    s_client(Command::new(openssl()), port, &["-tls1_2"], Some(&session));
    wait_for(server.id(), |links| links.iter().any(|link| link["counters"]["written"] == 3));
    // What is written is not pending any more: Redis is asked.
    let again = ["-tls1_2", "-sess_in", session.to_str().unwrap()];
    assert!(s_client(Command::new(openssl()), port, &again, None).contains("Reused, TLSv1.2"));
    let seen = status(server.id()).unwrap();
    let link = &seen["links"][0];
    assert_eq!(seen["links"].as_array().unwrap().len(), 1, "{seen:#}");
    assert_eq!(link["cache"], redis.name());
    assert_eq!((&link["pid"], &link["broken"], &link["queue"]), (&server.id().into(), &false.into(), &0.into()));
    assert_eq!(link["counters"]["refused_ids"], 1, "{link:#}");
    let answers = number(&link["answers"]);
    let slots: u64 = link["slots"].as_array().unwrap().iter().map(|slot| number(&slot["answers"])).sum();
    assert_eq!(answers + number(&link["counters"]["found_pending"]), 21, "each lookup is one: {link:#}");
    assert!(slots == answers && link["p50_seconds"].as_f64() <= link["p99_seconds"].as_f64(), "{link:#}");
    assert!(number(&link["counters"]["round_trip_micros"]) > 0, "{link:#}");

    let (_, table, _) = ask(&["status", &pid]);
    let line = table.lines().find(|line| line.contains(" up ")).unwrap_or_else(|| panic!("{table}"));
    assert!(line.starts_with("openssl") && line.contains(&redis.name()), "{table}");
    let (_, metrics, _) = ask(&["status", &pid, "--prometheus"]);
    let labels = format!("program=\"openssl\",pid=\"{pid}\",cache=\"{}\"", redis.name());
    for line in [
        format!("reprise_redis_round_trip_seconds_bucket{{{labels},le=\"+Inf\"}} {answers}\n"),
        format!("reprise_redis_round_trip_seconds_count{{{labels}}} {answers}\n"),
        format!("reprise_redis_written_total{{{labels}}} 3\n"),
        format!("reprise_redis_is_broken{{{labels}}} 0\n"),
        "# TYPE reprise_redis_round_trip_seconds histogram\n".into(),
    ] {
        assert_eq!(metrics.matches(&line).count(), 1, "{line} {metrics}");
    }
    assert!(!format!("{table}{metrics}{seen}").contains("SECRET"));

    redis.redis.pause();
    assert_eq!(reconnect(port, &["-tls1_2", "-no_ticket", "-n", "6"]).failed, 0);
    // The writer finds out as well.
    let seen = wait_for(server.id(), |links| links[0]["broken"] == true && links[0]["queue"] != 0);
    let counters = &seen["links"][0]["counters"];
    assert!(number(&counters["failed"]) >= 3 && counters["broken"] == 1, "{counters:#}");
    assert!(ask(&["status", &pid]).1.contains(" broken "));
    redis.redis.resume();
    let seen = wait_for(server.id(), |links| links[0]["broken"] == false && links[0]["queue"] == 0);
    assert_eq!(seen["links"][0]["counters"]["mended"], 1, "{seen:#}");
}

/// Each worker has a link of its own, and what those of the first workers counted stays when others take their place.
#[test]
fn links_of_ended_workers_stay_in_the_sums() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    sandbox.certificate();
    let port = free_port();
    let conf = sandbox.file("nginx.conf");
    let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
    let filled = template.replace("@WORKERS@", "2").replace("@PORT@", &port.to_string());
    fs::write(&conf, filled.replace("@PROTOCOL@", "TLSv1.2").replace("@CACHE@", "builtin:1000")).unwrap();
    let mut command = reprise(&["run", "--cache", &redis.url(""), "--"]);
    command.arg(program("nginx", "nginx")).arg("-p").arg(sandbox.path()).arg("-c").arg(&conf).args(["-e", "error.log"]);
    let server = Server::start(&mut command, &sandbox, port);
    let visit = || {
        let seen = reconnect(port, &["-tls1_2", "-no_ticket", "-n", "100"]);
        // The other worker may be asked before the first session is in Redis.
        assert!(seen.failed == 0 && seen.resumed > 90, "{seen:?}");
    };
    visit();
    let busy = |links: &[Value]| links.iter().filter(|link| link["answers"] != 0).count();
    let seen = wait_for(server.id(), |links| busy(links) == 2);
    let pids: Vec<Value> = seen["links"].as_array().unwrap().iter().map(|link| link["pid"].clone()).collect();
    let lookups = |seen: &Value| {
        let links = seen["links"].as_array().unwrap().iter().map(|link| &link["counters"]);
        let micros = links.chain([&seen["ended_links"]]).map(|counters| number(&counters["round_trip_micros"]));
        micros.sum::<u64>()
    };
    let before = lookups(&seen);
    server.signal(libc::SIGHUP);
    let deadline = Instant::now() + Duration::from_secs(20);
    while pids.iter().any(|pid| *pid != server.id() && Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(Instant::now() < deadline, "the first workers stay");
        thread::sleep(Duration::from_millis(20));
    }
    let seen = status(server.id()).unwrap();
    assert!(number(&seen["ended_links"]["round_trip_micros"]) > 0, "{seen:#}");
    assert_eq!(lookups(&seen), before, "{seen:#}");
    visit();
    let seen = wait_for(server.id(), |links| busy(links) == 2);
    assert!(lookups(&seen) > before, "{seen:#}");
}

/// What somebody has to put right is refused before anything starts; what may pass by itself is a warning.
#[test]
fn run_and_doctor_tell_mistakes_from_trouble() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    let other = Guarded::start(&sandbox, &["maxmemory-policy allkeys-lru"]);
    let certificates = Certificates::new(&sandbox);
    let encrypted = Redis::with_tls(&sandbox, &certificates, &["requirepass SECRET"]);
    let tls = |ca: &str, client: &str| {
        let of = |name: &str| certificates.file(name);
        let client = match client {
            "" => String::new(),
            client => format!("&cert={}&cert_key={}", of(&format!("{client}.pem")), of(&format!("{client}.key"))),
        };
        format!("rediss://:SECRET@{}/0?key={}&ca={}{client}", encrypted.address(), redis.key, of(ca))
    };
    redis.redis.cli(&["ACL", "SETUSER", "web", "on", ">SECRET", "~reprise:*", "+@all", "-getex"]);
    let told = |url: &str, code: i32, says: &str| {
        let (seen, _, said) = ask(&["run", "--cache", url, "--", "true"]);
        assert!(seen == code && said.contains(says), "{url}: {seen}: {said}");
        let (seen, found, errors) = ask(&["doctor", "--cache", url]);
        assert!(seen == i32::from(!says.is_empty()) && found.contains(says), "{url}: {seen}: {found}{errors}");
        let lines = usize::from(!says.is_empty());
        assert!(said.lines().count() == lines && !format!("{said}{found}").contains("SECRET"), "{said}{found}");
    };
    told(&redis.url(""), 0, "");
    told(&redis.url_as(":SECRETS@", ""), 2, "authentication failed");
    told(&redis.url_as("", ""), 2, "NOAUTH");
    told(&redis.url_as("web:SECRET@", ""), 2, "no permissions to run the 'getex' command");
    told(&redis.url("").replace("/0?", "/99?"), 2, "DB index is out of range");
    told(&redis.url("").replace("redis://", "redis+cluster://").replace("/0?", "?"), 2, "cluster support disabled");
    told(&redis.url("").replace(":SECRET@127.0.0.1", ":SECRET"), 2, "host 1 has several colons");
    told(&tls("ca.pem", "client"), 0, "");
    told(&tls("other-ca.pem", "client"), 2, "invalid peer certificate");
    told(&tls("ca.pem", "stranger"), 2, "received fatal alert");
    told(&tls("ca.pem", ""), 2, "received fatal alert: CertificateRequired");
    told(&tls("missing.pem", ""), 2, "missing.pem: No such file");
    told(&other.url(""), 0, "maxmemory-policy is allkeys-lru");
    redis.redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    told(&redis.url(""), 0, "read only replica");
    redis.redis.pause();
    told(&redis.url("&connect=50ms"), 0, "no answer within 50ms");
    redis.redis.kill();
    told(&redis.url(""), 0, "Connection refused");
}

/// The cache is the one of the process, of the environment or of the option.
#[test]
fn doctor_finds_the_cache_and_hides_its_password() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    let port = free_port();
    let mut command = reprise(&["run", "--cache", &redis.url(""), "--"]);
    let server = Server::start(command.args(s_server(&sandbox, port)), &sandbox, port);
    let pid = server.id().to_string();
    let answers = format!("The cache {} (version ", redis.name());
    let (code, said, _) = ask(&["doctor", &pid]);
    assert!(code == 0 && said.contains(&answers) && said.contains("has taken it over"), "{said}");
    let (code, said, _) = answer(run(reprise(&["doctor", "curl"]).env("REPRISE_CACHE", redis.url(""))));
    assert!(code == 0 && said.contains(&answers) && said.contains("takes it over"), "{said}");
    let (code, said, _) = ask(&["doctor", "curl", "--cache", "redis://:SECRET@127.0.0.1/0"]);
    assert!(code == 1 && said.contains("redis://:***@127.0.0.1/0") && said.contains("key is missing"), "{said}");
    redis.redis.kill();
    let (code, said, _) = ask(&["doctor", &pid]);
    assert!(code == 1 && said.contains("cannot be reached") && !said.contains("SECRET"), "{said}");
}

/// A flush ends the sessions below one prefix, whatever characters it has, and no others.
#[test]
fn a_cache_in_redis_is_shown_and_flushed() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    let start = |prefix: &str| {
        let port = free_port();
        let url = redis.url(&format!("&prefix={prefix}"));
        let mut command = reprise(&["run", "--cache", &url, "--"]);
        (Server::start(command.args(s_server(&sandbox, port)), &sandbox, port), port, url)
    };
    let servers = [start("a*[b]:"), start("axb:")];
    let session = |port: u16| sandbox.file(&format!("session-{port}"));
    let visit = |port: u16, how: &str| {
        let mut command = Command::new(openssl());
        let address = format!("127.0.0.1:{port}");
        command.env_remove("LD_PRELOAD").args(["s_client", "-tls1_2", "-connect", &address, how]).arg(session(port));
        text(&run(&mut command).stdout).lines().find(|line| line.contains(", TLSv1.2")).unwrap().to_owned()
    };
    for (server, port, _) in &servers {
        assert!(visit(*port, "-sess_out").starts_with("New"));
        wait_for(server.id(), |links| links.iter().any(|link| link["counters"]["written"] == 1));
        assert!(visit(*port, "-sess_in").starts_with("Reused"));
    }
    let [(first, first_port, url), (_, second_port, _)] = &servers;
    let (code, shown, _) = ask(&["cache", "show", url]);
    assert!(code == 0 && shown.contains("maxmemory_policy") && !shown.contains("SECRET"), "{shown}");
    let (_, json, _) = ask(&["cache", "show", url, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    // For each service its generation, and two sessions.
    assert_eq!((&json["nodes"][0]["keys"], &json["nodes"][0]["info"]["role"]), (&4.into(), &"master".into()));

    let (code, said, errors) = ask(&["cache", "flush", url]);
    assert!(code == 0 && said.contains("All sessions of 1 service removed") && !said.contains("SECRET"), "{errors}");
    assert!(visit(*first_port, "-sess_in").starts_with("New"));
    assert_eq!(status(first.id()).unwrap()["links"][0]["counters"]["outdated"], 1);
    assert!(visit(*second_port, "-sess_in").starts_with("Reused"));
    assert_eq!(ask(&["cache", "rm", url]).0, 2);
    let (code, _, said) = ask(&["cache", "flush", "redis://:SECRET@127.0.0.1:1/0"]);
    assert!(code == 2 && said.contains("key is missing") && !said.contains("SECRET"), "{said}");
}

/// Of a Cluster each master is shown, and flushed.
#[test]
fn a_cluster_is_shown_and_flushed() {
    let sandbox = Sandbox::new();
    let cluster = Cluster::start(&sandbox, false, &["user web on >SECRET allkeys allcommands"]);
    let key = key_file(&sandbox, "fleet", &[1]);
    // One node knows the others.
    let url = format!("redis+cluster://web:SECRET@{}?key={key}", cluster.nodes[0].address());
    let port = free_port();
    let mut command = reprise(&["run", "--cache", &url, "--"]);
    let server = Server::start(command.args(s_server(&sandbox, port)), &sandbox, port);
    reconnect(port, &["-tls1_2", "-no_ticket", "-n", "1"]);
    let generations = || -> Vec<String> {
        let keys = cluster.nodes.iter().flat_map(|node| node.keys().into_iter().map(move |key| (node, key)));
        let control = keys.filter(|(_, key)| key.ends_with(b":generation"));
        control.map(|(node, key)| text(&node.get(&key).unwrap())).collect()
    };
    wait_for(server.id(), |links| links.iter().any(|link| link["counters"]["written"] != 0));
    let before = generations();
    assert_eq!(before.len(), 256);
    let (code, shown, _) = ask(&["cache", "show", &url]);
    assert!(code == 0 && cluster.nodes.iter().all(|node| shown.contains(&node.address())), "{shown}");
    let (code, said, _) = ask(&["cache", "flush", &url]);
    assert!(code == 0 && said.contains("of 1 service removed") && !said.contains("SECRET"), "{said}");
    let number = |text: &String| text.parse::<u64>().unwrap();
    let after = generations();
    let highest = before.iter().map(number).max();
    assert!(after.len() == 256 && after.iter().all(|text| Some(number(text)) > highest), "{before:?} {after:?}");
    let (code, said, _) = ask(&["doctor", "--cache", &url.replace("SECRET", "wrong")]);
    assert!(code == 1 && said.contains("authentication failed"), "{said}");
}

/// A process that served no connection has neither a thread nor a socket for Redis; then two threads, in which no signal
/// handler of the program can run.
#[test]
fn threads_and_sockets_come_with_the_first_connection() {
    let sandbox = Sandbox::new();
    let redis = Guarded::start(&sandbox, &[]);
    let port = free_port();
    let mut command = reprise(&["run", "--cache", &redis.url(""), "--"]);
    let server = Server::start(command.args(s_server(&sandbox, port)), &sandbox, port);
    let threads = || -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().map(|task| task.unwrap().path());
        let status = tasks.map(|task| fs::read_to_string(task.join("status")).unwrap());
        let field = |status: &str, name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_else(|| panic!("{status}"))
                .trim()
                .to_owned()
        };
        let thread =
            |status: String| (field(&status, "Name:"), u64::from_str_radix(&field(&status, "SigBlk:"), 16).unwrap());
        status.map(thread).filter(|(name, _)| name.starts_with("reprise")).collect()
    };
    // That of the check before the start may not be closed yet.
    wait_until("nobody is connected", || redis.redis.clients().is_empty());
    assert_eq!(threads(), []);
    reconnect(port, &["-tls1_2", "-no_ticket", "-n", "1"]);
    wait_until("two threads are there", || threads().len() == 2);
    assert!(!redis.redis.clients().is_empty());
    // All but SIGKILL and SIGSTOP, and the two that glibc keeps for itself.
    let blocked = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1) | 0b11 << 31);
    for (name, mask) in threads() {
        assert_eq!(mask, blocked, "{name}: {mask:x}");
    }
}
