//! Which semantics a program has by default: preloaded, those of its libssl; linked with Reprise, by itself or through one of
//! its libraries, those of the manual pages. REPRISE_SEMANTICS overrules.

mod common;

use common::{compiler, libreprise, succeed, Sandbox};
use std::fs;
use std::process::Command;

const DOCUMENTED: &str = "0\n";
const STOCK: &str = "1\n";

const LIBRARY: &str = "
    #include <openssl/ssl.h>
    int reprise_ctx_get_semantics(SSL_CTX *);
    int semantics(void) { return reprise_ctx_get_semantics(SSL_CTX_new(TLS_method())); }";
/// Loads a library that brings libssl and Reprise along.
const LOADER: &str = "
    #include <dlfcn.h>
    #include <stdio.h>
    int main(int argc, char **argv)
    {
        void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
        return printf(\"%d\\n\", ((int (*)(void))dlsym(library, \"semantics\"))()) < 0;
    }";
const PROGRAM: &str = "
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdio.h>
    #include <openssl/ssl.h>
    int main(void)
    {
        int (*semantics)(SSL_CTX *) = (int (*)(SSL_CTX *))dlsym(RTLD_DEFAULT, \"reprise_ctx_get_semantics\");
        return printf(\"%d\\n\", semantics(SSL_CTX_new(TLS_method()))) < 0;
    }";

#[test]
fn the_default_is_stock_when_preloaded_and_documented_when_linked() {
    let sandbox = Sandbox::new();
    let (program, library, loader) = (sandbox.file("program.c"), sandbox.file("library.c"), sandbox.file("loader.c"));
    fs::write(&loader, LOADER).unwrap();
    fs::write(&program, PROGRAM).unwrap();
    fs::write(&library, LIBRARY).unwrap();
    // As it is installed: programs name it by its soname.
    std::os::unix::fs::symlink(libreprise().canonicalize().unwrap(), sandbox.file("libreprise.so.0")).unwrap();
    let folder = sandbox.path().display();
    let reprise = [format!("{folder}/libreprise.so.0"), format!("-Wl,-rpath,{folder}")];
    let build = |out: &str, source, shared: &[&str], linked: bool| {
        let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        cc.args(shared).arg(source).arg("-o").arg(sandbox.file(out));
        if linked {
            cc.arg("-Wl,--no-as-needed").args(&reprise);
        }
        succeed(cc.args(["-Wl,--as-needed", "-lssl", "-lcrypto", "-ldl"]));
        sandbox.file(out)
    };
    let plain = build("plain", &program, &[], false);
    let linked = build("linked", &program, &[], true);
    let loader = build("loader", &loader, &[], false);
    let library = build("library.so", &library, &["-shared", "-fPIC"], true);
    // A library without a soname is named by the path that it was linked by. This one is there when the program is linked only.
    let nameless = sandbox.file("nameless");
    fs::create_dir(&nameless).unwrap();
    let nameless = nameless.join("libreprise.so.0");
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    succeed(cc.args(["-shared", "-o"]).arg(&nameless).args(["-x", "c", "/dev/null"]));
    let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
    cc.arg(&program).arg("-o").arg(sandbox.file("by_path")).arg("-Wl,--no-as-needed").arg(&nameless);
    succeed(cc.args(["-Wl,--as-needed", "-lssl", "-lcrypto", "-ldl"]));
    let by_path = sandbox.file("by_path");
    fs::remove_file(&nameless).unwrap();
    std::os::unix::fs::symlink(libreprise().canonicalize().unwrap(), &nameless).unwrap();
    let bare = |program| {
        let mut command = Command::new(program);
        command.env_remove("LD_PRELOAD").env_remove("REPRISE_SEMANTICS").env_remove("REPRISE_CACHE");
        command
    };
    let preloaded = |program| {
        let mut command = bare(program);
        command.env("LD_PRELOAD", libreprise());
        command
    };
    assert_eq!(succeed(&mut preloaded(&plain)), STOCK);
    assert_eq!(succeed(&mut bare(&linked)), DOCUMENTED);
    assert_eq!(succeed(&mut preloaded(&linked)), DOCUMENTED, "somebody wanted it");
    assert_eq!(succeed(bare(&loader).arg(&library)), DOCUMENTED, "through a library");
    assert_eq!(succeed(&mut bare(&by_path)), DOCUMENTED, "by its path");
    assert_eq!(succeed(preloaded(&plain).env("REPRISE_SEMANTICS", "documented")), DOCUMENTED);
    assert_eq!(succeed(bare(&linked).env("REPRISE_SEMANTICS", "stock")), STOCK);
    assert_eq!(succeed(preloaded(&plain).env("REPRISE_SEMANTICS", "nonsense")), STOCK);
}
