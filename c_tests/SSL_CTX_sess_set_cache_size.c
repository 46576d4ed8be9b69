/*
 * SSL_CTX_sess_set_cache_size(3): how many sessions the internal cache holds, and which one leaves when it is full.
 */
#include "harness.h"

#include <string.h>
#include <time.h>

/* 1.1.1 evicts by age in the cache; Reprise follows it only where it is asked to. */
static int modern(void)
{
    return OpenSSL_version_num() >= 0x30000000L;
}

/* What a cache of size n holds. */
static long held(long n)
{
    return n > 1 && holds_one_less() ? n - 1 : n;
}

/* The size at which n > 1 sessions fit. */
static long size_for(long n)
{
    return holds_one_less() ? n + 1 : n;
}

static SSL_SESSION *numbered(unsigned int n, long start, long seconds)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 0);
    unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH] = { 0 };

    memcpy(id, &n, sizeof n);
    SSL_SESSION_set1_id(session, id, sizeof id);
    SSL_SESSION_set_time(session, start);
    SSL_SESSION_set_timeout(session, seconds);
    return session;
}

static SSL_SESSION *cached(SSL_CTX *ctx, unsigned int n, long start, long seconds)
{
    SSL_SESSION *session = numbered(n, start, seconds);

    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    return session;
}

/* Adds sessions with the numbers from..to-1 that only the cache keeps. */
static void fill(SSL_CTX *ctx, unsigned int from, unsigned int to)
{
    long start = (long)time(NULL);

    for (; from < to; from++)
        SSL_SESSION_free(cached(ctx, from, start, 300));
}

static int holds(SSL_CTX *ctx, const SSL_SESSION *session)
{
    return in_cache(ctx, TLS1_2_VERSION, session);
}

static void SIZE1_default_is_20480_and_set_returns_the_previous(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    observe_int("SIZE1", "the default size", SSL_CTX_sess_get_cache_size(ctx), 20480);
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, 7), 20480);
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), 7);
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, 0), 7);
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), 0);
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, 1L << 40), 0);
    observe_int("SIZE1", "what setting a size of 2^40 leaves", SSL_CTX_sess_get_cache_size(ctx), 1L << 40);
    SSL_CTX_free(ctx);
}

static void SIZE1_holds_up_to_n(void **state)
{
    static const long size[] = { 1, 2, 3, 10 };
    static const char *const what[] = { "held with size 1", "held with size 2", "held with size 3",
                                        "held with size 10" };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof size / sizeof *size; i++) {
        SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

        SSL_CTX_sess_set_cache_size(ctx, size[i]);
        fill(ctx, 0, 25);
        observe_number("SIZE1", what[i], ctx, size[i]);
        assert_int_equal(SSL_CTX_sess_cache_full(ctx), 25 - SSL_CTX_sess_number(ctx));
        SSL_CTX_free(ctx);
    }
}

static void SIZE1_the_default_is_a_limit(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    fill(ctx, 0, 20500);
    observe_number("SIZE1", "held with the default size", ctx, 20480);
    SSL_CTX_free(ctx);
}

static void SIZE1_zero_is_no_limit(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, 0);
    fill(ctx, 0, 20500);
    observe_number("SIZE1", "held of 20500 with size 0", ctx, 20500);
    assert_int_equal(SSL_CTX_sess_cache_full(ctx), 0);
    SSL_CTX_free(ctx);
}

static void SIZE1_lowered_takes_effect_with_the_next_add(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    fill(ctx, 0, 20);
    SSL_CTX_sess_set_cache_size(ctx, 5);
    observe_number("SIZE1", "held right after the size was lowered below the number", ctx, 20);
    fill(ctx, 20, 21);
    observe_number("SIZE1", "held after one more add", ctx, 5);
    assert_int_equal(SSL_CTX_sess_cache_full(ctx), 21 - SSL_CTX_sess_number(ctx));
    SSL_CTX_sess_set_cache_size(ctx, 50);
    fill(ctx, 30, 50);
    assert_number(ctx, held(5) + 20);
    SSL_CTX_free(ctx);
}

static void SIZE1_negative_is_refused(void **state)
{
    SSL_CTX *ctx;

    (void)state;
    if (!modern() && subject() != DOCUMENTED)
        skip();   /* 1.1.1 takes it for a size beyond all bounds */
    ctx = server_ctx(TLS1_2_VERSION);
    SSL_CTX_sess_set_cache_size(ctx, 9);
    observe_int("SIZE1", "setting a negative size returns", SSL_CTX_sess_set_cache_size(ctx, -1), 0);
    observe_int("SIZE1", "the size after a negative one", SSL_CTX_sess_get_cache_size(ctx), 9);
    SSL_CTX_free(ctx);
}

static void SIZE1_limits_negotiated_sessions(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *first, *last = NULL;
    int i;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_sess_set_cache_size(server, size_for(3));
    first = tls_session(client, server);
    for (i = 0; i < 4; i++) {
        SSL_SESSION_free(last);
        last = tls_session(client, server);
    }
    assert_number(server, 3);
    assert_int_equal(SSL_CTX_sess_cache_full(server), 2);
    assert_true(tls_resumes(client, server, last));
    assert_false(tls_resumes(client, server, first));
    SSL_SESSION_free(first);
    SSL_SESSION_free(last);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* An add that adds nothing pushes out nothing. */
static void SIZE1_adding_the_same_again_evicts_none(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *one, *two;

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, size_for(2));
    one = cached(ctx, 1, start, 300);
    two = cached(ctx, 2, start, 300);
    assert_int_equal(SSL_CTX_add_session(ctx, one), 0);
    assert_int_equal(SSL_CTX_add_session(ctx, two), 0);
    observe_int("SIZE1", "pushed out by adding a cached object again", SSL_CTX_sess_cache_full(ctx), 0);
    assert_number(ctx, 2);
    SSL_SESSION_free(one);
    SSL_SESSION_free(two);
    SSL_CTX_free(ctx);
}

static struct {
    int calls;
    SSL_SESSION *session;
} removed;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx;
    removed.calls++;
    removed.session = session;
}

static void SIZE2_soonest_expiring_leaves(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *late, *soonest, *middle, *added;

    (void)state;
    memset(&removed, 0, sizeof removed);
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    SSL_CTX_sess_set_cache_size(ctx, size_for(3));
    late = cached(ctx, 1, start, 300);
    soonest = cached(ctx, 2, start, 100);
    middle = cached(ctx, 3, start - 100, 300);
    assert_int_equal(removed.calls, 0);
    added = cached(ctx, 4, start, 400);
    observe("SIZE2", "of three that expire at 300, 100 and 200 s, the one that leaves expires at",
            removed.session == soonest ? "100 s" : removed.session == late ? "300 s" : "200 s", "100 s");
    observe_int("SIZE2", "calls of remove_cb for one session pushed out", removed.calls, 1);
    if (modern() || subject() == DOCUMENTED) {
        assert_false(holds(ctx, soonest));
        assert_false(SSL_SESSION_is_resumable(soonest));
        assert_true(holds(ctx, late));
        assert_true(holds(ctx, middle));
        assert_true(SSL_SESSION_is_resumable(late));
    }
    assert_true(holds(ctx, added));
    SSL_SESSION_free(late);
    SSL_SESSION_free(soonest);
    SSL_SESSION_free(middle);
    SSL_SESSION_free(added);
    SSL_CTX_free(ctx);
}

static void SIZE2_among_equals_the_oldest_added_leaves(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *session[6];
    int i;

    (void)state;
    memset(&removed, 0, sizeof removed);
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    SSL_CTX_sess_set_cache_size(ctx, size_for(3));
    for (i = 0; i < 3; i++)
        session[i] = cached(ctx, (unsigned int)i, start, 300);
    for (; i < 6; i++) {
        session[i] = cached(ctx, (unsigned int)i, start, 300);
        assert_int_equal(removed.calls, i - 2);
        assert_ptr_equal(removed.session, session[i - 3]);
    }
    observe_bool("SIZE2", "among equals the one added first leaves first", removed.session == session[2], 1);
    for (i = 0; i < 6; i++)
        SSL_SESSION_free(session[i]);
    SSL_CTX_free(ctx);
}

/* Place is made for the new one, so it is never the one that leaves. */
static void SIZE2_the_new_one_stays(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *one, *two, *added;

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, size_for(2));
    one = cached(ctx, 1, start, 300);
    two = cached(ctx, 2, start, 400);
    added = cached(ctx, 3, start, 10);
    observe_bool("SIZE2", "an added session that expires before all others is held", holds(ctx, added), 1);
    assert_false(holds(ctx, one));
    assert_true(holds(ctx, two));
    SSL_SESSION_free(one);
    SSL_SESSION_free(two);
    SSL_SESSION_free(added);
    SSL_CTX_free(ctx);
}

/* Replacing an entry needs no place beyond its own. */
static void SIZE2_a_replaced_one_counts_once(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *old, *other, *new;

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, size_for(2));
    old = cached(ctx, 1, start, 300);
    other = cached(ctx, 2, start, 100);
    new = cached(ctx, 1, start, 300);
    observe_bool("SIZE2", "replacing in a full cache pushes nothing else out", holds(ctx, other), 1);
    assert_number(ctx, 2);
    assert_int_equal(SSL_CTX_sess_cache_full(ctx), 0);
    SSL_SESSION_free(old);
    SSL_SESSION_free(other);
    SSL_SESSION_free(new);
    SSL_CTX_free(ctx);
}

/* A thousand in scrambled order: what remains are those that expire last. */
static void SIZE2_keeps_the_longest_living(void **state)
{
    enum { COUNT = 1000, HELD = 100 };
    long start = (long)time(NULL);
    SSL_CTX *ctx;
    SSL_SESSION *session[COUNT];
    unsigned int i;

    (void)state;
    if (!modern() && subject() != DOCUMENTED)
        skip();   /* 1.1.1: the last added remain */
    ctx = server_ctx(TLS1_2_VERSION);
    SSL_CTX_sess_set_cache_size(ctx, size_for(COUNT));
    for (i = 0; i < COUNT; i++)
        session[i] = cached(ctx, i, start, 1000 + i * 607 % COUNT);
    SSL_CTX_sess_set_cache_size(ctx, size_for(HELD));
    SSL_SESSION_free(cached(ctx, COUNT, start, 5000));
    assert_number(ctx, HELD);
    for (i = 0; i < COUNT; i++) {
        assert_int_equal(holds(ctx, session[i]), i * 607 % COUNT > COUNT - HELD);
        SSL_SESSION_free(session[i]);
    }
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(SIZE1_default_is_20480_and_set_returns_the_previous),
        COUNTED_TEST(SIZE1_holds_up_to_n),
        OBJECT_TEST(SIZE1_the_default_is_a_limit),
        COUNTED_TEST(SIZE1_zero_is_no_limit),
        COUNTED_TEST(SIZE1_lowered_takes_effect_with_the_next_add),
        RULE_TEST(SIZE1_negative_is_refused),
        COUNTED_TEST(SIZE1_limits_negotiated_sessions),
        COUNTED_TEST(SIZE1_adding_the_same_again_evicts_none),
        OBJECT_TEST(SIZE2_soonest_expiring_leaves),
        OBJECT_TEST(SIZE2_among_equals_the_oldest_added_leaves),
        COUNTED_TEST(SIZE2_the_new_one_stays),
        OBJECT_TEST(SIZE2_a_replaced_one_counts_once),
        COUNTED_TEST(SIZE2_keeps_the_longest_living),
    };

    return RUN_PAGE("SSL_CTX_sess_set_cache_size", tests);
}
