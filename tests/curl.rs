//! curl as a client. It makes an SSL_CTX for each connection, forbids the internal cache and carries the sessions from
//! one connection to the next by itself, from its new_cb: so it resumes the same on stock libssl and under Reprise, which
//! has nothing to add and must not stand in the way.

mod common;

use std::process::Command;

use common::{free_port, openssl, program, succeed, Keeper, Sandbox, Server, Stats};

const CONNECTIONS: u64 = 21;

/// `openssl s_server -www` on stock, which answers with what it knows of the connection.
fn serve(sandbox: &Sandbox, args: &[&str]) -> Server {
    let (cert, key) = sandbox.certificate();
    let port = free_port();
    let mut command = Command::new(openssl());
    command.arg("s_server").arg("-accept").arg(format!("127.0.0.1:{port}")).arg("-cert").arg(cert).arg("-key").arg(key);
    Keeper::Stock.apply(command.args(["-www", "-quiet"]).args(args), &sandbox.file("stats"));
    Server::start(&mut command, sandbox, port)
}

/// One curl, a connection for each request. How many the server says it resumed.
fn visit(sandbox: &Sandbox, port: u16, keeper: Keeper, args: &[&str]) -> u64 {
    let (cert, _) = sandbox.certificate();
    let mut command = Command::new(program("curl", "curl"));
    command.args(["-q", "--silent", "--show-error", "--noproxy", "*", "-H", "Connection: close"]);
    command.args(args).arg("--cacert").arg(cert).arg(format!("https://127.0.0.1:{port}/[1-{CONNECTIONS}]"));
    keeper.apply(&mut command, &sandbox.file("stats"));
    let pages = succeed(&mut command);
    let count = |start: &str| pages.lines().filter(|line| line.starts_with(start)).count() as u64;
    let (full, resumed) = (count("New, TLS"), count("Reused, TLS"));
    assert_eq!(full + resumed, CONNECTIONS, "{keeper:?} {args:?}: {pages}");
    resumed
}

/// The same visits on stock and on Reprise resume `resumed` connections, with tickets and by session id.
fn compare(client: &[&str], resumed: u64) {
    for server_args in [&[][..], &["-no_ticket"]] {
        for version in ["1.2", "1.3"] {
            let args = [&["--tlsv1.2", "--tls-max", version], client].concat();
            let sandbox = Sandbox::new();
            let mut server = serve(&sandbox, server_args);
            let what = format!("TLS {version}, server {server_args:?}");
            assert_eq!(visit(&sandbox, server.port, Keeper::Stock, &args), resumed, "{what}: stock");
            for keeper in [Keeper::Documented, Keeper::StockLike] {
                let _ = std::fs::remove_file(sandbox.file("stats"));
                assert_eq!(visit(&sandbox, server.port, keeper, &args), resumed, "{what}: {keeper:?}");
                let stats = Stats::read(&sandbox.file("stats"));
                println!("{what}, {keeper:?}: {stats:?}");
                assert_eq!(stats["contexts"], CONNECTIONS, "{what}, {keeper:?}: {stats:?}");
                assert!(stats["negotiated"] >= CONNECTIONS - resumed, "{what}, {keeper:?}: {stats:?}");
                assert_eq!(stats["stored"], 0, "{what}, {keeper:?}: curl forbids the internal cache: {stats:?}");
            }
            server.assert_alive();
        }
    }
}

#[test]
fn curls_own_sessions() {
    compare(&[], CONNECTIONS - 1);
}

#[test]
fn no_sessions() {
    compare(&["--no-sessionid"], 0);
}
