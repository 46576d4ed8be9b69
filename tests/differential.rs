//! Under stock semantics, random sequences of calls return, call back, count, refer, mark and complain as they do on stock:
//! c_tests/tools/differential.c writes down what it sees, and both texts are the same.
//!
//! `REPRISE_SEQUENCES` is how many are tried, 400 without it, and `REPRISE_FIRST_SEQUENCE` the number of the first.
//! REPRISE_TEST_LIBSSL=DIR takes that libssl (tools/libssl.sh) instead of the system's. Not 1.1.1: there, sessions that leave
//! together leave in the order of a hash table, while with Reprise those that expire sooner leave first.

mod common;

use common::{compiler, libreprise, repository, succeed, Sandbox};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// In one process, so that a sequence also meets what earlier ones left.
const CHUNK: u64 = 50;
/// Of a failure, before the first difference.
const LINES: usize = 40;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |number| number.parse().expect(variable))
}

/// What the program prints of the sequences from `first` on.
fn printed(program: &Path, first: u64, semantics: Option<&str>) -> String {
    let mut command = Command::new(program);
    command.arg(first.to_string()).arg(CHUNK.to_string());
    if let Some(semantics) = semantics {
        command.env("LD_PRELOAD", libreprise()).env("REPRISE_SEMANTICS", semantics);
    }
    succeed(&mut command)
}

/// `None` if both do the same, else where they part.
fn difference(program: &Path, first: u64) -> Option<String> {
    let [stock, reprise] = [None, Some("stock")].map(|semantics| printed(program, first, semantics));
    if stock == reprise {
        return None;
    }
    let (stock, reprise): (Vec<_>, Vec<_>) = (stock.lines().collect(), reprise.lines().collect());
    let same = stock.iter().zip(&reprise).take_while(|(stock, reprise)| stock == reprise).count();
    let begin = stock[..same].iter().rposition(|line| line.starts_with("sequence")).unwrap_or(0);
    let sequence = stock[begin];
    let before = stock[begin.max(same.saturating_sub(LINES))..same].join("\n");
    let [stock, reprise] =
        [stock, reprise].map(|lines| lines[same..].iter().take(3).copied().collect::<Vec<_>>().join("\n"));
    Some(format!("in {sequence}:\n{before}\n--- stock\n{stock}\n--- Reprise\n{reprise}"))
}

#[test]
fn random_calls_do_what_they_do_on_stock() {
    let sandbox = Sandbox::new();
    let program = sandbox.file("differential");
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    cc.args(["-std=c11", "-D_GNU_SOURCE=", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    cc.arg(repository("c_tests/tools/differential.c")).arg(repository("c_tests/harness.c")).arg("-o").arg(&program);
    if let Ok(folder) = std::env::var("REPRISE_TEST_LIBSSL") {
        cc.args([format!("-I{folder}/include"), format!("-L{folder}/lib"), format!("-Wl,-rpath,{folder}/lib")]);
    }
    succeed(cc.args(["-lcmocka", "-lssl", "-lcrypto", "-lpthread", "-ldl"]));

    assert_ne!(printed(&program, 0, None), printed(&program, 0, Some("documented")), "Reprise is not there");
    let (count, first) = (number("REPRISE_SEQUENCES", 400), number("REPRISE_FIRST_SEQUENCE", 0));
    let next = AtomicU64::new(first);
    let work = || loop {
        let chunk = next.fetch_add(CHUNK, Relaxed);
        if chunk >= first + count {
            return None;
        }
        if let Some(difference) = difference(&program, chunk) {
            return Some(difference);
        }
    };
    let found = std::thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(work));
        workers.map(|worker| worker.join().unwrap())
    });
    let differences: Vec<_> = found.into_iter().flatten().collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
