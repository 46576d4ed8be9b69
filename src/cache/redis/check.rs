//! What an operator asks of a Redis before a program starts, or beside it: whether it will do, what it says of itself, and
//! that what is cached there be flushed. Nothing of this runs in a server.
//!
//! A fleet's servers must be able to start while its Redis is away, and a mistake must be said before they do. So what
//! somebody has to put right is an error, and what may pass by itself is a warning.

use super::generations;
use super::keys::Keys;
use super::server::{self, exchange, set, Connection, Server};
use super::url::Spec;
use super::void::Void;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What was found out about a Redis that will do, or that is away.
#[derive(Default)]
pub struct Report {
    /// How long an answer took; `None` if there was none.
    pub round_trip: Option<Duration>,
    /// Of one node.
    pub version: String,
    /// Sentences about what is not as it should be, each with the URL before it.
    pub warnings: Vec<String>,
    /// The fleet keys, by what tells which one sealed a record; the first one seals.
    pub keys: Vec<String>,
    /// Sentences about settings with which a server may forget what was removed, or accept no early data.
    pub advice: Vec<String>,
}

/// One server, or a master of a cluster.
pub struct Node {
    /// Where it is; empty for the one server of a URL.
    pub name: String,
    /// What it says of itself, in the order of [`FACTS`]; empty what it does not tell.
    pub facts: Vec<String>,
    /// All keys of the database, whosesoever.
    pub keys: Option<u64>,
    /// How many sessions are among them, and how many void records; by a sample.
    pub sessions: Option<[u64; 2]>,
}

/// The fields of INFO that are worth knowing.
pub const FACTS: [&str; 9] = [
    "redis_version",
    "role",
    "uptime_in_seconds",
    "connected_clients",
    "used_memory_human",
    "maxmemory_human",
    "maxmemory_policy",
    "expired_keys",
    "evicted_keys",
];

/// Whether Redis can be used as the URL says: keys, certificates, the connection, who may do what there. The error is a
/// sentence for a person: it will not do until somebody changes something.
pub fn check(spec: &Spec) -> Result<Report, String> {
    let keys = Keys::read(&spec.key_file)?;
    let server = Server::new(spec)?;
    let mut report = Report { keys: keys.hints(), ..Report::default() };
    if !keys.hides_services() {
        report.advice.push(
            "The key file has no line `fleet`, as `reprise keygen` makes one: who reads Redis can tell which servers there \
             are."
                .into(),
        );
    }
    let judge = |report: &mut Report, error: RedisError| match may_pass(&error) {
        true => {
            report.warnings.push(format!("{spec}: {}", words(&error, spec)));
            Ok(())
        }
        false => Err(format!("{spec}: {}", words(&error, spec))),
    };
    let connected = node_for_checks(&server, spec).and_then(|mut connection| {
        connection.set_timeout(spec.connect);
        connection.known_life()?; // logs in, which a lookup does not wait for
        let began = Instant::now();
        connection.ping().map(|()| (connection, began.elapsed()))
    });
    let mut connection = match connected {
        Ok((connection, time)) => {
            report.round_trip = Some(time);
            connection
        }
        Err(error) => return judge(&mut report, error).map(|()| report),
    };
    // Who may not ask for it may use the cache all the same.
    let info = connection.info().unwrap_or_else(|_| redis::InfoDict::new(""));
    report.version = info.get("redis_version").unwrap_or_default();
    let mut parts = report.version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
    if !report.version.is_empty() && (parts.next(), parts.next()) < (Some(6), Some(2)) {
        return Err(format!("{spec} is Redis {}: 6.2 is the first that will do", report.version));
    }
    if let Err(error) = attempt(&mut connection, spec) {
        judge(&mut report, error)?;
    }
    report.advice.extend(advice(&mut connection, &info));
    let policy: String = info.get("maxmemory_policy").unwrap_or_default();
    if policy.starts_with("allkeys") {
        report.warnings.push(format!(
            "{spec}: maxmemory-policy is {policy}, so generations may be evicted, and sessions lost before time: use \
             volatile-ttl"
        ));
    }
    Ok(report)
}

fn advice(connection: &mut Connection, info: &redis::InfoDict) -> Vec<String> {
    let field = |name: &str| info.get::<String>(name);
    let mut advice = Vec::new();
    if field("run_id").is_none() {
        advice.push("The user may not use INFO, so early data is always refused (ACL SETUSER ... +info).".into());
    }
    // Who may not ask for it is not told.
    let save = connection.ask(redis::cmd("CONFIG").arg("GET").arg("save")).ok();
    let save: Option<(String, String)> = save.and_then(|save| redis::from_redis_value(save).ok());
    if save.is_some_and(|(_, times)| !times.is_empty()) && field("aof_enabled").as_deref() == Some("0") {
        advice.push(
            "It saves snapshots and no append-only file: after a restart, sessions that were removed since the last \
             snapshot are there again (save \"\", or appendonly yes with appendfsync always)."
                .into(),
        );
    }
    let has_replicas = field("connected_slaves").is_some_and(|count| count != "0");
    if has_replicas && field("min_slaves_good_slaves").is_none() {
        advice.push(
            "It has replicas and does not wait for any: after a failover, sessions that were removed just before may be \
             there again (min-replicas-to-write 1, min-replicas-max-lag 1)."
                .into(),
        );
    }
    advice
}

/// Of a Cluster, the node that has the key of [`attempt`].
fn node_for_checks(server: &Server, spec: &Spec) -> RedisResult<Connection> {
    let slot = server::slot(CHECKS);
    let node =
        server.topology(&[], spec.connect)?.into_iter().find(|range| (range.slots[0]..=range.slots[1]).contains(&slot));
    server.connect(node.map(|range| range.node).as_ref(), spec.connect)
}

const CHECKS: &str = "check";

/// Each command that the cache needs, once, on a key of no session.
fn attempt(connection: &mut Connection, spec: &Spec) -> RedisResult<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let key = format!("{}{{{CHECKS}}}:{}-{time}", spec.prefix, std::process::id());
    let five_seconds = Duration::from_secs(5);
    connection.ask(&set(&key, b"1", five_seconds))?;
    connection.ask(&exchange(&key, b"1", b"2", five_seconds))?;
    connection.get(&key, &key)?;
    connection.ask(redis::cmd("INCRBY").arg(&key).arg(1))?;
    connection.ask(redis::cmd("GETEX").arg(&key).arg("EX").arg(5))?;
    connection.take(&key, &key, Void::new())?;
    connection.ask(redis::cmd("DEL").arg(&key)).map(drop)
}

/// What the servers say of themselves.
pub fn show(spec: &Spec) -> Result<Vec<Node>, String> {
    let says = |error: RedisError| format!("{spec}: {}", words(&error, spec));
    let mut nodes = Vec::new();
    for (name, mut connection) in Server::new(spec)?.masters(spec.connect).map_err(says)? {
        let info = connection.info().map_err(says)?;
        let facts = FACTS.map(|field| info.get(field).unwrap_or_default());
        let keys = connection.ask(&redis::cmd("DBSIZE")).and_then(|keys| Ok(redis::from_redis_value(keys)?)).ok();
        let sessions = keys.and_then(|keys| count(&mut connection, spec, keys).ok());
        nodes.push(Node { name, facts: facts.into(), keys, sessions });
    }
    Ok(nodes)
}

/// How many sessions and void records there are among `all` keys: what is so of the first ones that SCAN tells, which are
/// as good as any, since it tells them in the order of their hashes.
fn count(connection: &mut Connection, spec: &Spec, all: u64) -> RedisResult<[u64; 2]> {
    const SAMPLE: usize = 2000;
    let (mut cursor, mut seen) = (0u64, 0);
    let mut found = [0; 2];
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("COUNT").arg(500);
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::from_redis_value(connection.ask(&scan)?)?;
        seen += keys.len();
        let is_record = |key: &&Vec<u8>| {
            key.starts_with(spec.prefix.as_bytes()) && !key.ends_with(b":generation") && !key.ends_with(b":foreign")
        };
        let lengths = keys.iter().filter(is_record).map(|key| {
            let mut length = redis::cmd("STRLEN");
            length.arg(key);
            length
        });
        for length in connection.pipeline(lengths.collect())?.into_iter().flatten() {
            let length: usize = redis::from_redis_value(length)?;
            found[usize::from(length == Void::SIZE)] += u64::from(length > 0);
        }
        cursor = next;
        if cursor == 0 || seen >= SAMPLE {
            let share = |found: u64| (found as f64 * all as f64 / seen.max(1) as f64).round() as u64;
            return Ok(if cursor == 0 { found } else { found.map(share) });
        }
    }
}

/// Flushes every service that has sessions under the URL's prefix, and says how many there are. The keys are gone through
/// in small steps, while the servers go on.
pub fn flush(spec: &Spec) -> Result<usize, String> {
    let says = |error: RedisError| format!("{spec}: {}", words(&error, spec));
    let mut services = BTreeSet::new();
    for (_, mut connection) in Server::new(spec)?.masters(spec.connect).map_err(says)? {
        flush_node(&mut connection, spec, &mut services).map_err(says)?;
    }
    Ok(services.len())
}

fn flush_node(connection: &mut Connection, spec: &Spec, services: &mut BTreeSet<String>) -> RedisResult<()> {
    // As `control` of the link names them.
    let mut pattern = String::new();
    for c in spec.prefix.chars() {
        pattern.extend("\\*?[]^-".contains(c).then_some('\\'));
        pattern.push(c);
    }
    pattern.push_str("{*-??}:generation");
    let mut cursor = 0u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
        let (next, found): (u64, Vec<String>) = redis::from_redis_value(connection.ask(&scan)?)?;
        if !found.is_empty() {
            generations::flush(connection, &found)?;
            let service = |key: &str| Some(key.rsplit_once('{')?.1.rsplit_once('-')?.0.to_owned());
            services.extend(found.iter().filter_map(|key| service(key)));
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Whether it may be over without anybody doing something about it: Redis is down, out of reach, loads its data, is full,
/// or another one becomes the master.
fn may_pass(error: &RedisError) -> bool {
    use ServerErrorKind::*;
    const FOR_NOW: [&str; 5] = ["OOM", "MISCONF", "BUSY", "NOREPLICAS", "UNBLOCKED"];
    match error.kind() {
        // A socket that others may use, a certificate that is not trusted, something that is no TLS
        ErrorKind::Io => !io_error(error)
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData)),
        ErrorKind::ClusterConnectionNotFound => true,
        ErrorKind::Server(BusyLoading | Moved | Ask | TryAgain | ClusterDown | MasterDown | ReadOnly) => true,
        ErrorKind::Server(ResponseError) => error.to_string().contains("max number of clients"),
        ErrorKind::Extension => error.code().is_some_and(|code| FOR_NOW.contains(&code)),
        _ => false,
    }
}

fn io_error(error: &RedisError) -> Option<&io::Error> {
    type Inner = Arc<dyn Error + Send + Sync>;
    error.source()?.downcast_ref::<Inner>()?.downcast_ref()
}

fn words(error: &RedisError, spec: &Spec) -> String {
    match error.is_timeout() {
        true if spec.tls.is_some() => format!("no answer within {:?}, or one without TLS", spec.connect),
        true => format!("no answer within {:?}", spec.connect),
        false => server::words(error),
    }
}
