//! A connection to one server. Whatever is done on it, connecting, a TLS handshake, a request with all of its answers, ends
//! at one moment, also where the other side sends a byte now and then.

use nix::sys::stat::fstat;
use redis::{Cmd, Parser, RedisError, RedisResult, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The answers to some commands: each may have been refused by itself.
pub type Answers = Vec<RedisResult<Value>>;

pub struct Wire {
    stream: Stream,
    parser: Parser,
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A socket that waits until then, and no longer.
///
/// Programs close descriptors that they do not know, also in children that are forked off, and give their numbers to files
/// of their own. So the inode tells whether the descriptor is still this socket: what is not is neither used nor closed.
struct Timed {
    /// `None` once it is somebody else's.
    socket: Option<Socket>,
    inode: Option<u64>,
    until: Instant,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How long from now until `then`; `None` if that is no time in which anything could be waited for.
pub fn remaining(then: Instant) -> Option<Duration> {
    let left = then.saturating_duration_since(Instant::now());
    (left >= Duration::from_micros(10)).then_some(left)
}

pub fn late() -> RedisError {
    io::Error::from(ErrorKind::TimedOut).into()
}

impl Socket {
    fn inode(&self) -> Option<u64> {
        let found = match self {
            Socket::Tcp(tcp) => fstat(tcp),
            Socket::Unix(unix) => fstat(unix),
        };
        found.ok().map(|found| found.st_ino)
    }
}

impl Timed {
    fn new(socket: Socket, until: Instant) -> Timed {
        Timed { inode: socket.inode(), socket: Some(socket), until }
    }

    /// Lets go of a descriptor that is not this socket any more.
    fn check(&mut self) -> io::Result<()> {
        if self.socket.as_ref().is_some_and(|socket| self.inode.is_some() && socket.inode() == self.inode) {
            return Ok(());
        }
        std::mem::forget(self.socket.take());
        Err(io::Error::new(ErrorKind::NotConnected, "the program closed the connection"))
    }

    fn wait<T>(&mut self, mut step: impl FnMut(&mut Socket) -> io::Result<T>, reads: bool) -> io::Result<T> {
        loop {
            let left = Some(remaining(self.until).ok_or(ErrorKind::TimedOut)?);
            let socket = self.socket.as_mut().ok_or(ErrorKind::NotConnected)?;
            match (&*socket, reads) {
                (Socket::Tcp(tcp), true) => tcp.set_read_timeout(left)?,
                (Socket::Tcp(tcp), false) => tcp.set_write_timeout(left)?,
                (Socket::Unix(unix), true) => unix.set_read_timeout(left)?,
                (Socket::Unix(unix), false) => unix.set_write_timeout(left)?,
            }
            match step(socket) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                done => return done,
            }
        }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let _ = self.check();
    }
}

impl Read for Timed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = |socket: &mut Socket| match socket {
            Socket::Tcp(tcp) => tcp.read(to),
            Socket::Unix(unix) => unix.read(to),
        };
        self.wait(read, true)
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let write = |socket: &mut Socket| match socket {
            Socket::Tcp(tcp) => tcp.write(from),
            Socket::Unix(unix) => unix.write(from),
        };
        self.wait(write, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(plain) => plain.read(to),
            Stream::Tls(tls) => tls.read(to),
        }
    }
}

impl Wire {
    pub fn unix(path: &Path, until: Instant) -> RedisResult<Wire> {
        Ok(Wire::plain(Socket::Unix(UnixStream::connect(path)?), until))
    }

    /// With TLS where there is a configuration for it.
    pub fn tcp(name: &str, port: u16, tls: Option<&Arc<ClientConfig>>, until: Instant) -> RedisResult<Wire> {
        let mut failed = late();
        for address in (name, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, remaining(until).ok_or_else(late)?) {
                Ok(tcp) => {
                    tcp.set_nodelay(true)?;
                    let Some(config) = tls else { return Ok(Wire::plain(Socket::Tcp(tcp), until)) };
                    let name = ServerName::try_from(name.to_owned())
                        .map_err(|_| io::Error::new(ErrorKind::InvalidInput, "no name for a certificate"))?;
                    let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                    let stream = StreamOwned::new(tls, Timed::new(Socket::Tcp(tcp), until));
                    return Ok(Wire { stream: Stream::Tls(Box::new(stream)), parser: Parser::new() });
                }
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    fn plain(socket: Socket, until: Instant) -> Wire {
        Wire { stream: Stream::Plain(Timed::new(socket, until)), parser: Parser::new() }
    }

    /// No wait on it ends later than then, until another moment is set.
    pub fn set_end(&mut self, until: Instant) {
        match &mut self.stream {
            Stream::Plain(plain) => plain.until = until,
            Stream::Tls(tls) => tls.sock.until = until,
        }
    }

    /// Sends these commands at once and waits for all answers. After an error the connection is of no more use.
    pub fn send(&mut self, commands: &[Cmd]) -> RedisResult<Answers> {
        match &mut self.stream {
            Stream::Plain(plain) => plain.check()?,
            Stream::Tls(tls) => tls.sock.check()?,
        }
        let packed: Vec<u8> = commands.iter().flat_map(Cmd::get_packed_command).collect();
        match &mut self.stream {
            Stream::Plain(plain) => plain.write_all(&packed)?,
            Stream::Tls(tls) => tls.write_all(&packed).and_then(|()| tls.flush())?,
        }
        commands.iter().map(|_| Ok(self.parser.parse_value(&mut self.stream)?.extract_error())).collect()
    }
}
