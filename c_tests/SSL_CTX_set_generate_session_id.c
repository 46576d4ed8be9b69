/*
 * SSL_CTX_set_generate_session_id(3): the application makes the session ids, and SSL_has_matching_session_id tells
 * it which are taken in the internal cache.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct kind {
    const char *name;
    int version;
} kinds[] = { { "TLS 1.2", TLS1_2_VERSION }, { "DTLS 1.2", DTLS1_2_VERSION } };

#define EACH_KIND(k) (const struct kind *k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)

/* "TLS 1.2: what" */
static const char *in(const struct kind *k, const char *what)
{
    static char text[160];

    snprintf(text, sizeof(text), "%s: %s", k->name, what);
    return text;
}

static void make_ctxs(int version, SSL_CTX **client, SSL_CTX **server)
{
    *client = client_ctx(version);
    *server = server_ctx(version);
    SSL_CTX_set_options(*server, SSL_OP_NO_TICKET); /* a TLS 1.2 ticket has no id */
}

static void free_ctxs(SSL_CTX *client, SSL_CTX *server)
{
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* ---- generators ---- */

static struct { unsigned calls, conflicts, room; int zeroed; } made;

static int all_zero(const unsigned char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

/* 'c', a number, and zeros: never the same twice. */
static int of_ctx(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)ssl;
    made.calls++;
    made.room = *length;
    made.zeroed = all_zero(id, *length);
    id[0] = 'c';
    id[1] = (unsigned char)made.calls;
    return 1;
}

static int of_ssl(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)of_ctx(ssl, id, length);
    id[0] = 's';
    return 1;
}

static int shorter(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)of_ctx(ssl, id, length);
    *length = 8;
    return 1;
}

static int always_the_same(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)ssl;
    made.calls++;
    memset(id, 'r', *length);
    return 1;
}

/* As the manual page asks for: the next id when one is taken. */
static int careful(SSL *ssl, unsigned char *id, unsigned int *length)
{
    made.calls++;
    for (unsigned char next = 'a'; next <= 'z'; next++) {
        memset(id, next, *length);
        if (!SSL_has_matching_session_id(ssl, id, *length))
            return 1;
        made.conflicts++;
    }
    return 0;
}

static int failing(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)of_ctx(ssl, id, length);
    return 0;
}

static int too_short(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)of_ctx(ssl, id, length);
    *length = 0;
    return 1;
}

static int too_long(SSL *ssl, unsigned char *id, unsigned int *length)
{
    (void)of_ctx(ssl, id, length);
    *length += 1;
    return 1;
}

static int id_is(const SSL_SESSION *session, unsigned char first, unsigned char second, unsigned expected_length)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    return length == expected_length && id[0] == first && id[1] == second && all_zero(id + 2, length - 2);
}

/* ---- the tests ---- */

static void ID1_has_matching_session_id(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *session = made_session(k->version, 0x55), *other_version = made_session(TLS1_3_VERSION, 0x66);
        unsigned char id[64];
        pair p;

        make_ctxs(k->version, &client, &server);
        p = tls_connect(client, server, NULL);
        memset(id, 0x55, sizeof(id));
        observe_bool("ID1", in(k, "asked for an id before it is cached"),
                     SSL_has_matching_session_id(p.server, id, 32), 0);
        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        assert_int_equal(SSL_CTX_add_session(server, other_version), 1);
        observe_int("ID1", in(k, "asked for an id that is cached"),
                    SSL_has_matching_session_id(p.server, id, 32), 1);
        observe_int("ID1", in(k, "asked for its first 31 bytes"), SSL_has_matching_session_id(p.server, id, 31), 0);
        observe_int("ID1", in(k, "asked for length 0"), SSL_has_matching_session_id(p.server, id, 0), 0);
        observe_int("ID1", in(k, "asked for length 33"), SSL_has_matching_session_id(p.server, id, 33), 0);
        observe_int("ID1", in(k, "asked for length 4 000 000 000"),
                    SSL_has_matching_session_id(p.server, id, 4000000000u), 0);
        id[31] ^= 1;
        observe_int("ID1", in(k, "asked for an id that differs in the last bit"),
                    SSL_has_matching_session_id(p.server, id, 32), 0);
        memset(id, 0x66, sizeof(id));
        observe_int("ID1", in(k, "asked for an id cached for another protocol version"),
                    SSL_has_matching_session_id(p.server, id, 32), 0);
        memset(id, 0x55, sizeof(id));
        assert_int_equal(SSL_CTX_remove_session(server, session), 1);
        observe_int("ID1", in(k, "asked for an id that was removed"),
                    SSL_has_matching_session_id(p.server, id, 32), 0);
        SSL_SESSION_free(session);
        SSL_SESSION_free(other_version);
        tls_close(&p);
        free_ctxs(client, server);
    }
}

static SSL_SESSION *nothing_external(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    made.calls++;
    return NULL;
}

static void ID1_asks_the_internal_cache_whatever_the_mode(void **state)
{
    SSL_CTX *client, *server;
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 0x55), *expired = made_session(TLS1_2_VERSION, 0x44);
    unsigned char id[32];
    pair p;

    (void)state;
    make_ctxs(TLS1_2_VERSION, &client, &server);
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL
                                           | SSL_SESS_CACHE_NO_AUTO_CLEAR);
    SSL_CTX_sess_set_get_cb(server, nothing_external);
    p = tls_connect(client, server, NULL);
    assert_int_equal(SSL_CTX_add_session(server, session), 1);
    assert_true(SSL_SESSION_set_time(expired, (long)time(NULL) - 1000) != 0);
    assert_int_equal(SSL_CTX_add_session(server, expired), 1);
    made.calls = 0;
    memset(id, 0x55, sizeof(id));
    observe_int("ID1", "asked under NO_INTERNAL for what was added by hand",
                SSL_has_matching_session_id(p.server, id, 32), 1);
    memset(id, 0x44, sizeof(id));
    observe_int("ID1", "asked for an expired id that is not yet cleared",
                SSL_has_matching_session_id(p.server, id, 32), 1);
    memset(id, 0x33, sizeof(id));
    observe_int("ID1", "asked for an unknown id, with a get_cb", SSL_has_matching_session_id(p.server, id, 32), 0);
    observe_int("ID1", "get_cb calls by it", made.calls, 0);
    observe_int("ID1", "misses counted by it", SSL_CTX_sess_misses(server), 0);
    SSL_SESSION_free(session);
    SSL_SESSION_free(expired);
    tls_close(&p);
    free_ctxs(client, server);
}

static void ID1_generators_make_the_ids(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *session;
        pair p;

        memset(&made, 0, sizeof(made));
        make_ctxs(k->version, &client, &server);
        observe_int("ID1", in(k, "SSL_CTX_set_generate_session_id returns"),
                    SSL_CTX_set_generate_session_id(server, of_ctx), 1);
        p = tls_connect(client, server, NULL);
        observe_bool("ID1", in(k, "the context's generator: its id on both sides"),
                     id_is(SSL_get_session(p.server), 'c', 1, 32) && id_is(SSL_get_session(p.client), 'c', 1, 32), 1);
        observe_int("ID1", in(k, "calls of the context's generator"), made.calls, 1);
        observe_bool("ID1", in(k, "the generator is given 32 zero bytes"), made.room == 32 && made.zeroed, 1);
        session = SSL_get1_session(p.client);
        tls_close(&p);
        observe_bool("ID1", in(k, "a generated id resumes"), tls_resumes(client, server, session), 1);
        observe_int("ID1", in(k, "calls of the generator by a resumption"), made.calls - 1, 0);
        SSL_SESSION_free(session);

        p = tls_prepare(client, server);
        observe_int("ID1", in(k, "SSL_set_generate_session_id returns"),
                    SSL_set_generate_session_id(p.server, of_ssl), 1);
        assert_true(tls_drive(&p));
        observe_bool("ID1", in(k, "the SSL's generator wins over the context's"),
                     id_is(SSL_get_session(p.server), 's', 2, 32) && made.calls == 2, 1);
        observe_bool("ID1", in(k, "its session is cached under that id"),
                     in_cache(server, k->version, SSL_get_session(p.server)), 1);
        tls_close(&p);

        assert_int_equal(SSL_CTX_set_generate_session_id(server, shorter), 1);
        p = tls_connect(client, server, NULL);
        session = SSL_get1_session(p.client);
        observe_bool("ID1", in(k, "a generator may shorten the id"), id_is(session, 'c', 3, 8), 1);
        tls_close(&p);
        observe_bool("ID1", in(k, "a short id resumes"), tls_resumes(client, server, session), 1);
        SSL_SESSION_free(session);

        assert_int_equal(SSL_CTX_set_generate_session_id(server, NULL), 1);
        session = tls_session(client, server);
        observe_bool("ID1", in(k, "NULL brings the default generator back"),
                     made.calls == 3 && !id_is(session, 'c', 3, 32), 1);
        SSL_SESSION_free(session);
        free_ctxs(client, server);
    }
}

static void ID1_a_repeated_id_fails_and_displaces_nothing(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *ours, *theirs;
        pair p;

        memset(&made, 0, sizeof(made));
        make_ctxs(k->version, &client, &server);
        SSL_CTX_set_generate_session_id(server, always_the_same);
        p = tls_connect(client, server, NULL);
        ours = SSL_get1_session(p.server);
        theirs = SSL_get1_session(p.client);
        tls_close(&p);
        observe_bool("ID1", in(k, "a repeated id: the handshake succeeds"), tls_try(client, server, NULL, &p), 0);
        observe_int("ID1", in(k, "a repeated id: the generator was asked"), made.calls, 2);
        observe_bool("ID1", in(k, "a repeated id: the first session stays, good and alone"),
                     in_cache(server, k->version, ours) && SSL_SESSION_is_resumable(ours)
                     && numbers(server, 1), 1);
        observe_bool("ID1", in(k, "a repeated id: the first session resumes"),
                     tls_resumes(client, server, theirs), 1);
        assert_int_equal(SSL_CTX_remove_session(server, ours), 1);
        observe_bool("ID1", in(k, "the id is free again once its session left"),
                     tls_try(client, server, NULL, &p), 1);
        tls_close(&p);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ctxs(client, server);
    }
}

static void ID1_a_generator_may_ask(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *sessions[3];

        memset(&made, 0, sizeof(made));
        make_ctxs(k->version, &client, &server);
        SSL_CTX_set_generate_session_id(server, careful);
        for (int i = 0; i < 3; i++) {
            sessions[i] = tls_session(client, server);
            assert_int_equal(SSL_SESSION_get_id(sessions[i], NULL)[0], 'a' + i);
        }
        observe_int("ID1", in(k, "conflicts that a careful generator saw in 3 handshakes"), made.conflicts, 3);
        for (int i = 0; i < 3; i++) {
            assert_true(tls_resumes(client, server, sessions[i]));
            SSL_SESSION_free(sessions[i]);
        }
        free_ctxs(client, server);
    }
}

static void ID1_bad_generators_fail_the_handshake(void **state)
{
    static const struct { const char *what; GEN_SESSION_CB generator; } cases[] = {
        { "a generator that returns 0: the handshake succeeds", failing },
        { "a generator that sets length 0: the handshake succeeds", too_short },
        { "a generator that raises the length: the handshake succeeds", too_long },
    };

    (void)state;
    for EACH_KIND(k)
        for (int i = 0; i < 3; i++) {
            SSL_CTX *client, *server;
            SSL_SESSION *before;
            pair p;

            make_ctxs(k->version, &client, &server);
            before = tls_session(client, server);
            SSL_CTX_set_generate_session_id(server, cases[i].generator);
            observe_bool("ID1", in(k, cases[i].what), tls_try(client, server, NULL, &p), 0);
            assert_true(tls_resumes(client, server, before));
            SSL_SESSION_free(before);
            free_ctxs(client, server);
        }
}

/* In TLS 1.3 each ticket has an id, which travels inside it. */
static void ID1_tls13_tickets(void **state)
{
    SSL_CTX *client, *server;
    SSL_SESSION *ours;
    pair p;

    (void)state;
    memset(&made, 0, sizeof(made));
    make_ctxs(TLS1_3_VERSION, &client, &server);
    SSL_CTX_set_generate_session_id(server, of_ctx);
    p = tls_connect(client, server, NULL);
    ours = SSL_get_session(p.server);
    observe_int("ID1", "TLS 1.3 stateful: calls of the generator in one connection", made.calls, 2);
    observe_bool("ID1", "TLS 1.3 stateful: the last ticket has the last id", id_is(ours, 'c', 2, 32), 1);
    observe_int("ID1", "TLS 1.3 stateful: asked for the last ticket's id",
                SSL_has_matching_session_id(p.server, SSL_SESSION_get_id(ours, NULL), 32), 1);
    tls_close(&p);

    SSL_CTX_set_num_tickets(server, 1);
    SSL_CTX_set_generate_session_id(server, always_the_same);
    p = tls_connect(client, server, NULL);
    ours = SSL_get1_session(p.server);
    tls_close(&p);
    observe_bool("ID1", "TLS 1.3 stateful, a repeated id: the connection succeeds",
                 tls_try(client, server, NULL, &p), 0);
    /* The ticket bears the id when the connection dies of it, and what dies takes its id out of the cache (GET5). */
    observe_bool("ID1", "TLS 1.3 stateful, a repeated id: the first session stays",
                 in_cache(server, TLS1_3_VERSION, ours), 0);
    SSL_SESSION_free(ours);
    free_ctxs(client, server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(ID1_has_matching_session_id),
        RULE_TEST(ID1_asks_the_internal_cache_whatever_the_mode),
        RULE_TEST(ID1_generators_make_the_ids),
        RULE_TEST(ID1_a_repeated_id_fails_and_displaces_nothing),
        RULE_TEST(ID1_a_generator_may_ask),
        RULE_TEST(ID1_bad_generators_fail_the_handshake),
        RULE_TEST(ID1_tls13_tickets),
    };

    return RUN_PAGE("SSL_CTX_set_generate_session_id", tests);
}
