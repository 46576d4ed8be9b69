/*
 * How much stack each call takes: one line each, "NAME BYTES", of the first call and of a later one, whichever took more.
 * tests/stack.rs runs it on libssl alone and with Reprise in between, and compares.
 *
 * Each call is made on a thread whose stack is filled with a pattern beforehand; how much of that is gone afterwards is
 * what the call took.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "../harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { STACK = 1 << 20, WORDS = STACK / sizeof(uint64_t), SPARED = 1024 };
static const uint64_t pattern = 0x5ca1ab1e5ca1ab1e;

static uint64_t *stack;
static void (*call)(void);
static size_t taken;

static __attribute__((noinline)) void *measure(void *arg)
{
    char here;
    size_t top = ((uintptr_t)&here - (uintptr_t)stack - SPARED) / sizeof(uint64_t);
    volatile uint64_t *word = stack;

    for (size_t i = 0; i < top; i++)
        word[i] = pattern;
    call();
    for (size_t i = 0; i < top; i++)
        if (word[i] != pattern) {
            taken = (top - i) * sizeof(uint64_t);
            return arg;
        }
    taken = 0;
    return arg;
}

static size_t stack_of(void (*f)(void))
{
    pthread_attr_t attributes;
    pthread_t thread;

    call = f;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, STACK);
    if (pthread_create(&thread, &attributes, measure, NULL) != 0)
        abort();
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    return taken;
}

static void report(const char *name, void (*f)(void))
{
    size_t first = stack_of(f), again = stack_of(f);

    printf("%s %zu\n", name, first > again ? first : again);
    fflush(stdout);
}

/* ---- the calls ---- */

static SSL_CTX *ctx, *client, *server, *other, *server13, *client13;
static SSL_SESSION *session, *offer, *offer13;
static SSL *ssl;
static pair p;
static unsigned char fill;
static long sum;

static int on_new(SSL *s, SSL_SESSION *new)
{
    (void)s, (void)new;
    return 0;
}

static void on_remove(SSL_CTX *c, SSL_SESSION *old)
{
    (void)c, (void)old;
}

static SSL_SESSION *on_get(SSL *s, const unsigned char *id, int length, int *copy)
{
    (void)s, (void)id, (void)length, (void)copy;
    return NULL;
}

static int generate(const SSL *s, unsigned char *id, unsigned int *length)
{
    (void)s;
    memset(id, ++fill, *length);
    return 1;
}

static void new_ctx(void)
{
    SSL_CTX_free(ctx);
    ctx = SSL_CTX_new(TLS_method());
}

static void new_ctx_ex(void)
{
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
    SSL_CTX_free(ctx);
    ctx = SSL_CTX_new_ex(NULL, NULL, TLS_method());
#endif
}

static void add(void)
{
    SSL_SESSION *made = made_session(TLS1_2_VERSION, ++fill);

    SSL_CTX_add_session(ctx, made);
    SSL_SESSION_free(made);
}

static void remove_it(void)
{
    SSL_CTX_remove_session(ctx, session);
    SSL_CTX_add_session(ctx, session);
}

static void evict(void)
{
    SSL_CTX_sess_set_cache_size(ctx, 2);
    for (int i = 0; i < 8; i++)
        add();
}

static void flush(void)
{
    for (int i = 0; i < 8; i++)
        add();
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 100000);
    add();
    SSL_CTX_flush_sessions(ctx, 0);
}

static void free_ctx(void)
{
    new_ctx();
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    for (int i = 0; i < 8; i++)
        add();
    SSL_CTX_free(ctx);
    ctx = NULL;
    new_ctx();
}

static void all_sessions(void)
{
    for (int i = 0; i < 64; i++)
        add();
    sum += SSL_CTX_sessions(ctx) != NULL;
}

static void controls(void)
{
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_BOTH);
    sum += SSL_CTX_get_session_cache_mode(ctx);
    SSL_CTX_sess_set_cache_size(ctx, 100);
    sum += SSL_CTX_sess_get_cache_size(ctx);
    sum += SSL_CTX_sess_number(ctx) + SSL_CTX_sess_connect(ctx) + SSL_CTX_sess_connect_good(ctx);
    sum += SSL_CTX_sess_connect_renegotiate(ctx) + SSL_CTX_sess_accept(ctx) + SSL_CTX_sess_accept_good(ctx);
    sum += SSL_CTX_sess_accept_renegotiate(ctx) + SSL_CTX_sess_hits(ctx) + SSL_CTX_sess_cb_hits(ctx);
    sum += SSL_CTX_sess_misses(ctx) + SSL_CTX_sess_timeouts(ctx) + SSL_CTX_sess_cache_full(ctx);
}

static void callbacks(void)
{
    SSL_CTX_sess_set_new_cb(ctx, on_new);
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    SSL_CTX_sess_set_get_cb(ctx, on_get);
    sum += SSL_CTX_sess_get_new_cb(ctx) != NULL;
    sum += SSL_CTX_sess_get_remove_cb(ctx) != NULL;
    sum += SSL_CTX_sess_get_get_cb(ctx) != NULL;
}

static void times(void)
{
    SSL_SESSION_set_time(session, (long)time(NULL));
    SSL_SESSION_set_timeout(session, 500);
}

static void id_context(void)
{
    SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"stack", 5);
}

static void generators(void)
{
    SSL_CTX_set_generate_session_id(ctx, (GEN_SESSION_CB)generate);
    SSL_set_generate_session_id(ssl, (GEN_SESSION_CB)generate);
}

static void connection(void)
{
    SSL_free(ssl);
    ssl = SSL_new(ctx);
    SSL_set_connect_state(ssl);
    sum += SSL_clear(ssl);
    sum += SSL_get_session(ssl) != NULL;
    SSL_SESSION_free(SSL_get1_session(ssl));
}

static void connect_to_nobody(void)
{
    SSL_free(ssl);
    ssl = SSL_new(client);
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    sum += SSL_connect(ssl);
}

static void switch_ctx(void)
{
    SSL_free(ssl);
    ssl = SSL_new(server);
    SSL_set_SSL_CTX(ssl, other);
}

static void matching(void)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(offer, &length);

    SSL_free(ssl);
    ssl = SSL_new(server);
    sum += SSL_has_matching_session_id(ssl, id, length);
}

static void full(void)
{
    p = tls_connect(client, server, NULL);
    tls_close(&p);
}

static void resumed(void)
{
    p = tls_connect(client, server, offer);
    tls_close(&p);
}

static void dropped(void)
{
    p = tls_connect(client, server, NULL);
    tls_drop(&p);
}

static void full13(void)
{
    p = tls_connect(client13, server13, NULL);
    tls_close(&p);
}

static void resumed13(void)
{
    p = tls_connect(client13, server13, offer13);
    tls_close(&p);
}

static void early_data(void)
{
    struct ticket_race racer = { server13, client13, NULL, { -1, -1 } };

    SSL_CTX_set_max_early_data(server13, 1000);
    racer.ticket = tls_session(client13, server13);
    sum += race_ticket(&racer);
    SSL_SESSION_free(racer.ticket);
    SSL_CTX_set_max_early_data(server13, 0);
}

/* What has expired is cleared by connections. */
static void sweep(void)
{
    for (int i = 0; i < 100; i++) {
        SSL_SESSION *made = made_session(TLS1_2_VERSION, ++fill);

        SSL_SESSION_set_time(made, (long)time(NULL) - 100000);
        SSL_CTX_add_session(server, made);
        SSL_SESSION_free(made);
    }
    for (int i = 0; i < 300; i++)
        SSL_free(SSL_new(server));
}

static void with_get_cb(void)
{
    SSL_CTX_sess_set_get_cb(server, on_get);
    SSL_CTX_sess_set_new_cb(server, on_new);
    SSL_CTX_sess_set_remove_cb(server, on_remove);
    full();
    SSL_CTX_flush_sessions(server, 0);
    resumed();
}

/* The first of everything in the process, as in a program that does TLS on small threads only. */
static void nothing(void)
{
}

int main(void)
{
    stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    report("nothing", nothing);
    report("SSL_CTX_new", new_ctx);
    report("SSL_CTX_new_ex", new_ctx_ex);
    session = made_session(TLS1_2_VERSION, ++fill);
    report("SSL_CTX_add_session", add);
    report("SSL_CTX_remove_session", remove_it);
    report("SSL_SESSION_set_time", times);
    report("SSL_CTX_sessions", all_sessions);
    report("SSL_CTX_ctrl", controls);
    report("evictions", evict);
    report("SSL_CTX_flush_sessions", flush);
    report("SSL_CTX_sess_set_get_cb", callbacks);
    report("SSL_CTX_free", free_ctx);
    report("SSL_CTX_set_session_id_context", id_context);
    report("SSL_new", connection);
    report("SSL_CTX_set_generate_session_id", generators);
    server = server_ctx(TLS1_2_VERSION);
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    other = server_ctx(TLS1_2_VERSION);
    client = client_ctx(TLS1_2_VERSION);
    SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
    report("SSL_connect", connect_to_nobody);
    report("SSL_set_SSL_CTX", switch_ctx);
    report("TLS 1.2, full", full);
    offer = tls_session(client, server);
    report("TLS 1.2, resumed", resumed);
    report("SSL_has_matching_session_id", matching);
    report("TLS 1.2, without close_notify", dropped);
    report("clearing", sweep);
    report("TLS 1.2, callbacks", with_get_cb);
    server13 = server_ctx(TLS1_3_VERSION);
    SSL_CTX_set_options(server13, SSL_OP_NO_TICKET);
    client13 = client_ctx(TLS1_3_VERSION);
    report("TLS 1.3, full", full13);
    offer13 = tls_session(client13, server13);
    report("TLS 1.3, resumed", resumed13);
    report("early data", early_data);
    SSL_free(ssl);
    return sum == 0;
}
