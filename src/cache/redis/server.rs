//! Redis or Valkey as the URL names it: one server, a Cluster, or whoever is master for Sentinel. Here connections are made,
//! and spoken to in the few commands that the cache needs.

use super::url::{Host, Servers, Spec};
use redis::cluster::{cluster_pipe, ClusterClient, ClusterConnection};
use redis::{
    Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ConnectionLike, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode, Value,
};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// What every connection is made from: certificates are read once, while they may be out of reach later.
pub struct Server {
    spec: Spec,
    certificates: Option<TlsCertificates>,
}

pub enum Connection {
    One(redis::Connection),
    Cluster(Box<ClusterConnection>),
}

/// What Redis has of a session.
pub struct Found {
    /// The generation of its bucket now.
    pub generation: Option<u64>,
    pub record: Option<Vec<u8>>,
}

impl Server {
    /// An error in words for a person. Nothing is connected yet.
    pub fn new(spec: &Spec) -> Result<Server, String> {
        let read = |name: &str, path: &Path| {
            std::fs::read(path).map_err(|error| format!("{name}={}: {error}", path.display()))
        };
        let certificates = match &spec.tls {
            None => None,
            Some(tls) => {
                let client_tls = match (&tls.certificate, &tls.key) {
                    (Some(certificate), Some(key)) => Some(ClientTlsConfig {
                        client_cert: read("cert", certificate)?,
                        client_key: read("cert_key", key)?,
                    }),
                    _ => None,
                };
                let root_cert = tls.ca.as_deref().map(|ca| read("ca", ca)).transpose()?;
                // Several providers of cryptography may be built in; this one is.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Some(TlsCertificates { client_tls, root_cert })
            }
        };
        let server = Server { spec: spec.clone(), certificates };
        match &spec.servers {
            Servers::Cluster(hosts) => drop(server.cluster(hosts, spec.connect).map_err(|error| error.to_string())?),
            Servers::Sentinel { sentinels, .. } => {
                for sentinel in sentinels {
                    server.client(server.tcp(sentinel), false).map_err(|error| error.to_string())?;
                }
            }
            Servers::One(host) => drop(server.client(server.tcp(host), true).map_err(|error| error.to_string())?),
            Servers::Unix(path) => {
                server.client(ConnectionAddr::Unix(path.clone()), true).map_err(|error| error.to_string())?;
            }
        }
        Ok(server)
    }

    /// Whether a connection costs a round trip or two and no more, so that a lookup may make one: no name is to be resolved.
    pub fn is_near(&self) -> bool {
        match &self.spec.servers {
            Servers::One(host) => host.name.parse::<IpAddr>().is_ok(),
            Servers::Unix(_) => true,
            Servers::Cluster(_) | Servers::Sentinel { .. } => false,
        }
    }

    /// A new connection, made within `time`.
    pub fn connect(&self, time: Duration) -> RedisResult<Connection> {
        match &self.spec.servers {
            Servers::One(host) => self.one(self.tcp(host), time),
            Servers::Unix(path) => self.one(ConnectionAddr::Unix(path.clone()), time),
            Servers::Cluster(hosts) => Ok(Connection::Cluster(Box::new(self.cluster(hosts, time)?.get_connection()?))),
            Servers::Sentinel { sentinels, service } => {
                let master = self.master(sentinels, service, time)?;
                self.one(self.tcp(&master), time)
            }
        }
    }

    /// A connection to each server that holds some of the data, and where it is if there may be several.
    pub fn masters(&self, time: Duration) -> RedisResult<Vec<(String, Connection)>> {
        let Servers::Cluster(hosts) = &self.spec.servers else {
            let connection = self.connect(time)?;
            connection.set_timeout(time)?;
            return Ok(vec![(String::new(), connection)]);
        };
        let open = |host: &Host| {
            let mut connection = self.one(self.tcp(host), time)?;
            connection.set_timeout(time)?;
            connection.ping().map(|()| connection)
        };
        let mut why = (redis::ErrorKind::Client, "no node is named").into();
        for host in hosts {
            let asked = open(host).and_then(|mut node| node.ask(redis::cmd("CLUSTER").arg("NODES")));
            match asked {
                Ok(nodes) => {
                    let masters = super::check::masters(&nodes, &host.name).into_iter();
                    let masters = masters.map(|(name, port)| Host { name, port });
                    return masters.map(|host| Ok((host.to_string(), open(&host)?))).collect();
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn one(&self, address: ConnectionAddr, time: Duration) -> RedisResult<Connection> {
        Ok(Connection::One(self.client(address, true)?.get_connection_with_timeout(time)?))
    }

    fn tcp(&self, host: &Host) -> ConnectionAddr {
        match self.certificates {
            None => ConnectionAddr::Tcp(host.name.clone(), host.port),
            Some(_) => {
                ConnectionAddr::TcpTls { host: host.name.clone(), port: host.port, insecure: false, tls_params: None }
            }
        }
    }

    /// Who answers for the data is asked for its password and database; sentinels have none of ours.
    fn client(&self, address: ConnectionAddr, is_data: bool) -> RedisResult<Client> {
        let info: ConnectionInfo = address.into_connection_info()?;
        let info = if is_data { info.set_redis_settings(self.login()) } else { info };
        match &self.certificates {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        }
    }

    fn login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default()
            .set_db(self.spec.database.into())
            .set_lib_name("reprise", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.spec.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.spec.password {
            login = login.set_password(password);
        }
        login
    }

    fn cluster(&self, hosts: &[Host], time: Duration) -> RedisResult<ClusterClient> {
        let nodes = hosts.iter().map(|host| self.tcp(host).into_connection_info()).collect::<RedisResult<Vec<_>>>()?;
        // A moved slot is asked for once more.
        let mut cluster = ClusterClient::builder(nodes)
            .retries(1)
            .min_retry_wait(1)
            .max_retry_wait(2)
            .connection_timeout(time)
            .response_timeout(time);
        if let Some(user) = &self.spec.user {
            cluster = cluster.username(user);
        }
        if let Some(password) = &self.spec.password {
            cluster = cluster.password(password);
        }
        if let Some(certificates) = &self.certificates {
            cluster = cluster.tls(TlsMode::Secure).certs(certificates.clone());
        }
        cluster.build()
    }

    /// The first sentinel that knows says who is master.
    fn master(&self, sentinels: &[Host], service: &str, time: Duration) -> RedisResult<Host> {
        let mut why = None;
        for sentinel in sentinels {
            let asked = self.client(self.tcp(sentinel), false).and_then(|client| {
                let mut sentinel = client.get_connection_with_timeout(time)?;
                sentinel.set_read_timeout(Some(time))?;
                redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(service).query(&mut sentinel)
            });
            match asked {
                Ok(Some((name, port))) => return Ok(Host { name, port }),
                Ok(None) => why = why.or(Some(unknown(service))),
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| unknown(service)))
    }
}

fn unknown(service: &str) -> redis::RedisError {
    (redis::ErrorKind::Client, "no sentinel knows the service", service.into()).into()
}

impl Connection {
    /// The most that each answer may take from now on.
    pub fn set_timeout(&self, time: Duration) -> RedisResult<()> {
        // 0 is "for ever".
        let time = Some(time.max(Duration::from_millis(1)));
        match self {
            Connection::One(one) => one.set_read_timeout(time).and_then(|()| one.set_write_timeout(time)),
            Connection::Cluster(all) => all.set_read_timeout(time).and_then(|()| all.set_write_timeout(time)),
        }
    }

    /// Commands whose keys may be anywhere, and their answers.
    pub fn pipeline(&mut self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        match self {
            Connection::One(one) => {
                let mut pipe = redis::Pipeline::with_capacity(commands.len());
                commands.into_iter().for_each(|command| _ = pipe.add_command(command));
                pipe.query(one)
            }
            Connection::Cluster(all) => {
                let mut pipe = cluster_pipe();
                commands.into_iter().for_each(|command| _ = pipe.add_command(command));
                pipe.query(all)
            }
        }
    }

    /// One command. An answer that is an error is one.
    pub fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Connection::One(one) => one.req_command(command)?.extract_error(),
            Connection::Cluster(all) => all.req_command(command)?.extract_error(),
        }
    }

    /// Reads a record and the generation of its bucket, in one command.
    pub fn get(&mut self, control: &str, name: &str) -> RedisResult<Found> {
        let (generation, record) = redis::from_redis_value(self.ask(redis::cmd("MGET").arg(control).arg(name))?)?;
        Ok(Found { generation, record })
    }

    /// The same, and the record is gone: one caller in the fleet has it.
    pub fn take(&mut self, control: &str, name: &str) -> RedisResult<Found> {
        let mut get_and_delete = redis::cmd("GETDEL");
        get_and_delete.arg(name);
        let mut get = redis::cmd("GET");
        get.arg(control);
        let mut answers = self.pipeline(vec![get_and_delete, get])?.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        Ok(Found { record: redis::from_redis_value(next())?, generation: redis::from_redis_value(next())? })
    }

    pub fn ping(&mut self) -> RedisResult<()> {
        self.ask(&redis::cmd("PING")).map(drop)
    }

    /// What one server says of itself; nothing of a cluster.
    pub fn info(&mut self) -> RedisResult<redis::InfoDict> {
        match self {
            Connection::One(one) => redis::cmd("INFO").query(one),
            Connection::Cluster(_) => Ok(redis::InfoDict::new("")),
        }
    }
}

/// What went wrong, in a line for a person.
pub fn words(error: &RedisError) -> String {
    match error.is_timeout() {
        true => "no answer in time".into(),
        false => error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// Puts a record in its place, for `time`.
pub fn set(name: &str, record: &[u8], time: Duration, how: How) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(name).arg(record).arg("PX").arg(time.as_millis() as u64);
    match how {
        How::Always => {}
        How::IfAbsent => _ = set.arg("NX"),
        How::IfPresent => _ = set.arg("XX"),
    }
    set
}

/// On what condition a session is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Always,
    IfAbsent,
    IfPresent,
}

/// How long from now until `then`, at least a millisecond.
pub fn remaining(then: Instant) -> Option<Duration> {
    let left = then.saturating_duration_since(Instant::now());
    (left >= Duration::from_millis(1)).then_some(left)
}
