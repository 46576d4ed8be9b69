//! include/reprise.h as a C programmer meets it: without a warning in every C and C++, on either side of OpenSSL's
//! header and with every version of that; each function declared once, the comments written for C.

mod common;

use common::{compiler, libreprise, program, repository, succeed, Sandbox};
use std::path::{Path, PathBuf};
use std::process::Command;

const WARNINGS: [&str; 6] = ["-Wall", "-Wextra", "-Wpedantic", "-Wredundant-decls", "-Werror", "-fsyntax-only"];

/// `c2x` and `c++2b` are names of C23 and C++23 that older compilers know as well.
const C: [&str; 6] = ["gnu90", "c99", "c11", "c17", "gnu17", "c2x"];
const CPP: [&str; 5] = ["c++11", "c++14", "c++17", "c++20", "c++2b"];

/// The compiler's variable, its name, its package, what it compiles, the extension of that.
const COMPILERS: [(&str, &str, &str, &[&str], &str); 4] = [
    ("CC", "cc", "gcc libc6-dev", &C, "c"),
    ("CXX", "c++", "g++", &CPP, "cc"),
    ("CLANG", "clang", "clang", &C, "c"),
    ("CLANGXX", "clang++", "clang", &CPP, "cc"),
];

const ORDERS: [(&str, &str); 5] = [
    ("alone", "#include <reprise.h>\n"),
    ("twice", "#include <reprise.h>\n#include <reprise.h>\n"),
    ("before", "#include <reprise.h>\n#include <openssl/ssl.h>\n"),
    ("after", "#include <openssl/ssl.h>\n#include <reprise.h>\n"),
    // As OpenSSL's header has it from 3.4 on.
    (
        "deprecated",
        "#include <openssl/ssl.h>\n\
         #pragma GCC diagnostic ignored \"-Wredundant-decls\"\n\
         #ifdef __cplusplus\nextern \"C\"\n#endif\n\
         __attribute__((deprecated)) void SSL_CTX_flush_sessions(SSL_CTX *ctx, long tm);\n\
         #include <reprise.h>\n",
    ),
];

/// Declared, with C's linkage: taking the address needs both.
const CODE: &str = "extern const char *(*version)(void);\nconst char *(*version)(void) = reprise_version;\n";

fn header() -> String {
    std::fs::read_to_string(repository("include/reprise.h")).expect("include/reprise.h is missing: make header")
}

/// Folders with OpenSSL's headers beside the system's: those that tools/libssl.sh has built, and REPRISE_TEST_LIBSSL.
fn other_headers() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let versions = ["1.1.1", "3.0", "3.5", "3.6", "4.0"].map(|version| format!("reprise/libssl/{version}"));
    let built = cache.iter().flat_map(|cache| versions.iter().map(|version| cache.join(version)));
    let named = std::env::var_os("REPRISE_TEST_LIBSSL").map(PathBuf::from);
    let all = built.chain(named).map(|folder| folder.join("include"));
    all.filter(|folder| folder.join("openssl/ssl.h").exists()).collect()
}

fn compiles_with(openssl: Option<&Path>) {
    let sandbox = Sandbox::new();
    for (variable, name, package, standards, extension) in COMPILERS {
        let sources = ORDERS.map(|(order, includes)| {
            let source = sandbox.file(&format!("{order}.{extension}"));
            std::fs::write(&source, includes.to_owned() + CODE).unwrap();
            source
        });
        for standard in standards {
            let mut compile = compiler(variable, name, &format!("{package} libssl-dev"));
            if let Some(folder) = openssl {
                compile.arg("-isystem").arg(folder);
            }
            compile.arg(format!("-std={standard}")).args(WARNINGS).arg("-I").arg(repository("include"));
            succeed(compile.args(&sources));
        }
    }
}

#[test]
fn compiles_without_a_warning_in_every_c_and_cpp() {
    compiles_with(None);
}

#[test]
fn compiles_with_the_headers_of_other_versions() {
    for folder in other_headers() {
        eprintln!("{}", folder.display());
        compiles_with(Some(&folder));
    }
}

#[test]
fn each_exported_function_is_declared_once() {
    let header = header();
    let declarations: String =
        header.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code)).collect();
    let symbols = std::fs::read_to_string(repository("src/abi/symbols.txt")).unwrap();
    for symbol in symbols.lines() {
        let call = format!("{symbol}(");
        let starts = declarations.match_indices(&call).map(|(at, _)| at);
        let whole = starts.filter(|&at| !declarations[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'));
        assert_eq!(whole.count(), 1, "declarations of {symbol}");
    }
}

#[test]
fn comments_are_for_who_writes_c() {
    let header = header();
    assert!(!header.contains("//"), "a comment of C++");
    assert!(!header.contains("# Safety"), "a section for Rust");
    for rules in ["CB", "ADD", "GET", "MODE", "FLUSH", "SIZE", "STAT", "ID", "REPLAY", "ABI"] {
        for (at, _) in header.match_indices(rules) {
            let starts_a_word = !header[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            let is_numbered = header[at + rules.len()..].starts_with(|c: char| c.is_ascii_digit());
            assert!(!(starts_a_word && is_numbered), "a rule's number: {}", &header[at..at + rules.len() + 1]);
        }
    }
    let comment = |function: &str| {
        let before = &header[..header.find(function).unwrap_or_else(|| panic!("{function} is not declared"))];
        before[before.rfind("/*").unwrap()..].to_owned()
    };
    for (function, page) in [
        ("int SSL_CTX_add_session(", "SSL_CTX_add_session(3)"),
        ("long SSL_CTX_set_session_cache_mode(", "SSL_CTX_set_session_cache_mode(3)"),
        ("void SSL_CTX_sess_set_new_cb(", "SSL_CTX_sess_set_get_cb(3)"),
    ] {
        assert!(comment(function).contains(page), "{function}: {}", comment(function));
    }
    for line in header.lines() {
        assert!(line.len() <= 120, "{line}");
    }
}

#[test]
fn the_version_macros_are_the_version_of_the_library() {
    let sandbox = Sandbox::new();
    let source = sandbox.file("version.c");
    let code = "#include <reprise.h>\n#include <stdio.h>\n\
                int main(void) { printf(\"%d.%d.%d %s\", REPRISE_VERSION_MAJOR, REPRISE_VERSION_MINOR,\n\
                REPRISE_VERSION_PATCH, reprise_version()); return 0; }\n";
    std::fs::write(&source, code).unwrap();
    program("cc", "gcc libc6-dev libssl-dev");
    let library = libreprise();
    let folder = library.parent().unwrap();
    let mut compile = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    compile.arg("-I").arg(repository("include")).arg(&source).arg("-o").arg(sandbox.file("version"));
    succeed(compile.arg("-L").arg(folder).args(["-lreprise", "-lssl", "-lcrypto"]));
    let said = succeed(Command::new(sandbox.file("version")).env("LD_LIBRARY_PATH", folder));
    let (macros, function) = said.split_once(' ').unwrap();
    assert_eq!(macros, function);
    assert_eq!(macros, env!("CARGO_PKG_VERSION"));
}
