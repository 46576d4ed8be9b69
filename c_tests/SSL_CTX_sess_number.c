/*
 * SSL_CTX_sess_number(3): the twelve counters of a context (STAT1), across real handshakes.
 *
 * Each test writes down all twelve at once, so that a counter that moves where it should not is seen too.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* "number=1 accept=2": the counters that are not zero, in the order of the manual page. */
static const char *counters(SSL_CTX *ctx)
{
    static char text[256];
    const struct {
        const char *name;
        long value;
    } all[] = {
        { "number", in_redis() ? 0 : SSL_CTX_sess_number(ctx) },
        { "connect", SSL_CTX_sess_connect(ctx) },
        { "connect_good", SSL_CTX_sess_connect_good(ctx) },
        { "connect_renegotiate", SSL_CTX_sess_connect_renegotiate(ctx) },
        { "accept", SSL_CTX_sess_accept(ctx) },
        { "accept_good", SSL_CTX_sess_accept_good(ctx) },
        { "accept_renegotiate", SSL_CTX_sess_accept_renegotiate(ctx) },
        { "hits", SSL_CTX_sess_hits(ctx) },
        { "cb_hits", SSL_CTX_sess_cb_hits(ctx) },
        { "misses", SSL_CTX_sess_misses(ctx) },
        { "timeouts", SSL_CTX_sess_timeouts(ctx) },
        { "cache_full", SSL_CTX_sess_cache_full(ctx) },
    };
    size_t i, length = 0;

    text[0] = '\0';
    for (i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value != 0)
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%s=%ld", length == 0 ? "" : " ",
                                       all[i].name, all[i].value);
    return length == 0 ? "none" : text;
}

static void seen(const char *what, SSL_CTX *ctx, const char *expected)
{
    if (in_redis()) /* which does not count what is cached */
        if (strncmp(expected, "number=", 7) == 0)
            expected = strchr(expected, ' ') != NULL ? strchr(expected, ' ') + 1 : "none";
    observe("STAT1", what, counters(ctx), expected);
}

/* A server whose sessions are in its cache, not in tickets. */
static SSL_CTX *stateful_server(int version)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    return ctx;
}

/* The external cache: the last session that came, as bytes. */
static unsigned char outside[8192];
static int outside_length;
static long outside_time;      /* where not 0, what is given back bears this time */

static int keep(SSL *ssl, SSL_SESSION *session)
{
    unsigned char *end = outside;

    (void)ssl;
    assert_true(i2d_SSL_SESSION(session, NULL) <= (int)sizeof outside);
    outside_length = i2d_SSL_SESSION(session, &end);
    SSL_SESSION_free(session);
    return 1; /* 0 would say that the internal cache is not to keep it */
}

static SSL_SESSION *give(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    const unsigned char *bytes = outside, *kept_id;
    SSL_SESSION *session;
    unsigned int kept_length;

    (void)ssl;
    *copy = 0;
    session = d2i_SSL_SESSION(NULL, &bytes, outside_length);
    if (session == NULL)
        return NULL;
    kept_id = SSL_SESSION_get_id(session, &kept_length);
    if (length != (int)kept_length || memcmp(id, kept_id, kept_length) != 0) {
        SSL_SESSION_free(session);
        return NULL;
    }
    if (outside_time != 0)
        SSL_SESSION_set_time(session, outside_time);
    return session;
}

static void keep_outside(SSL_CTX *ctx)
{
    outside_length = 0;
    outside_time = 0;
    SSL_CTX_sess_set_new_cb(ctx, keep);
    SSL_CTX_sess_set_get_cb(ctx, give);
}

static void STAT1_begins_with_zeros(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    seen("a new context", ctx, "none");
    SSL_CTX_free(ctx);
}

static void STAT1_full_and_resumed(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = tls_session(client, server);

    (void)state;
    seen("TLS 1.2 server, 1 full", server, "number=1 accept=1 accept_good=1");
    seen("TLS 1.2 client, 1 full", client, "connect=1 connect_good=1");
    assert_true(tls_resumes(client, server, session));
    seen("TLS 1.2 server, 1 full, 1 resumed", server, "number=1 accept=2 accept_good=2 hits=1");
    seen("TLS 1.2 client, 1 full, 1 resumed", client, "connect=2 connect_good=2 hits=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_resumed_by_ticket(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = tls_session(client, server);

    (void)state;
    assert_true(tls_resumes(client, server, session));
    seen("TLS 1.2 server with tickets, 1 full, 1 resumed", server, "accept=2 accept_good=2 hits=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_resumed_by_get_cb(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    keep_outside(server);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    session = tls_session(client, server);
    assert_true(tls_resumes(client, server, session));
    seen("resumed by get_cb after the internal cache was asked", server,
         "accept=2 accept_good=2 hits=1 cb_hits=1 misses=1");
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    assert_true(tls_resumes(client, server, session));
    seen("the same and once more with NO_INTERNAL", server, "accept=3 accept_good=3 hits=2 cb_hits=2 misses=1");
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER);
    assert_true(tls_resumes(client, server, session));
    seen("the same and once more with storing", server, "number=1 accept=4 accept_good=4 hits=3 cb_hits=3 misses=2");
    assert_true(tls_resumes(client, server, session));
    seen("the same and found inside then", server, "number=1 accept=5 accept_good=5 hits=4 cb_hits=3 misses=2");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_misses(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = tls_session(client, server);

    (void)state;
    SSL_CTX_flush_sessions(server, 0);
    assert_false(tls_resumes(client, server, session));
    seen("TLS 1.2 server, a session proposed that it has no more", server,
         "number=1 accept=2 accept_good=2 misses=1");
    /* The page counts misses "in server mode" only. */
    observe("STAT1", "TLS 1.2 client, its session refused", counters(client),
            "connect=2 connect_good=2");
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP);
    assert_false(tls_resumes(client, server, session));
    seen("the same and once more with NO_INTERNAL_LOOKUP", server, "number=2 accept=3 accept_good=3 misses=1");
    keep_outside(server);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER);
    assert_false(tls_resumes(client, server, session));
    seen("the same and once more with a get_cb that has nothing", server,
         "number=3 accept=4 accept_good=4 misses=2");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* For middleboxes, a client that can do TLS 1.3 sends 32 random bytes as id: to an older server a session proposed. */
static void STAT1_misses_by_a_tls13_client(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p;

    (void)state;
    SSL_CTX_set_max_proto_version(client, TLS1_3_VERSION);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    seen("TLS 1.2 server, first connection of a client that can do TLS 1.3", server,
         "number=1 accept=1 accept_good=1 misses=1");
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_timeouts(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *mine, *session;
    pair p;

    (void)state;
    p = tls_connect(client, server, NULL);
    mine = SSL_get1_session(p.server);
    session = SSL_get1_session(p.client);
    tls_close(&p);
    SSL_SESSION_set_time(mine, (long)time(NULL) - 1000000);
    assert_false(tls_resumes(client, server, session));
    seen("TLS 1.2 server, a session proposed that expired inside", server,
         "number=1 accept=2 accept_good=2 timeouts=1");
    SSL_SESSION_free(mine);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_timeouts_of_get_cb(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    keep_outside(server);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    session = tls_session(client, server);
    outside_time = (long)time(NULL) - 1000000;
    assert_false(tls_resumes(client, server, session));
    seen("TLS 1.2 server, a session proposed that expired outside", server,
         "accept=2 accept_good=2 cb_hits=1 timeouts=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_cache_full(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    unsigned char i;

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, 3);
    for (i = 0; i < 8; i++) {
        SSL_SESSION *session = made_session(TLS1_2_VERSION, i);

        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
    observe("STAT1", "8 sessions added with size 3", counters(ctx), "number=3 cache_full=5");
    SSL_CTX_flush_sessions(ctx, 0);
    assert_number(ctx, 0);
    observe("STAT1", "the same after a flush, which is no overflow", counters(ctx), "cache_full=5");
    SSL_CTX_free(ctx);
}

static void STAT1_number_counts_both_sides(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *first, *second;

    (void)state;
    SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
    first = tls_session(client, server);
    second = tls_session(client, server);
    seen("a client in mode CLIENT, 2 full", client, "number=2 connect=2 connect_good=2");
    assert_int_equal(SSL_CTX_remove_session(client, first), 1);
    assert_true(tls_resumes(client, server, second));
    seen("the same, 1 removed, 1 resumed", client, "number=1 connect=3 connect_good=3 hits=1");
    SSL_SESSION_free(first);
    SSL_SESSION_free(second);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_started_is_not_good(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_3_VERSION);
    pair p;

    (void)state;
    assert_false(tls_try(client, server, NULL, &p));
    seen("a server whose handshake failed", server, "accept=1");
    seen("a client whose handshake failed", client, "connect=1");
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* The client begins a new handshake in the connection, and both sides read until it is through. */
static void renegotiated(int begin(SSL *), const char *server_what, const char *server_expected,
                         const char *client_what, const char *client_expected)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p;
    char byte;
    int round;

#ifdef SSL_OP_ALLOW_CLIENT_RENEGOTIATION
    SSL_CTX_set_options(server, SSL_OP_ALLOW_CLIENT_RENEGOTIATION);
#endif
    p = tls_connect(client, server, NULL);
    assert_int_equal(begin(p.client), 1);
    SSL_do_handshake(p.client);
    for (round = 0; round < 10; round++) {
        SSL_read(p.server, &byte, 1);
        SSL_read(p.client, &byte, 1);
    }
    assert_true(SSL_is_init_finished(p.server));
    assert_true(SSL_is_init_finished(p.client));
    seen(server_what, server, server_expected);
    seen(client_what, client, client_expected);
    assert_true(tls_echo(&p));
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_renegotiations(void **state)
{
    (void)state;
    renegotiated(SSL_renegotiate,
                 "TLS 1.2 server, 1 full, 1 full renegotiation",
                 "number=2 accept=1 accept_good=2 accept_renegotiate=1",
                 "TLS 1.2 client, 1 full, 1 full renegotiation",
                 "connect=1 connect_good=2 connect_renegotiate=1");
}

static void STAT1_renegotiations_resumed(void **state)
{
    (void)state;
    renegotiated(SSL_renegotiate_abbreviated,
                 "TLS 1.2 server, 1 full, 1 resuming renegotiation",
                 "number=1 accept=1 accept_good=2 accept_renegotiate=1 hits=1",
                 "TLS 1.2 client, 1 full, 1 resuming renegotiation",
                 "connect=1 connect_good=2 connect_renegotiate=1 hits=1");
}

static void STAT1_tls13_stateless(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_3_VERSION), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = tls_session(client, server);

    (void)state;
    assert_true(tls_resumes(client, server, session));
    seen("TLS 1.3 server with stateless tickets, 1 full, 1 resumed", server, "accept=2 accept_good=2 hits=1");
    seen("TLS 1.3 client with stateless tickets, 1 full, 1 resumed", client, "connect=2 connect_good=2 hits=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* Two tickets come with a full handshake, one with a resumed one; each is a session of the cache. */
static void STAT1_tls13_stateful(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_3_VERSION), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    (void)state;
    session = tls_session(client, server);
    seen("TLS 1.3 server with stateful tickets, 1 full", server, "number=2 accept=1 accept_good=1");
    assert_true(tls_resumes(client, server, session));
    seen("TLS 1.3 server with stateful tickets, 1 full, 1 resumed", server,
         "number=3 accept=2 accept_good=2 hits=1");
    SSL_CTX_flush_sessions(server, 0);
    assert_false(tls_resumes(client, server, session));
    seen("the same, flushed, and the ticket proposed again", server,
         "number=2 accept=3 accept_good=3 hits=1 misses=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_tls13_client(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_3_VERSION), *client = client_ctx(TLS1_3_VERSION);
    pair p;

    (void)state;
    SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    seen("TLS 1.3 client in mode CLIENT, 1 full, 2 tickets", client, "number=2 connect=1 connect_good=1");
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_tls13_resumed_by_get_cb(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_3_VERSION), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    (void)state;
    keep_outside(server);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    session = tls_session(client, server);
    assert_true(tls_resumes(client, server, session));
    seen("TLS 1.3 server, resumed by get_cb after the internal cache was asked", server,
         "accept=2 accept_good=2 hits=1 cb_hits=1 misses=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void STAT1_of_one_context_only(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION), *other = stateful_server(TLS1_2_VERSION);
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session = tls_session(client, server);

    (void)state;
    assert_false(tls_resumes(client, other, session));
    seen("a context where another one's session was proposed", other, "number=1 accept=1 accept_good=1 misses=1");
    seen("the context the session is from", server, "number=1 accept=1 accept_good=1");
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    SSL_CTX_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(STAT1_begins_with_zeros),
        RULE_TEST(STAT1_full_and_resumed),
        RULE_TEST(STAT1_resumed_by_ticket),
        RULE_TEST(STAT1_resumed_by_get_cb),
        RULE_TEST(STAT1_misses),
        RULE_TEST(STAT1_misses_by_a_tls13_client),
        RULE_TEST(STAT1_timeouts),
        RULE_TEST(STAT1_timeouts_of_get_cb),
        COUNTED_TEST(STAT1_cache_full),
        RULE_TEST(STAT1_number_counts_both_sides),
        RULE_TEST(STAT1_started_is_not_good),
        RULE_TEST(STAT1_renegotiations),
        RULE_TEST(STAT1_renegotiations_resumed),
        RULE_TEST(STAT1_tls13_stateless),
        RULE_TEST(STAT1_tls13_stateful),
        RULE_TEST(STAT1_tls13_client),
        RULE_TEST(STAT1_tls13_resumed_by_get_cb),
        RULE_TEST(STAT1_of_one_context_only),
    };

    return RUN_PAGE("SSL_CTX_sess_number", tests);
}
