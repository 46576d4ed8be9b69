//! Apache with processes for workers (prefork) and with threads in processes (event). mod_ssl either caches nothing
//! (`none`, `nonenotnull`), or keeps sessions in a cache of its own, for all processes, and forbids the internal one
//! (all else). So nothing may change, whatever else the environment asks for, but for `REPRISE_INTERNAL=always`: then
//! Apache without a cache of its own has one, each process for itself or, in shared memory, all of them.

mod common;
mod servers;

use std::collections::BTreeSet;
use std::fs;

use common::{free_port, reconnect, Keeper, Reuse, Sandbox, Server, SharedCache, Stats};
use servers::{apache, Apache as Setup};

const SHMCB: &str = "shmcb:scache(512000)";
const ALWAYS: (&str, &str) = ("REPRISE_INTERNAL", "always");

/// Each kind of workers, four processes, each protocol.
fn each(cache: &'static str, tickets: &'static str) -> impl Iterator<Item = Setup> {
    ["prefork", "event"].into_iter().flat_map(move |mpm| {
        [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")].map(|(protocol, client)| Setup {
            mpm,
            workers: 4,
            protocol,
            client,
            cache,
            tickets,
        })
    })
}

/// Four clients that come back 50 times each.
const ALL: u64 = 200;

/// They visit an Apache, which ends well; and what Reprise counted.
fn visit(sandbox: &Sandbox, setup: Setup, keeper: Keeper, more: &[(&str, &str)]) -> (Reuse, Option<Stats>) {
    let port = free_port();
    let stats = sandbox.file(&format!("stats-{port}"));
    let mut command = apache(sandbox, port, setup);
    keeper.apply(&mut command, &stats);
    let server = Server::start(command.envs(more.iter().copied()), sandbox, port);
    let reuse = reconnect(port, &[setup.client, "-n", "50", "-clients", "4"]);
    assert_eq!(reuse.failed, 0, "{setup:?}: {reuse:?}");
    let access = fs::read_to_string(sandbox.file(&format!("access-{port}.log"))).unwrap();
    let workers: BTreeSet<_> = access.lines().filter_map(|line| line.split(' ').next()).collect();
    // Which of them answers is chance, but what one process alone resumes proves nothing.
    assert!(workers.len() >= setup.workers.min(2), "{setup:?}: too few processes answered: {workers:?}");
    assert!(server.stop(libc::SIGTERM).success(), "{setup:?}: Apache did not end well");
    let log = fs::read_to_string(sandbox.file("error.log")).unwrap();
    assert!(!log.contains("exit signal"), "{setup:?}: a worker crashed:\n{log}");
    let stats = (keeper != Keeper::Stock).then(|| Stats::read(&stats));
    println!("{setup:?}, {keeper:?}, {more:?}: {reuse:?}, {stats:?}");
    (reuse, stats)
}

/// Stock resumes so many, and so does Reprise: with each semantics, with a shared cache, with each policy. `judge` is
/// given the counters.
fn as_on_stock(cache: &'static str, tickets: &'static str, resumed: u64, judge: impl Fn(&Stats)) {
    for setup in each(cache, tickets) {
        let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
        let stock = visit(&sandbox, setup, Keeper::Stock, &[]).0;
        assert_eq!(stock.resumed, resumed, "{setup:?}: stock");
        let url = shared.url();
        let in_shared_memory = ("REPRISE_CACHE", url.as_str());
        for (keeper, more) in [
            (Keeper::Documented, [].as_slice()),
            (Keeper::StockLike, &[]),
            (Keeper::Documented, &[in_shared_memory]),
            (Keeper::StockLike, &[in_shared_memory, ("REPRISE_UNCLEAN", "keep")]),
            (Keeper::StockLike, &[in_shared_memory, ("REPRISE_TICKETS", "stateful")]),
        ] {
            let (reuse, stats) = visit(&sandbox, setup, keeper, more);
            let stats = stats.unwrap();
            assert_eq!(reuse.resumed, resumed, "{setup:?}, {keeper:?}, {more:?}");
            assert!(stats["contexts"] > 0 && stats["store_errors"] == 0, "{setup:?}, {keeper:?}, {more:?}: {stats:?}");
            judge(&stats);
        }
    }
}

fn nothing_stored(stats: &Stats) {
    assert!(stats["stored"] == 0 && stats["hits"] == 0 && stats["external_hits"] == 0, "{stats:?}");
}

#[test]
fn no_cache() {
    as_on_stock("none", "off", 0, nothing_stored);
}

#[test]
fn no_cache_but_an_id() {
    as_on_stock("nonenotnull", "off", 0, nothing_stored);
}

#[test]
fn no_cache_of_its_own() {
    for setup in ["none", "nonenotnull"].into_iter().flat_map(|cache| each(cache, "off")) {
        let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
        assert_eq!(visit(&sandbox, setup, Keeper::Stock, &[]).0.resumed, 0, "{setup:?}: stock");
        for keeper in [Keeper::Documented, Keeper::StockLike] {
            // A cache in memory is one process's.
            for (workers, place) in [(1, "memory:"), (setup.workers, &shared.url())] {
                let setup = Setup { workers, ..setup };
                let (reuse, stats) = visit(&sandbox, setup, keeper, &[ALWAYS, ("REPRISE_CACHE", place)]);
                assert_eq!(reuse.resumed, ALL, "{setup:?}, {keeper:?}, {place}");
                let stats = stats.unwrap();
                assert!(
                    stats["hits"] >= ALL && stats["store_errors"] == 0,
                    "{setup:?}, {keeper:?}, {place}: {stats:?}"
                );
            }
        }
    }
}

/// Tickets that name a session resume as those that carry it.
#[test]
fn no_cache_of_its_own_but_tickets() {
    for setup in each("none", "on") {
        let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
        let more = [ALWAYS, ("REPRISE_CACHE", &shared.url()), ("REPRISE_TICKETS", "stateful")];
        for keeper in [Keeper::Documented, Keeper::StockLike] {
            let (reuse, stats) = visit(&sandbox, setup, keeper, &more);
            let stats = stats.unwrap();
            assert!(reuse.resumed == ALL && stats["hits"] >= ALL, "{setup:?}, {keeper:?}: {reuse:?}, {stats:?}");
        }
    }
}

#[test]
fn apaches_own_cache() {
    as_on_stock(SHMCB, "off", ALL, |stats| {
        assert!(stats["external_hits"] >= ALL && stats["hits"] == 0 && stats["stored"] == 0, "{stats:?}");
    });
}

/// The policy for tickets has Apache's own cache resume what else the tickets did.
#[test]
fn apaches_own_cache_and_tickets() {
    as_on_stock(SHMCB, "on", ALL, |stats| {
        assert!(stats["hits"] == 0 && stats["stored"] == 0, "{stats:?}");
    });
}

#[test]
fn apaches_own_cache_and_the_internal_one() {
    for setup in each(SHMCB, "off") {
        let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
        for keeper in [Keeper::Documented, Keeper::StockLike] {
            for place in ["memory:", &shared.url()] {
                let (reuse, stats) = visit(&sandbox, setup, keeper, &[ALWAYS, ("REPRISE_CACHE", place)]);
                let (what, stats) = (format!("{setup:?}, {keeper:?}, {place}"), stats.unwrap());
                assert_eq!(reuse.resumed, ALL, "{what}: {stats:?}");
                assert!(stats["hits"] + stats["external_hits"] >= ALL, "{what}: {stats:?}");
            }
        }
    }
}

/// What Apache does when it is told nothing. Tickets that name a session would be good for nothing here.
#[test]
fn tickets_without_a_cache() {
    as_on_stock("none", "on", ALL, nothing_stored);
}
