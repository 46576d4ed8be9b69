/*
 * SSL_CTX_add_session(3): what adding to and removing from the internal cache by hand return, which object stays,
 * whose reference is whose, and which sessions are marked not resumable.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct kind {
    const char *name;
    int version;
} kinds[] = { { "TLS 1.2", TLS1_2_VERSION }, { "TLS 1.3", TLS1_3_VERSION }, { "DTLS 1.2", DTLS1_2_VERSION } };

#define EACH_KIND(k) (const struct kind *k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)

/* "TLS 1.2: what" */
static const char *in(const struct kind *k, const char *what)
{
    static char text[160];

    snprintf(text, sizeof(text), "%s: %s", k->name, what);
    return text;
}

/* What remove_cb saw, and new_cb kept, since the server was made. */
static int removals;
static SSL_CTX *removed_from;
static SSL_SESSION *removed, *kept;

static void remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    removals++;
    removed_from = ctx;
    removed = session;
}

static int keep(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(kept);
    kept = session;
    return 1;
}

/* Finds sessions by their id, with TLS 1.3 too. */
static SSL_CTX *stateful_server(int version)
{
    SSL_CTX *server = server_ctx(version);

    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    assert_int_equal(SSL_CTX_set_num_tickets(server, 1), 1);
    SSL_CTX_sess_set_remove_cb(server, remove_cb);
    removals = 0;
    removed_from = NULL;
    removed = NULL;
    return server;
}

/* Another object with the same content. */
static SSL_SESSION *copy_of(SSL_SESSION *session)
{
    unsigned char der[4096], *out = der;
    const unsigned char *from = der;
    int length = i2d_SSL_SESSION(session, NULL);
    SSL_SESSION *copy;

    assert_in_range(length, 1, sizeof(der));
    i2d_SSL_SESSION(session, &out);
    copy = d2i_SSL_SESSION(NULL, &from, length);
    assert_non_null(copy);
    return copy;
}

/* ---- ADD1 ---- */

static void ADD1_one_reference(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        int before = sessions_alive();
        SSL_SESSION *session = made_session(k->version, 1);

        observe_int("ADD1", in(k, "returns"), SSL_CTX_add_session(server, session), 1);
        observe_bool("ADD1", in(k, "cached"), in_cache(server, k->version, session), 1);
        observe_number("ADD1", in(k, "sessions in the cache"), server, 1);
        SSL_SESSION_free(session);
        observe_int("ADD1", in(k, "alive after the application's free"), sessions_alive() - before, 1);
        observe_bool("ADD1", in(k, "cached after the application's free"), in_cache(server, k->version, session), 1);
        SSL_CTX_flush_sessions(server, 0);
        observe_int("ADD1", in(k, "alive after the flush"), sessions_alive() - before, 0);

        session = made_session(k->version, 2);
        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        SSL_CTX_free(server);
        observe_int("ADD1", in(k, "alive after SSL_CTX_free, the application's own"), sessions_alive() - before, 1);
        SSL_SESSION_free(session);
        observe_int("ADD1", in(k, "alive in the end"), sessions_alive() - before, 0);
    }
}

/* A session made by one server and carried to another, as an external cache does. */
static void ADD1_added_session_is_resumed(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *first = stateful_server(k->version);
        SSL_CTX *second = stateful_server(k->version);
        SSL_SESSION *offered, *carried;

        SSL_CTX_sess_set_new_cb(first, keep);
        offered = tls_session(client, first);
        assert_non_null(kept);
        carried = copy_of(kept);
        observe_bool("ADD1", in(k, "resumed before it was added"), tls_resumes(client, second, offered), 0);
        assert_int_equal(SSL_CTX_add_session(second, carried), 1);
        SSL_SESSION_free(carried);
        observe_bool("ADD1", in(k, "resumed after it was added"), tls_resumes(client, second, offered), 1);
        SSL_SESSION_free(offered);
        SSL_SESSION_free(kept);
        kept = NULL;
        SSL_CTX_free(client);
        SSL_CTX_free(first);
        SSL_CTX_free(second);
    }
}

/* ---- ADD2 ---- */

static void ADD2_another_object_with_the_same_id(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *old = made_session(k->version, 1), *fresh = made_session(k->version, 1);
        int before = sessions_alive(), told;

        assert_int_equal(SSL_CTX_add_session(server, old), 1);
        observe_int("ADD2", in(k, "returns"), SSL_CTX_add_session(server, fresh), 1);
        observe_number("ADD2", in(k, "sessions in the cache"), server, 1);
        told = removals == 1 && removed_from == server && removed == old;
        observe_bool("ADD2", in(k, "remove_cb is told of the old one"), told, 1);
        SSL_SESSION_free(old);
        observe_int("ADD2", in(k, "the old one is freed"), before - sessions_alive(), 1);
        SSL_CTX_flush_sessions(server, 0);
        observe_bool("ADD2", in(k, "the new one stayed"), removed == fresh, 1);
        SSL_SESSION_free(fresh);
        SSL_CTX_free(server);
    }
}

/* The id alone does not make a session: it belongs to a protocol version. */
static void ADD2_the_same_id_in_another_version(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_3_VERSION);
    SSL_SESSION *older = made_session(TLS1_2_VERSION, 1), *newer = made_session(TLS1_3_VERSION, 1);

    (void)state;
    assert_int_equal(SSL_CTX_add_session(server, older), 1);
    assert_int_equal(SSL_CTX_add_session(server, newer), 1);
    observe_number("ADD2", "same id, other version: sessions in the cache", server, 2);
    observe_int("ADD2", "same id, other version: calls of remove_cb", removals, 0);
    SSL_SESSION_free(older);
    SSL_SESSION_free(newer);
    SSL_CTX_free(server);
}

/* ---- ADD3 ---- */

static void ADD3_the_same_object_again(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *session = made_session(k->version, 1);
        int before = sessions_alive();

        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        observe_int("ADD3", in(k, "returns"), SSL_CTX_add_session(server, session), 0);
        assert_int_equal(SSL_CTX_add_session(server, session), 0);
        observe_number("ADD3", in(k, "sessions in the cache"), server, 1);
        observe_int("ADD3", in(k, "calls of remove_cb"), removals, 0);
        observe_bool("ADD3", in(k, "still resumable"), SSL_SESSION_is_resumable(session), 1);
        SSL_SESSION_free(session);
        observe_int("ADD3", in(k, "alive after the application's free"), sessions_alive() - before, 0);
        SSL_CTX_flush_sessions(server, 0);
        observe_int("ADD3", in(k, "alive after the flush"), sessions_alive() - before, -1);
        SSL_CTX_free(server);
    }
}

static void ADD3_its_time_stays(void **state)
{
    static const struct { const char *name; long mode; } modes[] = {
        { "without UPDATE_TIME", 0 },
#ifdef SSL_SESS_CACHE_UPDATE_TIME /* since 3.0 */
        { "with UPDATE_TIME", SSL_SESS_CACHE_UPDATE_TIME },
#endif
    };

    (void)state;
    for EACH_KIND(k) for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *session = made_session(k->version, 1);
        long earlier = (long)time(NULL) - 100;
        char what[80];

        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        SSL_SESSION_set_time(session, earlier);
        SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | modes[i].mode);
        assert_int_equal(SSL_CTX_add_session(server, session), 0);
        snprintf(what, sizeof(what), "%s: its time stays", modes[i].name);
        observe_bool("ADD3", in(k, what), (long)SSL_SESSION_get_time(session) == earlier, 1);
        SSL_SESSION_free(session);
        SSL_CTX_free(server);
    }
}

/* ---- ADD4 ---- */

static void ADD4_whatever_the_mode(void **state)
{
    static const struct { const char *name; long mode; int looked_up; } modes[] = {
        { "NO_INTERNAL_STORE", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, 1 },
        { "NO_INTERNAL", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL, 0 },
        { "OFF", SSL_SESS_CACHE_OFF, 1 },
        { "CLIENT", SSL_SESS_CACHE_CLIENT, 1 },
    };

    (void)state;
    for EACH_KIND(k) for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version);
        SSL_SESSION *offered;
        char what[80];

        SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
        SSL_CTX_sess_set_new_cb(server, keep);
        offered = tls_session(client, server);
        assert_non_null(kept);
        SSL_CTX_sess_set_new_cb(server, NULL);
        SSL_CTX_set_session_cache_mode(server, modes[i].mode);
        assert_number(server, 0);

        snprintf(what, sizeof(what), "%s: returns", modes[i].name);
        observe_int("ADD4", in(k, what), SSL_CTX_add_session(server, kept), 1);
        snprintf(what, sizeof(what), "%s: cached", modes[i].name);
        observe_bool("ADD4", in(k, what), in_cache(server, k->version, kept), 1);
        snprintf(what, sizeof(what), "%s: resumed", modes[i].name);
        observe_bool("ADD4", in(k, what), tls_resumes(client, server, offered),
                     modes[i].looked_up);
        SSL_SESSION_free(offered);
        SSL_SESSION_free(kept);
        kept = NULL;
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* ---- ADD5 ---- */

static void ADD5_removing(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *session = made_session(k->version, 1);
        int before = sessions_alive();

        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        observe_int("ADD5", in(k, "returns"), SSL_CTX_remove_session(server, session), 1);
        observe_bool("ADD5", in(k, "cached"), in_cache(server, k->version, session), 0);
        observe_number("ADD5", in(k, "sessions in the cache"), server, 0);
        observe_bool("ADD5", in(k, "still resumable"), SSL_SESSION_is_resumable(session), 0);
        observe_int("ADD5", in(k, "calls of remove_cb"), removals, 1);
        assert_true(removed_from == server && removed == session);
        observe_int("ADD5", in(k, "removed again: returns"), SSL_CTX_remove_session(server, session), 0);
        SSL_SESSION_free(session);
        observe_int("ADD5", in(k, "alive after the application's free"), sessions_alive() - before, -1);

        /* The cache's reference may be the last one. */
        session = made_session(k->version, 2);
        assert_int_equal(SSL_CTX_add_session(server, session), 1);
        SSL_SESSION_free(session);
        assert_int_equal(SSL_CTX_remove_session(server, session), 1);
        observe_int("ADD5", in(k, "alive when the cache had the last reference"), sessions_alive() - before, -1);
        SSL_CTX_free(server);
    }
}

/* A handshake's session, removed: neither side resumes it any more. */
static void ADD5_removed_session_is_not_resumed(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version);
        SSL_SESSION *offered;

        SSL_CTX_sess_set_new_cb(server, keep);
        offered = tls_session(client, server);
        SSL_CTX_sess_set_new_cb(server, NULL);
        assert_non_null(kept);
        observe_bool("ADD5", in(k, "resumed before it was removed"), tls_resumes(client, server, offered), 1);
        assert_int_equal(SSL_CTX_remove_session(server, kept), 1);
        observe_bool("ADD5", in(k, "resumed after it was removed"), tls_resumes(client, server, offered), 0);
        SSL_SESSION_free(offered);
        SSL_SESSION_free(kept);
        kept = NULL;
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

static void ADD5_not_there(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *stranger = made_session(k->version, 1), *cached = made_session(k->version, 2);

        assert_int_equal(SSL_CTX_add_session(server, cached), 1);
        observe_int("ADD5", in(k, "not there: returns"), SSL_CTX_remove_session(server, stranger), 0);
        observe_bool("ADD5", in(k, "not there: still resumable"), SSL_SESSION_is_resumable(stranger), 0);
        observe_int("ADD5", in(k, "not there: calls of remove_cb"), removals, 1);
        assert_true(removed_from == server && removed == stranger);
        observe_number("ADD5", in(k, "not there: sessions in the cache"), server, 1);
        observe_bool("ADD5", in(k, "not there: others still resumable"), SSL_SESSION_is_resumable(cached), 1);
        SSL_SESSION_free(stranger);
        SSL_SESSION_free(cached);
        SSL_CTX_free(server);
    }
}

static void ADD5_nothing_to_remove(void **state)
{
    SSL_CTX *server = stateful_server(TLS1_2_VERSION);
    SSL_SESSION *empty = made_session(TLS1_2_VERSION, 1);

    (void)state;
    observe_int("ADD5", "NULL: returns", SSL_CTX_remove_session(server, NULL), 0);
    assert_int_equal(SSL_SESSION_set1_id(empty, (const unsigned char *)"", 0), 1);
    observe_int("ADD5", "empty id: returns", SSL_CTX_remove_session(server, empty), 0);
    observe_int("ADD5", "NULL and empty id: calls of remove_cb", removals, 0);
    assert_int_equal(SSL_SESSION_set1_id(empty, (const unsigned char *)"id", 2), 1);
    observe_bool("ADD5", "empty id: still resumable", SSL_SESSION_is_resumable(empty), 1);
    SSL_SESSION_free(empty);
    SSL_CTX_free(server);
}

/* ---- ADD6 ---- */

static void ADD6_removing_with_another_object(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version);
        SSL_SESSION *cached = made_session(k->version, 1), *argument = made_session(k->version, 1);
        int before = sessions_alive();

        assert_int_equal(SSL_CTX_add_session(server, cached), 1);
        observe_int("ADD6", in(k, "returns"), SSL_CTX_remove_session(server, argument), 1);
        observe_bool("ADD6", in(k, "cached"), in_cache(server, k->version, cached), 0);
        observe_bool("ADD6", in(k, "the argument is marked"), !SSL_SESSION_is_resumable(argument), 1);
        observe_bool("ADD6", in(k, "the cached one is marked"), !SSL_SESSION_is_resumable(cached), 1);
        observe_int("ADD6", in(k, "calls of remove_cb"), removals, 1);
        observe_bool("ADD6", in(k, "remove_cb is given the argument"), removed == argument, 1);
        assert_ptr_equal(removed_from, server);
        SSL_SESSION_free(cached);
        observe_int("ADD6", in(k, "the cached one is freed"), before - sessions_alive(), 1);
        SSL_SESSION_free(argument);
        SSL_CTX_free(server);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(ADD1_one_reference),
        RULE_TEST(ADD1_added_session_is_resumed),
        OBJECT_TEST(ADD2_another_object_with_the_same_id),
        RULE_TEST(ADD2_the_same_id_in_another_version),
        OBJECT_TEST(ADD3_the_same_object_again),
        COUNTED_TEST(ADD3_its_time_stays),
        RULE_TEST(ADD4_whatever_the_mode),
        OBJECT_TEST(ADD5_removing),
        RULE_TEST(ADD5_removed_session_is_not_resumed),
        RULE_TEST(ADD5_not_there),
        RULE_TEST(ADD5_nothing_to_remove),
        OBJECT_TEST(ADD6_removing_with_another_object),
    };

    return RUN_PAGE("SSL_CTX_add_session", tests);
}
