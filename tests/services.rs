//! Who may resume what (ISO1, ISO2): a session in a shared cache is resumed by a process only if that process, as it is
//! configured, would have accepted its client. For each setting there are two servers that differ in it, where the
//! second one must not resume what the first one negotiated; and equal ones share, client certificates included.

mod common;
mod redis_world;

use common::{free_port, openssl, program, repository, s_client, succeed, Keeper, Sandbox, Server, SharedCache};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const TLS12: &[&str] = &["-tls1_2", "-no_ticket"];
const TLS13: &[&str] = &["-tls1_3"];

/// Certificates: of the server, of two CAs, and of a client of the first one, whom a list revokes.
struct Pki(Sandbox);

impl Pki {
    fn new() -> Pki {
        let pki = Pki(Sandbox::new());
        pki.0.certificate();
        for ca in ["a", "b"] {
            pki.authority(ca);
        }
        pki.client("client", "a", 2);
        pki.revoke("a", "crl.pem");
        pki
    }

    fn path(&self, name: &str) -> String {
        self.0.file(name).to_str().unwrap().into()
    }

    /// `NAME.pem` with `NAME.key`, a CA below another.
    fn intermediate(&self, name: &str, ca: &str) {
        self.client(name, ca, 2);
        let (request, extensions) = (self.path(&format!("{name}.csr")), self.path("ca.ext"));
        fs::write(&extensions, "basicConstraints=critical,CA:TRUE\n").unwrap();
        let (ca, ca_key, cert) =
            (self.path(&format!("{ca}.pem")), self.path(&format!("{ca}.key")), self.path(&format!("{name}.pem")));
        let args = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "0x2001"];
        succeed(Command::new(openssl()).args(args).args(["-extfile", &extensions, "-out", &cert]));
    }

    fn authority(&self, name: &str) {
        let (cert, key, subject) =
            (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")), format!("/CN=CA {name}"));
        let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        succeed(Command::new(openssl()).args(args).args(["-subj", &subject, "-out", &cert, "-keyout", &key]));
    }

    /// `NAME.pem` with `NAME.key`, signed by `ca`.
    fn client(&self, name: &str, ca: &str, days: u32) {
        let (key, request) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")));
        let args = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let subject = format!("/CN={name}");
        succeed(Command::new(openssl()).args(args).args(["-subj", &subject, "-out", &request, "-keyout", &key]));
        let (ca, ca_key) = (self.path(&format!("{ca}.pem")), self.path(&format!("{ca}.key")));
        let (cert, days) = (self.path(&format!("{name}.pem")), days.to_string());
        let args = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "0x1001"];
        succeed(Command::new(openssl()).args(args).args(["-days", &days, "-out", &cert]));
    }

    /// A list in which the client is.
    fn revoke(&self, ca: &str, name: &str) {
        self.list(ca, name, "R\t400101000000Z\t250101000000Z\t1001\tunknown\t/CN=client\n");
    }

    fn list(&self, ca: &str, name: &str, revoked: &str) {
        let config = self.path("ca.conf");
        fs::write(self.path("index.txt"), revoked).unwrap();
        let lines = format!("[ca]\ndefault_ca = x\n[x]\ndatabase = {}\ndefault_md = sha256\n", self.path("index.txt"));
        fs::write(&config, lines).unwrap();
        let (cert, key) = (self.path(&format!("{ca}.pem")), self.path(&format!("{ca}.key")));
        let args = ["ca", "-gencrl", "-config", &config, "-cert", &cert, "-keyfile", &key, "-crldays", "2"];
        succeed(Command::new(openssl()).args(args).args(["-out", &self.path(name)]));
    }

    /// Shows the session in `from` to a server, and puts the newest one into `to`. Whether it was resumed.
    fn visit(&self, port: u16, version: &[&str], from: Option<&str>, to: Option<&str>) -> Option<bool> {
        self.visit_as("client", port, version, from, to)
    }

    fn visit_as(&self, who: &str, port: u16, version: &[&str], from: Option<&str>, to: Option<&str>) -> Option<bool> {
        let (cert, key) = (self.path(&format!("{who}.pem")), self.path(&format!("{who}.key")));
        let mut args = [version, &["-cert", &cert, "-key", &key]].concat();
        let from = from.map(|name| self.path(name));
        if let Some(from) = &from {
            args.extend(["-sess_in", from]);
        }
        let to: Option<PathBuf> = to.map(|name| self.0.file(name));
        let printed = s_client(Command::new(openssl()), port, &args, to.as_deref());
        match (printed.contains("Reused, TLS"), printed.contains("New, TLS")) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

/// A server of CPython in front of `cache`.
fn python(pki: &Pki, keeper: Keeper, cache: &str, environment: &[(&str, &str)], options: &[&str]) -> Server {
    let (cert, key) = pki.0.certificate();
    let other = options.iter().find_map(|option| option.strip_prefix("cert="));
    let (cert, key) = match other {
        Some(name) => (pki.0.file(&format!("{name}.pem")), pki.0.file(&format!("{name}.key"))),
        None => (cert, key),
    };
    let port = free_port();
    let mut command = Command::new(program("python3", "python3"));
    command.arg(repository("tests/programs/verify_server.py")).arg(port.to_string()).arg(cert).arg(key);
    for option in options.iter().filter(|option| !option.starts_with("cert=")) {
        let (name, value) = option.split_once('=').unwrap();
        let is_file = ["ca", "crl", "later", "revoke", "capath"].contains(&name);
        command.arg(format!("{name}={}", if is_file { pki.path(value) } else { value.into() }));
    }
    keeper.apply(&mut command, &pki.0.file(&format!("stats-{port}")));
    if keeper != Keeper::Stock {
        command.env("REPRISE_CACHE", cache).envs(environment.iter().copied());
    }
    Server::start(&mut command, &pki.0, port)
}

/// What a server negotiated is resumed by it and by an equal one, and not by one that differs in one setting.
#[test]
fn iso1_each_setting_of_python() {
    let pki = Pki::new();
    pki.authority("other"); // as a certificate of the server
    let differing: &[&[&str]] = &[
        &["ca=b.pem"],
        &["ca=a.pem", "crl=crl.pem"],
        &["ca=a.pem", "flags=0x20"], // X509_V_FLAG_X509_STRICT
        &["ca=a.pem", "mode=optional"],
        &["ca=a.pem", "mode=none"],
        &["ca=a.pem", "ciphers=ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["ca=a.pem", "cert=other"],
    ];
    for version in [TLS12, TLS13] {
        let shared = SharedCache::new();
        let server = |options: &[&str]| python(&pki, Keeper::StockLike, &shared.url(), &[], options);
        let (first, equal) = (server(&["ca=a.pem"]), server(&["ca=a.pem"]));
        for options in differing
            .iter()
            .copied()
            .chain([&["ca=a.pem", if version == TLS12 { "max=TLSv1_2" } else { "min=TLSv1_3" }][..]])
        {
            println!("{version:?} {options:?}");
            assert_eq!(pki.visit(first.port, version, None, Some("one")), Some(false));
            let other = server(options);
            assert_ne!(pki.visit(other.port, version, Some("one"), None), Some(true), "{options:?}");
            assert_eq!(pki.visit(equal.port, version, Some("one"), None), Some(true), "an equal one, {options:?}");
            assert_eq!(pki.visit(first.port, version, Some("one"), None), Some(true), "its own, {options:?}");
        }
    }
}

/// nginx, started again with a list that revokes the client. Its verify callback decides nothing, which only its operator
/// knows: without a label, what it has seen stays with the server and its workers.
#[test]
fn iso1_nginx_and_a_list_of_revoked_certificates() {
    let pki = Pki::new();
    for version in [TLS12, TLS13] {
        let shared = SharedCache::new();
        let one = nginx(&pki, &shared.url(), "");
        assert_eq!(pki.visit(one.port, version, None, Some("one")), Some(false));
        assert_eq!(pki.visit(one.port, version, Some("one"), None), Some(true), "{version:?}: its own");
        let other = nginx(&pki, &shared.url(), "");
        assert_eq!(pki.visit(other.port, version, Some("one"), None), Some(false), "{version:?}: without a label");
        drop((one, other));
        let url = format!("{}&service=web", shared.url());
        assert_eq!(pki.visit(nginx(&pki, &url, "").port, version, None, Some("one")), Some(false));
        let equal = nginx(&pki, &url, "");
        assert_eq!(pki.visit(equal.port, version, Some("one"), None), Some(true), "{version:?}: an equal one");
        drop(equal);
        let revoking = nginx(&pki, &url, "ssl_crl crl.pem;");
        assert_eq!(pki.visit(revoking.port, version, Some("one"), None), Some(false), "{version:?}: revoked");
    }
}

/// A virtual host that demands certificates, behind one that does not: libssl looks sessions up before it knows which is
/// meant, and keeps them all in the context of the first.
#[test]
fn iso1_virtual_hosts_of_nginx() {
    let pki = Pki::new();
    let host = |more: &str| {
        format!(
            "return 200; }} server {{ listen 127.0.0.1:@PORT@ ssl; server_name secret.test; ssl_certificate cert.pem; \
             ssl_certificate_key key.pem; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; \
             ssl_session_cache builtin; ssl_verify_client on; ssl_client_certificate a.pem; {more}"
        )
    };
    for version in [TLS12, TLS13] {
        let shared = SharedCache::new();
        let version = [version, &["-servername", "secret.test"]].concat();
        let serve = |more: &str| nginx_with(&pki, &format!("{}&service=web", shared.url()), &host(more));
        let one = serve("");
        assert_eq!(pki.visit(one.port, &version, None, Some("one")), Some(false));
        assert_eq!(pki.visit(one.port, &version, Some("one"), None), Some(true), "{version:?}");
        // An equal one, once it has seen what it does for that name.
        let equal = serve("");
        assert_eq!(pki.visit(equal.port, &version, None, None), Some(false));
        assert_eq!(pki.visit(equal.port, &version, Some("one"), None), Some(true), "{version:?}: an equal one");
        for visits in 0..2 {
            let revoking = serve("ssl_crl crl.pem;");
            for _ in 0..visits {
                pki.visit(revoking.port, &version, None, None);
            }
            assert_eq!(pki.visit(revoking.port, &version, Some("one"), None), Some(false), "{version:?}: revoked");
        }
    }
}

/// Gives an nginx another configuration while it runs, and waits until its old worker is gone.
fn reload(pki: &Pki, server: &Server, from: &str, to: &str) {
    let conf = pki.0.file(&format!("nginx-{}.conf", server.port));
    let text = fs::read_to_string(&conf).unwrap();
    assert!(text.contains(from));
    fs::write(&conf, text.replace(from, to)).unwrap();
    let workers = || {
        let all = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.id())).unwrap();
        all.split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    let before = workers();
    server.signal(libc::SIGHUP);
    for _ in 0..3000 {
        let now = workers();
        if !now.is_empty() && !now.iter().any(|worker| before.contains(worker)) {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("not reloaded: {}", server.log());
}

/// nginx, told while it runs to trust another CA, to look at a list of revoked certificates, and what it was told first.
#[test]
fn iso1_nginx_is_reloaded() {
    let pki = Pki::new();
    for version in [TLS12, TLS13] {
        let shared = SharedCache::new();
        let server = nginx(&pki, &format!("{}&service=web", shared.url()), "");
        let is_resumed = || pki.visit(server.port, version, Some("one"), None);
        assert_eq!(pki.visit(server.port, version, None, Some("one")), Some(false));
        assert_eq!(is_resumed(), Some(true), "{version:?}");
        reload(&pki, &server, "ssl_client_certificate a.pem;", "ssl_client_certificate b.pem;");
        assert_eq!(is_resumed(), Some(false), "{version:?}: another CA");
        reload(&pki, &server, "ssl_client_certificate b.pem;", "ssl_client_certificate a.pem; ssl_crl crl.pem;");
        assert_eq!(is_resumed(), Some(false), "{version:?}: revoked");
        reload(&pki, &server, " ssl_crl crl.pem;", "");
        assert_eq!(is_resumed(), Some(true), "{version:?}: as it was");
    }
}

/// An nginx that demands certificates of CA a.
fn nginx(pki: &Pki, cache: &str, more: &str) -> Server {
    nginx_with(pki, cache, &format!("ssl_verify_client on; ssl_client_certificate a.pem; {more}"))
}

/// With this in its server, before the answer.
fn nginx_with(pki: &Pki, cache: &str, more: &str) -> Server {
    pki.0.certificate();
    let port = free_port();
    let conf = pki.0.file(&format!("nginx-{port}.conf"));
    let template = fs::read_to_string(repository("tests/programs/nginx.conf")).unwrap();
    let filled = template
        .replace("return 200", &format!("{more}\nreturn 200"))
        .replace("@WORKERS@", "1")
        .replace("@PORT@", &port.to_string())
        .replace("@PROTOCOL@", "TLSv1.2 TLSv1.3")
        .replace("@CACHE@", "builtin")
        .replace("nginx.pid", &format!("nginx-{port}.pid"));
    fs::write(&conf, filled).unwrap();
    let mut command = Command::new(program("nginx", "nginx"));
    command.arg("-p").arg(pki.0.path()).arg("-c").arg(conf).args(["-e", "error.log"]);
    Keeper::StockLike.apply(&mut command, &pki.0.file(&format!("stats-{port}")));
    command.env("REPRISE_CACHE", cache);
    Server::start(&mut command, &pki.0, port)
}

/// A store that has read an empty list finds the newer one: nothing of the context has changed but what is in its store,
/// so only another verification tells. Without that the revoked client goes on being resumed, in whatever process.
#[test]
fn iso3_revoked_while_the_servers_run() {
    let pki = Pki::new();
    pki.list("a", "empty.pem", "");
    sleep(Duration::from_millis(1100)); // of two lists the later one counts, by the second
    for (version, reverify) in [(TLS12, "shared"), (TLS13, "shared"), (TLS13, "off")] {
        let shared = SharedCache::new();
        let _ = fs::remove_file(pki.path("late.pem"));
        let options = ["ca=a.pem", "crl=empty.pem", "revoke=late.pem"];
        let environment = [("REPRISE_REVERIFY", reverify)];
        let servers = [(); 2].map(|()| python(&pki, Keeper::StockLike, &shared.url(), &environment, &options));
        assert_eq!(pki.visit(servers[0].port, version, None, Some("one")), Some(false));
        for server in &servers {
            assert_eq!(pki.visit(server.port, version, Some("one"), None), Some(true), "{version:?}: not yet revoked");
        }
        pki.revoke("a", "late.tmp");
        fs::rename(pki.path("late.tmp"), pki.path("late.pem")).unwrap();
        for server in &servers {
            // Without it a list that came makes the context another service.
            assert_ne!(pki.visit(server.port, version, Some("one"), None), Some(true), "{version:?}, {reverify}");
        }
    }
}

/// In the memory of a process libssl goes on resuming; with REPRISE_REVERIFY=on the client is verified again.
#[test]
fn iso3_in_memory() {
    let pki = Pki::new();
    pki.list("a", "empty.pem", "");
    sleep(Duration::from_millis(1100));
    for (keeper, reverify, resumes) in [
        (Keeper::Stock, "", true),
        (Keeper::StockLike, "shared", true),
        (Keeper::StockLike, "on", false),
        (Keeper::Documented, "on", false),
    ] {
        let _ = fs::remove_file(pki.path("late.pem"));
        let options = ["ca=a.pem", "crl=empty.pem", "revoke=late.pem"];
        let server = python(&pki, keeper, "memory:", &[("REPRISE_REVERIFY", reverify)], &options);
        assert_eq!(pki.visit(server.port, TLS12, None, Some("one")), Some(false));
        assert_eq!(pki.visit(server.port, TLS12, Some("one"), None), Some(true));
        pki.revoke("a", "late.tmp");
        fs::rename(pki.path("late.tmp"), pki.path("late.pem")).unwrap();
        let resumed = pki.visit(server.port, TLS12, Some("one"), None) == Some(true);
        assert_eq!(resumed, resumes, "{keeper:?}, {reverify}");
    }
}

/// A folder of CAs and lists is read when it is needed: by the first verification in each process, which is not to make
/// it another service, and again when a list has come.
#[test]
fn iso2_and_iso3_folders_that_are_read_when_needed() {
    let pki = Pki::new();
    pki.list("a", "empty.pem", "");
    sleep(Duration::from_millis(1100));
    let folder = pki.0.file("hashed");
    let hash = succeed(Command::new(openssl()).args(["x509", "-noout", "-subject_hash", "-in", &pki.path("a.pem")]));
    let place = |suffix: &str| folder.join(format!("{}.{suffix}", hash.trim()));
    for version in [TLS12, TLS13] {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::copy(pki.path("a.pem"), place("0")).unwrap();
        fs::copy(pki.path("empty.pem"), place("r0")).unwrap();
        let shared = SharedCache::new();
        let options = ["capath=hashed", "flags=0x4"]; // X509_V_FLAG_CRL_CHECK
        let servers = [(); 2].map(|()| python(&pki, Keeper::StockLike, &shared.url(), &[], &options));
        assert_eq!(pki.visit(servers[0].port, version, None, Some("one")), Some(false));
        for server in [&servers[1], &servers[0], &servers[1]] {
            assert_eq!(pki.visit(server.port, version, Some("one"), None), Some(true), "{version:?}");
        }
        pki.revoke("a", "late.pem");
        fs::copy(pki.path("late.pem"), place("r1")).unwrap();
        for server in &servers {
            assert_ne!(pki.visit(server.port, version, Some("one"), None), Some(true), "{version:?}: revoked");
        }
    }
}

/// The way from a client's certificate to a trusted one leads over what it showed beside its certificate, which no other
/// process has seen; also when the session is renewed again and again.
#[test]
fn iso2_a_chain_comes_along() {
    let pki = Pki::new();
    pki.intermediate("middle", "a");
    pki.client("below", "middle", 2);
    let chain = pki.path("middle.pem");
    for version in [TLS12, TLS13] {
        let shared = SharedCache::new();
        let servers = [(); 3].map(|()| python(&pki, Keeper::StockLike, &shared.url(), &[], &["ca=a.pem"]));
        let version = [version, &["-cert_chain", &chain]].concat();
        let mut names = ["one", "two"];
        assert_eq!(pki.visit_as("below", servers[0].port, &version, None, Some(names[0])), Some(false));
        for server in servers.iter().cycle().take(7) {
            let renewed = Some(names[1]).filter(|_| version.contains(&"-tls1_3"));
            let resumed = pki.visit_as("below", server.port, &version, Some(names[0]), renewed);
            assert_eq!(resumed, Some(true), "{version:?}");
            if renewed.is_some() {
                names.swap(0, 1);
            }
        }
    }
}

/// However often a session is renewed, it ends so many seconds after its full handshake.
#[test]
fn life1_a_maximum_age() {
    let pki = Pki::new();
    let shared = SharedCache::new();
    let ends = |version, keeper, cache: &str, names: [&str; 2]| {
        let server = python(&pki, keeper, cache, &[("REPRISE_MAX_AGE", "6")], &["ca=a.pem"]);
        let mut names = names;
        let began = std::time::Instant::now();
        assert_eq!(pki.visit(server.port, version, None, Some(names[0])), Some(false));
        let made = std::time::Instant::now();
        let mut resumed = 0;
        loop {
            sleep(Duration::from_millis(700));
            let renewed = Some(names[1]).filter(|_| version == TLS13);
            let before = made.elapsed();
            let outcome = pki.visit(server.port, version, Some(names[0]), renewed);
            if outcome != Some(true) {
                assert!(began.elapsed().as_secs() >= 6, "{version:?} {keeper:?} {cache}: too early, {before:?}");
                break;
            }
            assert!(before.as_secs() < 8, "{version:?} {keeper:?} {cache}: resumed after {before:?}");
            resumed += 1;
            if renewed.is_some() {
                names.swap(0, 1);
            }
        }
        assert!(resumed > 0, "{version:?} {keeper:?} {cache}");
    };
    // All of them wait at the same time.
    let (ends, url) = (&ends, shared.url());
    std::thread::scope(|scope| {
        for (version, names) in [(TLS12, ["2", "2 new"]), (TLS13, ["3", "3 new"])] {
            for (keeper, cache, kind) in [
                (Keeper::Documented, "memory:", "documented"),
                (Keeper::StockLike, "memory:", "stock-like"),
                (Keeper::StockLike, url.as_str(), "shared"),
            ] {
                scope.spawn(move || {
                    let names = names.map(|name| format!("{kind} {name}"));
                    ends(version, keeper, cache, [&names[0], &names[1]]);
                });
            }
        }
    });
}

/// Equal servers whose URLs have another label are kept apart.
#[test]
fn iso1_labels() {
    let pki = Pki::new();
    let shared = SharedCache::new();
    let url = |label: &str| format!("{}&service={label}", shared.url());
    let server = |label: &str| python(&pki, Keeper::StockLike, &url(label), &[], &["ca=a.pem"]);
    let (one, equal, other) = (server("one"), server("one"), server("other"));
    assert_eq!(pki.visit(one.port, TLS13, None, Some("one")), Some(false));
    assert_eq!(pki.visit(other.port, TLS13, Some("one"), None), Some(false));
    assert_eq!(pki.visit(equal.port, TLS13, Some("one"), None), Some(true));
}

/// PHP asks for client certificates and sets no session id context, so libssl never caches its sessions.
#[test]
fn a_session_id_context_for_php() {
    let sandbox = Sandbox::new();
    let (cert, key) = sandbox.certificate();
    for (version, client) in [("tls1_2", TLS12), ("tls1_3", TLS13)] {
        for (id_context, resumed) in [("as-is", 0), ("auto", 10)] {
            let shared = SharedCache::new();
            let port = free_port();
            let mut command = Command::new(program("php", "php-cli"));
            command.arg(repository("tests/programs/https_server.php")).arg(port.to_string());
            command.arg(&cert).arg(&key).args([version, "no_ticket"]);
            Keeper::StockLike.apply(&mut command, &sandbox.file(&format!("stats-{port}")));
            command.env("REPRISE_CACHE", shared.url()).env("REPRISE_ID_CONTEXT", id_context);
            command.env("REPRISE_UNCLEAN", "keep").env("REPRISE_TICKETS", "stateful");
            let server = Server::start(&mut command, &sandbox, port);
            let reuse = common::reconnect(server.port, &[client, &["-n", "10"]].concat());
            assert_eq!(reuse.resumed, resumed, "{version}, {id_context}: {reuse:?}");
        }
    }
}

/// The same in a cache in Redis: another trust store, an equal server, a client revoked while the servers run, and a
/// maximum age.
#[test]
fn iso1_iso3_and_life1_in_redis() {
    let pki = Pki::new();
    pki.list("a", "empty.pem", "");
    sleep(Duration::from_millis(1100));
    let key = pki.0.file("fleet.key");
    fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let redis = redis_world::Redis::start(&pki.0, &[]);
    let url = format!("redis://127.0.0.1:{}?key={}&deadline=1s", redis.port, key.display());
    let options = ["ca=a.pem", "crl=empty.pem", "revoke=late.pem"];
    for version in [TLS12, TLS13] {
        let _ = fs::remove_file(pki.path("late.pem"));
        let serve = |options: &[&str]| python(&pki, Keeper::StockLike, &url, &[("REPRISE_MAX_AGE", "60")], options);
        let (one, equal, other) = (serve(&options), serve(&options), serve(&["ca=b.pem"]));
        assert_eq!(pki.visit(one.port, version, None, Some("one")), Some(false));
        sleep(Duration::from_millis(1500)); // written behind
        assert_ne!(pki.visit(other.port, version, Some("one"), None), Some(true), "{version:?}: another CA");
        assert_eq!(pki.visit(equal.port, version, Some("one"), None), Some(true), "{version:?}: an equal one");
        pki.revoke("a", "late.tmp");
        fs::rename(pki.path("late.tmp"), pki.path("late.pem")).unwrap();
        for server in [&one, &equal] {
            assert_ne!(pki.visit(server.port, version, Some("one"), None), Some(true), "{version:?}: revoked");
        }
        let brief = [("REPRISE_MAX_AGE", "8")];
        let [one, equal] = [(); 2].map(|()| python(&pki, Keeper::StockLike, &url, &brief, &["ca=a.pem"]));
        assert_eq!(pki.visit(one.port, version, None, Some("two")), Some(false));
        sleep(Duration::from_millis(1500));
        assert_eq!(pki.visit(equal.port, version, Some("two"), None), Some(true), "{version:?}: young");
        sleep(Duration::from_millis(8000));
        assert_eq!(pki.visit(equal.port, version, Some("two"), None), Some(false), "{version:?}: too old");
    }
}
