//! The preload reaches every child of a program: those without TLS must not notice, and bad configuration must not
//! stop the others.

mod common;

use std::fs;
use std::process::Command;

use common::{free_port, libreprise, openssl, program, reconnect, run, text, Keeper, Sandbox, Server};

#[test]
fn programs_without_tls() {
    let sandbox = Sandbox::new();
    let python = program("python3", "python3");
    let programs: [(&str, &[&str], i32); 5] = [
        ("true", &[], 0),
        ("false", &[], 1),
        ("sh", &["-c", "echo out; (exit 7)"], 7),
        ("sh", &["-c", "cat /dev/null | sort; test -n \"$LD_PRELOAD$REPRISE_TEST_STOCK\""], 0),
        (python.to_str().unwrap(), &["-c", "pass"], 0),
    ];
    for (name, args, code) in programs {
        let [stock, reprise, misconfigured] = [None, Some("documented"), Some("bogus")].map(|semantics| {
            let mut command = Command::new(name);
            command.args(args);
            match semantics {
                None => {
                    Keeper::Stock.apply(&mut command, &sandbox.file("stats"));
                    command.env("REPRISE_TEST_STOCK", "1");
                }
                Some(semantics) => {
                    Keeper::Documented.apply(&mut command, &sandbox.file("stats"));
                    command.env("REPRISE_SEMANTICS", semantics);
                }
            }
            run(&mut command)
        });
        for (how, output) in [("stock", &stock), ("preloaded", &reprise), ("misconfigured", &misconfigured)] {
            assert_eq!(output.status.code(), Some(code), "{name} {args:?}, {how}");
            assert_eq!(text(&output.stderr), "", "{name} {args:?}, {how}");
            assert_eq!(output.stdout, stock.stdout, "{name} {args:?}, {how}");
        }
    }
}

/// An unknown REPRISE_SEMANTICS: one line that names it, and the program goes on.
#[test]
fn bad_configuration() {
    let sandbox = Sandbox::new();
    let (cert, key) = sandbox.certificate();
    let port = free_port();
    let mut command = Command::new(openssl());
    command.args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-www", "-no_ticket", "-tls1_2"]);
    command.arg("-cert").arg(cert).arg("-key").arg(key);
    Keeper::Documented.apply(&mut command, &sandbox.file("stats"));
    command.env("REPRISE_SEMANTICS", "bogus");
    let server = Server::start(&mut command, &sandbox, port);
    let reuse = reconnect(port, &["-tls1_2", "-no_ticket", "-n", "3"]);
    assert_eq!((reuse.full, reuse.resumed, reuse.failed), (1, 3, 0));
    one_line(&server.log());

    // A client too, and it ends as it would have.
    let mut command = Command::new(openssl());
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-brief"]);
    Keeper::Documented.apply(&mut command, &sandbox.file("stats"));
    let output = run(command.env("REPRISE_SEMANTICS", "bogus"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    one_line(&text(&output.stderr));
}

fn one_line(log: &str) {
    let ours: Vec<_> = log.lines().filter(|line| line.to_lowercase().contains("reprise")).collect();
    assert_eq!(ours.len(), 1, "{log}");
    assert!(ours[0].contains("REPRISE_SEMANTICS") && ours[0].contains("bogus"), "{}", ours[0]);
}

/// Counters that cannot be kept are not worth a program either.
#[test]
fn unwritable_counters() {
    let sandbox = Sandbox::new();
    let (cert, key) = sandbox.certificate();
    let port = free_port();
    let mut command = Command::new(openssl());
    command.args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-www", "-no_ticket", "-tls1_2"]);
    command.arg("-cert").arg(cert).arg("-key").arg(key);
    Keeper::Documented.apply(&mut command, &sandbox.file("missing/stats"));
    let server = Server::start(&mut command, &sandbox, port);
    let reuse = reconnect(port, &["-tls1_2", "-no_ticket", "-n", "3"]);
    assert_eq!((reuse.full, reuse.resumed, reuse.failed), (1, 3, 0), "{}", server.log());
    let ours = server.log().lines().filter(|line| line.contains("reprise")).count();
    assert!(ours <= 1, "{}", server.log());
}

/// A file that was named by mistake stays as it is, and only a program with TLS is told.
#[test]
fn counters_over_another_file() {
    let sandbox = Sandbox::new();
    let precious = sandbox.file("precious");
    for content in ["one line\n".to_owned(), "x".repeat(168)] {
        fs::write(&precious, &content).unwrap();
        for (program, said) in [("true".into(), 0), (openssl(), 1)] {
            let mut command = Command::new(program);
            Keeper::Documented.apply(command.args(["s_client", "-connect", "127.0.0.1:1"]), &precious);
            assert_eq!(text(&run(&mut command).stderr).matches("reprise: REPRISE_STATS").count(), said);
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), content);
    }
}

/// The preload does not bring a libssl into a process that has none.
#[test]
fn no_libssl_of_its_own() {
    let mut command = Command::new("cat");
    let output = run(command.arg("/proc/self/maps").env("LD_PRELOAD", libreprise()));
    let maps = text(&output.stdout);
    assert!(maps.contains(fs::canonicalize(libreprise()).unwrap().to_str().unwrap()), "{maps}");
    assert!(!maps.contains("libssl") && !maps.contains("libcrypto"), "{maps}");
}
