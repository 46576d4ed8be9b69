//! URLs of caches in Redis, as `redis://user:password@host:6379/0?key=/etc/reprise/key`.
//!
//! What is said of a URL must not tell its password, whatever is wrong with it: a password with a raw `/` or `?` in it
//! would else turn up as a host, a path or a parameter. So no complaint quotes anything that stands before the
//! parameters, an `@` after the host is refused before anything behind it is read, and values are quoted only of
//! parameters that have a number.

use percent_encoding::{percent_decode_str, utf8_percent_encode, AsciiSet, CONTROLS, NON_ALPHANUMERIC};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub const DEFAULT_PREFIX: &str = "reprise:";
const LONGEST_PREFIX: usize = 64;
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// All parameters; which of them a kind of URL has is said where they are read.
const PARAMETERS: [&str; 14] = [
    "service",
    "key",
    "prefix",
    "deadline",
    "connect",
    "queue",
    "db",
    "tls",
    "ca",
    "cert",
    "cert_key",
    "password_file",
    "sentinel_user",
    "sentinel_password_file",
];
const LONGEST_PASSWORD: u64 = 4096;

/// Which Redis, and how it is to be used.
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    pub servers: Servers,
    pub user: Option<String>,
    pub password: Option<String>,
    /// Of the sentinels, which have users of their own.
    pub sentinel_user: Option<String>,
    pub sentinel_password: Option<String>,
    /// Always 0 in a cluster.
    pub database: u32,
    pub tls: Option<Tls>,
    /// Where the fleet keys are, an absolute path.
    pub key_file: PathBuf,
    /// Of every key in Redis: printable ASCII without braces, which have a meaning in a cluster.
    pub prefix: String,
    /// The most a lookup may take, 1 ms to 1 s.
    pub deadline: Duration,
    /// The most connecting may take, which happens in the background: 10 ms to 60 s.
    pub connect: Duration,
    /// How many sessions may wait to be written, 16 to 16 M.
    pub queue: usize,
    /// Keeps services apart that are equal otherwise; mostly empty.
    pub service: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Servers {
    One(Host),
    Unix(PathBuf),
    /// Some nodes of it, at least one.
    Cluster(Vec<Host>),
    /// Those that know which server of the service is the master, at least one.
    Sentinel {
        sentinels: Vec<Host>,
        service: String,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// A DNS name or an address, that of IPv6 without its brackets.
    pub name: String,
    pub port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tls {
    /// Whom to trust; the system's CAs if there is none.
    pub ca: Option<PathBuf>,
    /// With its key, or neither.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl FromStr for Spec {
    type Err = String;

    /// The error is a sentence that names what is wrong, and never shows the password.
    fn from_str(url: &str) -> Result<Spec, String> {
        const KINDS: &str =
            "use redis://HOST, rediss://HOST, redis+unix:///PATH, redis+cluster://HOST,HOST or redis+sentinel://HOST,HOST/SERVICE";
        let (scheme, rest) = url.split_once("://").ok_or(format!("it is no URL of a Redis ({KINDS})"))?;
        let (authority, path, query) = split(rest);
        if path.contains('@') || query.is_some_and(|query| query.contains('@')) {
            return Err(
                "it has an @ after the host (in user and password write / as %2F and ? as %3F, elsewhere @ as %40)"
                    .into(),
            );
        }
        let (user, password, hosts) = credentials(authority)?;
        let mut parameters = Parameters::read(query.unwrap_or_default())?;
        // As the rest of the path after its first slash.
        let inner = path.strip_prefix('/').unwrap_or_default();
        let (mut database, mut tls) = (0, false);
        let servers = match scheme {
            "redis" | "rediss" => {
                tls = scheme == "rediss";
                database = self::database(inner)?;
                match <[Host; 1]>::try_from(self::hosts(hosts, PORT)?) {
                    Ok([host]) => Servers::One(host),
                    Err(_) => return Err("it has several hosts (use redis+cluster:// or redis+sentinel://)".into()),
                }
            }
            "redis+unix" if !hosts.is_empty() => {
                return Err("a host has no place in it (write three slashes: redis+unix:///run/redis.sock)".into())
            }
            "redis+unix" => {
                database = parameters.database()?;
                // sun_path, with its end
                let socket = self::path(path).filter(|path| path.as_os_str().len() < 108 && !inner.is_empty());
                Servers::Unix(socket.ok_or("it has no usable path to a socket (redis+unix:///run/redis.sock)")?)
            }
            "redis+cluster" => {
                tls = parameters.switch("tls")?;
                if self::database(inner)? != 0 {
                    return Err("a cluster has no database but 0".into());
                }
                Servers::Cluster(self::hosts(hosts, PORT)?)
            }
            "redis+sentinel" => {
                (tls, database) = (parameters.switch("tls")?, parameters.database()?);
                let service =
                    decode(inner).filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
                let service = service.filter(|name| !name.contains('/'));
                let service = service.ok_or("it does not name the service (redis+sentinel://HOST,HOST/SERVICE)")?;
                Servers::Sentinel { sentinels: self::hosts(hosts, SENTINEL_PORT)?, service }
            }
            _ => return Err(format!("it is no kind of Redis ({KINDS})")),
        };
        let key_file = parameters.file("key")?;
        let password = match parameters.password("password_file")? {
            Some(_) if password.is_some() => return Err("it has a password and password_file".into()),
            read => read.or(password),
        };
        let (mut sentinel_user, mut sentinel_password) = (None, None);
        if let Servers::Sentinel { .. } = servers {
            sentinel_password = parameters.password("sentinel_password_file")?;
            if let Some(user) = parameters.take("sentinel_user") {
                let user = decode(user).filter(|user| !user.is_empty());
                sentinel_user = Some(user.ok_or("sentinel_user is empty, or no UTF-8")?);
            }
            if sentinel_user.is_some() && sentinel_password.is_none() {
                return Err("sentinel_user needs its sentinel_password_file".into());
            }
        }
        let spec = Spec {
            servers,
            user,
            password,
            sentinel_user,
            sentinel_password,
            database,
            tls: parameters.tls(tls)?,
            key_file: key_file.ok_or("key is missing (key=/etc/reprise/key; `reprise keygen` makes such a file)")?,
            prefix: parameters.prefix()?,
            deadline: parameters.duration("deadline", 20, 1, 1000)?,
            connect: parameters.duration("connect", 1000, 10, 60_000)?,
            queue: parameters.queue()?,
            service: parameters.take("service").map_or(Ok(String::new()), crate::config::label)?,
        };
        match parameters.0.first() {
            None => Ok(spec),
            Some((name @ "tls", _)) => Err(format!("{name} has no place in it (TLS is rediss://)")),
            Some((name @ "db", _)) => {
                Err(format!("{name} has no place in it (the database is the path: redis://HOST/1)"))
            }
            Some((name, _)) => Err(format!("{name} has no place in it")),
        }
    }
}

/// The first line of a file.
fn read_password(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // Whoever put a pipe there is not waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.take(LONGEST_PASSWORD).read_to_string(&mut text)?;
    let password = text.lines().next().unwrap_or_default();
    match password.is_empty() {
        true => Err(io::Error::other("there is no password in its first line")),
        false => Ok(password.into()),
    }
}

/// Authority, path with its slash, and parameters of what follows the scheme.
fn split(rest: &str) -> (&str, &str, Option<&str>) {
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match rest.split_once('?') {
        Some((path, query)) => (authority, path, Some(query)),
        None => (authority, rest, None),
    }
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned)
}

/// An absolute one.
fn path(text: &str) -> Option<PathBuf> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    (bytes.starts_with(b"/") && !bytes.contains(&0)).then(|| OsString::from_vec(bytes).into())
}

type Credentials<'a> = (Option<String>, Option<String>, &'a str);

/// User, password, and what is left: the hosts.
fn credentials(authority: &str) -> Result<Credentials<'_>, String> {
    let Some((before, hosts)) = authority.rsplit_once('@') else { return Ok((None, None, authority)) };
    let (user, password) =
        before.split_once(':').ok_or("a user has a password, a password a colon before it (redis://:PASSWORD@HOST)")?;
    let text = |what, text: &str| match decode(text) {
        Some(text) if text.contains('\0') => Err(format!("the {what} has a zero byte")),
        Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        None => Err(format!("the {what} is no UTF-8")),
    };
    let (user, password) = (text("user", user)?, text("password", password)?);
    if password.is_none() {
        return Err("the password is empty".into());
    }
    Ok((user, password, hosts))
}

fn hosts(text: &str, port: u16) -> Result<Vec<Host>, String> {
    (1..).zip(text.split(',')).map(|(number, text)| host(number, text, port)).collect()
}

fn host(number: usize, text: &str, default: u16) -> Result<Host, String> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let address = rest.split_once(']').filter(|(name, _)| name.parse::<Ipv6Addr>().is_ok());
            let (name, port) = address.ok_or(format!("host {number} is no IPv6 address in brackets"))?;
            (name, if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or_default()) })
        }
        None if text.matches(':').count() > 1 => {
            return Err(format!("host {number} has several colons (write an IPv6 address in brackets)"))
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if name.is_empty() {
        return Err(format!("host {number} has no name"));
    }
    if !name.bytes().all(allowed) {
        return Err(format!("the name of host {number} has a character that no host has"));
    }
    let number_of = |text: &str| whole(text).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let port = match port {
        Some(port) => number_of(port).ok_or(format!("the port of host {number} is no number from 1 to 65535"))?,
        None => default,
    };
    Ok(Host { name: name.into(), port })
}

/// Digits and nothing else.
fn whole(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn database(text: &str) -> Result<u32, String> {
    match text {
        "" => Ok(0),
        _ => whole(text).and_then(|number| u32::try_from(number).ok()).ok_or("the database is no number".into()),
    }
}

/// Those that nobody has asked for yet.
struct Parameters<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Parameters<'a> {
    fn read(query: &'a str) -> Result<Self, String> {
        let mut all: Vec<(&'static str, &str)> = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let known = PARAMETERS.iter().find(|known| **known == name);
            let harmless = name.len() <= 16 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let known = known.ok_or_else(|| match harmless {
                true => format!("it has no parameter {name} (there are {})", PARAMETERS.join(", ")),
                false => format!("it has an unknown parameter (there are {})", PARAMETERS.join(", ")),
            })?;
            if all.iter().any(|(before, _)| before == known) {
                return Err(format!("{known} is given twice"));
            }
            all.push((known, value));
        }
        Ok(Parameters(all))
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }

    fn file(&mut self, name: &str) -> Result<Option<PathBuf>, String> {
        let file = self.take(name).map(|text| path(text).filter(|path| path.as_os_str().len() > 1));
        file.map(|path| path.ok_or(format!("{name} is no absolute path of a file"))).transpose()
    }

    /// What is in the first line of such a file.
    fn password(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        read_password(&file).map(Some).map_err(|error| format!("{name}={}: {error}", file.display()))
    }

    fn switch(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            None | Some("off") => Ok(false),
            Some("on") => Ok(true),
            Some(_) => Err(format!("{name} is neither on nor off")),
        }
    }

    fn database(&mut self) -> Result<u32, String> {
        let number = self.take("db").map(|text| whole(text).and_then(|number| u32::try_from(number).ok()));
        number.map_or(Ok(0), |number| number.ok_or("db is no number".into()))
    }

    fn tls(&mut self, wanted: bool) -> Result<Option<Tls>, String> {
        let tls = Tls { ca: self.file("ca")?, certificate: self.file("cert")?, key: self.file("cert_key")? };
        match (wanted, &tls) {
            (false, Tls { ca: Some(_), .. }) => Err("ca needs TLS (rediss://, or tls=on)".into()),
            (false, Tls { certificate: Some(_), .. }) => Err("cert needs TLS (rediss://, or tls=on)".into()),
            (false, Tls { key: Some(_), .. }) => Err("cert_key needs TLS (rediss://, or tls=on)".into()),
            (_, Tls { certificate: Some(_), key: None, .. }) => Err("cert needs its cert_key".into()),
            (_, Tls { certificate: None, key: Some(_), .. }) => Err("cert_key needs its cert".into()),
            _ => Ok(wanted.then_some(tls)),
        }
    }

    fn prefix(&mut self) -> Result<String, String> {
        let Some(text) = self.take("prefix") else { return Ok(DEFAULT_PREFIX.into()) };
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'{' && byte != b'}';
        let prefix = decode(text).filter(|prefix| prefix.len() <= LONGEST_PREFIX && prefix.bytes().all(allowed));
        prefix.ok_or(format!("prefix is more than {LONGEST_PREFIX} characters, or has one that is no printable ASCII, a space or a brace"))
    }

    /// In milliseconds.
    fn duration(&mut self, name: &str, default: u64, least: u64, most: u64) -> Result<Duration, String> {
        let Some(text) = self.take(name) else { return Ok(Duration::from_millis(default)) };
        let (digits, unit) = match text.strip_suffix("ms") {
            Some(digits) => (digits, 1),
            None => (text.strip_suffix('s').unwrap_or_default(), 1000),
        };
        let number = whole(digits).and_then(|number| number.checked_mul(unit));
        let number = number.ok_or(format!("{name}={text:?} is no time (write it as 20ms or 1s)"))?;
        if (least..=most).contains(&number) {
            return Ok(Duration::from_millis(number));
        }
        Err(format!("{name}={text} is out of range (use {least}ms to {}s)", most / 1000))
    }

    fn queue(&mut self) -> Result<usize, String> {
        let Some(text) = self.take("queue") else { return Ok(64 << 10) };
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            _ => (text, 0),
        };
        let number = whole(digits).and_then(|number| number.checked_mul(1 << shift));
        let number = number.ok_or(format!("queue={text:?} is no number of sessions (write it as 65536 or 64K)"))?;
        if (16..=16 << 20).contains(&number) {
            return Ok(number as usize);
        }
        Err(format!("queue={text} is out of range (use 16 to 16M)"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(to, "[{}]:{}", self.name, self.port),
            false => write!(to, "{}:{}", self.name, self.port),
        }
    }
}

/// What is no letter, digit or mark that may stand anywhere.
const WORD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'&').add(b'?').add(b'@');

/// The URL for status and log lines: which data of which servers, without the password and how they are used.
impl fmt::Display for Spec {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        let list = |hosts: &[Host]| hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",");
        let user = self.user.as_ref().map(|user| format!("{}@", utf8_percent_encode(user, WORD))).unwrap_or_default();
        let (mut tls, mut database) = (self.tls.is_some(), self.database);
        match &self.servers {
            Servers::One(host) => {
                let scheme = if tls { "rediss" } else { "redis" };
                write!(to, "{scheme}://{user}{host}/{database}")?;
                (tls, database) = (false, 0);
            }
            Servers::Unix(path) => {
                let path = percent_encoding::percent_encode(path.as_os_str().as_bytes(), VALUE);
                write!(to, "redis+unix://{user}{path}")?;
            }
            Servers::Cluster(nodes) => write!(to, "redis+cluster://{user}{}", list(nodes))?,
            Servers::Sentinel { sentinels, service } => {
                let service = utf8_percent_encode(service, WORD);
                write!(to, "redis+sentinel://{user}{}/{service}", list(sentinels))?;
            }
        }
        let prefix = utf8_percent_encode(&self.prefix, VALUE).to_string();
        let parameters = [
            (database != 0).then(|| format!("db={database}")),
            tls.then(|| "tls=on".to_string()),
            (self.prefix != DEFAULT_PREFIX).then(|| format!("prefix={prefix}")),
        ];
        for (number, parameter) in parameters.iter().flatten().enumerate() {
            write!(to, "{}{parameter}", if number == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.debug_struct("Spec")
            .field("servers", &self.servers)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("sentinel_user", &self.sentinel_user)
            .field("sentinel_password", &self.sentinel_password.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("key_file", &self.key_file)
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline)
            .field("connect", &self.connect)
            .field("queue", &self.queue)
            .finish()
    }
}

/// The text of a cache URL, valid or not, with asterisks for what is a password, may be one, or may be a key.
pub fn without_password(url: &str) -> String {
    if url.starts_with("shm:") || url.starts_with("memory:") {
        return url.into();
    }
    let scheme = url.find(|c: char| !c.is_ascii_alphanumeric() && !"+.-".contains(c));
    let scheme = scheme.filter(|at| url[*at..].starts_with(':')).map_or(0, |at| at + 1);
    let (scheme, rest) = url.split_at(scheme + if url[scheme..].starts_with("//") { 2 } else { 0 });
    let (shown, rest) = match rest.rsplit_once('@') {
        Some((before, rest)) => match before.split_once(':') {
            Some((user, _)) if !user.contains(['/', '?']) => (format!("{user}:***@"), rest),
            _ => ("***@".into(), rest),
        },
        None => {
            // What looks no more like a port than like a password that has lost its host.
            let (hosts, ..) = split(rest);
            let is_port = |text: &str| text.len() <= 5 && whole(text).is_some();
            let is_name = |name: &str| name.ends_with(']') || !name.contains(':');
            let is_host = |host: &str| match host.rsplit_once(':') {
                Some((name, port)) => host.ends_with(']') || is_port(port) && is_name(name),
                None => true,
            };
            if !hosts.split(',').all(is_host) {
                let user = hosts.split(':').next().unwrap_or_default();
                return format!("{scheme}{user}:***");
            }
            (String::new(), rest)
        }
    };
    match rest.split_once('?') {
        Some((place, query)) => {
            let query: Vec<String> = query.split('&').map(parameter_without_secret).collect();
            format!("{scheme}{shown}{place}?{}", query.join("&"))
        }
        None => format!("{scheme}{shown}{rest}"),
    }
}

/// Only what is known to hold no secret is shown.
fn parameter_without_secret(parameter: &str) -> String {
    match parameter.split_once('=') {
        None => parameter.into(),
        Some((name @ ("key" | "ca" | "cert" | "cert_key" | "password_file" | "sentinel_password_file"), value))
            if !value.starts_with('/') =>
        {
            format!("{name}=***")
        }
        Some((name, _)) if PARAMETERS.contains(&name) => parameter.into(),
        Some((name, _)) => format!("{name}=***"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(url: &str) -> Spec {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.into(), port }
    }

    #[test]
    fn a_password_may_be_in_a_file() {
        let path = std::env::temp_dir().join(format!("reprise-password-{}", std::process::id()));
        std::fs::write(&path, "s@cret/\nmore\n").unwrap();
        let url = |before: &str| format!("redis://{before}h?key=/k&password_file={}", path.display()).parse::<Spec>();
        assert_eq!(url("").unwrap().password.as_deref(), Some("s@cret/"));
        assert!(url(":other@").unwrap_err().contains("password_file"));
        std::fs::write(&path, "").unwrap();
        assert!(url("").unwrap_err().contains("first line"));
        std::fs::remove_file(&path).unwrap();
        assert!(url("").unwrap_err().contains("password_file="));
    }

    #[test]
    fn the_defaults() {
        assert_eq!(
            spec("redis://10.0.0.5?key=/etc/reprise/key"),
            Spec {
                servers: Servers::One(host("10.0.0.5", 6379)),
                user: None,
                password: None,
                sentinel_user: None,
                sentinel_password: None,
                database: 0,
                tls: None,
                key_file: "/etc/reprise/key".into(),
                prefix: "reprise:".into(),
                deadline: Duration::from_millis(20),
                connect: Duration::from_secs(1),
                queue: 65536,
                service: String::new(),
            }
        );
        assert_eq!(spec("redis://h?key=/k&service=a.b").service, "a.b");
        assert!("redis://h?key=/k&service=".parse::<Spec>().unwrap_err().contains("service is no label"));
    }

    #[test]
    fn all_that_can_be_said() {
        let said = spec(
            "rediss://me:p%40ss%2Fw%25rd@redis.example:6380/3?key=/k%20y&prefix=web%3Fa/&deadline=5ms&connect=2s&queue=1K\
             &ca=/ca.pem&cert=/c.pem&cert_key=/c.key",
        );
        assert_eq!(said.servers, Servers::One(host("redis.example", 6380)));
        assert_eq!((said.user.as_deref(), said.password.as_deref()), (Some("me"), Some("p@ss/w%rd")));
        assert_eq!((said.database, said.key_file.to_str(), said.prefix.as_str()), (3, Some("/k y"), "web?a/"));
        assert_eq!((said.deadline, said.connect), (Duration::from_millis(5), Duration::from_secs(2)));
        assert_eq!(said.queue, 1024);
        let file = |path: &str| Some(path.into());
        assert_eq!(said.tls, Some(Tls { ca: file("/ca.pem"), certificate: file("/c.pem"), key: file("/c.key") }));
        assert_eq!(spec("redis://:a@b:c@h?key=/k").password.as_deref(), Some("a@b:c"), "what need not be escaped");
    }

    #[test]
    fn every_kind_of_servers() {
        assert_eq!(spec("redis://[2001:db8::1]:1/?key=/k").servers, Servers::One(host("2001:db8::1", 1)));
        assert_eq!(spec("redis://[::1]?key=/k").servers, Servers::One(host("::1", 6379)));
        let unix = spec("redis+unix:///run/redis%401.sock?db=1&key=/k");
        assert_eq!((unix.servers, unix.database), (Servers::Unix("/run/redis@1.sock".into()), 1));
        assert_eq!(spec("redis+unix://:pw@/r?key=/k").password.as_deref(), Some("pw"));
        let cluster = spec("redis+cluster://:pw@a,b:7,[::1]/0?key=/k&tls=on");
        assert_eq!(cluster.servers, Servers::Cluster(vec![host("a", 6379), host("b", 7), host("::1", 6379)]));
        assert_eq!(cluster.tls, Some(Tls::default()));
        let sentinel = spec("redis+sentinel://u:pw@a,b:7/main?key=/k&db=2&tls=off");
        let sentinels = vec![host("a", 26379), host("b", 7)];
        assert_eq!(sentinel.servers, Servers::Sentinel { sentinels, service: "main".into() });
        assert_eq!((sentinel.database, sentinel.tls), (2, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, says) in [
            ("redis:host", "no URL of a Redis"),
            ("redis+http://h?key=/k", "no kind of Redis"),
            ("redis://?key=/k", "host 1 has no name"),
            ("redis://h:?key=/k", "port of host 1"),
            ("redis://h:0?key=/k", "port of host 1"),
            ("redis://h:+1?key=/k", "port of host 1"),
            ("redis://h:65536?key=/k", "port of host 1"),
            ("redis://[::1]9?key=/k", "port of host 1"),
            ("redis://[::g]?key=/k", "host 1 is no IPv6"),
            ("redis://::1?key=/k", "brackets"),
            ("redis://h h?key=/k", "host 1 has a character"),
            ("redis://a,b?key=/k", "several hosts"),
            ("redis+cluster://a,?key=/k", "host 2 has no name"),
            ("redis+cluster://a/1?key=/k", "no database but 0"),
            ("redis+cluster://a?db=0&key=/k", "db has no place"),
            ("redis+sentinel://a?key=/k", "service"),
            ("redis+sentinel://a/?key=/k", "service"),
            ("redis+sentinel://a/b/0?key=/k", "service"),
            ("redis+unix://h/run/r?key=/k", "three slashes"),
            ("redis+unix://?key=/k", "socket"),
            ("redis+unix:///?key=/k", "socket"),
            ("redis://h/x?key=/k", "database"),
            ("redis://h/4294967296?key=/k", "database"),
            ("redis://h?db=1&key=/k", "the database is the path"),
            ("redis+unix:///r?db=-1&key=/k", "db is no number"),
            ("redis://pw@h?key=/k", "colon"),
            ("redis://u:@h?key=/k", "password is empty"),
            ("redis://:%ff@h?key=/k", "password is no UTF-8"),
            ("redis://:%00@h?key=/k", "zero byte"),
            ("redis://:a/b@h?key=/k", "%2F"),
            ("redis://h", "key is missing"),
            ("redis://h?key=", "key is no absolute path"),
            ("redis://h?key=k", "key is no absolute path"),
            ("redis://h?key=/k&key=/k", "key is given twice"),
            ("redis://h?key=/k&ttl=3", "no parameter ttl"),
            ("redis://h?key=/k&t\ntl=3", "an unknown parameter"),
            ("redis://h?0123456789abcdef0123456789abcdef", "an unknown parameter"),
            ("redis://h?key=/k&prefix=a{b", "prefix"),
            ("redis://h?key=/k&prefix=a%20b", "prefix"),
            ("redis://h?key=/k&prefix=%c3%a4", "prefix"),
            ("redis://h?key=/k&deadline=20", "deadline=\"20\" is no time"),
            ("redis://h?key=/k&deadline=0ms", "deadline=0ms is out of range"),
            ("redis://h?key=/k&deadline=2s", "deadline=2s is out of range"),
            ("redis://h?key=/k&connect=9ms", "connect=9ms is out of range"),
            ("redis://h?key=/k&connect=61s", "connect=61s is out of range"),
            ("redis://h?key=/k&connect=99999999999999999999s", "is no time"),
            ("redis://h?key=/k&queue=15", "queue=15 is out of range"),
            ("redis://h?key=/k&queue=17M", "queue=17M is out of range"),
            ("redis://h?key=/k&queue=many", "queue=\"many\" is no number"),
            ("redis://h?key=/k&tls=on", "TLS is rediss://"),
            ("redis+cluster://h?key=/k&tls=1", "tls is neither on nor off"),
            ("redis+unix:///r?key=/k&tls=on", "tls has no place"),
            ("redis://h?key=/k&sentinel_user=me", "sentinel_user has no place"),
            ("redis+sentinel://h/main?key=/k&sentinel_user=me", "needs its sentinel_password_file"),
            ("redis://h?key=/k&ca=/c", "ca needs TLS"),
            ("rediss://h?key=/k&ca=c", "ca is no absolute path"),
            ("rediss://h?key=/k&cert=/c", "cert needs its cert_key"),
            ("rediss://h?key=/k&cert_key=/c", "cert_key needs its cert"),
        ] {
            let error = url.parse::<Spec>().expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains(char::is_control), "{url}: one line: {error}");
        }
        let long = format!("redis://h?key=/k&prefix={}", "x".repeat(65));
        assert!(long.parse::<Spec>().unwrap_err().contains("prefix"));
    }

    #[test]
    fn shown_is_what_tells_caches_apart() {
        for (url, shown) in [
            ("redis://host?key=/k", "redis://host:6379/0"),
            ("redis://u%2f:pw@host/2?key=/k&deadline=1ms", "redis://u%2F@host:6379/2"),
            ("rediss://[::1]/1?key=/k&prefix=a%26b", "rediss://[::1]:6379/1?prefix=a%26b"),
            ("redis+unix:///run/r%3fs?key=/k&db=1&prefix=x:", "redis+unix:///run/r%3Fs?db=1&prefix=x:"),
            ("redis+cluster://a,b/?key=/k&tls=on", "redis+cluster://a:6379,b:6379?tls=on"),
            ("redis+sentinel://a/main?key=/k", "redis+sentinel://a:26379/main"),
        ] {
            assert_eq!(spec(url).to_string(), shown);
            let user = spec(url).user.is_some();
            assert!(
                user || format!("{shown}{}key=/k", if shown.contains('?') { '&' } else { '?' }).parse::<Spec>().is_ok()
            );
        }
    }

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        for (url, shown) in [
            ("redis://h:6379/0?key=/k&prefix=a", "redis://h:6379/0?key=/k&prefix=a"),
            ("redis://u:pw@h:6379/0?key=/k", "redis://u:***@h:6379/0?key=/k"),
            ("redis://:p@w@h", "redis://:***@h"),
            ("redis://pw@h", "redis://***@h"),
            ("redis://u:p/w?x#y@h/0", "redis://u:***@h/0"),
            ("redis://p/w:x@h/0", "redis://***@h/0"),
            ("redis:u:pw@h", "redis:u:***@h"),
            ("u:pw@h", "u:***@h"),
            (" redis://u:p://w@h", " redis:***@h"),
            ("redis:/u:pw@h", "redis:***@h"),
            ("redis://:pw", "redis://:***"),
            ("redis://u:p,w/x?y", "redis://u:***"),
            ("redis://:123456", "redis://:***"),
            ("redis://:pw:6379/0", "redis://:***"),
            ("redis://u:pw:6379/0", "redis://u:***"),
            ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
            ("redis+unix:///run/r?pass=pw&key=0123", "redis+unix:///run/r?pass=***&key=***"),
            ("redis+cluster://a:1,[::1],[::2]:3", "redis+cluster://a:1,[::1],[::2]:3"),
            ("shm:/srv/a@b?size=1", "shm:/srv/a@b?size=1"),
            ("", ""),
        ] {
            assert_eq!(without_password(url), shown, "{url}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Not even of a password that makes another URL of it.
        #[test]
        fn a_password_is_never_shown(
            scheme in "redis(s|\\+unix|\\+cluster|\\+sentinel|)", before in "[a-z0-9/:?@%]{0,3}", after in "[a-z0-9/:?@%&=,#\\[\\]{}.+ é\\n]{0,12}",
            tail in "(h|h:1|h,i|)(/0|/main|/x|)(\\?key=/k|\\?deadline=x|\\?x|)",
        ) {
            let url = format!("{scheme}://user:{before}secretpw{after}@{tail}");
            let shown = without_password(&url);
            prop_assert!(!shown.contains("secretpw") && (after.is_empty() || !shown.contains(&format!("{after}@"))), "{shown}");
            match url.parse::<Spec>() {
                Ok(spec) => {
                    let shown = format!("{spec} {spec:?}");
                    prop_assert!(!shown.contains("secretpw"), "{shown}");
                }
                Err(error) => prop_assert!(!error.contains("secretpw"), "{url:?}: {error}"),
            }
        }

        #[test]
        fn any_text_is_read_and_shown_without_panic(text in "(redis(s|\\+unix|\\+cluster|\\+sentinel)?:?/?/?)?\\PC{0,40}") {
            let _ = text.parse::<Spec>();
            let _ = without_password(&text);
        }
    }
}
