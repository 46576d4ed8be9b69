/*
 * What each function that Reprise exports costs, in a process with many SSL_CTXs.
 *
 *   exports CONTEXTS            answers lines "WHAT COUNT" on stdin with the nanoseconds of one call
 *   exports memory CONTEXTS N   prints the bytes of one SSL_CTX with N sessions in its cache
 *
 * The same binary measures the libssl it is linked with, or whatever is loaded ahead of it. benches/exports.rs has one
 * process on each side and asks them in turn.
 *
 * The calls of one measurement go to all contexts, one after the other in an order that is not that of memory.
 */
#define _GNU_SOURCE /* dladdr, RTLD_DEFAULT */
#define OPENSSL_API_COMPAT 30000 /* SSL_CTX_flush_sessions and SSL_SESSION_set_time, the names every version has */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#define ID_LENGTH 32
#define BATCH 256        /* objects that are made before the clock runs */
#define CACHED 2         /* sessions in each context */
#define CACHED_ALONE 1000 /* where there is one context only */
#define LIFETIME 100000

static size_t count; /* of contexts */
static SSL_CTX **contexts;
static SSL_SESSION *sessions[BATCH]; /* the first of some contexts, which are cached there */
static unsigned char ids[BATCH][ID_LENGTH];
static SSL_CTX *client, *other;
static size_t turn;
static uint64_t spent; /* nanoseconds, while the clock runs */
static struct timespec began;
static volatile long sink; /* what is returned must be used */

static _Noreturn void die(const char *why)
{
    fprintf(stderr, "exports: %s\n", why);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void must(int holds, const char *what)
{
    if (!holds)
        die(what);
}

static void start(void)
{
    clock_gettime(CLOCK_MONOTONIC, &began);
}

static void halt(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    spent += (uint64_t)(now.tv_sec - began.tv_sec) * 1000000000u + (uint64_t)now.tv_nsec - (uint64_t)began.tv_nsec;
}

/*
 * Finishes a call before the next one begins. In a loop of short calls, a processor starts the next calls while the first one
 * waits for memory, and the waits overlap. A program that uses the result of each call has no such overlap.
 */
static int finish_call(void)
{
#if defined(__x86_64__)
    __builtin_ia32_lfence();
#elif defined(__aarch64__)
    __asm__ volatile("dsb ld\n\tisb" ::: "memory");
#endif
    return 1;
}

#define TIMES(n) for (size_t i = 0; i < (n) && finish_call(); i++)

static SSL_CTX *next_context(void)
{
    turn += 7919; /* a prime: all of them in turn, and no neighbours */
    return contexts[turn % count];
}

static void random_id(unsigned char *id)
{
    static uint64_t state = 1;

    for (size_t i = 0; i < ID_LENGTH; i += sizeof(uint64_t)) {
        uint64_t z = state += 0x9e3779b97f4a7c15u;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        memcpy(id + i, &z, sizeof z);
    }
}

static SSL_SESSION *new_session(void)
{
    SSL_SESSION *session = SSL_SESSION_new();
    unsigned char id[ID_LENGTH];

    random_id(id);
    must(session != NULL && SSL_SESSION_set1_id(session, id, ID_LENGTH) &&
             SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) && SSL_SESSION_set_timeout(session, LIFETIME),
         "cannot make a session");
    return session;
}

static SSL_CTX *new_context(size_t cached)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    must(ctx != NULL, "SSL_CTX_new");
    for (size_t i = 0; i < cached; i++) {
        SSL_SESSION *session = new_session();

        must(SSL_CTX_add_session(ctx, session), "SSL_CTX_add_session");
        SSL_SESSION_free(session);
    }
    return ctx;
}

static const char *library(void)
{
    Dl_info info;
    const char *slash;

    if (dladdr(dlsym(RTLD_DEFAULT, "SSL_CTX_add_session"), &info) == 0 || info.dli_fname == NULL)
        return "unknown";
    slash = strrchr(info.dli_fname, '/');
    return slash != NULL ? slash + 1 : info.dli_fname;
}

/* ---- what takes an SSL_CTX and nothing else ---- */

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    (void)session;
    return 0;
}

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx;
    (void)session;
}

static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl;
    (void)id;
    (void)length;
    (void)copy;
    return NULL;
}

static int on_verify(X509_STORE_CTX *store, void *argument)
{
    (void)store;
    (void)argument;
    return 1;
}

static int on_name(SSL *ssl, int *alert, void *argument)
{
    (void)ssl;
    (void)alert;
    (void)argument;
    return SSL_TLSEXT_ERR_OK;
}

static int on_certificate(SSL *ssl, void *argument)
{
    (void)ssl;
    (void)argument;
    return 1;
}

static int on_generate(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)ssl;
    memset(id, 1, *length);
    return 1;
}

#define EACH(name, statement)              \
    static void name(size_t calls)         \
    {                                      \
        start();                           \
        TIMES (calls)                      \
            statement;                     \
        halt();                            \
    }

/* Reprise also has functions of the names that are macros in OpenSSL's header: there they are called, else the macro. */
typedef long getter(SSL_CTX *ctx);
typedef long setter(SSL_CTX *ctx, long value);

#define GETTER(name, command)                                                                             \
    static void name(size_t calls)                                                                        \
    {                                                                                                     \
        getter *function = (getter *)(uintptr_t)dlsym(RTLD_DEFAULT, #command);                            \
                                                                                                          \
        start();                                                                                          \
        if (function != NULL)                                                                             \
            TIMES (calls)                                                                                 \
                sink += function(next_context());                                                         \
        else                                                                                              \
            TIMES (calls)                                                                                 \
                sink += command(next_context());                                                          \
        halt();                                                                                           \
    }
#define SETTER(name, command, value)                                                                      \
    static void name(size_t calls)                                                                        \
    {                                                                                                     \
        setter *function = (setter *)(uintptr_t)dlsym(RTLD_DEFAULT, #command);                            \
                                                                                                          \
        start();                                                                                          \
        if (function != NULL)                                                                             \
            TIMES (calls)                                                                                 \
                sink += function(next_context(), value);                                                  \
        else                                                                                              \
            TIMES (calls)                                                                                 \
                sink += command(next_context(), value);                                                   \
        halt();                                                                                           \
    }

EACH(ctrl, sink += SSL_CTX_ctrl(next_context(), SSL_CTRL_GET_SESS_CACHE_SIZE, 0, NULL))
GETTER(get_mode, SSL_CTX_get_session_cache_mode)
SETTER(set_mode, SSL_CTX_set_session_cache_mode, SSL_SESS_CACHE_SERVER)
GETTER(get_size, SSL_CTX_sess_get_cache_size)
SETTER(set_size, SSL_CTX_sess_set_cache_size, 20480)
GETTER(number, SSL_CTX_sess_number)
GETTER(connects, SSL_CTX_sess_connect)
GETTER(connects_good, SSL_CTX_sess_connect_good)
GETTER(connects_renegotiate, SSL_CTX_sess_connect_renegotiate)
GETTER(accepts, SSL_CTX_sess_accept)
GETTER(accepts_good, SSL_CTX_sess_accept_good)
GETTER(accepts_renegotiate, SSL_CTX_sess_accept_renegotiate)
GETTER(hits, SSL_CTX_sess_hits)
GETTER(cb_hits, SSL_CTX_sess_cb_hits)
GETTER(misses, SSL_CTX_sess_misses)
GETTER(timeouts, SSL_CTX_sess_timeouts)
GETTER(cache_full, SSL_CTX_sess_cache_full)
EACH(set_new_cb, SSL_CTX_sess_set_new_cb(next_context(), on_new))
EACH(set_remove_cb, SSL_CTX_sess_set_remove_cb(next_context(), on_remove))
EACH(set_get_cb, SSL_CTX_sess_set_get_cb(next_context(), on_get))
EACH(get_new_cb, sink += SSL_CTX_sess_get_new_cb(next_context()) != NULL)
EACH(get_remove_cb, sink += SSL_CTX_sess_get_remove_cb(next_context()) != NULL)
EACH(get_get_cb, sink += SSL_CTX_sess_get_get_cb(next_context()) != NULL)
EACH(set_verify, SSL_CTX_set_cert_verify_callback(next_context(), on_verify, NULL))
EACH(callback_ctrl, sink += SSL_CTX_set_tlsext_servername_callback(next_context(), on_name))
EACH(set_cert_cb, SSL_CTX_set_cert_cb(next_context(), on_certificate, NULL))
EACH(set_generate, sink += SSL_CTX_set_generate_session_id(next_context(), on_generate))
EACH(set_id_context, sink += SSL_CTX_set_session_id_context(next_context(), (const unsigned char *)"bench", 5))
EACH(list, sink += SSL_CTX_sessions(next_context()) != NULL)
EACH(flush_none, SSL_CTX_flush_sessions(next_context(), 1))

typedef void flush_function(SSL_CTX *ctx, time_t time);

static flush_function *flush_ex(void)
{
    void *found = dlsym(RTLD_DEFAULT, "SSL_CTX_flush_sessions_ex");

    return found != NULL ? (flush_function *)(uintptr_t)found : (flush_function *)SSL_CTX_flush_sessions;
}

static void flush_none_ex(size_t calls)
{
    flush_function *flush = flush_ex();

    start();
    TIMES (calls)
        flush(next_context(), 1);
    halt();
}

static void make_context(size_t calls)
{
    start();
    TIMES (calls)
        SSL_CTX_free(SSL_CTX_new(TLS_server_method()));
    halt();
}

typedef SSL_CTX *new_ex_function(void *libctx, const char *propq, const SSL_METHOD *method);

static void make_context_ex(size_t calls)
{
    void *found = dlsym(RTLD_DEFAULT, "SSL_CTX_new_ex");
    new_ex_function *new_ex = (new_ex_function *)(uintptr_t)found;

    must(found != NULL, "no SSL_CTX_new_ex");
    start();
    TIMES (calls)
        SSL_CTX_free(new_ex(NULL, NULL, TLS_server_method()));
    halt();
}

/* ---- sessions ---- */

static SSL_SESSION *fresh[BATCH];
static SSL_CTX *where[BATCH];

/* New sessions each time: one that was removed is marked for good. */
static void with_fresh(size_t calls, void (*run)(size_t n))
{
    while (calls > 0) {
        size_t n = calls < BATCH ? calls : BATCH;

        TIMES (n) {
            fresh[i] = new_session();
            where[i] = next_context();
        }
        run(n);
        TIMES (n)
            SSL_SESSION_free(fresh[i]);
        calls -= n;
    }
}

static void add_all(size_t n)
{
    TIMES (n)
        sink += SSL_CTX_add_session(where[i], fresh[i]);
}

static void remove_all(size_t n)
{
    TIMES (n)
        sink += SSL_CTX_remove_session(where[i], fresh[i]);
}

static void run_add(size_t n)
{
    start();
    add_all(n);
    halt();
    remove_all(n);
}

static void run_remove(size_t n)
{
    add_all(n);
    start();
    remove_all(n);
    halt();
}

static void run_add_remove(size_t n)
{
    start();
    TIMES (n) {
        sink += SSL_CTX_add_session(where[i], fresh[i]);
        sink += SSL_CTX_remove_session(where[i], fresh[i]);
    }
    halt();
}

static void run_flush(size_t n)
{
    TIMES (n)
        SSL_SESSION_set_time(fresh[i], 1000);
    start();
    TIMES (n) {
        sink += SSL_CTX_add_session(where[i], fresh[i]);
        SSL_CTX_flush_sessions(where[i], 1000 + LIFETIME + 1);
    }
    halt();
}

static void run_timeout(size_t n)
{
    start();
    TIMES (n)
        sink += SSL_SESSION_set_timeout(fresh[i], LIFETIME);
    halt();
}

static void run_time(size_t n)
{
    long now = (long)time(NULL);

    start();
    TIMES (n)
        sink += SSL_SESSION_set_time(fresh[i], now);
    halt();
}

typedef time_t set_time_function(SSL_SESSION *session, time_t time);

static void run_time_ex(size_t n)
{
    void *found = dlsym(RTLD_DEFAULT, "SSL_SESSION_set_time_ex");
    set_time_function *set = (set_time_function *)(uintptr_t)found;
    time_t now = time(NULL);

    if (set == NULL)
        set = (set_time_function *)SSL_SESSION_set_time;
    start();
    TIMES (n)
        sink += (long)set(fresh[i], now);
    halt();
}

static void add_session(size_t calls) { with_fresh(calls, run_add); }
static void remove_session(size_t calls) { with_fresh(calls, run_remove); }
static void add_remove(size_t calls) { with_fresh(calls, run_add_remove); }
static void add_flush(size_t calls) { with_fresh(calls, run_flush); }
static void set_timeout(size_t calls) { with_fresh(calls, run_timeout); }
static void set_time(size_t calls) { with_fresh(calls, run_time); }
static void set_time_ex(size_t calls) { with_fresh(calls, run_time_ex); }

/* Of sessions that are cached. */
EACH(cached_timeout, sink += SSL_SESSION_set_timeout(sessions[i % BATCH], LIFETIME))
EACH(cached_time, sink += SSL_SESSION_set_time(sessions[i % BATCH], (long)began.tv_sec + 1000000000))

/* ---- connections ---- */

static SSL *connections[BATCH];

static void with_connections(size_t calls, SSL_CTX *of, void (*run)(size_t n))
{
    while (calls > 0) {
        size_t n = calls < BATCH ? calls : BATCH;

        TIMES (n) {
            connections[i] = SSL_new(of != NULL ? of : next_context());
            must(connections[i] != NULL, "SSL_new");
        }
        run(n);
        TIMES (n)
            SSL_free(connections[i]);
        calls -= n;
    }
}

static void make_connection(size_t calls)
{
    while (calls > 0) {
        size_t n = calls < BATCH ? calls : BATCH;

        start();
        TIMES (n)
            connections[i] = SSL_new(next_context());
        halt();
        TIMES (n)
            SSL_free(connections[i]);
        calls -= n;
    }
}

static void free_connection(size_t calls)
{
    while (calls > 0) {
        size_t n = calls < BATCH ? calls : BATCH;

        TIMES (n)
            connections[i] = SSL_new(next_context());
        start();
        TIMES (n)
            SSL_free(connections[i]);
        halt();
        calls -= n;
    }
}

static void server_name(size_t calls)
{
    start();
    TIMES (calls) {
        SSL *ssl = SSL_new(next_context());

        sink += SSL_set_SSL_CTX(ssl, other) != NULL;
        SSL_free(ssl);
    }
    halt();
}

#define RUN(name, setup, statement)        \
    static void name(size_t n)             \
    {                                      \
        for (size_t i = 0; i < n; i++)     \
            setup;                         \
        start();                           \
        for (size_t i = 0; i < n; i++)     \
            statement;                     \
        halt();                            \
    }

static void use_memory(SSL *ssl)
{
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
}

RUN(run_clear, SSL_set_accept_state(connections[i]), sink += SSL_clear(connections[i]))
RUN(run_connect, use_memory(connections[i]), sink += SSL_connect(connections[i]))
RUN(run_connect_state, (void)0, SSL_set_connect_state(connections[i]))
RUN(run_get_session, SSL_set_session(connections[i], sessions[0]), sink += SSL_get_session(connections[i]) != NULL)
RUN(run_peer_chain, SSL_set_session(connections[i], sessions[0]), sink += SSL_get_peer_cert_chain(connections[i]) != NULL)
RUN(run_get1_session, SSL_set_session(connections[i], sessions[0]), SSL_SESSION_free(SSL_get1_session(connections[i])))
RUN(run_switch, (void)0, sink += SSL_set_SSL_CTX(connections[i], other) != NULL)
RUN(run_generate, (void)0, sink += SSL_set_generate_session_id(connections[i], on_generate))
RUN(run_cert_cb, (void)0, SSL_set_cert_cb(connections[i], on_certificate, NULL))
RUN(run_matching, (void)0, sink += SSL_has_matching_session_id(connections[i], ids[i], ID_LENGTH))

typedef SSL_SESSION *get0_function(const SSL *ssl);

static void run_get0_session(size_t n)
{
    void *found = dlsym(RTLD_DEFAULT, "SSL_get0_session");
    get0_function *get0 = found != NULL ? (get0_function *)(uintptr_t)found : (get0_function *)SSL_get_session;

    TIMES (n)
        SSL_set_session(connections[i], sessions[0]);
    start();
    TIMES (n)
        sink += get0(connections[i]) != NULL;
    halt();
}

static void clear(size_t calls) { with_connections(calls, NULL, run_clear); }
static void connect_client(size_t calls) { with_connections(calls, client, run_connect); }
static void connect_state(size_t calls) { with_connections(calls, NULL, run_connect_state); }
static void get_session(size_t calls) { with_connections(calls, client, run_get_session); }
static void get0_session(size_t calls) { with_connections(calls, client, run_get0_session); }
static void peer_chain(size_t calls) { with_connections(calls, client, run_peer_chain); }
static void get1_session(size_t calls) { with_connections(calls, client, run_get1_session); }
static void switch_context(size_t calls) { with_connections(calls, NULL, run_switch); }
static void set_generate_of_one(size_t calls) { with_connections(calls, NULL, run_generate); }
static void set_cert_cb_of_one(size_t calls) { with_connections(calls, NULL, run_cert_cb); }
static void matching(size_t calls) { with_connections(calls, NULL, run_matching); }

/* ---- Reprise's own, which have no counterpart ---- */

typedef int own_number(SSL_CTX *ctx, long number);
typedef int own_text(SSL_CTX *ctx, const char *text);
typedef int own_stats(SSL_CTX *ctx, void *stats, size_t size);
typedef const char *own_version(void);

static void *own(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);

    must(found != NULL, name);
    return found;
}

#define OWN_NUMBER(name, function, value)                            \
    static void name(size_t calls)                                   \
    {                                                                \
        own_number *call = (own_number *)(uintptr_t)own(#function);  \
                                                                     \
        start();                                                     \
        for (size_t i = 0; i < calls; i++)                           \
            sink += call(next_context(), value);                     \
        halt();                                                      \
    }

OWN_NUMBER(own_get_semantics, reprise_ctx_get_semantics, 0)
OWN_NUMBER(own_set_internal, reprise_ctx_set_internal, 0)
OWN_NUMBER(own_set_max_age, reprise_ctx_set_max_age, 0)
OWN_NUMBER(own_set_semantics, reprise_ctx_set_semantics, 1)
OWN_NUMBER(own_set_tickets, reprise_ctx_set_tickets, 0)
OWN_NUMBER(own_set_unclean, reprise_ctx_set_unclean, 0)

static void own_set_cache(size_t calls)
{
    own_text *call = (own_text *)(uintptr_t)own("reprise_ctx_set_cache");

    start();
    TIMES (calls)
        sink += call(next_context(), "memory:");
    halt();
}

static void own_get_stats(size_t calls)
{
    own_stats *call = (own_stats *)(uintptr_t)own("reprise_ctx_stats");
    uint64_t stats[64];

    start();
    TIMES (calls)
        sink += call(next_context(), stats, 160);
    halt();
}

static void own_get_version(size_t calls)
{
    own_version *call = (own_version *)(uintptr_t)own("reprise_version");

    start();
    TIMES (calls)
        sink += call()[0];
    halt();
}

static const struct { const char *name; void (*run)(size_t calls); } measurements[] = {
    {"SSL_CTX_add_session", add_session},
    {"SSL_CTX_remove_session", remove_session},
    {"add+remove", add_remove},
    {"SSL_CTX_callback_ctrl", callback_ctrl},
    {"SSL_CTX_ctrl", ctrl},
    {"SSL_CTX_flush_sessions", flush_none},
    {"add+flush", add_flush},
    {"SSL_CTX_flush_sessions_ex", flush_none_ex},
    {"SSL_CTX_get_session_cache_mode", get_mode},
    {"SSL_CTX_new", make_context},
    {"SSL_CTX_new_ex", make_context_ex},
    {"SSL_CTX_sess_accept", accepts},
    {"SSL_CTX_sess_accept_good", accepts_good},
    {"SSL_CTX_sess_accept_renegotiate", accepts_renegotiate},
    {"SSL_CTX_sess_cache_full", cache_full},
    {"SSL_CTX_sess_cb_hits", cb_hits},
    {"SSL_CTX_sess_connect", connects},
    {"SSL_CTX_sess_connect_good", connects_good},
    {"SSL_CTX_sess_connect_renegotiate", connects_renegotiate},
    {"SSL_CTX_sess_get_cache_size", get_size},
    {"SSL_CTX_sess_get_get_cb", get_get_cb},
    {"SSL_CTX_sess_get_new_cb", get_new_cb},
    {"SSL_CTX_sess_get_remove_cb", get_remove_cb},
    {"SSL_CTX_sess_hits", hits},
    {"SSL_CTX_sess_misses", misses},
    {"SSL_CTX_sess_number", number},
    {"SSL_CTX_sess_set_cache_size", set_size},
    {"SSL_CTX_sess_set_get_cb", set_get_cb},
    {"SSL_CTX_sess_set_new_cb", set_new_cb},
    {"SSL_CTX_sess_set_remove_cb", set_remove_cb},
    {"SSL_CTX_sess_timeouts", timeouts},
    {"SSL_CTX_sessions", list},
    {"SSL_CTX_set_cert_cb", set_cert_cb},
    {"SSL_CTX_set_cert_verify_callback", set_verify},
    {"SSL_CTX_set_generate_session_id", set_generate},
    {"SSL_CTX_set_session_cache_mode", set_mode},
    {"SSL_CTX_set_session_id_context", set_id_context},
    {"SSL_SESSION_set_time", set_time},
    {"SSL_SESSION_set_time, cached", cached_time},
    {"SSL_SESSION_set_time_ex", set_time_ex},
    {"SSL_SESSION_set_timeout", set_timeout},
    {"SSL_SESSION_set_timeout, cached", cached_timeout},
    {"SSL_clear", clear},
    {"SSL_connect", connect_client},
    {"SSL_free", free_connection},
    {"SSL_get0_session", get0_session},
    {"SSL_get1_session", get1_session},
    {"SSL_get_peer_cert_chain", peer_chain},
    {"SSL_get_session", get_session},
    {"SSL_has_matching_session_id", matching},
    {"SSL_new", make_connection},
    {"SSL_set_SSL_CTX", switch_context},
    {"new+set_SSL_CTX+free", server_name},
    {"SSL_set_cert_cb", set_cert_cb_of_one},
    {"SSL_set_connect_state", connect_state},
    {"SSL_set_generate_session_id", set_generate_of_one},
    {"reprise_ctx_get_semantics", own_get_semantics},
    {"reprise_ctx_set_cache", own_set_cache},
    {"reprise_ctx_set_internal", own_set_internal},
    {"reprise_ctx_set_max_age", own_set_max_age},
    {"reprise_ctx_set_semantics", own_set_semantics},
    {"reprise_ctx_set_tickets", own_set_tickets},
    {"reprise_ctx_set_unclean", own_set_unclean},
    {"reprise_ctx_stats", own_get_stats},
    {"reprise_version", own_get_version},
};

static void serve(void)
{
    size_t cached = count == 1 ? CACHED_ALONE : CACHED;
    char line[128];

    contexts = calloc(count, sizeof *contexts);
    must(contexts != NULL, "out of memory");
    for (size_t i = 0; i < count; i++)
        contexts[i] = new_context(cached);
    for (size_t i = 0; i < BATCH; i++) {
        sessions[i] = new_session();
        memcpy(ids[i], SSL_SESSION_get_id(sessions[i], NULL), ID_LENGTH);
        must(SSL_CTX_add_session(next_context(), sessions[i]), "SSL_CTX_add_session");
    }
    client = SSL_CTX_new(TLS_client_method());
    other = SSL_CTX_new(TLS_server_method());
    must(client != NULL && other != NULL, "SSL_CTX_new");
    printf("library=%s\n", library());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *tab = strchr(line, '\t');
        size_t calls = 0, found = 0;

        must(tab != NULL, "a line wants a name, a tab and a number");
        *tab = '\0';
        calls = (size_t)strtoul(tab + 1, NULL, 10);
        while (found < sizeof measurements / sizeof *measurements && strcmp(measurements[found].name, line) != 0)
            found++;
        must(found < sizeof measurements / sizeof *measurements && calls > 0, line);
        spent = 0;
        measurements[found].run(calls);
        ERR_clear_error();
        printf("%.3f\n", (double)spent / (double)calls);
        fflush(stdout);
    }
}

static double resident(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long size = 0, pages = 0;

    must(file != NULL && fscanf(file, "%ld %ld", &size, &pages) == 2, "cannot read /proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void memory(size_t cached)
{
    double before;

    new_context(cached); /* what the first one brings along is the process's */
    before = resident();
    for (size_t i = 0; i < count; i++)
        new_context(cached);
    printf("library=%s\n%.0f\n", library(), (resident() - before) / (double)count);
}

int main(int argc, char **argv)
{
    int is_memory = argc == 4 && strcmp(argv[1], "memory") == 0;

    if (argc == 2 && strcmp(argv[1], "names") == 0) {
        for (size_t i = 0; i < sizeof measurements / sizeof *measurements; i++)
            puts(measurements[i].name);
        return 0;
    }
    if (!is_memory && argc != 2) {
        fprintf(stderr, "usage: exports CONTEXTS | exports memory CONTEXTS N | exports names\n");
        return 2;
    }
    count = (size_t)strtoul(argv[is_memory ? 2 : 1], NULL, 10);
    must(count > 0, "how many contexts?");
    if (is_memory)
        memory((size_t)strtoul(argv[3], NULL, 10));
    else
        serve();
    return 0;
}
