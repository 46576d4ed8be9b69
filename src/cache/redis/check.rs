//! What an operator asks of a Redis before a program starts, or beside it: whether it will do, what it says of itself, and
//! that what is cached there be flushed. Nothing of this runs in a server.
//!
//! A fleet's servers must be able to start while its Redis is away, and a mistake must be said before they do. So what
//! somebody has to put right is an error, and what may pass by itself is a warning.

use super::keys::Keys;
use super::server::{self, set, Connection, How, Server};
use super::url::{Servers, Spec};
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
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
}

/// One server, or a master of a cluster.
pub struct Node {
    /// Where it is; empty for the one server of a URL.
    pub name: String,
    /// What it says of itself, in the order of [`FACTS`]; empty what it does not tell.
    pub facts: Vec<String>,
    /// All keys of the database, whosesoever.
    pub keys: Option<u64>,
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
    Keys::read(&spec.key_file)?;
    let server = Server::new(spec)?;
    let mut report = Report::default();
    let judge = |report: &mut Report, error: RedisError| match may_pass(&error) {
        true => {
            report.warnings.push(format!("{spec}: {}", words(&error, spec)));
            Ok(())
        }
        false => Err(format!("{spec}: {}", words(&error, spec))),
    };
    // A cluster only says that it has no connection; its nodes say why.
    let nodes = || matches!(spec.servers, Servers::Cluster(_)).then(|| server.masters(spec.connect)).transpose();
    let connected = nodes().and_then(|_| server.connect(spec.connect)).and_then(|mut connection| {
        connection.set_timeout(spec.connect)?;
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
    let policy: String = info.get("maxmemory_policy").unwrap_or_default();
    if policy.starts_with("allkeys") {
        report.warnings.push(format!(
            "{spec}: maxmemory-policy is {policy}, so generations may be evicted, and sessions lost before time: use \
             volatile-ttl"
        ));
    }
    Ok(report)
}

/// Each command that the cache needs, once, on a key of no session.
fn attempt(connection: &mut Connection, spec: &Spec) -> RedisResult<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let key = format!("{}{{check}}:{}-{time}", spec.prefix, std::process::id());
    connection.ask(&set(&key, b"1", Duration::from_secs(5), How::Always))?;
    connection.get(&key, &key)?;
    connection.ask(redis::cmd("INCR").arg(&key))?;
    connection.take(&key, &key)?;
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
        nodes.push(Node { name, facts: facts.into(), keys });
    }
    Ok(nodes)
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
            let raise = found.iter().map(|key| {
                let mut raise = redis::cmd("INCR");
                raise.arg(key);
                raise
            });
            connection.pipeline(raise.collect())?.into_iter().try_for_each(|told| told.extract_error().map(drop))?;
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

/// The masters that `CLUSTER NODES` names, as host and port; a node that does not know its own address is `asked`.
pub(super) fn masters(nodes: &Value, asked: &str) -> Vec<(String, u16)> {
    let text: String = redis::from_redis_value_ref(nodes).unwrap_or_default();
    let master = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (address, flags) = (words.next()?, words.next()?);
        let mut flags = flags.split(',');
        let (host, port) = address.split(['@', ',']).next()?.rsplit_once(':')?;
        let host = if host.is_empty() { asked } else { host };
        let is_up = flags.clone().any(|flag| flag == "master") && !flags.any(|flag| matches!(flag, "fail" | "noaddr"));
        is_up.then_some((host.to_owned(), port.parse().ok()?))
    };
    text.lines().filter_map(master).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_are_found_among_the_nodes_of_a_cluster() {
        let text = "07c3 127.0.0.1:30004@31004,host4 slave e7d1 0 1426 4 connected\n\
                    67ed 127.0.0.1:30002@31002,host2 master - 0 1426 2 connected 5461-10922\n\
                    292f 127.0.0.1:30003@31003 master,fail - 0 1426 3 connected 10923-16383\n\
                    9abc ::1:30005@31005 master - 0 1426 3 connected\n\
                    e7d1 :30001@31001 myself,master - 0 0 1 connected 0-5460\n";
        let found = masters(&Value::BulkString(text.into()), "seed");
        let expected = [("127.0.0.1", 30002), ("::1", 30005), ("seed", 30001)];
        assert_eq!(found, expected.map(|(host, port)| (host.to_string(), port)));
    }
}
