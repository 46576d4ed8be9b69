//! CPython's ssl module keeps its sessions with Reprise. It loads libssl behind itself (RTLD_LOCAL), so libssl is not
//! among the libraries that follow ours, and its server is threaded. CPython's own tests of it, test_ssl, pass as they
//! do on stock.

mod common;
mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use common::{free_port, reconnect, run, text, Comparison, Keeper, Sandbox, Server, SharedCache, Stats};
use servers::python_server as https_server;

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

/// A server that closes without close_notify loses each session, on every side; with a CPython that marks what it frees
/// as shut down (3.13), none.
#[test]
fn closed_without_unwrap() {
    let comparison = compare("tls1_2", "close", TLS12);
    let kept = comparison.stock.resumed;
    assert!([0, 20].contains(&kept), "{comparison:?}");
    comparison.never_below(kept).at_least("removed", 20 - kept);
    assert!(comparison.reprise.iter().all(|(_, reuse, _)| reuse.resumed == kept), "{comparison:?}");
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

/// Debian's, which loads Debian's libssl and has its tests in a package of their own.
fn debians_python() -> Command {
    let mut command = Command::new("/usr/bin/python3");
    for name in ["PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH"] {
        command.env_remove(name);
    }
    command
}

/// What became of each test: passed, skipped (and why), failure or error.
type Results = BTreeMap<String, String>;

/// Reads what regrtest's --junit-xml writes.
fn results(xml: &Path) -> Results {
    let xml = fs::read_to_string(xml).unwrap_or_else(|e| panic!("{}: {e}", xml.display()));
    let result = |case: &str| {
        let (name, rest) = case.split_once('"').unwrap();
        let result = match rest.split_once("<skipped>") {
            Some((_, reason)) => format!("skipped: {}", reason.split('<').next().unwrap()),
            None => ["failure", "error"]
                .into_iter()
                .find(|kind| rest.contains(&format!("<{kind}")))
                .unwrap_or("passed")
                .into(),
        };
        (name.to_string(), result)
    };
    xml.split("<testcase name=\"").skip(1).map(result).collect()
}

/// Runs test_ssl in several processes, as most of it is waiting. Each counts into the same file.
fn test_ssl(sandbox: &Sandbox, name: &str, keeper: Keeper, more: &[(&str, &str)]) -> Results {
    const PARTS: usize = 4;
    let listed = run(debians_python().args(["-m", "test", "--list-cases", "test_ssl"]));
    let listed = text(&listed.stdout);
    let cases: Vec<&str> = listed.lines().filter(|line| line.starts_with("test.test_ssl.")).collect();
    assert!(cases.len() > 100, "test_ssl is missing: apt-get install libpython3-testsuite\n{listed}");
    let part = |number: usize| {
        let folder = sandbox.file(&format!("{name}-{number}"));
        fs::create_dir(&folder).unwrap();
        let chosen: Vec<&str> = cases.iter().skip(number).step_by(PARTS).copied().collect();
        fs::write(folder.join("cases"), chosen.join("\n") + "\n").unwrap();
        let mut command = debians_python();
        command.args(["-m", "test", "--junit-xml", "results.xml", "--matchfile", "cases", "--tempdir", "."]);
        keeper.apply(command.arg("test_ssl"), &sandbox.file(&format!("stats-{name}")));
        let output = run(command.envs(more.iter().copied()).current_dir(&folder));
        let results = results(&folder.join("results.xml"));
        assert_eq!(results.len(), chosen.len(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
        if !output.status.success() {
            println!("{name}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        results
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..PARTS).map(|number| scope.spawn(move || part(number))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// The same tests pass, fail and are skipped, for the same reasons, on stock and on Reprise, with either cache.
///
/// But for REPRISE_TICKETS=stateful: with TLS 1.2 a ticket that only names its session is a session id, and test_session
/// asserts that a client is given a ticket (`has_ticket`). It is the one that sees a difference.
#[test]
fn cpythons_own_tests() {
    let sandbox = &Sandbox::new();
    let cache = SharedCache::new();
    let url = &cache.url();
    let shared = &[("REPRISE_CACHE", url.as_str())];
    let all = &[("REPRISE_CACHE", url.as_str()), ("REPRISE_TICKETS", "stateful"), ("REPRISE_UNCLEAN", "keep")];
    let of = |name, keeper, more| test_ssl(sandbox, name, keeper, more);
    let (stock, reprise) = thread::scope(|scope| {
        let stock = scope.spawn(|| of("stock", Keeper::Stock, &[]));
        let reprise = [
            ("documented", Keeper::Documented, &[][..], &[][..]),
            ("stock-like", Keeper::StockLike, &[], &[]),
            ("shared", Keeper::StockLike, shared, &[]),
            ("stateful", Keeper::StockLike, all, &["test.test_ssl.ThreadedTests.test_session"]),
        ];
        let reprise =
            reprise.map(|(name, keeper, more, differs)| (name, differs, scope.spawn(move || of(name, keeper, more))));
        (stock.join().unwrap(), reprise.map(|(name, differs, run)| (name, differs, run.join().unwrap())))
    });
    let passed = stock.values().filter(|result| *result == "passed").count();
    println!("stock: {passed} of {} passed", stock.len());
    assert!(passed > 100, "stock: {stock:?}");
    for (name, differs, results) in reprise {
        let seen: Vec<_> =
            stock.iter().filter(|(case, result)| results.get(*case) != Some(result)).map(|(case, _)| case).collect();
        assert!(seen.iter().eq(differs), "{name}: other results than on stock: {seen:?}");
        let stats = Stats::read(&sandbox.file(&format!("stats-{name}")));
        println!("{name}: {stats:?}");
        assert!(stats["contexts"] > 200 && stats["negotiated"] > 100, "{name}: {stats:?}");
        assert_eq!(stats["hits"] > 0, name == "stateful", "the other tickets never reach a cache: {name}: {stats:?}");
    }
}
