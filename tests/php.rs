//! PHP's streams, as servers and as clients.
//!
//! A server makes an SSL_CTX for each connection it accepts, and with it a key for tickets and a cache, which end with
//! the connection: on stock nobody resumes anything. A shared cache outlives them. But PHP asks for a client certificate
//! unless it is told `verify_peer => false`, has no option for a session id context, and where both meet libssl keeps no
//! session and offers none: then there is nothing that Reprise could share.

mod common;
mod servers;

use std::process::Command;

use common::{free_port, program, reconnect, repository, succeed, Keeper, Reuse, Sandbox, Server, SharedCache, Stats};
use servers::php;

const VERSIONS: [&str; 2] = ["tls1_2", "tls1_3"];
const REPRISE: [Keeper; 2] = [Keeper::Documented, Keeper::StockLike];
const COUNT: u64 = 20;

/// tests/programs/https_server.php
fn serve(sandbox: &Sandbox, keeper: Keeper, version: &str, options: &[&str], more: &[(&str, &str)]) -> Server {
    let (cert, key) = sandbox.certificate();
    let port = free_port();
    let mut command = php("https_server.php");
    command.arg(port.to_string()).arg(cert).arg(key).arg(version).args(options);
    keeper.apply(&mut command, &sandbox.file("stats"));
    Server::start(command.envs(more.iter().copied()), sandbox, port)
}

/// COUNT reconnections to a new server, which stays alive.
fn visit(keeper: Keeper, version: &str, options: &[&str], more: &[(&str, &str)]) -> (Reuse, Option<Stats>) {
    let sandbox = Sandbox::new();
    let mut server = serve(&sandbox, keeper, version, options, more);
    let reuse = reconnect(server.port, &[&format!("-{version}"), "-n", &COUNT.to_string()]);
    server.assert_alive();
    assert_eq!((reuse.failed, reuse.full + reuse.resumed), (0, COUNT + 1), "{keeper:?}: {reuse:?}");
    let stats = (keeper != Keeper::Stock).then(|| Stats::read(&sandbox.file("stats")));
    println!("{version} {options:?} {more:?} {keeper:?}: {} resumed, {stats:?}", reuse.resumed);
    if let Some(stats) = &stats {
        assert!(stats["contexts"] > COUNT, "one for each connection: {stats:?}");
        assert_eq!(stats["store_errors"], 0, "{stats:?}");
    }
    (reuse, stats)
}

/// Nothing is resumed on stock; Reprise, with `more` in the environment, resumes `resumed`. What it counted goes to
/// `judge`.
fn compare(options: &[&str], more: &[(&str, &str)], resumed: u64, judge: impl Fn(&Stats)) {
    for version in VERSIONS {
        let (stock, _) = visit(Keeper::Stock, version, options, &[]);
        assert_eq!(stock.resumed, 0, "stock, {version} {options:?}");
        for keeper in REPRISE {
            let cache = SharedCache::new();
            let url = cache.url();
            let more: Vec<_> =
                more.iter().map(|&(name, value)| (name, if value == "shm" { &url } else { value })).collect();
            let (reuse, stats) = visit(keeper, version, options, &more);
            assert_eq!(reuse.resumed, resumed, "{keeper:?}, {version} {options:?} {more:?}: {stats:?}");
            judge(&stats.unwrap());
        }
    }
}

const SHARED: (&str, &str) = ("REPRISE_CACHE", "shm");
const STATEFUL: (&str, &str) = ("REPRISE_TICKETS", "stateful");

/// PHP's default. libssl hands over no session, whatever is asked of Reprise.
#[test]
fn asking_for_client_certificates() {
    let all = [SHARED, STATEFUL, ("REPRISE_UNCLEAN", "keep"), ("REPRISE_INTERNAL", "always")];
    for options in [&[][..], &["no_ticket"]] {
        for more in [&[][..], &all] {
            compare(options, more, 0, |stats| assert_eq!(stats["negotiated"], 0, "{stats:?}"));
        }
    }
}

/// A cache that ends with its connection: each session is kept, flushed, and never looked for.
#[test]
fn in_memory() {
    compare(&["verify_none", "no_ticket"], &[], 0, |stats| {
        assert!(stats["stored"] > COUNT, "{stats:?}");
        assert_eq!((stats["flushed"], stats["hits"]), (stats["stored"], 0), "{stats:?}");
    });
}

#[test]
fn in_shared_memory() {
    let all_hit = |stats: &Stats| assert_eq!(stats["hits"], COUNT, "{stats:?}");
    compare(&["verify_none", "no_ticket"], &[SHARED], COUNT, all_hit);
    compare(&["verify_none"], &[SHARED, STATEFUL], COUNT, all_hit);
    // A ticket that carries its session is sealed with the key of the context that made it.
    compare(&["verify_none"], &[SHARED], 0, |stats| assert_eq!(stats["stored"], 0, "{stats:?}"));
}

/// A server that ends by SIGTERM or SIGKILL runs no destructor. The next one resumes what it left.
#[test]
fn the_next_server_resumes() {
    for version in VERSIONS {
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
            let file = sandbox.file("session.pem");
            let (session, url) = (file.to_str().unwrap(), cache.url());
            let client = format!("-{version}");
            let options = ["verify_none", "no_ticket"];
            let start = || serve(&sandbox, Keeper::StockLike, version, &options, &[("REPRISE_CACHE", &url)]);
            let server = start();
            assert_eq!(reconnect(server.port, &[&client, "-n", "0", "-session_out", session]).full, 1, "{version}");
            assert!(!server.stop(signal).success(), "a signal was to end it");
            let reuse = reconnect(start().port, &[&client, "-n", "0", "-session_in", session]);
            assert_eq!((reuse.resumed, reuse.failed), (1, 0), "{version}, after signal {signal}: {reuse:?}");
        }
    }
}

/// PHP's client keeps no session by itself; one that a program hands from stream to stream is resumed, on all sides.
#[test]
fn as_client() {
    for (how, resumed) in [("file_get_contents", 0), ("session_stream", COUNT)] {
        for version in VERSIONS {
            for keeper in [Keeper::Stock, Keeper::Documented, Keeper::StockLike] {
                let sandbox = Sandbox::new();
                let (cert, key) = sandbox.certificate();
                let port = free_port();
                let mut command = Command::new(program("python3", "python3"));
                command.arg(repository("tests/programs/https_server.py")).arg(port.to_string()).arg(&cert).arg(key);
                Keeper::Stock.apply(command.args([version, "unwrap"]), &sandbox.file("stats"));
                let _server = Server::start(&mut command, &sandbox, port);

                let mut client = php("https_client.php");
                client.arg(port.to_string()).arg(cert).arg(version).arg((COUNT + 1).to_string()).arg(how);
                keeper.apply(&mut client, &sandbox.file("stats"));
                let answers = succeed(&mut client);
                let count = |answer: &str| answers.matches(answer).count() as u64;
                let seen = (count("full handshake"), count("resumed handshake"));
                assert_eq!(seen, (COUNT + 1 - resumed, resumed), "{how} {version} {keeper:?}: {answers}");
                if keeper != Keeper::Stock {
                    let stats = Stats::read(&sandbox.file("stats"));
                    assert_eq!(stats["contexts"], COUNT + 1, "{how} {version} {keeper:?}: {stats:?}");
                }
            }
        }
    }
}
