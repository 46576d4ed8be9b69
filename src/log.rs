//! What Reprise has to say to a person: rare, one line, on stderr. `REPRISE_LOG=off` silences it.
//!
//! A line goes only to what was stderr when the library was loaded: descriptor 2 may be a client's connection by now, or a
//! file of the program's. Where it is something else, or is not there, the line goes to the system's log. Writing it
//! raises no signal, and waits for nobody.

use crate::cancel;
use crate::config::{self, Log};
use libc::c_int;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::unix::net::UnixDatagram;
use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, Release},
};

const STDERR: c_int = 2;

/// Device and inode of what was stderr; an inode of 0 if there was none.
static WHERE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Notes what stderr is.
pub fn load() {
    if let Some(found) = status() {
        WHERE[0].store(found.st_dev, Relaxed);
        WHERE[1].store(found.st_ino, Release);
    }
}

/// What descriptor 2 is now.
fn status() -> Option<libc::stat> {
    // SAFETY: a struct of our own, of integers.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        (libc::fstat(STDERR, &mut found) == 0).then_some(found)
    }
}

/// Says it, unless the same was said before. Whether it could be written concerns nobody.
pub fn once(message: fmt::Arguments<'_>) {
    static SAID: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let line = format!("reprise: {message}\n");
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&line).max(1);
    for place in &SAID {
        match place.compare_exchange(0, hash, Relaxed, Relaxed) {
            Ok(_) if config::get().log == Log::Error => return say(&line),
            Err(said) if said != hash => continue,
            _ => return,
        }
    }
}

/// From now on a panic of ours, which ends at the border, is said like everything else.
pub fn take_panics() {
    // Nobody waits for the thread that does it: a forked child may not have it.
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if !TAKEN.swap(true, Relaxed) {
        std::panic::set_hook(Box::new(|panic| {
            once(format_args!("a defect, please report it: {}", panic.to_string().replace('\n', " ")));
        }));
    }
}

fn say(line: &str) {
    let _off = cancel::off();
    let known = (WHERE[0].load(Relaxed), WHERE[1].load(Relaxed));
    match status() {
        Some(found) if (found.st_dev, found.st_ino) == known => {
            if is_writable() {
                write(line.as_bytes(), found.st_mode & libc::S_IFMT == libc::S_IFSOCK);
            }
        }
        _ => tell_system(line),
    }
}

/// Whether it would take a line at once.
fn is_writable() -> bool {
    let mut asked = libc::pollfd { fd: STDERR, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one struct of our own.
    unsafe { libc::poll(&mut asked, 1, 0) == 1 && asked.revents & libc::POLLOUT != 0 }
}

fn write(line: &[u8], is_socket: bool) {
    // SAFETY: the line has as many bytes as is said; the sets of signals are our own. The signals that a write can raise are
    // blocked in this thread only, and taken back if they came from here.
    unsafe {
        if is_socket {
            libc::send(STDERR, line.as_ptr().cast(), line.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
            return;
        }
        let [mut raised, mut before, mut pending]: [libc::sigset_t; 3] = std::mem::zeroed();
        libc::sigemptyset(&mut raised);
        libc::sigpending(&mut pending);
        // Nobody reads the pipe; the file may not grow (RLIMIT_FSIZE). One that the program waits for stays pending.
        for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
            if libc::sigismember(&pending, signal) != 1 {
                libc::sigaddset(&mut raised, signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raised, &mut before);
        let written = libc::write(STDERR, line.as_ptr().cast(), line.len());
        let error = (written == -1).then(|| std::io::Error::last_os_error().raw_os_error()).flatten();
        if matches!(error, Some(libc::EPIPE | libc::EFBIG)) {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&raised, null_mut(), &now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut());
    }
}

/// One datagram to syslogd or journald, where there is one.
fn tell_system(line: &str) {
    const DAEMON_ERROR: u32 = 3 << 3 | 3; // LOG_DAEMON, LOG_ERR
    let line = line.trim_start_matches("reprise: ").trim_end();
    let text = format!("<{DAEMON_ERROR}>reprise[{}]: {line}", std::process::id());
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.set_nonblocking(true).and_then(|()| socket.send_to(text.as_bytes(), "/dev/log"));
    }
}
