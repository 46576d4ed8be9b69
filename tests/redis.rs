//! One cache for a fleet. Two "machines", each a server of two processes, share what real Redis servers keep: a client
//! that returns to any of them resumes, early data is accepted once in the whole fleet, and whatever happens to Redis
//! or to what it holds, no handshake fails, none waits for long, and nothing is resumed that should not be.

mod common;
mod redis_world;

use common::{compiled, free_port, openssl, reconnect, reconnect_to, succeed, Keeper, Reuse, Sandbox, Server, Stats};
use redis_world::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
const MACHINES: usize = 2;
const WORKERS: u64 = 2;

/// Who comes back at once, and to another machine, may be faster than what is written behind. Milliseconds.
const PAUSE: [&str; 2] = ["-pause", "5"];

/// No handshake takes longer, whatever becomes of Redis: the deadline of a lookup, and what a busy machine adds. It is
/// less than a fault lasts, so a handshake that waits until it is over is seen.
const SLOWEST_MS: u64 = 100 + 1500;
const HASTY: &str = "&deadline=100ms";

// ---- The fleet ------------------------------------------------------------------------------------------------

/// What the machines have in common: a certificate and a key file.
struct Fleet {
    sandbox: Sandbox,
    key: String,
}

impl Fleet {
    fn new() -> Fleet {
        let sandbox = Sandbox::new();
        let key = key_file(&sandbox, "key", &[1]);
        sandbox.certificate();
        Fleet { sandbox, key }
    }

    /// For REPRISE_CACHE: the servers, as a URL without parameters, and more parameters, each behind its `&`.
    fn url(&self, servers: &str, more: &str) -> String {
        format!("{servers}?key={}{more}", self.key)
    }

    /// Of one server. Whether a session is found is the question, not how busy the machine is that runs the tests: a
    /// lookup has a second.
    fn url_of(&self, address: &str) -> String {
        self.url(&format!("redis://{address}/0"), "&deadline=1s")
    }

    /// For what must not wait for a server. On a busy machine also a server that is well needs some milliseconds.
    fn hasty_url_of(&self, address: &str) -> String {
        self.url(&format!("redis://{address}/0"), HASTY)
    }

    /// examples/prefork.c, on libssl alone or with this cache.
    fn machine(&self, cache: Option<&str>, args: &[&str]) -> Server {
        let (cert, key) = self.sandbox.certificate();
        let port = free_port();
        let mut command = Command::new(compiled("examples/prefork.c"));
        command.args(["-port", &port.to_string(), "-workers", &WORKERS.to_string()]);
        command.arg("-cert").arg(cert).arg("-key").arg(key).args(args);
        let keeper = if cache.is_some() { Keeper::StockLike } else { Keeper::Stock };
        keeper.apply(&mut command, &self.sandbox.file(&format!("stats-{port}")));
        command.envs(cache.map(|cache| ("REPRISE_CACHE", cache)));
        Server::start(&mut command, &self.sandbox, port)
    }

    fn machines(&self, cache: Option<&str>, args: &[&str]) -> [Server; MACHINES] {
        std::array::from_fn(|_| self.machine(cache, args))
    }

    fn stats(&self, machine: &Server) -> Stats {
        Stats::read(&self.sandbox.file(&format!("stats-{}", machine.port)))
    }

    /// Of all these machines.
    fn count(&self, machines: &[Server], counter: &str) -> u64 {
        machines.iter().map(|machine| self.stats(machine)[counter]).sum()
    }

    /// A new session of this machine, in a file.
    fn session(&self, machine: &Server, version: &str, name: &str) -> String {
        let file = self.sandbox.file(name).to_str().unwrap().to_owned();
        let first = reconnect(machine.port, &[version, "-n", "0", "-session_out", &file]);
        assert_eq!((first.full, first.failed), (1, 0), "{version}: {first:?}");
        file
    }
}

fn ports(machines: &[Server]) -> Vec<u16> {
    machines.iter().map(|machine| machine.port).collect()
}

/// They are still there, and end well.
fn stop(machines: impl IntoIterator<Item = Server>) {
    for mut machine in machines {
        machine.assert_alive();
        assert!(machine.stop(libc::SIGTERM).success(), "a server did not end well");
    }
}

/// Offers a session once.
fn offer(machine: &Server, version: &str, session: &str, more: &[&str]) -> Reuse {
    let reuse = reconnect(machine.port, &[&[version, "-n", "0", "-session_in", session], more].concat());
    assert_eq!(reuse.failed, 0, "{reuse:?}");
    reuse
}

fn resumes(machine: &Server, version: &str, session: &str) -> bool {
    offer(machine, version, session, &[]).resumed == 1
}

fn percent(reuse: Reuse, clients: u64) -> u64 {
    reuse.resumed * 100 / (reuse.full + reuse.resumed + reuse.failed - clients)
}

/// Clients return `count` times, to any of these machines. A session is written behind the handshake, and on a busy
/// machine the writer gets its turn late. So where fewer than 99 % were resumed, they do it again and wait longer: a
/// session that is lost is lost then, too.
fn return_to(machines: &[Server], version: &str, clients: u64, count: u64) -> Reuse {
    let numbers = [clients, count].map(|number| number.to_string());
    let visit = |pause| {
        let args = [version, "-clients", &numbers[0], "-n", &numbers[1], "-pause", pause];
        reconnect_to(&ports(machines), &args)
    };
    ["5", "20"]
        .into_iter()
        .map(visit)
        .find(|&reuse| reuse.failed > 0 || percent(reuse, clients) >= 99)
        .unwrap_or_else(|| visit("100"))
}

// ---- Resumption across machines ---------------------------------------------------------------------------------

/// 200 reconnects, each to any of the machines. One of four processes knows the client on libssl alone; with this cache
/// all do.
fn resumes_across_machines(fleet: &Fleet, cache: &str) {
    for version in VERSIONS {
        let visit = |cache: Option<&str>| {
            let machines = fleet.machines(cache, &[]);
            let reuse = match cache {
                Some(_) => return_to(&machines, version, 1, 200),
                None => reconnect_to(&ports(&machines), &[version, "-n", "200"]),
            };
            let processes = MACHINES as u64 * WORKERS;
            assert_eq!((reuse.failed, reuse.workers), (0, processes), "{version}: {reuse:?}");
            let hits = cache.map(|_| fleet.count(&machines, "hits"));
            stop(machines);
            (percent(reuse, 1), reuse, hits)
        };
        let ((stock, ..), (shared, reuse, hits)) = (visit(None), visit(Some(cache)));
        println!("{version}: stock resumes {stock} %, Reprise {shared} %, {} ms at most", reuse.slowest_ms);
        assert!(stock < 50, "{version}: this would not need Reprise: {stock} %");
        assert!(shared >= 99, "{version}: {reuse:?}");
        assert!(hits >= Some(reuse.resumed), "{version}: {hits:?} hits of the cache, {reuse:?}");
    }
}

#[test]
fn over_tcp() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    resumes_across_machines(&fleet, &fleet.url_of(&redis.address()));
    assert!(!redis.keys().is_empty());
}

#[test]
fn over_tcp_with_a_password() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &["requirepass open:s@same/%"]);
    let url = format!("redis://:open%3As%40same%2F%25@{}/3", redis.address());
    resumes_across_machines(&fleet, &fleet.url(&url, "&deadline=1s"));
    assert!(redis.info("keyspace").contains_key("db3"), "{:?}", redis.info("keyspace"));
}

/// A user with the rights that docs/operators.md names, and with no others, can do all there is to do.
#[test]
fn over_tcp_as_a_user() {
    let docs = include_str!("../docs/operators.md");
    let (_, rights) = docs.split_once("~reprise:* ").expect("the rights of a user");
    let rights = rights.split('`').next().unwrap();
    let fleet = Fleet::new();
    let user = format!("user web on >secret resetkeys ~fleet:* -@all {rights}");
    let redis = Redis::start(&fleet.sandbox, &["user default off", &user]);
    let url = format!("redis://web:secret@{}/0", redis.address());
    let url = fleet.url(&url, "&prefix=fleet:&deadline=1s");
    let mut doctor = Command::new(common::command());
    let said = succeed(doctor.args(["doctor", compiled("examples/prefork.c").to_str().unwrap(), "--cache", &url]));
    assert!(!said.contains("INFO"), "{said}");
    resumes_across_machines(&fleet, &url);
    let machines = fleet.machines(Some(&url), &["-workers", "1", "-early_data", "1000"]);
    let race = reconnect_to(&ports(&machines), &["-tls1_3", "-race", "-early_data", "-n", "50"]);
    assert_eq!((race.once, race.early, race.failed), (50, 50, 0), "{race:?}");
    stop(machines);
    assert!(redis.keys().iter().all(|key| key.starts_with(b"fleet:")));
    // What library a connection is of, and how the server is configured, need not be told.
    let log = redis.cli(&["ACL", "LOG"]);
    let refused: BTreeSet<_> = log
        .lines()
        .skip_while(|line| *line != "object")
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] == "object")
        .map(|pair| pair[1].to_owned())
        .collect();
    let others = refused.iter().filter(|command| !["client|setinfo", "config|get"].contains(&command.as_str()));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new(), "{log}");
}

#[test]
fn over_tls_with_a_client_certificate() {
    let fleet = Fleet::new();
    let certificates = Certificates::new(&fleet.sandbox);
    let redis = Redis::with_tls(&fleet.sandbox, &certificates, &[]);
    let of = |name: &str| certificates.file(name);
    let more = format!("&ca={}&cert={}&cert_key={}&deadline=1s", of("ca.pem"), of("client.pem"), of("client.key"));
    resumes_across_machines(&fleet, &fleet.url(&format!("rediss://{}/0", redis.address()), &more));
}

/// A server that another CA certified is none, and who shows the certificate of another CA is no client: no handshake
/// fails for that.
#[test]
fn tls_with_strangers_shares_nothing() {
    let fleet = Fleet::new();
    let certificates = Certificates::new(&fleet.sandbox);
    let redis = Redis::with_tls(&fleet.sandbox, &certificates, &[]);
    let of = |name: &str| certificates.file(name);
    for (ca, client) in [("other-ca", "client"), ("ca", "stranger")] {
        let (ca, cert, key) = (of(&format!("{ca}.pem")), of(&format!("{client}.pem")), of(&format!("{client}.key")));
        let more = format!("&ca={ca}&cert={cert}&cert_key={key}");
        let url = fleet.url(&format!("rediss://{}/0", redis.address()), &more);
        let machines = fleet.machines(Some(&url), &[]);
        let reuse = reconnect_to(&ports(&machines), &["-n", "50"]);
        assert_eq!((reuse.failed, redis.keys().len()), (0, 0), "{client}: {reuse:?}");
        assert!(percent(reuse, 1) < 60, "{client}: {reuse:?}");
        stop(machines);
    }
}

#[test]
fn over_a_unix_socket() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    resumes_across_machines(&fleet, &fleet.url(&format!("redis+unix://{}", redis.socket.display()), "&deadline=1s"));
    assert!(!redis.keys().is_empty());
}

#[test]
fn on_a_cluster() {
    let fleet = Fleet::new();
    let cluster = Cluster::start(&fleet.sandbox, false, &[]);
    resumes_across_machines(&fleet, &fleet.url(&format!("redis+cluster://{}", cluster.addresses()), "&deadline=1s"));
    let used = cluster.nodes.iter().filter(|node| !node.keys().is_empty()).count();
    assert_eq!(used, 3, "sessions are spread over the nodes");
}

/// What was cached before the master is killed is resumed from the one that takes over.
#[test]
fn on_sentinels_across_a_failover() {
    let fleet = Fleet::new();
    let sentinels = Sentinels::start(&fleet.sandbox, &[]);
    let url = fleet.url(&format!("redis+sentinel://{}/fleet", sentinels.addresses()), "&deadline=1s");
    resumes_across_machines(&fleet, &url);
    let machines = fleet.machines(Some(&url), &[]);
    let before = VERSIONS.map(|version| (version, fleet.session(&machines[0], version, &format!("before{version}"))));
    let master = sentinels.master();
    let replicas = || master.info("replication").values().filter(|value| value.contains("state=online")).count();
    wait_until("the records are there", || !master.keys().is_empty());
    assert_eq!(replicas(), 2);
    master.cli(&["WAIT", "2", "5000"]);
    sentinels.fail_over();
    wait_until("resumption is back", || {
        percent(reconnect_to(&ports(&machines), &["-n", "20", "-pause", "5"]), 1) >= 99
    });
    for (version, session) in before {
        assert!(resumes(&machines[1], version, &session), "{version}: lost with the master");
    }
    for version in VERSIONS {
        let reuse = return_to(&machines, version, 1, 200);
        assert!(reuse.failed == 0 && percent(reuse, 1) >= 99, "{version}: {reuse:?}");
    }
    stop(machines);
}

/// The servers have a password, the sentinels another one, both from files. A sentinel that has missed a failover stands
/// first in the URL, and the server that it names is a master to this day.
#[test]
fn on_sentinels_with_passwords_and_a_stale_one() {
    let fleet = Fleet::new();
    let servers = ["requirepass secret", "masterauth secret"];
    let of_sentinels = ["requirepass other", "sentinel sentinel-pass other", "sentinel auth-pass fleet secret"];
    let sentinels = Sentinels::configured(&fleet.sandbox, &servers, &of_sentinels);
    let lone = Redis::start(&fleet.sandbox, &servers);
    let stale = Sentinels::stale(&fleet.sandbox, &lone, &of_sentinels);
    sentinels.fail_over();
    let files = [("password", "secret\n"), ("sentinels", "other\n")].map(|(name, text)| {
        let file = fleet.sandbox.file(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    });
    let more = format!("&password_file={}&sentinel_password_file={}&deadline=1s", files[0], files[1]);
    let hosts = format!("{},{}", stale.address(), sentinels.addresses());
    resumes_across_machines(&fleet, &fleet.url(&format!("redis+sentinel://{hosts}/fleet"), &more));
    assert!(!sentinels.master().keys().is_empty() && lone.keys().is_empty());
}

/// The CA file is replaced while the machines run: first nobody trusts the server, which is said, then all do.
#[test]
fn certificates_are_read_again_when_they_change() {
    let fleet = Fleet::new();
    let certificates = Certificates::new(&fleet.sandbox);
    let redis = Redis::with_tls(&fleet.sandbox, &certificates, &["tls-auth-clients no"]);
    let trusted = certificates.file("trusted.pem");
    fs::copy(certificates.file("other-ca.pem"), &trusted).unwrap();
    let url = fleet.url(&format!("rediss://{}/0", redis.address()), &format!("&ca={trusted}&deadline=1s"));
    let mut doctor = Command::new(common::command());
    doctor.args(["doctor", compiled("examples/prefork.c").to_str().unwrap(), "--cache", &url]);
    let said = common::text(&common::run(&mut doctor).stdout);
    assert!(said.contains("of none of the CAs in ca="), "{said}");
    let machines = fleet.machines(Some(&url), &[]);
    let before = reconnect_to(&ports(&machines), &["-n", "20"]);
    assert_eq!((before.failed, redis.keys().len()), (0, 0), "{before:?}");
    fs::copy(certificates.file("ca.pem"), certificates.file("new.pem")).unwrap();
    fs::rename(certificates.file("new.pem"), &trusted).unwrap();
    wait_until("the new CA is trusted", || {
        percent(reconnect_to(&ports(&machines), &["-n", "20", "-pause", "5"]), 1) >= 95
    });
    stop(machines);
}

// ---- Faults under load ------------------------------------------------------------------------------------------

/// Clients of both versions of TLS that come back all the time, in rounds.
struct Load {
    ended: Arc<AtomicBool>,
    rounds: Arc<Mutex<Vec<Round>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    version: &'static str,
    began: Instant,
    ended: Instant,
    reuse: Reuse,
}

impl Round {
    const CLIENTS: u64 = 2;

    fn percent(&self) -> u64 {
        percent(self.reuse, Round::CLIENTS)
    }
}

impl Load {
    fn start(ports: &[u16]) -> Load {
        let mut load = Load { ended: Arc::default(), rounds: Arc::default(), threads: Vec::new() };
        for version in VERSIONS {
            let (ports, ended, rounds) = (ports.to_vec(), load.ended.clone(), load.rounds.clone());
            load.threads.push(thread::spawn(move || {
                while !ended.load(SeqCst) {
                    let began = Instant::now();
                    let clients = Round::CLIENTS.to_string();
                    let args = [&[version, "-n", "20", "-clients", &clients], &PAUSE[..]].concat();
                    let reuse = reconnect_to(&ports, &args);
                    rounds.lock().unwrap().push(Round { version, began, ended: Instant::now(), reuse });
                }
            }));
        }
        load
    }

    /// That began and ended in this time.
    fn rounds(&self, from: Instant, to: Instant) -> Vec<Round> {
        let rounds = self.rounds.lock().unwrap();
        rounds.iter().filter(|round| round.began >= from && round.ended <= to).copied().collect()
    }

    /// How long it takes from now on until nearly all clients of both versions resume.
    fn wait_for_resumption(&self) -> Duration {
        let now = Instant::now();
        for version in VERSIONS {
            wait_until(&format!("resumption, {version}"), || {
                self.rounds(now, Instant::now()).iter().any(|round| round.version == version && round.percent() >= 95)
            });
        }
        now.elapsed()
    }

    fn end(self) -> Vec<Round> {
        self.ended.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        Arc::try_unwrap(self.rounds).unwrap().into_inner().unwrap()
    }
}

/// What a fault does to clients that come back, in the median of rounds.
#[derive(Debug)]
struct Report {
    /// While it lasts, by version of TLS.
    resumed_percent: BTreeMap<&'static str, u64>,
    slowest_ms: u64,
    recovered_after: Duration,
}

impl Report {
    /// Redis was of no use while it lasted: or there was no fault. What a process keeps until it is written it knows.
    fn was_without_redis(&self) -> &Report {
        assert!(self.resumed_percent.values().all(|percent| *percent < 75), "{self:?}");
        self
    }

    fn resumed(&self, version: &str, least: u64) -> &Report {
        assert!(self.resumed_percent[version] >= least, "{self:?}");
        self
    }
}

/// Under load `fault` happens, lasts a while, and is undone. No handshake fails or waits for long, and it is soon as
/// it was.
fn survives(fleet: &Fleet, cache: &str, fault: impl FnOnce(), undo: impl FnOnce()) -> Report {
    const LASTS: Duration = Duration::from_millis(3000);
    let machines = fleet.machines(Some(cache), &[]);
    let load = Load::start(&ports(&machines));
    load.wait_for_resumption();
    let stored = fleet.count(&machines, "stored");

    fault();
    let began = Instant::now();
    thread::sleep(LASTS);
    wait_until("each version has been tried", || {
        let tried: BTreeSet<_> = load.rounds(began, Instant::now()).iter().map(|round| round.version).collect();
        tried.len() == VERSIONS.len()
    });
    let mut percents: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for round in load.rounds(began, Instant::now()) {
        percents.entry(round.version).or_default().push(round.percent());
    }
    undo();
    let recovered_after = load.wait_for_resumption();

    let rounds = load.end();
    let median = |mut values: Vec<u64>| {
        values.sort_unstable();
        values[values.len() / 2]
    };
    let report = Report {
        resumed_percent: percents.into_iter().map(|(version, values)| (version, median(values))).collect(),
        slowest_ms: rounds.iter().map(|round| round.reuse.slowest_ms).max().unwrap(),
        recovered_after,
    };
    let sum = |of: fn(&Reuse) -> u64| rounds.iter().map(|round| of(&round.reuse)).sum::<u64>();
    println!("{} handshakes, {report:?}", sum(|reuse| reuse.full + reuse.resumed));
    for machine in &machines {
        println!("{:?}", fleet.stats(machine));
    }
    assert_eq!(report.resumed_percent.len(), VERSIONS.len(), "no round while it lasted");
    assert_eq!(sum(|reuse| reuse.failed), 0, "handshakes failed");
    assert!(report.slowest_ms <= SLOWEST_MS, "{report:?}");
    assert!(report.recovered_after < Duration::from_secs(10), "{report:?}");
    let count = |counter| fleet.count(&machines, counter);
    assert!(count("hits") >= sum(|reuse| reuse.resumed), "{} hits", count("hits"));
    assert!(count("stored") > stored, "none was stored since");
    stop(machines);
    report
}

/// Between the machines and Redis, with `more` in the URL.
fn survives_on_the_way(mode: Mode, more: &str) -> Report {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let url = fleet.url(&format!("redis://{}/0", proxy.address()), if more.is_empty() { HASTY } else { more });
    let report = survives(&fleet, &url, || proxy.set(mode), || proxy.set(Mode::Pass));
    println!("{} connections to Redis, {} requests", proxy.connections(), proxy.requests());
    report
}

#[test]
fn redis_is_killed_and_started_again() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    survives(&fleet, &fleet.hasty_url_of(&redis.address()), || redis.kill(), || redis.restart()).was_without_redis();
}

#[test]
fn redis_is_paused() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    survives(&fleet, &fleet.hasty_url_of(&redis.address()), || redis.pause(), || redis.resume()).was_without_redis();
}

#[test]
fn redis_is_flushed() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let flush = || {
        for _ in 0..10 {
            redis.flush();
            thread::sleep(Duration::from_millis(20));
        }
    };
    survives(&fleet, &fleet.hasty_url_of(&redis.address()), flush, || {});
}

#[test]
fn a_full_redis_refuses() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &["maxmemory-policy noeviction"]);
    survives(&fleet, &fleet.hasty_url_of(&redis.address()), || redis.fill(-200_000), || redis.make_room());
    assert!(redis.info("errorstats").contains_key("errorstat_OOM"), "nothing was refused");
}

#[test]
fn a_full_redis_evicts() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &["maxmemory-policy volatile-ttl"]);
    survives(&fleet, &fleet.hasty_url_of(&redis.address()), || redis.fill(20_000), || redis.make_room());
    assert_ne!(redis.info("stats")["evicted_keys"], "0", "nothing was evicted");
}

#[test]
fn sentinels_fail_over_under_load() {
    let fleet = Fleet::new();
    let sentinels = Sentinels::start(&fleet.sandbox, &[]);
    let url = fleet.url(&format!("redis+sentinel://{}/fleet", sentinels.addresses()), "");
    survives(&fleet, &url, || sentinels.fail_over(), || {});
}

#[test]
fn a_cluster_fails_over_under_load() {
    let fleet = Fleet::new();
    let cluster = Cluster::start(&fleet.sandbox, true, &[]);
    let url = fleet.url(&format!("redis+cluster://{}", cluster.addresses()), "");
    survives(&fleet, &url, || cluster.fail_over(), || {});
}

/// The sessions that lie on the two others are found and written as before.
#[test]
fn a_dead_node_costs_its_own_sessions_only() {
    let fleet = Fleet::new();
    let cluster = Cluster::start(&fleet.sandbox, false, &["cluster-require-full-coverage no"]);
    let url = fleet.url(&format!("redis+cluster://{}", cluster.addresses()), "");
    let machines = fleet.machines(Some(&url), &[]);
    let visit = || {
        let reuse = reconnect_to(&ports(&machines), &["-tls1_2", "-clients", "24", "-n", "8", "-pause", "5"]);
        assert_eq!(reuse.failed, 0, "{reuse:?}");
        percent(reuse, 24)
    };
    wait_until("all is well", || visit() >= 95);
    cluster.nodes[1].kill();
    let mut seen = Vec::new();
    wait_until("two thirds, and what a process finds by itself, are resumed", || {
        seen.push(visit());
        seen.last().is_some_and(|&percent| percent >= 60)
    });
    println!("with one of three nodes dead, {seen:?} % are resumed");
    stop(machines);
}

#[test]
fn redis_answers_garbage() {
    survives_on_the_way(Mode::Garbage, "").was_without_redis();
}

#[test]
fn values_arrive_garbled() {
    survives_on_the_way(Mode::Garbled, "").was_without_redis();
}

/// Below the deadline of a lookup. A TLS 1.3 client's next ticket may still be on its way to Redis when it returns.
#[test]
fn redis_is_slow() {
    survives_on_the_way(Mode::Delay(Duration::from_millis(5)), "&deadline=1s").resumed("-tls1_2", 70);
}

/// Beyond it.
#[test]
fn redis_is_too_slow() {
    survives_on_the_way(Mode::Delay(Duration::from_millis(200)), "").was_without_redis();
}

#[test]
fn redis_never_answers() {
    survives_on_the_way(Mode::Hold, "").was_without_redis();
}

/// It goes on answering, a byte at a time.
#[test]
fn answers_drip() {
    survives_on_the_way(Mode::Drip(Duration::from_millis(8)), "").was_without_redis();
}

#[test]
fn connections_are_cut_after_the_request() {
    survives_on_the_way(Mode::Cut, "").was_without_redis();
}

#[test]
fn connections_are_refused() {
    survives_on_the_way(Mode::Refuse, "").was_without_redis();
}

// ---- What lies in Redis -----------------------------------------------------------------------------------------

/// Whether a session's key, PREFIX{SERVICE-BUCKET}:NAME, stands there; NAME is 32 hex digits.
fn names_a_session(text: &str) -> bool {
    let mut names = text.split("}:").skip(1);
    names.any(|name| name.len() >= 32 && name.bytes().take(32).all(|byte| byte.is_ascii_hexdigit()))
}

/// The sessions there, as key and value.
fn records(redis: &Redis) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let keys = redis.keys().into_iter().filter(|key| names_a_session(&common::text(key)));
    keys.filter_map(|key| Some((key.clone(), redis.get(&key)?))).collect()
}

/// Whether no session stands under a key: nothing, or the void record of one that was removed or used up.
fn is_gone(redis: &Redis, key: &[u8]) -> bool {
    redis.get(key).is_none_or(|value| value.starts_with(b"void "))
}

/// What `action` put there, at least `least`.
fn new_records<T>(redis: &Redis, least: usize, action: impl FnOnce() -> T) -> (T, BTreeMap<Vec<u8>, Vec<u8>>) {
    let before = records(redis);
    let done = action();
    let mut new = BTreeMap::new();
    wait_until("the records are in Redis", || {
        new = records(redis);
        new.retain(|key, _| !before.contains_key(key));
        new.len() >= least
    });
    (done, new)
}

/// A TLS 1.2 session is one record; a server gives a TLS 1.3 client two tickets.
fn records_of(version: &str) -> usize {
    if version == "-tls1_2" {
        1
    } else {
        2
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn redis_learns_no_secrets_and_keeps_no_session_for_ever() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machine = fleet.machine(Some(&fleet.url_of(&redis.address())), &[]);
    for version in VERSIONS {
        let (session, records) =
            new_records(&redis, records_of(version), || fleet.session(&machine, version, &format!("secret{version}")));
        let text = succeed(Command::new(openssl()).args(["sess_id", "-noout", "-text", "-in", &session]));
        let mut secrets = Vec::new();
        for name in ["Master-Key", "Resumption PSK", "Session-ID"] {
            let hex = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            secrets.extend(hex.filter(|hex| !hex.is_empty()).map(str::to_owned));
        }
        assert!(!secrets.is_empty(), "{text}");
        for (key, value) in &records {
            for hex in &secrets {
                let bytes: Vec<u8> =
                    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
                for secret in [hex.as_bytes(), hex.to_lowercase().as_bytes(), &bytes] {
                    // A few bytes of it would be too many.
                    for part in secret.chunks_exact(8) {
                        assert!(!contains(key, part) && !contains(value, part), "{version}: {hex}");
                    }
                }
            }
        }
    }
    for key in records(&redis).into_keys() {
        let left = redis.call(&[b"TTL", &key]);
        assert!(matches!(left, Answer::Number(1..)), "{}: {left:?}", common::text(&key));
    }
    stop([machine]);
}

/// Each byte of a record counts, its length, too. What Redis held before is resumed again, so that it is known why the
/// others were not.
#[test]
fn a_record_with_a_bit_flipped_is_not_resumed() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.url_of(&redis.address());
    let [one, other] = fleet.machines(Some(&url), &[]);
    for (version, step) in [("-tls1_2", 1), ("-tls1_3", 7)] {
        let (session, records) =
            new_records(&redis, records_of(version), || fleet.session(&one, version, &format!("session{version}")));
        let refused = |what: &str, change: &dyn Fn(&[u8]) -> Vec<u8>| {
            records.iter().for_each(|(key, value)| redis.set(key, &change(value)));
            assert!(!resumes(&other, version, &session), "{version}: {what}");
        };
        let accepted = |what: &str| {
            records.iter().for_each(|(key, value)| redis.set(key, value));
            assert!(resumes(&other, version, &session), "{version}: {what}");
        };
        accepted("untouched");
        let length = records.values().map(Vec::len).max().unwrap();
        for at in (0..length).step_by(step) {
            refused(&format!("byte {at} of {length}"), &|value| {
                let mut value = value.to_vec();
                let at = at % value.len();
                value[at] ^= 1 << (at % 8);
                value
            });
            if at % 50 == 0 {
                accepted("untouched, between");
            }
        }
        for shorter in [0, 1, 10, length / 2, length - 1] {
            refused(&format!("{shorter} bytes of {length}"), &|value| value[..shorter.min(value.len() - 1)].to_vec());
        }
        refused("longer", &|value| [value, b"\0"].concat());
        refused("twice", &|value| [value, value].concat());
        accepted("as it was");
    }
    stop([one, other]);
}

#[test]
fn a_record_under_another_name_is_not_resumed() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.url_of(&redis.address());
    let [one, other] = fleet.machines(Some(&url), &[]);
    for version in VERSIONS {
        let make = |name: &str| {
            new_records(&redis, records_of(version), || fleet.session(&one, version, &format!("{name}{version}")))
        };
        let ((first, its), (second, others)) = (make("first"), make("second"));
        for ((key, value), (other_key, other_value)) in its.iter().zip(&others) {
            redis.set(key, other_value);
            redis.set(other_key, value);
        }
        assert!(!resumes(&other, version, &first) && !resumes(&other, version, &second), "{version}: swapped");
        its.iter().chain(&others).for_each(|(key, value)| redis.set(key, value));
        assert!(resumes(&other, version, &first) && resumes(&other, version, &second), "{version}: as they were");
    }
    stop([one, other]);
}

/// PREFIX{SERVICE-BUCKET}:NAME
fn service_in(key: &[u8]) -> String {
    let key = common::text(key);
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    tag.and_then(|tag| tag.rsplit_once('-')).unwrap_or_else(|| panic!("{key} names no service")).0.to_owned()
}

/// Two services of the same fleet, with the same keys.
#[test]
fn a_record_of_another_service_is_not_resumed() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.url_of(&redis.address());
    let (ours, theirs) = (fleet.machine(Some(&url), &[]), foreign.machine(Some(&url), &[]));
    for version in VERSIONS {
        let make = |fleet: &Fleet, machine: &Server| {
            new_records(&redis, records_of(version), || fleet.session(machine, version, &format!("session{version}")))
        };
        let ((session, records), (their_session, their_records)) = (make(&fleet, &ours), make(&foreign, &theirs));
        let (service, their_service) =
            (service_in(records.keys().next().unwrap()), service_in(their_records.keys().next().unwrap()));
        assert_ne!(service, their_service);
        // Under the name that it has here, or would have there.
        for ((key, value), their_key) in records.iter().zip(their_records.keys()) {
            redis.set(their_key, value);
            redis.set(common::text(key).replace(&service, &their_service).as_bytes(), value);
        }
        assert!(!resumes(&theirs, version, &session), "{version}: crossed");
        assert!(!resumes(&theirs, version, &their_session), "{version}: exchanged");
        their_records.iter().for_each(|(key, value)| redis.set(key, value));
        let [ours_too, theirs_too] = [fleet.machine(Some(&url), &[]), foreign.machine(Some(&url), &[])];
        assert!(resumes(&ours_too, version, &session), "{version}: its own");
        assert!(resumes(&theirs_too, version, &their_session), "{version}: its own");
    }
    stop([ours, theirs]);
}

/// A fatal alert costs the session; who brings its record back does not bring the session back.
#[test]
fn a_removed_record_that_returns_is_not_resumed() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machine = fleet.machine(Some(&fleet.url_of(&redis.address())), &["-workers", "1"]);
    let (session, records) = new_records(&redis, 1, || fleet.session(&machine, "-tls1_2", "session"));
    assert!(resumes(&machine, "-tls1_2", &session));
    assert_eq!(offer(&machine, "-tls1_2", &session, &["-abrupt"]).resumed, 1);
    wait_until("it is removed", || records.keys().all(|key| is_gone(&redis, key)));
    assert!(!resumes(&machine, "-tls1_2", &session), "it is gone");
    for _ in 0..5 {
        records.iter().for_each(|(key, value)| redis.set(key, value));
        assert!(!resumes(&machine, "-tls1_2", &session), "it came back");
    }
    stop([machine]);
}

#[test]
fn a_ticket_whose_record_returns_is_not_accepted_again() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machine = fleet.machine(Some(&fleet.url_of(&redis.address())), &["-workers", "1", "-early_data", "1000"]);
    for round in 0..5 {
        let (ticket, records) =
            new_records(&redis, 2, || fleet.session(&machine, "-tls1_3", &format!("ticket-{round}")));
        let first = offer(&machine, "-tls1_3", &ticket, &["-early_data"]);
        assert_eq!((first.resumed, first.early), (1, 1), "{first:?}");
        assert_eq!(records.keys().filter(|key| is_gone(&redis, key)).count(), 1, "one was taken");
        for _ in 0..3 {
            records.iter().for_each(|(key, value)| redis.set(key, value));
            let again = offer(&machine, "-tls1_3", &ticket, &["-early_data"]);
            assert_eq!((again.resumed, again.early), (0, 0), "round {round}: {again:?}");
        }
    }
    stop([machine]);
}

// ---- Keys -------------------------------------------------------------------------------------------------------

#[test]
fn other_keys_open_nothing() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let other_key = key_file(&fleet.sandbox, "other", &[2]);
    let url = fleet.url_of(&redis.address());
    let (one, other) = (fleet.machine(Some(&url), &[]), fleet.machine(Some(&url.replace(&fleet.key, &other_key)), &[]));
    for version in VERSIONS {
        let (session, _) =
            new_records(&redis, records_of(version), || fleet.session(&one, version, &format!("session{version}")));
        assert!(!resumes(&other, version, &session), "{version}");
        assert!(resumes(&one, version, &session), "{version}");
    }
    stop([one, other]);
}

/// The file goes from `A` to `A B`, to `B A`, to `B`, and machines are a step apart for a while.
#[test]
fn keys_rotate_by_restarts() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.url_of(&redis.address());
    let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
    let machine = |step: usize| {
        let key = key_file(&fleet.sandbox, &format!("key-{step}"), steps[step]);
        fleet.machine(Some(&url.replace(&fleet.key, &key)), &[])
    };
    for step in 0..3 {
        let machines = [machine(step), machine(step + 1)];
        for version in VERSIONS {
            let reuse = return_to(&machines, version, 1, 100);
            assert!(reuse.failed == 0 && percent(reuse, 1) >= 99, "{version}, step {step}: {reuse:?}");
        }
        stop(machines);
    }
}

/// The same without one: a key file that changes is read again.
#[test]
fn keys_rotate_under_load() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machines = fleet.machines(Some(&fleet.url_of(&redis.address())), &[]);
    let load = Load::start(&ports(&machines));
    load.wait_for_resumption();
    let old = fleet.session(&machines[0], "-tls1_2", "old");
    // What clients of this machine resume anyway: on a busy one the writer gets its turn late.
    let before = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let began = Instant::now();
    let least = |rounds: Vec<Round>, version| {
        rounds.iter().filter(|round| round.version == version).map(Round::percent).min().unwrap_or(100)
    };
    for keys in [&[1, 2][..], &[2, 1]] {
        let new = key_file(&fleet.sandbox, "new", keys);
        fs::rename(new, &fleet.key).unwrap();
        thread::sleep(Duration::from_secs(3));
        assert!(resumes(&machines[1], "-tls1_2", &old), "{keys:?}");
    }
    let ended = Instant::now();
    assert!(load.rounds(began, ended).iter().all(|round| round.reuse.failed == 0), "handshakes failed");
    for version in VERSIONS {
        let [usual, meanwhile] =
            [(before, began), (began, ended)].map(|(from, to)| least(load.rounds(from, to), version));
        assert!(meanwhile + 10 >= usual, "{version}: {meanwhile} % while keys rotate, {usual} % before");
    }
    fs::rename(key_file(&fleet.sandbox, "new", &[2]), &fleet.key).unwrap();
    wait_until("what the old key sealed is lost", || !resumes(&machines[1], "-tls1_2", &old));
    load.wait_for_resumption();
    load.end();
    stop(machines);
}

// ---- Once, in the whole fleet -----------------------------------------------------------------------------------

/// A ticket is shown to two machines at once: its early data is accepted by one of them, and always by one.
#[test]
fn early_data_is_accepted_once() {
    let tickets: u64 = std::env::var("REPRISE_RACES").map_or(300, |number| number.parse().unwrap());
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machines = fleet.machines(Some(&fleet.url_of(&redis.address())), &["-workers", "1", "-early_data", "1000"]);
    for from in (0..tickets).step_by(1000) {
        let count = (tickets - from).min(1000);
        let args = ["-tls1_3", "-race", "-early_data", "-n", &count.to_string()];
        let race = reconnect_to(&ports(&machines), &args);
        assert_eq!((race.once, race.early, race.failed), (count, count, 0), "{race:?}");
        assert_eq!(race.workers, MACHINES as u64, "no race: {race:?}");
    }
    println!("{tickets} tickets, taken {} times", fleet.count(&machines, "taken"));
    stop(machines);
}

/// Where Redis cannot be asked, or its answer is lost, early data is refused.
#[test]
fn early_data_is_never_accepted_twice_whatever_happens_to_redis() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let cache = fleet.hasty_url_of(&proxy.address());
    let machines = fleet.machines(Some(&cache), &["-workers", "1", "-early_data", "1000"]);
    let to = ports(&machines);
    let racing = thread::spawn(move || reconnect_to(&to, &["-tls1_3", "-race", "-early_data", "-n", "500"]));
    let modes = [Mode::Cut, Mode::Pass, Mode::Delay(Duration::from_millis(30)), Mode::Hold, Mode::Pass, Mode::Refuse];
    for mode in modes.iter().cycle() {
        proxy.set(*mode);
        thread::sleep(Duration::from_millis(match mode {
            Mode::Pass => 200,
            _ => 30,
        }));
        if racing.is_finished() {
            break;
        }
    }
    let race = racing.join().unwrap();
    println!("{race:?}");
    assert_eq!((race.early, race.failed), (race.once, 0), "accepted twice, or failed: {race:?}");
    assert!(race.once > 0, "{race:?}");
    assert!(race.slowest_ms <= SLOWEST_MS, "{race:?}");

    stop(machines);
}

/// It is in Redis, which cannot be asked whether somebody else took it.
#[test]
fn early_data_is_refused_while_redis_cannot_be_asked() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let machines =
        fleet.machines(Some(&fleet.hasty_url_of(&proxy.address())), &["-workers", "1", "-early_data", "1000"]);
    for mode in [Mode::Refuse, Mode::Hold, Mode::Cut, Mode::Garbage] {
        let (ticket, _) = new_records(&redis, 2, || fleet.session(&machines[0], "-tls1_3", &format!("{mode:?}")));
        thread::sleep(Duration::from_millis(500)); // the machine is told, too
        proxy.set(mode);
        for machine in &machines {
            assert_eq!(offer(machine, "-tls1_3", &ticket, &["-early_data"]).early, 0, "{mode:?}");
        }
        proxy.set(Mode::Pass);
        wait_until("early data is accepted again", || {
            let ticket = fleet.session(&machines[0], "-tls1_3", "probe");
            thread::sleep(Duration::from_millis(20));
            offer(&machines[1], "-tls1_3", &ticket, &["-early_data"]).early == 1
        });
    }
    stop(machines);
}

/// One machine's writes arrive, but it does not hear of it; the other machine is well connected.
#[test]
fn early_data_is_accepted_once_where_a_write_is_in_doubt() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let args = ["-workers", "1", "-early_data", "1000"];
    let doubtful = fleet.machine(Some(&fleet.hasty_url_of(&proxy.address())), &args);
    let well = fleet.machine(Some(&fleet.url_of(&redis.address())), &args);
    let mut accepted = 0;
    for mode in [Mode::Cut, Mode::Hold, Mode::Garbage] {
        for round in 0..10 {
            // Its answer to the write is lost, and the record is there.
            proxy.set(Mode::Pass);
            thread::sleep(Duration::from_millis(100));
            fleet.session(&doubtful, "-tls1_3", "connects");
            proxy.set(mode);
            let ticket = fleet.session(&doubtful, "-tls1_3", &format!("{mode:?}{round}"));
            thread::sleep(Duration::from_millis(20));
            let early: Vec<_> = [&well, &doubtful, &well, &doubtful]
                .map(|machine| offer(machine, "-tls1_3", &ticket, &["-early_data"]).early)
                .into();
            assert!(early.iter().sum::<u64>() <= 1, "{mode:?}, round {round}: {early:?}");
            accepted += early.iter().sum::<u64>();
        }
    }
    println!("{accepted} of 30 tickets accepted");
    stop([doubtful, well]);
}

// ---- Writes of which nobody knows whether they arrived ----------------------------------------------------------

/// How many rounds a race with a fault has: two, or a hundredth of what REPRISE_RACES asks for.
fn rounds() -> u32 {
    std::env::var("REPRISE_RACES").map_or(2, |number| number.parse::<u32>().unwrap() / 100).max(2)
}

/// Redis stops for a while in each round, while clients come back all the time, so that writes are in doubt and are
/// repeated. The machines: two that are under load, and a third one that knows nothing but what is in Redis.
fn with_redis_stopped(args: &[&str], mut round: impl FnMut(&Fleet, &Redis, &[Server; 3], Duration)) {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.hasty_url_of(&redis.address());
    let machines: [Server; 3] =
        std::array::from_fn(|_| fleet.machine(Some(&url), &[&["-workers", "1"], args].concat()));
    let load = Load::start(&ports(&machines[..2]));
    for number in 0..rounds() {
        load.wait_for_resumption();
        round(&fleet, &redis, &machines, Duration::from_millis(500 + u64::from(number % 2) * 1000));
    }
    assert!(load.end().iter().all(|round| round.reuse.failed == 0), "handshakes failed");
    stop(machines);
}

/// GONE1: a session is condemned while Redis is stopped and its record is on the way there. The third machine does not
/// resume it then, nor later, when all that waited has been written.
#[test]
fn what_was_removed_while_redis_was_stopped_does_not_come_back() {
    let mut condemned = 0;
    with_redis_stopped(&[], |fleet, redis, [one, _, third], lasts| {
        redis.pause();
        let session = fleet.session(one, "-tls1_2", "condemned");
        thread::sleep(Duration::from_millis(20));
        let was_resumed = offer(one, "-tls1_2", &session, &["-abrupt"]).resumed == 1;
        condemned += u32::from(was_resumed);
        thread::sleep(lasts);
        redis.resume();
        thread::sleep(Duration::from_millis(100)); // what has waited arrives
        for _ in 0..40 {
            assert!(!was_resumed || !resumes(third, "-tls1_2", &session), "it was condemned");
            thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(condemned > 0, "none was known while Redis was stopped");
}

/// ONCE1: the ticket's record arrives, its machine does not hear of it and writes it again; meanwhile it is used.
#[test]
fn a_ticket_is_accepted_once_though_its_record_is_written_again() {
    let mut accepted = 0;
    with_redis_stopped(&["-early_data", "1000"], |fleet, redis, [one, two, third], lasts| {
        redis.pause();
        let ticket = fleet.session(one, "-tls1_3", "ticket");
        thread::sleep(lasts);
        redis.resume();
        let mut early = 0;
        for machine in [two, third, one].into_iter().cycle().take(45) {
            early += offer(machine, "-tls1_3", &ticket, &["-early_data"]).early;
            assert!(early <= 1, "accepted twice");
            thread::sleep(Duration::from_millis(50));
        }
        accepted += early;
    });
    println!("{accepted} of {} tickets accepted", rounds());
}

/// ONCE1, GONE1: what a machine writes arrives, but no answer to it. Meanwhile the ticket is used, or the session removed, by
/// another machine; then the first one writes it again. A third one finds nothing.
#[test]
fn a_write_that_is_repeated_brings_nothing_back() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let args = ["-workers", "1", "-early_data", "1000"];
    let doubtful = fleet.machine(Some(&fleet.hasty_url_of(&proxy.address())), &args);
    let [second, third] = fleet.machines(Some(&fleet.url_of(&redis.address())), &args);
    let arrives = |name: &str, version: &str| {
        let before = redis.keys().len();
        let session = fleet.session(&doubtful, version, name);
        let until = Instant::now() + Duration::from_secs(1);
        while redis.keys().len() < before + records_of(version) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        (redis.keys().len() >= before + records_of(version)).then_some(session)
    };
    for version in ["-tls1_3", "-tls1_2", "-tls1_3", "-tls1_2"] {
        let mut session = None;
        wait_until("a write arrives without an answer", || {
            proxy.set(Mode::Pass);
            thread::sleep(Duration::from_millis(1100)); // it asks for generations once a second, before it writes
            if arrives("before", "-tls1_2").is_some() {
                proxy.set(Mode::Hold);
                session = arrives("session", version);
            }
            session.is_some()
        });
        let session = session.unwrap();
        match version {
            "-tls1_3" => assert_eq!(offer(&second, version, &session, &["-early_data"]).early, 1),
            _ => assert_eq!(offer(&second, version, &session, &["-abrupt"]).resumed, 1),
        }
        thread::sleep(Duration::from_millis(1200)); // longer than the answer is waited for
        proxy.set(Mode::Pass);
        // It writes in the order in which the sessions came.
        wait_until("it is written again", || arrives("after", "-tls1_2").is_some());
        match version {
            "-tls1_3" => assert_eq!(offer(&third, version, &session, &["-early_data"]).early, 0, "accepted twice"),
            _ => assert!(!resumes(&third, version, &session), "it was removed"),
        }
    }
    stop([doubtful, second, third]);
}

// ---- A server that has forgotten ----------------------------------------------------------------------------------

/// A ticket is used, the server forgets that by what `forget` does, and a third machine is shown the ticket: it resumes
/// without early data.
fn accepts_no_ticket_again(url: &str, fleet: &Fleet, redis: &Redis, before: impl FnOnce(), forget: impl FnOnce()) {
    let machines: [Server; 3] =
        std::array::from_fn(|_| fleet.machine(Some(url), &["-workers", "1", "-early_data", "1000"]));
    let [one, two, third] = &machines;
    let (ticket, _) = new_records(redis, 2, || fleet.session(one, "-tls1_3", "ticket"));
    before();
    let first = offer(two, "-tls1_3", &ticket, &["-early_data"]);
    assert_eq!((first.resumed, first.early), (1, 1), "{first:?}");
    forget();
    for (from, to) in [(one, third), (third, two), (two, one)] {
        wait_until("all machines are connected again", || {
            let probe = fleet.session(from, "-tls1_3", "probe");
            thread::sleep(Duration::from_millis(50));
            offer(to, "-tls1_3", &probe, &["-early_data"]).early == 1
        });
    }
    let again = offer(third, "-tls1_3", &ticket, &["-early_data"]);
    assert_eq!((again.resumed, again.early), (1, 0), "the ticket is there again: {again:?}");
    for machine in &machines {
        assert_eq!(offer(machine, "-tls1_3", &ticket, &["-early_data"]).early, 0);
    }
    stop(machines);
}

/// ONCE1: a backup is restored in which the ticket was not used yet.
#[test]
fn a_restored_server_accepts_no_ticket_again() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let backup = || assert_eq!(redis.cli(&["SAVE"]), "OK");
    let restore = || {
        redis.kill();
        redis.restart();
    };
    accepts_no_ticket_again(&fleet.url_of(&redis.address()), &fleet, &redis, backup, restore);
}

/// ONCE1: a replica takes over that has not heard that the ticket was used.
#[test]
fn a_replica_that_takes_over_accepts_no_ticket_again() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let (replication, way) = (Proxy::start(redis.port), Proxy::start(redis.port));
    let replica = Redis::start(&fleet.sandbox, &[&format!("replicaof 127.0.0.1 {}", replication.port)]);
    wait_until("the replica is in sync", || {
        replica.info("replication").get("master_link_status").is_some_and(|link| link == "up")
    });
    let fail_over = || {
        redis.kill();
        replica.cli(&["REPLICAOF", "NO", "ONE"]);
        way.redirect(replica.port);
    };
    let url = fleet.url_of(&way.address());
    let mute = || {
        wait_until("the replica has the ticket", || replica.keys().len() == redis.keys().len());
        replication.set(Mode::Hold);
    };
    accepts_no_ticket_again(&url, &fleet, &redis, mute, fail_over);
}

/// ONCE1: each ticket is shown to three machines at once, while the server stops, is killed and comes back, and its replica
/// takes over, again and again. REPRISE_RACES says how many tickets.
#[test]
fn early_data_is_raced_while_redis_stops_restarts_and_fails_over() {
    const AT_ONCE: u64 = 50;
    let tickets: u64 = std::env::var("REPRISE_RACES").map_or(AT_ONCE, |number| number.parse().unwrap());
    let fleet = Fleet::new();
    let servers = [Redis::start(&fleet.sandbox, &[]), Redis::start(&fleet.sandbox, &[])];
    let way = Proxy::start(servers[0].port);
    let follow = |replica: &Redis, master: &Redis| replica.cli(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    follow(&servers[1], &servers[0]);
    let url = fleet.hasty_url_of(&way.address());
    let machines: [Server; 3] =
        std::array::from_fn(|_| fleet.machine(Some(&url), &["-workers", "1", "-early_data", "1000"]));
    let (to, ended) = (ports(&machines), Arc::new(AtomicBool::new(false)));
    let races = thread::spawn({
        let ended = ended.clone();
        move || {
            let count = AT_ONCE.to_string();
            let race = || reconnect_to(&to, &["-tls1_3", "-race", "-early_data", "-n", &count]);
            let races: Vec<_> = (0..tickets.div_ceil(AT_ONCE)).map(|_| race()).collect();
            ended.store(true, SeqCst);
            races
        }
    });
    let mut master = 0;
    for number in 0.. {
        let (its, other) = (&servers[master], &servers[1 - master]);
        thread::sleep(Duration::from_millis(500));
        match number % 3 {
            0 => {
                its.pause();
                thread::sleep(Duration::from_millis(300));
                its.resume();
            }
            1 => {
                its.cli(&["SAVE"]);
                thread::sleep(Duration::from_millis(50));
                its.kill();
                its.restart();
            }
            _ => {
                its.kill();
                other.cli(&["REPLICAOF", "NO", "ONE"]);
                way.redirect(other.port);
                its.restart();
                follow(its, other);
                master = 1 - master;
            }
        }
        if ended.load(SeqCst) {
            break;
        }
    }
    let races = races.join().unwrap();
    let sum = |of: fn(&Reuse) -> u64| races.iter().map(of).sum::<u64>();
    println!(
        "{tickets} tickets, {} accepted once, slowest {:?} ms",
        sum(|race| race.once),
        races.iter().map(|r| r.slowest_ms).max()
    );
    assert_eq!(sum(|race| race.early), sum(|race| race.once), "accepted twice: {races:?}");
    assert_eq!(sum(|race| race.failed), 0, "{races:?}");
    stop(machines);
}

// ---- Nonsense in Redis --------------------------------------------------------------------------------------------

/// A key of another type, or a number that no flush makes, costs what stands under that key. All else goes on, also while
/// it lies there, and `reprise cache flush` puts it right.
#[test]
fn nonsense_costs_no_more_than_its_own_key() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let url = fleet.url_of(&redis.address());
    let machines = fleet.machines(Some(&url), &[]);
    let (session, its) = new_records(&redis, 1, || fleet.session(&machines[0], "-tls1_2", "session"));
    assert!(resumes(&machines[1], "-tls1_2", &session));
    for key in its.keys() {
        redis.call(&[b"DEL", key]);
        redis.call(&[b"RPUSH", key, b"a list"]);
    }
    assert!(!resumes(&machines[1], "-tls1_2", &session), "a list was resumed");
    assert_eq!(offer(&machines[0], "-tls1_2", &session, &["-abrupt"]).failed, 0);
    let goes_on = |what: &str| {
        wait_until(what, || {
            let reuse = return_to(&machines, "-tls1_2", 1, 20);
            assert_eq!(reuse.failed, 0, "{what}");
            percent(reuse, 1) >= 95
        });
    };
    goes_on("others are written beside a list");
    let generations: Vec<_> = redis.keys().into_iter().filter(|key| key.ends_with(b":generation")).collect();
    assert_eq!(generations.len(), 1, "one bucket is enough for one server");
    for nonsense in [&b"foo"[..], b"-5", b"18446744073709551615", b"9223372036854775807", b""] {
        redis.set(&generations[0], nonsense);
        goes_on("a new generation begins");
        assert_ne!(redis.get(&generations[0]).as_deref(), Some(nonsense));
    }
    redis.call(&[b"DEL", &generations[0]]);
    redis.call(&[b"RPUSH", &generations[0], b"a list"]);
    goes_on("a list is replaced by a generation");
    let last = fleet.session(&machines[0], "-tls1_2", "last");
    wait_until("it is there", || resumes(&machines[1], "-tls1_2", &last));
    redis.set(&generations[0], b"foo");
    let mut flush = Command::new(common::command());
    succeed(flush.args(["cache", "flush", &url]));
    assert!(!resumes(&machines[1], "-tls1_2", &last), "it was flushed");
    goes_on("after a flush");
    stop(machines);
}

// ---- Slow is down -------------------------------------------------------------------------------------------------

/// A server that answers too late, always or now and then, costs hardly more than none: nobody waits for it. With the
/// default deadline; REPRISE_VISITS is how often each client comes back.
#[test]
fn a_slow_redis_costs_little_more_than_none() {
    let visits = std::env::var("REPRISE_VISITS").unwrap_or_else(|_| "1000".into());
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let rate = |cache: &str| {
        let machine = fleet.machine(Some(cache), &["-workers", "1"]);
        let began = Instant::now();
        let reuse = reconnect(machine.port, &["-tls1_2", "-n", &visits, "-clients", "2"]);
        assert_eq!(reuse.failed, 0, "{reuse:?}");
        let rate = (reuse.full + reuse.resumed) as f64 / began.elapsed().as_secs_f64();
        stop([machine]);
        (rate, reuse.slowest_ms)
    };
    let url = fleet.url(&format!("redis://{}/0", proxy.address()), "");
    for mode in [Mode::Delay(Duration::from_millis(30)), Mode::Sometimes(Duration::from_millis(40))] {
        proxy.set(mode);
        // What else the machine does meets both.
        let shares: Vec<f64> = (0..3)
            .map(|_| {
                let ((memory, slowest), (slow, slowest_slow)) = (rate("memory:"), rate(&url));
                println!("{mode:?}: {memory:.0}/s with a cache in memory, slowest {slowest} ms; {slow:.0}/s, {slowest_slow} ms");
                slow / memory
            })
            .collect();
        let best = shares.iter().copied().fold(0.0, f64::max);
        assert!(best >= 0.6, "{mode:?}: {shares:?}");
    }
}

// ---- What costs no round trip -----------------------------------------------------------------------------------

/// Sessions that these commands ask for. Writing them is no question.
fn lookups(commands: &[String]) -> Vec<&String> {
    let writes = ["\"set\"", "\"setex\"", "\"psetex\""];
    let asks = |line: &&String| {
        let command = line.split("] ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        names_a_session(line) && !writes.contains(&command.to_lowercase().as_str())
    };
    commands.iter().filter(asks).collect()
}

/// A client that can do TLS 1.3 proposes a random id when it comes for the first time. None of the fleet issued it.
#[test]
fn first_connections_ask_redis_for_no_session() {
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    for server in [&[][..], &["-tls1_2"]] {
        let machines = fleet.machines(Some(&fleet.url_of(&redis.address())), server);
        let to = ports(&machines);
        // A process refuses no id before it has heard whether there are any that nobody issued.
        assert_eq!(reconnect_to(&to, &["-n", "39", "-fresh", "-clients", "2", "-pause", "5"]).failed, 0);
        let first = ["-n", "249", "-fresh", "-clients", "4"];
        let (fresh, commands) = redis.commands_during(|| reconnect_to(&to, &first));
        assert_eq!((fresh.full, fresh.failed), (1000, 0), "{server:?}: {fresh:?}");
        assert_eq!(lookups(&commands), Vec::<&String>::new(), "{server:?}");
        println!("{server:?}: {:?}", redis.commandstats());
        let (returning, commands) = redis.commands_during(|| reconnect_to(&to, &["-n", "20", "-pause", "20"]));
        assert_eq!(returning.resumed, 20, "{server:?}: {returning:?}");
        // Not each: the process that has it may still have to write it.
        assert!(!lookups(&commands).is_empty(), "{server:?}: who returns is looked up: {commands:?}");
        stop(machines);
    }
}

// ---- Fork -------------------------------------------------------------------------------------------------------

/// The sockets of a process that are connected to this port of loopback.
fn sockets(pid: i32, port: u16) -> BTreeSet<String> {
    let remote = format!("0100007F:{port:04X}");
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let connected = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connected = connected.filter(|fields| fields.get(2) == Some(&remote.as_str()) && fields[3] == "01");
    let inodes: BTreeSet<_> = connected.map(|fields| format!("socket:[{}]", fields[9])).collect();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = files.filter_map(|file| Some(fs::read_link(file.ok()?.path()).ok()?.to_str()?.to_owned()));
    links.filter(|link| inodes.contains(link)).collect()
}

/// The parent has used the cache, has its threads and connections, when it forks.
#[test]
fn workers_have_connections_of_their_own() {
    const FIRST: &str = "21";
    let fleet = Fleet::new();
    let redis = Redis::start(&fleet.sandbox, &[]);
    let machine = fleet.machine(Some(&fleet.url_of(&redis.address())), &["-workers", "4", "-serve_before_fork", FIRST]);
    let first = reconnect(machine.port, &["-n", "20"]);
    assert_eq!((first.full, first.resumed, first.workers), (1, 20, 1), "{first:?}");
    for version in VERSIONS {
        let reuse = return_to(std::slice::from_ref(&machine), version, 8, 100);
        assert_eq!((reuse.failed, reuse.workers), (0, 4), "{version}: {reuse:?}");
        assert!(percent(reuse, 8) >= 99, "{version}: {reuse:?}");
    }
    let parent = machine.pid();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let all: Vec<_> = pids.iter().chain(&[parent as i32]).map(|pid| sockets(*pid, redis.port)).collect();
    println!("{all:?}, {} clients", redis.clients().len());
    for (number, pid) in pids.iter().enumerate() {
        let others: BTreeSet<_> = (0..all.len()).filter(|at| *at != number).flat_map(|at| &all[at]).collect();
        assert!(all[number].iter().any(|socket| !others.contains(socket)), "worker {pid} has none of its own: {all:?}");
    }
    assert!(redis.clients().len() > pids.len(), "{:?}", redis.clients());
    // Each connection says twice what library it is of (CLIENT SETINFO), which servers before 7.2 do not understand.
    let errors = redis.info("errorstats");
    let errors = errors.values().filter_map(|count| count.strip_prefix("count=")?.parse::<u64>().ok());
    let connections: u64 = redis.info("stats")["total_connections_received"].parse().unwrap();
    assert!(errors.sum::<u64>() <= 2 * connections, "mixed up: {:?}", redis.info("errorstats"));
    stop([machine]);
}
