//! `openssl s_server` keeps its sessions with Reprise: session ids, stateful tickets, early data, its own external
//! cache, and no cache. REPRISE_TEST_LIBSSL=DIR runs the s_server and libssl of that folder (tools/libssl.sh) instead
//! of the system's.

mod common;
mod servers;

use common::{free_port, s_client, Comparison, Keeper, Sandbox, Server, Stats};
use servers::{openssl_under_test, s_server};

fn compare(server: &str, client: &[&str]) -> Comparison {
    let sandbox = Sandbox::new();
    Comparison::of(&sandbox, |port| s_server(&sandbox, port, server), client)
}

const TLS12: &[&str] = &["-tls1_2", "-no_ticket", "-n", "20"];
const TLS13: &[&str] = &["-tls1_3", "-n", "20"];

#[test]
fn tls12_session_ids() {
    compare("-www -no_ticket -tls1_2", TLS12).expect(20).at_least("hits", 20).at_least("negotiated", 1);
}

#[test]
fn tls13_stateful_tickets() {
    compare("-www -no_ticket -tls1_3", TLS13).expect(20).at_least("hits", 20).at_least("negotiated", 21);
}

/// Sealed tickets need no cache; taking it over must not cost them.
#[test]
fn stateless_tickets() {
    compare("-www -tls1_2", &["-tls1_2", "-n", "20"]).expect(20).none("hits");
    compare("-www -tls1_3", TLS13).expect(20).none("hits");
}

/// A client that is gone without close_notify. Since 3.0 that is an error which costs the session, on every side.
#[test]
fn abrupt_clients() {
    let seen = compare("-www -no_ticket -tls1_2", &["-tls1_2", "-no_ticket", "-n", "10", "-abrupt"]);
    seen.never_below(seen.stock.resumed);
    if seen.stock.resumed == 0 {
        seen.at_least("removed", 10);
    } else {
        seen.expect(10).at_least("hits", 10); // 1.1.1
    }
}

#[test]
fn external_cache() {
    compare("-www -no_ticket -ext_cache -tls1_2", TLS12).expect(20).at_least("external_hits", 20).none("hits");
    compare("-www -no_ticket -ext_cache -tls1_3", TLS13).expect(20).at_least("external_hits", 20).none("hits");
}

#[test]
fn no_cache() {
    compare("-www -no_ticket -no_cache -tls1_2", TLS12).expect(0).none("stored");
    compare("-www -no_ticket -no_cache -tls1_3", TLS13).expect(0).none("stored");
}

/// A ticket used twice with early data: whether the first use and the second one were accepted, and the counters.
fn use_twice(keeper: Keeper, server: &str) -> (bool, bool, Option<Stats>) {
    let sandbox = Sandbox::new();
    let stats = sandbox.file("stats");
    let (session, newer) = (sandbox.file("session.pem"), sandbox.file("newer.pem"));
    let early = sandbox.file("early");
    std::fs::write(&early, "GET / HTTP/1.0\r\n\r\n").unwrap();

    let port = free_port();
    let mut command = s_server(&sandbox, port, server);
    keeper.apply(&mut command, &stats);
    let mut server = Server::start(&mut command, &sandbox, port);

    let connect = |args: &[&str], ticket| s_client(openssl_under_test(), port, args, Some(ticket));
    let first = connect(&[], &session);
    assert!(first.contains("New, TLSv1.3"), "{keeper:?}: {first}");
    let accepted = [(); 2].map(|()| {
        let again = ["-sess_in", session.to_str().unwrap(), "-early_data", early.to_str().unwrap()];
        let seen = connect(&again, &newer);
        let (resumed, accepted) = (seen.contains("Reused, TLSv1.3"), seen.contains("Early data was accepted"));
        assert!(accepted || seen.contains("Early data was rejected"), "{keeper:?}: {seen}");
        assert_eq!(resumed, accepted, "{keeper:?}: {seen}");
        accepted
    });
    server.assert_alive();
    (accepted[0], accepted[1], (keeper != Keeper::Stock).then(|| Stats::read(&stats)))
}

/// Anti-replay: the first use of a ticket is resumed with its early data, the second one is not.
#[test]
fn early_data_is_accepted_once() {
    for keeper in [Keeper::Stock, Keeper::Documented, Keeper::StockLike] {
        let (first, second, stats) = use_twice(keeper, "-early_data -tls1_3");
        assert!(first && !second, "{keeper:?}: {first} {second} {stats:?}");
        if let Some(stats) = stats {
            assert!(stats["contexts"] >= 1 && stats["taken"] == 1, "{keeper:?}: {stats:?}");
        }
    }
}

/// With an external cache only, stock never accepts any (REPLAY1).
#[test]
fn early_data_with_an_external_cache() {
    const SERVER: &str = "-early_data -tls1_3 -ext_cache";
    let (first, second, _) = use_twice(Keeper::Stock, SERVER);
    assert!(!first && !second, "stock: {first} {second}");
    let (first, second, _) = use_twice(Keeper::StockLike, SERVER);
    assert!(!first && !second, "stock semantics: {first} {second}");
    let (first, second, stats) = use_twice(Keeper::Documented, SERVER);
    let stats = stats.unwrap();
    assert!(first && !second && stats["taken"] == 1, "{first} {second} {stats:?}");
}
