//! Real Redis for the tests: single servers, Clusters and Sentinels in a sandbox, on ports of loopback of their own, and
//! a proxy that does to a connection what networks do. The environment's REPRISE_TEST_REDIS names another program,
//! of Valkey or of another version. Whoever includes this has `mod common`, too.
#![allow(dead_code)] // every test file uses its own part

use crate::common::{free_port, isolate_by, succeed, Sandbox};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// No wait for a server is longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whom the tests themselves are to each server, whatever it demands of others.
const ADMIN: &str = "tests-admin";

/// Until `done`; `what` is said where it does not happen.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The first of these programs that is installed in `folder` or in the PATH.
fn installed(folder: Option<&Path>, names: &[&str]) -> PathBuf {
    let folder = folder.map(|folder| format!("{}:", folder.display())).unwrap_or_default();
    let path = folder + &std::env::var("PATH").unwrap_or_default() + ":/usr/local/bin:/usr/bin";
    let candidates = names.iter().flat_map(|name| path.split(':').map(move |folder| Path::new(folder).join(name)));
    candidates.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
        let packages = "apt-get install redis-server redis-tools, or valkey-server valkey-tools";
        panic!("neither {} is there: {packages}", names.join(" nor "));
    })
}

fn server_program() -> PathBuf {
    match std::env::var_os("REPRISE_TEST_REDIS") {
        Some(named) => named.into(),
        None => installed(None, &["redis-server", "valkey-server"]),
    }
}

/// The client that belongs to the server; any of them speaks to all.
pub fn cli_program() -> PathBuf {
    let server = server_program();
    let is_valkey = server.file_name().is_some_and(|name| name.to_string_lossy().starts_with("valkey"));
    let names = if is_valkey { ["valkey-cli", "redis-cli"] } else { ["redis-cli", "valkey-cli"] };
    installed(server.parent(), &names)
}

// ---- One server -----------------------------------------------------------------------------------------------

/// A redis-server without persistence, which can be killed, stopped and started again.
pub struct Redis {
    /// With TLS where it was started so, else without.
    pub port: u16,
    /// Where it listens as well.
    pub socket: PathBuf,
    folder: PathBuf,
    sentinel: bool,
    process: Mutex<Option<Child>>,
}

impl Redis {
    /// With more lines of redis.conf.
    pub fn start(sandbox: &Sandbox, more: &[&str]) -> Redis {
        let port = free_port();
        Redis::configured(sandbox, port, &format!("port {port}"), more, false)
    }

    /// Which speaks nothing but TLS and, unless `more` says otherwise, demands a certificate of its clients.
    pub fn with_tls(sandbox: &Sandbox, certificates: &Certificates, more: &[&str]) -> Redis {
        let (port, of) = (free_port(), |name: &str| certificates.file(name));
        let lines = format!(
            "port 0\ntls-port {port}\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients yes",
            of("ca.pem"),
            of("server.pem"),
            of("server.key")
        );
        Redis::configured(sandbox, port, &lines, more, false)
    }

    fn configured(sandbox: &Sandbox, port: u16, first: &str, more: &[&str], sentinel: bool) -> Redis {
        let folder = sandbox.file(&format!("redis-{port}"));
        fs::create_dir_all(&folder).unwrap();
        // A sandbox may be deeper than the path of a socket can be long.
        let socket = std::env::temp_dir().join(format!("reprise-redis-{}-{port}", std::process::id()));
        let (socket_path, folder_path) = (socket.display(), folder.display());
        let mut lines = format!("{first}\nbind 127.0.0.1\nunixsocket {socket_path}\ndir {folder_path}\n");
        lines += &format!("user {ADMIN} on >{ADMIN} allkeys allchannels allcommands\n");
        if !sentinel {
            lines += "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n";
        }
        more.iter().for_each(|line| lines += &format!("{line}\n"));
        fs::write(folder.join("redis.conf"), lines).unwrap();
        let redis = Redis { port, socket, folder, sentinel, process: Mutex::new(None) };
        redis.restart();
        redis
    }

    /// Starts it where it is not running, empty, on the port it had, and waits until it answers. It ends with the
    /// thread that does this.
    pub fn restart(&self) {
        let mut process = self.process.lock().unwrap();
        assert!(process.is_none(), "it is running");
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(server_program());
        command.arg(self.folder.join("redis.conf")).args(self.sentinel.then_some("--sentinel"));
        isolate_by(&mut command, libc::SIGKILL); // one that is stopped would not heed another
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        wait_until("redis-server listens", || {
            assert!(child.try_wait().unwrap().is_none(), "{command:?}:\n{}", read(&self.log()));
            UnixStream::connect(&self.socket).is_ok() && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        *process = Some(child);
    }

    /// At once, as kill -9 does.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.socket);
    }

    pub fn is_running(&self) -> bool {
        self.process.lock().unwrap().is_some()
    }

    /// It keeps its connections, accepts new ones, and answers nothing until `resume`.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let process = self.process.lock().unwrap();
        let child = process.as_ref().expect("it is running");
        // SAFETY: plain numbers, of a child that was not waited for yet.
        unsafe { libc::kill(child.id() as i32, signal) };
    }

    /// HOST:PORT
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// What redis-cli prints for this command.
    pub fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new(cli_program());
        command.arg("-s").arg(&self.socket).args(["--user", ADMIN, "--pass", ADMIN, "--no-auth-warning"]).args(args);
        succeed(&mut command).trim_end().to_owned()
    }

    /// A command whose words may be any bytes.
    pub fn call(&self, words: &[&[u8]]) -> Answer {
        Answer::read(&mut self.send(words))
    }

    /// Where the answer comes, and what follows.
    fn send(&self, words: &[&[u8]]) -> BufReader<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = Vec::new();
        for words in [&[b"AUTH".as_slice(), ADMIN.as_bytes(), ADMIN.as_bytes()], words] {
            request.extend(format!("*{}\r\n", words.len()).bytes());
            for word in words {
                request.extend(format!("${}\r\n", word.len()).bytes().chain(word.iter().copied()).chain(*b"\r\n"));
            }
        }
        stream.write_all(&request).unwrap();
        let mut answers = BufReader::new(stream);
        assert_eq!(Answer::read(&mut answers), Answer::Line("OK".into()));
        answers
    }

    /// What all its clients say meanwhile, a line for each command: `TIME [DB ADDRESS] "get" "key"`.
    pub fn commands_during<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<String>) {
        let mut monitor = self.send(&[b"MONITOR"]);
        assert_eq!(Answer::read(&mut monitor), Answer::Line("OK".into()));
        let done = work();
        self.call(&[b"ECHO", b"that was all"]);
        let lines = monitor.lines().map(Result::unwrap).take_while(|line| !line.contains("that was all"));
        (done, lines.collect())
    }

    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.call(&[b"GET", key]) {
            Answer::Bytes(value) => Some(value),
            Answer::Nil => None,
            other => panic!("{other:?}"),
        }
    }

    /// With an hour to live.
    pub fn set(&self, key: &[u8], value: &[u8]) {
        assert_eq!(self.call(&[b"SET", key, value, b"EX", b"3600"]), Answer::Line("OK".into()));
    }

    pub fn keys(&self) -> Vec<Vec<u8>> {
        match self.call(&[b"KEYS", b"*"]) {
            Answer::List(keys) => keys.into_iter().map(Answer::bytes).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub fn flush(&self) {
        self.cli(&["FLUSHALL"]);
    }

    /// Leaves room for so many more bytes: its maxmemory-policy says what becomes of what needs more.
    pub fn fill(&self, room: i64) {
        self.cli(&["EVAL", "for i = 1, 2000 do redis.call('set', 'filling:' .. i, string.rep('x', 1000)) end", "0"]);
        let used: i64 = self.info("memory")["used_memory"].parse().unwrap();
        self.cli(&["CONFIG", "SET", "maxmemory", &(used + room).to_string()]);
    }

    pub fn make_room(&self) {
        self.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    }

    /// `field:value` of INFO.
    pub fn info(&self, section: &str) -> BTreeMap<String, String> {
        let text = self.cli(&["INFO", section]);
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// How often each command was called since the start or `reset_commandstats`, in small letters: `get`, `getdel`.
    pub fn commandstats(&self) -> BTreeMap<String, u64> {
        let calls = |value: &str| value.strip_prefix("calls=")?.split(',').next()?.parse().ok();
        let stats = self.info("commandstats");
        let stats = stats.iter().filter_map(|(name, value)| Some((name.strip_prefix("cmdstat_")?, calls(value)?)));
        stats.map(|(name, calls)| (name.to_owned(), calls)).collect()
    }

    pub fn reset_commandstats(&self) {
        self.cli(&["CONFIG", "RESETSTAT"]);
    }

    /// The local ports of its clients' connections, but for that which asks.
    pub fn clients(&self) -> Vec<u16> {
        let list = self.cli(&["CLIENT", "LIST"]);
        let addresses = list.lines().filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix("addr=")));
        addresses.filter_map(|address| address.strip_prefix("127.0.0.1:")?.parse().ok()).collect()
    }

    fn role(&self) -> String {
        self.info("replication").remove("role").unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- {} ----\n{}----", self.log().display(), read(&self.log()));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What a server answered.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Nil,
    Line(String),
    Error(String),
    Number(i64),
    Bytes(Vec<u8>),
    List(Vec<Answer>),
}

impl Answer {
    fn read(from: &mut impl BufRead) -> Answer {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).expect("an answer");
        match (kind, rest.parse::<i64>()) {
            ("+", _) => Answer::Line(rest.into()),
            ("-", _) => Answer::Error(rest.into()),
            (":", Ok(number)) => Answer::Number(number),
            ("$" | "*", Ok(-1)) => Answer::Nil,
            ("$", Ok(length)) => {
                let mut bytes = vec![0; length as usize + 2];
                from.read_exact(&mut bytes).unwrap();
                bytes.truncate(length as usize);
                Answer::Bytes(bytes)
            }
            ("*", Ok(length)) => Answer::List((0..length).map(|_| Answer::read(from)).collect()),
            _ => panic!("no answer: {line}"),
        }
    }

    pub fn bytes(self) -> Vec<u8> {
        match self {
            Answer::Bytes(bytes) => bytes,
            other => panic!("no bytes: {other:?}"),
        }
    }
}

// ---- What it and its clients need -----------------------------------------------------------------------------

/// A CA, and what it certified: `ca.pem`, and .pem and .key of `server`, of `client`, and of a `stranger` that another
/// CA certified.
pub struct Certificates(PathBuf);

impl Certificates {
    pub fn new(sandbox: &Sandbox) -> Certificates {
        let certificates = Certificates(sandbox.file("tls"));
        fs::create_dir_all(&certificates.0).unwrap();
        fs::write(certificates.file("extensions"), "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\n")
            .unwrap();
        for (authority, name) in [("ca", "server"), ("ca", "client"), ("other-ca", "stranger")] {
            if !certificates.0.join(format!("{authority}.pem")).exists() {
                certificates.openssl("req -x509 -days 2", authority, &[]);
            }
            certificates.openssl("req", name, &[]);
            let of = |suffix: &str| certificates.file(&format!("{name}.{suffix}"));
            let by = |suffix: &str| certificates.file(&format!("{authority}.{suffix}"));
            let mut sign = Command::new(crate::common::openssl());
            sign.args(["x509", "-req", "-days", "2", "-in", &of("pem"), "-out", &of("signed")]);
            sign.args(["-CA", &by("pem"), "-CAkey", &by("key"), "-CAcreateserial"]);
            succeed(sign.args(["-extfile", &certificates.file("extensions")]));
            fs::rename(of("signed"), of("pem")).unwrap();
        }
        certificates
    }

    fn openssl(&self, what: &str, name: &str, more: &[&str]) {
        let mut command = Command::new(crate::common::openssl());
        command.args(what.split(' ')).args("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split(' ')).args(more);
        command.args(["-subj", &format!("/CN={name}"), "-keyout", &self.file(&format!("{name}.key"))]);
        succeed(command.args(["-out", &self.file(&format!("{name}.pem"))]));
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

/// A fleet's key file, in the sandbox, of as many keys as there are `bytes`; each of 32 times that byte.
pub fn key_file(sandbox: &Sandbox, name: &str, bytes: &[u8]) -> String {
    let path = sandbox.file(name);
    let keys: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}").repeat(32) + "\n").collect();
    fs::write(&path, keys.concat()).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

// ---- Several servers ------------------------------------------------------------------------------------------

/// Three masters, each with a replica if wanted. Cluster nodes talk to each other on their port plus 10000.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub fn start(sandbox: &Sandbox, replicas: bool, more: &[&str]) -> Cluster {
        let more = [&["cluster-enabled yes", "cluster-node-timeout 1000"], more].concat();
        let node = |_| loop {
            let port = free_port();
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port + 10000)).is_ok() {
                return Redis::configured(sandbox, port, &format!("port {port}"), &more, false);
            }
        };
        let cluster = Cluster { nodes: (0..if replicas { 6 } else { 3 }).map(node).collect() };
        let mut create = Command::new(cli_program());
        create.args(["--cluster", "create"]).args(cluster.nodes.iter().map(Redis::address));
        succeed(create.args(["--cluster-replicas", if replicas { "1" } else { "0" }, "--cluster-yes"]));
        cluster.wait_until_ok();
        cluster
    }

    /// Each running node sees the whole of it, and each replica its master.
    fn wait_until_ok(&self) {
        wait_until("cluster_state:ok", || {
            self.running().all(|node| {
                let replication = node.info("replication");
                node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
                    && replication.get("master_link_status").is_none_or(|link| link == "up")
            })
        });
    }

    pub fn running(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    pub fn masters(&self) -> Vec<&Redis> {
        self.running().filter(|node| node.role() == "master").collect()
    }

    /// HOST:PORT of all, with commas between.
    pub fn addresses(&self) -> String {
        addresses(&self.nodes)
    }

    /// Kills a master, and waits until a replica has taken over and everything is well.
    pub fn fail_over(&self) {
        let masters = self.masters();
        masters[0].kill();
        wait_until("a replica is promoted", || self.masters().len() == masters.len());
        self.wait_until_ok();
    }
}

fn addresses(servers: &[Redis]) -> String {
    servers.iter().map(Redis::address).collect::<Vec<_>>().join(",")
}

/// A master with two replicas, and three Sentinels that watch them under the name `fleet`.
pub struct Sentinels {
    pub servers: Vec<Redis>,
    pub sentinels: Vec<Redis>,
}

impl Sentinels {
    pub fn start(sandbox: &Sandbox, more: &[&str]) -> Sentinels {
        Sentinels::configured(sandbox, more, &[])
    }

    /// With more lines for the servers, and for the sentinels.
    pub fn configured(sandbox: &Sandbox, more: &[&str], of_sentinels: &[&str]) -> Sentinels {
        let master = Redis::start(sandbox, more);
        let replica_of = format!("replicaof 127.0.0.1 {}", master.port);
        let replica = || Redis::start(sandbox, &[&[replica_of.as_str()], more].concat());
        let servers = vec![master, replica(), replica()];
        let lines = [
            format!("sentinel monitor fleet 127.0.0.1 {} 2", servers[0].port),
            "sentinel down-after-milliseconds fleet 500".into(),
            "sentinel failover-timeout fleet 3000".into(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain(of_sentinels.iter().copied()).collect();
        let sentinel = |_| {
            let port = free_port();
            Redis::configured(sandbox, port, &format!("port {port}"), &lines, true)
        };
        let sentinels = Sentinels { servers, sentinels: (0..3).map(sentinel).collect() };
        wait_until("the Sentinels know each other and the replicas", || {
            sentinels.sentinels.iter().all(|sentinel| {
                let text = sentinel.cli(&["SENTINEL", "MASTER", "fleet"]);
                let fields: Vec<_> = text.lines().collect();
                let is = |name, value| fields.chunks(2).any(|field| field == [name, value]);
                is("num-slaves", "2") && is("num-other-sentinels", "2") && is("flags", "master")
            }) && sentinels.servers[1..].iter().all(is_in_sync)
        });
        sentinels
    }

    /// One more sentinel, of nobody's: it watches `other` under the same name and knows of no failover.
    pub fn stale(sandbox: &Sandbox, other: &Redis, more: &[&str]) -> Redis {
        let port = free_port();
        let monitor = format!("sentinel monitor fleet 127.0.0.1 {} 1", other.port);
        Redis::configured(sandbox, port, &format!("port {port}"), &[&[monitor.as_str()], more].concat(), true)
    }

    /// HOST:PORT of the Sentinels, with commas between.
    pub fn addresses(&self) -> String {
        addresses(&self.sentinels)
    }

    pub fn master(&self) -> &Redis {
        let named = self.sentinels[0].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fleet"]);
        let port = named.lines().nth(1).and_then(|port| port.parse().ok());
        self.servers.iter().find(|server| Some(server.port) == port).unwrap_or_else(|| panic!("no master: {named}"))
    }

    /// Kills the master, and waits until all Sentinels name another one, which is a master.
    pub fn fail_over(&self) {
        let old = self.master();
        old.kill();
        let named = |sentinel: &Redis| sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fleet"]);
        wait_until("the Sentinels agree on another master", || {
            let first = named(&self.sentinels[0]);
            !first.ends_with(&old.port.to_string()) && self.sentinels.iter().all(|sentinel| named(sentinel) == first)
        });
        wait_until("it is a master", || self.master().role() == "master");
    }
}

fn is_in_sync(replica: &Redis) -> bool {
    replica.info("replication").get("master_link_status").is_some_and(|link| link == "up")
}

// ---- Between a client and its server --------------------------------------------------------------------------

/// What a proxy does. It holds for open connections, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Pass,
    /// Each answer comes so much later.
    Delay(Duration),
    /// One in ten answers comes so much later.
    Sometimes(Duration),
    /// Each byte of an answer comes so much later than the one before it.
    Drip(Duration),
    /// Accepts and passes requests; the answers come when the mode is another.
    Hold,
    /// Random bytes as answers.
    Garbage,
    /// A bit of each value of at least 32 bytes is flipped.
    Garbled,
    /// Closes the connection when the server has answered, and loses the answer.
    Cut,
    /// Closes each connection at once.
    Refuse,
}

/// Passes connections to a port of loopback, and counts.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: AtomicU16,
    mode: Mutex<Mode>,
    changed: Condvar,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicU64,
    requests: AtomicU64,
    answers: AtomicU64,
}

impl Proxy {
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            mode: Mutex::new(Mode::Pass),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(SeqCst) {
                    return;
                }
                accepting.clone().accept(client.unwrap());
            }
        });
        Proxy { port, shared }
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
        self.shared.changed.notify_all();
        if mode == Mode::Refuse {
            self.shared.close_all();
        }
    }

    /// From now on connections go to another server; those that are open end.
    pub fn redirect(&self, upstream: u16) {
        self.shared.upstream.store(upstream, SeqCst);
        self.shared.close_all();
    }

    /// How many were accepted, or refused.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// How often clients sent something: round trips, where they wait for each answer.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// HOST:PORT
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.set(Mode::Refuse);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)); // wakes who accepts
    }
}

impl Shared {
    fn close_all(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn accept(self: Arc<Shared>, client: TcpStream) {
        self.connections.fetch_add(1, SeqCst);
        let refuses = *self.mode.lock().unwrap() == Mode::Refuse;
        // A server that is not there is one that refuses.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.upstream.load(SeqCst))) else { return };
        if refuses {
            return;
        }
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(clone(stream));
        }
        let (requests, answers) = (self.clone(), self);
        let (from, to) = (clone(&client), clone(&server));
        thread::spawn(move || {
            pump(from, to, |bytes, to| {
                requests.requests.fetch_add(1, SeqCst);
                to.write_all(bytes).is_ok()
            })
        });
        thread::spawn(move || pump(server, client, |bytes, to| answers.mistreat(bytes) && answers.pass(bytes, to)));
    }

    fn pass(&self, bytes: &[u8], to: &mut TcpStream) -> bool {
        let Mode::Drip(pause) = *self.mode.lock().unwrap() else { return to.write_all(bytes).is_ok() };
        bytes.iter().all(|byte| {
            thread::sleep(pause);
            to.write_all(&[*byte]).is_ok()
        })
    }

    fn mode_but_hold(&self) -> Mode {
        let mode = self.mode.lock().unwrap();
        *self.changed.wait_while(mode, |mode| *mode == Mode::Hold).unwrap()
    }

    /// What becomes of an answer; `false` to close the connection instead.
    fn mistreat(&self, bytes: &mut [u8]) -> bool {
        match self.mode_but_hold() {
            Mode::Pass | Mode::Hold | Mode::Drip(_) => {}
            Mode::Delay(by) => thread::sleep(by),
            Mode::Sometimes(by) => {
                if self.answers.fetch_add(1, SeqCst) % 10 == 9 {
                    thread::sleep(by);
                }
            }
            Mode::Garbage => File::open("/dev/urandom").unwrap().read_exact(bytes).unwrap(),
            Mode::Garbled => flip_values(bytes),
            Mode::Cut | Mode::Refuse => return false,
        }
        true
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&mut [u8], &mut TcpStream) -> bool) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match from.read(&mut bytes) {
            Ok(length) if length > 0 && pass(&mut bytes[..length], &mut to) => {}
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// In the middle of each value, `$LENGTH`, a line's end, and its bytes.
fn flip_values(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") {
        let line = &bytes[at..at + end];
        let length = line.strip_prefix(b"$").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        at += end + 2;
        if let Some(length @ 32usize..) = length {
            if let Some(middle) = bytes.get_mut(at + length / 2) {
                *middle ^= 1;
            }
            at = (at + length).min(bytes.len());
        }
    }
}
