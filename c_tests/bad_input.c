/*
 * Bad input: NULL where something is needed, ids of impossible lengths, bits and sizes that mean nothing.
 *
 * Where stock crashes, Reprise returns the failure value of the manual page, in both semantics. Each such call runs
 * in a child process, which tells whether it came back.
 */
#include "harness.h"

#include <string.h>

enum { SECONDS = 20 };

static SSL_CTX *ctx;
static SSL *ssl;
static SSL_SESSION *session;
static unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH + 1];

/* Each child needs these; the parent makes them once for all calls. */
static int begin(void **state)
{
    if (references_setup(state) != 0)
        return -1;
    ctx = server_ctx(TLS1_2_VERSION);
    ssl = SSL_new(ctx);
    session = made_session(TLS1_2_VERSION, 7);
    return ssl == NULL;
}

static int end(void **state)
{
    SSL_free(ssl);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
    return references_teardown(state);
}

#define BAD_TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

/* `call` runs in a child, because stock crashes in many of them. */
static void bad(const char *rule, const char *what, int (*call)(void *), int expected)
{
    char returns[32] = "returns ";

    strcat(returns, number(expected));
    observe(rule, what, in_child(call, NULL, SECONDS), returns);
}

#define CALL(name, ...) static int name(void *unused) { (void)unused; return __VA_ARGS__; }

CALL(add_to_none, SSL_CTX_add_session(NULL, session))
CALL(add_none, SSL_CTX_add_session(ctx, NULL))
CALL(add_none_to_none, SSL_CTX_add_session(NULL, NULL))
CALL(remove_from_none, SSL_CTX_remove_session(NULL, session))
CALL(remove_none, SSL_CTX_remove_session(ctx, NULL))
CALL(remove_none_from_none, SSL_CTX_remove_session(NULL, NULL))

static void BAD1_add_and_remove(void **state)
{
    (void)state;
    bad("ADD1", "SSL_CTX_add_session(NULL, session)", add_to_none, 0);
    bad("ADD1", "SSL_CTX_add_session(ctx, NULL)", add_none, 0);
    bad("ADD1", "SSL_CTX_add_session(NULL, NULL)", add_none_to_none, 0);
    bad("ADD5", "SSL_CTX_remove_session(NULL, session)", remove_from_none, 0);
    bad("ADD5", "SSL_CTX_remove_session(ctx, NULL)", remove_none, 0);
    bad("ADD5", "SSL_CTX_remove_session(NULL, NULL)", remove_none_from_none, 0);
}

CALL(flush_none, (SSL_CTX_flush_sessions(NULL, 1), 0))
CALL(flush_all_of_none, (SSL_CTX_flush_sessions(NULL, 0), 0))

static void BAD1_flush(void **state)
{
    (void)state;
    bad("FLUSH1", "SSL_CTX_flush_sessions(NULL, 1)", flush_none, 0);
    bad("FLUSH1", "SSL_CTX_flush_sessions(NULL, 0)", flush_all_of_none, 0);
}

static int on_new(SSL *s, SSL_SESSION *made)
{
    (void)s, (void)made;
    return 0;
}

static void on_remove(SSL_CTX *c, SSL_SESSION *removed)
{
    (void)c, (void)removed;
}

static SSL_SESSION *on_get(SSL *s, const unsigned char *data, int length, int *copy)
{
    (void)s, (void)data, (void)length, (void)copy;
    return NULL;
}

CALL(get_new_cb, SSL_CTX_sess_get_new_cb(NULL) != NULL)
CALL(get_remove_cb, SSL_CTX_sess_get_remove_cb(NULL) != NULL)
CALL(get_get_cb, SSL_CTX_sess_get_get_cb(NULL) != NULL)
CALL(set_new_cb, (SSL_CTX_sess_set_new_cb(NULL, on_new), 0))
CALL(set_remove_cb, (SSL_CTX_sess_set_remove_cb(NULL, on_remove), 0))
CALL(set_get_cb, (SSL_CTX_sess_set_get_cb(NULL, on_get), 0))

static void BAD1_callbacks(void **state)
{
    (void)state;
    bad("CB1", "SSL_CTX_sess_get_new_cb(NULL) != NULL", get_new_cb, 0);
    bad("CB1", "SSL_CTX_sess_get_remove_cb(NULL) != NULL", get_remove_cb, 0);
    bad("CB1", "SSL_CTX_sess_get_get_cb(NULL) != NULL", get_get_cb, 0);
    bad("CB1", "SSL_CTX_sess_set_new_cb(NULL, cb)", set_new_cb, 0);
    bad("CB1", "SSL_CTX_sess_set_remove_cb(NULL, cb)", set_remove_cb, 0);
    bad("CB1", "SSL_CTX_sess_set_get_cb(NULL, cb)", set_get_cb, 0);
}

CALL(get_of_none, SSL_get_session(NULL) != NULL)
CALL(get1_of_none, SSL_get1_session(NULL) != NULL)

static void BAD1_session_of_no_connection(void **state)
{
    (void)state;
    bad("GET1", "SSL_get_session(NULL) != NULL", get_of_none, 0);
    bad("GET2", "SSL_get1_session(NULL) != NULL", get1_of_none, 0);
}

CALL(matching_of_none, SSL_has_matching_session_id(NULL, id, 32))
CALL(matching_no_id, SSL_has_matching_session_id(ssl, NULL, 32))
CALL(matching_no_id_of_none, SSL_has_matching_session_id(NULL, NULL, 0))
CALL(matching_long_id, SSL_has_matching_session_id(ssl, id, 33))
CALL(matching_endless_id, SSL_has_matching_session_id(ssl, id, (unsigned int)-1))
CALL(matching_empty_id, SSL_has_matching_session_id(ssl, id, 0))
CALL(matching_short_id, SSL_has_matching_session_id(ssl, id, 1))

static void BAD1_matching_session_id(void **state)
{
    (void)state;
    bad("ID1", "SSL_has_matching_session_id(NULL, id, 32)", matching_of_none, 0);
    bad("ID1", "SSL_has_matching_session_id(ssl, NULL, 32)", matching_no_id, 0);
    bad("ID1", "SSL_has_matching_session_id(NULL, NULL, 0)", matching_no_id_of_none, 0);
    bad("ID1", "SSL_has_matching_session_id(ssl, id, 33)", matching_long_id, 0);
    bad("ID1", "SSL_has_matching_session_id(ssl, id, UINT_MAX)", matching_endless_id, 0);
    bad("ID1", "SSL_has_matching_session_id(ssl, id, 0), nothing cached", matching_empty_id, 0);
    bad("ID1", "SSL_has_matching_session_id(ssl, id, 1), nothing cached", matching_short_id, 0);
}

CALL(time_of_none, (int)SSL_SESSION_get_time(NULL))
CALL(set_time_of_none, (int)SSL_SESSION_set_time(NULL, 5))
CALL(timeout_of_none, (int)SSL_SESSION_get_timeout(NULL))
CALL(set_timeout_of_none, (int)SSL_SESSION_set_timeout(NULL, 5))

static void BAD1_times(void **state)
{
    (void)state;
    bad("FLUSH2", "SSL_SESSION_get_time(NULL)", time_of_none, 0);
    bad("FLUSH2", "SSL_SESSION_set_time(NULL, 5)", set_time_of_none, 0);
    bad("FLUSH2", "SSL_SESSION_get_timeout(NULL)", timeout_of_none, 0);
    bad("FLUSH2", "SSL_SESSION_set_timeout(NULL, 5)", set_timeout_of_none, 0);
}

/* Refused since 3.0, taken by 1.1.1; Reprise leaves that to libssl. */
static void BAD1_negative_timeout(void **state)
{
    (void)state;
    if (OpenSSL_version_num() < 0x30000000L)
        skip();
    SSL_SESSION_set_timeout(session, 77);
    observe_int("FLUSH2", "SSL_SESSION_set_timeout(session, -1)", SSL_SESSION_set_timeout(session, -1), 0);
    assert_int_equal(SSL_SESSION_get_timeout(session), 77);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    assert_int_equal(SSL_SESSION_set_timeout(session, -1), 0);
    assert_int_equal(SSL_SESSION_get_timeout(session), 77);
    assert_true(in_cache(ctx, TLS1_2_VERSION, session));
}

static int generate(SSL *s, unsigned char *out, unsigned int *length)
{
    (void)s;
    memset(out, 0, *length);
    return 1;
}

CALL(move_none, SSL_set_SSL_CTX(NULL, ctx) != NULL)
CALL(move_none_to_none, SSL_set_SSL_CTX(NULL, NULL) != NULL)
CALL(table_of_none, SSL_CTX_sessions(NULL) != NULL)
CALL(generate_for_none, SSL_CTX_set_generate_session_id(NULL, generate))
CALL(generate_for_no_connection, SSL_set_generate_session_id(NULL, generate))

static void BAD1_others(void **state)
{
    (void)state;
    bad("BAD1", "SSL_set_SSL_CTX(NULL, ctx) != NULL", move_none, 0);
    bad("BAD1", "SSL_set_SSL_CTX(NULL, NULL) != NULL", move_none_to_none, 0);
    bad("BAD1", "SSL_CTX_sessions(NULL) != NULL", table_of_none, 0);
    bad("BAD1", "SSL_CTX_set_generate_session_id(NULL, cb)", generate_for_none, 0);
    bad("BAD1", "SSL_set_generate_session_id(NULL, cb)", generate_for_no_connection, 0);
}

/* No context to move to: back to the one the connection was made with. */
static void BAD1_moving_to_no_context_moves_back(void **state)
{
    SSL_CTX *other = server_ctx(TLS1_2_VERSION);

    (void)state;
    assert_ptr_equal(SSL_set_SSL_CTX(ssl, other), other);
    observe_bool("BAD1", "SSL_set_SSL_CTX(ssl, NULL) returns to the context of SSL_new",
                 SSL_set_SSL_CTX(ssl, NULL) == ctx, 1);
    assert_ptr_equal(SSL_get_SSL_CTX(ssl), ctx);
    SSL_CTX_free(other);
}

CALL(mode_of_none, (int)SSL_CTX_set_session_cache_mode(NULL, SSL_SESS_CACHE_BOTH))
CALL(size_of_none, (int)SSL_CTX_sess_set_cache_size(NULL, 5))
CALL(number_of_none, (int)SSL_CTX_sess_number(NULL))

static void BAD1_controls_of_no_context(void **state)
{
    (void)state;
    bad("MODE1", "SSL_CTX_set_session_cache_mode(NULL, mode)", mode_of_none, 0);
    bad("SIZE1", "SSL_CTX_sess_set_cache_size(NULL, 5)", size_of_none, 0);
    bad("STAT1", "SSL_CTX_sess_number(NULL)", number_of_none, 0);
}

static void MODE1_unknown_bits_are_kept(void **state)
{
    const long mode = SSL_SESS_CACHE_SERVER | 0x10000 | 0x4;
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *negotiated;

    (void)state;
    assert_int_equal(SSL_CTX_set_session_cache_mode(ctx, mode), SSL_SESS_CACHE_SERVER);
    observe_int("MODE1", "a mode with unknown bits reads back", SSL_CTX_get_session_cache_mode(ctx), mode);
    assert_int_equal(SSL_CTX_set_session_cache_mode(ctx, mode), mode);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    negotiated = tls_session(client, ctx);
    assert_true(tls_resumes(client, ctx, negotiated));
    assert_number(ctx, 1);
    SSL_SESSION_free(negotiated);
    SSL_CTX_free(client);
}

static void SIZE1_negative_size_changes_nothing(void **state)
{
    (void)state;
    if (OpenSSL_version_num() < 0x30000000L && subject() != DOCUMENTED)
        skip();
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, -1), 0);
    assert_int_equal(SSL_CTX_sess_set_cache_size(ctx, -2147483647L), 0);
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), SSL_SESSION_CACHE_MAX_SIZE_DEFAULT);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    assert_number(ctx, 1);
}

/* Nobody could look it up: the documented answer is to refuse it. */
static void ADD1_a_session_without_an_id(void **state)
{
    SSL_SESSION *empty = made_session(TLS1_2_VERSION, 1);

    (void)state;
    assert_int_equal(SSL_SESSION_set1_id(empty, id, 0), 1);
    observe_int("ADD1", "adding a session with an empty id returns", SSL_CTX_add_session(ctx, empty), 0);
    observe_number("ADD1", "sessions in the cache after one with an empty id was added", ctx, 0);
    observe_int("ADD5", "removing a session with an empty id returns", SSL_CTX_remove_session(ctx, empty), 0);
    SSL_CTX_flush_sessions(ctx, 0);
    assert_number(ctx, 0);
    SSL_SESSION_free(empty);
}

/* An SSL knows its protocol version, and with it what may match, after the handshake only. */
static pair connected(SSL_CTX **client)
{
    *client = client_ctx(TLS1_2_VERSION);
    return tls_connect(*client, ctx, NULL);
}

static void ID1_every_length_up_to_32(void **state)
{
    SSL_SESSION *tiny = made_session(TLS1_2_VERSION, 1);
    SSL_CTX *client;
    pair p = connected(&client);
    unsigned int length;

    (void)state;
    memset(id, 9, sizeof id);
    observe_int("ID1", "SSL_SESSION_set1_id with 33 bytes", SSL_SESSION_set1_id(tiny, id, 33), 0);
    SSL_SESSION_get_id(tiny, &length);
    assert_int_equal(length, 32);
    for (length = 1; length <= 32; length++) {
        assert_int_equal(SSL_SESSION_set1_id(tiny, id, length), 1);
        assert_int_equal(SSL_has_matching_session_id(p.server, id, length), 0);
        assert_int_equal(SSL_CTX_add_session(ctx, tiny), 1);
        assert_int_equal(SSL_has_matching_session_id(p.server, id, length), 1);
        assert_int_equal(SSL_CTX_remove_session(ctx, tiny), 1);
    }
    assert_int_equal(SSL_CTX_set_session_id_context(ctx, id, 33), 0);
    SSL_SESSION_free(tiny);
    tls_close(&p);
    SSL_CTX_free(client);
}

/* The same bytes, fewer of them, are another id. */
static void ID1_a_prefix_is_another_id(void **state)
{
    SSL_CTX *client;
    pair p = connected(&client);
    unsigned int length;
    const unsigned char *whole = SSL_SESSION_get_id(session, &length);

    (void)state;
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    assert_int_equal(SSL_has_matching_session_id(p.server, whole, length), 1);
    observe_int("ID1", "a prefix of a cached id matches",
                SSL_has_matching_session_id(p.server, whole, length - 1), 0);
    assert_int_equal(SSL_has_matching_session_id(p.server, whole, 0), 0);
    assert_int_equal(SSL_has_matching_session_id(p.server, whole, 33), 0);
    tls_close(&p);
    SSL_CTX_free(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BAD_TEST(BAD1_add_and_remove),
        BAD_TEST(BAD1_flush),
        BAD_TEST(BAD1_callbacks),
        BAD_TEST(BAD1_session_of_no_connection),
        BAD_TEST(BAD1_matching_session_id),
        BAD_TEST(BAD1_times),
        BAD_TEST(BAD1_negative_timeout),
        BAD_TEST(BAD1_others),
        BAD_TEST(BAD1_moving_to_no_context_moves_back),
        BAD_TEST(BAD1_controls_of_no_context),
        BAD_TEST(MODE1_unknown_bits_are_kept),
        BAD_TEST(SIZE1_negative_size_changes_nothing),
        BAD_TEST(ADD1_a_session_without_an_id),
        BAD_TEST(ID1_every_length_up_to_32),
        BAD_TEST(ID1_a_prefix_is_another_id),
    };

    return RUN_PAGE("bad input", tests);
}
