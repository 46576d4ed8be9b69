//! HAProxy as it is: towards clients, where it caches sessions itself or not at all, and towards servers, where it is
//! the client.
//!
//! Its contexts never use libssl's cache: `tune.ssl.cachesize N` keeps sessions in a cache of its own, for all threads
//! (mode SERVER | NO_INTERNAL and three callbacks), 0 switches the cache off. So by itself nothing changes under
//! Reprise. `REPRISE_INTERNAL=always` gives it a cache, and in shared memory one that a reload (`-sf`), which starts
//! another process, does not empty. Tickets do not survive a reload, either, as each process makes a key of its own:
//! that takes `REPRISE_TICKETS=stateful` as well. Towards servers each thread keeps its newest session as bytes, and
//! offers it: nothing for a cache to do there.
//!
//! REPRISE_TEST_LIBSSL=DIR gives it the libssl.so.3 of that folder (tools/libssl.sh) instead of the system's.

mod common;
mod servers;

use std::fs;

use common::{
    free_port, reconnect, resumed_behind, tls_backend, Comparison, Keeper, Sandbox, Server, SharedCache, Stats,
};
use servers::{haproxy, HAProxy as Setup};

const KEEPERS: [Keeper; 3] = [Keeper::Stock, Keeper::Documented, Keeper::StockLike];
const OWN: &str = "20000";
const NONE: &str = "0";
const ON: &str = "";
const OFF: &str = "no-tls-tickets";

/// Both protocols, one thread and four.
fn each(cache: &'static str, tickets: &'static str) -> impl Iterator<Item = Setup> {
    [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")]
        .into_iter()
        .flat_map(move |(protocol, client)| [1, 4].map(|threads| Setup { protocol, client, threads, cache, tickets }))
}

/// Four clients that come back 25 times each.
const ALL: u64 = 100;

fn compare(setup: Setup, more: &[(&str, &str)]) -> Comparison {
    println!("{setup:?}, {more:?}");
    let sandbox = Sandbox::new();
    let client = [setup.client, "-n", "25", "-clients", "4"];
    let seen = Comparison::under(more, &sandbox, |port| haproxy(&sandbox, port, setup, None), &client);
    for reuse in [seen.stock, seen.reprise[0].1, seen.reprise[1].1] {
        assert!(setup.threads == 1 || reuse.workers > 1, "only one thread answered: {reuse:?}");
    }
    seen
}

#[test]
fn its_own_cache() {
    for setup in each(OWN, OFF) {
        compare(setup, &[]).expect(ALL).at_least("external_hits", ALL).none("hits").none("stored");
    }
}

/// Its new_cb returns 0, so the documented semantics take out of the internal cache again what that stored, and
/// HAProxy's own has it.
#[test]
fn its_own_cache_and_the_internal_one() {
    for setup in each(OWN, OFF) {
        compare(setup, &[("REPRISE_INTERNAL", "always")]).expect(ALL).at_least_hits(ALL).at_least("stored", 1);
    }
}

#[test]
fn no_cache() {
    for setup in each(NONE, OFF) {
        compare(setup, &[]).expect(0).none("stored").none("hits").none("external_hits");
    }
}

#[test]
fn no_cache_of_its_own() {
    for setup in each(NONE, OFF) {
        let shared = SharedCache::new();
        for cache in ["memory:", &shared.url()] {
            let seen = compare(setup, &[("REPRISE_INTERNAL", "always"), ("REPRISE_CACHE", cache)]);
            assert_eq!(seen.stock.resumed, 0, "{:?}", seen.stock);
            seen.never_below(ALL).at_least("hits", ALL);
        }
    }
}

/// Tickets carry the session. A policy for them alone has nothing to keep sessions in where HAProxy has no cache.
#[test]
fn tickets() {
    for (cache, more) in [(OWN, [].as_slice()), (NONE, &[]), (NONE, &[("REPRISE_TICKETS", "stateful")])] {
        for setup in each(cache, ON) {
            compare(setup, more).expect(ALL).none("hits").none("external_hits");
        }
    }
}

#[test]
fn tickets_that_name_a_session() {
    let stateful = ("REPRISE_TICKETS", "stateful");
    for setup in each(OWN, ON) {
        // HAProxy's callbacks are its cache: its tickets stay as they are.
        compare(setup, &[stateful]).expect(ALL).none("external_hits");
    }
    for setup in each(NONE, ON) {
        compare(setup, &[stateful, ("REPRISE_INTERNAL", "always")]).expect(ALL).at_least("hits", ALL);
    }
}

/// Whether a session outlives (the reload to another process, the end by SIGTERM, for which HAProxy runs no destructor).
fn outlives(setup: Setup, keeper: Keeper) -> [bool; 2] {
    let (sandbox, shared, port) = (Sandbox::new(), SharedCache::new(), free_port());
    let session = sandbox.file("session.pem");
    let start = |more: &[&str]| {
        let mut command = haproxy(&sandbox, port, setup, None);
        keeper.apply(&mut command, &sandbox.file("stats"));
        if keeper != Keeper::Stock {
            command.env("REPRISE_CACHE", shared.url());
            command.envs([("REPRISE_INTERNAL", "always"), ("REPRISE_TICKETS", "stateful")]);
        }
        Server::start(command.args(more), &sandbox, port)
    };
    let visit = |session: &[&str]| {
        let reuse = reconnect(port, &[&[setup.client, "-n", "0"], session].concat());
        assert_eq!(reuse.failed, 0, "{setup:?}, {keeper:?}: {reuse:?}");
        reuse.resumed == 1
    };
    let (store, offer) = (["-session_out", session.to_str().unwrap()], ["-session_in", session.to_str().unwrap()]);

    let old = start(&[]);
    visit(&store);
    let new = start(&["-sf", &old.id().to_string()]);
    assert!(old.stop(0).success(), "{setup:?}, {keeper:?}: the old process did not end well");
    let reload = visit(&offer);
    visit(&store);
    new.stop(libc::SIGTERM);
    let _next = start(&[]);
    let outlived = [reload, visit(&offer)];
    if keeper != Keeper::Stock {
        let stats = Stats::read(&sandbox.file("stats"));
        assert!(stats["hits"] >= 2 && stats["store_errors"] == 0, "{setup:?}, {keeper:?}: {stats:?}");
    }
    outlived
}

#[test]
fn reload_and_restart() {
    for setup in [(OWN, OFF), (OWN, ON), (NONE, OFF), (NONE, ON)].into_iter().flat_map(|(c, t)| each(c, t)) {
        for keeper in KEEPERS {
            // In the first case new_cb's 0 makes the shared cache give the session up; in the second there is none.
            if (keeper, setup.cache) == (Keeper::Documented, OWN)
                || (keeper, setup.cache, setup.tickets) == (Keeper::Stock, NONE, OFF)
            {
                continue;
            }
            assert_eq!(outlives(setup, keeper), [keeper != Keeper::Stock; 2], "{setup:?}, {keeper:?}");
        }
    }
}

/// Whether a session of a service that asks for no client certificate is resumed by (one that shows another
/// certificate, one that demands a client's). HAProxy's own cache is one for all, and no context it caches in has a
/// certificate at that time: Reprise keeps them apart by the context that a connection is switched to.
fn crosses(protocol: &str, cache: &str, keeper: Keeper, place: &str) -> [bool; 2] {
    let (sandbox, other) = (Sandbox::new(), Sandbox::new());
    let setup = Setup { protocol: "TLSv1.2", client: "", threads: 1, cache: "0", tickets: OFF };
    let ports = [(); 3].map(|()| free_port());
    let mut command = haproxy(&sandbox, ports[0], setup, None);
    haproxy(&other, ports[1], setup, None); // for its certificate
    let conf = sandbox.file(&format!("haproxy-{}.cfg", ports[0]));
    let bind = |port: u16, sandbox: &Sandbox, more: &str| {
        let pem = sandbox.file("both.pem");
        format!("    bind 127.0.0.1:{port} ssl crt {} no-tls-tickets {more}\n", pem.display())
    };
    let cert = sandbox.file("cert.pem");
    let demanding = format!("ca-file {} verify required", cert.display());
    let binds = [bind(ports[0], &sandbox, ""), bind(ports[1], &other, ""), bind(ports[2], &other, &demanding)].concat();
    let text = fs::read_to_string(&conf).unwrap();
    let lines = text.lines().map(|line| match line.trim_start() {
        line if line.starts_with("bind") => binds.clone(),
        line if line.starts_with("tune.ssl.cachesize") => format!("tune.ssl.cachesize {cache}\n"),
        _ => line.to_owned() + "\n",
    });
    fs::write(&conf, lines.collect::<String>()).unwrap();
    keeper.apply(&mut command, &sandbox.file("stats"));
    if keeper != Keeper::Stock {
        command.envs([("REPRISE_INTERNAL", "always"), ("REPRISE_CACHE", place)]);
    }
    let _server = Server::start(&mut command, &sandbox, ports[0]);
    // HAProxy switches each connection to the context of its certificate, after libssl has looked for a session: what it
    // does is known after the first full handshake (which those without a certificate fail).
    for port in [ports[1], ports[2]] {
        reconnect(port, &[protocol, "-n", "0"]);
    }
    let session = sandbox.file("session.pem");
    let session = session.to_str().unwrap();
    assert_eq!(reconnect(ports[0], &[protocol, "-n", "0", "-session_out", session]).failed, 0);
    let again = reconnect(ports[0], &[protocol, "-n", "0", "-session_in", session]);
    assert_eq!(again.resumed, 1, "{protocol}, {cache}, {keeper:?}: {again:?}");
    assert_eq!(reconnect(ports[0], &[protocol, "-n", "0", "-session_out", session]).failed, 0);
    [ports[1], ports[2]].map(|port| reconnect(port, &[protocol, "-n", "0", "-session_in", session]).resumed == 1)
}

#[test]
fn services_of_one_process() {
    for protocol in ["-tls1_2", "-tls1_3"] {
        assert_eq!(crosses(protocol, OWN, Keeper::Stock, ""), [true, true], "{protocol}");
        for keeper in [Keeper::Documented, Keeper::StockLike] {
            let shared = SharedCache::new();
            assert_eq!(crosses(protocol, NONE, keeper, "memory:"), [false, false], "{protocol}, {keeper:?}");
            assert_eq!(crosses(protocol, NONE, keeper, &shared.url()), [false, false], "{protocol}, {keeper:?}");
        }
    }
}

/// How many of 20 requests reached the backend by a resumed connection, and what Reprise counted meanwhile.
fn towards_the_server(setup: Setup, reuse: &str, keeper: Keeper) -> (usize, Option<Stats>) {
    let sandbox = Sandbox::new();
    let backend = tls_backend(&sandbox, setup.client);
    let port = free_port();
    let line = format!(
        "backend tls_too\n    http-reuse never\n    server one 127.0.0.1:{} ssl verify none {reuse}",
        backend.port
    );
    let mut command = haproxy(&sandbox, port, setup, Some(&line));
    // What clients ask is not the point here.
    let conf = sandbox.file(&format!("haproxy-{port}.cfg"));
    let plain = fs::read_to_string(&conf).unwrap();
    let bind = plain.lines().find(|line| line.trim_start().starts_with("bind")).unwrap();
    fs::write(&conf, plain.replace(bind, &format!("    bind 127.0.0.1:{port}"))).unwrap();
    keeper.apply(&mut command, &sandbox.file("stats"));
    if keeper != Keeper::Stock {
        command.envs([("REPRISE_INTERNAL", "always"), ("REPRISE_TICKETS", "stateful")]);
    }
    let _server = Server::start(&mut command, &sandbox, port);
    let resumed = resumed_behind(port, 20);
    (resumed, (keeper != Keeper::Stock).then(|| Stats::read(&sandbox.file("stats"))))
}

/// As a client HAProxy keeps the sessions itself, and no policy for servers makes Reprise keep them as well.
#[test]
fn as_a_client() {
    for setup in each(NONE, ON) {
        for keeper in KEEPERS {
            let (resumed, stats) = towards_the_server(setup, "", keeper);
            println!("{setup:?}, {keeper:?}: {resumed} of 20 resumed, {stats:?}");
            // Each thread begins without one.
            assert!(resumed >= 20 - setup.threads as usize, "{setup:?}, {keeper:?}: {resumed} of 20 resumed");
            let (resumed, unused) = towards_the_server(setup, "no-ssl-reuse", keeper);
            assert_eq!(resumed, 0, "{setup:?}, {keeper:?}: no-ssl-reuse");
            for stats in [stats, unused].iter().flatten() {
                assert!(stats["contexts"] >= 1 && stats["negotiated"] >= 1, "{setup:?}, {keeper:?}: {stats:?}");
                assert_eq!(stats["stored"], 0, "{setup:?}, {keeper:?}: {stats:?}");
            }
        }
    }
}
