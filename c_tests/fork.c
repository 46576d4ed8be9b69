/*
 * fork() while threads use the cache: servers make their contexts, then fork, whatever their threads are doing. The
 * child uses every function at once; what a thread that it does not have had locked must not stop it.
 *
 * libcrypto's own locks (ex_data, fetched algorithms, the random generator) are held for a moment by whoever makes a
 * session, a connection or a context, and nothing frees them in a child. So that the test is about the cache alone,
 * threads hold the gate where they call libcrypto, and fork() closes it. The cache's own functions run outside
 * of it: they are forked at any moment.
 */
#define _POSIX_C_SOURCE 200809L /* pthread_barrier_t, rand_r */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- the gate ---- */

/* Who wants in waits for its turn first, so that fork() is not kept waiting by those who keep coming. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;

static void enter(void)
{
    pthread_mutex_lock(&turn);
    pthread_rwlock_rdlock(&gate);
    pthread_mutex_unlock(&turn);
}

static void leave(void)
{
    pthread_rwlock_unlock(&gate);
}

/* The last handler registered runs first: the gate is closed before Reprise waits for those at work in the cache. */
static void close_gate(void)
{
    pthread_mutex_lock(&turn);
    pthread_rwlock_wrlock(&gate);
}

static void open_gate(void)
{
    pthread_rwlock_unlock(&gate);
    pthread_mutex_unlock(&turn);
}

/* ---- the threads ---- */

enum { POOL = 64, FRESH = 16, KEPT = 64 };

static SSL_CTX *server, *client;
static SSL_SESSION *pool[POOL];      /* made beforehand: what the threads add and remove */
static SSL_CTX *_Atomic fresh[FRESH]; /* contexts into which a thread is putting their first sessions */
static SSL_SESSION *kept[KEPT];      /* the newest ones of handshakes */
static unsigned int number_kept;
static pair asking;                  /* a connection whose server asks for session ids */
static atomic_bool stop;
static atomic_long rounds[4], failures;
static pthread_barrier_t warm;       /* each has done its work once: what libssl makes at first use is there */

static void pause_briefly(unsigned int *seed)
{
    const struct timespec time = { 0, rand_r(seed) % 1000000 };

    nanosleep(&time, NULL);
}

static int has(SSL *ssl, const SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    return SSL_has_matching_session_id(ssl, id, length);
}

/* A shared cache makes sessions of bytes, for which libssl locks what a fork would leave locked. */
static void enter_if_shared(void)
{
    if (shared())
        enter();
}

static void leave_if_shared(void)
{
    if (shared())
        leave();
}

static void add_and_remove(unsigned int *seed)
{
    SSL_SESSION *session = pool[rand_r(seed) % POOL];

    enter_if_shared();
    SSL_CTX_add_session(server, session);
    if (rand_r(seed) % 2 == 0)
        SSL_CTX_remove_session(server, pool[rand_r(seed) % POOL]);
    leave_if_shared();
}

static void look_up_and_flush(unsigned int *seed)
{
    enter_if_shared();
    has(asking.server, pool[rand_r(seed) % POOL]);
    SSL_CTX_sess_number(server);
    if (rand_r(seed) % 20 == 0)
        SSL_CTX_flush_sessions(server, (long)time(NULL) + rand_r(seed) % 400);
    leave_if_shared();
}

/*
 * new_cb of the server, which one thread calls and the gate is held: no session of a handshake is freed by those who
 * push it out of the cache, for libcrypto locks its ex_data then.
 */
static int keep(SSL *ssl, SSL_SESSION *session)
{
    SSL_SESSION **oldest = &kept[number_kept++ % KEPT];

    (void)ssl;
    if (*oldest != NULL) {
        SSL_CTX_remove_session(server, *oldest);
        SSL_SESSION_free(*oldest);
    }
    *oldest = session;
    return 1;
}

static void handshake_and_resume(unsigned int *seed)
{
    SSL_SESSION *offer = NULL;
    pair p;

    (void)seed;
    for (int i = 0; i < 3; i++) {
        enter();
        if (tls_try(client, server, offer, &p)) {
            SSL_SESSION_free(offer);
            offer = SSL_get1_session(p.client);
            tls_close(&p);
        } else {
            failures++;
        }
        leave();
    }
    SSL_SESSION_free(offer);
}

/* What a context's first session makes the cache allocate is made while others fork. */
static void fill_fresh_contexts(unsigned int *seed)
{
    SSL_CTX *made[FRESH];

    enter();
    for (int i = 0; i < FRESH; i++)
        fresh[i] = made[i] = SSL_CTX_new(TLS_method());
    leave();
    enter_if_shared();
    for (int i = 0; i < FRESH; i++)
        for (int j = 0; j < POOL; j++)
            SSL_CTX_add_session(made[i], pool[rand_r(seed) % POOL]);
    leave_if_shared();
    enter();
    for (int i = 0; i < FRESH; i++) {
        fresh[i] = NULL;
        SSL_CTX_free(made[i]);
    }
    leave();
}

static void (*const works[])(unsigned int *) = { add_and_remove, look_up_and_flush, handshake_and_resume,
                                                  fill_fresh_contexts };
enum { THREADS = sizeof(works) / sizeof(works[0]) };

static void *run(void *arg)
{
    size_t n = (size_t)(uintptr_t)arg;
    unsigned int seed = (unsigned int)n + 1;

    SSL_CTX_remove_session(server, pool[n]);
    works[n](&seed);
    pthread_barrier_wait(&warm);
    while (!stop) {
        works[n](&seed);
        rounds[n]++;
    }
    return NULL;
}

/* ---- the child ---- */

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

/* Which step did what it should not, 0 if none. */
static int use_the_cache(SSL_CTX *ctx, SSL *ssl)
{
    SSL_SESSION *own = made_session(TLS1_2_VERSION, 0xfe);
    long number = SSL_CTX_sess_number(ctx);
    int alone = !shared(); /* else the parent goes on adding and flushing */

    if (number < 0 || !added(ctx, own))
        return 1;
    if (ssl != NULL && !has(ssl, own) && alone)
        return 2;
    SSL_SESSION_set_timeout(own, 500);
    if (SSL_CTX_sessions(ctx) == NULL || (SSL_CTX_sess_number(ctx) < 1 && alone))
        return 3;
    if ((!SSL_CTX_remove_session(ctx, own) && alone) || SSL_CTX_remove_session(ctx, own))
        return 4;
    for (int i = 0; i < POOL; i++)
        SSL_CTX_add_session(ctx, pool[i]);
    SSL_CTX_flush_sessions(ctx, 1);
    if (SSL_CTX_sess_number(ctx) < 16 && alone)
        return 5;
    SSL_CTX_flush_sessions(ctx, 0);
    SSL_SESSION_free(own);
    return SSL_CTX_sess_number(ctx) == 0 || !alone ? 0 : 6;
}

/* Another try where others are at work in a shared cache: see added(). */
static int handshakes(SSL_CTX *from, SSL_CTX *to)
{
    int resumed = 0;

    for (int tries = shared() ? 10 : 1; tries > 0 && !resumed; tries--) {
        SSL_SESSION *session = tls_session(from, to);

        resumed = tls_resumes(from, to, session);
        SSL_SESSION_free(session);
    }
    return resumed && SSL_CTX_sess_hits(to) > 0;
}

static int use_everything(void *arg)
{
    SSL_CTX *next;
    int step;

    (void)arg;
    if ((step = use_the_cache(server, asking.server)) != 0)
        return step;
    for (int i = 0; i < FRESH; i++)
        if (fresh[i] != NULL && (step = use_the_cache(fresh[i], NULL)) != 0)
            return 10 + step;
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_BOTH);
    SSL_CTX_sess_set_cache_size(server, 10);
    SSL_CTX_sess_set_remove_cb(server, on_remove);
    SSL_CTX_sess_set_get_cb(server, on_get);
    if (!handshakes(client, server))
        return 20;
    SSL_CTX_sess_set_new_cb(server, on_new);
    if (SSL_CTX_sess_get_new_cb(server) != on_new || SSL_CTX_sess_get_remove_cb(server) != on_remove
        || SSL_CTX_sess_get_get_cb(server) != on_get)
        return 21;
    tls_drop(&asking);
    SSL_CTX_free(server);
    next = server_ctx(TLS1_2_VERSION);
    SSL_CTX_set_options(next, SSL_OP_NO_TICKET);
    if (!handshakes(client, next))
        return 22;
    SSL_CTX_free(next);
    SSL_CTX_free(client);
    return 0;
}

/* ---- the tests ---- */

static void make_contexts(void)
{
    server = server_ctx(TLS1_2_VERSION);
    client = client_ctx(TLS1_2_VERSION);
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_sess_set_cache_size(server, 48); /* less than there are: they also push each other out */
    asking = tls_connect(client, server, NULL);
    SSL_CTX_sess_set_new_cb(server, keep);
    for (int i = 0; i < POOL; i++) {
        pool[i] = made_session(TLS1_2_VERSION, (unsigned char)i);
        SSL_SESSION_set_timeout(pool[i], 100 + i);
    }
}

static void free_contexts(void)
{
    for (int i = 0; i < POOL; i++)
        SSL_SESSION_free(pool[i]);
    for (int i = 0; i < KEPT; i++) {
        SSL_SESSION_free(kept[i]);
        kept[i] = NULL;
    }
    tls_close(&asking);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/*
 * REPRISE_FORKS, else 200. Under valgrind, which preloads a library of its own, a fork is slow; and so is the work that
 * is done between two forks where it goes to a shared cache.
 */
static int number_of_forks(void)
{
    const char *asked = getenv("REPRISE_FORKS"), *preloaded = getenv("LD_PRELOAD");

    if (asked != NULL && atoi(asked) > 0)
        return atoi(asked);
    if (preloaded != NULL && strstr(preloaded, "vgpreload") != NULL)
        return 5;
    return shared() ? 50 : 200;
}

/*
 * On Reprise only. Stock's cache functions hold the context's lock, which pthread_rwlock leaves locked in the child
 * for ever: there the first forks already deadlock, or by luck do not.
 */
static void FORK1_at_any_moment(void **state)
{
    unsigned int seed = 99;
    pthread_t threads[THREADS];
    const char *child = "returns 0";

    (void)state;
    if (subject() == STOCK)
        skip();
    make_contexts();
    stop = 0;
    assert_int_equal(pthread_barrier_init(&warm, NULL, THREADS + 1), 0);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)i), 0);
    pthread_barrier_wait(&warm);

    for (int forks = number_of_forks(); forks > 0 && strcmp(child, "returns 0") == 0; forks--) {
        pause_briefly(&seed);
        child = in_child(use_everything, NULL, 30);
    }
    stop = 1;
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(rounds[i] > 0);
    }
    pthread_barrier_destroy(&warm);
    /* Older versions of libssl break off when a session is evicted or flushed between its lookup and the ServerHello. */
    assert_true(failures * 100 <= rounds[2] * 3);
    free_contexts();
    observe("FORK1", "threads at work: each child", child, "returns 0");
}

static const char *forked_inside;

static void fork_and_use(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    if (forked_inside != NULL)
        return;
    forked_inside = "not yet"; /* the child's sessions leave too */
    forked_inside = in_child(use_everything, NULL, 20);
}

/* Stock calls remove_cb on a flush under the context's lock up to 3.5. */
static void FORK1_by_remove_cb(void **state)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 0xaa);

    (void)state;
    make_contexts();
    SSL_CTX_add_session(server, session);
    SSL_CTX_sess_set_remove_cb(server, fork_and_use);
    forked_inside = NULL;
    SSL_CTX_flush_sessions(server, 0);
    assert_non_null(forked_inside);
    SSL_SESSION_free(session);
    free_contexts();
    observe("FORK1", "forked by remove_cb: the child", forked_inside, "returns 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(FORK1_at_any_moment),
        COUNTED_TEST(FORK1_by_remove_cb),
    };

    if (pthread_atfork(close_gate, open_gate, open_gate) != 0)
        return 1;
    return RUN_PAGE("fork", tests);
}
