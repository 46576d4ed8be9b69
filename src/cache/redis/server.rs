//! Redis or Valkey as the URL names it: one server, a Cluster, or whoever is master for Sentinel. Here connections are made,
//! and spoken to in the few commands that the cache needs.

use super::files::{stamp, Stamp};
use super::generations::Told;
use super::url::{Host, Servers, Spec, Tls};
use super::void::Void;
use super::wire::{late, Answers, Wire};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What every connection is made from. Certificates are read at once, while they may be out of reach later, and again
/// when they were changed.
pub struct Server {
    spec: Spec,
    tls: Mutex<Files>,
}

/// What was read of certificates, and from which files.
#[derive(Default)]
pub struct Files {
    config: Option<Arc<ClientConfig>>,
    stamps: Vec<Stamp>,
}

impl Files {
    fn read(tls: &Tls) -> Result<Files, String> {
        let stamps = Files::stamps(tls);
        Ok(Files { config: Some(Arc::new(tls_config(tls)?)), stamps })
    }

    fn stamps(tls: &Tls) -> Vec<Stamp> {
        [&tls.ca, &tls.certificate, &tls.key].into_iter().flatten().map(|path| stamp(path)).collect()
    }
}

/// To one server.
pub struct Connection {
    wire: Wire,
    /// What it is still to be told, and how many of that it has to agree to.
    login: Vec<Cmd>,
    needed: usize,
    /// Of the process at the other end; empty where we may not ask (INFO).
    run_id: String,
    life: Life,
}

/// During one life of a server nothing that was done there is undone. A server that is started again, restored from a
/// backup, or becomes the master, begins another one, which never was before: a life is a run of the process, and the
/// replication id that it was given when it became a master. `None` where that is not known.
pub type Life = Option<NonZeroU64>;

/// What Redis has of a session.
pub struct Found {
    /// The generation of its bucket now.
    pub generation: Told,
    pub value: Option<Vec<u8>>,
    /// The life of the server in which it said so; only of what was taken or removed.
    pub life: Life,
}

/// The slots of a Cluster that a node has, both included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    pub slots: [u16; 2],
    pub node: Host,
}

/// The slot of a Cluster in which the keys with this text in braces are.
pub fn slot(tag: &str) -> u16 {
    const SLOTS: u16 = 16384;
    crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % SLOTS
}

impl Server {
    /// An error in words for a person. Nothing is connected yet.
    pub fn new(spec: &Spec) -> Result<Server, String> {
        let tls = spec.tls.as_ref().map(Files::read).transpose()?;
        Ok(Server { spec: spec.clone(), tls: Mutex::new(tls.unwrap_or_default()) })
    }

    /// The lock that connecting takes for a moment.
    pub fn files(&self) -> &Mutex<Files> {
        &self.tls
    }

    /// Takes over certificates that were changed. Those that cannot be read change nothing, which is the error.
    pub fn look_at_files(&self) -> Result<(), String> {
        let Some(tls) = &self.spec.tls else { return Ok(()) };
        let stamps = Files::stamps(tls);
        let is_known = self.tls.lock().unwrap_or_else(PoisonError::into_inner).stamps == stamps;
        if is_known || stamps.contains(&Stamp::default()) {
            return Ok(());
        }
        let read = Files::read(tls)?;
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// A new connection, made within `time`: to this node of a Cluster, or else as the URL says.
    pub fn connect(&self, node: Option<&Host>, time: Duration) -> RedisResult<Connection> {
        let until = Instant::now() + time;
        match (node, &self.spec.servers) {
            (Some(host), _) | (None, Servers::One(host)) => self.login(self.tcp(host, until)?),
            (None, Servers::Unix(path)) => {
                let mut wire = Wire::unix(path, until)?;
                wire.set_end(until);
                self.login(wire)
            }
            (None, Servers::Cluster(hosts)) => self.first_of(hosts, until),
            (None, Servers::Sentinel { sentinels, service }) => self.master(sentinels, service, until),
        }
    }

    fn first_of(&self, hosts: &[Host], until: Instant) -> RedisResult<Connection> {
        let mut failed = late();
        for (host, until) in shares(hosts, until) {
            match self.tcp(host, until).and_then(|wire| self.login(wire)) {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// A connection to each server that holds some of the data, and where it is if there may be several.
    pub fn masters(&self, time: Duration) -> RedisResult<Vec<(String, Connection)>> {
        if !self.is_cluster() {
            return Ok(vec![(String::new(), self.connect(None, time)?)]);
        }
        let mut nodes: Vec<Host> = Vec::new();
        for range in self.topology(&[], time)? {
            if !nodes.contains(&range.node) {
                nodes.push(range.node);
            }
        }
        nodes.iter().map(|host| Ok((host.to_string(), self.connect(Some(host), time)?))).collect()
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.spec.servers, Servers::Cluster(_))
    }

    /// Which node of the Cluster has which slots, as the first of these nodes and those of the URL says that answers.
    pub fn topology(&self, known: &[Host], time: Duration) -> RedisResult<Vec<Range>> {
        let Servers::Cluster(named) = &self.spec.servers else { return Ok(Vec::new()) };
        let hosts: Vec<Host> = known.iter().chain(named).cloned().collect();
        let mut failed = late();
        for (host, until) in shares(&hosts, Instant::now() + time) {
            let asked = self.tcp(host, until).and_then(|wire| self.login(wire)).and_then(|mut node| {
                let slots = node.ask(redis::cmd("CLUSTER").arg("SLOTS"))?;
                Ok(ranges(slots, &host.name))
            });
            match asked {
                Ok(ranges) if !ranges.is_empty() => return Ok(ranges),
                Ok(_) => failed = (ErrorKind::Client, "a node knows of no slots").into(),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn tcp(&self, host: &Host, until: Instant) -> RedisResult<Wire> {
        let config = self.tls.lock().unwrap_or_else(PoisonError::into_inner).config.clone();
        Wire::tcp(&host.name, host.port, config.as_ref(), until)
    }

    /// The commands that say who we are, which go ahead of the first ones: so void records reach also a server that has
    /// stopped, and are the first thing it sees when it goes on.
    fn login(&self, wire: Wire) -> RedisResult<Connection> {
        let mut login = Vec::new();
        if let Some(password) = &self.spec.password {
            let mut auth = redis::cmd("AUTH");
            auth.arg(self.spec.user.as_ref()).arg(password);
            login.push(auth);
        }
        if self.spec.database != 0 {
            let mut select = redis::cmd("SELECT");
            select.arg(self.spec.database);
            login.push(select);
        }
        let needed = login.len();
        // Servers before 7.2 do not know these.
        for (what, text) in [("LIB-NAME", "reprise"), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            let mut set = redis::cmd("CLIENT");
            set.arg("SETINFO").arg(what).arg(text);
            login.push(set);
        }
        login.extend([info("server"), info("replication")]);
        Ok(Connection { wire, login, needed, run_id: String::new(), life: None })
    }

    /// A sentinel that has not heard of a failover names a server that was the master. So all are asked, and who was
    /// appointed last is tried first; it has to say itself that it is a master.
    fn master(&self, sentinels: &[Host], service: &str, until: Instant) -> RedisResult<Connection> {
        let mut failed: RedisError = (ErrorKind::Client, "no sentinel knows the service", service.into()).into();
        let mut named: Vec<(u64, Host)> = Vec::new();
        let for_sentinels = until.saturating_duration_since(Instant::now()) / 2;
        for (sentinel, until) in shares(sentinels, Instant::now() + for_sentinels) {
            match self.named_by(sentinel, service, until) {
                Ok(Some(master)) if !named.contains(&master) => named.push(master),
                Ok(_) => {}
                Err(error) => failed = error,
            }
        }
        named.sort_by_key(|&(epoch, _)| std::cmp::Reverse(epoch));
        let hosts: Vec<Host> = named.into_iter().map(|(_, host)| host).collect();
        for (host, until) in shares(&hosts, until) {
            let connected = self.tcp(host, until).and_then(|wire| self.login(wire)).and_then(Connection::of_master);
            match connected {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Whom this sentinel takes for the master, and as of which election; `None` if it does not know the service.
    fn named_by(&self, sentinel: &Host, service: &str, until: Instant) -> RedisResult<Option<(u64, Host)>> {
        let mut commands = Vec::new();
        if let Some(password) = &self.spec.sentinel_password {
            let mut auth = redis::cmd("AUTH");
            auth.arg(self.spec.sentinel_user.as_ref()).arg(password);
            commands.push(auth);
        }
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("MASTER").arg(service);
        commands.push(ask);
        let mut answers = self.tcp(sentinel, until)?.send(&commands)?;
        let told = answers.pop().unwrap_or(Ok(Value::Nil));
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(refused))?;
        match told {
            Ok(told) => {
                let fields: HashMap<String, String> = redis::from_redis_value(told)?;
                let field = |name: &str| fields.get(name).cloned();
                let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
                let port = number("port").and_then(|port| u16::try_from(port).ok());
                Ok(field("ip")
                    .zip(port)
                    .map(|(name, port)| (number("config-epoch").unwrap_or_default(), Host { name, port })))
            }
            Err(error) if error.to_string().contains("No such master") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is said of a login that was refused.
fn refused(error: RedisError) -> RedisError {
    match error.code() {
        Some("WRONGPASS") => (ErrorKind::AuthenticationFailed, "authentication failed").into(),
        _ => error,
    }
}

/// Each with the moment until which it may take, so that one that does not answer leaves time for the others.
fn shares(hosts: &[Host], until: Instant) -> impl Iterator<Item = (&Host, Instant)> {
    let mut left = hosts.len() as u32;
    hosts.iter().map(move |host| {
        let share = until.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        (host, Instant::now() + share)
    })
}

/// What CLUSTER SLOTS answers; a node that does not know its own address is `asked`.
fn ranges(slots: Value, asked: &str) -> Vec<Range> {
    type Slots = Vec<Vec<Value>>;
    let slots: Slots = redis::from_redis_value(slots).unwrap_or_default();
    let range = |slots: Vec<Value>| {
        let mut slots = slots.into_iter();
        let first = redis::from_redis_value(slots.next()?).ok()?;
        let last = redis::from_redis_value(slots.next()?).ok()?;
        let mut master = redis::from_redis_value::<Vec<Value>>(slots.next()?).ok()?.into_iter();
        let name: Option<String> = redis::from_redis_value(master.next()?).ok()?;
        let port = redis::from_redis_value(master.next()?).ok()?;
        let name = name.filter(|name| !name.is_empty() && name != "?").unwrap_or_else(|| asked.to_owned());
        Some(Range { slots: [first, last], node: Host { name, port } })
    };
    slots.into_iter().filter_map(range).collect()
}

fn tls_config(tls: &Tls) -> Result<ClientConfig, String> {
    let read =
        |name: &str, path: &Path| std::fs::read(path).map_err(|error| format!("{name}={}: {error}", path.display()));
    // Several providers of cryptography may be built in; this one is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(path) => {
            let pem = read("ca", path)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added = certificate
                    .map_err(|error| error.to_string())
                    .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
                added.map_err(|error| format!("ca={}: {error}", path.display()))?;
            }
            if roots.is_empty() {
                return Err(format!("ca={}: there is no certificate in it", path.display()));
            }
        }
        None => {
            for certificate in rustls_native_certs::load_native_certs().certs {
                let _ = roots.add(certificate); // of others, one that cannot be read is none of ours
            }
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) else { return Ok(config.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(&read("cert", certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("cert={}: {error}", certificate.display()))?;
    let private = PrivateKeyDer::from_pem_slice(&read("cert_key", key)?)
        .map_err(|error| format!("cert_key={}: {error}", key.display()))?;
    config.with_client_auth_cert(chain, private).map_err(|error| format!("cert={}: {error}", certificate.display()))
}

impl Connection {
    /// All that is done on it from now on takes no longer.
    pub fn set_timeout(&mut self, time: Duration) {
        self.set_end(Instant::now() + time);
    }

    pub fn set_end(&mut self, until: Instant) {
        self.wire.set_end(until);
    }

    /// Commands and their answers. The error is that of the connection.
    pub fn pipeline(&mut self, commands: Vec<Cmd>) -> RedisResult<Answers> {
        match commands.is_empty() {
            true => Ok(Vec::new()),
            false => self.send(&commands),
        }
    }

    fn send(&mut self, commands: &[Cmd]) -> RedisResult<Answers> {
        if self.login.is_empty() {
            return self.wire.send(commands);
        }
        let mut all = std::mem::take(&mut self.login);
        let count = all.len();
        all.extend_from_slice(commands);
        let mut answers = self.wire.send(&all)?;
        let rest = answers.split_off(count);
        let (replication, server) = (answers.pop(), answers.pop());
        for answer in answers.into_iter().take(self.needed) {
            answer.map_err(refused)?;
        }
        self.run_id = field(server, "run_id").unwrap_or_default();
        self.life = self.life(replication);
        Ok(rest)
    }

    /// One command. An answer that is an error is one.
    pub fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(std::slice::from_ref(command))?.pop().unwrap_or_else(|| Err(late()))
    }

    /// Itself, if the server says that it is a master, or may not say.
    fn of_master(mut self) -> RedisResult<Connection> {
        let is_master = match self.ask(&redis::cmd("ROLE")) {
            Ok(Value::Array(role)) => role.first() == Some(&Value::BulkString(b"master".to_vec())),
            Ok(_) => true,
            Err(error) if error.code() == Some("NOPERM") => true,
            Err(error) => return Err(error),
        };
        match is_master {
            true => Ok(self),
            false => Err((ErrorKind::Client, "the sentinel names a server that is no master").into()),
        }
    }

    /// Reads what stands in a session's place, and the generation of its bucket, in one command. Keys of another type
    /// read as missing.
    pub fn get(&mut self, control: &str, name: &str) -> RedisResult<Found> {
        let answer = self.ask(redis::cmd("MGET").arg(control).arg(name))?;
        let [generation, value] = redis::from_redis_value::<[Value; 2]>(answer)?;
        Ok(Found { generation: Told::of(&generation), value: bytes(value), life: None })
    }

    /// The same, and a void record takes the place of what was there, for as long as that would have stood: one caller in
    /// the fleet has it.
    pub fn take(&mut self, control: &str, name: &str, void: Void) -> RedisResult<Found> {
        let mut get = redis::cmd("GET");
        get.arg(control);
        self.taken(vec![replace(name, void, true), get, info("replication")])
    }

    /// The same, and there is a void record also where nothing was: what is on its way is not written any more.
    pub fn remove(&mut self, control: &str, name: &str, void: Void) -> RedisResult<Found> {
        let mut get = redis::cmd("GET");
        get.arg(control);
        self.taken(vec![void_where_nothing_is(name, void), replace(name, void, true), get, info("replication")])
    }

    fn taken(&mut self, commands: Vec<Cmd>) -> RedisResult<Found> {
        let mut answers = self.pipeline(commands)?;
        let life = self.life(answers.pop());
        let generation = answers.pop().unwrap_or(Ok(Value::Nil));
        let generation = generation.as_ref().map_or(Told::Nonsense, Told::of);
        let value = match answers.pop().unwrap_or(Ok(Value::Nil)) {
            Ok(value) => bytes(value),
            Err(error) if is_of_the_key(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Found { generation, value, life })
    }

    /// The life in which the server gave this answer to INFO replication.
    fn life(&self, replication: Option<RedisResult<Value>>) -> Life {
        let replication_id = field(replication, "master_replid").filter(|_| !self.run_id.is_empty())?;
        let hash = Sha256::new().chain_update(&self.run_id).chain_update([0]).chain_update(replication_id).finalize();
        hash.first_chunk().and_then(|bytes| NonZeroU64::new(u64::from_le_bytes(*bytes)))
    }

    /// The life in which what is written now is written, or one that has ended since.
    pub fn known_life(&mut self) -> RedisResult<Life> {
        if !self.login.is_empty() {
            self.send(&[])?;
        }
        Ok(self.life)
    }

    /// Asks again which life it is.
    pub fn ask_life(&mut self) -> RedisResult<()> {
        let answer = self.send(&[info("replication")])?.pop();
        self.life = self.life(answer);
        Ok(())
    }

    pub fn ping(&mut self) -> RedisResult<()> {
        self.ask(&redis::cmd("PING")).map(drop)
    }

    /// What the server says of itself.
    pub fn info(&mut self) -> RedisResult<redis::InfoDict> {
        Ok(redis::from_redis_value(self.ask(&redis::cmd("INFO"))?)?)
    }
}

fn info(section: &str) -> Cmd {
    let mut info = redis::cmd("INFO");
    info.arg(section);
    info
}

/// Of an answer to INFO.
fn field(answer: Option<RedisResult<Value>>, name: &str) -> Option<String> {
    let text: String = redis::from_redis_value(answer?.ok()?).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim_end().to_owned())
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// What went wrong, in a line for a person that does not depend on how much the server has to say.
pub fn words(error: &RedisError) -> String {
    const LONGEST: usize = 120;
    let words = match error.is_timeout() {
        true => "no answer in time".into(),
        false => error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let certificates = [
        ("UnknownIssuer", "its certificate is of none of the CAs in ca= (a self-signed one is its own: name it there)"),
        ("CaUsedAsEndEntity", "its certificate is that of a CA (a self-signed one needs basicConstraints=CA:FALSE)"),
        ("NotValidForName", "its certificate is for another name than that in the URL"),
    ];
    if let Some((what, says)) = certificates.iter().find(|(what, _)| words.contains(what)) {
        return format!("invalid peer certificate, {what}: {says}");
    }
    match words.char_indices().nth(LONGEST) {
        Some((end, _)) => words[..end].to_owned() + "...",
        None => words,
    }
}

/// Whether a command was refused for what lies under its key: another type, no number, too large a number. It says
/// nothing of other keys.
pub fn is_of_the_key(error: &RedisError) -> bool {
    const ERRORS: [&str; 3] = ["WRONGTYPE", "not an integer", "overflow"];
    let text = error.to_string();
    ERRORS.iter().any(|part| text.contains(part))
}

/// Whether the server stores nothing at the moment, being full or cut off, and answers all the same.
pub fn refuses_to_store(error: &RedisError) -> bool {
    matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS"))
}

/// Whether the keys are another node's now.
pub fn has_moved(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | ClusterDown | TryAgain))
}

/// How long a void record stands where it is not known what it is for: no write is repeated for longer.
pub const VOID_TIME: Duration = Duration::from_secs(24 * 3600);

fn void_where_nothing_is(name: &str, void: Void) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(name).arg(&void.bytes()[..]).arg("NX").arg("PX").arg(VOID_TIME.as_millis() as u64);
    set
}

/// Puts a void record in the place of what is there, which is answered if that is wanted.
fn replace(name: &str, void: Void, answers: bool) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(name).arg(&void.bytes()[..]).arg("XX").arg("KEEPTTL");
    if answers {
        set.arg("GET");
    }
    set
}

/// The commands that leave a void record under a name, whatever was there.
pub fn void(name: &str, void: Void) -> [Cmd; 2] {
    [void_where_nothing_is(name, void), replace(name, void, false)]
}

/// Puts a record where nothing is, for `time`.
pub fn set(name: &str, record: &[u8], time: Duration) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(name).arg(record).arg("NX").arg("PX").arg(time.as_millis() as u64);
    set
}

/// Puts a record in the place of `old` and of nothing else, for `time`. No plain command does that.
pub fn exchange(name: &str, old: &[u8], record: &[u8], time: Duration) -> Cmd {
    const SCRIPT: &str = "if redis.call('GET',KEYS[1])~=ARGV[1] then return false end \
                          return redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3])";
    let mut eval = redis::cmd("EVAL");
    eval.arg(SCRIPT).arg(1).arg(name).arg(old).arg(record).arg(time.as_millis() as u64);
    eval
}

/// What is to become of a session with the same id that is in Redis, when one is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The new one takes its place.
    Replace,
    /// It stays.
    Keep,
    /// The new one takes its place, and is not stored where none is.
    Renew,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_a_cluster_are_read() {
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first: i64, last: i64, master: Vec<Value>| {
            let replica = Value::Array(vec![text("127.0.0.1"), Value::Int(30004), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master), replica])
        };
        let slots = Value::Array(vec![
            range(0, 5460, vec![text("127.0.0.1"), Value::Int(30001), text("id")]),
            range(5461, 5461, vec![text("::1"), Value::Int(30002)]),
            range(5462, 9000, vec![Value::Nil, Value::Int(30003)]),
            range(9001, 16383, vec![text(""), Value::Int(30004)]),
            Value::Array(vec![Value::Int(1)]),
        ]);
        let found: Vec<_> =
            ranges(slots, "seed").into_iter().map(|range| (range.slots, range.node.to_string())).collect();
        let expected = [
            ([0, 5460], "127.0.0.1:30001"),
            ([5461, 5461], "[::1]:30002"),
            ([5462, 9000], "seed:30003"),
            ([9001, 16383], "seed:30004"),
        ];
        assert_eq!(found, expected.map(|(slots, node)| (slots, node.to_string())));
        assert_eq!(ranges(Value::Nil, "seed"), []);
        assert_eq!((slot("123456789"), slot("foo")), (0x31c3, 12182));
    }
}
