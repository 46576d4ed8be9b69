//! What a fleet's cache costs: `cargo bench --bench redis`, after `cargo build --release`.
//!
//! Lookups of the cache alone, and handshakes of a real server whose clients come back, where the cache is in memory,
//! in shared memory, and in a Redis on this machine; beside a bare GET of as many bytes by the same client crate. All are
//! measured in turn in each round, so that what else the machine does meets all of them, and the median of the rounds
//! is shown. A Redis elsewhere adds its network's round trip to each lookup.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/redis_world/mod.rs"]
mod redis_world;
#[path = "../tests/shm_world/mod.rs"]
mod shm_world;

use common::{compiled, free_port, reconnect, Keeper, Reuse, Sandbox, Server, SharedCache};
use redis_world::{key_file, wait_until, Redis};
use reprise::cache::{self, Cache, Collision, Inserted, Place};
use shm_world::{key, Fake, Random};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const SESSIONS: u64 = 1000;
/// Of a session, as a server without client certificates writes it.
const LENGTH: usize = 140;
const LOOKUPS: usize = 5000;
/// Of each of the clients.
const VISITS: &str = "500";
const CLIENTS: u64 = 8;
const PROCESSES: u64 = 4;

/// Something to look up in; each call is one lookup, which has to find what it looks for.
struct Subject {
    name: &'static str,
    /// For REPRISE_CACHE, where it is a cache.
    url: Option<String>,
    lookup: Box<dyn FnMut(u64)>,
    /// Of each round: p50 and p99 in microseconds, and resumed handshakes a second of TLS 1.2 and 1.3.
    measured: Vec<[f64; 4]>,
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("not run by cargo bench: nothing is measured"); // cargo test --all-targets comes here
        return;
    }
    let (sandbox, shared) = (Sandbox::new(), SharedCache::new());
    let redis = Redis::start(&sandbox, &[]);
    // On a busy machine a lookup now and then takes longer than it may by default.
    let parameters = format!("?key={}&deadline=1s", key_file(&sandbox, "key", &[1]));
    let (tcp, socket) = (format!("redis://{}", redis.address()), format!("redis+unix://{}", redis.socket.display()));
    let mut subjects = vec![
        cache("memory", "memory:".into(), &redis),
        cache("shared memory", shared.url(), &redis),
        cache("Redis, TCP", tcp.clone() + &parameters, &redis),
        cache("Redis, socket", socket + &parameters, &redis),
        bare("bare GET, TCP", &tcp),
        bare("bare GET, socket", &format!("redis+unix://{}", redis.socket.display())),
    ];
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        for subject in &mut subjects {
            let [p50, p99] = lookups(&mut subject.lookup, round as u64);
            let [older, newer] = subject.url.as_ref().map_or([f64::NAN; 2], |url| handshakes(&sandbox, url));
            subject.measured.push([p50, p99, older, newer]);
        }
    }
    println!("{:<18}{:>20}{:>30}", "", "lookup, us", "resumed handshakes/s");
    println!("{:<18}{:>10}{:>10}{:>15}{:>15}", "", "p50", "p99", "TLS 1.2", "TLS 1.3");
    for subject in &subjects {
        let median = |column: usize| {
            let mut values: Vec<_> = subject.measured.iter().map(|row| row[column]).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let rate = |column| if subject.url.is_some() { format!("{:.0}", median(column)) } else { String::new() };
        println!("{:<18}{:>10.1}{:>10.1}{:>15}{:>15}", subject.name, median(0), median(1), rate(2), rate(3));
    }
}

/// With [`SESSIONS`] in it.
fn cache(name: &'static str, url: String, redis: &Redis) -> Subject {
    redis.flush();
    let place: Place = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
    let cache: Box<dyn Cache<Fake>> = cache::open(&place).unwrap_or_else(|error| panic!("{url}: {error}"));
    cache.set_service([1, 2]);
    let expiry = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 + 3600;
    for number in 0..SESSIONS {
        let session = Fake::new(number, number, expiry, LENGTH);
        assert_eq!(cache.insert(session, Collision::Replace, &mut |_, _| {}), Inserted::Added, "{name}");
    }
    if name.starts_with("Redis") {
        wait_until("they are written", || redis.keys().len() as u64 >= SESSIONS);
        std::thread::sleep(Duration::from_millis(200)); // what waited to be written is not what is looked up
    }
    let lookup = Box::new(move |number| assert!(cache.get(&key(number)).is_some(), "{name}: {number} is not found"));
    Subject { name, url: Some(url), lookup, measured: Vec::new() }
}

fn bare(name: &'static str, url: &str) -> Subject {
    let mut connection = redis::Client::open(url).and_then(|client| client.get_connection()).unwrap();
    for number in 0..SESSIONS {
        let set = redis::cmd("SET").arg(bare_key(number)).arg(vec![1_u8; LENGTH]).exec(&mut connection);
        set.unwrap();
    }
    let lookup = Box::new(move |number| {
        let value: Vec<u8> = redis::cmd("GET").arg(bare_key(number)).query(&mut connection).unwrap();
        assert_eq!(value.len(), LENGTH);
    });
    Subject { name, url: None, lookup, measured: Vec::new() }
}

/// As long as the name of a session.
fn bare_key(number: u64) -> String {
    format!("bare:{number:075}")
}

/// p50 and p99 in microseconds.
fn lookups(lookup: &mut dyn FnMut(u64), seed: u64) -> [f64; 2] {
    let mut random = Random(seed);
    let mut times: Vec<_> = (0..LOOKUPS)
        .map(|_| {
            let number = random.below(SESSIONS);
            let began = Instant::now();
            lookup(number);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    [0.5, 0.99].map(|part| times[(part * LOOKUPS as f64) as usize].as_secs_f64() * 1e6)
}

/// Of [`PROCESSES`] together, a second, for TLS 1.2 and 1.3; each has clients of its own, so that a cache in memory finds
/// them. A TLS 1.2 client returns with the same session all the time, a TLS 1.3 client with a ticket it has just been given.
fn handshakes(sandbox: &Sandbox, url: &str) -> [f64; 2] {
    let (cert, key) = sandbox.certificate();
    ["-tls1_2", "-tls1_3"].map(|version| {
        let server = |number| {
            let port = free_port();
            let mut command = Command::new(compiled("examples/prefork.c"));
            command.args(["-port", &port.to_string(), "-workers", "1"]).arg("-cert").arg(&cert).arg("-key").arg(&key);
            Keeper::StockLike.apply(&mut command, &sandbox.file(&format!("stats{number}")));
            Server::start(command.env("REPRISE_CACHE", url), sandbox, port)
        };
        let servers: Vec<Server> = (0..PROCESSES).map(server).collect();
        let clients = (CLIENTS / PROCESSES).to_string();
        let visit = &|port: u16| reconnect(port, &[version, "-n", VISITS, "-clients", &clients]);
        let began = Instant::now();
        let visits: Vec<Reuse> = std::thread::scope(|scope| {
            let threads: Vec<_> = servers.iter().map(|server| scope.spawn(move || visit(server.port))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let seconds = began.elapsed().as_secs_f64();
        let sum = |of: fn(&Reuse) -> u64| visits.iter().map(of).sum::<u64>();
        assert!(
            sum(|reuse| reuse.failed) == 0 && sum(|reuse| reuse.full) < 2 * CLIENTS,
            "{url}, {version}: {visits:?}"
        );
        sum(|reuse| reuse.resumed) as f64 / seconds
    })
}
