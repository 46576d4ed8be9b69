/*
 * SSL_CTX_flush_sessions(3) and SSL_CTX_flush_sessions_ex: what leaves the internal cache at a given time.
 *
 * A session is expired at t when t > time + timeout; at t == time + timeout it is still good.
 */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "harness.h"

#include <dlfcn.h>
#include <limits.h>
#include <string.h>
#include <time.h>

static struct {
    int calls, resumable;
    SSL_CTX *ctx;
    SSL_SESSION *session;
} removed;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    removed.calls++;
    removed.resumable += SSL_SESSION_is_resumable(session);
    removed.ctx = ctx;
    removed.session = session;
}

static SSL_CTX *watched_ctx(void)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    memset(&removed, 0, sizeof removed);
    return ctx;
}

/* A session in ctx's cache that expires at start + seconds; one reference for the caller. */
static SSL_SESSION *cached(SSL_CTX *ctx, unsigned char fill, long start, long seconds)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

    SSL_SESSION_set_time(session, start);
    SSL_SESSION_set_timeout(session, seconds);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    return session;
}

static void FLUSH1_expired_means_later_than_time_plus_timeout(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = watched_ctx();
    SSL_SESSION *session = cached(ctx, 1, start, 100);

    (void)state;
    SSL_CTX_flush_sessions(ctx, start + 99);
    observe_bool("FLUSH1", "cached a second before time + timeout", in_cache(ctx, TLS1_2_VERSION, session), 1);
    SSL_CTX_flush_sessions(ctx, start + 100);
    observe_bool("FLUSH1", "cached at time + timeout", in_cache(ctx, TLS1_2_VERSION, session), 1);
    assert_true(SSL_SESSION_is_resumable(session));
    SSL_CTX_flush_sessions(ctx, start + 101);
    observe_bool("FLUSH1", "cached a second after time + timeout", in_cache(ctx, TLS1_2_VERSION, session), 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

static void FLUSH1_only_the_expired_leave(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = watched_ctx();
    SSL_SESSION *late = cached(ctx, 1, start, 300);
    SSL_SESSION *early = cached(ctx, 2, start, 100);
    SSL_SESSION *middle = cached(ctx, 3, start - 100, 300);

    (void)state;
    SSL_CTX_flush_sessions(ctx, start + 150);
    assert_false(in_cache(ctx, TLS1_2_VERSION, early));
    assert_true(in_cache(ctx, TLS1_2_VERSION, middle));
    assert_true(in_cache(ctx, TLS1_2_VERSION, late));
    SSL_CTX_flush_sessions(ctx, start + 250);
    assert_false(in_cache(ctx, TLS1_2_VERSION, middle));
    assert_true(in_cache(ctx, TLS1_2_VERSION, late));
    observe_number("FLUSH1", "three sessions, two expired: number left", ctx, 1);
    observe_int("FLUSH1", "three sessions, two expired: calls of remove_cb", removed.calls, 2);
    SSL_SESSION_free(late);
    SSL_SESSION_free(early);
    SSL_SESSION_free(middle);
    SSL_CTX_free(ctx);
}

static void FLUSH1_marks_and_calls_remove_cb_once(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = watched_ctx();
    SSL_SESSION *expired = cached(ctx, 1, start, 100);
    SSL_SESSION *good = cached(ctx, 2, start, 300);

    (void)state;
    SSL_CTX_flush_sessions(ctx, start + 200);
    SSL_CTX_flush_sessions(ctx, start + 200);
    observe_int("FLUSH1", "calls of remove_cb for one expired session", removed.calls, 1);
    observe_int("FLUSH1", "expired sessions still resumable inside remove_cb", removed.resumable, 0);
    assert_ptr_equal(removed.ctx, ctx);
    assert_ptr_equal(removed.session, expired);
    observe_bool("FLUSH1", "an expired session is resumable afterwards", SSL_SESSION_is_resumable(expired), 0);
    observe_bool("FLUSH1", "a session not expired is resumable afterwards", SSL_SESSION_is_resumable(good), 1);
    SSL_SESSION_free(expired);
    SSL_SESSION_free(good);
    SSL_CTX_free(ctx);
}

static void FLUSH1_zero_removes_all(void **state)
{
    enum { COUNT = 50 };
    long start = (long)time(NULL);
    SSL_CTX *ctx = watched_ctx();
    SSL_SESSION *session[COUNT];
    int i, resumable = 0;

    (void)state;
    for (i = 0; i < COUNT; i++)
        session[i] = cached(ctx, (unsigned char)i, start, 1 + i * 7 % 50);
    SSL_CTX_flush_sessions(ctx, 0);
    observe_number("FLUSH1", "sessions left by a flush with t = 0", ctx, 0);
    observe_int("FLUSH1", "calls of remove_cb by a flush of 50 with t = 0", removed.calls, COUNT);
    for (i = 0; i < COUNT; i++) {
        resumable += SSL_SESSION_is_resumable(session[i]);
        SSL_SESSION_free(session[i]);
    }
    observe_int("FLUSH1", "sessions resumable after a flush with t = 0", resumable, 0);
    SSL_CTX_flush_sessions(ctx, 0);
    observe_int("FLUSH1", "calls of remove_cb by a flush of an empty cache", removed.calls - COUNT, 0);
    SSL_CTX_free(ctx);
}

static void FLUSH1_a_time_before_all_removes_none(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *ctx = watched_ctx();
    SSL_SESSION *session = cached(ctx, 1, start, 100);

    (void)state;
    SSL_CTX_flush_sessions(ctx, 1);
    observe_bool("FLUSH1", "cached after a flush with t = 1", in_cache(ctx, TLS1_2_VERSION, session), 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

/* time + timeout is past the end of time_t: such a session never expires. 1.1.1 lets the sum wrap. */
static void FLUSH1_a_sum_beyond_all_times_never_expires(void **state)
{
    SSL_CTX *ctx;
    SSL_SESSION *session;

    (void)state;
    if (OpenSSL_version_num() < 0x30000000L && subject() == STOCK)
        skip();
    ctx = watched_ctx();
    session = cached(ctx, 1, (long)time(NULL), LONG_MAX);
    SSL_CTX_flush_sessions(ctx, LONG_MAX);
    observe_bool("FLUSH1", "cached at the end of time with an endless timeout",
                 in_cache(ctx, TLS1_2_VERSION, session), 1);
    SSL_CTX_flush_sessions(ctx, 0);
    assert_number(ctx, 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

static void FLUSH1_works_in_every_mode(void **state)
{
    static const long mode[] = { SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_BOTH,
                                 SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_AUTO_CLEAR,
                                 SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL };
    long start = (long)time(NULL);
    size_t i;

    (void)state;
    for (i = 0; i < sizeof mode / sizeof *mode; i++) {
        SSL_CTX *ctx = watched_ctx();
        SSL_SESSION *session;

        SSL_CTX_set_session_cache_mode(ctx, mode[i]);
        session = cached(ctx, 1, start, 100);
        SSL_CTX_flush_sessions(ctx, start + 101);
        assert_number(ctx, 0);
        assert_int_equal(removed.calls, 1);
        SSL_SESSION_free(session);
        SSL_CTX_free(ctx);
    }
}

static void FLUSH1_contexts_are_apart(void **state)
{
    long start = (long)time(NULL);
    SSL_CTX *flushed = watched_ctx(), *other = watched_ctx();
    SSL_SESSION *here = cached(flushed, 1, start, 100), *there = cached(other, 1, start, 100);

    (void)state;
    SSL_CTX_flush_sessions(flushed, 0);
    assert_number(flushed, 0);
    assert_ptr_equal(removed.session, here);
    observe_bool("FLUSH1", "the same id stays in a context that was not flushed",
                 in_cache(other, TLS1_2_VERSION, there), 1);
    assert_true(SSL_SESSION_is_resumable(there));
    SSL_SESSION_free(here);
    SSL_SESSION_free(there);
    SSL_CTX_free(flushed);
    SSL_CTX_free(other);
}

static SSL_SESSION *kept;

static int keep(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(kept);
    kept = session;
    return 1;
}

static SSL_SESSION *give(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    unsigned int kept_length;
    const unsigned char *kept_id = SSL_SESSION_get_id(kept, &kept_length);

    (void)ssl;
    *copy = 1;
    return length == (int)kept_length && memcmp(id, kept_id, kept_length) == 0 ? kept : NULL;
}

static void FLUSH1_checks_the_internal_cache_only(void **state)
{
    SSL_CTX *server = watched_ctx(), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(server, keep);
    SSL_CTX_sess_set_get_cb(server, give);
    session = tls_session(client, server);
    assert_non_null(kept);
    SSL_CTX_flush_sessions(server, 0);
    observe_int("FLUSH1", "calls of remove_cb for a session kept outside only", removed.calls, 0);
    observe_bool("FLUSH1", "a session kept outside is resumed after a flush",
                 tls_resumes(client, server, session), 1);
    SSL_SESSION_free(session);
    SSL_SESSION_free(kept);
    kept = NULL;
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void negotiated(int version)
{
    long start = (long)time(NULL);
    SSL_CTX *server = server_ctx(version), *client = client_ctx(version);
    SSL_SESSION *session;

    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_set_timeout(server, 1000);
    session = tls_session(client, server);
    SSL_CTX_flush_sessions(server, start + 500);
    assert_true(tls_resumes(client, server, session));
    SSL_CTX_flush_sessions(server, start + 5000);
    assert_number(server, 0);
    assert_false(tls_resumes(client, server, session));
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void FLUSH1_a_flushed_session_is_not_resumed(void **state)
{
    (void)state;
    negotiated(TLS1_2_VERSION);
    negotiated(TLS1_3_VERSION);
}

/* Came with 3.4; Reprise has it over every libssl, so it is looked up, not linked. */
static void FLUSH1_flush_sessions_ex_does_the_same(void **state)
{
    void (*flush_sessions_ex)(SSL_CTX *, time_t);
    time_t start = time(NULL);
    SSL_CTX *ctx;
    SSL_SESSION *early, *late;

    (void)state;
    *(void **)&flush_sessions_ex = dlsym(RTLD_DEFAULT, "SSL_CTX_flush_sessions_ex");
    if (flush_sessions_ex == NULL && subject() == STOCK)
        skip();
    assert_true(flush_sessions_ex != NULL);
    ctx = watched_ctx();
    early = cached(ctx, 1, (long)start, 100);
    late = cached(ctx, 2, (long)start, 200);
    flush_sessions_ex(ctx, start + 100);
    assert_int_equal(removed.calls, 0);
    flush_sessions_ex(ctx, start + 101);
    assert_false(in_cache(ctx, TLS1_2_VERSION, early));
    assert_true(in_cache(ctx, TLS1_2_VERSION, late));
    assert_false(SSL_SESSION_is_resumable(early));
    assert_ptr_equal(removed.session, early);
    flush_sessions_ex(ctx, 0);
    assert_number(ctx, 0);
    assert_int_equal(removed.calls, 2);
    SSL_SESSION_free(early);
    SSL_SESSION_free(late);
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        COUNTED_TEST(FLUSH1_expired_means_later_than_time_plus_timeout),
        COUNTED_TEST(FLUSH1_only_the_expired_leave),
        OBJECT_TEST(FLUSH1_marks_and_calls_remove_cb_once),
        OBJECT_TEST(FLUSH1_zero_removes_all),
        RULE_TEST(FLUSH1_a_time_before_all_removes_none),
        OBJECT_TEST(FLUSH1_a_sum_beyond_all_times_never_expires),
        COUNTED_TEST(FLUSH1_works_in_every_mode),
        OBJECT_TEST(FLUSH1_contexts_are_apart),
        RULE_TEST(FLUSH1_checks_the_internal_cache_only),
        COUNTED_TEST(FLUSH1_a_flushed_session_is_not_resumed),
        OBJECT_TEST(FLUSH1_flush_sessions_ex_does_the_same),
    };

    return RUN_PAGE("SSL_CTX_flush_sessions", tests);
}
