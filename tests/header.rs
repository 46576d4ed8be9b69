//! include/reprise.h compiles without a warning as C and as C++, alone and on either side of OpenSSL's header.

mod common;

use common::{compiler, repository, succeed, Sandbox};

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"];

const ORDERS: [(&str, &[&str]); 4] = [
    ("alone", &["reprise.h"]),
    ("twice", &["reprise.h", "reprise.h"]),
    ("before", &["reprise.h", "openssl/ssl.h"]),
    ("after", &["openssl/ssl.h", "reprise.h"]),
];

#[test]
fn compiles_as_c11_and_cpp17() {
    assert!(repository("include/reprise.h").exists(), "include/reprise.h is missing: make header");
    let sandbox = Sandbox::new();
    let languages = [
        ("CC", "cc", "gcc libc6-dev libssl-dev", "-std=c11", "c"),
        ("CXX", "c++", "g++ libssl-dev", "-std=c++17", "cc"),
    ];
    for (variable, default, package, standard, extension) in languages {
        for (order, headers) in ORDERS {
            let source = sandbox.file(&format!("{order}.{extension}"));
            let includes: String = headers.iter().map(|header| format!("#include <{header}>\n")).collect();
            // Declared, with C's linkage: taking the address needs both.
            let code = "const char *(*version)(void) = reprise_version;\n";
            std::fs::write(&source, includes + "extern const char *(*version)(void);\n" + code).unwrap();
            let mut compile = compiler(variable, default, package);
            succeed(compile.arg(standard).args(WARNINGS).arg("-I").arg(repository("include")).arg(&source));
        }
    }
}
