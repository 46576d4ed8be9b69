//! PostgreSQL and its clients. The postmaster makes an SSL_CTX and forks a backend for each connection. PostgreSQL
//! switches tickets (SSL_OP_NO_TICKET, SSL_CTX_set_num_tickets(0)) and the session cache off, and no session context
//! is set; libpq makes an SSL_CTX for each connection and keeps no session. So nothing is resumed on stock, and Reprise
//! obeys.
//!
//! With REPRISE_INTERNAL=always and a shared cache, clients that keep sessions resume them with TLS 1.2. Not with TLS 1.3,
//! where a session is resumed by a ticket, and there are none; nor where the server asks for client certificates
//! (ssl_ca_file), unless REPRISE_ID_CONTEXT=auto gives it a session context: without one libssl keeps no session then. In the memory of a backend a session ends with
//! its connection.

mod common;

use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{free_port, libreprise, openssl, run, succeed, text, Keeper, Sandbox, Server, SharedCache, Stats};

const PATIENCE: Duration = Duration::from_secs(25);
const VERSIONS: [&str; 2] = ["1.2", "1.3"];
const RECONNECTIONS: u64 = 5;
const KEEPERS: [Keeper; 3] = [Keeper::Stock, Keeper::Documented, Keeper::StockLike];
const ALWAYS: (&str, &str) = ("REPRISE_INTERNAL", "always");

/// PostgreSQL refuses to be root: then it is nobody.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn installed(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|p| p.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("{name} is missing: apt-get install postgresql"))
}

/// A database in a folder that the server's user can reach, wherever the repository is; with the library and
/// the certificate there, too.
struct Database {
    folder: PathBuf,
    sandbox: Sandbox,
}

impl Database {
    fn new() -> Database {
        let sandbox = Sandbox::new();
        let folder =
            std::env::temp_dir().join(format!("reprise-{}", sandbox.path().file_name().unwrap().to_string_lossy()));
        fs::create_dir(&folder).unwrap();
        let database = Database { folder, sandbox };
        let (cert, key) = database.sandbox.certificate();
        for (from, name, mode) in
            [(cert, "cert.pem", 0o600), (key, "key.pem", 0o600), (libreprise(), "libreprise.so", 0o755)]
        {
            fs::copy(from, database.file(name)).unwrap();
            fs::set_permissions(database.file(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        if is_root() {
            for path in [database.folder.clone(), database.file("cert.pem"), database.file("key.pem")] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let mut initdb = database.command("initdb");
        initdb.args(["--auth=trust", "--username=test", "--no-locale", "--encoding=UTF8", "--no-sync", "-D"]);
        succeed(initdb.arg(database.file("data")));
        database
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program of PostgreSQL's, run as the server's user.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(installed(name));
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(&self.folder).env("HOME", &self.folder);
        command
    }

    /// A server that answers. `settings` are PostgreSQL's, `more` is environment.
    fn serve(&self, keeper: Keeper, settings: &[String], more: &[(&str, &str)]) -> Server {
        let port = free_port();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.file("data")).arg("-p").arg(port.to_string()).args(["-h", "127.0.0.1"]);
        let own =
            ["unix_socket_directories=", "fsync=off", "ssl=on", "ssl_cert_file=../cert.pem", "ssl_key_file=../key.pem"];
        for setting in own.into_iter().chain(settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        self.apply(keeper, &mut command, "server-stats");
        let server = Server::start(command.envs(more.iter().copied()), &self.sandbox, port);
        self.wait_until("it is ready", || {
            let mut ready = Command::new(installed("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).env("PGSSLMODE", "disable");
            run(ready.env_remove("LD_PRELOAD")).status.success()
        });
        server
    }

    fn apply(&self, keeper: Keeper, command: &mut Command, stats: &str) {
        let _ = fs::remove_file(self.file(stats));
        keeper.apply(command, &self.file(stats));
        if keeper != Keeper::Stock {
            command.env("LD_PRELOAD", self.file("libreprise.so"));
        }
    }

    fn stats(&self) -> Stats {
        Stats::read(&self.file("server-stats"))
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited for: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("left for inspection: {}", self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A client of libpq's for this server, which insists on this TLS version ("" for any).
fn client(database: &Database, name: &str, port: u16, version: &str) -> Command {
    let mut command = Command::new(installed(name));
    command.env("HOME", &database.folder).env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string());
    command.env("PGUSER", "test").env("PGDATABASE", "postgres").env("PGSSLMODE", "require");
    if !version.is_empty() {
        let version = format!("TLSv{version}");
        command.env("PGSSLMINPROTOCOLVERSION", &version).env("PGSSLMAXPROTOCOLVERSION", version);
    }
    Keeper::Stock.apply(&mut command, Path::new(""));
    command
}

const TLS_VERSION: &str = "select version from pg_stat_ssl where pid = pg_backend_pid()";

/// `connections` of one psql, each of which asks for its TLS version.
fn psql(database: &Database, port: u16, version: &str, connections: usize) -> Command {
    let mut command = client(database, "psql", port, version);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", TLS_VERSION]);
    for _ in 1..connections {
        command.args(["-c", "\\c", "-c", TLS_VERSION]);
    }
    command
}

/// One connection of s_client, offering the session in `session` if it is there, and keeping there what the server gives.
/// Whether it was resumed. It ends when the server does, which refuses the packet that comes after the handshake, so all
/// tickets have come by then.
fn visit(port: u16, version: &str, session: &Path) -> bool {
    let mut command = Command::new("sh");
    Keeper::Stock.apply(&mut command, Path::new(""));
    command.args(["-c", r#"printf 'no packet\n' | "$@""#, "sh"]).arg(openssl());
    command.args(["s_client", "-ign_eof", "-starttls", "postgres", "-connect", &format!("127.0.0.1:{port}")]);
    command.arg(format!("-tls{}", version.replace('.', "_"))).arg("-sess_out").arg(session);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    let printed = text(&run(command.stdin(Stdio::null())).stdout);
    let resumed = printed.contains(&format!("\nReused, TLSv{version}"));
    assert!(resumed || printed.contains(&format!("\nNew, TLSv{version}")), "no handshake: {printed}");
    resumed
}

/// How many of RECONNECTIONS were resumed, of a client that keeps what it is given.
fn reconnect(database: &Database, port: u16, version: &str) -> u64 {
    let session = database.sandbox.file(&format!("session-{port}-{version}.pem"));
    let _ = fs::remove_file(&session);
    assert!(!visit(port, version, &session), "resumed without a session");
    (0..RECONNECTIONS).filter(|_| visit(port, version, &session)).count() as u64
}

fn end(server: Server, log: &str) {
    assert!(!log.contains("was terminated by signal"), "a backend crashed:\n{log}");
    assert!(server.stop(libc::SIGINT).success(), "the postmaster did not end well");
}

/// As it comes, on both sides of the connection: all connections succeed, and Reprise has taken over contexts where
/// nothing is to be kept.
#[test]
fn nothing_is_resumed() {
    let database = Database::new();
    for keeper in KEEPERS {
        let server = database.serve(keeper, &[], &[]);
        for version in VERSIONS {
            let mut command = psql(&database, server.port, version, 5);
            let counted = database.sandbox.file("client-stats");
            let _ = fs::remove_file(&counted);
            keeper.apply(&mut command, &counted);
            assert_eq!(succeed(&mut command), format!("TLSv{version}\n").repeat(5), "{keeper:?}");
            assert_eq!(reconnect(&database, server.port, version), 0, "{keeper:?} TLS {version}");
            if keeper != Keeper::Stock {
                assert_eq!(Stats::read(&counted)["contexts"], 5, "{keeper:?}: libpq makes one for each connection");
            }
        }
        if keeper != Keeper::Stock {
            let stats = database.stats();
            assert_eq!((stats["contexts"], stats["negotiated"], stats["stored"]), (1, 0, 0), "{keeper:?}: {stats:?}");
        }
        let log = server.log();
        end(server, &log);
    }
}

/// REPRISE_INTERNAL=always, by cache and by whether client certificates are asked for.
#[test]
fn cache_switched_on() {
    let database = Database::new();
    for keeper in [Keeper::Documented, Keeper::StockLike] {
        for (shared, asks, id_context, tls12) in [
            (false, false, "as-is", 0),
            (true, false, "as-is", RECONNECTIONS),
            (true, true, "as-is", 0),
            (true, true, "auto", RECONNECTIONS),
        ] {
            let cache = SharedCache::new();
            let url = if shared { cache.url() } else { "memory:".into() };
            let settings: &[String] = if asks { &["ssl_ca_file=../cert.pem".into()] } else { &[] };
            let server = database.serve(
                keeper,
                settings,
                &[ALWAYS, ("REPRISE_CACHE", &url), ("REPRISE_ID_CONTEXT", id_context)],
            );
            let resumed = VERSIONS.map(|version| reconnect(&database, server.port, version));
            let stats = database.stats();
            println!("{keeper:?}, {url}, asks for certificates: {asks}, {id_context}: {resumed:?} resumed, {stats:?}");
            assert_eq!(resumed, [tls12, 0], "{keeper:?}, {url}, asks for certificates: {asks}: {stats:?}");
            assert_eq!(stats["hits"], tls12, "{stats:?}");
            assert_eq!(stats["stored"] > 0, !asks || id_context == "auto", "{stats:?}");
            let log = server.log();
            end(server, &log);
        }
    }
}

/// 200 connections of 8 clients, reloads (which make a new SSL_CTX), and a backend that is killed, whereupon the
/// postmaster ends all others and starts anew: the server goes on, and still has its sessions.
#[test]
fn load_reload_and_a_killed_backend() {
    let database = Database::new();
    for keeper in [Keeper::Documented, Keeper::StockLike] {
        let cache = SharedCache::new();
        let server = database.serve(keeper, &[], &[ALWAYS, ("REPRISE_CACHE", &cache.url())]);
        let script = database.sandbox.file("script.sql");
        fs::write(&script, "select 1;\n").unwrap();
        let counted = database.sandbox.file(&format!("clients-of-{}", server.port));
        for version in VERSIONS {
            let mut load = client(&database, "pgbench", server.port, version);
            load.args(["-n", "-C", "-c", "8", "-j", "4", "-t", "25", "-f"]).arg(&script);
            keeper.apply(&mut load, &counted);
            let report = succeed(&mut load);
            assert!(report.contains("actually processed: 200/200"), "{keeper:?} TLS {version}: {report}");
        }
        let clients = Stats::read(&counted);
        assert!(clients["contexts"] >= 400, "{keeper:?}: {clients:?}");

        for contexts in 2..=4 {
            server.signal(libc::SIGHUP);
            database.wait_until("a new SSL_CTX", || database.stats()["contexts"] == contexts);
            assert_eq!(succeed(&mut psql(&database, server.port, "1.2", 1)), "TLSv1.2\n");
        }
        let session = database.sandbox.file("kept.pem");
        let _ = fs::remove_file(&session);
        visit(server.port, "1.2", &session);
        assert!(visit(server.port, "1.2", &session), "{keeper:?}: not resumed after the reloads");
        let log = server.log();
        assert!(!log.contains("was terminated by signal"), "a backend crashed:\n{log}");

        let mut victim = psql(&database, server.port, "1.2", 1);
        victim.args(["-c", "select pg_sleep(60)"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut victim = victim.spawn().unwrap();
        let mut backend = 0;
        let find = "select pid from pg_stat_activity where query like 'select pg_sleep%'";
        database.wait_until("the backend to be killed", || {
            let mut command = client(&database, "psql", server.port, "");
            backend = succeed(command.args(["-X", "-A", "-t", "-c", find])).trim().parse().unwrap_or(0);
            backend > 0
        });
        // SAFETY: a process of our own server, which lives as long as its query of a minute.
        unsafe { libc::kill(backend, libc::SIGKILL) };
        victim.wait().unwrap();
        database.wait_until("the server is back", || {
            run(&mut psql(&database, server.port, "1.3", 1)).stdout == b"TLSv1.3\n"
        });
        let crashes = server.log().matches("was terminated by signal").count();
        assert_eq!(crashes, 1, "{keeper:?}: the killed one only:\n{}", server.log());
        assert!(visit(server.port, "1.2", &session), "{keeper:?}: not resumed after the crash");
        assert!(server.stop(libc::SIGINT).success(), "{keeper:?}");
    }
}
