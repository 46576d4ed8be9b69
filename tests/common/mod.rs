//! What the tests of real programs stand on: servers that are killed in the end and show their logs when a test
//! fails, the client that comes back (c_tests/tools/reconnect.c), Reprise's counters, and the comparison of the same
//! server with and without the preload.
#![allow(dead_code)] // every test file uses its own part

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Index;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// No wait in these tests is longer.
const PATIENCE: Duration = Duration::from_secs(30);

// ---- Places and programs --------------------------------------------------------------------------------------

/// A path inside the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The library under test: what `make` built. The tests themselves are built with another profile.
pub fn libreprise() -> PathBuf {
    released("libreprise.so")
}

/// The command under test, with that library beside it.
pub fn command() -> PathBuf {
    released("reprise")
}

fn released(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("release").join(name);
    assert!(path.exists(), "{} is missing: make", path.display());
    path
}

/// Where a program is. A missing one fails the test, with the remedy.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"))
}

pub fn openssl() -> PathBuf {
    program("openssl", "openssl")
}

pub fn compiler(variable: &str, default: &str, package: &str) -> Command {
    program(default, package);
    Command::new(std::env::var(variable).unwrap_or(default.into()))
}

/// A folder of the test's own, removed at its end unless the test failed.
pub struct Sandbox(PathBuf);

impl Sandbox {
    pub fn new() -> Sandbox {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Sandbox(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A key and a self-signed certificate for it: `cert.pem`, `key.pem`.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = (self.file("cert.pem"), self.file("key.pem"));
        if !cert.exists() {
            succeed(
                Command::new(openssl())
                    .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost".split(' '))
                    .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"])
                    .arg("-out")
                    .arg(&cert)
                    .arg("-keyout")
                    .arg(&key),
            );
        }
        (cert, key)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("left for inspection: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A port nobody listens on, below the range from which the kernel takes client ports, and never given twice.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id() * 97;
    loop {
        let port = 16384 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 16000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port as u16)).is_ok() {
            return port as u16;
        }
    }
}

// ---- Processes ------------------------------------------------------------------------------------------------

/// A group of its own, to be killed as a whole; and the kernel ends it when the test dies before it could.
fn isolate(command: &mut Command) {
    isolate_by(command, libc::SIGTERM);
}

/// With this signal when the test dies, which is when the thread does that starts it.
pub fn isolate_by(command: &mut Command, signal: i32) {
    command.process_group(0);
    // SAFETY: prctl is a plain system call, allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, signal);
            Ok(())
        });
    }
}

fn signal_group(child: &Child, signal: i32) {
    // SAFETY: the group is the child's own, see isolate(), and the child was not waited for yet.
    unsafe { libc::kill(-(child.id() as i32), signal) };
}

fn wait(child: &mut Child, what: &str) -> ExitStatus {
    wait_within(child, what, PATIENCE)
}

fn wait_within(child: &mut Child, what: &str, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            signal_group(child, libc::SIGKILL);
            let _ = child.wait();
            panic!("{what} did not end within {patience:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs a command to its end, with empty input and for a bounded time.
pub fn run(command: &mut Command) -> Output {
    run_within(command, PATIENCE)
}

/// For commands that take longer.
pub fn run_within(command: &mut Command, patience: Duration) -> Output {
    isolate(command);
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    let status = wait_within(&mut child, &what, patience);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Runs a command that has to succeed; its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server in the foreground with all its processes; killed when dropped.
pub struct Server {
    child: Child,
    log: PathBuf,
    pub port: u16,
}

impl Server {
    /// Starts it and waits until it accepts connections. What it prints goes to `log` in the sandbox.
    pub fn start(command: &mut Command, sandbox: &Sandbox, port: u16) -> Server {
        isolate(command);
        let log = sandbox.file(&format!("server-{port}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .stdin(Stdio::piped()) // stays open: s_server ends at the end of its input
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut server = Server { child, log, port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            server.assert_alive();
            assert!(Instant::now() < deadline, "no one listens: {command:?}");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        text(&fs::read(&self.log).unwrap_or_default())
    }

    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the server is gone: {status}");
        }
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a child that was not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Kills all its processes at once.
    pub fn kill(self) {}

    /// Ends it with `signal`; how it ended.
    pub fn stop(mut self, signal: i32) -> ExitStatus {
        self.signal(signal);
        wait(&mut self.child, "the server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal_group(&self.child, libc::SIGKILL);
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("---- {} ----\n{}----", self.log.display(), self.log());
        }
    }
}

// ---- Who keeps the sessions -----------------------------------------------------------------------------------

/// Stock libssl, or Reprise with one of its semantics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keeper {
    Stock,
    Documented,
    StockLike,
}

impl Keeper {
    /// The environment for `command`: none of ours on stock, else the preload with its counters in `stats`.
    pub fn apply(self, command: &mut Command, stats: &Path) {
        command.env_remove("LD_PRELOAD");
        for name in [
            "CACHE",
            "SEMANTICS",
            "TICKETS",
            "INTERNAL",
            "UNCLEAN",
            "REVERIFY",
            "MAX_AGE",
            "ID_CONTEXT",
            "LOG",
            "STATS",
            "STATUS",
        ] {
            command.env_remove(format!("REPRISE_{name}"));
        }
        let semantics = match self {
            Keeper::Stock => return,
            Keeper::Documented => "documented",
            Keeper::StockLike => "stock",
        };
        command.env("LD_PRELOAD", libreprise()).env("REPRISE_SEMANTICS", semantics).env("REPRISE_STATS", stats);
    }
}

/// Reprise's own counters, in the order of the file that REPRISE_STATS names.
pub struct Stats([u64; NAMES.len()]);

#[rustfmt::skip]
const NAMES: [&str; 20] = [
    "contexts", "sessions", "stored", "replaced", "evicted", "expired", "flushed", "removed", "rejected", "taken",
    "condemned", "hits", "misses", "unusable", "external_hits", "external_misses", "external_refused", "replays",
    "negotiated", "store_errors",
];

impl Stats {
    pub fn read(path: &Path) -> Stats {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("Reprise counted nothing ({}: {e})", path.display()));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert!(bytes.len() >= 8 + 8 * NAMES.len(), "{}: {} bytes only", path.display(), bytes.len());
        assert_eq!(u32_at(0), 1, "version of {}", path.display());
        let size = u32_at(4) as usize;
        assert!(size >= 8 + 8 * NAMES.len() && size <= bytes.len(), "size of {}: {size}", path.display());
        Stats(std::array::from_fn(|i| u64::from_le_bytes(bytes[8 + 8 * i..][..8].try_into().unwrap())))
    }
}

impl Index<&str> for Stats {
    type Output = u64;

    fn index(&self, name: &str) -> &u64 {
        let at = NAMES.iter().position(|n| *n == name);
        &self.0[at.unwrap_or_else(|| panic!("no counter is called {name}"))]
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_map().entries(NAMES.iter().zip(self.0).filter(|(_, value)| *value > 0)).finish()
    }
}

/// A cache in shared memory with a name of its own, removed at the end.
pub struct SharedCache(String);

impl SharedCache {
    pub fn new() -> SharedCache {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SharedCache(format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// For REPRISE_CACHE.
    pub fn url(&self) -> String {
        format!("shm:{}?size=16M", self.0)
    }

    /// Where it is while it is in use or kept.
    pub fn file(&self) -> PathBuf {
        Path::new("/dev/shm").join(format!("reprise-{}", self.0))
    }

    pub fn remove(&self) {
        fs::remove_file(self.file()).unwrap();
    }
}

impl Drop for SharedCache {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.file());
    }
}

// ---- Clients --------------------------------------------------------------------------------------------------

/// What `reconnect` saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reuse {
    pub full: u64,
    pub resumed: u64,
    pub failed: u64,
    /// Connections whose early data was accepted.
    pub early: u64,
    /// Sessions of a race whose early data was accepted by one server and no other.
    pub once: u64,
    /// Of the handshakes that succeeded; milliseconds.
    pub slowest_ms: u64,
    /// Processes that answered, if the server names them.
    pub workers: u64,
}

/// A C program of the repository without dependencies but libssl, compiled once for each test program.
pub fn compiled(source: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap();
    let path = compiled.entry(source.into()).or_insert_with(|| {
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join(Path::new(source).file_stem().unwrap());
        let path = shared.with_extension(std::process::id().to_string());
        let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        cc.args(["-std=c11", "-D_GNU_SOURCE", "-O2"]).arg(repository(source)).arg("-o").arg(&path);
        succeed(cc.args(["-lssl", "-lcrypto"]));
        fs::rename(path, &shared).unwrap(); // at once: another test program may be running it
        shared
    });
    path.clone()
}

/// Visits the server with c_tests/tools/reconnect.c: one connection, then COUNT (`-n COUNT` of `args`) more, each
/// offering the newest session.
pub fn reconnect(port: u16, args: &[&str]) -> Reuse {
    reconnect_to(&[port], args)
}

/// Of several servers each visit goes to any one.
pub fn reconnect_to(ports: &[u16], args: &[&str]) -> Reuse {
    let mut command = Command::new(compiled("c_tests/tools/reconnect.c"));
    command.env_remove("LD_PRELOAD").args(args).args(ports.iter().map(|port| format!("127.0.0.1:{port}")));
    let output = run(&mut command); // it fails when a connection failed, which is for the caller to judge
    let line = text(&output.stdout);
    let number = |name: &str| -> u64 {
        let field = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        field.and_then(|value| value.parse().ok()).unwrap_or_else(|| {
            panic!("{command:?}: {}\n{line}{}", output.status, text(&output.stderr));
        })
    };
    let reuse = Reuse {
        full: number("full"),
        resumed: number("resumed"),
        failed: number("failed"),
        early: number("early"),
        once: number("once"),
        slowest_ms: number("slowest_ms"),
        workers: number("workers"),
    };
    if reuse.failed > 0 {
        eprintln!("{command:?}: {line}{}", text(&output.stderr));
    }
    reuse
}

/// One connection of `openssl s_client`, which waits until a TLS 1.3 ticket is in the file `ticket` (its `-sess_out`)
/// and ends. What it printed.
pub fn s_client(mut command: Command, port: u16, args: &[&str], ticket: Option<&Path>) -> String {
    isolate(&mut command);
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]).args(args);
    if let Some(path) = ticket {
        let _ = fs::remove_file(path);
        command.arg("-sess_out").arg(path);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = collect(child.stdout.take().unwrap());
    let deadline = Instant::now() + PATIENCE / 3;
    // No ticket is for the caller to judge: what was printed tells it.
    while ticket.is_some_and(|path| !fs::read_to_string(path).is_ok_and(|pem| pem.contains("-----END")))
        && Instant::now() < deadline
        && child.try_wait().unwrap().is_none()
    {
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.stdin.take().unwrap().write_all(b"Q\n");
    wait(&mut child, "s_client");
    text(&stdout.join().unwrap())
}

/// A TLS server that tells in its answer whether the connection was resumed, for programs that are its clients.
pub fn tls_backend(sandbox: &Sandbox, protocol: &str) -> Server {
    let (cert, key) = sandbox.certificate();
    let port = free_port();
    let mut command = Command::new(openssl());
    command.args(["s_server", "-www", "-quiet", "-accept", &format!("127.0.0.1:{port}"), protocol]);
    Keeper::Stock.apply(&mut command, &sandbox.file("unused"));
    Server::start(command.arg("-cert").arg(cert).arg("-key").arg(key), sandbox, port)
}

/// How many of `requests` without TLS were passed on to [`tls_backend`] by a resumed connection.
pub fn resumed_behind(port: u16, requests: usize) -> usize {
    let resumed = (0..requests).filter(|_| {
        let mut answer = String::new();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("New, TLS") != answer.contains("Reused, TLS"), "{answer}");
        answer.contains("Reused, TLS")
    });
    resumed.count()
}

// ---- The comparison -------------------------------------------------------------------------------------------

/// The same server, visited in the same way, with each keeper of its sessions.
#[derive(Debug)]
pub struct Comparison {
    pub stock: Reuse,
    pub reprise: [(Keeper, Reuse, Stats); 2],
}

impl Comparison {
    /// `serve` makes the server's command line for a port. No connection may fail, no server may die.
    pub fn of(sandbox: &Sandbox, serve: impl Fn(u16) -> Command, client: &[&str]) -> Comparison {
        Comparison::under(&[], sandbox, serve, client)
    }

    /// With more in Reprise's environment.
    pub fn under(
        more: &[(&str, &str)],
        sandbox: &Sandbox,
        serve: impl Fn(u16) -> Command,
        client: &[&str],
    ) -> Comparison {
        let visit = |keeper: Keeper| {
            let port = free_port();
            let stats = sandbox.file(&format!("stats-{port}"));
            let mut command = serve(port);
            keeper.apply(&mut command, &stats);
            if keeper != Keeper::Stock {
                command.envs(more.iter().copied());
            }
            let mut server = Server::start(&mut command, sandbox, port);
            let reuse = reconnect(port, client);
            server.assert_alive();
            assert_eq!(reuse.failed, 0, "{keeper:?}: connections failed");
            (reuse, stats)
        };
        let counted = |keeper: Keeper| {
            let (reuse, stats) = visit(keeper);
            (keeper, reuse, Stats::read(&stats))
        };
        let (stock, _) = visit(Keeper::Stock);
        let comparison = Comparison { stock, reprise: [counted(Keeper::Documented), counted(Keeper::StockLike)] };
        println!("{comparison:?}");
        comparison
    }

    /// Stock resumes `resumed` of them (so it is known what is compared), Reprise no fewer; and Reprise did take over.
    pub fn expect(&self, resumed: u64) -> &Comparison {
        assert_eq!(self.stock.resumed, resumed, "stock: {:?}", self.stock);
        self.never_below(resumed)
    }

    pub fn never_below(&self, resumed: u64) -> &Comparison {
        for (keeper, reuse, stats) in &self.reprise {
            assert!(reuse.resumed >= resumed, "{keeper:?}: {reuse:?}, stock: {:?}; {stats:?}", self.stock);
        }
        self.at_least("contexts", 1).none("store_errors")
    }

    pub fn at_least(&self, counter: &str, value: u64) -> &Comparison {
        for (keeper, _, stats) in &self.reprise {
            assert!(stats[counter] >= value, "{keeper:?}: {counter} is below {value}: {stats:?}");
        }
        self
    }

    /// Resumed from the cache or through the program's own callbacks.
    pub fn at_least_hits(&self, value: u64) -> &Comparison {
        for (keeper, _, stats) in &self.reprise {
            assert!(stats["hits"] + stats["external_hits"] >= value, "{keeper:?}: {stats:?}");
        }
        self
    }

    pub fn none(&self, counter: &str) -> &Comparison {
        for (keeper, _, stats) in &self.reprise {
            assert_eq!(stats[counter], 0, "{keeper:?}: {counter}: {stats:?}");
        }
        self
    }
}
