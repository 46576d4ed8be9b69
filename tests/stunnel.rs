//! stunnel as it is, as a server and as a client.
//!
//! As a server it forbids libssl to store sessions (NO_INTERNAL_STORE), but not to look them up, and adds each that a
//! full handshake leaves with `SSL_CTX_add_session`. With TLS 1.3 a resumed connection issues a new ticket, which
//! nobody adds: without tickets that carry the session, every other connection is a full handshake, unless
//! `REPRISE_INTERNAL=always` stores them all. `sessionResume = no` switches the cache off and, with TLS 1.3, issues no
//! tickets at all, which no policy changes.
//!
//! What it knows of a session it keeps with the object (ex_data), which a cache of bytes cannot: whether its client is
//! to be redirected (such sessions are not shared), and which of several backends served it (that is forgotten).
//!
//! As a client it keeps its newest session itself, one for each destination: nothing for a cache to do there.
//!
//! REPRISE_TEST_LIBSSL=DIR gives it the libssl.so.3 of that folder (tools/libssl.sh) instead of the system's: one built
//! -Bsymbolic condemns sessions in another way.

mod common;
mod servers;

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    free_port, reconnect, resumed_behind, tls_backend, Comparison, Keeper, Reuse, Sandbox, Server, SharedCache, Stats,
};
use servers::{server_options, stunnel, Backend};

const KEEPERS: [Keeper; 3] = [Keeper::Stock, Keeper::Documented, Keeper::StockLike];
const PROTOCOLS: [(&str, &str); 2] = [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")];
const ALWAYS: (&str, &str) = ("REPRISE_INTERNAL", "always");
const STATEFUL: (&str, &str) = ("REPRISE_TICKETS", "stateful");

/// 20 reconnections to a server.
fn compare(protocol: (&str, &str), options: &str, more: &[(&str, &str)]) -> Comparison {
    println!("{protocol:?}, {options}, {more:?}");
    let (sandbox, backend) = (Sandbox::new(), Backend::new(1));
    let options = server_options(&sandbox, protocol.0, options);
    let client = [protocol.1, "-n", "20"];
    Comparison::under(more, &sandbox, |port| stunnel(&sandbox, port, backend.port, &options), &client)
}

/// `more` with each place for the cache.
fn places(more: &[(&'static str, &'static str)], test: impl Fn(&[(&str, &str)])) {
    let shared = SharedCache::new();
    for place in ["memory:", &shared.url()] {
        test(&[more, &[("REPRISE_CACHE", place)]].concat());
    }
}

#[test]
fn session_ids() {
    places(&[], |more| {
        compare(PROTOCOLS[0], "options = NO_TICKET", more).expect(20).at_least("hits", 20).at_least("stored", 1);
    });
}

/// What a resumed connection issues is not added: a miss, a full handshake, and so on.
#[test]
fn tls13_resumes_every_other() {
    places(&[], |more| {
        let seen = compare(PROTOCOLS[1], "options = NO_TICKET", more);
        seen.expect(10).at_least("hits", 10).at_least("misses", 10);
        seen.reprise.iter().for_each(|(keeper, reuse, _)| assert_eq!(reuse.resumed, 10, "{keeper:?}"));
    });
    places(&[ALWAYS], |more| {
        let seen = compare(PROTOCOLS[1], "options = NO_TICKET", more);
        assert_eq!(seen.stock.resumed, 10);
        seen.never_below(20);
    });
}

#[test]
fn tickets() {
    for protocol in PROTOCOLS {
        compare(protocol, "", &[]).expect(20).none("hits");
        places(&[STATEFUL, ALWAYS], |more| {
            let seen = compare(protocol, "", more);
            seen.expect(20);
        });
    }
    // Alone, the policy for tickets leaves them as they are: stunnel's callbacks are its cache, and nobody would have told
    // them of ids that tickets name.
    compare(PROTOCOLS[1], "", &[STATEFUL]).expect(20).none("hits");
}

#[test]
fn switched_off() {
    for protocol in PROTOCOLS {
        for tickets in ["", "\noptions = NO_TICKET"] {
            let options = format!("sessionResume = no{tickets}");
            compare(protocol, &options, &[]).expect(0).none("hits");
            let seen = compare(protocol, &options, &[ALWAYS]);
            assert_eq!(seen.stock.resumed, 0);
            let resumed = if protocol.0 == "TLSv1.2" { 20 } else { 0 };
            seen.never_below(resumed).at_least("hits", resumed);
        }
    }
}

/// Whether a TLS 1.2 session is resumed after `meanwhile`.
fn outlives(
    keeper: Keeper,
    place: &str,
    options: &str,
    meanwhile: impl FnOnce(Server, &dyn Fn() -> Server) -> Server,
) -> bool {
    let (sandbox, backend, port) = (Sandbox::new(), Backend::new(1), free_port());
    let options = server_options(&sandbox, "TLSv1.2", &format!("options = NO_TICKET\n{options}"));
    let start = || {
        let mut command = stunnel(&sandbox, port, backend.port, &options);
        keeper.apply(&mut command, &sandbox.file("stats"));
        if keeper != Keeper::Stock {
            command.env("REPRISE_CACHE", place);
        }
        Server::start(&mut command, &sandbox, port)
    };
    let session = sandbox.file("session.pem");
    let session = session.to_str().unwrap();
    let server = start();
    assert_eq!(reconnect(port, &["-tls1_2", "-n", "0", "-session_out", session]).failed, 0);
    let mut server = meanwhile(server, &start);
    let reuse = reconnect(port, &["-tls1_2", "-n", "0", "-session_in", session]);
    assert_eq!(reuse.failed, 0, "{keeper:?}, {place}: {reuse:?}");
    server.assert_alive();
    reuse.resumed == 1
}

/// Its own settings for the cache, 10 sessions and 1 second; its default of 1000 sessions also limits a shared cache.
#[test]
fn size_and_timeout() {
    for keeper in KEEPERS {
        let shared = SharedCache::new();
        for place in ["memory:", &shared.url()] {
            let others = |server: Server, _: &dyn Fn() -> Server| {
                assert_eq!(reconnect(server.port, &["-tls1_2", "-fresh", "-n", "29"]).failed, 0);
                server
            };
            assert!(outlives(keeper, place, "", others), "{keeper:?}, {place}");
            assert!(!outlives(keeper, place, "sessionCacheSize = 10", others), "{keeper:?}, {place}");
            let later = |server, _: &dyn Fn() -> Server| {
                thread::sleep(Duration::from_millis(2100));
                server
            };
            assert!(!outlives(keeper, place, "sessionCacheTimeout = 1", later), "{keeper:?}, {place}");
        }
    }
}

/// A reload makes new contexts, a restart a new process. Only a shared cache is there still.
#[test]
fn reload_and_restart() {
    for keeper in KEEPERS {
        let shared = SharedCache::new();
        for place in ["memory:", &shared.url()] {
            let outlived = keeper != Keeper::Stock && place != "memory:";
            let reload = |server: Server, _: &dyn Fn() -> Server| {
                server.signal(libc::SIGHUP);
                let deadline = Instant::now() + Duration::from_secs(30);
                while server.log().matches("Configuration successful").count() < 2 {
                    assert!(Instant::now() < deadline, "no reload");
                    thread::sleep(Duration::from_millis(5));
                }
                server
            };
            assert_eq!(outlives(keeper, place, "", reload), outlived, "reload: {keeper:?}, {place}");
            let restart = |server: Server, start: &dyn Fn() -> Server| {
                assert!(server.stop(libc::SIGTERM).success());
                start()
            };
            assert_eq!(outlives(keeper, place, "", restart), outlived, "restart: {keeper:?}, {place}");
        }
    }
}

/// Which backend a client was sent to is on the session object: a returning client is sent there again, but not
/// if the session comes from bytes.
#[test]
fn several_backends() {
    let (one, two) = (Backend::new(1), Backend::new(2));
    let options = format!("options = NO_TICKET\nfailover = rr\nconnect = 127.0.0.1:{}", two.port);
    places(&[], |more| {
        let sandbox = Sandbox::new();
        let options = server_options(&sandbox, "TLSv1.2", &options);
        let client = ["-tls1_2", "-n", "20"];
        let seen = Comparison::under(more, &sandbox, |port| stunnel(&sandbox, port, one.port, &options), &client);
        seen.expect(20).at_least("hits", 20);
        assert_eq!(seen.stock.workers, 1);
        let workers = if more.contains(&("REPRISE_CACHE", "memory:")) { 1 } else { 2 };
        seen.reprise.iter().for_each(|(keeper, reuse, _)| assert_eq!(reuse.workers, workers, "{keeper:?}, {more:?}"));
    });
}

/// A server that redirects whom it does not trust: how often (a stranger, a client it trusts) got inside in 5
/// connections, and how the last 4 were resumed.
fn redirect(protocol: (&str, &str), keeper: Keeper, more: &[(&str, &str)], abrupt: bool) -> [(u64, Reuse); 2] {
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (inside, outside) = (Backend::new(1), Backend::new(2));
    let (trusted, stranger) = (sandbox.certificate(), elsewhere.certificate());
    let options = format!(
        "options = NO_TICKET\nverifyChain = yes\nCAfile = {}\nredirect = 127.0.0.1:{}",
        trusted.0.display(),
        outside.port
    );
    let port = free_port();
    let options = server_options(&sandbox, protocol.0, &options);
    let mut command = stunnel(&sandbox, port, inside.port, &options);
    keeper.apply(&mut command, &sandbox.file("stats"));
    if keeper != Keeper::Stock {
        command.envs(more.iter().copied());
    }
    let _server = Server::start(&mut command, &sandbox, port);
    let seen = [stranger, trusted].map(|(cert, key)| {
        let before = inside.answered.load(Relaxed);
        let session = sandbox.file("session.pem");
        let session = session.to_str().unwrap();
        let visit = |more: &[&str]| {
            let client = [protocol.1, "-cert", cert.to_str().unwrap(), "-key", key.to_str().unwrap()];
            reconnect(port, &[&client, more].concat())
        };
        let end: &[&str] = if abrupt { &["-abrupt"] } else { &[] };
        let first = visit(&[&["-n", "0", "-session_out", session], end].concat());
        let reuse = visit(&["-n", "3", "-session_in", session]);
        assert_eq!((first.failed, reuse.failed), (0, 0), "{protocol:?}, {keeper:?}, {more:?}: {first:?} {reuse:?}");
        (inside.answered.load(Relaxed) - before, reuse)
    });
    if keeper != Keeper::Stock {
        let stats = Stats::read(&sandbox.file("stats"));
        println!("{protocol:?}, {keeper:?}, {more:?}: {seen:?}, {stats:?}");
        assert!(stats["contexts"] > 0 && stats["hits"] > 0, "{stats:?}");
    }
    seen
}

/// Resumption must not make a stranger a client that is trusted. Wherever sessions come from bytes (a shared cache; a copy
/// after an unclean end) those on which stunnel has noted something are left out.
#[test]
fn strangers_stay_outside() {
    for protocol in PROTOCOLS {
        for keeper in KEEPERS {
            let shared = SharedCache::new();
            for place in ["memory:", &shared.url()] {
                for (unclean, abrupt) in [("drop", false), ("keep", true)] {
                    let more = [ALWAYS, ("REPRISE_CACHE", place), ("REPRISE_UNCLEAN", unclean)];
                    let [(stranger, _), (trusted, reuse)] = redirect(protocol, keeper, &more, abrupt);
                    let what = format!("{protocol:?}, {keeper:?}, {more:?}");
                    assert_eq!(stranger, 0, "{what}: a stranger got inside");
                    assert_eq!(trusted, 5 - u64::from(abrupt), "{what}: a client was redirected");
                    let least = match keeper {
                        Keeper::Stock => 0,
                        Keeper::Documented => 2, // every other, with TLS 1.3
                        // A libssl that is built -Bsymbolic marks the object, and a copy lacks stunnel's notes.
                        Keeper::StockLike => 4 - u64::from(abrupt),
                    };
                    assert!(reuse.resumed >= least, "{what}: {reuse:?}");
                }
            }
        }
    }
}

/// How many of 20 requests through a stunnel that is the client reached the server by a resumed connection.
fn towards_the_server(protocol: (&str, &str), options: &str, keeper: Keeper) -> (usize, Option<Stats>) {
    let sandbox = Sandbox::new();
    let (server, port) = (tls_backend(&sandbox, protocol.1), free_port());
    let mut command = stunnel(&sandbox, port, server.port, &format!("client = yes\n{options}"));
    keeper.apply(&mut command, &sandbox.file("stats"));
    if keeper != Keeper::Stock {
        command.envs([ALWAYS, STATEFUL]);
    }
    let _stunnel = Server::start(&mut command, &sandbox, port);
    let resumed = resumed_behind(port, 20);
    (resumed, (keeper != Keeper::Stock).then(|| Stats::read(&sandbox.file("stats"))))
}

/// Also with `delay`, where it keeps one session for all destinations.
#[test]
fn as_a_client() {
    for protocol in PROTOCOLS {
        for options in ["", "delay = yes"] {
            for keeper in KEEPERS {
                let (resumed, stats) = towards_the_server(protocol, options, keeper);
                println!("{protocol:?}, {options}, {keeper:?}: {resumed} of 20 resumed, {stats:?}");
                assert!(resumed >= 18, "{protocol:?}, {options}, {keeper:?}: {resumed} of 20 resumed");
                if let Some(stats) = stats {
                    assert!(stats["contexts"] > 0 && stats["negotiated"] > 0 && stats["stored"] == 0, "{stats:?}");
                }
            }
        }
    }
}
