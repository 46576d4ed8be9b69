//! nginx keeps its sessions with Reprise: every kind of ssl_session_cache, one worker and several, TLS 1.2 and 1.3.

mod common;

use std::fs;
use std::process::Command;

use common::{free_port, program, reconnect, repository, Comparison, Keeper, Sandbox, Server, SharedCache, Stats};

const PROTOCOLS: [(&str, &[&str]); 2] = [("TLSv1.2", &["-tls1_2", "-no_ticket"]), ("TLSv1.3", &["-tls1_3"])];

/// An nginx in the sandbox. It is started as the user of the test; root's workers drop to nginx's default user.
fn nginx(sandbox: &Sandbox, port: u16, workers: u32, protocol: &str, cache: &str) -> Command {
    sandbox.certificate();
    let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
    let conf = sandbox.file(&format!("nginx-{port}.conf"));
    let filled = template
        .replace("@WORKERS@", &workers.to_string())
        .replace("@PORT@", &port.to_string())
        .replace("@PROTOCOL@", protocol)
        .replace("@CACHE@", cache);
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("nginx", "nginx"));
    command.arg("-p").arg(sandbox.path()).arg("-c").arg(conf).args(["-e", "error.log"]);
    command
}

/// Calls `judge` for each protocol and number of workers with what was seen of COUNT reconnections.
fn compare(cache: &str, workers: u32, count: u32, judge: impl Fn(&Comparison)) {
    for (protocol, client) in PROTOCOLS {
        let sandbox = Sandbox::new();
        let count = count.to_string();
        let client = [client, &["-n", &count]].concat();
        let seen = Comparison::of(&sandbox, |port| nginx(&sandbox, port, workers, protocol, cache), &client);
        println!("{cache}, {workers} workers, {protocol}");
        judge(&seen);
        let log = fs::read_to_string(sandbox.file("error.log")).unwrap();
        assert!(!log.contains("exited on signal"), "a worker crashed:\n{log}");
    }
}

#[test]
fn off() {
    for workers in [1, 4] {
        compare("off", workers, 20, |seen| {
            seen.expect(0).none("stored");
        });
    }
}

#[test]
fn none() {
    for workers in [1, 4] {
        compare("none", workers, 20, |seen| {
            seen.expect(0).none("hits");
        });
    }
}

#[test]
fn builtin() {
    for cache in ["builtin", "builtin:1000"] {
        compare(cache, 1, 20, |seen| {
            seen.expect(20).at_least("hits", 20);
        });
    }
}

/// Each worker has a cache of its own: a client meets the worker that knows it one time in four. The kernel throws
/// the dice, so both sides are judged by bounds that chance passes once in many thousand runs.
#[test]
fn builtin_of_four_workers() {
    const COUNT: u32 = 240; // 60 ± 6.7
    compare("builtin", 4, COUNT, |seen| {
        assert!((28..=92).contains(&seen.stock.resumed), "stock resumes a quarter: {:?}", seen.stock);
        seen.never_below(28).at_least("hits", 28).at_least("misses", 28);
    });
}

/// The builtin cache in shared memory: all workers, which have dropped root's rights, know each session. And so do those
/// of the next nginx.
#[test]
fn builtin_in_shared_memory() {
    for (protocol, client) in PROTOCOLS {
        let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
        let session = sandbox.file("session.pem");
        let session = session.to_str().unwrap();
        let stats = sandbox.file("stats");
        let start = || {
            let port = free_port();
            let mut command = nginx(&sandbox, port, 4, protocol, "builtin");
            Keeper::StockLike.apply(&mut command, &stats);
            Server::start(command.env("REPRISE_CACHE", cache.url()), &sandbox, port)
        };
        let server = start();
        let reuse = reconnect(server.port, &[client, &["-n", "200", "-session_out", session]].concat());
        assert_eq!((reuse.resumed, reuse.failed), (200, 0), "{protocol}: {reuse:?}");
        assert!(server.stop(libc::SIGQUIT).success());
        let server = start();
        let reuse = reconnect(server.port, &[client, &["-n", "0", "-session_in", session]].concat());
        assert_eq!((reuse.resumed, reuse.failed), (1, 0), "{protocol}, after a restart: {reuse:?}");
        assert!(Stats::read(&stats)["hits"] >= 201, "{protocol}");
    }
}

#[test]
fn shared() {
    for workers in [1, 4] {
        compare("shared:X:1m", workers, 20, |seen| {
            seen.expect(20).at_least("external_hits", 20).none("hits");
        });
    }
}

/// nginx's new_cb copies the session and returns 0. Stock leaves it in the builtin cache all the same; what the manual
/// says takes it out of there (CB3), but the shared cache still has it.
#[test]
fn builtin_and_shared() {
    for workers in [1, 4] {
        compare("builtin:1000 shared:X:1m", workers, 20, |seen| {
            seen.expect(20).at_least_hits(20);
        });
    }
}

/// A reload makes new contexts in new workers, the old ones end; and so does all of it in the end.
#[test]
fn reload_and_quit() {
    for keeper in [Keeper::Stock, Keeper::Documented, Keeper::StockLike] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let stats = sandbox.file("stats");
        let mut command = nginx(&sandbox, port, 2, "TLSv1.2", "builtin shared:X:1m");
        keeper.apply(&mut command, &stats);
        let server = Server::start(&mut command, &sandbox, port);
        for _ in 0..3 {
            let reuse = reconnect(port, &["-tls1_2", "-no_ticket", "-n", "10"]);
            assert_eq!((reuse.resumed, reuse.failed), (10, 0), "{keeper:?}");
            server.signal(libc::SIGHUP);
        }
        let status = server.stop(libc::SIGQUIT);
        let log = fs::read_to_string(sandbox.file("error.log")).unwrap();
        assert!(status.success() && !log.contains("exited on signal"), "{keeper:?}: {status}\n{log}");
        if keeper != Keeper::Stock {
            let stats = Stats::read(&stats);
            assert!(stats["hits"] + stats["external_hits"] >= 30, "{keeper:?}: {stats:?}");
        }
    }
}
