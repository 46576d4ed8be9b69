//! What `make install` installs serves CMake, Meson and pkg-config: programs that are built with them have libreprise ahead
//! of libssl, and Reprise serves their contexts. `make uninstall` leaves nothing behind.

mod common;

use common::{libreprise, program, repository, run, succeed, text, Sandbox};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells whether Reprise serves it.
const SERVED: &str = r#"#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <reprise.h>

int main(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    void *found = dlsym(RTLD_DEFAULT, "SSL_CTX_add_session");
    reprise_stats stats;
    Dl_info where;

    if (dladdr(found, &where) == 0 || strstr(where.dli_fname, "libreprise.so") == NULL)
        return 2;
    if (reprise_ctx_stats(ctx, &stats, sizeof stats) != 1)
        return 3;
    printf("served by %s\n", reprise_version());
    SSL_CTX_free(ctx);
    return 0;
}
"#;

/// Names only functions of libssl, as most programs do.
const PLAIN: &str = r#"#include <openssl/ssl.h>

SSL_CTX *context(void);
SSL_CTX *context(void)
{
    return SSL_CTX_new(TLS_server_method());
}
"#;

/// Uses libssl through a library only.
const INDIRECT: &str = r#"#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int main(void)
{
    int (*stats)(void *, void *, unsigned long) =
        (int (*)(void *, void *, unsigned long))dlsym(RTLD_DEFAULT, "reprise_ctx_stats");
    extern void *context(void);
    unsigned long long room[64];
    const char *(*version)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "reprise_version");

    if (stats == NULL || stats(context(), room, 8 * sizeof room[0]) != 1)
        return 3;
    printf("served by %s\n", version());
    return 0;
}
"#;

fn served() -> String {
    format!("served by {}\n", env!("CARGO_PKG_VERSION"))
}

/// `make TARGET` with these variables; the library is the one under test, whatever is newer than it.
fn make(target: &str, variables: &[String]) {
    let library = libreprise();
    let root = repository("");
    let library = library.strip_prefix(&root).unwrap_or(&library);
    let mut command = Command::new(program("make", "make"));
    command.arg("-C").arg(&root).arg("-o").arg(library).arg(target).args(variables);
    succeed(command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
}

/// An installation below a folder of its own.
struct Installation {
    sandbox: Sandbox,
    prefix: PathBuf,
}

impl Installation {
    fn new() -> Installation {
        let sandbox = Sandbox::new();
        let prefix = sandbox.file("usr");
        make("install", &[format!("PREFIX={}", prefix.display())]);
        Installation { sandbox, prefix }
    }

    /// Staged with DESTDIR as packagers do, for a folder of libraries as Debian's; moved by that.
    fn staged() -> Installation {
        let sandbox = Sandbox::new();
        let stage = sandbox.file("stage");
        let variables = ["PREFIX=/usr", "LIBDIR=/usr/lib/some-linux-gnu"].map(str::to_owned);
        make("install", &[&variables[..], &[format!("DESTDIR={}", stage.display())]].concat());
        Installation { sandbox, prefix: stage.join("usr") }
    }

    fn pkg_config(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("pkg-config", "pkg-config"));
        succeed(command.args(arguments).env("PKG_CONFIG_PATH", self.prefix.join("lib/pkgconfig")))
    }

    fn write(&self, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.sandbox.file("project");
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        folder
    }
}

/// The program loads libreprise before libssl and is served.
fn assert_served(path: &Path, libraries: Option<&Path>) {
    let dynamic = succeed(Command::new(program("readelf", "binutils")).args(["-d", "-W"]).arg(path));
    let needed: Vec<_> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let place = |name: &str| needed.iter().position(|line| line.contains(name));
    let (ours, theirs) = (place("[libreprise.so.0]"), place("[libssl.so"));
    assert!(ours.is_some() && (theirs.is_none() || ours < theirs), "{}: {needed:#?}", path.display());
    let mut command = Command::new(path);
    if let Some(folder) = libraries {
        command.env("LD_LIBRARY_PATH", folder);
    }
    assert_eq!(succeed(command.env_remove("LD_PRELOAD")), served(), "{}", path.display());
}

const CMAKE_LISTS: &str = r#"cmake_minimum_required(VERSION 3.13)
project(served C)

find_package(OpenSSL REQUIRED)
find_package(reprise 0.1 REQUIRED)

add_executable(reprise_first served.c)
target_link_libraries(reprise_first reprise::reprise OpenSSL::SSL)

add_executable(reprise_last served.c)
target_link_libraries(reprise_last OpenSSL::SSL OpenSSL::Crypto reprise::reprise)

add_executable(reprise_alone served.c)
target_link_libraries(reprise_alone reprise::reprise)

# libssl comes with a library of the project's own, and this program names no function of libssl.
add_library(tls STATIC plain.c)
target_link_libraries(tls PUBLIC OpenSSL::SSL)
add_executable(indirect indirect.c)
target_link_libraries(indirect tls reprise::reprise ${CMAKE_DL_LIBS})

foreach(program reprise_first reprise_last reprise_alone)
    target_link_libraries(${program} ${CMAKE_DL_LIBS})
endforeach()

# One that is too new, and one of another major number.
foreach(version 0.999 1.0)
    find_package(reprise ${version} QUIET)
    if(reprise_FOUND)
        message(FATAL_ERROR "reprise ${version} was found")
    endif()
endforeach()
"#;

fn builds_with_cmake(installation: &Installation, libraries: &str) {
    let project = installation.write(&[
        ("CMakeLists.txt", CMAKE_LISTS),
        ("served.c", SERVED),
        ("plain.c", PLAIN),
        ("indirect.c", INDIRECT),
    ]);
    let build = installation.sandbox.file("build");
    let cmake = || {
        let mut command = Command::new(program("cmake", "cmake"));
        // What a distribution's linker does with libraries that seem not to be needed.
        command.env("LDFLAGS", "-Wl,--as-needed");
        command
    };
    let package = installation.prefix.join(libraries).join("cmake/reprise");
    succeed(cmake().arg("-S").arg(&project).arg("-B").arg(&build).arg(format!("-Dreprise_DIR={}", package.display())));
    succeed(cmake().arg("--build").arg(&build));
    for program in ["reprise_first", "reprise_last", "reprise_alone", "indirect"] {
        assert_served(&build.join(program), None);
    }
}

#[test]
fn cmake_puts_reprise_ahead_of_libssl_in_whatever_order() {
    builds_with_cmake(&Installation::new(), "lib");
}

#[test]
fn cmake_finds_an_installation_that_was_moved() {
    builds_with_cmake(&Installation::staged(), "lib/some-linux-gnu");
}

const MESON_BUILD: &str = r#"project('served', 'c')

reprise = dependency('reprise', version : '>=0.1')
openssl = dependency('openssl')
dl = meson.get_compiler('c').find_library('dl', required : false)

executable('reprise_alone', 'served.c', dependencies : [reprise, dl])
executable('reprise_first', 'served.c', dependencies : [reprise, openssl, dl])
"#;

#[test]
fn meson_puts_reprise_ahead_of_libssl() {
    let installation = Installation::new();
    let project = installation.write(&[("meson.build", MESON_BUILD), ("served.c", SERVED)]);
    let build = installation.sandbox.file("build");
    program("ninja", "ninja-build");
    let meson = || {
        let mut command = Command::new(program("meson", "meson"));
        command.env("PKG_CONFIG_PATH", installation.prefix.join("lib/pkgconfig"));
        command
    };
    succeed(meson().arg("setup").arg(&build).arg(&project));
    succeed(meson().args(["compile", "-C"]).arg(&build));
    for program in ["reprise_alone", "reprise_first"] {
        assert_served(&build.join(program), Some(&installation.prefix.join("lib")));
    }
}

#[test]
fn pkg_config_names_reprise_ahead_of_libssl() {
    let installation = Installation::new();
    let source = installation.write(&[("served.c", SERVED)]).join("served.c");
    for (number, packages) in [&["reprise"][..], &["reprise", "openssl"], &["openssl", "reprise"]].iter().enumerate() {
        let said = installation.pkg_config(&[&["--cflags", "--libs"], *packages].concat());
        let words: Vec<_> = said.split_whitespace().collect();
        let place = |word| words.iter().position(|found| *found == word).unwrap_or_else(|| panic!("{word}: {said}"));
        assert!(place("-lreprise") < place("-lssl") && place("-lssl") < place("-lcrypto"), "{packages:?}: {said}");
        let built = installation.sandbox.file(&format!("served-{number}"));
        let mut compile = common::compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        succeed(compile.arg("-o").arg(&built).arg(&source).args(&words).arg("-ldl"));
        assert_served(&built, Some(&installation.prefix.join("lib")));
    }
    assert_eq!(installation.pkg_config(&["--modversion", "reprise"]).trim(), env!("CARGO_PKG_VERSION"));
}

/// A package that was staged or moved is found at its new place when pkg-config is told another prefix.
#[test]
fn pkg_config_follows_the_prefix() {
    let installation = Installation::staged();
    let mut command = Command::new(program("pkg-config", "pkg-config"));
    command.arg(format!("--define-variable=prefix={}", installation.prefix.display()));
    command.env("PKG_CONFIG_PATH", installation.prefix.join("lib/some-linux-gnu/pkgconfig"));
    let said = succeed(command.args(["--cflags", "--libs", "reprise"]));
    for word in [("-I", "include"), ("-L", "lib/some-linux-gnu")] {
        let word = format!("{}{}", word.0, installation.prefix.join(word.1).display());
        assert!(said.split_whitespace().any(|said| said == word), "{word}: {said}");
    }
}

/// Every file and folder below one: its mode, and where a link goes.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Option<PathBuf>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let about = path.symlink_metadata().unwrap();
            if about.is_dir() {
                folders.push(path.clone());
            }
            let link = fs::read_link(&path).ok();
            found.insert(path.strip_prefix(root).unwrap().to_owned(), (about.permissions().mode(), link));
        }
    }
    found
}

#[test]
fn uninstall_removes_exactly_what_install_installed() {
    let sandbox = Sandbox::new();
    let root = sandbox.file("root");
    // What other packages have there, under names that are near to ours.
    for neighbour in [
        "usr/bin/reprise-else",
        "usr/include/reprise-else.h",
        "usr/lib/some/libreprise-else.so.0",
        "usr/lib/some/pkgconfig/reprise-else.pc",
        "usr/lib/some/cmake/reprise-else/reprise-else-config.cmake",
        "usr/share/man/man1/reprise-else.1",
        "usr/share/man/man3/reprise_else.3",
        "usr/share/man/man7/reprise-else.7",
        "usr/share/bash-completion/completions/else",
        "usr/share/zsh/site-functions/_else",
        "usr/share/fish/vendor_completions.d/else.fish",
    ] {
        let path = root.join(neighbour);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let variables = ["PREFIX=/usr".into(), "LIBDIR=/usr/lib/some".into(), format!("DESTDIR={}", root.display())];
    let before = tree(&root);
    make("install", &variables);
    let installed = tree(&root);
    let version = env!("CARGO_PKG_VERSION");
    for (path, mode) in [
        (format!("usr/lib/some/libreprise.so.{version}"), 0o100644),
        ("usr/lib/some/cmake/reprise/reprise-config.cmake".into(), 0o100644),
        ("usr/lib/some/cmake/reprise/reprise-config-version.cmake".into(), 0o100644),
        ("usr/lib/some/pkgconfig/reprise.pc".into(), 0o100644),
        ("usr/include/reprise.h".into(), 0o100644),
        ("usr/bin/reprise".into(), 0o100755),
        ("usr/share/man/man1/reprise.1".into(), 0o100644),
        ("usr/share/man/man3/reprise_ctx_set_cache.3".into(), 0o100644),
        ("usr/share/man/man7/reprise.7".into(), 0o100644),
    ] {
        let found = installed.get(Path::new(&path)).unwrap_or_else(|| panic!("{path} is not installed"));
        assert_eq!(found.0, mode, "mode of {path}: {:o}", found.0);
    }
    assert!(before.keys().all(|path| installed.contains_key(path)));
    make("uninstall", &variables);
    assert_eq!(tree(&root), before);
    make("uninstall", &variables); // nothing is there, and nothing is wrong with that
    assert_eq!(tree(&root), before);
}

/// The rights of what is installed do not depend on root's umask, and no name is torn apart.
#[test]
fn umask_and_spaces() {
    let sandbox = Sandbox::new();
    let stage = sandbox.file("stage");
    let install = format!(
        "umask 077; exec make -C '{}' -o '{}' install PREFIX=/usr DESTDIR='{}'",
        repository("").display(),
        libreprise().strip_prefix(repository("")).unwrap().display(),
        stage.display()
    );
    succeed(Command::new("sh").args(["-c", &install]).env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
    for (path, (mode, link)) in tree(&stage).into_iter().filter(|(path, _)| !path.as_os_str().is_empty()) {
        assert!(link.is_some() || mode & 0o044 == 0o044, "{}: {mode:o}", path.display());
    }
    let precious = sandbox.file("precious");
    fs::write(&precious, "").unwrap();
    for target in ["install", "uninstall"] {
        let mut command = Command::new(program("make", "make"));
        command.arg("-C").arg(repository("")).arg(target).arg(format!("DESTDIR={} file", precious.display()));
        let said = run(command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
        assert!(!said.status.success() && text(&said.stderr).contains("must not contain spaces"), "{said:?}");
        assert!(precious.exists());
    }
}

#[test]
fn a_stripped_library_is_small_and_serves() {
    let sandbox = Sandbox::new();
    let prefix = sandbox.file("usr");
    make("install-strip", &[format!("PREFIX={}", prefix.display())]);
    let library = prefix.join("lib/libreprise.so.0");
    let size = fs::metadata(&library).unwrap().len();
    let sections = succeed(Command::new(program("readelf", "binutils")).args(["-S", "-W"]).arg(&library));
    assert!(!sections.contains(".debug_info") && !sections.contains(".symtab"), "{sections}");
    let installation = Installation { sandbox, prefix };
    let source = installation.write(&[("served.c", SERVED)]).join("served.c");
    let built = installation.sandbox.file("served");
    let mut compile = common::compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    let said = installation.pkg_config(&["--cflags", "--libs", "reprise"]);
    succeed(compile.arg("-o").arg(&built).arg(&source).args(said.split_whitespace()).arg("-ldl"));
    assert_served(&built, Some(&installation.prefix.join("lib")));
    assert!(size <= 3_000_000, "{size} bytes");
}
