/*
 * SSL_SESSION_get_time(3): the time and timeout of a session, changed while it is in the internal cache (FLUSH2).
 *
 * Whatever judges by expiry, flush as well as eviction, has to see the new one.
 */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "harness.h"

#include <dlfcn.h>
#include <time.h>

static SSL_SESSION *cached(SSL_CTX *ctx, unsigned char fill, long start, long seconds)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

    SSL_SESSION_set_time(session, start);
    SSL_SESSION_set_timeout(session, seconds);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    return session;
}

static int holds(SSL_CTX *ctx, const SSL_SESSION *session)
{
    return in_cache(ctx, TLS1_2_VERSION, session);
}

typedef void change(SSL_SESSION *session, long start, long seconds);   /* makes it expire at start + seconds */

static void by_timeout(SSL_SESSION *session, long start, long seconds)
{
    (void)start;
    assert_int_equal(SSL_SESSION_set_timeout(session, seconds), 1);
    assert_int_equal(SSL_SESSION_get_timeout(session), seconds);
}

static void by_time(SSL_SESSION *session, long start, long seconds)
{
    long time = start + seconds - SSL_SESSION_get_timeout(session);

    assert_int_equal(SSL_SESSION_set_time(session, time), time);
    assert_int_equal(SSL_SESSION_get_time(session), time);
}

/* Came with 3.3; Reprise has it over every libssl, so it is looked up, not linked. */
static time_t (*set_time_ex)(SSL_SESSION *, time_t);

static void by_time_ex(SSL_SESSION *session, long start, long seconds)
{
    time_t time = start + seconds - SSL_SESSION_get_timeout(session);

    assert_int_equal(set_time_ex(session, time), time);
    assert_int_equal(SSL_SESSION_get_time(session), time);
}

static int has_time_ex(void)
{
    *(void **)&set_time_ex = dlsym(RTLD_DEFAULT, "SSL_SESSION_set_time_ex");
    assert_true(set_time_ex != NULL || subject() == STOCK);
    return set_time_ex != NULL;
}

/* One is shortened below its neighbours, one is prolonged above them, two stay as they are. */
static void judged_by_flush(change *apply)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *prolonged = cached(ctx, 1, start, 100), *first = cached(ctx, 2, start, 200);
    SSL_SESSION *second = cached(ctx, 3, start, 300), *shortened = cached(ctx, 4, start, 400);

    apply(shortened, start, 50);
    apply(prolonged, start, 500);
    SSL_CTX_flush_sessions(ctx, start + 50);
    assert_number(ctx, 4);
    SSL_CTX_flush_sessions(ctx, start + 51);
    assert_false(holds(ctx, shortened));
    assert_number(ctx, 3);
    SSL_CTX_flush_sessions(ctx, start + 250);
    assert_false(holds(ctx, first));
    assert_true(holds(ctx, prolonged));
    SSL_CTX_flush_sessions(ctx, start + 500);
    assert_false(holds(ctx, second));
    assert_true(holds(ctx, prolonged));
    SSL_CTX_flush_sessions(ctx, start + 501);
    assert_number(ctx, 0);
    SSL_SESSION_free(prolonged);
    SSL_SESSION_free(first);
    SSL_SESSION_free(second);
    SSL_SESSION_free(shortened);
    SSL_CTX_free(ctx);
}

static void FLUSH2_flush_judges_by_the_new_timeout(void **state)
{
    (void)state;
    judged_by_flush(by_timeout);
}

static void FLUSH2_flush_judges_by_the_new_time(void **state)
{
    (void)state;
    judged_by_flush(by_time);
}

static void FLUSH2_flush_judges_by_the_new_time_ex(void **state)
{
    (void)state;
    if (!has_time_ex())
        skip();
    judged_by_flush(by_time_ex);
}

/* 1.1.1 evicts by age in the cache, not by expiry; Reprise does so only where it is asked to do as libssl. */
static int evicts_by_expiry(void)
{
    return subject() == DOCUMENTED || OpenSSL_version_num() >= 0x30000000L;
}

/* Four sessions fill the cache; one is prolonged, one shortened: two more push out the shortened, then the second. */
static void judged_by_eviction(change *apply)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *prolonged = cached(ctx, 1, start, 100), *second = cached(ctx, 2, start, 200);
    SSL_SESSION *third = cached(ctx, 3, start, 300), *shortened = cached(ctx, 4, start, 400);
    SSL_SESSION *new1, *new2;

    SSL_CTX_sess_set_cache_size(ctx, holds_one_less() ? 5 : 4);
    apply(shortened, start, 50);
    apply(prolonged, start, 500);
    new1 = cached(ctx, 5, start, 600);
    assert_false(holds(ctx, shortened));
    assert_number(ctx, 4);
    new2 = cached(ctx, 6, start, 600);
    assert_false(holds(ctx, second));
    assert_true(holds(ctx, prolonged));
    assert_true(holds(ctx, third));
    assert_true(holds(ctx, new1));
    assert_true(holds(ctx, new2));
    SSL_SESSION_free(prolonged);
    SSL_SESSION_free(second);
    SSL_SESSION_free(third);
    SSL_SESSION_free(shortened);
    SSL_SESSION_free(new1);
    SSL_SESSION_free(new2);
    SSL_CTX_free(ctx);
}

static void FLUSH2_eviction_judges_by_the_new_timeout(void **state)
{
    (void)state;
    if (!evicts_by_expiry())
        skip();
    judged_by_eviction(by_timeout);
}

static void FLUSH2_eviction_judges_by_the_new_time(void **state)
{
    (void)state;
    if (!evicts_by_expiry())
        skip();
    judged_by_eviction(by_time);
}

static void FLUSH2_eviction_judges_by_the_new_time_ex(void **state)
{
    (void)state;
    if (!has_time_ex() || !evicts_by_expiry())
        skip();
    judged_by_eviction(by_time_ex);
}

static void FLUSH2_the_record(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = cached(ctx, 1, start, 300);

    (void)state;
    SSL_SESSION_set_timeout(session, 900);
    SSL_CTX_flush_sessions(ctx, start + 800);
    observe_bool("FLUSH2", "cached beyond the old expiry after the timeout grew", holds(ctx, session), 1);
    SSL_SESSION_set_time(session, start - 500);
    SSL_CTX_flush_sessions(ctx, start + 401);
    observe_bool("FLUSH2", "cached beyond the new expiry after the time was set back", holds(ctx, session), 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

/* Changed many times, it is still one session of the cache: flushed once, freed once. */
static void FLUSH2_changing_often_leaves_one_entry(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = cached(ctx, 1, start, 300), *other = cached(ctx, 2, start, 300);
    int i;

    (void)state;
    for (i = 1; i <= 1000; i++) {
        SSL_SESSION_set_timeout(session, i % 7 * 100 + 1);
        SSL_SESSION_set_time(session, start + i % 11 - 5);
    }
    assert_number(ctx, 2);
    SSL_SESSION_set_time(session, start);
    SSL_SESSION_set_timeout(session, 200);
    SSL_CTX_flush_sessions(ctx, start + 201);
    assert_false(holds(ctx, session));
    assert_true(holds(ctx, other));
    SSL_SESSION_free(session);
    SSL_SESSION_free(other);
    SSL_CTX_free(ctx);
}

/* A session that left is nobody's any more: changing it touches no cache, adding it again uses the new expiry. */
static void FLUSH2_changed_outside_and_added_again(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = cached(ctx, 1, start, 100);

    (void)state;
    assert_int_equal(SSL_CTX_remove_session(ctx, session), 1);
    SSL_SESSION_set_timeout(session, 1000);
    assert_number(ctx, 0);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    SSL_CTX_flush_sessions(ctx, start + 500);
    assert_true(holds(ctx, session));
    SSL_CTX_flush_sessions(ctx, start + 1001);
    assert_false(holds(ctx, session));
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

static void FLUSH2_a_change_in_one_context_leaves_the_other_alone(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *one = server_ctx(TLS1_2_VERSION), *two = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *here = cached(one, 1, start, 300), *there = cached(two, 1, start, 300);

    (void)state;
    SSL_SESSION_set_timeout(here, 100);
    SSL_CTX_flush_sessions(one, start + 200);
    SSL_CTX_flush_sessions(two, start + 200);
    assert_false(holds(one, here));
    assert_true(holds(two, there));
    SSL_SESSION_free(here);
    SSL_SESSION_free(there);
    SSL_CTX_free(one);
    SSL_CTX_free(two);
}

/* One object in two contexts corrupts stock's lists (GET6), so stock has nothing to say here. */
static void FLUSH2_one_object_in_two_contexts_is_judged_anew_in_both(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *one, *two;
    SSL_SESSION *session;

    (void)state;
    if (subject() == STOCK)
        skip();
    one = server_ctx(TLS1_2_VERSION);
    two = server_ctx(TLS1_2_VERSION);
    session = cached(one, 1, start, 300);
    assert_int_equal(SSL_CTX_add_session(two, session), 1);
    SSL_SESSION_set_timeout(session, 1000);
    SSL_CTX_flush_sessions(one, start + 500);
    SSL_CTX_flush_sessions(two, start + 500);
    assert_true(holds(one, session));
    assert_true(holds(two, session));
    SSL_SESSION_set_time(session, start - 800);
    SSL_CTX_flush_sessions(one, start + 201);
    assert_false(holds(one, session));
    assert_true(holds(two, session));
    SSL_CTX_flush_sessions(two, start + 201);
    assert_false(holds(two, session));
    SSL_SESSION_free(session);
    SSL_CTX_free(one);
    SSL_CTX_free(two);
}

/* The same for the session of a real connection, as a server prolongs the sessions of known clients. */
static void FLUSH2_of_a_negotiated_session(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *mine, *theirs;
    pair p;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_set_timeout(server, 1000);
    p = tls_connect(client, server, NULL);
    mine = SSL_get1_session(p.server);
    theirs = SSL_get1_session(p.client);
    tls_close(&p);
    SSL_SESSION_set_timeout(mine, 100000);
    SSL_CTX_flush_sessions(server, start + 50000);
    assert_true(tls_resumes(client, server, theirs));
    SSL_SESSION_set_time(mine, start - 200000);
    assert_false(tls_resumes(client, server, theirs));
    SSL_SESSION_free(mine);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* The session says nothing of where it is cached: it is found among many contexts, small ones and large ones. */
static void FLUSH2_in_one_of_many_contexts(void **state)
{
    enum { CONTEXTS = 24, FEW = 3, MANY = 250 };
    SSL_CTX *contexts[CONTEXTS];
    SSL_SESSION *sessions[CONTEXTS][MANY];
    long now = (long)time(NULL);
    int wrong = 0;

    (void)state;
    for (int i = 0; i < CONTEXTS; i++) {
        int count = i % 8 == 7 ? MANY : FEW;

        contexts[i] = SSL_CTX_new(TLS_method());
        for (int k = 0; k < count; k++)
            sessions[i][k] = cached(contexts[i], (unsigned char)(1 + k), now, 1000);
        /* Some leave before, and are none of its business any more. */
        SSL_CTX_remove_session(contexts[i], sessions[i][1]);
    }
    for (int i = 0; i < CONTEXTS; i++) {
        int count = i % 8 == 7 ? MANY : FEW;

        for (int k = 0; k < count; k += 2)
            by_timeout(sessions[i][k], now, 100);
        by_timeout(sessions[i][1], now, 100);
        SSL_CTX_flush_sessions(contexts[i], now + 500);
        wrong += SSL_CTX_sess_number(contexts[i]) != count / 2 - 1;
        for (int k = i + 1; k < CONTEXTS; k++)
            wrong += SSL_CTX_sess_number(contexts[k]) != (k % 8 == 7 ? MANY : FEW) - 1;
    }
    observe_int("FLUSH2", "contexts, of many, in which a new timeout was overlooked", wrong, 0);
    for (int i = 0; i < CONTEXTS; i++) {
        for (int k = 0; k < (i % 8 == 7 ? MANY : FEW); k++)
            SSL_SESSION_free(sessions[i][k]);
        SSL_CTX_free(contexts[i]);
    }
}

/* Hundreds of contexts have a session with the same id: each is judged anew where it is, and one that left is not missed. */
static void FLUSH2_one_id_in_hundreds_of_contexts(void **state)
{
    enum { CONTEXTS = 300 };
    SSL_CTX *contexts[CONTEXTS];
    SSL_SESSION *sessions[CONTEXTS];
    long now = (long)time(NULL);
    int wrong = 0;

    (void)state;
    for (int i = 0; i < CONTEXTS; i++) {
        contexts[i] = SSL_CTX_new(TLS_method());
        sessions[i] = cached(contexts[i], 1, now, 1000);
    }
    for (int i = 0; i < CONTEXTS; i++) {
        if (i % 5 == 0)
            wrong += SSL_CTX_remove_session(contexts[i], sessions[i]) != 1;
        if (i % 3 == 0)
            by_timeout(sessions[i], now, 100);
    }
    for (int i = 0; i < CONTEXTS; i += 10)
        wrong += SSL_CTX_add_session(contexts[i], sessions[i]) != 1;
    for (int i = 0; i < CONTEXTS; i++) {
        int is_cached = i % 5 != 0 || i % 10 == 0;

        wrong += SSL_CTX_sess_number(contexts[i]) != is_cached;
        SSL_CTX_flush_sessions(contexts[i], now + 500);
        wrong += SSL_CTX_sess_number(contexts[i]) != (is_cached && i % 3 != 0);
    }
    observe_int("FLUSH2", "wrong answers of hundreds of contexts that have one session id", wrong, 0);
    for (int i = 0; i < CONTEXTS; i++) {
        SSL_SESSION_free(sessions[i]);
        SSL_CTX_free(contexts[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        COUNTED_TEST(FLUSH2_flush_judges_by_the_new_timeout),
        COUNTED_TEST(FLUSH2_flush_judges_by_the_new_time),
        COUNTED_TEST(FLUSH2_flush_judges_by_the_new_time_ex),
        COUNTED_TEST(FLUSH2_eviction_judges_by_the_new_timeout),
        COUNTED_TEST(FLUSH2_eviction_judges_by_the_new_time),
        COUNTED_TEST(FLUSH2_eviction_judges_by_the_new_time_ex),
        COUNTED_TEST(FLUSH2_the_record),
        COUNTED_TEST(FLUSH2_changing_often_leaves_one_entry),
        COUNTED_TEST(FLUSH2_changed_outside_and_added_again),
        OBJECT_TEST(FLUSH2_a_change_in_one_context_leaves_the_other_alone),
        COUNTED_TEST(FLUSH2_one_object_in_two_contexts_is_judged_anew_in_both),
        OBJECT_TEST(FLUSH2_in_one_of_many_contexts),
        OBJECT_TEST(FLUSH2_one_id_in_hundreds_of_contexts),
        RULE_TEST(FLUSH2_of_a_negotiated_session),
    };

    return RUN_PAGE("SSL_SESSION_get_time", tests);
}
