/*
 * Many threads on shared contexts: handshakes, resumption, adding, removing, flushing, changing times.
 *
 * What must hold afterwards is exact: counters add up, every session that entered a cache left it once, none is alive.
 * No assertion runs inside a thread; threads count, the test compares.
 */
#define _POSIX_C_SOURCE 200809L /* pthread_barrier_t, rand_r */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS = 8 };

static pthread_barrier_t start_line;

struct worker {
    pthread_t thread;
    unsigned int n;
    void (*work)(struct worker *);
    SSL_CTX *client, *server;
    SSL_SESSION *offer;
    long full, resumed, failed, added, refused, removed, absent;
};

static void *run(void *arg)
{
    struct worker *worker = arg;

    pthread_barrier_wait(&start_line);
    worker->work(worker);
    return NULL;
}

/* Runs work[i % count] in thread i on the contexts, and sums up in *total. */
static void together(void (*const work[])(struct worker *), unsigned int count, SSL_CTX *client, SSL_CTX *server,
                     SSL_SESSION *offer, struct worker *total)
{
    struct worker workers[THREADS];
    unsigned int i;

    memset(workers, 0, sizeof workers);
    memset(total, 0, sizeof *total);
    assert_int_equal(pthread_barrier_init(&start_line, NULL, THREADS), 0);
    for (i = 0; i < THREADS; i++) {
        workers[i].n = i;
        workers[i].work = work[i % count];
        workers[i].client = client;
        workers[i].server = server;
        workers[i].offer = offer;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, run, &workers[i]), 0);
    }
    for (i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        total->full += workers[i].full;
        total->resumed += workers[i].resumed;
        total->failed += workers[i].failed;
        total->added += workers[i].added;
        total->refused += workers[i].refused;
        total->removed += workers[i].removed;
        total->absent += workers[i].absent;
    }
    pthread_barrier_destroy(&start_line);
}

/* A session that no other thread has: `worker` and `i` make its id. */
static SSL_SESSION *own_session(unsigned int worker, unsigned int i)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, (unsigned char)worker);
    unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH] = { 0 };

    memcpy(id, &worker, sizeof worker);
    memcpy(id + sizeof worker, &i, sizeof i);
    SSL_SESSION_set1_id(session, id, sizeof id);
    return session;
}

/* One connection, closed well. Returns the client's session, one reference, NULL if it failed. */
static SSL_SESSION *connection(struct worker *worker, SSL_SESSION *offer)
{
    SSL_SESSION *session;
    pair p;

    if (!tls_try(worker->client, worker->server, offer, &p)) {
        worker->failed++;
        return NULL;
    }
    if (SSL_session_reused(p.server))
        worker->resumed++;
    else
        worker->full++;
    session = SSL_get1_session(p.client);
    tls_close(&p);
    return session;
}

static void connect_and_resume(struct worker *worker)
{
    int i, j;

    for (i = 0; i < fewer(5); i++) {
        SSL_SESSION *session = connection(worker, NULL);

        for (j = 0; j < 5; j++) {
            SSL_SESSION *next = connection(worker, session);

            SSL_SESSION_free(session);
            session = next;
        }
        SSL_SESSION_free(session);
    }
}

static void resume_the_same(struct worker *worker)
{
    int i;

    for (i = 0; i < fewer(20); i++)
        SSL_SESSION_free(connection(worker, worker->offer));
}

static void handshakes(int version, long options)
{
    static void (*const work[])(struct worker *) = { connect_and_resume };
    SSL_CTX *server = server_ctx(version), *client = client_ctx(version);
    struct worker total;

    SSL_CTX_set_options(server, (uint32_t)options);
    together(work, 1, client, server, NULL, &total);
    assert_int_equal(total.failed, 0);
    assert_int_equal(total.full, THREADS * fewer(5));
    assert_int_equal(total.resumed, THREADS * fewer(5) * 5);
    assert_int_equal(SSL_CTX_sess_accept(server), total.full + total.resumed);
    assert_int_equal(SSL_CTX_sess_accept_good(server), total.full + total.resumed);
    assert_int_equal(SSL_CTX_sess_hits(server), total.resumed);
    assert_int_equal(SSL_CTX_sess_misses(server), 0);
    assert_int_equal(SSL_CTX_sess_connect_good(client), total.full + total.resumed);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_counts_every_handshake_of_many_threads(void **state)
{
    (void)state;
    handshakes(TLS1_2_VERSION, SSL_OP_NO_TICKET);
    handshakes(TLS1_3_VERSION, SSL_OP_NO_TICKET);
    handshakes(TLS1_3_VERSION, 0);
}

static void MODE4_one_session_resumed_by_many_threads(void **state)
{
    static void (*const work[])(struct worker *) = { resume_the_same };
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;
    struct worker total;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    session = tls_session(client, server);
    together(work, 1, client, server, session, &total);
    assert_int_equal(total.failed, 0);
    assert_int_equal(total.full, 0);
    assert_int_equal(total.resumed, THREADS * fewer(20));
    assert_number(server, 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static atomic_long left_cache, probes_refused;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    left_cache++;
}

static void add_and_remove(struct worker *worker)
{
    unsigned int seed = worker->n, i;

    for (i = 0; i < 400; i++) {
        SSL_SESSION *session = own_session(worker->n, i);

        SSL_SESSION_set_timeout(session, 10 + rand_r(&seed) % 1000);
        if (SSL_CTX_add_session(worker->server, session))
            worker->added++;
        else
            worker->refused++;
        if (rand_r(&seed) % 4 == 0) {
            if (SSL_CTX_remove_session(worker->server, session))
                worker->removed++;
            else
                worker->absent++;
        }
        SSL_SESSION_free(session);
    }
}

static void flush_some(struct worker *worker)
{
    long now = (long)time(NULL);
    unsigned int seed = worker->n;
    int i;

    for (i = 0; i < 100; i++)
        SSL_CTX_flush_sessions(worker->server, now + rand_r(&seed) % 1000);
}

/* In and out by hand, by flush and by the size limit, all at once: remove_cb was called once for each that was in. */
static void CB5_every_session_leaves_once(void **state)
{
    static void (*const work[])(struct worker *) = { add_and_remove, add_and_remove, add_and_remove, flush_some };
    SSL_CTX *server = server_ctx(TLS1_2_VERSION);
    struct worker total;

    (void)state;
    left_cache = 0;
    SSL_CTX_sess_set_remove_cb(server, on_remove);
    SSL_CTX_sess_set_cache_size(server, 200);
    together(work, 4, NULL, server, NULL, &total);
    assert_int_equal(total.added, 6 * 400);
    assert_int_equal(total.refused, 0);
    assert_true(SSL_CTX_sess_number(server) <= 200);
    /* A removal that finds nothing is announced too (CB6). */
    assert_int_equal(left_cache + SSL_CTX_sess_number(server), total.added + total.absent);
    SSL_CTX_flush_sessions(server, 0);
    assert_number(server, 0);
    assert_int_equal(left_cache, total.added + total.absent);
    SSL_CTX_free(server);
    assert_int_equal(left_cache, total.added + total.absent);
}

/* Threads fight over the same few ids with objects of their own. */
static void add_the_same_ids(struct worker *worker)
{
    unsigned int i;

    for (i = 0; i < 400; i++) {
        SSL_SESSION *session = own_session(0, i % 5);

        if (SSL_CTX_add_session(worker->server, session))
            worker->added++;
        if (i % 3 == 0)
            SSL_CTX_remove_session(worker->server, session);
        SSL_SESSION_free(session);
    }
}

static void ADD2_one_of_each_id_stays(void **state)
{
    static void (*const work[])(struct worker *) = { add_the_same_ids };
    SSL_CTX *server = server_ctx(TLS1_2_VERSION);
    struct worker total;

    (void)state;
    together(work, 1, NULL, server, NULL, &total);
    assert_int_equal(total.added, THREADS * 400);
    assert_true(SSL_CTX_sess_number(server) <= 5);
    SSL_CTX_free(server);
}

static void change_times(struct worker *worker)
{
    long now = (long)time(NULL);
    unsigned int seed = worker->n, i;

    for (i = 0; i < 100; i++) {
        SSL_SESSION *session = own_session(worker->n, i);
        int j;

        SSL_CTX_add_session(worker->server, session);
        for (j = 0; j < 4; j++) {
            SSL_SESSION_set_time(session, now + rand_r(&seed) % 100);
            SSL_SESSION_set_timeout(session, rand_r(&seed) % 1000);
        }
        SSL_SESSION_free(session);
    }
}

/* Changing times races with leaving the cache in stock: it reads the owner without a lock. So nothing leaves there. */
static void FLUSH2_times_change_in_many_threads(void **state)
{
    static void (*const work[])(struct worker *) = { change_times, change_times, change_times, flush_some };
    SSL_CTX *server = server_ctx(TLS1_2_VERSION);
    struct worker total;

    (void)state;
    together(work, subject() == STOCK ? 1 : 4, NULL, server, NULL, &total);
    assert_true(SSL_CTX_sess_number(server) <= THREADS * 100);
    if (subject() == STOCK)
        assert_number(server, THREADS * 100);
    SSL_CTX_flush_sessions(server, (long)time(NULL) + 2000);
    assert_number(server, 0);
    SSL_CTX_free(server);
}

static void connect_in_the_storm(struct worker *worker)
{
    int i;

    for (i = 0; i < fewer(20); i++) {
        SSL_SESSION *session = connection(worker, NULL);

        SSL_SESSION_free(connection(worker, session));
        SSL_SESSION_free(session);
    }
}

static void clear_in_the_storm(struct worker *worker)
{
    int i;

    for (i = 0; i < 200; i++) {
        SSL_SESSION *session = own_session(worker->n, (unsigned int)i);

        SSL_CTX_add_session(worker->server, session);
        SSL_CTX_flush_sessions(worker->server, i % 10 == 0 ? 0 : (long)time(NULL));
        SSL_CTX_sess_set_cache_size(worker->server, 10 + i % 10);
        SSL_SESSION_free(session);
    }
}

/* Handshakes survive whatever happens to the cache: a session that is gone is a miss, not a failure. */
static void STAT1_no_handshake_fails_while_the_cache_is_cleared(void **state)
{
    static void (*const work[])(struct worker *) = { connect_in_the_storm, clear_in_the_storm };
    static const int version[] = { TLS1_2_VERSION, TLS1_3_VERSION };
    size_t i;

    (void)state;
    if (subject() == STOCK && OpenSSL_version_num() < 0x30000000L)
        skip();   /* 1.1.1 corrupts its heap here now and then */
    for (i = 0; i < sizeof version / sizeof *version; i++) {
        SSL_CTX *server = server_ctx(version[i]), *client = client_ctx(version[i]);
        const long offered = 4 * fewer(20);
        struct worker total;
        long counted;

        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        together(work, 2, client, server, NULL, &total);
        /* Libssl before 3.6 breaks off when a session is flushed between its lookup and the ServerHello, and counts a hit. */
        assert_true(total.failed <= (OpenSSL_version_num() < 0x30600000L ? 2 : 0));
        assert_int_equal(total.full + total.resumed + total.failed, 2 * offered);
        assert_in_range(SSL_CTX_sess_hits(server), total.resumed, total.resumed + total.failed);
        counted = SSL_CTX_sess_hits(server) + SSL_CTX_sess_misses(server);
        /* Reprise hands a session to libssl, another thread flushes and so marks it, libssl refuses it: counted by
         * neither. A few nanoseconds on each lookup. */
        assert_true(counted <= offered && counted >= (subject() == STOCK ? offered : offered - 8));
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* Uses the context at the outermost call only: what it does there calls it again. */
static void use_the_context(SSL_CTX *ctx, SSL_SESSION *session)
{
    static _Thread_local int inside;
    SSL_SESSION *probe;

    (void)session;
    left_cache++;
    if (inside)
        return;
    inside = 1;
    probe = own_session(99, (unsigned int)(left_cache % 3));
    probes_refused += !SSL_CTX_add_session(ctx, probe);
    SSL_CTX_remove_session(ctx, probe);
    SSL_CTX_flush_sessions(ctx, 1);
    SSL_SESSION_free(probe);
    inside = 0;
}

/* Stock holds its lock around remove_cb: what is called there fails, or waits for ever. */
static void CB11_callbacks_of_many_threads_use_the_context(void **state)
{
    static void (*const work[])(struct worker *) = { add_and_remove, add_and_remove, add_and_remove, flush_some };
    SSL_CTX *server;
    struct worker total;

    (void)state;
    if (subject() == STOCK)
        skip();
    left_cache = 0;
    probes_refused = 0;
    server = server_ctx(TLS1_2_VERSION);
    SSL_CTX_sess_set_remove_cb(server, use_the_context);
    SSL_CTX_sess_set_cache_size(server, 100);
    together(work, 4, NULL, server, NULL, &total);
    assert_int_equal(total.added, 6 * 400);
    assert_int_equal(probes_refused, 0);
    assert_true(left_cache >= total.added - 100);
    SSL_CTX_free(server);
    assert_true(left_cache >= total.added);
}

static void live_and_die(struct worker *worker)
{
    int i;

    for (i = 0; i < fewer(5); i++) {
        struct worker own = *worker;
        SSL_SESSION *session;
        unsigned int j;

        own.server = server_ctx(TLS1_2_VERSION);
        own.client = client_ctx(TLS1_2_VERSION);
        SSL_CTX_set_options(own.server, SSL_OP_NO_TICKET);
        SSL_CTX_sess_set_remove_cb(own.server, on_remove);
        for (j = 0; j < 10; j++) {
            session = own_session(worker->n, j);
            worker->added += SSL_CTX_add_session(own.server, session);
            SSL_SESSION_free(session);
        }
        session = connection(&own, NULL);
        SSL_SESSION_free(connection(&own, session));
        SSL_SESSION_free(session);
        worker->full = own.full;
        worker->resumed = own.resumed;
        worker->failed = own.failed;
        SSL_CTX_free(own.client);
        SSL_CTX_free(own.server);
    }
}

static void CB5_contexts_end_in_many_threads(void **state)
{
    static void (*const work[])(struct worker *) = { live_and_die };
    struct worker total;

    (void)state;
    left_cache = 0;
    together(work, 1, NULL, NULL, NULL, &total);
    assert_int_equal(total.failed, 0);
    assert_int_equal(total.full, THREADS * fewer(5));
    assert_int_equal(total.resumed, THREADS * fewer(5));
    assert_int_equal(total.added, THREADS * fewer(5) * 10);
    assert_int_equal(left_cache, total.added + total.full);
}

/* What the harness makes at first use is made while there is one thread. */
static int warm_up(void **state)
{
    (void)state;
    SSL_CTX_free(server_ctx(TLS1_2_VERSION));
    SSL_SESSION_free(made_session(TLS1_2_VERSION, 0));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(STAT1_counts_every_handshake_of_many_threads),
        RULE_TEST(MODE4_one_session_resumed_by_many_threads),
        COUNTED_TEST(CB5_every_session_leaves_once),
        OBJECT_TEST(ADD2_one_of_each_id_stays),
        COUNTED_TEST(FLUSH2_times_change_in_many_threads),
        RULE_TEST(STAT1_no_handshake_fails_while_the_cache_is_cleared),
        OBJECT_TEST(CB11_callbacks_of_many_threads_use_the_context),
        OBJECT_TEST(CB5_contexts_end_in_many_threads),
    };

    return cmocka_run_group_tests_name("threads", tests, warm_up, NULL);
}
