/*
 * Everything at once, for a while: eight threads resume, add, look up, evict, remove and flush on shared contexts. In the
 * end no session is alive. REPRISE_SOAK_SECONDS prolongs it.
 */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { THREADS = 8, SIZE = 64 };

static SSL_CTX *server, *client;
static time_t end_of_soak;
static long rounds; /* at least, in each thread */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_long handshakes, broken_off;
static SSL_SESSION *newest_session; /* the newest session, with a reference */

static SSL_SESSION *exchange(SSL_SESSION *newest)
{
    SSL_SESSION *old;

    pthread_mutex_lock(&lock);
    old = newest_session;
    newest_session = newest;
    pthread_mutex_unlock(&lock);
    return old;
}

/* What the remove callback may do to a session that leaves: look at it, and call back. */
static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    unsigned length;

    SSL_SESSION_get_id(session, &length);
    if (length == 0 || SSL_CTX_sess_get_cache_size(ctx) < 0)
        abort();
}

static void handshake(void)
{
    SSL_SESSION *offer = exchange(NULL), *newest = NULL;
    pair p;

    /* Older versions of libssl break off when a session is flushed between its lookup and the ServerHello. */
    atomic_fetch_add(&handshakes, 1);
    if (tls_try(client, server, offer, &p)) {
        newest = SSL_get1_session(p.client);
        tls_close(&p);
    } else {
        atomic_fetch_add(&broken_off, 1);
    }
    SSL_SESSION_free(offer);
    SSL_SESSION_free(exchange(newest));
}

/* Sessions made by hand: more than fit, some expired; some are changed while they are cached, some removed. */
static void by_hand(unsigned *seed)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, (unsigned char)rand_r(seed));
    int added;

    SSL_SESSION_set_timeout(session, rand_r(seed) % 1000);
    added = SSL_CTX_add_session(server, session);
    if (rand_r(seed) % 4 == 0)
        SSL_SESSION_set_time(session, time(NULL) - rand_r(seed) % 2000);
    if (rand_r(seed) % 4 == 0)
        SSL_CTX_remove_session(server, session);
    if (added < 0 || SSL_CTX_sess_number(server) < 0)
        abort();
    SSL_SESSION_free(session);
}

static void *work(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;

    for (long i = 0; i < rounds || time(NULL) < end_of_soak; i++) {
        if (i % 8 == 0)
            handshake();
        else
            by_hand(&seed);
        if (rand_r(&seed) % 64 == 0)
            SSL_CTX_flush_sessions(server, time(NULL));
        if (rand_r(&seed) % 512 == 0)
            SSL_CTX_flush_sessions(server, 0);
        if (rand_r(&seed) % 256 == 0) { /* a context that ends while the others go on */
            SSL_CTX *brief = server_ctx(TLS1_2_VERSION);
            SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);

            SSL_CTX_add_session(brief, session);
            SSL_SESSION_free(session);
            SSL_CTX_free(brief);
        }
    }
    return NULL;
}

static void soak(void)
{
    pthread_t threads[THREADS];
    const char *seconds = getenv("REPRISE_SOAK_SECONDS");

    rounds = slowly() ? 64 : 5000;
    end_of_soak = seconds == NULL ? 0 : time(NULL) + atol(seconds);
    server = server_ctx(TLS1_2_VERSION);
    client = client_ctx(TLS1_2_VERSION);
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_sess_set_cache_size(server, SIZE);
    SSL_CTX_sess_set_remove_cb(server, on_remove);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work, (void *)(i + 1)), 0);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(atomic_load(&broken_off) * 100 <= atomic_load(&handshakes));
}

static void ADD1_every_session_is_freed(void **state)
{
    (void)state;
    soak();
    assert_true(in_redis() || SSL_CTX_sess_number(server) <= SIZE);
    SSL_SESSION_free(exchange(NULL));
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    /* the teardown counts what is alive */
}

static int exit_with_contexts_alive(void *unused)
{
    (void)unused;
    soak();
    exit(0);
}

static void CB5_exit_with_contexts_alive(void **state)
{
    (void)state;
    observe("CB5", "exit with contexts alive", in_child(exit_with_contexts_alive, NULL, 120), "returns 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(ADD1_every_session_is_freed),
        RULE_TEST(CB5_exit_with_contexts_alive),
    };

    /* Stock 3.0 corrupts its list when the time of a session changes while another thread flushes. */
    return subject() == STOCK ? 0 : RUN_PAGE("soak", tests);
}
