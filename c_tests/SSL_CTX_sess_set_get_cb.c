/*
 * SSL_CTX_sess_set_get_cb(3): the three callbacks, when each is called and with what, who owns the session it is
 * given or returns, and what becomes of a session that get_cb should not have returned.
 *
 * Servers here use SSL_OP_NO_TICKET and send one ticket: with TLS 1.3 as with older versions, a session is then
 * found by its id and by nothing else.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>

static const struct kind {
    const char *name;
    int version;
} kinds[] = { { "TLS 1.2", TLS1_2_VERSION }, { "TLS 1.3", TLS1_3_VERSION } };

#define EACH_KIND(k) (const struct kind *k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)

/* "TLS 1.2, where: what" */
static const char *in(const struct kind *k, const char *where, const char *what)
{
    static char text[160];

    snprintf(text, sizeof(text), "%s, %s: %s", k->name, where, what);
    return text;
}

/* ---- the callbacks, and what they saw ---- */

enum copy { LEFT, ONE, ZERO };

static struct {
    int new_calls, new_result;    /* with the result 1, the sessions are kept here */
    SSL_SESSION *kept[4];
    int get_calls, copy_before, id_length;
    unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH];
    SSL_SESSION *answer;          /* what get_cb returns, once if it gives its reference away */
    enum copy copy;
    int remove_calls, resumable_at_removal;
    SSL_CTX *removed_from;
    SSL_SESSION *removed;         /* only to be compared: it may be gone */
} seen;

static int new_cb(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    if (seen.new_result == 1) {
        assert_true(seen.new_calls < 4);
        seen.kept[seen.new_calls] = session;
    }
    seen.new_calls++;
    return seen.new_result;
}

static SSL_SESSION *get_cb(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    SSL_SESSION *answer = seen.answer;

    (void)ssl;
    seen.get_calls++;
    seen.copy_before = *copy;
    seen.id_length = length;
    if (length >= 0 && (size_t)length <= sizeof(seen.id))
        memcpy(seen.id, id, (size_t)length);
    if (seen.copy == ONE)
        *copy = 1;
    if (seen.copy == ZERO) {
        *copy = 0;
        seen.answer = NULL;
    }
    return answer;
}

static void remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    seen.remove_calls++;
    seen.removed_from = ctx;
    seen.removed = session;
    seen.resumable_at_removal = SSL_SESSION_is_resumable(session);
}

static void free_kept(void)
{
    for (int i = 0; i < 4; i++) {
        SSL_SESSION_free(seen.kept[i]);
        seen.kept[i] = NULL;
    }
}

/* ---- scenes ---- */

static SSL_CTX *stateful_server(int version, long mode)
{
    SSL_CTX *server = server_ctx(version);

    memset(&seen, 0, sizeof(seen));
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    assert_int_equal(SSL_CTX_set_num_tickets(server, 1), 1);
    SSL_CTX_set_session_cache_mode(server, mode);
    return server;
}

/* A server, and a session it has made; the server's object of it is kept outside, as an external cache would. */
typedef struct {
    SSL_CTX *client, *server;
    SSL_SESSION *offered;         /* the client's */
    SSL_SESSION *external;        /* the server's */
} scene;

static SSL_SESSION *external_session(scene *s, SSL_SESSION **offered)
{
    memset(&seen, 0, sizeof(seen));
    seen.new_result = 1;
    SSL_CTX_sess_set_new_cb(s->server, new_cb);
    *offered = tls_session(s->client, s->server);
    SSL_CTX_sess_set_new_cb(s->server, NULL);
    assert_int_equal(seen.new_calls, 1);
    return seen.kept[0];
}

static scene begin(int version, long mode)
{
    scene s = { client_ctx(version), stateful_server(version, mode), NULL, NULL };

    s.external = external_session(&s, &s.offered);
    memset(&seen, 0, sizeof(seen));
    return s;
}

static void end(scene *s)
{
    SSL_SESSION_free(s->offered);
    SSL_SESSION_free(s->external);
    SSL_CTX_free(s->client);
    SSL_CTX_free(s->server);
    memset(s, 0, sizeof(*s));
}

/* Lets get_cb answer with the scene's external session; with ZERO the scene does not own it any more. */
static void answer_with_external(scene *s, enum copy copy)
{
    seen.answer = s->external;
    seen.copy = copy;
    if (copy == ZERO)
        s->external = NULL;
    SSL_CTX_sess_set_get_cb(s->server, get_cb);
}

/* Another object with the same content: what an external cache has after i2d and d2i. */
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

/* ---- CB1 ---- */

static void CB1_getters_return_what_was_set(void **state)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());

    (void)state;
    observe_bool("CB1", "new_cb is NULL at first", SSL_CTX_sess_get_new_cb(ctx) == NULL, 1);
    observe_bool("CB1", "remove_cb is NULL at first", SSL_CTX_sess_get_remove_cb(ctx) == NULL, 1);
    observe_bool("CB1", "get_cb is NULL at first", SSL_CTX_sess_get_get_cb(ctx) == NULL, 1);
    SSL_CTX_sess_set_new_cb(ctx, new_cb);
    SSL_CTX_sess_set_remove_cb(ctx, remove_cb);
    SSL_CTX_sess_set_get_cb(ctx, get_cb);
    observe_bool("CB1", "new_cb is what was set", SSL_CTX_sess_get_new_cb(ctx) == new_cb, 1);
    observe_bool("CB1", "remove_cb is what was set", SSL_CTX_sess_get_remove_cb(ctx) == remove_cb, 1);
    observe_bool("CB1", "get_cb is what was set", SSL_CTX_sess_get_get_cb(ctx) == get_cb, 1);
    SSL_CTX_sess_set_new_cb(ctx, NULL);
    SSL_CTX_sess_set_remove_cb(ctx, NULL);
    SSL_CTX_sess_set_get_cb(ctx, NULL);
    observe_bool("CB1", "new_cb is NULL after NULL was set", SSL_CTX_sess_get_new_cb(ctx) == NULL, 1);
    observe_bool("CB1", "remove_cb is NULL after NULL was set", SSL_CTX_sess_get_remove_cb(ctx) == NULL, 1);
    observe_bool("CB1", "get_cb is NULL after NULL was set", SSL_CTX_sess_get_get_cb(ctx) == NULL, 1);
    SSL_CTX_free(ctx);
}

/* ---- CB2 ---- */

static int new_calls_in(const struct kind *k, int on_server, long mode)
{
    SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, mode);
    pair p;

    SSL_CTX_set_session_cache_mode(client, mode);
    SSL_CTX_sess_set_new_cb(on_server ? server : client, new_cb);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    return seen.new_calls;
}

static void CB2_new_cb_where_the_mode_has_the_side(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        /* In TLS 1.2 a server that caches nothing sends no id: with one mode for both, each bit is seen alone. */
        observe_int("CB2", in(k, "server", "calls in mode SERVER"), new_calls_in(k, 1, SSL_SESS_CACHE_SERVER), 1);
        observe_int("CB2", in(k, "server", "calls in mode BOTH"), new_calls_in(k, 1, SSL_SESS_CACHE_BOTH), 1);
        observe_int("CB2", in(k, "server", "calls in mode CLIENT"), new_calls_in(k, 1, SSL_SESS_CACHE_CLIENT), 0);
        observe_int("CB2", in(k, "server", "calls in mode OFF"), new_calls_in(k, 1, SSL_SESS_CACHE_OFF), 0);
        observe_int("CB2", in(k, "client", "calls in mode BOTH"), new_calls_in(k, 0, SSL_SESS_CACHE_BOTH), 1);
        observe_int("CB2", in(k, "client", "calls in mode SERVER"), new_calls_in(k, 0, SSL_SESS_CACHE_SERVER), 0);
        observe_int("CB2", in(k, "client", "calls in mode OFF"), new_calls_in(k, 0, SSL_SESS_CACHE_OFF), 0);
    }
}

static void CB2_new_cb_in_mode_CLIENT_alone(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        pair p;

        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(client, new_cb);
        p = tls_connect(client, server, NULL);
        observe_int("CB2", in(k, "client", "calls in mode CLIENT"), seen.new_calls, 1);
        tls_close(&p);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* A resumed TLS 1.2 connection negotiates no session; a TLS 1.3 one gets a new ticket, which is a new session. */
static void CB2_new_cb_when_resumed(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER);
        int tickets = k->version == TLS1_3_VERSION;

        SSL_CTX_sess_set_new_cb(s.server, new_cb);
        assert_true(tls_resumes(s.client, s.server, s.offered));
        observe_int("CB2", in(k, "server", "calls when resumed"), seen.new_calls, tickets);
        end(&s);
    }
}

static int never_resumable(SSL *ssl, int forward_secure)
{
    (void)ssl, (void)forward_secure;
    return 1;
}

static int calls_of_new_cb(SSL_CTX *server, int version)
{
    SSL_CTX *client = client_ctx(version);
    pair p;

    SSL_CTX_sess_set_new_cb(server, new_cb);
    p = tls_connect(client, server, NULL);
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    return seen.new_calls;
}

static void CB2_not_called_for_what_cannot_be_resumed(void **state)
{
    SSL_CTX *server;

    (void)state;
    server = stateful_server(TLS1_2_VERSION, SSL_SESS_CACHE_SERVER);
    SSL_CTX_clear_options(server, SSL_OP_NO_TICKET); /* the session is in the ticket, and has no id */
    observe_int("CB2", "no id: calls", calls_of_new_cb(server, TLS1_2_VERSION), 0);

    server = stateful_server(TLS1_2_VERSION, SSL_SESS_CACHE_SERVER);
    SSL_CTX_set_not_resumable_session_callback(server, never_resumable);
    observe_int("CB2", "not resumable: calls", calls_of_new_cb(server, TLS1_2_VERSION), 0);

    for EACH_KIND(k) {
        server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_CTX_set_verify(server, SSL_VERIFY_PEER, NULL);
        assert_int_equal(SSL_CTX_set_session_id_context(server, (const unsigned char *)"", 0), 1);
        observe_int("CB2", in(k, "server", "calls with peer verification and no session id context"),
                    calls_of_new_cb(server, k->version), 0);

        server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_CTX_set_verify(server, SSL_VERIFY_PEER, NULL);
        observe_int("CB2", in(k, "server", "calls with peer verification and a session id context"),
                    calls_of_new_cb(server, k->version), 1);
    }
}

/* ---- CB3 ---- */

static void CB3_new_cb_returning_1(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        int before = sessions_alive();
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *mine = s.external;

        observe_bool("CB3", in(k, "returned 1", "cached"), in_cache(s.server, k->version, mine), 1);
        observe_bool("CB3", in(k, "returned 1", "resumed"), tls_resumes(s.client, s.server, s.offered), 1);
        s.external = NULL;
        end(&s);
        observe_int("CB3", in(k, "returned 1", "sessions left when the contexts are gone"),
                    sessions_alive() - before, 1);
        SSL_SESSION_free(mine);
        observe_int("CB3", in(k, "returned 1", "sessions left after the application's free"),
                    sessions_alive() - before, 0);
    }
}

static void CB3_new_cb_returning_0(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *offered;
        pair p;

        SSL_CTX_sess_set_new_cb(server, new_cb);
        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        p = tls_connect(client, server, NULL);
        offered = SSL_get1_session(p.client);
        assert_int_equal(seen.new_calls, 1);
        observe_bool("CB3", in(k, "returned 0", "cached"),
                     in_cache(server, k->version, SSL_get_session(p.server)), 0);
        observe_number("CB3", in(k, "returned 0", "sessions in the cache"), server, 0);
        observe_int("CB3", in(k, "returned 0", "calls of remove_cb"), seen.remove_calls, 0);
        observe_bool("CB3", in(k, "returned 0", "the session is still resumable"),
                     SSL_SESSION_is_resumable(SSL_get_session(p.server)), 1);
        tls_close(&p);
        observe_bool("CB3", in(k, "returned 0", "resumed"), tls_resumes(client, server, offered), 0);
        SSL_SESSION_free(offered);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* The internal cache of a client is no different; what the application holds itself can still be offered. */
static void CB3_new_cb_returning_0_on_a_client(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *session;

        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(client, new_cb);
        session = tls_session(client, server);
        observe_bool("CB3", in(k, "client, returned 0", "cached"), in_cache(client, k->version, session), 0);
        observe_bool("CB3", in(k, "client, returned 0", "resumed when offered"),
                     tls_resumes(client, server, session), 1);
        SSL_SESSION_free(session);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* ---- CB4 ---- */

static void CB4_when_and_how_often(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        int tls13 = k->version == TLS1_3_VERSION, before_connect_returned, all = tls13 ? 3 : 1;
        SSL_SESSION *kept[4];
        pair p;

        SSL_CTX_set_num_tickets(server, 3);
        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(client, new_cb);
        seen.new_result = 1;
        p = tls_prepare(client, server);
        while (SSL_do_handshake(p.client) != 1)
            (void)SSL_do_handshake(p.server);
        before_connect_returned = seen.new_calls;
        assert_int_equal(tls_drive(&p), 1);
        observe_int("CB4", in(k, "client", "calls before SSL_connect returned"),
                    before_connect_returned, !tls13);
        observe_int("CB4", in(k, "client", "calls for 3 tickets"), seen.new_calls, all);
        memcpy(kept, seen.kept, sizeof(kept));
        for (int i = 1; i < all; i++)
            assert_ptr_not_equal(kept[i], kept[i - 1]);
        tls_close(&p);
        free_kept();

        memset(&seen, 0, sizeof(seen));
        SSL_CTX_sess_set_new_cb(client, NULL);
        SSL_CTX_sess_set_new_cb(server, new_cb);
        p = tls_connect(client, server, NULL);
        observe_int("CB4", in(k, "server", "calls for 3 tickets"), seen.new_calls, all);
        tls_close(&p);

        seen.new_calls = 0;
        SSL_CTX_set_num_tickets(server, 0);
        p = tls_connect(client, server, NULL);
        observe_int("CB4", in(k, "server", "calls for no ticket"), seen.new_calls, !tls13);
        tls_close(&p);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

/* ---- CB5 ---- */

/* remove_cb was called once, for that session of that context. */
static void observe_removed(const struct kind *k, const char *why, SSL_CTX *ctx, SSL_SESSION *session)
{
    observe_int("CB5", in(k, why, "calls"), seen.remove_calls, 1);
    assert_ptr_equal(seen.removed_from, ctx);
    assert_ptr_equal(seen.removed, session);
}

static void CB5_expired(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER);

        SSL_CTX_sess_set_remove_cb(s.server, remove_cb);
        SSL_SESSION_set_time(s.external, 1000);
        assert_false(tls_resumes(s.client, s.server, s.offered));
        if (k->version == TLS1_2_VERSION)
            observe_removed(k, "expired, when proposed", s.server, s.external);
        else /* libssl leaves an expired TLS 1.3 session to the next flush */
            observe_bool("CB5", in(k, "expired, when proposed", "called or still cached"),
                         seen.remove_calls == 1 || in_cache(s.server, k->version, s.external), 1);
        end(&s);

        s = begin(k->version, SSL_SESS_CACHE_SERVER);
        SSL_CTX_sess_set_remove_cb(s.server, remove_cb);
        SSL_CTX_flush_sessions(s.server, (long)SSL_SESSION_get_time(s.external)
                                         + SSL_SESSION_get_timeout(s.external) + 9);
        observe_removed(k, "expired, when flushed", s.server, s.external);
        end(&s);
    }
}

static void CB5_condemned(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *session;
        pair p = tls_connect(client, server, NULL);

        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        session = SSL_get_session(p.server);
        tls_drop(&p);
        observe_removed(k, "connection not shut down", server, session);

        seen.remove_calls = 0;
        p = tls_connect(client, server, NULL);
        session = SSL_get_session(p.server);
        assert_int_equal(BIO_write(SSL_get_wbio(p.client), "no record at all", 16), 16);
        assert_false(tls_echo(&p));
        observe_removed(k, "fatal error", server, session);
        tls_drop(&p);

        seen.remove_calls = 0;
        p = tls_connect(client, server, NULL);
        tls_close(&p);
        observe_int("CB5", in(k, "connection shut down", "calls"), seen.remove_calls, 0);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

static void CB5_removed_and_flushed(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER);

        SSL_CTX_sess_set_remove_cb(s.server, remove_cb);
        assert_int_equal(SSL_CTX_remove_session(s.server, s.external), 1);
        observe_removed(k, "SSL_CTX_remove_session", s.server, s.external);
        observe_bool("CB5", in(k, "SSL_CTX_remove_session", "still resumable in remove_cb"),
                     seen.resumable_at_removal, 0);
        end(&s);

        s = begin(k->version, SSL_SESS_CACHE_SERVER);
        SSL_CTX_sess_set_remove_cb(s.server, remove_cb);
        SSL_CTX_flush_sessions(s.server, 0);
        observe_removed(k, "SSL_CTX_flush_sessions", s.server, s.external);
        end(&s);
    }
}

/* `count` sessions made by hand; the cache holds the only references. */
static void fill(SSL_CTX *ctx, const struct kind *k, int count)
{
    for (int i = 0; i < count; i++) {
        SSL_SESSION *session = made_session(k->version, (unsigned char)(i + 1));

        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
}

static void CB5_size_limit_and_SSL_CTX_free(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        long left;

        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        SSL_CTX_sess_set_cache_size(server, 4);
        fill(server, k, 10);
        left = SSL_CTX_sess_number(server);
        assert_in_range(left, 1, 4);
        observe_bool("CB5", in(k, "size limit", "a call for each that left"), seen.remove_calls == 10 - left, 1);
        assert_ptr_equal(seen.removed_from, server);

        seen.remove_calls = 0;
        SSL_CTX_free(server);
        observe_bool("CB5", in(k, "SSL_CTX_free", "a call for each that was left"), seen.remove_calls == left, 1);
    }
}

/* A second object with the same id is as good as new: the first one leaves. */
static void CB5_replaced(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *first = made_session(k->version, 1), *second = made_session(k->version, 1);

        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        assert_int_equal(SSL_CTX_add_session(server, first), 1);
        assert_int_equal(SSL_CTX_add_session(server, second), 1);
        observe_int("CB5", in(k, "replaced", "calls"), seen.remove_calls, 1);
        if (seen.remove_calls == 1)
            assert_true(seen.removed_from == server && seen.removed == first);
        SSL_SESSION_free(first);
        SSL_SESSION_free(second);
        SSL_CTX_free(server);
    }
}

/* ---- CB6 ---- */

static void CB6_condemned_without_an_internal_cache(void **state)
{
    static const struct { const char *name; unsigned long options; } tickets[] = {
        { "by id", SSL_OP_NO_TICKET }, { "in a ticket", 0 },
    };

    (void)state;
    for EACH_KIND(k) for (int i = 0; i < 2; i++) {
        SSL_CTX *client = client_ctx(k->version);
        SSL_CTX *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
        /* A TLS 1.2 session in a ticket has no id: no external cache could have it. */
        int expected = tickets[i].options != 0 || k->version == TLS1_3_VERSION;
        SSL_SESSION *session;
        pair p;

        SSL_CTX_clear_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_set_options(server, tickets[i].options);
        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        p = tls_connect(client, server, NULL);
        session = SSL_get_session(p.server);
        tls_drop(&p);
        observe_int("CB6", in(k, tickets[i].name, "calls when not shut down"), seen.remove_calls, expected);
        if (expected)
            assert_true(seen.removed_from == server && seen.removed == session);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

static void CB6_removed_while_not_cached(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *server = stateful_server(k->version, SSL_SESS_CACHE_SERVER);
        SSL_SESSION *session = made_session(k->version, 1);

        SSL_CTX_sess_set_remove_cb(server, remove_cb);
        assert_int_equal(SSL_CTX_remove_session(server, session), 0);
        observe_int("CB6", in(k, "SSL_CTX_remove_session", "calls"), seen.remove_calls, 1);
        assert_true(seen.removed_from == server && seen.removed == session);
        SSL_SESSION_free(session);
        SSL_CTX_free(server);
    }
}

/* ---- CB7 ---- */

/* Was get_cb given what the client proposed: a session id, or the ticket that stands for one? */
static int asked_for(SSL_SESSION *offered, int version)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(offered, &length);
    size_t ticket_length;

    if (version == TLS1_3_VERSION) {
        SSL_SESSION_get0_ticket(offered, &id, &ticket_length);
        length = (unsigned int)ticket_length;
    }
    return seen.id_length == (int)length && memcmp(seen.id, id, length) == 0;
}

static void CB7_get_cb_is_called(void **state)
{
    static const struct { const char *name; long before, then; int expected; } modes[] = {
        { "cached", SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_SERVER, 0 },
        { "not cached", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_SERVER, 1 },
        { "cached, NO_INTERNAL_LOOKUP", SSL_SESS_CACHE_SERVER,
          SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, 1 },
        { "not cached, OFF", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_OFF, 1 },
    };

    (void)state;
    for EACH_KIND(k) for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        scene s = begin(k->version, modes[i].before);

        SSL_CTX_set_session_cache_mode(s.server, modes[i].then);
        answer_with_external(&s, LEFT);
        observe_bool("CB7", in(k, modes[i].name, "resumed"), tls_resumes(s.client, s.server, s.offered), 1);
        observe_int("CB7", in(k, modes[i].name, "calls"), seen.get_calls, modes[i].expected);
        if (modes[i].expected)
            observe_bool("CB7", in(k, modes[i].name, "given what the client proposed"),
                         asked_for(s.offered, k->version), 1);
        end(&s);
    }
}

static void CB7_get_cb_has_nothing(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);

        SSL_CTX_sess_set_get_cb(s.server, get_cb);
        observe_bool("CB7", in(k, "returned NULL", "resumed"), tls_resumes(s.client, s.server, s.offered), 0);
        observe_int("CB7", in(k, "returned NULL", "calls"), seen.get_calls, 1);
        end(&s);
    }
}

static void CB7_never_on_clients(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER);

        SSL_CTX_set_session_cache_mode(s.client, SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_get_cb(s.client, get_cb);
        assert_true(tls_resumes(s.client, s.server, s.offered));
        observe_int("CB7", in(k, "client", "calls"), seen.get_calls, 0);
        end(&s);
    }
}

static int short_id(SSL *ssl, unsigned char *id, unsigned int *length)
{
    static unsigned char turn;

    (void)ssl;
    *length = 11;
    memset(id, ++turn, *length);
    return 1;
}

static void CB7_the_exact_length(void **state)
{
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);
    SSL_CTX *server = stateful_server(TLS1_2_VERSION, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_SESSION *offered;

    (void)state;
    SSL_CTX_set_generate_session_id(server, short_id);
    SSL_CTX_sess_set_get_cb(server, get_cb);
    offered = tls_session(client, server);
    assert_false(tls_resumes(client, server, offered));
    observe_int("CB7", "length given for an id of 11 bytes", seen.id_length, 11);
    assert_true(asked_for(offered, TLS1_2_VERSION));
    SSL_SESSION_free(offered);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* ---- CB8 ---- */

static void CB8_who_owns_what_get_cb_returned(void **state)
{
    static const struct { const char *name; enum copy copy; } copies[] = {
        { "*copy left alone", LEFT }, { "*copy set to 1", ONE }, { "*copy set to 0", ZERO },
    };
    static const struct { const char *name; long mode; } stores[] = {
        { "stored", SSL_SESS_CACHE_SERVER },
        { "NO_INTERNAL_STORE", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE },
    };

    (void)state;
    for EACH_KIND(k) for (int i = 0; i < 3; i++) for (int j = 0; j < 2; j++) {
        int before = sessions_alive(), owned = copies[i].copy == ZERO ? 0 : 1;
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
        SSL_SESSION *mine;
        char where[80];

        snprintf(where, sizeof(where), "%s, %s", copies[i].name, stores[j].name);
        SSL_CTX_set_session_cache_mode(s.server, stores[j].mode);
        answer_with_external(&s, copies[i].copy);
        observe_bool("CB8", in(k, where, "resumed"), tls_resumes(s.client, s.server, s.offered), 1);
        observe_int("CB8", in(k, where, "*copy before the call"), seen.copy_before, 1);
        mine = s.external;
        s.external = NULL;
        end(&s);
        observe_int("CB8", in(k, where, "sessions left for the application to free"),
                    sessions_alive() - before, owned);
        SSL_SESSION_free(mine);
    }
}

/* ---- CB9 ---- */

static void CB9_stored_unless_NO_INTERNAL_STORE(void **state)
{
    static const struct { const char *name; long mode; int stored; } modes[] = {
        { "SERVER", SSL_SESS_CACHE_SERVER, 1 },
        { "NO_INTERNAL_STORE", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, 0 },
        { "NO_INTERNAL_LOOKUP", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, 1 },
    };

    (void)state;
    for EACH_KIND(k) for (int i = 0; i < 3; i++) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);

        SSL_CTX_set_session_cache_mode(s.server, modes[i].mode);
        answer_with_external(&s, LEFT);
        assert_true(tls_resumes(s.client, s.server, s.offered));
        observe_bool("CB9", in(k, modes[i].name, "in the internal cache"),
                     in_cache(s.server, k->version, s.external), modes[i].stored);
        end(&s);
    }
}

/* The cache has the session, but was not asked: what get_cb returned is only another copy of it. */
static void CB9_already_in_the_internal_cache(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        scene s = begin(k->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP);
        SSL_SESSION *cached = s.external; /* the cache has a reference too */

        SSL_CTX_sess_set_remove_cb(s.server, remove_cb);
        s.external = copy_of(cached);
        answer_with_external(&s, LEFT);
        assert_true(tls_resumes(s.client, s.server, s.offered));
        observe_int("CB9", in(k, "another object of a cached session", "calls of remove_cb"), seen.remove_calls, 0);
        /* Found by removing: the one that leaves is the one that was cached. */
        SSL_CTX_sess_set_get_cb(s.server, NULL);
        SSL_CTX_flush_sessions(s.server, 0);
        observe_bool("CB9", in(k, "another object of a cached session", "the cached one stays"),
                     !SSL_SESSION_is_resumable(cached) && SSL_SESSION_is_resumable(s.external), 1);
        SSL_SESSION_free(cached);
        end(&s);
    }
}

/* ---- CB10 ---- */

enum fault { OTHER_ID, OTHER_VERSION, NOT_RESUMABLE, NO_CIPHER, NO_KEY };

struct case10 {
    int version;
    enum fault fault;
    enum copy copy;
};

enum { FULL, RESUMED, FAILED, LOST = 32 };

static SSL_SESSION *faulty(scene *s, const struct case10 *c)
{
    SSL_SESSION *offered = NULL, *session = copy_of(s->external);

    switch (c->fault) {
    case OTHER_ID:
        SSL_SESSION_free(session);
        session = external_session(s, &offered);
        SSL_SESSION_free(offered);
        break;
    case OTHER_VERSION:
        SSL_SESSION_set_protocol_version(session, c->version == TLS1_2_VERSION ? TLS1_3_VERSION : TLS1_2_VERSION);
        break;
    case NOT_RESUMABLE:
        SSL_CTX_remove_session(s->server, session);
        break;
    case NO_CIPHER:
        SSL_SESSION_set_cipher(session, NULL);
        break;
    case NO_KEY:
        SSL_SESSION_set1_master_key(session, (const unsigned char *)"", 0);
        break;
    }
    return session;
}

/* In a child: a server whose get_cb answers with a faulty session. */
static int answer_faulty(void *arg)
{
    const struct case10 *c = arg;
    int before = sessions_alive(), outcome = FAILED;
    scene s = begin(c->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    SSL_SESSION *answer = faulty(&s, c);
    pair p;

    SSL_SESSION_free(s.external);
    s.external = answer;
    memset(&seen, 0, sizeof(seen));
    SSL_CTX_set_session_cache_mode(s.server, SSL_SESS_CACHE_SERVER);
    answer_with_external(&s, c->copy);
    if (tls_try(s.client, s.server, s.offered, &p)) {
        outcome = tls_resumed(&p) ? RESUMED : FULL;
        tls_close(&p);
    }
    assert_int_equal(seen.get_calls, 1);
    end(&s);
    return sessions_alive() == before ? outcome : outcome + LOST;
}

static const char *outcome_of(struct case10 *c)
{
    static const struct { const char *child, *outcome; } names[] = {
        { "returns 0", "full handshake" }, { "returns 1", "resumed" }, { "returns 2", "handshake fails" },
        { "returns 32", "full handshake, a reference lost" }, { "returns 33", "resumed, a reference lost" },
        { "returns 34", "handshake fails, a reference lost" },
    };
    const char *result = in_child(answer_faulty, c, 10);

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(result, names[i].child) == 0)
            return names[i].outcome;
    return result;
}

static void observe_fault(enum fault fault, const char *name)
{
    for EACH_KIND(k) for (enum copy copy = ONE; copy <= ZERO; copy++) {
        struct case10 c = { k->version, fault, copy };

        observe("CB10", in(k, name, copy == ONE ? "*copy 1" : "*copy 0"), outcome_of(&c), "full handshake");
    }
}

static void CB10_another_id(void **state)
{
    (void)state;
    observe_fault(OTHER_ID, "another id");
}

static void CB10_another_version(void **state)
{
    (void)state;
    observe_fault(OTHER_VERSION, "another version");
}

static void CB10_not_resumable(void **state)
{
    (void)state;
    observe_fault(NOT_RESUMABLE, "not resumable");
}

/* In a child: 2 if the handshake failed; else whether a marked session of get_cb was counted (1) and cached (4). */
static int answer_marked(void *arg)
{
    const struct case10 *c = arg;
    int result = FAILED;
    scene s = begin(c->version, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    SSL_SESSION *answer = faulty(&s, c);
    pair p;

    SSL_SESSION_free(s.external);
    s.external = answer;
    SSL_CTX_set_session_cache_mode(s.server, SSL_SESS_CACHE_SERVER);
    answer_with_external(&s, c->copy);
    if (tls_try(s.client, s.server, s.offered, &p)) {
        result = (SSL_CTX_sess_cb_hits(s.server) > 0) | (in_cache(s.server, c->version, s.offered) ? 4 : 0);
        tls_close(&p);
    }
    end(&s);
    return result;
}

static void CB10_not_resumable_is_not_counted(void **state)
{
    static const char *const names[] = { "neither", "counted", "handshake fails", "returns 3", "cached", "both" };

    (void)state;
    for EACH_KIND(k) {
        struct case10 c = { k->version, NOT_RESUMABLE, ONE };
        const char *result = in_child(answer_marked, &c, 10), *what = in(k, "not resumable", "counted and cached");
        unsigned bits;

        if (sscanf(result, "returns %u", &bits) == 1 && bits < sizeof names / sizeof *names)
            result = names[bits];
        /* Many patch releases of libssl do both, and so resume what was condemned. In others the handshake fails. */
        if (strcmp(result, "handshake fails") == 0)
            observe("CB10", what, result, "neither");
        else
            observe_deviation("CB10", what, result, "neither");
    }
}

static void CB10_no_cipher(void **state)
{
    (void)state;
    observe_fault(NO_CIPHER, "no cipher");
}

static void CB10_no_master_key(void **state)
{
    (void)state;
    observe_fault(NO_KEY, "no master key");
}

/* ---- CB11 ---- */

static int within, entered, failures;

/* All there is to call on the context a callback was called for; nested callbacks find `within` set. */
static void call_everything(SSL_CTX *ctx)
{
    SSL_SESSION *mine;
    long mode, size, count;

    if (within)
        return;
    within = 1;
    entered++;
    mine = made_session(TLS1_2_VERSION, 0xAA);
    SSL_SESSION_set_timeout(mine, 3600); /* not the one to leave when the cache is full */
    size = SSL_CTX_sess_set_cache_size(ctx, 1000);
    failures += SSL_CTX_sess_get_cache_size(ctx) != 1000;
    mode = SSL_CTX_get_session_cache_mode(ctx);
    failures += SSL_CTX_set_session_cache_mode(ctx, mode) != mode;
    count = SSL_CTX_sess_number(ctx);
    failures += SSL_CTX_add_session(ctx, mine) != 1;
    /* In Redis nobody asks what is there; a client's session is in memory. */
    failures += SSL_CTX_add_session(ctx, mine) > in_redis();
    failures += !numbers(ctx, count + 1);
    failures += SSL_CTX_remove_session(ctx, mine) != 1;
    failures += SSL_CTX_remove_session(ctx, mine) != 0;
    failures += !numbers(ctx, count);
    SSL_CTX_flush_sessions(ctx, 1); /* nothing is as old as that */
    failures += !numbers(ctx, count);
    failures += SSL_CTX_sessions(ctx) == NULL;
    SSL_CTX_sess_set_new_cb(ctx, SSL_CTX_sess_get_new_cb(ctx));
    SSL_CTX_sess_set_get_cb(ctx, SSL_CTX_sess_get_get_cb(ctx));
    SSL_CTX_sess_set_remove_cb(ctx, SSL_CTX_sess_get_remove_cb(ctx));
    failures += SSL_CTX_sess_hits(ctx) < 0 || SSL_CTX_sess_misses(ctx) < 0 || SSL_CTX_sess_cache_full(ctx) < 0;
    SSL_CTX_sess_set_cache_size(ctx, size);
    SSL_SESSION_free(mine);
    within = 0;
}

static int calling_new_cb(SSL *ssl, SSL_SESSION *session)
{
    (void)session;
    call_everything(SSL_get_SSL_CTX(ssl));
    failures += SSL_has_matching_session_id(ssl, (const unsigned char *)"unknown", 7) != 0;
    return 0;
}

static SSL_SESSION *calling_get_cb(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    call_everything(SSL_get_SSL_CTX(ssl));
    failures += SSL_has_matching_session_id(ssl, (const unsigned char *)"unknown", 7) != 0;
    return get_cb(ssl, id, length, copy);
}

static void calling_remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)session;
    call_everything(ctx);
}

/* remove_cb that empties the cache it is called for: every session must still leave once. */
static void flushing_remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)session;
    entered++;
    if (within)
        return;
    within = 1;
    SSL_CTX_flush_sessions(ctx, 0);
    within = 0;
}

enum event { NEW_SERVER, NEW_CLIENT, GET, OVERFLOW, FLUSH, REMOVE, CONDEMN, EXPIRE, REPLACE, FREE, FLUSH_IN_FLUSH };

struct case11 {
    const struct kind *kind;
    enum event event;
};

static void cause(scene *s, const struct case11 *c)
{
    const struct kind *k = c->kind;
    SSL_SESSION *again;
    pair p;

    switch (c->event) {
    case NEW_SERVER:
        SSL_CTX_sess_set_new_cb(s->server, calling_new_cb);
        tls_resumes(s->client, s->server, NULL);
        break;
    case NEW_CLIENT:
        SSL_CTX_set_session_cache_mode(s->client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(s->client, calling_new_cb);
        tls_resumes(s->client, s->server, NULL);
        break;
    case GET:
        SSL_CTX_set_session_cache_mode(s->server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP);
        answer_with_external(s, LEFT);
        SSL_CTX_sess_set_get_cb(s->server, calling_get_cb);
        failures += !tls_resumes(s->client, s->server, s->offered);
        break;
    case OVERFLOW:
        SSL_CTX_sess_set_cache_size(s->server, 4);
        fill(s->server, k, 10);
        failures += SSL_CTX_sess_number(s->server) < 3 || SSL_CTX_sess_number(s->server) > 4;
        break;
    case FLUSH:
        fill(s->server, k, 3);
        SSL_CTX_flush_sessions(s->server, 0);
        failures += !numbers(s->server, 0);
        break;
    case REMOVE:
        failures += SSL_CTX_remove_session(s->server, s->external) != 1;
        break;
    case CONDEMN:
        p = tls_connect(s->client, s->server, NULL);
        tls_drop(&p);
        break;
    case EXPIRE:
        SSL_SESSION_set_time(s->external, 1000);
        failures += tls_resumes(s->client, s->server, s->offered);
        SSL_CTX_flush_sessions(s->server, 100000); /* TLS 1.3: see CB5_expired */
        break;
    case REPLACE:
        again = copy_of(s->external);
        failures += SSL_CTX_add_session(s->server, again) != 1;
        SSL_SESSION_free(again);
        break;
    case FREE:
        fill(s->server, k, 3);
        break;
    case FLUSH_IN_FLUSH:
        fill(s->server, k, 3);
        SSL_CTX_sess_set_remove_cb(s->server, flushing_remove_cb);
        SSL_CTX_flush_sessions(s->server, 0);
        failures += entered != 4 || !numbers(s->server, 0);
        break;
    }
}

enum { WORKS, CALL_FAILS, NEVER_CALLED, LEAKS };

static int call_back(void *arg)
{
    const struct case11 *c = arg;
    int before = sessions_alive();
    scene s = begin(c->kind->version, SSL_SESS_CACHE_SERVER);
    int is_remove = c->event >= OVERFLOW;

    entered = failures = 0;
    if (is_remove)
        SSL_CTX_sess_set_remove_cb(s.server, calling_remove_cb);
    cause(&s, c);
    if (c->event != FREE) /* what remains is not what is looked at */
        SSL_CTX_sess_set_remove_cb(s.server, NULL);
    end(&s);
    if (entered == 0)
        return NEVER_CALLED;
    if (sessions_alive() != before)
        return LEAKS;
    return failures == 0 ? WORKS : CALL_FAILS;
}

static void observe_calls(enum event event, const char *name)
{
    static const char *const names[] = { "works", "a call fails", "never called", "leaks" };

    SSL_SESSION_free(made_session(TLS1_2_VERSION, 1)); /* so that it needs no context in the callback */
    for EACH_KIND(k) {
        struct case11 c = { k, event };
        const char *result = in_child(call_back, &c, 10);

        for (int i = WORKS; i <= LEAKS; i++) {
            char code[16];

            snprintf(code, sizeof(code), "returns %d", i);
            if (strcmp(result, code) == 0)
                result = names[i];
        }
        observe("CB11", in(k, name, "calling back"), result, "works");
    }
}

static void CB11_new_cb_calls_back(void **state)
{
    (void)state;
    observe_calls(NEW_SERVER, "new_cb of a server");
    observe_calls(NEW_CLIENT, "new_cb of a client");
}

static void CB11_get_cb_calls_back(void **state)
{
    (void)state;
    observe_calls(GET, "get_cb");
}

/*
 * Where stock calls back under its lock, glibc sees the deadlock coming and the calls made there fail. 1.1.1 does not
 * look, and unlocks what it did not lock: it works, crashes or deadlocks as chance has it, and is not observed.
 */
static void CB11_remove_cb_calls_back(void **state)
{
    (void)state;
    observe_calls(REMOVE, "remove_cb on SSL_CTX_remove_session");
    observe_calls(CONDEMN, "remove_cb on a missing shutdown");
    observe_calls(REPLACE, "remove_cb on a replaced session");
    if (subject() == STOCK && OpenSSL_version_num() < 0x30000000L)
        return;
    observe_calls(EXPIRE, "remove_cb on an expired session");
    observe_calls(OVERFLOW, "remove_cb on a full cache");
    observe_calls(FLUSH, "remove_cb on SSL_CTX_flush_sessions");
    observe_calls(FREE, "remove_cb on SSL_CTX_free");
    observe_calls(FLUSH_IN_FLUSH, "remove_cb that flushes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(CB1_getters_return_what_was_set),
        RULE_TEST(CB2_new_cb_where_the_mode_has_the_side),
        RULE_TEST(CB2_new_cb_in_mode_CLIENT_alone),
        RULE_TEST(CB2_new_cb_when_resumed),
        RULE_TEST(CB2_not_called_for_what_cannot_be_resumed),
        RULE_TEST(CB3_new_cb_returning_1),
        RULE_TEST(CB3_new_cb_returning_0),
        RULE_TEST(CB3_new_cb_returning_0_on_a_client),
        RULE_TEST(CB4_when_and_how_often),
        OBJECT_TEST(CB5_expired),
        RULE_TEST(CB5_condemned),
        OBJECT_TEST(CB5_removed_and_flushed),
        OBJECT_TEST(CB5_size_limit_and_SSL_CTX_free),
        OBJECT_TEST(CB5_replaced),
        RULE_TEST(CB6_condemned_without_an_internal_cache),
        RULE_TEST(CB6_removed_while_not_cached),
        RULE_TEST(CB7_get_cb_is_called),
        RULE_TEST(CB7_get_cb_has_nothing),
        RULE_TEST(CB7_never_on_clients),
        RULE_TEST(CB7_the_exact_length),
        RULE_TEST(CB8_who_owns_what_get_cb_returned),
        RULE_TEST(CB9_stored_unless_NO_INTERNAL_STORE),
        OBJECT_TEST(CB9_already_in_the_internal_cache),
        RULE_TEST(CB10_another_id),
        RULE_TEST(CB10_another_version),
        RULE_TEST(CB10_not_resumable),
        RULE_TEST(CB10_not_resumable_is_not_counted),
        RULE_TEST(CB10_no_cipher),
        RULE_TEST(CB10_no_master_key),
        RULE_TEST(CB11_new_cb_calls_back),
        RULE_TEST(CB11_get_cb_calls_back),
        OBJECT_TEST(CB11_remove_cb_calls_back),
    };

    return RUN_PAGE("SSL_CTX_sess_set_get_cb", tests);
}
