//! No call takes more than 8 kB of stack beyond what libssl takes alone: jobs of SSL_MODE_ASYNC have 32 kB, and threads of
//! servers with many connections less. c_tests/tools/stack.c measures, c_tests/stack.c tries.

mod common;

use common::{compiler, free_port, libreprise, openssl, repository, s_client, succeed, Sandbox, Server, SharedCache};
use std::collections::BTreeMap;
use std::process::Command;

/// In bytes.
const MOST: usize = 8 << 10;

fn measured(command: &mut Command) -> BTreeMap<String, usize> {
    let said = succeed(command);
    let lines = said.lines().filter_map(|line| line.rsplit_once(' '));
    lines.map(|(name, bytes)| (name.to_owned(), bytes.parse().unwrap())).collect()
}

#[test]
fn each_call_takes_little_more_stack_than_on_stock() {
    if cfg!(debug_assertions) {
        return; // what is not optimized takes what it likes
    }
    let sandbox = Sandbox::new();
    let program = sandbox.file("stack");
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    cc.args(["-std=c11", "-D_GNU_SOURCE=", "-O2", "-Wno-deprecated-declarations"]);
    cc.arg(repository("c_tests/tools/stack.c")).arg(repository("c_tests/harness.c")).arg("-o").arg(&program);
    succeed(cc.args(["-lcmocka", "-lssl", "-lcrypto", "-lpthread"]));
    let stock = measured(&mut Command::new(&program));
    assert!(stock.len() > 20, "{stock:?}");
    let cache = SharedCache::new();
    for (semantics, cache) in [("documented", "memory:"), ("stock", "memory:"), ("documented", &cache.url())] {
        let mut command = Command::new(&program);
        command.env("LD_PRELOAD", libreprise()).env("REPRISE_SEMANTICS", semantics).env("REPRISE_CACHE", cache);
        for (name, bytes) in measured(&mut command) {
            let more = bytes.saturating_sub(stock[&name]);
            assert!(more <= MOST, "{name}, {semantics}, {cache}: {more} bytes more than the {} of stock", stock[&name]);
        }
    }
}

/// Each handshake is a job there.
#[test]
fn s_server_with_async_jobs() {
    let sandbox = Sandbox::new();
    let (cert, key) = sandbox.certificate();
    for version in ["-tls1_2", "-tls1_3"] {
        let port = free_port();
        let mut command = Command::new(openssl());
        command.args(["s_server", "-async", "-www", "-no_ticket", version, "-accept"]).arg(format!("127.0.0.1:{port}"));
        command.arg("-cert").arg(&cert).arg("-key").arg(&key).env("LD_PRELOAD", libreprise());
        let mut server = Server::start(&mut command, &sandbox, port);
        for _ in 0..5 {
            let said = s_client(Command::new(openssl()), port, &[version], None);
            assert!(said.contains("Cipher is") && !said.contains("(NONE)"), "{version}: {said}");
            server.assert_alive();
        }
    }
}
