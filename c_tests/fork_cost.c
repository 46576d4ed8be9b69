/*
 * fork() beside threads that make contexts, and with thousands of contexts: a child is never stopped by what a thread that it
 * does not have was doing, and a fork costs hardly more than on libssl alone.
 */
#define OPENSSL_SUPPRESS_DEPRECATED /* SSL_CTX_flush_sessions is the name programs use */
#define _POSIX_C_SOURCE 200809L
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SESSIONS = 64, CONTEXTS = 1000, FORKS = 100 };

static SSL_CTX *ctx;
static SSL_SESSION *sessions[SESSIONS];
static atomic_int stop;

/* ---- children beside threads that have libcrypto's locks ---- */

static void *make_contexts(void *arg)
{
    while (!stop)
        SSL_CTX_free(SSL_CTX_new(TLS_method()));
    return arg;
}

/* What libssl alone can do in a child with what its parent made. */
static int mark_them(void *arg)
{
    (void)arg;
    for (int i = 0; i < SESSIONS / 2; i++)
        if (SSL_CTX_remove_session(ctx, sessions[i]) != 1)
            return 1;
    for (int i = 0; i < SESSIONS; i++)
        if (SSL_SESSION_is_resumable(sessions[i]) != (i >= SESSIONS / 2))
            return 2;
    return 0;
}

static void children_mark_sessions(void **state)
{
    pthread_t threads[4];

    (void)state;
    ctx = SSL_CTX_new(TLS_method());
    for (int i = 0; i < SESSIONS; i++) {
        sessions[i] = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));
        assert_true(added(ctx, sessions[i]));
    }
    stop = 0;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, make_contexts, NULL);
    for (int i = 0; i < FORKS; i++)
        assert_string_equal(in_child(mark_them, NULL, 20), "returns 0");
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < SESSIONS; i++)
        SSL_SESSION_free(sessions[i]);
    SSL_CTX_free(ctx);
}

/* ---- what the statistics say in children of children ---- */

/* In each process two more sessions come and one leaves for want of room; every other process only forks. */
static int descend(int depth, long full)
{
    int status;
    pid_t child;

    if (SSL_CTX_sess_cache_full(ctx) != full)
        return 10 + depth;
    if (depth % 2 == 0) {
        if (!SSL_CTX_add_session(ctx, sessions[2 * depth]) || !SSL_CTX_add_session(ctx, sessions[2 * depth + 1]))
            return 30 + depth;
        full = SSL_CTX_sess_cache_full(ctx);
        if (full < depth - 1)
            return 50 + depth;
    }
    if (depth == 8)
        return 0;
    if ((child = fork()) == 0)
        _exit(descend(depth + 1, full));
    waitpid(child, &status, 0);
    /* What the child counted is the child's. */
    if (SSL_CTX_sess_cache_full(ctx) != full)
        return 70 + depth;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static void statistics_in_grandchildren(void **state)
{
    (void)state;
    ctx = SSL_CTX_new(TLS_method());
    SSL_CTX_sess_set_cache_size(ctx, 3);
    for (int i = 0; i < SESSIONS; i++)
        sessions[i] = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));
    assert_int_equal(descend(0, 0), 0);
    for (int i = 0; i < SESSIONS; i++)
        SSL_SESSION_free(sessions[i]);
    SSL_CTX_free(ctx);
}

/* ---- what it costs ---- */

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int by_size(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;

    return (difference > 0) - (difference < 0);
}

/* Microseconds that a fork takes in the parent, in the median. */
static double cost_of_fork(void)
{
    double times[41];
    enum { TIMES = sizeof(times) / sizeof(times[0]) };

    for (int i = 0; i < TIMES; i++) {
        double begun = seconds();
        pid_t child = fork();

        if (child == 0)
            _exit(0);
        times[i] = seconds() - begun;
        waitpid(child, NULL, 0);
    }
    qsort(times, TIMES, sizeof(times[0]), by_size);
    return times[TIMES / 2] * 1e6;
}

static void a_fork_with_a_thousand_contexts(void **state)
{
    static SSL_CTX *all[CONTEXTS];
    double few = 0, many;
    const char *slow = getenv("REPRISE_SLOWLY");

    (void)state;
    for (int i = 0; i < CONTEXTS; i++) {
        all[i] = SSL_CTX_new(TLS_method());
        if (i == 0)
            few = cost_of_fork();
        /* What memory there is costs on libssl alone, too: sessions in some. */
        if (i % 10 == 0) {
            SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);

            SSL_CTX_add_session(all[i], session);
            SSL_SESSION_free(session);
        }
    }
    many = cost_of_fork();
    printf("fork: %.0f us with one context, %.0f us with %d\n", few, many, CONTEXTS);
    /* Libssl alone: 2 to 3 times as much, for the memory. With locks for each context it was a hundred times as much. */
    if (slow == NULL)
        assert_true(many < few * 10 + 2000);
    for (int i = 0; i < CONTEXTS; i++)
        SSL_CTX_free(all[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(children_mark_sessions),
        OBJECT_TEST(statistics_in_grandchildren),
        RULE_TEST(a_fork_with_a_thousand_contexts),
    };

    return RUN_PAGE("fork_cost", tests);
}
