/*
 * Threads that end inside a callback: pthread_cancel unwinds through the callback, libssl and Reprise. What it passes
 * is left whole, and a thread is cancelled nowhere else than on libssl alone.
 */
#define OPENSSL_SUPPRESS_DEPRECATED /* SSL_CTX_flush_sessions is the name programs use */
#define _POSIX_C_SOURCE 200809L
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static SSL_CTX *server, *client;
static SSL_SESSION *offer;
static pair p;
static atomic_int calls;

/* ---- callbacks in which the thread ends ---- */

static void give_back(void *session)
{
    calls++;
    SSL_SESSION_free(session);
}

static void end_here(void)
{
    pthread_cancel(pthread_self());
    pthread_testcancel();
    fail_msg("the thread goes on");
}

static int cancel_in_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    pthread_cleanup_push(give_back, session);
    end_here();
    pthread_cleanup_pop(0);
    return 1;
}

static void cancel_in_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    calls++;
    end_here();
}

static SSL_SESSION *cancel_in_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    calls++;
    end_here();
    return NULL;
}

static int cancel_in_generate(const SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)ssl, (void)id, (void)length;
    calls++;
    end_here();
    return 0;
}

/* ---- what the threads do ---- */

static void handshake(void)
{
    p = tls_prepare(client, server);
    if (offer != NULL)
        SSL_set_session(p.client, offer);
    tls_drive(&p);
}

static void remove_offer(void)
{
    SSL_CTX_remove_session(server, offer);
}

static void flush(void)
{
    SSL_CTX_flush_sessions(server, 0);
}

static void replace(void)
{
    SSL_SESSION *same_id = made_session(TLS1_2_VERSION, 1);

    pthread_cleanup_push(give_back, same_id);
    SSL_CTX_add_session(server, same_id);
    pthread_cleanup_pop(1);
}

static void evict(void)
{
    SSL_SESSION *one_more = made_session(TLS1_2_VERSION, 99);

    SSL_CTX_sess_set_cache_size(server, 1);
    pthread_cleanup_push(give_back, one_more);
    SSL_CTX_add_session(server, one_more);
    pthread_cleanup_pop(1);
}

static void *thread(void *work)
{
    (*(void (**)(void))work)();
    return NULL;
}

/* Whether the thread that does `work` is cancelled in a callback. */
static int is_cancelled(void (*work)(void))
{
    pthread_t id;
    void *result;

    calls = 0;
    assert_int_equal(pthread_create(&id, NULL, thread, &work), 0);
    assert_int_equal(pthread_join(id, &result), 0);
    return result == PTHREAD_CANCELED && calls > 0;
}

/* ---- tests ---- */

static void begin(void)
{
    server = server_ctx(TLS1_2_VERSION);
    client = client_ctx(TLS1_2_VERSION);
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    memset(&p, 0, sizeof(p));
}

static void end(void)
{
    SSL_SESSION_free(offer);
    offer = NULL;
    SSL_free(p.client);
    SSL_free(p.server);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

/* The context serves others as before. */
static void still_works(void)
{
    SSL_SESSION *session;

    SSL_CTX_sess_set_new_cb(server, NULL);
    SSL_CTX_sess_set_remove_cb(server, NULL);
    SSL_CTX_sess_set_get_cb(server, NULL);
    SSL_CTX_set_generate_session_id(server, NULL);
    SSL_CTX_sess_set_cache_size(server, 100);
    SSL_CTX_flush_sessions(server, 0);
    session = tls_session(client, server);
    assert_true(tls_resumes(client, server, session));
    SSL_SESSION_free(session);
    for (unsigned char i = 0; i < 80; i++) {
        session = made_session(TLS1_2_VERSION, (unsigned char)(100 + i));
        assert_true(added(server, session));
        assert_true(SSL_CTX_remove_session(server, session));
        SSL_SESSION_free(session);
    }
    SSL_CTX_flush_sessions(server, 0);
    assert_number(server, 0);
}

static void cancelled_in_new_cb(void **state)
{
    (void)state;
    begin();
    SSL_CTX_sess_set_new_cb(server, cancel_in_new);
    assert_true(is_cancelled(handshake));
    still_works();
    end();
}

static void cancelled_in_get_cb(void **state)
{
    (void)state;
    begin();
    offer = tls_session(client, server);
    SSL_CTX_flush_sessions(server, 0);
    SSL_CTX_sess_set_get_cb(server, cancel_in_get);
    assert_true(is_cancelled(handshake));
    still_works();
    end();
}

static void cancelled_in_the_generator(void **state)
{
    (void)state;
    begin();
    SSL_CTX_set_generate_session_id(server, (GEN_SESSION_CB)cancel_in_generate);
    assert_true(is_cancelled(handshake));
    still_works();
    end();
}

static void cancelled_in_remove_cb(void **state)
{
    (void)state;
    begin();
    offer = tls_session(client, server);
    SSL_CTX_sess_set_remove_cb(server, cancel_in_remove);
    assert_true(is_cancelled(remove_offer));
    assert_false(in_cache(server, TLS1_2_VERSION, offer));
    still_works();
    end();
}

/* Libssl itself holds the context's lock here, for ever. */
static void cancelled_in_remove_cb_of_many(void **state)
{
    void (*const works[])(void) = { flush, evict, replace };

    (void)state;
    if (subject() == STOCK || shared())
        skip(); /* and objects that were shared come back as copies */
    for (size_t i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
        if (subject() == STOCK_LIKE && works[i] == replace)
            continue; /* nobody is told */
        begin();
        for (unsigned char fill = 1; fill <= 20; fill++) {
            SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

            SSL_CTX_add_session(server, session);
            SSL_SESSION_free(session);
        }
        SSL_CTX_sess_set_remove_cb(server, cancel_in_remove);
        assert_true(is_cancelled(works[i]));
        still_works();
        end();
    }
}

/* ---- no cancellation points of our own ---- */

static atomic_int steps;

static void *use_everything(void *arg)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 7);
    SSL_CTX *ctx;

    (void)arg;
    pthread_cancel(pthread_self());
    ctx = SSL_CTX_new(TLS_method());
    steps++;
    SSL_CTX_add_session(ctx, session);
    steps++;
    in_cache(ctx, TLS1_2_VERSION, session);
    steps++;
    SSL_CTX_sess_number(ctx);
    SSL_SESSION_set_timeout(session, 1000);
    steps++;
    handshake();
    steps++;
    SSL_CTX_remove_session(ctx, session);
    SSL_CTX_flush_sessions(ctx, 0);
    steps++;
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
    steps++;
    pthread_testcancel();
    return NULL;
}

static void no_call_is_a_cancellation_point(void **state)
{
    pthread_t id;
    void *result;

    (void)state;
    for (int round = 0; round < 3; round++) {
        begin();
        offer = tls_session(client, server);
        steps = 0;
        assert_int_equal(pthread_create(&id, NULL, use_everything, NULL), 0);
        assert_int_equal(pthread_join(id, &result), 0);
        assert_ptr_equal(result, PTHREAD_CANCELED);
        assert_int_equal(steps, 7);
        end();
    }
}

/* What a thread has locked in the shared memory or a queue would be missed at once by the others. */
static void add_one(unsigned char fill)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

    pthread_cleanup_push(give_back, session);
    SSL_CTX_add_session(server, session);
    if (fill % 16 == 0)
        SSL_CTX_flush_sessions(server, 0);
    pthread_testcancel();
    pthread_cleanup_pop(1);
}

static void *add_many(void *arg)
{
    (void)arg;
    for (;;)
        add_one((unsigned char)++steps);
    return NULL;
}

static void cancelled_from_outside(void **state)
{
    (void)state;
    begin();
    for (int round = 0; round < 50; round++) {
        const struct timespec moment = { 0, 200000L * (round % 7) };
        pthread_t id[3];
        void *result;

        for (int i = 0; i < 3; i++)
            assert_int_equal(pthread_create(&id[i], NULL, add_many, NULL), 0);
        nanosleep(&moment, NULL);
        for (int i = 0; i < 3; i++)
            pthread_cancel(id[i]);
        for (int i = 0; i < 3; i++) {
            pthread_join(id[i], &result);
            assert_ptr_equal(result, PTHREAD_CANCELED);
        }
    }
    still_works();
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(cancelled_in_new_cb),
        RULE_TEST(cancelled_in_get_cb),
        /* Libssl loses the session that it was making or removing. */
        cmocka_unit_test(cancelled_in_the_generator),
        cmocka_unit_test(cancelled_in_remove_cb),
        cmocka_unit_test(cancelled_in_remove_cb_of_many),
        RULE_TEST(no_call_is_a_cancellation_point),
        RULE_TEST(cancelled_from_outside),
    };

    return RUN_PAGE("unwind", tests);
}
