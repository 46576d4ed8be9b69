//! Exceptions that callbacks of C++ programs throw go through Reprise as they go through libssl, and leave the cache whole.
//! (pthread_cancel is in c_tests/unwind.c.)

mod common;

use common::{compiler, libreprise, repository, succeed, Sandbox, SharedCache};
use std::process::Command;

#[test]
fn exceptions_of_callbacks_arrive_in_the_program() {
    let sandbox = Sandbox::new();
    let (cert, key) = sandbox.certificate();
    let thrower = sandbox.file("throw");
    let mut cxx = compiler("CXX", "c++", "g++");
    cxx.args(["-std=c++17", "-O2"]).arg(repository("c_tests/tools/throw.cc")).arg("-o").arg(&thrower);
    succeed(cxx.args(["-lssl", "-lcrypto"]));
    let program = |stays: bool| {
        let mut command = Command::new(&thrower);
        command.arg(&cert).arg(&key).args(stays.then_some("all"));
        command
    };
    assert!(succeed(&mut program(false)).ends_with("done\n"), "on libssl alone");
    let cache = SharedCache::new();
    let shared = cache.url();
    for (semantics, cache) in [("documented", "memory:"), ("stock", "memory:"), ("documented", &shared)] {
        // Sessions without a cipher stay in the process.
        let mut command = program(cache == "memory:");
        command.env("LD_PRELOAD", libreprise()).env("REPRISE_SEMANTICS", semantics).env("REPRISE_CACHE", cache);
        let said = succeed(&mut command);
        assert!(said.ends_with("done\n"), "{semantics}, {cache}: {said}");
    }
}
