//! examples/server.c, an HTTPS server whose sessions live in SQLite through the three callbacks: built on stock and
//! with Reprise. What one process negotiated, the next one resumes, however the first one ended.

mod common;

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use common::{
    compiler, free_port, libreprise, openssl, program, reconnect, repository, s_client, succeed, Keeper, Sandbox,
    Server, Stats,
};

const KEEPERS: [Keeper; 3] = [Keeper::Stock, Keeper::Documented, Keeper::StockLike];

fn build(sandbox: &Sandbox, keeper: Keeper) -> PathBuf {
    let binary = sandbox.file("server");
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev libsqlite3-dev");
    cc.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    cc.arg(repository("examples/server.c")).arg("-o").arg(&binary);
    if keeper != Keeper::Stock {
        let lib = sandbox.file("lib");
        std::fs::create_dir(&lib).unwrap();
        for name in ["libreprise.so", "libreprise.so.0"] {
            symlink(libreprise(), lib.join(name)).unwrap();
        }
        cc.arg("-DWITH_REPRISE").arg("-I").arg(repository("include"));
        cc.arg("-L").arg(&lib).arg(format!("-Wl,-rpath,{}", lib.display())).arg("-lreprise");
    }
    succeed(cc.args(["-lssl", "-lcrypto", "-lsqlite3", "-pthread"]));
    binary
}

/// A built server that can be started again and again on one port and one database.
struct Site {
    sandbox: Sandbox,
    keeper: Keeper,
    binary: PathBuf,
    port: u16,
    version: &'static str,
}

impl Site {
    fn new(keeper: Keeper, version: &'static str) -> Site {
        let sandbox = Sandbox::new();
        let binary = build(&sandbox, keeper);
        Site { sandbox, keeper, binary, port: free_port(), version }
    }

    fn start(&self) -> Server {
        let (cert, key) = self.sandbox.certificate();
        let mut command = Command::new(&self.binary);
        command.arg("-port").arg(self.port.to_string()).arg("-cert").arg(cert).arg("-key").arg(key);
        command.arg("-db").arg(self.sandbox.file("sessions.db")).args([self.version, "-no_ticket"]);
        self.keeper.apply(&mut command, &self.stats());
        command.env_remove("LD_PRELOAD"); // linked, not preloaded
        Server::start(&mut command, &self.sandbox, self.port)
    }

    fn stats(&self) -> PathBuf {
        self.sandbox.file("stats")
    }

    fn assert_took_over(&self) {
        if self.keeper != Keeper::Stock {
            let stats = Stats::read(&self.stats());
            assert!(stats["contexts"] > 0 && stats["external_hits"] > 0, "{:?}: {stats:?}", self.keeper);
        }
    }
}

#[test]
fn reconnections_are_resumed() {
    for keeper in KEEPERS {
        for version in ["-tls1_2", "-tls1_3"] {
            let site = Site::new(keeper, version);
            let mut server = site.start();
            let reuse = reconnect(site.port, &[version, "-n", "20"]);
            assert_eq!((reuse.full, reuse.resumed, reuse.failed), (1, 20, 0), "{keeper:?} {version}");
            server.assert_alive();
            if keeper != Keeper::Stock {
                let stats = Stats::read(&site.stats());
                let hits = stats["hits"] + stats["external_hits"];
                assert!(stats["contexts"] > 0 && hits >= 20, "{keeper:?} {version}: {stats:?}");
            }
        }
    }
}

#[test]
fn sessions_outlive_the_process() {
    for keeper in KEEPERS {
        for version in ["-tls1_2", "-tls1_3"] {
            for signal in [libc::SIGTERM, libc::SIGKILL] {
                let site = Site::new(keeper, version);
                let session = site.sandbox.file("session.pem");
                let session = session.to_str().unwrap();
                let server = site.start();
                let first = reconnect(site.port, &[version, "-n", "0", "-session_out", session]);
                assert_eq!((first.full, first.failed), (1, 0), "{keeper:?} {version}");
                server.stop(signal);

                let _server = site.start();
                let second = reconnect(site.port, &[version, "-n", "0", "-session_in", session]);
                assert_eq!((second.resumed, second.failed), (1, 0), "{keeper:?} {version}, after signal {signal}");
                site.assert_took_over();
            }
        }
    }
}

#[test]
fn s_client_comes_back() {
    for keeper in KEEPERS {
        for version in ["-tls1_2", "-tls1_3"] {
            let site = Site::new(keeper, version);
            let session = site.sandbox.file("session.pem");
            let connect = |args: &[&str], ticket| s_client(Command::new(openssl()), site.port, args, ticket);
            let server = site.start();
            let first = connect(&[version], Some(session.as_path()));
            assert!(first.contains("New, TLSv1."), "{keeper:?} {version}: {first}");
            server.stop(libc::SIGKILL);
            let _server = site.start();
            let second = connect(&[version, "-sess_in", session.to_str().unwrap()], None);
            assert!(second.contains("Reused, TLSv1."), "{keeper:?} {version}: {second}");
            site.assert_took_over();
        }
    }
}

#[test]
fn curl_is_answered() {
    for keeper in KEEPERS {
        for version in ["-tls1_2", "-tls1_3"] {
            let site = Site::new(keeper, version);
            let mut server = site.start();
            let url = format!("https://127.0.0.1:{}/", site.port);
            let mut curl = Command::new(program("curl", "curl"));
            curl.args(["-k", "-sS", "--max-time", "10", "-w", "%{http_code}\n", "-o", "/dev/null"]);
            assert_eq!(succeed(curl.args(["-H", "Connection: close", &url])), "200\n", "{keeper:?} {version}");
            server.assert_alive();
        }
    }
}
