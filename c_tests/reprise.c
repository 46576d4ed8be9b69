/*
 * Reprise's own functions, and reprise.h: names that OpenSSL has as macros are functions, errors are on OpenSSL's
 * error queue. There is nothing of this on stock libssl.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>

#include <openssl/err.h>

#include "reprise.h"

/* The error that the last call left, of the library "reprise" and saying `part`. */
static void assert_error(const char *part)
{
    unsigned long error = ERR_get_error();

    assert_string_equal(ERR_lib_error_string(error), "reprise");
    assert_non_null(strstr(ERR_reason_error_string(error), part));
    assert_int_equal(ERR_peek_error(), 0);
}

static void version(void **state)
{
    unsigned major, minor, patch;

    (void)state;
    assert_int_equal(sscanf(reprise_version(), "%u.%u.%u", &major, &minor, &patch), 3);
}

static void semantics(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    ERR_clear_error();
    assert_int_equal(reprise_ctx_get_semantics(ctx),
                     subject() == DOCUMENTED ? REPRISE_SEMANTICS_DOCUMENTED : REPRISE_SEMANTICS_STOCK);
    SSL_CTX_sess_set_cache_size(ctx, 3);
    for (int semantics = 0; semantics < 2; semantics++) {
        assert_int_equal(reprise_ctx_set_semantics(ctx, semantics), 1);
        assert_int_equal(reprise_ctx_get_semantics(ctx), semantics);
        for (unsigned char fill = 1; fill <= 5; fill++) {
            SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

            SSL_CTX_add_session(ctx, session);
            SSL_SESSION_free(session);
        }
        /* SIZE1: some releases of stock hold one less. Which, is compared on the page about sizes. */
        if (semantics == REPRISE_SEMANTICS_DOCUMENTED)
            assert_number(ctx, 3);
        else
            assert_true(numbers(ctx, 3) || numbers(ctx, 2));
    }
    assert_int_equal(reprise_ctx_set_semantics(ctx, 2), 0);
    assert_error("unknown semantics");
    assert_int_equal(reprise_ctx_set_semantics(NULL, 0), 0);
    assert_error("NULL");
    assert_int_equal(reprise_ctx_get_semantics(NULL), -1);
    assert_error("NULL");
    SSL_CTX_free(ctx);
}

static void stats(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;
    reprise_stats all;
    struct { reprise_stats known; uint64_t unknown; } newer;

    (void)state;
    ERR_clear_error();
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    session = tls_session(client, server);
    assert_true(tls_resumes(client, server, session));
    SSL_CTX_flush_sessions(server, 0);
    assert_false(tls_resumes(client, server, session));
    assert_int_equal(reprise_ctx_stats(server, &all, sizeof all), 1);
    assert_int_equal(all.version, REPRISE_STATS_VERSION);
    assert_int_equal(all.size, sizeof all);
    if (!in_redis())
        assert_true(all.sessions == 1 && all.flushed == 1);
    assert_int_equal(all.stored, 2);
    assert_int_equal(all.negotiated, 2);
    assert_int_equal(all.hits, 1);
    assert_int_equal(all.misses, 1);
    assert_int_equal(all.store_errors, 0);

    /* A program made for a later version gets what there is, one for an earlier version what it knows. */
    memset(&newer, 0xff, sizeof newer);
    assert_int_equal(reprise_ctx_stats(server, &newer.known, sizeof newer), 1);
    assert_int_equal(newer.known.size, sizeof all);
    assert_true(newer.unknown == UINT64_MAX);
    memset(&all, 0xff, sizeof all);
    assert_int_equal(reprise_ctx_stats(server, &all, 16), 1);
    assert_int_equal(all.size, 16);
    if (!in_redis())
        assert_int_equal(all.sessions, 1);
    assert_true(all.stored == UINT64_MAX);

    assert_int_equal(reprise_ctx_stats(server, NULL, sizeof all), 0);
    assert_error("NULL");
    assert_int_equal(reprise_ctx_stats(NULL, &all, sizeof all), 0);
    assert_error("NULL");
    assert_int_equal(reprise_ctx_stats(server, &all, 3), 0);
    assert_error("sizeof");
    SSL_SESSION_free(session);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

static void ABI1_macros_are_functions(void **state)
{
    long (*number)(SSL_CTX *) = SSL_CTX_sess_number;
    long (*set_mode)(SSL_CTX *, long) = SSL_CTX_set_session_cache_mode;
    SSL_SESSION *(*get0_session)(const SSL *) = SSL_get0_session;
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, server, NULL);

    (void)state;
    assert_int_equal(set_mode(server, SSL_SESS_CACHE_OFF), SSL_SESS_CACHE_SERVER);
    assert_int_equal(SSL_CTX_get_session_cache_mode(server), SSL_SESS_CACHE_OFF);
    if (!in_redis())
        assert_int_equal(number(server), SSL_CTX_sess_number(server));
    assert_ptr_equal(get0_session(p.server), SSL_get_session(p.server));
    tls_close(&p);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(version),
        COUNTED_TEST(semantics),
        RULE_TEST(stats),
        RULE_TEST(ABI1_macros_are_functions),
    };

    return RUN_PAGE("reprise", tests);
}
#else
int main(void)
{
    return 0;
}
#endif
