//! What Reprise has to say, and the files it keeps, never end the program: a stderr that nobody reads, one that has become
//! something else, a full file system.

mod common;

use common::{libreprise, openssl, program, run, text, Sandbox};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// A command under the preload whose first SSL_CTX makes a complaint.
fn complaining(command: &str) -> Command {
    let mut complaining = Command::new(command);
    complaining.env("LD_PRELOAD", libreprise()).env("REPRISE_SEMANTICS", "nonsense");
    complaining
}

const SAYS: &str = "reprise: REPRISE_SEMANTICS=\"nonsense\" is unknown";

#[test]
fn stderr_that_nobody_reads() {
    let openssl = openssl();
    let said = run(complaining(&openssl.to_string_lossy()).arg("ciphers"));
    assert!(text(&said.stderr).starts_with(SAYS), "{said:?}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status =
        complaining(&openssl.to_string_lossy()).arg("ciphers").stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert!(status.success(), "signal {:?}", status.signal());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(ours);
    let socket = std::os::fd::OwnedFd::from(theirs);
    let status =
        complaining(&openssl.to_string_lossy()).arg("ciphers").stdout(Stdio::null()).stderr(socket).status().unwrap();
    assert!(status.success(), "signal {:?}", status.signal());
}

/// A pipe that is full is not waited for.
#[test]
fn stderr_that_is_full() {
    let sandbox = Sandbox::new();
    let script = "import os, sys, ssl\n\
                  os.set_blocking(2, False)\n\
                  try:\n while True: os.write(2, b'x' * 4096)\n\
                  except BlockingIOError: pass\n\
                  os.set_blocking(2, True)\n\
                  ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
                  open(sys.argv[1], 'w').write('done')";
    let (reader, writer) = std::io::pipe().unwrap();
    let done = sandbox.file("done");
    let mut child = complaining("/usr/bin/python3").args(["-c", script]).arg(&done).stderr(writer).spawn().unwrap();
    for _ in 0..600 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let _ = child.kill();
    child.wait().unwrap();
    drop(reader);
    assert_eq!(fs::read_to_string(done).unwrap(), "done");
}

#[test]
fn stderr_that_became_something_else() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("data");
    let script = "import os, sys, ssl\n\
                  if sys.argv[2] == 'file': os.dup2(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 2)\n\
                  if sys.argv[2] == 'closed': os.close(2); os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n\
                  ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)";
    for (how, expected) in [("stderr", true), ("file", false), ("closed", false)] {
        let said = run(complaining("/usr/bin/python3").args(["-c", script]).arg(&file).arg(how));
        assert!(said.status.success(), "{how}: {said:?}");
        assert_eq!(text(&said.stderr).starts_with(SAYS), expected, "{how}: {said:?}");
        if how != "stderr" {
            assert_eq!(fs::read_to_string(&file).unwrap(), "", "{how}");
        }
    }
}

#[test]
fn counters_on_a_full_file_system() {
    let sandbox = Sandbox::new();
    let folder = sandbox.file("full");
    fs::create_dir(&folder).unwrap();
    let script = "mount -t tmpfs -o size=16k none $FULL || exit 77\n\
                  cat /dev/zero > $FULL/data 2>/dev/null\n\
                  export LD_PRELOAD=$LIBRARY REPRISE_STATS=$FULL/stats\n\
                  cat /dev/null || exit 1\n\
                  openssl ciphers > /dev/null";
    let mut unshare = Command::new(program("unshare", "util-linux"));
    unshare.args(["-m", "sh", "-c", script]).env("FULL", &folder).env("LIBRARY", libreprise());
    let said = run(&mut unshare);
    if said.status.code() == Some(77) || text(&said.stderr).contains("unshare failed") {
        eprintln!("skipped: this user may not mount");
        return;
    }
    assert!(said.status.success(), "{said:?}");
    assert!(text(&said.stderr).contains("No space left on device"), "{said:?}");
}

/// The limit on the size of files ends no program whose stderr is a file.
#[test]
fn stderr_that_may_not_grow() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("stderr");
    let script = "ulimit -f 0; export LD_PRELOAD=$LIBRARY REPRISE_SEMANTICS=nonsense; exec openssl ciphers 2> $FILE";
    let said = run(Command::new("sh").args(["-c", script]).env("FILE", &file).env("LIBRARY", libreprise()));
    assert!(said.status.success(), "{said:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
}

/// A limit on the size of files would end the program with SIGXFSZ.
#[test]
fn counters_beyond_the_limit_for_files() {
    let sandbox = Sandbox::new();
    let script = "ulimit -f 0; export LD_PRELOAD=$LIBRARY REPRISE_STATS=$STATS; exec openssl ciphers";
    let mut sh = Command::new("sh");
    sh.args(["-c", script]).env("STATS", sandbox.file("stats")).env("LIBRARY", libreprise());
    let said = run(&mut sh);
    assert!(said.status.success(), "{said:?}");
    assert!(text(&said.stderr).contains("nothing is counted there"), "{said:?}");
}
