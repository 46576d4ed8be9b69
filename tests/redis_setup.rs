//! The Redis that the tests of the Redis cache stand on is what they take it for: servers that are killed, paused, full
//! or failed over are so, and the proxy does to a connection what it says.

mod common;
mod redis_world;

use common::Sandbox;
use redis_world::*;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(1);

/// Sends PING; what came within [`SOON`], empty if the connection was closed, or `None` if nothing came.
fn ping(port: u16) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let _ = stream.write_all(b"PING\r\n");
    answer(&mut stream)
}

fn answer(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = [0; 100];
    match stream.read(&mut bytes) {
        Ok(length) => Some(bytes[..length].to_vec()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(Vec::new()),
    }
}

/// What redis-cli, or valkey-cli, prints as a stranger would use it.
fn stranger(args: &[&str]) -> String {
    let output = common::run(Command::new(cli_program()).args(args));
    common::text(&output.stdout) + &common::text(&output.stderr)
}

#[test]
fn a_server_is_killed_and_comes_back_empty() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &[]);
    redis.set(b"a\0\r\nb", b"\xff\n");
    assert_eq!((redis.get(b"a\0\r\nb"), redis.keys()), (Some(b"\xff\n".to_vec()), vec![b"a\0\r\nb".to_vec()]));
    redis.kill();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port)).is_err());
    redis.restart();
    assert_eq!((redis.cli(&["PING"]), redis.keys()), ("PONG".into(), vec![]));
    redis.set(b"x", b"1");
    redis.flush();
    assert_eq!(redis.keys(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_paused_server_answers_when_it_goes_on() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &[]);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    redis.pause();
    stream.write_all(b"PING\r\n").unwrap();
    assert_eq!((answer(&mut stream), ping(redis.port)), (None, None));
    redis.resume();
    assert_eq!(answer(&mut stream), Some(b"+PONG\r\n".to_vec()));
}

#[test]
fn commands_are_counted() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &[]);
    redis.set(b"x", b"1");
    assert_eq!((redis.get(b"x"), redis.get(b"y")), (Some(b"1".to_vec()), None));
    let stats = redis.commandstats();
    assert_eq!((stats["set"], stats["get"], stats.get("getdel")), (1, 2, None));
    redis.reset_commandstats();
    assert_eq!(redis.commandstats().get("get"), None);
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port)).unwrap();
    assert!(redis.clients().contains(&stream.local_addr().unwrap().port()), "{:?}", redis.clients());
}

#[test]
fn passwords_and_users_are_demanded() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &["user default off", "user reprise on >secret ~reprise* +@all"]);
    let port = redis.port.to_string();
    let own = ["-p", &port, "--no-auth-warning", "--user", "reprise", "--pass", "secret"];
    assert!(stranger(&["-p", &port, "PING"]).contains("NOAUTH"));
    assert_eq!(stranger(&[&own[..], &["SET", "reprise:x", "1"]].concat()).trim(), "OK");
    assert!(stranger(&[&own[..], &["SET", "x", "1"]].concat()).contains("NOPERM"));
}

#[test]
fn tls_demands_the_clients_certificate() {
    let sandbox = Sandbox::new();
    let certificates = Certificates::new(&sandbox);
    let redis = Redis::with_tls(&sandbox, &certificates, &[]);
    let (port, ca) = (redis.port.to_string(), certificates.file("ca.pem"));
    let ask = |who: &str| {
        let (cert, key) = (certificates.file(&format!("{who}.pem")), certificates.file(&format!("{who}.key")));
        stranger(&["-p", &port, "--tls", "--cacert", &ca, "--cert", &cert, "--key", &key, "PING"])
    };
    assert_eq!(ask("client").trim(), "PONG");
    assert_ne!(ask("stranger").trim(), "PONG");
    assert_ne!(stranger(&["-p", &port, "--tls", "--cacert", &ca, "PING"]).trim(), "PONG");
    assert_ne!(stranger(&["-p", &port, "PING"]).trim(), "PONG");
}

#[test]
fn a_full_server_refuses_or_evicts() {
    let sandbox = Sandbox::new();
    for policy in ["noeviction", "volatile-ttl"] {
        let redis = Redis::start(&sandbox, &[&format!("maxmemory-policy {policy}")]);
        redis.fill(200_000);
        let stored = |number: u32| {
            let key = format!("after:{number}");
            let answer = redis.call(&[b"SET", key.as_bytes(), &[1; 1000], b"EX", b"10"]);
            assert!(matches!(&answer, Answer::Line(_) | Answer::Error(_)), "{answer:?}");
            answer == Answer::Line("OK".into())
        };
        let accepted = (0..500).filter(|&number| stored(number)).count();
        let there = redis.keys().iter().filter(|key| key.starts_with(b"after")).count();
        match policy {
            "noeviction" => assert!(accepted < 400 && there == accepted, "{accepted} accepted, {there} there"),
            _ => assert!(accepted == 500 && there < 400, "{accepted} accepted, {there} there"),
        }
        redis.make_room();
        assert!(stored(1000));
    }
}

#[test]
fn a_cluster_has_three_masters_and_fails_over() {
    let sandbox = Sandbox::new();
    let cluster = Cluster::start(&sandbox, true, &[]);
    assert_eq!((cluster.masters().len(), cluster.nodes.len()), (3, 6));
    for key in ["a", "b", "c", "d"] {
        let said = stranger(&["-c", "-p", &cluster.nodes[0].port.to_string(), "SET", key, "1"]);
        assert_eq!(said.trim(), "OK");
    }
    let before: Vec<_> = cluster.masters().iter().map(|master| master.port).collect();
    cluster.fail_over();
    let after: Vec<_> = cluster.masters().iter().map(|master| master.port).collect();
    assert_eq!(after.iter().filter(|port| before.contains(port)).count(), 2, "{before:?} {after:?}");
    for key in ["a", "b", "c", "d"] {
        let said = stranger(&["-c", "-p", &after[0].to_string(), "GET", key]);
        assert_eq!(said.trim(), "1");
    }
}

#[test]
fn sentinels_fail_over() {
    let sandbox = Sandbox::new();
    let sentinels = Sentinels::start(&sandbox, &[]);
    let before = sentinels.master().port;
    sentinels.master().set(b"x", b"1");
    sentinels.fail_over();
    assert_ne!(sentinels.master().port, before);
    assert_eq!(sentinels.master().get(b"x"), Some(b"1".to_vec()));
}

#[test]
fn the_proxy_does_what_it_says() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    let pong = Some(b"+PONG\r\n".to_vec());
    assert_eq!(ping(proxy.port), pong);
    assert_eq!((proxy.connections(), proxy.requests()), (1, 1));

    proxy.set(Mode::Delay(SOON / 2));
    let began = Instant::now();
    assert_eq!(ping(proxy.port), pong);
    assert!(began.elapsed() >= SOON / 2);

    proxy.set(Mode::Hold);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    assert_eq!((answer(&mut stream), ping(proxy.port)), (None, None));
    proxy.set(Mode::Pass);
    assert_eq!(answer(&mut stream), pong, "held, not lost");

    proxy.set(Mode::Garbage);
    let garbage = ping(proxy.port);
    assert!(garbage.as_ref().is_some_and(|bytes| bytes.len() == 7) && garbage != pong, "{garbage:?}");

    let pings = || redis.commandstats().get("ping").copied();
    let before = pings();
    proxy.set(Mode::Cut);
    assert_eq!(ping(proxy.port), Some(Vec::new()));
    assert_eq!(pings(), before.map(|calls| calls + 1), "the request arrives");

    proxy.set(Mode::Refuse);
    assert_eq!(answer(&mut stream), Some(Vec::new()), "open connections end");
    assert_eq!(ping(proxy.port), Some(Vec::new()));
    assert_eq!(pings(), before.map(|calls| calls + 1), "no request arrives");
    proxy.set(Mode::Pass);
    assert_eq!(ping(proxy.port), pong);
}

#[test]
fn garbled_values_arrive_with_one_bit_flipped() {
    let sandbox = Sandbox::new();
    let redis = Redis::start(&sandbox, &[]);
    let proxy = Proxy::start(redis.port);
    redis.set(b"short", &[b'a'; 31]);
    redis.set(b"long", &[b'a'; 40]);
    proxy.set(Mode::Garbled);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).unwrap();
    stream.write_all(b"MGET short long\r\n").unwrap();
    let expected = format!("*2\r\n$31\r\n{}\r\n$40\r\n{}`{}\r\n", "a".repeat(31), "a".repeat(20), "a".repeat(19));
    assert_eq!(answer(&mut stream).map(|bytes| common::text(&bytes)), Some(expected));
}
