//! Every way in which Reprise comes into a program, with each libssl: linked before and after it, preloaded, loaded late,
//! and into programs that have two libssl or three. Either it takes an SSL_CTX over, whole, or it leaves it alone, whole,
//! and says so. c_tests/tools/ways_in.c resumes in both cases and checks that every function does what it does on stock.
//!
//! Tried are the system's libssl and those that tools/libssl.sh has built; REPRISE_TEST_LIBSSL=DIR tries that one alone.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{compiler, libreprise, repository, run, succeed, text, Sandbox, SharedCache, Stats};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
const NOT_THERE: &str = "left: Reprise is not there";
const LINK_BEFORE: &str = "link -lreprise before -lssl";

/// A libssl to build with and run on: the system's, or a folder as tools/libssl.sh makes it.
#[derive(Clone, Debug, PartialEq)]
struct Libssl {
    folder: Option<PathBuf>,
}

impl Libssl {
    fn of(folder: impl Into<PathBuf>) -> Libssl {
        Libssl { folder: Some(folder.into()) }
    }

    /// One that tools/libssl.sh has built before.
    fn built(version: &str) -> Option<Libssl> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let folder = cache.join("reprise/libssl").join(version);
        let found = folder.join("bin/openssl").exists();
        if !found {
            eprintln!("not tried: libssl {version} (tools/libssl.sh {version})");
        }
        found.then(|| Libssl::of(folder))
    }

    fn all() -> Vec<Libssl> {
        if let Some(folder) = std::env::var_os("REPRISE_TEST_LIBSSL") {
            return vec![Libssl::of(folder)];
        }
        let built = ["1.1.1", "3.0", "3.5", "4.0"].into_iter().filter_map(Libssl::built);
        [Libssl { folder: None }].into_iter().chain(built).collect()
    }

    fn headers(&self) -> Vec<String> {
        self.folder.iter().map(|folder| format!("-I{}/include", folder.display())).collect()
    }

    fn path(&self) -> Vec<String> {
        let folders = self.folder.iter().map(|folder| folder.display());
        folders.flat_map(|folder| [format!("-L{folder}/lib"), format!("-Wl,-rpath,{folder}/lib")]).collect()
    }

    /// `openssl version`, as OpenSSL_version says it.
    fn name(&self) -> String {
        let mut openssl = match &self.folder {
            Some(folder) => Command::new(folder.join("bin/openssl")),
            None => Command::new(common::openssl()),
        };
        if let Some(folder) = &self.folder {
            openssl.env("LD_LIBRARY_PATH", folder.join("lib"));
        }
        let said = succeed(openssl.arg("version"));
        words(said.split(" (").next().unwrap())
    }
}

/// A folder with the programs of one test.
struct Workshop {
    sandbox: Sandbox,
}

impl Workshop {
    fn new() -> Workshop {
        let sandbox = Sandbox::new();
        for name in ["libreprise.so", "libreprise.so.0"] {
            symlink(libreprise(), sandbox.file(name)).unwrap();
        }
        Workshop { sandbox }
    }

    fn library(&self) -> String {
        self.sandbox.file("libreprise.so").display().to_string()
    }

    /// Compiles ways_in.c as `name`.
    fn build(&self, name: &str, headers: &Libssl, args: &[&str]) -> PathBuf {
        let out = self.sandbox.file(name);
        let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        cc.args(["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]);
        cc.arg(format!("-I{}", repository("include").display())).args(headers.headers());
        cc.arg(repository("c_tests/tools/ways_in.c")).arg("-o").arg(&out);
        let here = self.sandbox.path().display();
        cc.args([format!("-L{here}"), format!("-Wl,-rpath,{here}")]).args(args);
        succeed(cc.args(["-lpthread", "-ldl"]));
        out
    }

    /// The same with `libssl`; `args` come first.
    fn program(&self, name: &str, libssl: &Libssl, args: &[&str]) -> PathBuf {
        let path = libssl.path();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        self.build(name, libssl, &[args, &path, &["-lssl", "-lcrypto"]].concat())
    }

    fn plugin(&self, name: &str, libssl: &Libssl) -> String {
        self.program(name, libssl, &["-DPLUGIN", "-shared", "-fPIC"]).display().to_string()
    }

    fn ways(&self, program: &Path, version: &str, steps: &[&str]) -> Command {
        let (cert, key) = self.sandbox.certificate();
        let mut command = Command::new(program);
        command.arg(version).arg(cert).arg(key).args(steps);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REPRISE_")) {
            command.env_remove(name);
        }
        command.env_remove("LD_PRELOAD").env_remove("LD_LIBRARY_PATH");
        command
    }
}

/// With one space between them: 1.1.1 writes its date with two.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs it; what each step saw: the libssl and who keeps its sessions. Every one resumed as it should. And stderr.
#[track_caller]
fn keepers(command: &mut Command) -> (Vec<(String, String)>, String) {
    let output = run(command);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    let step = |line: &str| {
        let line = line.strip_suffix(": full=1 resumed=20").unwrap_or_else(|| panic!("{command:?}: {line}"));
        let (libssl, keeper) = line.split_once(": ").unwrap();
        (words(libssl), keeper.to_owned())
    };
    (out.lines().map(step).collect(), err)
}

/// All steps were taken over, and nothing was said.
#[track_caller]
fn taken(command: &mut Command, libssl: &Libssl) {
    let (seen, said) = keepers(command);
    assert!(!seen.is_empty());
    for (name, keeper) in seen {
        assert_eq!((name, keeper.as_str()), (libssl.name(), "taken"), "{command:?}");
    }
    assert_eq!(said, "", "{command:?}");
}

const LINKS: [&[&str]; 5] = [&[], &["-Wl,-z,now"], &["-no-pie"], &["-fPIE", "-pie"], &["-Wl,--as-needed"]];

/// Also of a program that includes reprise.h and calls the functions declared there.
#[test]
fn linked_before_libssl() {
    for libssl in Libssl::all() {
        let workshop = Workshop::new();
        for (number, args) in LINKS.iter().enumerate() {
            for more in [&["-lreprise"][..], &["-DWITH_HEADER", "-lreprise"]] {
                let program = workshop.program(&number.to_string(), &libssl, &[args, more].concat());
                for version in VERSIONS {
                    taken(&mut workshop.ways(&program, version, &["own"]), &libssl);
                }
                taken(workshop.ways(&program, "-tls1_3", &["own"]).env("LD_BIND_NOW", "1"), &libssl);
            }
        }
    }
}

#[test]
fn preloaded() {
    for libssl in Libssl::all() {
        let workshop = Workshop::new();
        for (number, args) in LINKS.iter().enumerate() {
            let program = workshop.program(&number.to_string(), &libssl, args);
            for (version, bind_now) in [("-tls1_2", ""), ("-tls1_3", ""), ("-tls1_3", "1")] {
                let mut command = workshop.ways(&program, version, &["own", "own"]);
                taken(command.env("LD_PRELOAD", libreprise()).env("LD_BIND_NOW", bind_now), &libssl);
            }
        }
    }
}

/// Libssl then answers first, and nothing that Reprise does could be whole. Its own functions say what to do, and so
/// does `reprise doctor`.
#[test]
fn linked_after_libssl() {
    for libssl in Libssl::all() {
        let workshop = Workshop::new();
        let path = libssl.path();
        for header in [&[][..], &["-DWITH_HEADER"]] {
            let mut args: Vec<&str> = [header, &["-Wl,--no-as-needed"]].concat();
            args.extend(path.iter().map(String::as_str));
            let program = workshop.build("after", &libssl, &[&args[..], &["-lssl", "-lreprise", "-lcrypto"]].concat());
            for version in VERSIONS {
                let (seen, said) = keepers(&mut workshop.ways(&program, version, &["own"]));
                assert!(seen.len() == 1 && seen[0].1.contains(LINK_BEFORE), "{seen:?}");
                assert_eq!(said, "");
            }
            let output = run(Command::new(common::command()).arg("doctor").arg(&program));
            assert!(text(&output.stdout).contains(LINK_BEFORE), "{}", text(&output.stdout));
            assert_eq!(output.status.code(), Some(1));
            // What the doctor says besides.
            let mut command = workshop.ways(&program, "-tls1_3", &["own"]);
            taken(command.env("LD_PRELOAD", libreprise()), &libssl);
        }
        let program = workshop.program("before", &libssl, &["-lreprise"]);
        let output = run(Command::new(common::command()).arg("doctor").arg(&program));
        assert!(output.status.success() && text(&output.stdout).contains("ahead"), "{}", text(&output.stdout));
        // Nothing of it is used: the linker leaves it out.
        let mut args = vec!["-Wl,--as-needed"];
        args.extend(path.iter().map(String::as_str));
        let program = workshop.build("dropped", &libssl, &[&args[..], &["-lssl", "-lreprise", "-lcrypto"]].concat());
        let (seen, _) = keepers(&mut workshop.ways(&program, "-tls1_3", &["own"]));
        assert_eq!(seen[0].1, NOT_THERE);
    }
}

/// Without touching the system's file: in a mount namespace that has another /etc.
#[test]
fn etc_ld_so_preload() {
    let Some(namespace) = mount_namespace() else { return };
    for libssl in Libssl::all() {
        let workshop = Workshop::new();
        let etc = workshop.sandbox.file("etc");
        fs::create_dir(&etc).unwrap();
        fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
        fs::write(etc.join("ld.so.preload"), format!("{}\n", libreprise().display())).unwrap();
        let program = workshop.program("program", &libssl, &[]);
        for version in VERSIONS {
            let inner = workshop.ways(&program, version, &["own"]);
            let mut command = Command::new("unshare");
            command.args(namespace).arg(&etc).arg(inner.get_program()).args(inner.get_args());
            command.env_remove("LD_PRELOAD");
            taken(&mut command, &libssl);
        }
    }
    assert!(!fs::read_to_string("/etc/ld.so.preload").unwrap_or_default().contains("target"));
}

/// Arguments for `unshare` that run a command where its first argument is /etc.
fn mount_namespace() -> Option<&'static [&'static str]> {
    const NAMESPACE: &[&str] = &["--mount", "sh", "-c", "mount --bind \"$1\" /etc && shift && exec \"$@\"", "sh"];
    let allowed = run(Command::new("unshare").args(NAMESPACE).args(["/etc", "true"])).status.success();
    if !allowed {
        eprintln!("skipped: this user may make no mount namespace");
    }
    allowed.then_some(NAMESPACE)
}

/// dlopen of libreprise.so by a running program. Before libssl comes: as if it were preloaded. After: what is bound
/// stays bound, and so nothing at all is taken over, neither of those that were there nor of those that come.
#[test]
fn loaded_late() {
    let workshop = Workshop::new();
    let system = Libssl { folder: None };
    let without = workshop.build("without", &system, &["-DNO_OWN"]);
    let global = format!("global={}", workshop.library());
    for libssl in Libssl::all() {
        let plugins = ["a.so", "b.so"].map(|name| workshop.plugin(name, &libssl));
        let [local, local_too] = plugins.each_ref().map(|plugin| format!("local={plugin}"));
        let lazy = format!("lazy={}", plugins[0]);
        let program = workshop.program("program", &libssl, &[]);
        for version in VERSIONS {
            for bind_now in ["", "1"] {
                let ways = |program: &Path, steps: &[&str]| {
                    let mut command = workshop.ways(program, version, steps);
                    command.env("LD_BIND_NOW", bind_now);
                    command
                };
                taken(&mut ways(&without, &[&global, &local, &local_too, "plugin=1", "plugin=2", "plugin=1"]), &libssl);
                for (program, steps) in [
                    (&program, &["own", &global, "own", &local, "plugin=1", "own"][..]),
                    (&program, &[&global, "own", &local, "plugin=1"]),
                    (&without, &[&local, "plugin=0", &global, "plugin=0", &local_too, "plugin=2", "plugin=0"]),
                    (&without, &[&lazy, &global, "plugin=0", &local_too, "plugin=2", "plugin=0"]),
                    (&without, &[&local, &global, &local_too, "plugin=2", "plugin=0"]),
                ] {
                    let (seen, said) = keepers(&mut ways(program, steps));
                    for (at, (_, keeper)) in seen.iter().enumerate() {
                        let early = at == 0 && (steps[0] == "own" || steps[1] == "plugin=0");
                        let expected = if early { NOT_THERE } else { LINK_BEFORE };
                        assert!(keeper.contains(expected), "{steps:?}: {seen:?}");
                    }
                    // Only where calls arrive at all.
                    assert!(said.is_empty() || said.contains("was loaded before Reprise"), "{said}");
                    assert!(said.lines().count() <= 1, "{said}");
                }
            }
        }
    }
}

/// RTLD_LOCAL: nobody finds it.
#[test]
fn loaded_late_and_hidden() {
    let workshop = Workshop::new();
    let without = workshop.build("without", &Libssl { folder: None }, &["-DNO_OWN"]);
    let library = format!("local={}", workshop.library());
    for libssl in Libssl::all() {
        let plugin = format!("local={}", workshop.plugin("plugin.so", &libssl));
        for steps in [[&library[..], &plugin, "plugin=1"], [&plugin, &library, "plugin=0"]] {
            let (seen, said) = keepers(&mut workshop.ways(&without, "-tls1_3", &steps));
            assert_eq!((seen[0].1.as_str(), said.as_str()), (NOT_THERE, ""));
        }
    }
}

/// Compiled with the header of one version of libssl.so.3, run with another.
#[test]
fn headers_of_another_version() {
    let built: Vec<_> = ["3.0", "3.5", "3.6"].into_iter().filter_map(Libssl::built).collect();
    let workshop = Workshop::new();
    for headers in built.iter().chain([&Libssl { folder: None }]) {
        for libssl in &built {
            let path = libssl.path();
            let mut args = vec!["-DWITH_HEADER", "-lreprise"];
            args.extend(path.iter().map(String::as_str));
            let program = workshop.build("program", headers, &[&args[..], &["-lssl", "-lcrypto"]].concat());
            for version in VERSIONS {
                taken(&mut workshop.ways(&program, version, &["own"]), libssl);
            }
        }
    }
}

/// Two libssl and three in one process, whose contexts are used in turns and in threads: the first that is used is
/// served, the others keep their own sessions, and nobody gets an object of another one's.
#[test]
fn several_libssl_in_one_process() {
    let system = Libssl { folder: None };
    let (Some(old), Some(new), Some(recent)) = (Libssl::built("1.1.1"), Libssl::built("4.0"), Libssl::built("3.5"))
    else {
        return;
    };
    let workshop = Workshop::new();
    let without = workshop.build("without", &system, &["-DNO_OWN"]);
    let plugin = |name: &str, libssl: &Libssl| format!("local={}", workshop.plugin(name, libssl));
    let (a, b, c) = (plugin("old.so", &old), plugin("new.so", &new), plugin("recent.so", &recent));
    let program = |libssl: &Libssl| workshop.program("program", libssl, &[]);
    // The libssl in the order of the steps; the first is the one that is served.
    #[rustfmt::skip]
    let cases: [(PathBuf, &[&str], Vec<&Libssl>); 8] = [
        (program(&system), &[&a, "own", "plugin=0", "own", "wrapped=0"], vec![&system, &old, &system]),
        (program(&system), &[&a, "plugin=0", "own", "plugin=0", "wrapped=0"], vec![&old, &system, &old]),
        (program(&system), &["own", &a, "plugin=0", &b, "plugin=1", "own"], vec![&system, &old, &new, &system]),
        (program(&system), &[&a, &b, "plugin=1", "own", "plugin=0", "wrapped=0", "wrapped=1"], vec![&new, &system, &old]),
        // Loaded, and never used.
        (program(&system), &[&a, "own"], vec![&system]),
        (program(&system), &[&a, "plugin=0", "wrapped=0"], vec![&old]),
        (without.clone(), &[&c, &a, "plugin=1", "plugin=0", "wrapped=0", "wrapped=1"], vec![&old, &recent]),
        (without.clone(), &[&a, &b, &c, "plugin=2", "plugin=1", "plugin=0", "wrapped=0", "wrapped=1", "wrapped=2"], vec![&recent, &new, &old]),
    ];
    for (program, steps, libssl) in cases {
        for version in VERSIONS {
            for cache in ["memory", "shm"] {
                let (shared, stats) = (SharedCache::new(), workshop.sandbox.file("stats"));
                let _ = fs::remove_file(&stats);
                let mut command = workshop.ways(&program, version, steps);
                command.env("LD_PRELOAD", libreprise()).env("REPRISE_STATS", &stats);
                if cache == "shm" {
                    command.env("REPRISE_CACHE", shared.url());
                }
                let (seen, said) = keepers(&mut command);
                let names: Vec<_> = seen.iter().map(|(name, _)| name.clone()).collect();
                assert_eq!(names, libssl.iter().map(|libssl| libssl.name()).collect::<Vec<_>>(), "{command:?}");
                for ((name, keeper), of) in seen.iter().zip(&libssl) {
                    let expected = if of == &libssl[0] { keeper == "taken" } else { keeper.contains("second libssl") };
                    assert!(expected, "{command:?}: {name}: {keeper}");
                }
                let mut others = libssl.clone();
                others.retain(|other| *other != libssl[0]);
                assert_eq!(said.matches("keeps its own sessions").count(), others.len(), "{command:?}: {said}");
                assert_eq!(said.lines().count(), others.len(), "{command:?}: {said}");
                assert!(Stats::read(&stats)["hits"] >= 20, "{command:?}");
            }
            // In threads, which also race for who is first: one is.
            let mut race: Vec<_> = steps.iter().copied().filter(|step| step.starts_with("local=")).collect();
            race.extend(["together"; 3]);
            let (seen, _) = keepers(workshop.ways(&program, version, &race).env("LD_PRELOAD", libreprise()));
            let served: BTreeSet<_> =
                seen.iter().filter(|(_, keeper)| keeper == "taken").map(|(name, _)| name).collect();
            assert_eq!(served.len(), 1, "{seen:?}");
            assert_eq!(seen.iter().filter(|(_, keeper)| keeper == "taken").count(), 3, "{seen:?}");
        }
    }
}
