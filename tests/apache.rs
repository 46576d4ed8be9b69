//! Apache with processes for workers (prefork) under a preload with a shared cache. mod_ssl either caches nothing (`none`),
//! or keeps sessions in a cache of its own and forbids the internal one (all else). So nothing may change, whatever
//! else the environment asks for, but for `REPRISE_INTERNAL=always`: then Apache without a cache of its own has one.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use common::{free_port, program, reconnect, repository, Keeper, Reuse, Sandbox, Server, SharedCache, Stats};

const MODULES: &str = "/usr/lib/apache2/modules";
const WORKERS: usize = 4;

/// What of the configuration matters here.
#[derive(Clone, Copy, Debug)]
struct Setup {
    protocol: &'static str,
    client: &'static str,
    cache: &'static str,
    tickets: &'static str,
}

const PROTOCOLS: [(&str, &str); 2] = [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")];

/// An Apache in the sandbox, in the foreground. Root's workers drop to Debian's user for it.
fn apache(sandbox: &Sandbox, port: u16, setup: Setup) -> Command {
    sandbox.certificate();
    // SAFETY: geteuid has no preconditions.
    let user = if unsafe { libc::geteuid() } == 0 { "User www-data\nGroup www-data" } else { "" };
    let template = fs::read_to_string(repository("tests/programs/apache.conf")).unwrap();
    let filled = template
        .replace("@FOLDER@", sandbox.path().to_str().unwrap())
        .replace("@MODULES@", MODULES)
        .replace("@PORT@", &port.to_string())
        .replace("@USER@", user)
        .replace("@WORKERS@", &WORKERS.to_string())
        .replace("@CACHE@", setup.cache)
        .replace("@PROTOCOL@", setup.protocol)
        .replace("@TICKETS@", setup.tickets);
    let conf = sandbox.file(&format!("apache-{port}.conf"));
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("apache2", "apache2-bin"));
    command.arg("-D").arg("FOREGROUND").arg("-f").arg(conf);
    command
}

/// 200 reconnections of four clients to an Apache on stock or with a shared cache, which ends well.
fn visit(sandbox: &Sandbox, setup: Setup, cache: Option<&SharedCache>, more: &[(&str, &str)]) -> Reuse {
    let port = free_port();
    let mut command = apache(sandbox, port, setup);
    match cache {
        None => Keeper::Stock.apply(&mut command, &sandbox.file("stats")),
        Some(cache) => {
            Keeper::StockLike.apply(&mut command, &sandbox.file("stats"));
            command.env("REPRISE_CACHE", cache.url()).envs(more.iter().copied());
        }
    }
    let server = Server::start(&mut command, sandbox, port);
    let reuse = reconnect(port, &[setup.client, "-n", "50", "-clients", "4"]);
    assert_eq!(reuse.failed, 0, "{setup:?}: {reuse:?}");
    let access = fs::read_to_string(sandbox.file(&format!("access-{port}.log"))).unwrap();
    let workers: BTreeSet<_> = access.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(workers.len(), WORKERS, "not all workers answered: {workers:?}");
    assert!(server.stop(libc::SIGTERM).success(), "{setup:?}: Apache did not end well");
    let log = fs::read_to_string(sandbox.file("error.log")).unwrap();
    assert!(!log.contains("exit signal"), "{setup:?}: a worker crashed:\n{log}");
    println!("{setup:?}, {}: {reuse:?}", if cache.is_some() { "Reprise" } else { "stock" });
    reuse
}

/// Stock resumes so many of 200, and Reprise no fewer: with a shared cache, and with each policy.
fn as_on_stock(cache: &'static str, tickets: &'static str, resumed: u64) {
    for (protocol, client) in PROTOCOLS {
        let setup = Setup { protocol, client, cache, tickets };
        let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
        assert_eq!(visit(&sandbox, setup, None, &[]).resumed, resumed, "{setup:?}: stock");
        for policy in [("REPRISE_UNCLEAN", "keep"), ("REPRISE_TICKETS", "stateful")] {
            let reprise = visit(&sandbox, setup, Some(&shared), &[policy]);
            assert_eq!(reprise.resumed, resumed, "{setup:?}: Reprise, {policy:?}");
        }
        assert!(Stats::read(&sandbox.file("stats"))["contexts"] > 0, "Reprise did not take over");
    }
}

#[test]
fn no_cache() {
    as_on_stock("none", "off", 0);
    as_on_stock("nonenotnull", "off", 0);
}

#[test]
fn no_cache_of_its_own() {
    for cache in ["none", "nonenotnull"] {
        for (protocol, client) in PROTOCOLS {
            let setup = Setup { protocol, client, cache, tickets: "off" };
            let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
            assert_eq!(visit(&sandbox, setup, None, &[]).resumed, 0, "{setup:?}: stock");
            let reprise = visit(&sandbox, setup, Some(&shared), &[("REPRISE_INTERNAL", "always")]);
            assert_eq!(reprise.resumed, 200, "{setup:?}: Reprise");
        }
    }
}

#[test]
fn apaches_own_cache() {
    as_on_stock("shmcb:scache(512000)", "off", 200);
    as_on_stock("shmcb:scache(512000)", "on", 200);
}

/// What Apache does when it is told nothing. Tickets that name a session would be good for nothing here.
#[test]
fn tickets_without_a_cache() {
    as_on_stock("none", "on", 200);
}
