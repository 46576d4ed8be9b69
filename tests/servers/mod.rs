//! Real programs as the tests start them, each in a sandbox and in the foreground: what a test wants to differ is an
//! argument.
#![allow(dead_code)] // every test file uses its own part

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::thread;

use crate::common::{compiled, openssl, program, repository, Sandbox};

// ---- nginx ----

/// What nginx answers in the template: who it is.
pub const ANSWER: &str = r#"return 200 "$pid\n";"#;

/// An nginx with `tickets`, on or off, and the `answer` to each request. It is started as the user of the test; root's
/// workers drop to nginx's default user.
pub fn nginx(
    sandbox: &Sandbox,
    port: u16,
    workers: u32,
    protocol: &str,
    cache: &str,
    tickets: &str,
    answer: &str,
) -> Command {
    sandbox.certificate();
    let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
    let conf = sandbox.file(&format!("nginx-{port}.conf"));
    let filled = template
        .replace("@WORKERS@", &workers.to_string())
        .replace("@PORT@", &port.to_string())
        .replace("@PROTOCOL@", protocol)
        .replace("@CACHE@", cache)
        .replace("ssl_session_tickets off;", &format!("ssl_session_tickets {tickets};"))
        .replace(ANSWER, answer);
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("nginx", "nginx"));
    command.arg("-p").arg(sandbox.path()).arg("-c").arg(conf).args(["-e", "error.log"]);
    command
}

// ---- Apache ----

const MODULES: &str = "/usr/lib/apache2/modules";

/// What of the configuration matters here.
#[derive(Clone, Copy, Debug)]
pub struct Apache {
    pub mpm: &'static str,
    pub workers: usize,
    pub protocol: &'static str,
    pub client: &'static str,
    pub cache: &'static str,
    pub tickets: &'static str,
}

/// An Apache in the sandbox, in the foreground. Root's workers drop to Debian's user for it.
pub fn apache(sandbox: &Sandbox, port: u16, setup: Apache) -> Command {
    sandbox.certificate();
    // SAFETY: geteuid has no preconditions.
    let user = if unsafe { libc::geteuid() } == 0 { "User www-data\nGroup www-data" } else { "" };
    let template = fs::read_to_string(repository("tests/programs/apache.conf")).unwrap();
    let filled = template
        .replace("@FOLDER@", sandbox.path().to_str().unwrap())
        .replace("@MODULES@", MODULES)
        .replace("@PORT@", &port.to_string())
        .replace("@USER@", user)
        .replace("@MPM@", setup.mpm)
        .replace("@WORKERS@", &setup.workers.to_string())
        .replace("@THREADS@", &(setup.workers * 4).to_string())
        .replace("@CACHE@", setup.cache)
        .replace("@PROTOCOL@", setup.protocol)
        .replace("@TICKETS@", setup.tickets);
    let conf = sandbox.file(&format!("apache-{port}.conf"));
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("apache2", "apache2-bin"));
    command.arg("-D").arg("FOREGROUND").arg("-f").arg(conf);
    command
}

// ---- HAProxy ----

/// What of the configuration matters here.
#[derive(Clone, Copy, Debug)]
pub struct HAProxy {
    pub protocol: &'static str,
    pub client: &'static str,
    pub threads: u32,
    pub cache: &'static str,
    pub tickets: &'static str,
}

/// An HAProxy in the sandbox, in the foreground, which answers by itself, or asks `server` for each request anew.
pub fn haproxy(sandbox: &Sandbox, port: u16, setup: HAProxy, server: Option<&str>) -> Command {
    let (cert, key) = sandbox.certificate();
    fs::write(sandbox.file("both.pem"), [fs::read(cert).unwrap(), fs::read(key).unwrap()].concat()).unwrap();
    let (answer, backend) = match server {
        // reconnect counts the threads that answered; 0 would be none
        None => (r#"http-request return status 200 content-type text/plain lf-string "worker %[thread,add(1)]\n""#, ""),
        Some(server) => ("default_backend tls_too", server),
    };
    let template = fs::read_to_string(repository("tests/programs/haproxy.cfg")).unwrap();
    let filled = template
        .replace("@FOLDER@", sandbox.path().to_str().unwrap())
        .replace("@PORT@", &port.to_string())
        .replace("@THREADS@", &setup.threads.to_string())
        .replace("@CACHE@", setup.cache)
        .replace("@PROTOCOL@", setup.protocol)
        .replace("@TICKETS@", setup.tickets)
        .replace("@ANSWER@", answer)
        .replace("@BACKEND@", backend);
    let conf = sandbox.file(&format!("haproxy-{port}.cfg"));
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("haproxy", "haproxy"));
    if let Ok(folder) = std::env::var("REPRISE_TEST_LIBSSL") {
        command.env("LD_LIBRARY_PATH", format!("{folder}/lib"));
    }
    command.arg("-db").arg("-f").arg(conf);
    command
}

// ---- stunnel ----

/// What stunnel connects to: it answers each request with its number, as a worker, and counts them.
pub struct Backend {
    pub port: u16,
    pub answered: Arc<AtomicU64>,
}

impl Backend {
    pub fn new(number: u32) -> Backend {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answered = Arc::new(AtomicU64::new(0));
        let count = answered.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let count = count.clone();
                thread::spawn(move || -> std::io::Result<()> {
                    let mut connection = connection?;
                    if connection.read(&mut [0; 4096])? > 0 {
                        count.fetch_add(1, Relaxed);
                        write!(connection, "HTTP/1.0 200 OK\r\n\r\nworker {number}\n")?;
                    }
                    Ok(())
                });
            }
        });
        Backend { port, answered }
    }
}

/// A stunnel in the sandbox, in the foreground.
pub fn stunnel(sandbox: &Sandbox, port: u16, backend: u16, options: &str) -> Command {
    let template = fs::read_to_string(repository("tests/programs/stunnel.conf")).unwrap();
    let filled = template
        .replace("@PORT@", &port.to_string())
        .replace("@BACKEND@", &backend.to_string())
        .replace("@OPTIONS@", options);
    let conf = sandbox.file(&format!("stunnel-{port}.conf"));
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("stunnel", "stunnel4"));
    if let Ok(folder) = std::env::var("REPRISE_TEST_LIBSSL") {
        command.env("LD_LIBRARY_PATH", format!("{folder}/lib"));
    }
    command.arg(conf);
    command
}

/// What a server needs, and `more`.
pub fn server_options(sandbox: &Sandbox, protocol: &str, more: &str) -> String {
    let (cert, key) = sandbox.certificate();
    format!("cert = {}\nkey = {}\nsslVersion = {protocol}\n{more}", cert.display(), key.display())
}

// ---- PHP, Perl, Python ----

pub fn php(script: &str) -> Command {
    let mut command = Command::new(program("php", "php-cli"));
    command.args(["-n", "-d", "display_errors=stderr"]).arg(repository("tests/programs").join(script));
    command
}

/// tests/programs/https_server.pl
pub fn perl_server(sandbox: &Sandbox, port: u16, version: &str, options: &[&str]) -> Command {
    let (cert, key) = sandbox.certificate();
    assert!(Path::new("/usr/share/perl5/IO/Socket/SSL.pm").exists(), "apt-get install libio-socket-ssl-perl");
    let mut command = Command::new(program("perl", "perl"));
    command.arg(repository("tests/programs/https_server.pl")).arg(port.to_string());
    command.arg(cert).arg(key).arg(version).args(options);
    command
}

/// tests/programs/https_server.py
pub fn python_server(sandbox: &Sandbox, port: u16, version: &str, ending: &str) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("python3", "python3"));
    command.arg(repository("tests/programs/https_server.py")).arg(port.to_string());
    command.arg(cert).arg(key).args([version, ending]);
    command
}

/// tests/programs/http_server.py
pub fn http_server(sandbox: &Sandbox, port: u16) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("python3", "python3"));
    command.arg(repository("tests/programs/http_server.py")).arg(port.to_string()).arg(cert).arg(key);
    command
}

/// tests/programs/app.py under gunicorn, with four workers.
pub fn gunicorn(sandbox: &Sandbox, port: u16) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("gunicorn", "gunicorn"));
    command.arg("--chdir").arg(repository("tests/programs")).arg("--certfile").arg(cert).arg("--keyfile").arg(key);
    command.args(["--workers", "4", "--bind"]).arg(format!("127.0.0.1:{port}")).arg("app:wsgi");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// tests/programs/app.py under uvicorn, with four workers.
pub fn uvicorn(sandbox: &Sandbox, port: u16) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("uvicorn", "uvicorn"));
    command.arg("--app-dir").arg(repository("tests/programs"));
    command.arg("--ssl-certfile").arg(cert).arg("--ssl-keyfile").arg(key);
    command.args(["--workers", "4", "--port"]).arg(port.to_string()).arg("app:asgi");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// tests/programs/https_server.js in Debian's Node.js, which has Debian's libssl. Other builds bring their own within.
pub fn node(sandbox: &Sandbox, port: u16) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new("/usr/bin/nodejs");
    command.arg(repository("tests/programs/https_server.js")).arg(port.to_string()).arg(cert).arg(key);
    command
}

// ---- C ----

/// examples/prefork.c with four workers.
pub fn prefork(sandbox: &Sandbox, port: u16, args: &[&str]) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(compiled("examples/prefork.c"));
    command.arg("-port").arg(port.to_string()).arg("-cert").arg(cert).arg("-key").arg(key).args(args);
    command
}

/// tests/programs/prefork_server.py with four workers.
pub fn python_prefork(sandbox: &Sandbox, port: u16, args: &[&str]) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = Command::new(program("python3", "python3"));
    command.arg(repository("tests/programs/prefork_server.py")).arg(port.to_string()).arg(cert).arg(key);
    command.arg("4").args(args);
    command
}

/// The openssl program with its libraries.
pub fn openssl_under_test() -> Command {
    match std::env::var("REPRISE_TEST_LIBSSL") {
        Ok(folder) => {
            let program = Path::new(&folder).join("bin/openssl");
            assert!(program.exists(), "{} is missing: tools/libssl.sh makes it", program.display());
            let mut command = Command::new(program);
            command.env("LD_LIBRARY_PATH", format!("{folder}/lib:{folder}"));
            command
        }
        Err(_) => Command::new(openssl()),
    }
}

pub fn s_server(sandbox: &Sandbox, port: u16, args: &str) -> Command {
    let (cert, key) = sandbox.certificate();
    let mut command = openssl_under_test();
    command.arg("s_server").arg("-accept").arg(format!("127.0.0.1:{port}"));
    command.arg("-cert").arg(cert).arg("-key").arg(key).args(args.split(' '));
    command
}
