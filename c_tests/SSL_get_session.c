/*
 * SSL_get_session(3): which session a connection shows, who owns it, and what a bad end does to it; with the
 * neighbours that move sessions between connections: SSL_dup, SSL_clear and a refused renegotiation.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct kind {
    const char *name;
    int version;
} kinds[] = { { "TLS 1.2", TLS1_2_VERSION }, { "TLS 1.3", TLS1_3_VERSION } };

#define EACH_KIND(k) (const struct kind *k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)

/* "TLS 1.2: what" */
static const char *in(const struct kind *k, const char *what)
{
    static char text[160];

    snprintf(text, sizeof(text), "%s: %s", k->name, what);
    return text;
}

/* Sessions are found by an id in the cache of the server, and of the client as well. */
static void caching_ctxs(int version, SSL_CTX **client, SSL_CTX **server)
{
    *client = client_ctx(version);
    *server = server_ctx(version);
    SSL_CTX_set_options(*server, SSL_OP_NO_TICKET);
    SSL_CTX_set_session_cache_mode(*client, SSL_SESS_CACHE_CLIENT);
}

static void free_ctxs(SSL_CTX *client, SSL_CTX *server)
{
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static int same_id(const SSL_SESSION *a, const SSL_SESSION *b)
{
    unsigned int a_length, b_length;
    const unsigned char *a_id = SSL_SESSION_get_id(a, &a_length), *b_id = SSL_SESSION_get_id(b, &b_length);

    return a_length == b_length && memcmp(a_id, b_id, a_length) == 0;
}

static void GET1_same_pointer_and_no_reference(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *session;
        int before = sessions_alive(), same = 1;
        pair p;

        caching_ctxs(k->version, &client, &server);
        p = tls_prepare(client, server);
        observe_bool("GET1", in(k, "NULL before there is a session"),
                     SSL_get_session(p.client) == NULL && SSL_get0_session(p.server) == NULL, 1);
        assert_true(tls_drive(&p));
        session = SSL_get_session(p.server);
        for (int i = 0; i < 100; i++)
            same &= SSL_get_session(p.server) == session && SSL_get0_session(p.server) == session
                    && SSL_get_session(p.client) == SSL_get0_session(p.client);
        observe_bool("GET1", in(k, "both functions return one pointer"), same && session != NULL, 1);
        tls_close(&p);
        free_ctxs(client, server);
        observe_int("GET1", in(k, "sessions kept alive by 400 calls"), sessions_alive() - before, 0);
    }
}

/* The ways a session's connection, cache entry and context can go away, one by one. */
static void GET2_own_reference_outlives_the_rest(void **state)
{
    enum { FREED, DROPPED, CLEARED, FLUSHED, REMOVED, WAYS };
    static const char *const names[WAYS] = { "SSL_free", "SSL_free without SSL_shutdown", "SSL_clear",
                                             "SSL_CTX_flush_sessions", "SSL_CTX_remove_session" };

    (void)state;
    for EACH_KIND(k)
        for (int way = 0; way < WAYS; way++) {
            SSL_CTX *client, *server;
            SSL_SESSION *kept, *copy;
            int before = sessions_alive();
            pair p;

            caching_ctxs(k->version, &client, &server);
            p = tls_connect(client, server, NULL);
            kept = SSL_get1_session(p.server);
            assert_ptr_equal(kept, SSL_get_session(p.server));
            copy = SSL_SESSION_dup(kept);
            assert_non_null(copy);
            if (way == CLEARED)
                assert_int_equal(SSL_clear(p.server), 1);
            if (way == FLUSHED)
                SSL_CTX_flush_sessions(server, 0);
            if (way == REMOVED)
                assert_int_equal(SSL_CTX_remove_session(server, kept), 1);
            if (way == DROPPED)
                tls_drop(&p);
            else
                tls_close(&p);
            free_ctxs(client, server);
            observe_bool("GET2", in(k, names[way]), sessions_alive() - before == 2 && same_id(kept, copy), 1);
            SSL_SESSION_free(kept);
            assert_int_equal(sessions_alive() - before, 1);
            SSL_SESSION_free(copy);
            assert_int_equal(sessions_alive() - before, 0);
        }
}

static void GET3_not_resumable_before_the_ticket(void **state)
{
    SSL_CTX *client, *server;
    SSL_SESSION *early;
    pair p;

    (void)state;
    caching_ctxs(TLS1_3_VERSION, &client, &server);
    SSL_CTX_set_num_tickets(server, 0);
    p = tls_connect(client, server, NULL);
    early = SSL_get1_session(p.client);
    observe_bool("GET3", "the client has an object before any ticket", early != NULL, 1);
    observe_bool("GET3", "it is resumable", SSL_SESSION_is_resumable(early), 0);
    observe_number("GET3", "sessions in the client's cache", client, 0);
    observe_bool("GET4", "no ticket sent: the server shows the connection's own session",
                 SSL_get_session(p.server) != NULL && !SSL_SESSION_is_resumable(SSL_get_session(p.server)), 1);
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
    assert_int_equal(SSL_new_session_ticket(p.server), 1);
    assert_true(tls_echo(&p));
    assert_true(tls_echo(&p)); /* the ticket leaves with what is written after it was asked for */
    observe_bool("GET3", "resumable once the ticket came", SSL_SESSION_is_resumable(SSL_get_session(p.client)), 1);
    observe_bool("GET3", "the object of before stays as it was", SSL_SESSION_is_resumable(early), 0);
#endif
    SSL_SESSION_free(early);
    tls_close(&p);
    free_ctxs(client, server);
}

enum { TICKETS = 3 };
struct seen { int count; SSL_SESSION *sessions[TICKETS]; };
static struct seen from_client, from_server;

static int remember(struct seen *seen, SSL_SESSION *session)
{
    assert_true(seen->count < TICKETS);
    seen->sessions[seen->count++] = session;
    return 1;
}

static int client_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    return remember(&from_client, session);
}

static int server_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    return remember(&from_server, session);
}

static void forget(struct seen *seen)
{
    while (seen->count > 0)
        SSL_SESSION_free(seen->sessions[--seen->count]);
}

static void GET4_the_last_of_several_tickets(void **state)
{
    static const struct { const char *name; uint64_t options; } flavours[] = {
        { "stateful", SSL_OP_NO_TICKET }, { "stateless", 0 },
    };
    char what[96];

    (void)state;
    for (int i = 0; i < 2; i++) {
        SSL_CTX *client = client_ctx(TLS1_3_VERSION), *server = server_ctx(TLS1_3_VERSION);
        pair p;

        SSL_CTX_set_options(server, flavours[i].options);
        SSL_CTX_set_num_tickets(server, TICKETS);
        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(client, client_new);
        SSL_CTX_sess_set_new_cb(server, server_new);
        p = tls_connect(client, server, NULL);
        snprintf(what, sizeof(what), "%s tickets: sessions told to client and server", flavours[i].name);
        observe_int("GET4", what, from_client.count * 10 + from_server.count, 33);
        snprintf(what, sizeof(what), "%s tickets: the client shows the last received", flavours[i].name);
        observe_bool("GET4", what, SSL_get_session(p.client) == from_client.sessions[TICKETS - 1], 1);
        snprintf(what, sizeof(what), "%s tickets: the server shows the last sent", flavours[i].name);
        observe_bool("GET4", what, SSL_get_session(p.server) == from_server.sessions[TICKETS - 1], 1);
        assert_false(same_id(from_server.sessions[0], from_server.sessions[TICKETS - 1]));
        tls_close(&p);
        observe_bool("GET4", i == 0 ? "stateful: the first ticket resumes as well"
                                    : "stateless: the first ticket resumes as well",
                     (SSL_CTX_sess_set_new_cb(client, NULL), SSL_CTX_sess_set_new_cb(server, NULL),
                      tls_resumes(client, server, from_client.sessions[0])), 1);
        forget(&from_client);
        forget(&from_server);
        free_ctxs(client, server);
    }
}

/* A record that no peer made: the server answers with a fatal alert, which the client then reads. */
static void inject_garbage(pair *p)
{
    static const unsigned char record[5 + 64] = { 23, 3, 3, 0, 64 };
    char byte;

    assert_int_equal(BIO_write(SSL_get_wbio(p->client), record, sizeof(record)), (int)sizeof(record));
    assert_true(SSL_read(p->server, &byte, 1) <= 0);
    assert_int_equal(SSL_get_error(p->server, 0), SSL_ERROR_SSL);
    assert_true(SSL_read(p->client, &byte, 1) <= 0);
}

static void GET5_a_bad_end_condemns_the_session(void **state)
{
    enum { GOOD, SENT_SHUTDOWN, DROPPED, FATAL, CLEARED, ENDS };
    static const struct { const char *name; int kept; } ends[ENDS] = {
        { "SSL_shutdown", 1 }, { "SSL_set_shutdown(SENT)", 1 }, { "SSL_free without SSL_shutdown", 0 },
        { "a fatal alert", 0 }, { "SSL_clear without SSL_shutdown", 0 },
    };
    char what[128];

    (void)state;
    for EACH_KIND(k)
        for (int end = 0; end < ENDS; end++) {
            SSL_CTX *client, *server;
            SSL_SESSION *ours, *theirs, *unmarked;
            pair p;

            caching_ctxs(k->version, &client, &server);
            p = tls_connect(client, server, NULL);
            ours = SSL_get1_session(p.server);
            theirs = SSL_get1_session(p.client);
            unmarked = SSL_SESSION_dup(theirs); /* to propose what the client itself would no longer propose */
            assert_true(in_cache(server, k->version, ours) && in_cache(client, k->version, theirs));
            if (end == SENT_SHUTDOWN) {
                SSL_set_shutdown(p.client, SSL_SENT_SHUTDOWN);
                SSL_set_shutdown(p.server, SSL_SENT_SHUTDOWN);
            }
            if (end == FATAL)
                inject_garbage(&p);
            if (end == CLEARED) {
                assert_int_equal(SSL_clear(p.client) && SSL_clear(p.server), 1);
                assert_null(SSL_get_session(p.client));
                assert_null(SSL_get_session(p.server));
            }
            if (end == GOOD)
                tls_close(&p);
            else
                tls_drop(&p);

            snprintf(what, sizeof(what), "%s: stays in the server's cache", ends[end].name);
            observe_bool("GET5", in(k, what), in_cache(server, k->version, ours), ends[end].kept);
            snprintf(what, sizeof(what), "%s: stays in the client's cache", ends[end].name);
            observe_bool("GET5", in(k, what), in_cache(client, k->version, theirs), ends[end].kept);
            snprintf(what, sizeof(what), "%s: both objects stay resumable", ends[end].name);
            observe_int("GET5", in(k, what), SSL_SESSION_is_resumable(ours) + SSL_SESSION_is_resumable(theirs),
                        2 * ends[end].kept);
            snprintf(what, sizeof(what), "%s: the server resumes it", ends[end].name);
            observe_bool("GET5", in(k, what), tls_resumes(client, server, unmarked), ends[end].kept);
            SSL_SESSION_free(ours);
            SSL_SESSION_free(theirs);
            SSL_SESSION_free(unmarked);
            free_ctxs(client, server);
        }
}

static int removals[2];
static SSL_CTX *owners[2];

static void count_removal(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)session;
    removals[ctx == owners[1]]++;
}

/* One object between two others in the cache of two contexts. Returns a bit for each promise that was kept. */
static int two_contexts(void *arg)
{
    SSL_CTX *first = server_ctx(TLS1_2_VERSION), *second = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *shared = made_session(TLS1_2_VERSION, 2);
    SSL_SESSION *around[4] = { made_session(TLS1_2_VERSION, 1), made_session(TLS1_2_VERSION, 3),
                               made_session(TLS1_2_VERSION, 4), made_session(TLS1_2_VERSION, 5) };
    int kept = 0, before = sessions_alive() - 5;

    (void)arg;
    for (int i = 0; i < 4; i++) /* the shared one expires neither first nor last: what stock makes of it is certain */
        SSL_SESSION_set_time(around[i], SSL_SESSION_get_time(shared) + (i % 2 == 0 ? -10 : 10));
    owners[0] = first;
    owners[1] = second;
    memset(removals, 0, sizeof(removals));
    SSL_CTX_sess_set_remove_cb(first, count_removal);
    SSL_CTX_sess_set_remove_cb(second, count_removal);
    SSL_CTX_add_session(first, around[0]);
    SSL_CTX_add_session(first, shared);
    SSL_CTX_add_session(first, around[1]);
    SSL_CTX_add_session(second, around[2]);
    kept |= SSL_CTX_add_session(second, shared);
    SSL_CTX_add_session(second, around[3]);
    kept |= (SSL_CTX_sess_number(first) == 3 && SSL_CTX_sess_number(second) == 3) << 1;

    /* a flush of the one reaches all that it holds, and nothing of the other */
    SSL_CTX_flush_sessions(first, 0);
    kept |= (SSL_CTX_sess_number(first) == 0 && !in_cache(first, TLS1_2_VERSION, shared)) << 2;
    kept |= (SSL_CTX_sess_number(second) == 3 && in_cache(second, TLS1_2_VERSION, shared)) << 3;
    kept |= (removals[0] == 3 && removals[1] == 0) << 4;

    kept |= (SSL_CTX_remove_session(second, shared) && SSL_CTX_sess_number(second) == 2) << 5;
    for (int i = 0; i < 4; i++)
        SSL_SESSION_free(around[i]);
    SSL_SESSION_free(shared);
    free_ctxs(first, second);
    kept |= (removals[1] == 3) << 6;
    kept |= (sessions_alive() == before) << 7;
    if (sessions_alive() > before)
        SSL_SESSION_free(shared); /* nobody else knows of that reference any more */
    return kept;
}

/* The expiry of the shared object changes while both hold it: each context judges by the new one. Stock may loop. */
static void GET6_expiry_changed_in_two_contexts(void **state)
{
    SSL_CTX *first, *second;
    SSL_SESSION *shared, *other;
    long now = (long)time(NULL);

    (void)state;
    if (subject() == STOCK)
        skip();
    first = server_ctx(TLS1_2_VERSION);
    second = server_ctx(TLS1_2_VERSION);
    shared = made_session(TLS1_2_VERSION, 1);
    other = made_session(TLS1_2_VERSION, 2);
    SSL_CTX_add_session(first, shared);
    SSL_CTX_add_session(first, other);
    SSL_CTX_add_session(second, shared);
    SSL_SESSION_set_time(shared, now - 1000);
    SSL_CTX_flush_sessions(first, now);
    assert_number(first, 1);
    assert_true(in_cache(second, TLS1_2_VERSION, shared));
    SSL_CTX_flush_sessions(second, now);
    assert_number(second, 0);
    SSL_SESSION_set_time(shared, now); /* no cache holds it now */
    SSL_SESSION_free(shared);
    SSL_SESSION_free(other);
    free_ctxs(first, second);
}

static void GET6_one_object_in_two_contexts(void **state)
{
    /* From 3.0 on stock loses track of it: no flush of the first context finds it, and its reference leaks. */
    char here[32];

    (void)state;
    if (subject() != STOCK)
        snprintf(here, sizeof(here), "returns %d", two_contexts(NULL));
    observe_deviation("GET6", "both hold it, each lets go of it by itself (bits)",
                      subject() == STOCK ? in_child(two_contexts, NULL, 10) : here, "returns 255");
}

/* Gives `to` the BIOs of `from`, which is freed. */
static void take_over(SSL **from, SSL *to)
{
    BIO *bio = SSL_get_rbio(*from);

    assert_int_equal(BIO_up_ref(bio), 1);
    SSL_set_bio(to, bio, bio);
    SSL_free(*from);
    *from = to;
}

static void GET1_SSL_dup_shares_the_session(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *offer;
        SSL *copy;
        pair p;

        caching_ctxs(k->version, &client, &server);
        offer = tls_session(client, server);
        p = tls_prepare(client, server);
        assert_int_equal(SSL_set_session(p.client, offer), 1);
        copy = SSL_dup(p.client);
        assert_non_null(copy);
        observe_bool("GET1", in(k, "SSL_dup before the handshake shares the session"),
                     copy != p.client && SSL_get_session(copy) == offer, 1);
        take_over(&p.client, copy);
        copy = SSL_dup(p.server);
        assert_ptr_not_equal(copy, p.server);
        take_over(&p.server, copy);
        assert_true(tls_drive(&p));
        observe_bool("GET1", in(k, "the copies resume"), tls_resumed(&p), 1);

        copy = SSL_dup(p.server);
        observe_bool("GET1", in(k, "SSL_dup of a connection is the connection"), copy == p.server, 1);
        SSL_free(copy);
        tls_close(&p);
        SSL_SESSION_free(offer);
        free_ctxs(client, server);
    }
}

static void shutdown_both(pair *p)
{
    for (int round = 0; round < 2; round++) {
        SSL_shutdown(p->client);
        SSL_shutdown(p->server);
    }
}

static void GET2_SSL_clear_keeps_a_well_closed_session(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client, *server;
        SSL_SESSION *session;
        pair p;

        caching_ctxs(k->version, &client, &server);
        p = tls_connect(client, server, NULL);
        session = SSL_get_session(p.client);
        shutdown_both(&p);
        assert_int_equal(SSL_clear(p.client) && SSL_clear(p.server), 1);
        observe_bool("GET2", in(k, "SSL_clear after SSL_shutdown keeps the session"),
                     SSL_get_session(p.client) == session && SSL_SESSION_is_resumable(session), 1);
        assert_true(tls_drive(&p));
        observe_bool("GET2", in(k, "the cleared SSL resumes it"), tls_resumed(&p), 1);
        assert_true(tls_echo(&p));
        tls_close(&p);
        free_ctxs(client, server);
    }
}

/* Renegotiation is a matter of TLS 1.2: the server refuses, which alone costs nobody a session. */
static void GET5_a_refused_renegotiation(void **state)
{
    SSL_CTX *client, *server;
    SSL_SESSION *session;
    char byte;
    pair p;

    (void)state;
    caching_ctxs(TLS1_2_VERSION, &client, &server);
    SSL_CTX_set_options(server, SSL_OP_NO_RENEGOTIATION);
    p = tls_connect(client, server, NULL);
    session = SSL_get1_session(p.server);
    assert_int_equal(SSL_renegotiate(p.server), 0);
    assert_int_equal(SSL_renegotiate(p.client), 1);
    assert_true(SSL_do_handshake(p.client) <= 0);
    assert_true(SSL_read(p.server, &byte, 1) <= 0);
    assert_int_equal(SSL_get_error(p.server, -1), SSL_ERROR_WANT_READ);
    observe_bool("GET5", "a renegotiation that the server refused: its session stays",
                 in_cache(server, TLS1_2_VERSION, session) && SSL_SESSION_is_resumable(session)
                 && SSL_get_session(p.server) == session, 1);

    /* The client takes the refusal for fatal and says so. */
    assert_true(SSL_do_handshake(p.client) <= 0);
    assert_true(SSL_read(p.server, &byte, 1) <= 0);
    observe_bool("GET5", "the client gives up over the refusal: the session stays",
                 in_cache(server, TLS1_2_VERSION, session), 0);
    SSL_SESSION_free(session);
    tls_drop(&p);
    free_ctxs(client, server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(GET1_same_pointer_and_no_reference),
        RULE_TEST(GET1_SSL_dup_shares_the_session),
        RULE_TEST(GET2_own_reference_outlives_the_rest),
        RULE_TEST(GET2_SSL_clear_keeps_a_well_closed_session),
        RULE_TEST(GET3_not_resumable_before_the_ticket),
        RULE_TEST(GET4_the_last_of_several_tickets),
        RULE_TEST(GET5_a_bad_end_condemns_the_session),
        RULE_TEST(GET5_a_refused_renegotiation),
        OBJECT_TEST(GET6_one_object_in_two_contexts),
        COUNTED_TEST(GET6_expiry_changed_in_two_contexts),
    };

    return RUN_PAGE("SSL_get_session", tests);
}
