//! One cache for all processes of a machine: servers of several processes, each with an SSL_CTX of its own, resume each
//! other's sessions. On stock libssl a client meets the process that knows its session one time in four, which each
//! test sees, too.

mod common;
mod servers;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{free_port, reconnect, Keeper, Reuse, Sandbox, Server, SharedCache, Stats};
use servers::{prefork, python_prefork as python, python_server};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
const WORKERS: u64 = 4;

/// Puts `command` under Reprise with this cache and more of the environment.
fn share(mut command: Command, sandbox: &Sandbox, cache: &SharedCache, more: &[(&str, &str)]) -> Command {
    Keeper::StockLike.apply(&mut command, &sandbox.file("stats"));
    command.env("REPRISE_CACHE", cache.url()).envs(more.iter().copied());
    command
}

/// Runs a server on stock and with a shared cache, in an environment that has `more`. Each is visited by `client`.
/// Stock may resume `stock_most` percent, Reprise has to resume 99.
fn compare(
    serve: impl Fn(&Sandbox, u16) -> Command,
    more: &[(&str, &str)],
    client: &[&str],
    clients: u64,
    stock_most: u64,
) {
    let sandbox = Sandbox::new();
    let cache = SharedCache::new();
    let visit = |keeper: Keeper| {
        let port = free_port();
        let mut command = serve(&sandbox, port);
        match keeper {
            Keeper::Stock => keeper.apply(&mut command, &sandbox.file("stats")),
            _ => command = share(command, &sandbox, &cache, more),
        }
        let server = Server::start(&mut command, &sandbox, port);
        let reuse = reconnect(port, client);
        assert_eq!((reuse.failed, reuse.workers), (0, WORKERS), "{keeper:?} {client:?}: {reuse:?}");
        assert!(server.stop(libc::SIGTERM).success(), "{keeper:?}: the server did not end well");
        reuse
    };
    let percent = |reuse: Reuse| reuse.resumed * 100 / (reuse.full + reuse.resumed - clients);
    let (stock, reprise) = (visit(Keeper::Stock), visit(Keeper::StockLike));
    println!("{client:?}: stock resumes {} %, Reprise {} %", percent(stock), percent(reprise));
    assert!(percent(stock) < stock_most, "{client:?}: this would not need Reprise: {stock:?}");
    assert!(percent(reprise) >= 99, "{client:?}: {reprise:?}");
    assert!(Stats::read(&sandbox.file("stats"))["hits"] >= reprise.resumed, "hits of the cache");
}

#[test]
fn contexts_made_after_the_fork() {
    for version in VERSIONS {
        compare(|sandbox, port| prefork(sandbox, port, &[]), &[], &[version, "-n", "200"], 1, 60);
    }
}

#[test]
fn contexts_made_before_the_fork() {
    let serve = |sandbox: &Sandbox, port| prefork(sandbox, port, &["-ctx_before_fork"]);
    for version in VERSIONS {
        compare(serve, &[], &[version, "-n", "200"], 1, 60);
    }
}

#[test]
fn eight_clients_at_once() {
    for version in VERSIONS {
        let client = [version, "-n", "100", "-clients", "8"];
        compare(|sandbox, port| prefork(sandbox, port, &[]), &[], &client, 8, 60);
    }
}

/// Tickets that carry the session themselves are sealed with a key of each SSL_CTX.
#[test]
fn tickets_made_stateful() {
    for version in VERSIONS {
        let serve = |sandbox: &Sandbox, port| prefork(sandbox, port, &["-tickets"]);
        compare(serve, &[("REPRISE_TICKETS", "stateful")], &[version, "-n", "200"], 1, 60);
    }
}

/// CPython's server closes without close_notify, which costs stock each session that is not in a ticket.
#[test]
fn python_without_tickets() {
    for version in VERSIONS {
        let serve = |sandbox: &Sandbox, port| python(sandbox, port, &[&version[1..], "no_ticket"]);
        // With a CPython before 3.13 stock loses each session when its connection ends. With a later one it loses what
        // another process has.
        compare(serve, &[("REPRISE_UNCLEAN", "keep")], &[version, "-n", "200"], 1, 60);
    }
}

#[test]
fn python_with_tickets_made_stateful() {
    for version in VERSIONS {
        let serve = |sandbox: &Sandbox, port| python(sandbox, port, &[&version[1..]]);
        let more = [("REPRISE_UNCLEAN", "keep"), ("REPRISE_TICKETS", "stateful")];
        compare(serve, &more, &[version, "-n", "200"], 1, 60);
    }
}

/// As gunicorn does it: on stock a session ends with the SSLContext of its connection, and the key of its tickets, too.
#[test]
fn python_with_a_context_for_each_connection() {
    for version in VERSIONS {
        let serve = |sandbox: &Sandbox, port| python(sandbox, port, &[&version[1..], "context_per_connection"]);
        let more = [("REPRISE_UNCLEAN", "keep"), ("REPRISE_TICKETS", "stateful")];
        compare(serve, &more, &[version, "-n", "200"], 1, 1);
    }
}

/// Without REPRISE_UNCLEAN=keep what libssl condemns in one process is gone for all, and nothing else is: they resume as
/// one process does on stock, which depends on the release of CPython.
#[test]
fn unclean_ends_cost_the_session_everywhere() {
    let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
    let visit = |mut command: Command, port| {
        let _server = Server::start(&mut command, &sandbox, port);
        let reuse = reconnect(port, &["-tls1_2", "-no_ticket", "-n", "20"]);
        (reuse.full, reuse.resumed, reuse.failed)
    };
    let port = free_port();
    let mut alone = python_server(&sandbox, port, "tls1_2", "close");
    Keeper::Stock.apply(&mut alone, &sandbox.file("stats"));
    let alone = visit(alone, port);
    assert!([(21, 0, 0), (1, 20, 0)].contains(&alone), "{alone:?}");
    let port = free_port();
    let together = python(&sandbox, port, &["tls1_2", "no_ticket"]);
    assert_eq!(visit(share(together, &sandbox, &cache, &[]), port), alone);
}

/// Programs that have no parent in common but were given the same name.
#[test]
fn siblings_meet_by_name() {
    for version in VERSIONS {
        let (sandbox, cache, port) = (Sandbox::new(), SharedCache::new(), free_port());
        let start = || {
            let command = prefork(&sandbox, port, &["-workers", "1"]);
            Server::start(&mut share(command, &sandbox, &cache, &[]), &sandbox, port)
        };
        let _servers: Vec<_> = (0..WORKERS).map(|_| start()).collect();
        let reuse = reconnect(port, &[version, "-n", "200"]);
        assert_eq!((reuse.failed, reuse.workers), (0, WORKERS), "{version}: {reuse:?}");
        assert!(reuse.resumed >= 198, "{version}: {reuse:?}");
    }
}

fn children(of: u32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Workers are killed while they serve. Each kill may cost the connection that was being served and, as its ticket is
/// spent, a full handshake; nothing else.
#[test]
fn killed_workers_are_replaced() {
    const CLIENTS: u64 = 4;
    const KILLS: u64 = 10;
    for version in VERSIONS {
        let (sandbox, cache, port) = (Sandbox::new(), SharedCache::new(), free_port());
        let server = Server::start(&mut share(prefork(&sandbox, port, &[]), &sandbox, &cache, &[]), &sandbox, port);
        let client = thread::spawn(move || reconnect(port, &[version, "-n", "1000", "-clients", "4"]));
        let mut killed = BTreeSet::new();
        for round in 0..KILLS as usize {
            thread::sleep(Duration::from_millis(30));
            let workers = children(server.pid());
            let Some(&victim) = workers.get(round % workers.len().max(1)) else { continue };
            killed.insert(victim);
            // SAFETY: a process of our own server, which its parent has not waited for while it is among its children.
            unsafe { libc::kill(victim, libc::SIGKILL) };
        }
        assert!(!client.is_finished(), "{version}: the workers were to be killed under load");
        let reuse = client.join().unwrap();
        println!("{version}: {} workers killed, {reuse:?}", killed.len());
        assert!(reuse.workers > WORKERS, "{version}: no new worker answered: {reuse:?}");
        assert!(reuse.failed <= KILLS && reuse.full <= CLIENTS + KILLS, "{version}: {reuse:?}");
        let until = Instant::now() + Duration::from_secs(20);
        while children(server.pid()).len() as u64 != WORKERS {
            assert!(Instant::now() < until, "{version}: {:?}", children(server.pid()));
            thread::sleep(Duration::from_millis(20));
        }
        assert!(server.stop(libc::SIGTERM).success());
    }
}

/// Offers the session in the file `session` once; whether it was resumed.
fn resumes(port: u16, version: &str, session: &str, more: &[&str]) -> bool {
    let reuse = reconnect(port, &[&[version, "-n", "0", "-session_in", session], more].concat());
    assert_eq!(reuse.failed, 0, "{reuse:?}");
    reuse.resumed == 1
}

/// Two services on one cache, with the same session id context. Each resumes its own sessions in all its processes, and
/// never the other's, which would show another certificate or know the client by none.
#[test]
fn sessions_do_not_cross_between_services() {
    for version in VERSIONS {
        for differ in ["certificate", "client certificates"] {
            let (sandbox, other, cache) = (Sandbox::new(), Sandbox::new(), SharedCache::new());
            let (cert, key) = sandbox.certificate();
            let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
            let client: &[&str] = if differ == "certificate" { &[] } else { &["-cert", cert, "-key", key] };
            let start = |guarded: bool| {
                let port = free_port();
                let command = match (guarded, differ) {
                    (false, _) => prefork(&sandbox, port, &[]),
                    (true, "certificate") => prefork(&other, port, &[]),
                    (true, _) => prefork(&sandbox, port, &["-client_ca", cert]),
                };
                Server::start(&mut share(command, &sandbox, &cache, &[]), &sandbox, port)
            };
            let (open, open_too, guarded, guarded_too) = (start(false), start(false), start(true), start(true));
            let session = |server: &Server, name: &str| -> String {
                let file = sandbox.file(name).to_str().unwrap().to_owned();
                let args = [&[version, "-n", "0", "-session_out", &file], client].concat();
                assert_eq!(reconnect(server.port, &args).full, 1);
                file
            };
            let (of_open, of_guarded) = (session(&open, "open.pem"), session(&guarded, "guarded.pem"));
            for _ in 0..8 {
                let crossing = format!("{version}, another {differ}");
                assert!(resumes(open_too.port, version, &of_open, client), "{crossing}: its own");
                assert!(resumes(guarded_too.port, version, &of_guarded, client), "{crossing}: its own, guarded");
                assert!(!resumes(guarded.port, version, &of_open, client), "{crossing}: crossed");
                assert!(!resumes(open.port, version, &of_guarded, client), "{crossing}: crossed back");
            }
        }
    }
}

/// What one server negotiated the next one resumes, however the first one ended, as long as the cache is there.
#[test]
fn sessions_outlive_the_server_but_not_the_cache() {
    for version in VERSIONS {
        for ends_well in [true, false] {
            let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
            let file = sandbox.file("session.pem");
            let session = file.to_str().unwrap();
            let start = || {
                let port = free_port();
                Server::start(&mut share(prefork(&sandbox, port, &[]), &sandbox, &cache, &[]), &sandbox, port)
            };
            let end = |server: Server| match ends_well {
                true => assert!(server.stop(libc::SIGTERM).success()),
                false => server.kill(),
            };
            let server = start();
            let first = reconnect(server.port, &[version, "-n", "0", "-session_out", session]);
            assert_eq!((first.full, first.failed), (1, 0), "{version}: {first:?}");
            end(server);
            let server = start();
            assert!(
                resumes(server.port, version, session, &[]),
                "{version}: lost with the server, ended well: {ends_well}"
            );
            end(server);
            cache.remove();
            let server = start();
            assert!(!resumes(server.port, version, session, &[]), "{version}: resumed from a cache that was removed");
        }
    }
}

/// keep=off: it is there while somebody uses it, and for all of them, whether they opened or inherited it.
#[test]
fn a_cache_not_kept_ends_with_its_last_user() {
    for args in [&[][..], &["-ctx_before_fork"]] {
        let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
        let start = || {
            let (port, url) = (free_port(), cache.url() + "&keep=off");
            let command = prefork(&sandbox, port, args);
            Server::start(&mut share(command, &sandbox, &cache, &[("REPRISE_CACHE", &url)]), &sandbox, port)
        };
        let (one, other) = (start(), start());
        let file = sandbox.file("session.pem");
        let session = file.to_str().unwrap();
        assert_eq!(reconnect(one.port, &["-tls1_2", "-n", "0", "-session_out", session]).full, 1);
        assert!(resumes(other.port, "-tls1_2", session, &[]), "{args:?}: the servers do not share it");
        assert!(one.stop(libc::SIGTERM).success());
        assert!(cache.file().exists(), "{args:?}: it went with the first user");
        assert!(resumes(other.port, "-tls1_2", session, &[]), "{args:?}: it went with the first user");
        assert!(other.stop(libc::SIGTERM).success());
        assert!(!cache.file().exists(), "{args:?}: it stayed without a user");
    }
}

/// A ticket is shown to all workers at once: its early data is accepted by one of them, and always by one.
#[test]
fn early_data_is_accepted_once() {
    const ROUNDS: u64 = 50;
    let (sandbox, cache, port) = (Sandbox::new(), SharedCache::new(), free_port());
    let command = prefork(&sandbox, port, &["-early_data", "1000"]);
    let server = Server::start(&mut share(command, &sandbox, &cache, &[]), &sandbox, port);
    let file = sandbox.file("ticket.pem");
    let ticket = file.to_str().unwrap();
    let mut several = 0;
    for round in 0..ROUNDS {
        assert_eq!(reconnect(port, &["-tls1_3", "-n", "0", "-session_out", ticket]).full, 1);
        let race = reconnect(port, &["-n", "0", "-clients", "8", "-early_data", "-session_in", ticket]);
        assert_eq!((race.early, race.resumed, race.failed), (1, 1, 0), "round {round}: {race:?}");
        several += u64::from(race.workers > 1);
    }
    println!("{several} of {ROUNDS} tickets were shown to several processes at once");
    assert!(several > ROUNDS / 2, "{several}: no race");
    assert!(server.stop(libc::SIGTERM).success());
}

// --- what others do -----------------------------------------------------------------------------------------------

/// Somebody cuts the file of the cache short while four processes serve: none of them ends, each says so once, and clients
/// go through full handshakes.
#[test]
fn a_cache_that_is_cut_short_ends_no_server() {
    for args in [&[][..], &["-ctx_before_fork"]] {
        let (sandbox, cache, port) = (Sandbox::new(), SharedCache::new(), free_port());
        let server = Server::start(&mut share(prefork(&sandbox, port, args), &sandbox, &cache, &[]), &sandbox, port);
        let visit = || reconnect(port, &["-tls1_2", "-n", "100"]);
        let before = visit();
        assert_eq!((before.failed, before.workers, before.resumed), (0, WORKERS, 100), "{args:?}: {before:?}");
        fs::OpenOptions::new().write(true).open(cache.file()).unwrap().set_len(0).unwrap();
        let after = visit();
        assert_eq!((after.failed, after.workers, after.resumed), (0, WORKERS, 0), "{args:?}: {after:?}");
        let log = server.log();
        assert_eq!(log.matches("was cut short by somebody: this process goes on without it").count() as u64, WORKERS);
        assert!(server.stop(libc::SIGTERM).success(), "the server did not end well");
    }
}

/// Two containers of a pod: PID namespaces of their own, and a cache in a common folder.
#[test]
fn containers_share() {
    let unshare = |command: &Command| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--"]).arg(command.get_program()).args(command.get_args());
        unshare
    };
    if !unshare(&Command::new("true")).status().is_ok_and(|status| status.success()) {
        println!("no namespaces here: nothing tested");
        return;
    }
    let (sandbox, cache, ports) = (Sandbox::new(), SharedCache::new(), [free_port(), free_port()]);
    let start = |port: u16| {
        let command = unshare(&prefork(&sandbox, port, &[]));
        Server::start(&mut share(command, &sandbox, &cache, &[]), &sandbox, port)
    };
    let servers = ports.map(start);
    for version in VERSIONS {
        let reuse = common::reconnect_to(&ports, &[version, "-n", "200", "-clients", "4"]);
        assert_eq!(reuse.failed, 0, "{version}: {reuse:?}");
        assert!(reuse.resumed >= 99 * (reuse.full + reuse.resumed - 4) / 100, "{version}: {reuse:?}");
    }
    servers.into_iter().for_each(Server::kill);
}
