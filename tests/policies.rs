//! No policy makes a program resume less than on stock libssl (LESS): each program of docs/programs.md is visited by eight
//! clients at once, under each policy alone and under all of them together, with its cache in memory and in shared memory.
//! And `reprise run --cache shm:NAME` alone has all processes of a server resume each other's sessions.

mod common;
mod servers;

use std::process::Command;

use common::{free_port, reconnect, Keeper, Reuse, Sandbox, Server, SharedCache};
use servers::{Apache, Backend, HAProxy, ANSWER};

type Serve<'a> = &'a dyn Fn(&Sandbox, u16) -> Command;
type Policy = &'static [(&'static str, &'static str)];

const INTERNAL: (&str, &str) = ("REPRISE_INTERNAL", "always");
const TICKETS: (&str, &str) = ("REPRISE_TICKETS", "stateful");
const UNCLEAN: (&str, &str) = ("REPRISE_UNCLEAN", "keep");
const REVERIFY: (&str, &str) = ("REPRISE_REVERIFY", "on");
const ID_CONTEXT: (&str, &str) = ("REPRISE_ID_CONTEXT", "auto");

const POLICIES: [Policy; 8] = [
    &[],
    &[INTERNAL],
    &[TICKETS],
    &[UNCLEAN],
    &[REVERIFY],
    &[ID_CONTEXT],
    &[INTERNAL, TICKETS, UNCLEAN],
    &[INTERNAL, TICKETS, UNCLEAN, REVERIFY, ID_CONTEXT],
];

/// How a program keeps its sessions.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// In one process, or in a place that all of its processes know.
    Together,
    /// In processes that have only the key of the tickets in common. Without a shared cache `stateful` takes that from
    /// them, and `reprise run` warns of it.
    Forked,
}

/// Eight clients that come back 10 times each.
const CLIENTS: [&str; 4] = ["-n", "10", "-clients", "8"];
const ALL: [u64; 2] = [80, 80];

fn visit(serve: impl Fn(&Sandbox, u16) -> Command, client: &str, keeper: Keeper, more: &[(&str, &str)]) -> Reuse {
    let (sandbox, port) = (Sandbox::new(), free_port());
    let mut command = serve(&sandbox, port);
    keeper.apply(&mut command, &sandbox.file("stats"));
    let mut server = Server::start(command.envs(more.iter().copied()), &sandbox, port);
    let reuse = reconnect(port, &[&[client], &CLIENTS[..]].concat());
    server.assert_alive();
    assert_eq!(reuse.failed, 0, "{client}, {keeper:?}, {more:?}: {reuse:?}\n{}", server.log());
    reuse
}

/// Stock resumes `expected` with TLS 1.2 and with TLS 1.3, Reprise no fewer, whatever it is told.
fn never_less(kind: Kind, expected: [u64; 2], serve: impl Fn(&Sandbox, u16, &str) -> Command) {
    for (client, expected) in ["-tls1_2", "-tls1_3"].into_iter().zip(expected) {
        let serve = |sandbox: &Sandbox, port| serve(sandbox, port, client);
        let stock = visit(serve, client, Keeper::Stock, &[]);
        assert_eq!(stock.resumed, expected, "{client}: stock");
        for policy in POLICIES {
            for shared in [false, true] {
                if kind == Kind::Forked && policy.contains(&TICKETS) && !shared {
                    continue;
                }
                let cache = SharedCache::new();
                let url = if shared { cache.url() } else { "memory:".into() };
                let more = [policy, &[("REPRISE_CACHE", url.as_str())]].concat();
                let reuse = visit(serve, client, Keeper::StockLike, &more);
                assert!(reuse.resumed >= expected, "{client}, {more:?}: {reuse:?}, on stock {expected}");
            }
        }
        // What documented semantics changes is independent of where the cache is.
        for policy in [POLICIES[0], POLICIES[POLICIES.len() - 1]] {
            if kind == Kind::Together || !policy.contains(&TICKETS) {
                let reuse = visit(serve, client, Keeper::Documented, policy);
                assert!(reuse.resumed >= expected, "{client}, documented, {policy:?}: {reuse:?}, on stock {expected}");
            }
        }
    }
}

fn nginx(cache: &'static str, tickets: &'static str, workers: u32) -> impl Fn(&Sandbox, u16, &str) -> Command {
    move |sandbox, port, client| {
        let protocol = if client == "-tls1_2" { "TLSv1.2" } else { "TLSv1.3" };
        servers::nginx(sandbox, port, workers, protocol, cache, tickets, ANSWER)
    }
}

#[test]
fn nginx_with_tickets() {
    never_less(Kind::Forked, ALL, nginx("none", "on", 4));
}

#[test]
fn nginx_builtin() {
    never_less(Kind::Together, ALL, nginx("builtin", "off", 1));
}

#[test]
fn nginx_shared() {
    never_less(Kind::Together, ALL, nginx("shared:X:1m", "off", 4));
    never_less(Kind::Together, ALL, nginx("shared:X:1m", "on", 4));
}

fn apache(cache: &'static str, tickets: &'static str) -> impl Fn(&Sandbox, u16, &str) -> Command {
    move |sandbox, port, client| {
        let protocol = if client == "-tls1_2" { "TLSv1.2" } else { "TLSv1.3" };
        servers::apache(sandbox, port, Apache { mpm: "event", workers: 4, protocol, client: "", cache, tickets })
    }
}

#[test]
fn apache_with_tickets() {
    never_less(Kind::Forked, ALL, apache("none", "On"));
}

#[test]
fn apache_shmcb() {
    never_less(Kind::Together, ALL, apache("shmcb:scache(512000)", "Off"));
}

#[test]
fn haproxy() {
    for tickets in ["", "no-tls-tickets"] {
        never_less(Kind::Together, ALL, |sandbox, port, client| {
            let protocol = if client == "-tls1_2" { "TLSv1.2" } else { "TLSv1.3" };
            let setup = HAProxy { protocol, client: "", threads: 4, cache: "20000", tickets };
            servers::haproxy(sandbox, port, setup, None)
        });
    }
}

#[test]
fn stunnel() {
    let backend = Backend::new(1);
    never_less(Kind::Together, ALL, |sandbox, port, client| {
        let protocol = if client == "-tls1_2" { "TLSv1.2" } else { "TLSv1.3" };
        servers::stunnel(sandbox, port, backend.port, &servers::server_options(sandbox, protocol, ""))
    });
}

#[test]
fn s_server() {
    for tickets in ["", " -no_ticket"] {
        never_less(Kind::Together, ALL, |sandbox, port, _| servers::s_server(sandbox, port, &format!("-www{tickets}")));
    }
}

/// A C server of four processes: made with tickets, it can do nothing on stock, nor without.
#[test]
fn c_prefork() {
    never_less(Kind::Forked, ALL, |sandbox, port, _| {
        servers::prefork(sandbox, port, &["-tickets", "-ctx_before_fork"])
    });
}

#[test]
fn python_threads() {
    never_less(Kind::Together, ALL, |sandbox, port, client| {
        servers::python_server(sandbox, port, &client[1..], "unwrap")
    });
}

/// It closes its connections without close_notify, which costs tickets nothing.
#[test]
fn python_http_server() {
    never_less(Kind::Together, ALL, |sandbox, port, _| servers::http_server(sandbox, port));
}

#[test]
fn perl() {
    for options in [&[][..], &["no_ticket"]] {
        never_less(Kind::Together, ALL, |sandbox, port, client| {
            let version = if client == "-tls1_2" { "TLSv1_2" } else { "TLSv1_3" };
            servers::perl_server(sandbox, port, version, options)
        });
    }
}

/// It answers with JavaScript what it is asked for sessions, which nobody has written here. With TLS 1.3 a resumed
/// connection is told no ticket, so every other one is resumed.
#[test]
fn node() {
    never_less(Kind::Together, [80, 40], |sandbox, port, _| servers::node(sandbox, port));
}

/// What README promises of one line.
#[test]
fn run_with_a_cache_is_enough() {
    let everyone: [(&str, Serve); 6] = [
        ("gunicorn", &|sandbox, port| servers::gunicorn(sandbox, port)),
        ("uvicorn", &|sandbox, port| servers::uvicorn(sandbox, port)),
        ("nginx", &|sandbox, port| servers::nginx(sandbox, port, 4, "TLSv1.2 TLSv1.3", "none", "on", ANSWER)),
        ("Apache", &|sandbox, port| apache("none", "On")(sandbox, port, "-tls1_2")),
        ("C", &|sandbox, port| servers::prefork(sandbox, port, &["-tickets"])),
        ("Python", &|sandbox, port| servers::python_prefork(sandbox, port, &["tls1_2"])),
    ];
    for (name, serve) in everyone {
        for client in ["-tls1_2", "-tls1_3"] {
            if client == "-tls1_3" && ["Apache", "Python"].contains(&name) {
                continue; // they are started for one version
            }
            let (sandbox, port, cache) = (Sandbox::new(), free_port(), SharedCache::new());
            let server = serve(&sandbox, port);
            let mut command = Command::new(common::command());
            Keeper::Stock.apply(&mut command, &sandbox.file("stats")); // the plain environment
            command.args(["run", "--cache", &cache.url(), "--"]).arg(server.get_program()).args(server.get_args());
            for (name, value) in server.get_envs() {
                command.env(name, value.unwrap());
            }
            let mut server = Server::start(&mut command, &sandbox, port);
            let reuse = reconnect(port, &[client, "-n", "25", "-clients", "8"]);
            server.assert_alive();
            println!("{name}, {client}: {reuse:?}");
            assert_eq!((reuse.resumed, reuse.failed), (200, 0), "{name}, {client}: {reuse:?}\n{}", server.log());
            assert!(reuse.workers != 1, "{name}, {client}: one process answered all: {reuse:?}");
            // 0: they do not say
        }
    }
}
