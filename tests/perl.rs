//! Perl's IO::Socket::SSL keeps its sessions with Reprise. A listener has one SSL_CTX, and Net::SSLeay loads libssl behind
//! itself. Stock resumes with tickets and by session id; with a shared cache the next server does, too.

mod common;
mod servers;

use common::{free_port, reconnect, Comparison, Keeper, Sandbox, Server, SharedCache, Stats};
use servers::perl_server as https_server;

const VERSIONS: [(&str, &str); 2] = [("TLSv1_2", "-tls1_2"), ("TLSv1_3", "-tls1_3")];

#[test]
fn as_it_is() {
    for (version, client) in VERSIONS {
        for options in [&[][..], &["no_ticket"]] {
            let sandbox = Sandbox::new();
            let serve = |port| https_server(&sandbox, port, version, options);
            let seen = Comparison::of(&sandbox, serve, &[client, "-n", "20"]);
            seen.expect(20).at_least("hits", if options.is_empty() { 0 } else { 20 });
        }
    }
}

#[test]
fn the_next_server_resumes() {
    for (version, client) in VERSIONS {
        for (options, tickets) in [(&[][..], "stateful"), (&["no_ticket"], "as-is")] {
            for shared in [false, true] {
                let (sandbox, cache) = (Sandbox::new(), SharedCache::new());
                let file = sandbox.file("session.pem");
                let session = file.to_str().unwrap();
                let start = || {
                    let port = free_port();
                    let mut command = https_server(&sandbox, port, version, options);
                    let keeper = if shared { Keeper::StockLike } else { Keeper::Stock };
                    keeper.apply(&mut command, &sandbox.file("stats"));
                    if shared {
                        command.env("REPRISE_CACHE", cache.url()).env("REPRISE_TICKETS", tickets);
                    }
                    Server::start(&mut command, &sandbox, port)
                };
                let server = start();
                let first = reconnect(server.port, &[client, "-n", "20", "-session_out", session]);
                assert_eq!((first.resumed, first.failed), (20, 0), "{version} {options:?}");
                assert!(server.stop(libc::SIGTERM).success(), "{version} {options:?}");
                let next = reconnect(start().port, &[client, "-n", "0", "-session_in", session]);
                assert_eq!((next.resumed, next.failed), (shared.into(), 0), "{version} {options:?}, shared: {shared}");
                if shared {
                    assert!(Stats::read(&sandbox.file("stats"))["hits"] >= 21, "{version} {options:?}");
                }
            }
        }
    }
}
