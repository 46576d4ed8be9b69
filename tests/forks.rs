//! fork() beside a library that is being loaded: its constructor uses an SSL_CTX, and holds the lock of dlopen meanwhile.

mod common;

use common::{compiler, libreprise, succeed, Sandbox};
use std::fs;
use std::process::Command;

const LIBRARY: &str = "
    extern void (*work)(void);
    extern _Atomic int forked, loading;
    __attribute__((constructor)) static void begin(void) { loading = 1; while (!forked) work(); }";
const PROGRAM: &str = "
    #include <dlfcn.h>
    #include <pthread.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/wait.h>
    #include <unistd.h>
    #include <openssl/ssl.h>
    static SSL_CTX *ctx;
    static SSL_SESSION *session;
    _Atomic int forked, loading;
    static void add_and_remove(void)
    {
        SSL_CTX_add_session(ctx, session);
        SSL_CTX_remove_session(ctx, session);
    }
    void (*work)(void) = add_and_remove;
    static void *load(void *path)
    {
        if (dlopen(path, RTLD_NOW) == NULL)
            _exit(1);
        return NULL;
    }
    int main(int argc, char **argv)
    {
        pthread_t thread;
        unsigned char id[32];
        int status;
        pid_t child;

        ctx = SSL_CTX_new(TLS_method());
        session = SSL_SESSION_new();
        SSL_SESSION_set1_id(session, memset(id, argc, sizeof(id)), sizeof(id));
        SSL_SESSION_set_protocol_version(session, TLS1_2_VERSION);
        alarm(30);
        pthread_create(&thread, NULL, load, argv[1]);
        while (!loading)
            usleep(1000);
        /* The first fork of this thread, while the constructor is at work. */
        if ((child = fork()) == 0) {
            add_and_remove();
            _exit(0);
        }
        waitpid(child, &status, 0);
        forked = 1;
        pthread_join(thread, NULL);
        return printf(\"%d\\n\", status) < 0;
    }";

#[test]
fn a_constructor_that_uses_a_context() {
    let sandbox = Sandbox::new();
    let build = |name: &str, source: &str, arguments: &[&str]| {
        let file = sandbox.file(&format!("{name}.c"));
        fs::write(&file, source).unwrap();
        let mut cc = compiler("CC", "cc", "gcc libc6-dev libssl-dev");
        succeed(cc.arg(&file).arg("-o").arg(sandbox.file(name)).args(arguments));
        sandbox.file(name)
    };
    let library = build("library.so", LIBRARY, &["-shared", "-fPIC"]);
    let program = build("program", PROGRAM, &["-rdynamic", "-lssl", "-lcrypto", "-lpthread", "-ldl"]);
    let mut preloaded = Command::new(program);
    preloaded.arg(library).env("LD_PRELOAD", libreprise()).env_remove("REPRISE_CACHE");
    assert_eq!(succeed(&mut preloaded), "0\n");
}
