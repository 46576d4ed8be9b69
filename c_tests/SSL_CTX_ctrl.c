/*
 * SSL_CTX_ctrl(3): the function behind the macros for the mode, the size and the counters (ABI1).
 *
 * A program compiled against OpenSSL's header calls SSL_CTX_ctrl with a number where its source names a function, so
 * the numbers are as much of the interface as the names; and what is none of the cache's business reaches libssl.
 */
#include "harness.h"

#include <assert.h>

static_assert(SSL_CTRL_SESS_NUMBER == 20 && SSL_CTRL_SESS_CONNECT == 21 && SSL_CTRL_SESS_CONNECT_GOOD == 22
              && SSL_CTRL_SESS_CONNECT_RENEGOTIATE == 23 && SSL_CTRL_SESS_ACCEPT == 24
              && SSL_CTRL_SESS_ACCEPT_GOOD == 25 && SSL_CTRL_SESS_ACCEPT_RENEGOTIATE == 26 && SSL_CTRL_SESS_HIT == 27
              && SSL_CTRL_SESS_CB_HIT == 28 && SSL_CTRL_SESS_MISSES == 29 && SSL_CTRL_SESS_TIMEOUTS == 30
              && SSL_CTRL_SESS_CACHE_FULL == 31, "the counters");
static_assert(SSL_CTRL_SET_SESS_CACHE_SIZE == 42 && SSL_CTRL_GET_SESS_CACHE_SIZE == 43
              && SSL_CTRL_SET_SESS_CACHE_MODE == 44 && SSL_CTRL_GET_SESS_CACHE_MODE == 45, "size and mode");

static void ABI1_mode(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    observe_int("ABI1", "45 returns the default mode", SSL_CTX_ctrl(ctx, 45, 0, NULL), SSL_SESS_CACHE_SERVER);
    observe_int("ABI1", "44 returns the previous mode", SSL_CTX_ctrl(ctx, 44, SSL_SESS_CACHE_BOTH, NULL),
                SSL_SESS_CACHE_SERVER);
    assert_int_equal(SSL_CTX_get_session_cache_mode(ctx), SSL_SESS_CACHE_BOTH);
    assert_int_equal(SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF), SSL_SESS_CACHE_BOTH);
    assert_int_equal(SSL_CTX_ctrl(ctx, 45, 0, NULL), SSL_SESS_CACHE_OFF);
    assert_int_equal(SSL_CTX_ctrl(ctx, 44, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL, NULL),
                     SSL_SESS_CACHE_OFF);
    assert_int_equal(SSL_CTX_get_session_cache_mode(ctx), SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_free(ctx);
}

/* Mode and size set by number do what they say, not only read back. */
static void ABI1_mode_and_size_take_effect(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;
    unsigned char i;
    pair p;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_ctrl(server, 44, SSL_SESS_CACHE_OFF, NULL);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    assert_int_equal(SSL_CTX_ctrl(server, 20, 0, NULL), 0);
    SSL_CTX_ctrl(server, 44, SSL_SESS_CACHE_SERVER, NULL);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    assert_int_equal(SSL_CTX_ctrl(server, 20, 0, NULL), 1);
    SSL_CTX_ctrl(server, 42, 1, NULL);
    for (i = 0; i < 3; i++) {
        session = made_session(TLS1_2_VERSION, i);
        SSL_CTX_add_session(server, session);
        SSL_SESSION_free(session);
    }
    assert_int_equal(SSL_CTX_ctrl(server, 20, 0, NULL), 1);
    assert_int_equal(SSL_CTX_ctrl(server, 31, 0, NULL), 3);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void ABI1_size(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    observe_int("ABI1", "43 returns the default size", SSL_CTX_ctrl(ctx, 43, 0, NULL), 20480);
    observe_int("ABI1", "42 returns the previous size", SSL_CTX_ctrl(ctx, 42, 100, NULL), 20480);
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), 100);
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, 0), 100);
    assert_int_equal(SSL_CTX_ctrl(ctx, 43, 0, NULL), 0);
    SSL_CTX_free(ctx);
}

static long by_name(SSL_CTX *ctx, int number)
{
    switch (number) {
    case 20: return SSL_CTX_sess_number(ctx);
    case 21: return SSL_CTX_sess_connect(ctx);
    case 22: return SSL_CTX_sess_connect_good(ctx);
    case 23: return SSL_CTX_sess_connect_renegotiate(ctx);
    case 24: return SSL_CTX_sess_accept(ctx);
    case 25: return SSL_CTX_sess_accept_good(ctx);
    case 26: return SSL_CTX_sess_accept_renegotiate(ctx);
    case 27: return SSL_CTX_sess_hits(ctx);
    case 28: return SSL_CTX_sess_cb_hits(ctx);
    case 29: return SSL_CTX_sess_misses(ctx);
    case 30: return SSL_CTX_sess_timeouts(ctx);
    default: return SSL_CTX_sess_cache_full(ctx);
    }
}

static SSL_SESSION *outside;

static SSL_SESSION *give(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length;
    *copy = 1;
    return outside;
}

/* One context that has been server and client, so that as many counters as can be differ from each other. */
static void ABI1_counters(void **state)
{
    /* 20 to 31: 2 cached; as client 1 connection; as server 5, of which 2 resumed (1 by get_cb) and 1 missed. */
    static const long expected[] = { 2, 1, 1, 0, 5, 5, 0, 2, 1, 1, 0, 0 };
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION), *peer = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *first, *second;
    pair p;
    int number;

    (void)state;
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_options(peer, SSL_OP_NO_TICKET);
    p = tls_connect(peer, ctx, NULL);
    outside = SSL_get1_session(p.server);
    first = SSL_get1_session(p.client);
    tls_close(&p);
    assert_true(tls_resumes(peer, ctx, first));
    second = tls_session(peer, ctx);
    SSL_CTX_sess_set_get_cb(ctx, give);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    assert_true(tls_resumes(peer, ctx, first));
    SSL_CTX_sess_set_get_cb(ctx, NULL);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    assert_int_equal(SSL_CTX_remove_session(ctx, outside), 1);
    assert_false(tls_resumes(peer, ctx, first));
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER);
    assert_int_equal(SSL_CTX_add_session(ctx, first), 1);
    p = tls_connect(ctx, peer, NULL);
    tls_close(&p);
    for (number = 20; number <= 31; number++) {
        long value = SSL_CTX_ctrl(ctx, number, 0, NULL);

        assert_int_equal(value, expected[number - 20]);
        assert_int_equal(value, by_name(ctx, number));
    }
    SSL_SESSION_free(first);
    SSL_SESSION_free(second);
    SSL_SESSION_free(outside);
    SSL_CTX_free(ctx);
    SSL_CTX_free(peer);
}

/* The arguments of a counter mean nothing, and reading changes nothing. */
static void ABI1_counters_are_read_only(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    int number;

    (void)state;
    for (number = 20; number <= 31; number++) {
        assert_int_equal(SSL_CTX_ctrl(ctx, number, 5, NULL), 0);
        assert_int_equal(SSL_CTX_ctrl(ctx, number, 0, ctx), 0);
    }
    SSL_CTX_free(ctx);
}

static void ABI1_everything_else_reaches_libssl(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_3_VERSION);
    long mode = SSL_CTX_get_mode(ctx);
    pair p;

    (void)state;
    assert_int_equal(SSL_CTX_ctrl(ctx, SSL_CTRL_MODE, SSL_MODE_ENABLE_PARTIAL_WRITE, NULL),
                     mode | SSL_MODE_ENABLE_PARTIAL_WRITE);
    assert_int_equal(SSL_CTX_get_mode(ctx), mode | SSL_MODE_ENABLE_PARTIAL_WRITE);
    assert_int_equal(SSL_CTX_clear_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE), mode & ~SSL_MODE_ENABLE_PARTIAL_WRITE);
    assert_int_equal(SSL_CTX_set_max_cert_list(ctx, 1234), SSL_MAX_CERT_LIST_DEFAULT);
    assert_int_equal(SSL_CTX_get_max_cert_list(ctx), 1234);
    assert_int_equal(SSL_CTX_set_max_send_fragment(ctx, 100), 0);
    assert_int_equal(SSL_CTX_set_max_send_fragment(ctx, 1024), 1);
    assert_int_equal(SSL_CTX_ctrl(ctx, SSL_CTRL_SET_READ_AHEAD, 1, NULL), 0);
    assert_int_equal(SSL_CTX_get_read_ahead(ctx), 1);

    /* A command with a pointer, and one whose effect the peer sees. */
    assert_int_equal(SSL_CTX_set1_sigalgs_list(ctx, "no such algorithm"), 0);
    assert_int_equal(SSL_CTX_set1_sigalgs_list(ctx, "ECDSA+SHA256"), 1);
    assert_false(tls_try(client, ctx, NULL, &p));
    assert_int_equal(SSL_CTX_ctrl(ctx, SSL_CTRL_SET_MAX_PROTO_VERSION, TLS1_3_VERSION, NULL), 1);
    assert_int_equal(SSL_CTX_ctrl(ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, NULL), 1);
    observe_int("ABI1", "SSL_CTX_get_min_proto_version says what SSL_CTRL_SET_MIN_PROTO_VERSION was given",
                SSL_CTX_get_min_proto_version(ctx), TLS1_3_VERSION);
    p = tls_connect(client, ctx, NULL);
    assert_int_equal(SSL_version(p.server), TLS1_3_VERSION);
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(ctx);
}

static void ABI1_unknown_commands_return_0(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    observe_int("ABI1", "a command that nobody knows returns", SSL_CTX_ctrl(ctx, 100000, 1, NULL), 0);
    assert_int_equal(SSL_CTX_ctrl(ctx, -1, 1, NULL), 0);
    SSL_CTX_free(ctx);
}

static void ABI1_no_context_returns_0(void **state)
{
    int number, failures = 0;

    (void)state;
    for (number = 20; number <= 31; number++)
        failures += SSL_CTX_ctrl(NULL, number, 0, NULL) != 0;
    for (number = 42; number <= 45; number++)
        failures += SSL_CTX_ctrl(NULL, number, 1, NULL) != 0;
    observe_int("ABI1", "commands of the cache that do not return 0 without a context", failures, 0);
    assert_int_equal(SSL_CTX_ctrl(NULL, SSL_CTRL_MODE, 1, NULL), 0);
    /* libssl checks the syntax of some lists without a context; later ones stumble over that. */
    if (OpenSSL_version_num() < 0x30100000L) {
        assert_int_equal(SSL_CTX_ctrl(NULL, SSL_CTRL_SET_SIGALGS_LIST, 0, "ECDSA+SHA256"), 1);
        assert_int_equal(SSL_CTX_ctrl(NULL, SSL_CTRL_SET_SIGALGS_LIST, 0, "ECDSA+"), 0);
    }
}

/* SSL_get0_session is a macro too, or an alias: what a program calls is SSL_get_session. */
static void ABI1_get0_session_is_get_session(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, server, NULL);

    (void)state;
    assert_non_null(SSL_get_session(p.server));
    observe_bool("ABI1", "SSL_get0_session is SSL_get_session",
                 SSL_get0_session(p.server) == SSL_get_session(p.server), 1);
    assert_ptr_equal(SSL_get0_session(p.client), SSL_get_session(p.client));
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(ABI1_mode),
        COUNTED_TEST(ABI1_mode_and_size_take_effect),
        RULE_TEST(ABI1_size),
        COUNTED_TEST(ABI1_counters),
        RULE_TEST(ABI1_counters_are_read_only),
        RULE_TEST(ABI1_everything_else_reaches_libssl),
        RULE_TEST(ABI1_unknown_commands_return_0),
        RULE_TEST(ABI1_no_context_returns_0),
        RULE_TEST(ABI1_get0_session_is_get_session),
    };

    return RUN_PAGE("SSL_CTX_ctrl", tests);
}
