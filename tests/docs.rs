//! What the pages say is what happens: every fenced code block of README.md, of its neighbours and of docs/*.md is run
//! or compiled here, page by page and in the order of the page, and what it promises is compared with what comes out.
//! The first words of a block say what it is; a block without one fails its page.
//!
//! | block | what happens |
//! |---|---|
//! | `sh` | A script. It must succeed. |
//! | `console` | The lines with `$ ` are a script, the others are what it prints, stdout and stderr. |
//! | `text` | What the `sh` or the `c statements` before it prints. `text form` promises nothing. |
//! | `c file=NAME`, `python file=NAME` | A file, for the commands after it. C must compile without a warning. |
//! | `c top-level` | Functions, types and `#include` lines. They must compile, and all later C of the page sees them. |
//! | `c statements` | The body of a function with a parameter `SSL_CTX *ctx`. It is compiled and run, and prints nothing else. |
//! | `ini` | A systemd unit: its `Environment=` and its `reprise run` are tried with a program of the test's. |
//! | `cmake`, `meson` | Lines of a build file. tests/install.rs builds with the first of them. |
//! | `nginx` | Lines of nginx.conf, which nginx must accept. |
//!
//! More words: `server=PORT`: the script stays until the end of the page, from when it listens on that port; `restart`:
//! the servers of the page are killed (SIGKILL) and started again before the block; `no_run=REASON`: the block is not
//! run, see [`NOT_RUN`]. `text of=demo` is what `make demo` prints.
//!
//! A promise is compared by its shape. Three dots match anything, several lines too. Runs of spaces are alike, and so
//! are numbers that stand alone, with their unit of time, but for Reprise's version.

mod common;
mod redis_world;

use common::{compiler, free_port, libreprise, openssl, program, reconnect, run_within, succeed, text};
use common::{repository, Sandbox, Server, Stats};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use redis_world::Redis;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Compiling and valgrind on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The pages with a test of their own. All others have nothing that needs a stand-in.
const WITH_STAND_INS: [&str; 6] = [
    "README.md",
    "docs/c-programmers.md",
    "docs/operators.md",
    "docs/fleet.md",
    "docs/performance.md",
    "docs/design.md",
];

/// Every block that is not run, and why.
const NOT_RUN: [(&str, &str); 11] = [
    ("CONTRIBUTING.md", "part-of-make-check"), // `make check` and its parts
    ("CONTRIBUTING.md", "part-of-make-check"), // cargo test of one file
    ("CONTRIBUTING.md", "is-a-release"),       // packages, which take minutes, and a tag
    ("README.md", "fresh-machine"),            // tools/fresh.sh runs these commands in a bare Debian
    ("README.md", "tools/check_deb.sh"),       // packages are installed on a fresh Debian
    ("docs/design.md", "part-of-make-check"),  // cargo test of one file
    ("docs/install.md", "tools/check_deb.sh"), // packages are installed on a fresh Debian
    ("docs/install.md", "is-a-release"),
    ("docs/install.md", "tools/deb.sh"), // which unpacks the tarball and builds it without a network
    ("docs/performance.md", "takes-minutes"), // the benchmarks
    ("docs/programs.md", "part-of-make-check"), // cargo test of one file
];

// ---- Blocks ---------------------------------------------------------------------------------------------------

struct Block {
    line: usize,
    language: String,
    /// `word` and `word=value`
    words: BTreeMap<String, String>,
    content: String,
}

impl Block {
    fn all_of(page: &str) -> Vec<Block> {
        let source = fs::read_to_string(repository(page)).unwrap();
        let (mut blocks, mut open) = (Vec::new(), None);
        for (event, range) in Parser::new(&source).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let line = source[..range.start].matches('\n').count() + 1;
                    let CodeBlockKind::Fenced(info) = kind else {
                        panic!("{page}:{line}: a code block without fences")
                    };
                    let mut info = info.split_whitespace().map(str::to_owned);
                    let language =
                        info.next().unwrap_or_else(|| panic!("{page}:{line}: this block does not say what it is"));
                    let split = |word: String| match word.split_once('=') {
                        Some((name, value)) => (name.to_owned(), value.to_owned()),
                        None => (word, String::new()),
                    };
                    open = Some(Block { line, language, words: info.map(split).collect(), content: String::new() });
                }
                Event::Text(part) => {
                    if let Some(block) = &mut open {
                        block.content += &part;
                    }
                }
                Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
                _ => {}
            }
        }
        blocks
    }

    fn word(&self, name: &str) -> Option<&str> {
        self.words.get(name).map(String::as_str)
    }

    fn is(&self, language: &str, word: &str) -> bool {
        self.language == language && (word.is_empty() || self.words.contains_key(word))
    }

    /// A `text` that is the output of the block before it.
    fn is_output(&self) -> bool {
        self.language == "text" && self.words.is_empty()
    }
}

/// README.md and its neighbours, and docs/*.md.
fn pages() -> Vec<String> {
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(repository(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}{name}")).collect::<Vec<_>>()
    };
    let mut pages = [in_folder(""), in_folder("docs/")].concat();
    pages.sort();
    pages
}

// ---- Running a page -------------------------------------------------------------------------------------------

/// A page and its sandbox: a folder that looks like the repository, in which the commands of the page are run.
struct Page {
    name: &'static str,
    sandbox: Sandbox,
    /// What the page says, and what stands in for it.
    stand_ins: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    servers: Vec<(u16, String, Option<Server>)>,
    top_level: String,
    /// The port of the nginx that the page starts.
    nginx: Option<u16>,
    _one_at_a_time: MutexGuard<'static, ()>,
}

impl Page {
    fn open(name: &'static str) -> Page {
        // `reprise status` shows what all pages start.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let sandbox = Sandbox::new();
        for entry in fs::read_dir(repository("")).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), sandbox.file(entry.file_name().to_str().unwrap())).unwrap();
        }
        sandbox.certificate();
        fs::create_dir(sandbox.file("bin")).unwrap();
        let page = Page {
            name,
            sandbox,
            stand_ins: Vec::new(),
            environment: Vec::new(),
            servers: Vec::new(),
            top_level: String::new(),
            nginx: None,
            _one_at_a_time,
        };
        // As `make` leaves it, for who built with cargo alone.
        let _ = symlink("libreprise.so", libreprise().with_file_name("libreprise.so.0"));
        // What is to be tested was built before: `make` finds it so, whatever the times of the files. It works in the
        // repository itself, because what it links looks for the library where it was linked.
        let make = program("make", "make").display().to_string();
        let checked = "-o needed-to-check -o needed-to-build";
        let there = format!("{make} --no-print-directory -C {}", repository("").display());
        page.stand_in_program("make", &format!("exec {there} -o target/release/libreprise.so {checked} \"$@\""));
        page
    }

    fn file(&self, name: &str) -> String {
        self.sandbox.file(name).to_str().unwrap().to_owned()
    }

    fn stand_in(&mut self, said: &str, done: &str) {
        self.stand_ins.push((said.into(), done.into()));
    }

    fn stand_in_program(&self, name: &str, script: &str) {
        let file = self.sandbox.file("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn set(&mut self, variable: &str, value: &str) {
        self.environment.push((variable.into(), value.into()));
    }

    /// The nginx that the page starts in the background: with a configuration of the test's, in the sandbox.
    fn with_nginx(&mut self) {
        let port = free_port();
        let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
        let configuration = template
            .replace("daemon off", "daemon on")
            .replace("@WORKERS@", "1")
            .replace("@PORT@", &port.to_string())
            .replace("@PROTOCOL@", "TLSv1.2 TLSv1.3")
            .replace("@CACHE@", "builtin");
        fs::write(self.file("nginx.conf"), configuration).unwrap();
        let folder = self.file("");
        self.stand_in("-- nginx", &format!("-- nginx -p {folder} -c nginx.conf -e error.log"));
        self.nginx = Some(port);
    }

    fn nginx_pid(&self) -> Option<i32> {
        fs::read_to_string(self.file("nginx.pid")).ok()?.trim().parse().ok()
    }

    fn stop_nginx(&self) {
        if let Some(pid) = self.nginx_pid() {
            // SAFETY: plain numbers; the pid is that of a server which the page started.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            redis_world::wait_until("nginx ends", || self.nginx_pid().is_none());
        }
    }

    /// With what stands in for it here.
    fn here(&self, said: &str) -> String {
        self.stand_ins.iter().fold(said.to_owned(), |said, (from, to)| said.replace(from, to))
    }

    /// As the page would say it.
    fn as_said(&self, output: &str) -> String {
        let output = output.replace(&cache_name(""), "");
        self.stand_ins.iter().fold(output, |output, (from, to)| output.replace(to, from))
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-euc", &format!("exec 2>&1\n{}", self.here(script))]).current_dir(self.sandbox.path());
        self.clean(&mut command);
        command
    }

    fn clean(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        let ours = self.sandbox.file("bin");
        let built = libreprise().parent().unwrap().to_owned();
        command.env("PATH", format!("{}:{}:{path}:/usr/sbin:/sbin", ours.display(), built.display()));
        let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in inherited.filter(|name| name.starts_with("REPRISE_") || name == "LD_PRELOAD" || name == "MAKEFLAGS")
        {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(pid) = self.nginx_pid() {
            command.env("PID", pid.to_string());
        }
    }

    /// All its blocks in their order. How many were not run.
    fn run(&mut self) -> usize {
        let blocks = Block::all_of(self.name);
        let mut not_run = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            let place = format!("{}:{}", self.name, block.line);
            let promised = blocks.get(at + 1).filter(|next| next.is_output()).map(|next| next.content.as_str());
            if let Some(reason) = block.word("no_run") {
                not_run.push((self.name, reason));
                continue;
            }
            if block.word("restart").is_some() {
                self.restart_servers();
            }
            match block.language.as_str() {
                "sh" => self.run_script(&place, block, promised),
                "console" => {
                    let (mut script, mut printed) = (String::new(), String::new());
                    for line in block.content.lines() {
                        match line.strip_prefix("$ ") {
                            Some(command) => script += &format!("{command}\n"),
                            None => printed += &format!("{line}\n"),
                        }
                    }
                    assert!(!script.is_empty(), "{place}: there is no command");
                    self.check(&place, &script, Some(&printed));
                }
                "c" => self.compile(&place, block, promised),
                "python" => fs::write(self.file(block.word("file").expect(&place)), &block.content).unwrap(),
                "ini" => self.try_unit(&place, &block.content),
                "cmake" | "meson" => {
                    let line = block.content.lines().next().unwrap_or_default();
                    assert!(include_str!("install.rs").contains(line), "{place}: tests/install.rs does not try this");
                }
                "nginx" => self.try_nginx(&block.content),
                "text" if block.is_output() => {
                    let before = at.checked_sub(1).map(|before| &blocks[before]);
                    let prints = before.is_some_and(|before| before.is("sh", "") || before.is("c", "statements"));
                    assert!(prints, "{place}: whose output is this?");
                }
                "text" if block.word("of") == Some("demo") => assert_shape(&place, &demo(), &block.content),
                "text" if block.word("form").is_some() => {}
                other => panic!("{place}: {other:?} is unknown: tests/docs.rs has the kinds of blocks"),
            }
        }
        println!("{}: {} blocks, not run: {not_run:?}", self.name, blocks.len());
        let allowed: Vec<_> = NOT_RUN.into_iter().filter(|(page, _)| *page == self.name).collect();
        assert_eq!(not_run, allowed, "what is not run is listed in tests/docs.rs, with the reason");
        not_run.len()
    }

    fn run_script(&mut self, place: &str, block: &Block, promised: Option<&str>) {
        if let Some(port) = block.word("server") {
            let here = free_port();
            self.stand_in(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{here}"));
            self.servers.push((here, block.content.clone(), None));
            return self.restart_servers();
        }
        let starts_nginx = block.content.contains("-- nginx");
        if starts_nginx {
            self.stop_nginx();
        }
        self.check(place, &block.content, promised);
        if starts_nginx {
            let port = self.nginx.expect("with_nginx() was called");
            // A Redis that a busy machine keeps from answering in time is a miss: then once more.
            let reuse = || reconnect(port, &["-n", "20"]);
            let reuse = Some(reuse()).filter(|first| first.resumed == 20).unwrap_or_else(reuse);
            assert_eq!((reuse.failed, reuse.resumed), (0, 20), "{place}: {reuse:?}");
        }
    }

    fn restart_servers(&mut self) {
        let mut servers = std::mem::take(&mut self.servers);
        for (port, script, server) in &mut servers {
            drop(server.take()); // its whole process group gets SIGKILL
            let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok();
            redis_world::wait_until("the server has ended", || !listens());
            *server = Some(Server::start(&mut self.shell(script), &self.sandbox, *port));
        }
        self.servers = servers;
    }

    /// It succeeds and prints what was promised.
    fn check(&self, place: &str, script: &str, promised: Option<&str>) {
        let output = run_within(&mut self.shell(script), PATIENCE);
        let printed = self.as_said(&text(&output.stdout));
        assert!(output.status.success(), "{place}: {}\n{script}{printed}", output.status);
        if let Some(promised) = promised {
            assert_shape(place, &printed, promised);
        }
    }

    // ---- C ----------------------------------------------------------------------------------------------------

    fn compile(&mut self, place: &str, block: &Block, promised: Option<&str>) {
        let content = self.here(&block.content);
        if let Some(name) = block.word("file") {
            fs::write(self.file(name), &content).unwrap();
            succeed(self.compiler().arg("-fsyntax-only").arg(name));
            return;
        }
        let body = if block.word("top-level").is_some() {
            self.top_level += &content;
            ""
        } else {
            assert!(block.word("statements").is_some(), "{place}: is it a file, top-level or statements?");
            &content
        };
        // A page that shows parts shows no functions unused.
        let program = format!(
            "#include <pthread.h>\n#include <stdio.h>\n#include <string.h>\n#include <openssl/err.h>\n{}\n\
             static void page(SSL_CTX *ctx)\n{{\n(void)ctx;\n{{\n{body}\n}}\n}}\n\
             int main(void)\n{{\nSSL_CTX *ctx = SSL_CTX_new(TLS_server_method());\npage(ctx);\nSSL_CTX_free(ctx);\n\
             return 0;\n}}\n",
            self.top_level
        );
        fs::write(self.file("part.c"), program).unwrap();
        let mut cc = self.compiler();
        cc.args(["-Wno-unused-function", "-include", "reprise.h", "-o", "part", "part.c", "-Ltarget/release"]);
        let output = run_within(cc.args(["-lreprise", "-lssl", "-lcrypto", "-lpthread"]), PATIENCE);
        assert!(output.status.success(), "{place}:\n{}", text(&output.stderr));
        let script = "LD_LIBRARY_PATH=$PWD/target/release ./part";
        self.check(place, script, Some(promised.unwrap_or("")));
    }

    fn compiler(&self) -> Command {
        let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        cc.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude"]);
        cc.current_dir(self.sandbox.path());
        cc
    }

    // ---- Configuration ----------------------------------------------------------------------------------------

    /// The environment of a systemd unit is put around a program that makes an SSL_CTX, and `reprise run` of its
    /// ExecStart runs that program: neither has anything to say about them.
    fn try_unit(&self, place: &str, unit: &str) {
        let unit = unit.replace("\\\n", " ");
        let fields = |name: &str| {
            let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            lines.filter(|value| !value.is_empty()).map(|value| self.here(value)).collect::<Vec<_>>()
        };
        let program = [openssl().display().to_string(), "ciphers".into()];
        let mut tried = 0;
        for command in fields("ExecStart") {
            let words: Vec<_> = command.split_whitespace().take_while(|word| *word != "--").collect();
            assert!(words[0].ends_with("/bin/reprise"), "{place}: {command}");
            let mut command = Command::new(libreprise().with_file_name("reprise"));
            self.clean(&mut command);
            assert_silent(place, command.args(&words[1..]).arg("--").args(&program));
            tried += 1;
        }
        let variables = fields("Environment");
        if !variables.is_empty() {
            let mut command = Command::new(&program[0]);
            self.clean(&mut command);
            for variable in &variables {
                let (name, value) = variable.split_once('=').expect(place);
                let known = name == "LD_PRELOAD" || text(&fs::read(repository("README.md")).unwrap()).contains(name);
                assert!(known, "{place}: {name} is not in README.md");
                command.env(name, value);
            }
            assert_silent(place, command.arg(&program[1]));
            tried += 1;
        }
        assert!(tried > 0, "{place}: neither Environment= nor ExecStart=");
    }

    fn try_nginx(&self, lines: &str) {
        let configuration = fs::read_to_string(self.file("nginx.conf")).unwrap();
        fs::write(self.file("nginx-with.conf"), lines.to_owned() + &configuration.replace("nginx.pid", "test.pid"))
            .unwrap();
        let mut nginx = Command::new(program("nginx", "nginx-light"));
        succeed(nginx.arg("-p").arg(self.sandbox.path()).args(["-c", "nginx-with.conf", "-e", "error.log", "-t"]));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(pid) = self.nginx_pid() {
            // SAFETY: plain numbers; the pid is that of a server which the page started.
            unsafe { libc::kill(pid, libc::SIGTERM) }; // killed otherwise, it would leave its worker
        }
        self.servers.clear();
        for file in glob::glob(&format!("/dev/shm/reprise-{}*", cache_name(""))).unwrap().flatten() {
            let _ = fs::remove_file(file);
        }
    }
}

/// The name of a shared cache, for no other test.
fn cache_name(name: &str) -> String {
    format!("docs-{}-{name}", std::process::id())
}

fn assert_silent(place: &str, command: &mut Command) {
    let output = run_within(command, PATIENCE);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{place}: {command:?}: {}\n{said}", output.status);
}

// ---- Comparing ------------------------------------------------------------------------------------------------

fn assert_shape(place: &str, printed: &str, promised: &str) {
    let promise = shape(promised);
    let parts: Vec<_> = promise.split("...").map(glob::Pattern::escape).collect();
    let pattern = glob::Pattern::new(&parts.join("*")).unwrap();
    assert!(pattern.matches(&shape(printed)), "{place} promises\n{promised}\nbut this comes:\n{printed}");
}

/// Without what differs from run to run: runs of spaces become one, numbers that stand alone become 0.
fn shape(text: &str) -> String {
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let lines = text.lines().map(|line| line.split_whitespace().map(shape_of_word).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn shape_of_word(word: &str) -> String {
    let (mut out, mut rest) = (String::new(), word);
    while let Some(first) = rest.chars().next() {
        let alone = !out.ends_with(|last: char| last.is_alphanumeric() || "_.".contains(last));
        let length = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let digits = rest[..length].trim_end_matches('.');
        let after = &rest[digits.len()..];
        let unit = ["us", "ms", "s"].into_iter().find(|unit| after.starts_with(unit)).unwrap_or("");
        let ends = |text: &str| !text.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        if alone && first.is_ascii_digit() && ends(&after[unit.len()..]) {
            out += if unit.is_empty() { "0" } else { "0s" };
            rest = &after[unit.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

#[test]
fn shapes() {
    for (one, other) in
        [("took 12 us", "took   7 us"), ("P50 128us", "P50 1.0ms"), ("1 2  3\n", "0 0 0"), ("a:5/0", "a:77/1")]
    {
        assert_eq!(shape(one), shape(other));
    }
    for (one, other) in [
        ("TLSv1.2", "TLSv1.3"),
        ("AES256", "AES128"),
        ("Reprise 9.9.9", concat!("Reprise ", env!("CARGO_PKG_VERSION"))),
        ("yes", "no"),
        ("1", "-"),
        ("a\nb", "a b"),
    ] {
        assert_ne!(shape(one), shape(other));
    }
    assert_shape("here", "one\ntwo\n3 [x]*\nfour", "one\n...\n4 [x]*\n...");
    for (printed, promised) in [("New", "Reused"), ("a\nb", "a"), ("a", "a\nb"), ("xa", "a..."), ("a", "?")] {
        let matched = std::panic::catch_unwind(|| assert_shape("here", printed, promised));
        assert!(matched.is_err(), "{printed:?} was taken for {promised:?}");
    }
}

// ---- The pages ------------------------------------------------------------------------------------------------

fn demo() -> String {
    let build = |source: &str| common::compiled(source).display().to_string();
    let mut command = Command::new(repository("examples/demo.sh"));
    command.env("REPRISE", libreprise().with_file_name("reprise"));
    command.env("PREFORK", build("examples/prefork.c")).env("RECONNECT", build("c_tests/tools/reconnect.c"));
    let output = run_within(&mut command, PATIENCE);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn readme() {
    let mut page = Page::open("README.md");
    page.run();
    // The server of the last block counts in the file that it names.
    let port = page.servers[0].0;
    let reuse = reconnect(port, &["-tls1_2", "-n", "5"]);
    assert_eq!((reuse.failed, reuse.resumed), (0, 5), "{reuse:?}");
    assert_eq!(Stats::read(&page.sandbox.file("stats"))["hits"], 5);
}

/// Installed into a prefix of the test's, from which the compiler, pkg-config and the loader take it.
#[test]
fn c_programmers() {
    let mut page = Page::open("docs/c-programmers.md");
    let prefix = page.file("prefix");
    page.set("PREFIX", &prefix);
    page.set("PKG_CONFIG_PATH", &format!("{prefix}/lib/pkgconfig"));
    page.set("C_INCLUDE_PATH", &format!("{prefix}/include"));
    page.set("LIBRARY_PATH", &format!("{prefix}/lib"));
    page.set("LD_LIBRARY_PATH", &format!("{prefix}/lib"));
    page.stand_in_program("ldconfig", "exec /sbin/ldconfig -n \"$PREFIX/lib\"");
    page.stand_in("shm:web", &format!("shm:{}", cache_name("web")));
    let example = Block::all_of("README.md").into_iter().find(|block| block.is("c", "file")).unwrap();
    fs::write(page.file("server.c"), example.content).unwrap();
    page.run();
    let staged = page.sandbox.file("stage/usr/lib/x86_64-linux-gnu/pkgconfig/reprise.pc");
    assert!(
        fs::read_to_string(staged).unwrap().contains("prefix=/usr\n"),
        "a package does not know where it was staged"
    );
}

/// A Redis with the password of the page, at its address.
fn with_redis(page: &mut Page, folder: &Path) -> Redis {
    let redis = Redis::start(&page.sandbox, &["requirepass PASSWORD"]);
    page.stand_in("10.0.0.5:6379", &redis.address());
    page.stand_in("10.0.0.5/", &format!("{}/", redis.address()));
    fs::create_dir_all(folder).unwrap();
    page.stand_in("/etc/reprise", folder.to_str().unwrap());
    redis
}

#[test]
fn operators() {
    let mut page = Page::open("docs/operators.md");
    let etc = page.sandbox.file("etc");
    page.with_nginx();
    let _redis = with_redis(&mut page, &etc);
    for (said, name) in [
        ("shm:{}", "web"),
        ("cache show {}", "web"),
        ("shm:{}", "try"),
        ("cache flush {}", "try"),
        ("shm:{}", "nginx"),
        ("shm:{}", "apache"),
        ("shm:{}", "app"),
    ] {
        page.stand_in(&said.replace("{}", name), &said.replace("{}", &cache_name(name)));
    }
    let library = libreprise().display().to_string();
    page.stand_in("/usr/local/lib/libreprise.so.0", &library);
    redis_world::key_file(&page.sandbox, "etc/key", &[1]);
    page.run();
}

#[test]
fn fleet() {
    let mut page = Page::open("docs/fleet.md");
    let etc = page.sandbox.file("etc");
    page.with_nginx();
    let redis = with_redis(&mut page, &etc);
    redis.cli(&["CONFIG", "SET", "requirepass", ""]); // this page has none
    page.run();
    let sessions = redis.keys().len();
    assert!(sessions >= 20, "nginx stored {sessions} keys in Redis");
    let keys = fs::read_to_string(etc.join("key")).unwrap();
    let sealing = keys.lines().filter(|line| line.len() >= 64 && !line.starts_with("fleet"));
    assert_eq!(sealing.count(), 1, "the rotation is complete: {keys}");
}

#[test]
fn performance() {
    Page::open("docs/performance.md").run();
}

#[test]
fn design() {
    Page::open("docs/design.md").run();
}

#[test]
fn all_other_pages() {
    for page in pages() {
        if !WITH_STAND_INS.contains(&page.as_str()) {
            Page::open(page.leak()).run();
        }
    }
}

#[test]
fn what_is_not_run_is_still_there() {
    let not_run =
        |page: &String| Block::all_of(page).into_iter().filter(|block| block.word("no_run").is_some()).count();
    let blocks: usize = pages().iter().map(not_run).sum();
    assert_eq!(blocks, NOT_RUN.len());
    println!("{blocks} blocks are not run");
}
