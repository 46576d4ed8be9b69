//! CPython's ssl module keeps its sessions with Reprise. It loads libssl behind itself (RTLD_LOCAL), so libssl is not
//! among the libraries that follow ours, and its server is threaded.

mod common;

use std::process::Command;
use std::thread;

use common::{free_port, program, reconnect, repository, Comparison, Keeper, Sandbox, Server, Stats};

fn https_server(sandbox: &Sandbox, port: u16, version: &str, ending: &str) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("python3", "python3"));
    command.arg(repository("tests/programs/https_server.py")).arg(port.to_string());
    command.arg(cert).arg(key).args([version, ending]);
    command
}

fn compare(version: &str, ending: &str, client: &[&str]) -> Comparison {
    let sandbox = Sandbox::new();
    Comparison::of(&sandbox, |port| https_server(&sandbox, port, version, ending), client)
}

const TLS12: &[&str] = &["-tls1_2", "-no_ticket", "-n", "20"];
const TLS13: &[&str] = &["-tls1_3", "-n", "20"];

#[test]
fn tls12() {
    compare("tls1_2", "unwrap", TLS12).expect(20).at_least("hits", 20);
}

#[test]
fn tls13() {
    compare("tls1_3", "unwrap", TLS13).expect(20).at_least("hits", 20);
}

/// A server that closes without close_notify loses each session, on every side.
#[test]
fn closed_without_unwrap() {
    compare("tls1_2", "close", TLS12).expect(0).at_least("removed", 20);
}

/// Eight clients at once; and session_stats(), which reads the counters through SSL_CTX_ctrl, tells the same.
#[test]
fn threads_and_statistics() {
    let mut told = Vec::new();
    for keeper in [Keeper::Stock, Keeper::Documented, Keeper::StockLike] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let stats = sandbox.file("stats");
        let mut command = https_server(&sandbox, port, "tls1_2", "unwrap");
        keeper.apply(&mut command, &stats);
        let server = Server::start(&mut command, &sandbox, port);
        thread::scope(|scope| {
            for client in [(); 8].map(|()| scope.spawn(move || reconnect(port, TLS12))) {
                let reuse = client.join().unwrap();
                assert_eq!((reuse.full, reuse.resumed, reuse.failed), (1, 20, 0), "{keeper:?}");
            }
        });
        let log = sandbox.file(&format!("server-{port}.log"));
        assert!(server.stop(libc::SIGTERM).success(), "{keeper:?}");
        told.push(std::fs::read_to_string(log).unwrap());
        if keeper != Keeper::Stock {
            let stats = Stats::read(&stats);
            assert!(stats["hits"] == 160 && stats["negotiated"] == 8, "{keeper:?}: {stats:?}");
        }
    }
    assert!(told[0].contains("\"hits\": 160"), "stock says {}", told[0]);
    assert_eq!(told[0], told[1], "stock and documented");
    assert_eq!(told[0], told[2], "stock and stock semantics");
}
