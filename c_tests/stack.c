/*
 * Small stacks: the jobs of SSL_MODE_ASYNC have 32 kB, and some threads have the least that the system allows. What runs
 * there on libssl alone runs with Reprise. (How much each call takes: tests/stack.rs.)
 */
#define OPENSSL_SUPPRESS_DEPRECATED /* SSL_CTX_flush_sessions is the name programs use */
#define _POSIX_C_SOURCE 200809L
#include "harness.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl, (void)session;
    return 0;
}

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
}

static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    return NULL;
}

static void callbacks(SSL_CTX *ctx)
{
    SSL_CTX_sess_set_new_cb(ctx, on_new);
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    SSL_CTX_sess_set_get_cb(ctx, on_get);
}

/* ---- handshakes in jobs ---- */

static void in_jobs(int version, int with_callbacks)
{
    for (int i = 0; i < 5; i++) {
        SSL_CTX *server = server_ctx(version), *client = client_ctx(version);
        SSL_SESSION *session;

        SSL_CTX_set_mode(server, SSL_MODE_ASYNC);
        SSL_CTX_set_mode(client, SSL_MODE_ASYNC);
        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_cache_size(server, 2);
        if (with_callbacks)
            callbacks(server);
        for (int j = 0; j < 5; j++) {
            session = tls_session(client, server);
            if (!with_callbacks)
                assert_true(tls_resumes(client, server, session));
            SSL_SESSION_free(session);
        }
        SSL_CTX_free(server);
        SSL_CTX_free(client);
    }
}

static void handshakes_in_jobs(void **state)
{
    (void)state;
    for (int with_callbacks = 0; with_callbacks < 2; with_callbacks++) {
        in_jobs(TLS1_2_VERSION, with_callbacks);
        in_jobs(TLS1_3_VERSION, with_callbacks);
    }
}

/* ---- threads ---- */

static SSL_CTX *common;

/* Each session is in one context alone: libssl links it into the list of one. */
static void cache_by_hand(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    SSL_SESSION *session[10];

    callbacks(ctx);
    SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"stack", 5);
    SSL_CTX_sess_set_cache_size(ctx, 3);
    for (unsigned char i = 0; i < 10; i++) {
        session[i] = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));
        SSL_CTX_add_session(i % 2 == 0 ? ctx : common, session[i]);
        SSL_SESSION_set_timeout(session[i], 1000);
    }
    SSL_CTX_sessions(ctx);
    for (int i = 0; i < 10; i += 3)
        SSL_CTX_remove_session(i % 2 == 0 ? ctx : common, session[i]);
    SSL_CTX_flush_sessions(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_BOTH);
    SSL_CTX_sess_number(ctx);
    SSL_CTX_free(ctx);
    for (int i = 0; i < 10; i++)
        SSL_SESSION_free(session[i]);
}

static void handshakes(void)
{
    SSL_CTX *server = server_ctx(TLS1_3_VERSION), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    session = tls_session(client, server);
    tls_resumes(client, server, session);
    SSL_SESSION_free(session);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

static void *thread(void *work)
{
    (*(void (**)(void))work)();
    return NULL;
}

/* The system puts the thread's own data there, too: how much that is differs. */
static void on_stack(size_t size, void (*work)(void))
{
    pthread_attr_t attributes;
    pthread_t id;

    pthread_attr_init(&attributes);
    assert_int_equal(pthread_attr_setstacksize(&attributes, size), 0);
    assert_int_equal(pthread_create(&id, &attributes, thread, &work), 0);
    pthread_join(id, NULL);
    pthread_attr_destroy(&attributes);
}

static size_t smallest(void)
{
    return (size_t)sysconf(_SC_THREAD_STACK_MIN);
}

static void the_cache_on_the_smallest_stack(void **state)
{
    (void)state;
    common = SSL_CTX_new(TLS_method());
    for (int i = 0; i < 10; i++)
        on_stack(smallest(), cache_by_hand);
    SSL_CTX_free(common);
}

static void handshakes_on_small_stacks(void **state)
{
    (void)state;
    for (size_t more = 0; more <= 32 << 10; more += 8 << 10)
        on_stack(smallest() + (8 << 10) + more, handshakes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* The first of everything happens there. */
        RULE_TEST(the_cache_on_the_smallest_stack),
        RULE_TEST(handshakes_on_small_stacks),
        RULE_TEST(handshakes_in_jobs),
    };

    return RUN_PAGE("stack", tests);
}
