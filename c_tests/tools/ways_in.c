/*
 * Handshakes in memory with whatever libssl this file is linked with: built with -DPLUGIN a shared object that brings
 * a libssl along, else a program that uses its own and plugins', in any order, in one process.
 *
 *     ways_in [-tls1_2|-tls1_3] CERT KEY STEP...
 *         own                      handshakes with the program's own libssl (not with -DNO_OWN)
 *         local=FILE global=FILE   load a shared object, RTLD_LOCAL or RTLD_GLOBAL, all its symbols bound at once
 *         lazy=FILE                RTLD_LOCAL, and each symbol bound when it is first used
 *         plugin=N                 handshakes of the Nth one that was loaded
 *         wrapped=N                what it answers of a session through a call that is the last of its function
 *         together                 all of them, each in a thread of its own
 *         context serve            the parts of `own`: makes its contexts; connections, and no more contexts
 *     and what a careful server does to itself, between any of them:
 *         chroot=DIR user=UID close  another root, another user, no descriptor but the first three
 *         nofile=N as=BYTES memlock=BYTES  a resource limit
 *         fork vfork clone abort   go on in a child; start a program with vfork, or run a function with clone(CLONE_VM);
 *                                  abort with a handler that returns by _exit
 *         wx                       no mapping may be writable and executable, as MemoryDenyWriteExecute= has it
 *         strict strict=shm strict=exit  any system call kills but those that stock needs, and those of Reprise's with
 *                                  a shared cache, and at its end
 *         descriptors              fails if a started program would inherit one beyond the first three
 *         mark                     a call to getppid, for who reads a trace
 *
 * Contexts live on from step to step. Each step prints a line: the version, whether Reprise took the server's context
 * over ("taken", else "left" and why), and what was resumed of 20 connections. Exit status 1 if anything is not as
 * libssl has it.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef NO_OWN
/* What 3.4 and later deprecate is called here by name. */
#define OPENSSL_API_COMPAT 30000
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#ifdef WITH_HEADER
#include "reprise.h"
#endif

enum { VISITS = 20, BYTES = 512 };

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("%s: not true: %s\n", OpenSSL_version(OPENSSL_VERSION), #what); \
            return 1; \
        } \
    } while (0)

static int new_sessions; /* that the server's new_cb saw */

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    new_sessions++;
    SSL_SESSION_free(session);
    return 1; /* under the documented semantics, 0 would refuse it */
}

static SSL_SESSION *ticket; /* the client's newest, one reference */

static int on_ticket(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(ticket);
    ticket = session;
    return 1;
}

/* A connection from hello to close_notify; whether it was resumed, -1 if it failed. */
static int visit(SSL_CTX *server_ctx, SSL_CTX *client_ctx)
{
    SSL *server = SSL_new(server_ctx), *client = SSL_new(client_ctx);
    BIO *one, *other;
    char byte;
    int resumed = -1;

    if (server == NULL || client == NULL || !BIO_new_bio_pair(&one, 0, &other, 0))
        return -1;
    SSL_set_bio(server, one, one);
    SSL_set_bio(client, other, other);
    SSL_set_accept_state(server);
    SSL_set_connect_state(client);
    if (ticket != NULL)
        SSL_set_session(client, ticket);
    for (int i = 0; i < 20; i++) {
        SSL_do_handshake(client);
        SSL_do_handshake(server);
    }
    if (SSL_is_init_finished(client) && SSL_is_init_finished(server) && SSL_get_session(server) != NULL) {
        SSL_read(client, &byte, 1); /* takes the tickets */
        resumed = SSL_session_reused(server);
        for (int i = 0; i < 2; i++) {
            SSL_shutdown(client);
            SSL_shutdown(server);
        }
    }
    SSL_free(client);
    SSL_free(server);
    return resumed;
}

/* A function of the program that asks nothing of libssl but this, so that the call is a jump. */
long wrapped_set_timeout(SSL_SESSION *session, long t)
{
    return SSL_SESSION_set_timeout(session, t);
}

/* Sessions with and without a cipher, set through Reprise's export, read through libssl's own getter. */
static int dates(SSL_SESSION *negotiated)
{
    SSL_SESSION *blank = SSL_SESSION_new();

    CHECK(blank != NULL && negotiated != NULL);
    SSL_SESSION_set_timeout(blank, 1234);
    CHECK(SSL_SESSION_get_timeout(blank) == 1234);
    SSL_SESSION_set_time(blank, 1000000);
    CHECK(SSL_SESSION_get_time(blank) == 1000000 && SSL_SESSION_get_timeout(blank) == 1234);
    SSL_SESSION_free(blank);
    SSL_SESSION_set_timeout(negotiated, 4321);
    CHECK(SSL_SESSION_get_timeout(negotiated) == 4321);
    return 0;
}

/* The functions of the manual's session cache, by their effects. */
static int manage(SSL_CTX *ctx, SSL_SESSION *negotiated)
{
    SSL_SESSION *session = SSL_SESSION_dup(negotiated);
    long before = SSL_CTX_sess_number(ctx), size = SSL_CTX_sess_get_cache_size(ctx);
    SSL *ssl = SSL_new(ctx);
    unsigned length;
    const unsigned char *id;

    CHECK(session != NULL && ssl != NULL);
    SSL_SESSION_set1_id(session, (const unsigned char *)"ways_in", 7);
    CHECK(SSL_CTX_add_session(ctx, session) == 1 && SSL_CTX_sess_number(ctx) == before + 1);
    CHECK(SSL_CTX_remove_session(ctx, session) == 1 && SSL_CTX_sess_number(ctx) == before);
    SSL_CTX_sess_set_cache_size(ctx, 77);
    CHECK(SSL_CTX_sess_get_cache_size(ctx) == 77);
    SSL_CTX_sess_set_cache_size(ctx, size);
    CHECK(SSL_CTX_sess_get_new_cb(ctx) == on_new && SSL_CTX_sess_get_remove_cb(ctx) == NULL);
    CHECK((SSL_CTX_get_session_cache_mode(ctx) & SSL_SESS_CACHE_BOTH) == SSL_SESS_CACHE_SERVER);
    id = SSL_SESSION_get_id(negotiated, &length);
    if (SSL_SESSION_get_protocol_version(negotiated) == TLS1_2_VERSION) {
        SSL_set_max_proto_version(ssl, TLS1_2_VERSION);
        SSL_has_matching_session_id(ssl, id, length);
    }
    CHECK(SSL_set_SSL_CTX(ssl, ctx) == ctx && SSL_clear(ssl) == 1 && SSL_get_session(ssl) == NULL);
    SSL_free(ssl);
    SSL_SESSION_free(session);
    return dates(negotiated);
}

/* Whether Reprise serves `ctx`, and what it says if not. */
static const char *keeper(SSL_CTX *ctx)
{
    int (*semantics)(SSL_CTX *) = (int (*)(SSL_CTX *))dlsym(RTLD_DEFAULT, "reprise_ctx_get_semantics");
    const char *why;

#ifdef WITH_HEADER
    semantics = reprise_ctx_get_semantics;
#endif
    ERR_clear_error();
    if (semantics == NULL)
        return "left: Reprise is not there";
    if (semantics(ctx) >= 0)
        return "taken";
    why = ERR_reason_error_string(ERR_get_error());
    return why == NULL ? "left without a reason" : why;
}

static SSL_CTX *server, *client;

/* Makes the contexts, of a certificate and key in PEM. */
int contexts(int version, const char *cert, const char *key)
{
    if (server == NULL) {
        BIO *cert_text = BIO_new_mem_buf(cert, -1), *key_text = BIO_new_mem_buf(key, -1);
        X509 *x509 = PEM_read_bio_X509(cert_text, NULL, NULL, NULL);
        EVP_PKEY *pkey = PEM_read_bio_PrivateKey(key_text, NULL, NULL, NULL);

        server = SSL_CTX_new(TLS_method());
        client = SSL_CTX_new(TLS_client_method());
        CHECK(server != NULL && client != NULL);
        CHECK(SSL_CTX_use_certificate(server, x509) == 1 && SSL_CTX_use_PrivateKey(server, pkey) == 1);
        X509_free(x509);
        EVP_PKEY_free(pkey);
        BIO_free(cert_text);
        BIO_free(key_text);
        CHECK(SSL_CTX_set_session_id_context(server, (const unsigned char *)"ways", 4) == 1);
        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_set_min_proto_version(server, version);
        SSL_CTX_set_max_proto_version(server, version);
        SSL_CTX_sess_set_new_cb(server, on_new);
        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(client, on_ticket);
    }
    return 0;
}

int handshakes(int version, const char *cert, const char *key)
{
    int resumed = 0, full = 0;

    if (contexts(version, cert, key) != 0)
        return 1;
    SSL_SESSION_free(ticket);
    ticket = NULL;
    new_sessions = 0;
    for (int i = 0; i <= VISITS; i++) {
        int seen = visit(server, client);

        if (seen < 0)
            ERR_print_errors_fp(stdout);
        CHECK(seen >= 0);
        *(seen ? &resumed : &full) += 1;
    }
    CHECK(new_sessions >= 1);
    if (manage(server, ticket) != 0)
        return 1;
    printf("%s: %s: full=%d resumed=%d\n", OpenSSL_version(OPENSSL_VERSION), keeper(server), full, resumed);
    return 0;
}

/* An SSL_CTX comes and goes: its address is free for another libssl's. */
int come_and_go(void)
{
    for (int i = 0; i < 50; i++) {
        SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
        SSL *ssl = SSL_new(ctx);

        CHECK(ssl != NULL && SSL_CTX_sess_number(ctx) == 0);
        SSL_CTX_free(ctx);
        SSL_CTX_flush_sessions(SSL_get_SSL_CTX(ssl), 0);
        SSL_free(ssl);
    }
    return 0;
}

/* For `wrapped`: a new session, and its timeout as libssl itself has it. */
void *new_session(void)
{
    return SSL_SESSION_new();
}

void *negotiated_session(void)
{
    return ticket;
}

long timeout_of(void *session)
{
    return SSL_SESSION_get_timeout(session);
}
#endif

#ifndef PLUGIN

enum { MAX = 8 };

typedef int handshakes_t(int version, const char *cert, const char *key);

static void *plugins[MAX];
static int loaded, version = 0x303;
static char cert[4096], key[4096]; /* in PEM */

static int read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");

    if (file == NULL)
        return 0;
    text[fread(text, 1, size - 1, file)] = '\0';
    return fclose(file) == 0;
}

static int plugin(int n)
{
    handshakes_t *run = (handshakes_t *)dlsym(plugins[n], "handshakes");
    int (*come_and_go)(void) = (int (*)(void))dlsym(plugins[n], "come_and_go");

    return run == NULL || run(version, cert, key) != 0 || come_and_go() != 0;
}

static int own(void)
{
#ifdef NO_OWN
    return 2;
#else
    return handshakes(version, cert, key) != 0 || come_and_go() != 0;
#endif
}

/* The program calls the plugin, which jumps to libssl's function: the return address is the program's. */
static int wrapped(void *plugin)
{
    long (*set)(void *, long) = (long (*)(void *, long))dlsym(plugin, "wrapped_set_timeout");
    long (*get)(void *) = (long (*)(void *))dlsym(plugin, "timeout_of");
    void *(*negotiated)(void) = (void *(*)(void))dlsym(plugin, "negotiated_session");

    set(negotiated(), 987);
    return get(negotiated()) != 987;
}

static void *run_plugin(void *n)
{
    return (void *)(long)plugin((int)(long)n);
}

static int together(void)
{
    pthread_t threads[MAX];
    int failed = 0;

    for (int n = 0; n < loaded; n++)
        pthread_create(&threads[n], NULL, run_plugin, (void *)(long)n);
#ifndef NO_OWN
    failed |= own();
#endif
    for (int n = 0; n < loaded; n++) {
        void *result;

        pthread_join(threads[n], &result);
        failed |= result != NULL;
    }
    return failed;
}

static int load(const char *path, int flags)
{
    plugins[loaded] = dlopen(path, flags);
    if (plugins[loaded] == NULL)
        puts(dlerror());
    return plugins[loaded++] == NULL;
}

static int limit(__rlimit_resource_t resource, const char *value)
{
    struct rlimit limit = {strtoul(value, NULL, 10), strtoul(value, NULL, 10)};
    return setrlimit(resource, &limit) != 0;
}

static int become(unsigned user)
{
    return setgroups(0, NULL) != 0 || setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0;
}

/* The rest is done by a child, whose exit status is ours. */
static int go_on_in_child(void)
{
    int status;
    pid_t child = fork();

    if (child > 0) {
        if (waitpid(child, &status, 0) != child)
            exit(1);
        exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
    return child < 0;
}

static int start_with_vfork(void)
{
    int status;
    pid_t child = vfork();

    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
        _exit(1);
    }
    return waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7;
}

static int seven(void *argument)
{
    (void)argument;
    return 7;
}

static int run_in_clone(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    int status;
    pid_t child = clone(seven, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);

    return waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7;
}

static void on_abort(int signal)
{
    (void)signal;
    _exit(0);
}

static int install(struct sock_filter *filter, size_t length)
{
    struct sock_fprog program = {(unsigned short)length, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0;
}

#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset))
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n))
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, (what))

static int deny_writable_code(void)
{
    struct sock_filter filter[] = {
        LOAD(offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ, SYS_mmap, 0, 4),
        LOAD(ARGUMENT(2)),
        BPF_STMT(BPF_ALU | BPF_AND, PROT_WRITE | PROT_EXEC),
        BPF_JUMP(BPF_JMP | BPF_JEQ, PROT_WRITE | PROT_EXEC, 0, 1),
        ANSWER(SECCOMP_RET_KILL_PROCESS),
        LOAD(offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ, SYS_mprotect, 0, 3),
        LOAD(ARGUMENT(2)),
        BPF_JUMP(BPF_JMP | BPF_JSET, PROT_EXEC, 0, 1),
        ANSWER(SECCOMP_RET_KILL_PROCESS),
        ANSWER(SECCOMP_RET_ALLOW),
        ANSWER(SECCOMP_RET_ALLOW),
    };
    return install(filter, sizeof filter / sizeof *filter);
}

/* What handshakes in memory need on stock libssl, once its contexts are made. */
static int strict(const char *also)
{
    unsigned allowed[] = {SYS_read,   SYS_write,         SYS_futex,     SYS_brk,    SYS_mmap, SYS_munmap,
                          SYS_mremap, SYS_clock_gettime, SYS_getrandom, SYS_getpid, SYS_exit, SYS_exit_group,
                          SYS_exit,   SYS_exit};
    enum { ALLOWED = sizeof allowed / sizeof *allowed };

    if (strcmp(also, "shm") == 0)
        allowed[ALLOWED - 2] = SYS_fcntl, allowed[ALLOWED - 1] = SYS_newfstatat;
    else if (strcmp(also, "exit") == 0)
        allowed[ALLOWED - 2] = SYS_unlink, allowed[ALLOWED - 1] = SYS_kill;
    struct sock_filter filter[1 + 2 * ALLOWED + 1];
    size_t n = 0;

    filter[n++] = (struct sock_filter)LOAD(offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < ALLOWED; i++) {
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ, allowed[i], 0, 1);
        filter[n++] = (struct sock_filter)ANSWER(SECCOMP_RET_ALLOW);
    }
    filter[n++] = (struct sock_filter)ANSWER(SECCOMP_RET_KILL_PROCESS);
    return install(filter, n);
}

static int inherited_descriptors(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFD);

        if (flags >= 0 && !(flags & FD_CLOEXEC))
            return 1;
    }
    return 0;
}

static int starts(const char *step, const char *with)
{
    return strncmp(step, with, strlen(with)) == 0;
}

/* A step of the second kind; whether it failed, -1 if there is none of that name. */
static int harden(const char *step)
{
    const char *value = strchr(step, '=');

    value = value == NULL ? "" : value + 1;
    if (starts(step, "chroot="))
        return chroot(value) != 0 || chdir("/") != 0;
    if (starts(step, "user="))
        return become((unsigned)atoi(value));
    if (strcmp(step, "close") == 0)
        return syscall(SYS_close_range, 3, ~0U, 0) != 0;
    if (starts(step, "nofile="))
        return limit(RLIMIT_NOFILE, value);
    if (starts(step, "as="))
        return limit(RLIMIT_AS, value);
    if (starts(step, "memlock="))
        return limit(RLIMIT_MEMLOCK, value);
    if (strcmp(step, "fork") == 0)
        return go_on_in_child();
    if (strcmp(step, "vfork") == 0)
        return start_with_vfork();
    if (strcmp(step, "clone") == 0)
        return run_in_clone();
    if (strcmp(step, "abort") == 0) {
        signal(SIGABRT, on_abort);
        abort();
    }
    if (strcmp(step, "wx") == 0)
        return deny_writable_code();
    if (starts(step, "strict"))
        return strict(value);
    if (strcmp(step, "descriptors") == 0)
        return inherited_descriptors();
    if (strcmp(step, "mark") == 0)
        return getppid() < 0;
    return -1;
}

int main(int argc, char **argv)
{
    int failed = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && *argv[1] == '-') {
        version = strcmp(argv[1], "-tls1_3") == 0 ? 0x304 : 0x303;
        argv++, argc--;
    }
    if (argc < 4)
        return 2;
    if (!read_text(argv[1], cert, sizeof cert) || !read_text(argv[2], key, sizeof key))
        return 2;
    for (char **step = argv + 3; *step != NULL && !failed; step++) {
        if (strcmp(*step, "own") == 0)
            failed = own();
        else if (strncmp(*step, "local=", 6) == 0)
            failed = load(*step + 6, RTLD_LOCAL | RTLD_NOW);
        else if (strncmp(*step, "global=", 7) == 0)
            failed = load(*step + 7, RTLD_GLOBAL | RTLD_NOW);
        else if (strncmp(*step, "lazy=", 5) == 0)
            failed = load(*step + 5, RTLD_LOCAL | RTLD_LAZY);
        else if (strncmp(*step, "plugin=", 7) == 0)
            failed = plugin(atoi(*step + 7));
        else if (strncmp(*step, "wrapped=", 8) == 0)
            failed = wrapped(plugins[atoi(*step + 8)]);
        else if (strcmp(*step, "together") == 0)
            failed = together();
#ifndef NO_OWN
        else if (strcmp(*step, "context") == 0)
            failed = contexts(version, cert, key);
        else if (strcmp(*step, "serve") == 0)
            failed = handshakes(version, cert, key);
#endif
        else if ((failed = harden(*step)) < 0)
            return 2;
        if (failed)
            printf("%s failed\n", *step);
    }
    return failed;
}
#endif
