/*
 * SSL_CTX_set_session_cache_mode(3): which sessions are stored, where they are looked up, and how long they stay,
 * for session ids up to TLS 1.2, for both kinds of TLS 1.3 tickets, and for DTLS.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* A way to resume. `stored`: the server needs its cache for it. A stateless ticket brings the session along. */
struct kind {
    const char *name;
    int version;
    uint64_t options;
    int stored;
    int told;                     /* sessions that new_cb hears of in one connection */
};
static const struct kind kinds[] = {
    { "TLS 1.2", TLS1_2_VERSION, SSL_OP_NO_TICKET, 1, 1 },
    { "TLS 1.3 stateful", TLS1_3_VERSION, SSL_OP_NO_TICKET, 1, 2 },
    { "TLS 1.3 stateless", TLS1_3_VERSION, 0, 0, 2 },
    { "DTLS 1.2", DTLS1_2_VERSION, SSL_OP_NO_TICKET, 1, 1 },
};
static const struct kind tls12_tickets = { "TLS 1.2 tickets", TLS1_2_VERSION, 0, 0, 1 };

#define EACH_KIND(k) (const struct kind *k = kinds; k < kinds + sizeof(kinds) / sizeof(kinds[0]); k++)
#define EACH_STORED_KIND(k) EACH_KIND(k) if (k->stored)

/* "TLS 1.2: what" */
static const char *in(const struct kind *k, const char *what)
{
    static char text[160];

    snprintf(text, sizeof(text), "%s: %s", k->name, what);
    return text;
}

/* ---- callbacks that count ---- */

static struct { int new_client, new_server, removed, asked; } calls;
static SSL_SESSION *external; /* what get_cb answers with; the application's own */

static int count_client(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    calls.new_client++;
    SSL_SESSION_free(session);
    return 1;
}

static int count_server(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    calls.new_server++;
    SSL_SESSION_free(session);
    return 1;
}

static void count_removed(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    calls.removed++;
}

static SSL_SESSION *answer(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    unsigned int known_length;
    const unsigned char *known;

    (void)ssl;
    calls.asked++;
    *copy = 1;
    if (external == NULL)
        return NULL;
    known = SSL_SESSION_get_id(external, &known_length);
    return (int)known_length == length && memcmp(known, id, known_length) == 0 ? external : NULL;
}

/* ---- a client and a server ---- */

struct ends { SSL_CTX *client, *server; };

static struct ends make_ends(const struct kind *k, long server_mode, long client_mode)
{
    struct ends e = { client_ctx(k->version), server_ctx(k->version) };

    memset(&calls, 0, sizeof(calls));
    external = NULL;
    SSL_CTX_set_options(e.server, k->options);
    SSL_CTX_set_session_cache_mode(e.server, server_mode);
    SSL_CTX_set_session_cache_mode(e.client, client_mode);
    SSL_CTX_sess_set_new_cb(e.server, count_server);
    SSL_CTX_sess_set_new_cb(e.client, count_client);
    return e;
}

static void free_ends(struct ends *e)
{
    SSL_CTX_free(e->client);
    SSL_CTX_free(e->server);
}

/* A connection, closed well; returns the client's session and the server's, a reference of each for the caller. */
static SSL_SESSION *connect_once(const struct ends *e, SSL_SESSION **of_server)
{
    pair p = tls_connect(e->client, e->server, NULL);
    SSL_SESSION *session = SSL_get1_session(p.client);

    *of_server = SSL_get1_session(p.server);
    tls_close(&p);
    return session;
}

/* ---- the tests ---- */

static void MODE1_default_and_previous(void **state)
{
    static const long modes[] = {
        SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_BOTH,
        SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_AUTO_CLEAR | SSL_SESS_CACHE_NO_INTERNAL,
        SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP,
        SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL_STORE,
        SSL_SESS_CACHE_SERVER | 0x0400 | 0x4000 | 0x0010, /* UPDATE_TIME, and bits that mean nothing */
        0x7fffffff,
    };
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    long previous = SSL_CTX_get_session_cache_mode(ctx);

    (void)state;
    observe_int("MODE1", "default mode", previous, SSL_SESS_CACHE_SERVER);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        char what[64];
        long returned = SSL_CTX_set_session_cache_mode(ctx, modes[i]);

        snprintf(what, sizeof(what), "mode 0x%lx: set returns the previous", modes[i]);
        observe_int("MODE1", what, returned, previous);
        snprintf(what, sizeof(what), "mode 0x%lx: get returns it", modes[i]);
        observe_int("MODE1", what, SSL_CTX_get_session_cache_mode(ctx), modes[i]);
        previous = modes[i];
    }
    observe_bool("MODE1", "CLIENT|SERVER is BOTH, NO_INTERNAL is both of its parts",
                 (SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_SERVER) == SSL_SESS_CACHE_BOTH
                 && (SSL_SESS_CACHE_NO_INTERNAL_LOOKUP | SSL_SESS_CACHE_NO_INTERNAL_STORE)
                    == SSL_SESS_CACHE_NO_INTERNAL, 1);
    SSL_CTX_free(ctx);
}

static void MODE2_off_stores_nothing(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_OFF);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        observe_int("MODE2", in(k, "sessions stored while OFF"),
                    SSL_CTX_sess_number(e.server) + SSL_CTX_sess_number(e.client), 0);
        observe_int("MODE2", in(k, "calls of new_cb while OFF"), calls.new_server + calls.new_client, 0);
        observe_bool("MODE2", in(k, "resumed while OFF"), tls_resumes(e.client, e.server, theirs),
                     !k->stored);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE2_off_takes_effect_at_once(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);
        pair p;

        SSL_CTX_set_session_cache_mode(e.server, SSL_SESS_CACHE_OFF);
        calls.new_server = 0;
        p = tls_connect(e.client, e.server, NULL);
        observe_int("MODE2", in(k, "new_cb after switching to OFF"), calls.new_server, 0);
        observe_bool("MODE2", in(k, "what was stored before stays stored"),
                     in_cache(e.server, k->version, ours)
                     && !in_cache(e.server, k->version, SSL_get_session(p.server)), 1);
        tls_close(&p);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE3_client_sessions_are_stored_not_chosen(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_CLIENT);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        observe_bool("MODE3", in(k, "the client's cache has its session"), in_cache(e.client, k->version, theirs), 1);
        observe_int("MODE3", in(k, "calls of the client's new_cb"), calls.new_client, k->told);
        observe_bool("MODE3", in(k, "chosen without SSL_set_session"), tls_resumes(e.client, e.server, NULL), 0);
        observe_bool("MODE3", in(k, "resumed with SSL_set_session"), tls_resumes(e.client, e.server, theirs), 1);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);

        /* the bit of the other side does nothing for a client */
        e = make_ends(k, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_SERVER);
        theirs = connect_once(&e, &ours);
        observe_int("MODE3", in(k, "stored or told with only the other side's bit"),
                    SSL_CTX_sess_number(e.client) + SSL_CTX_sess_number(e.server) + calls.new_client
                    + calls.new_server, 0);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE4_internal_first_then_get_cb(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        SSL_SESSION *theirs;

        SSL_CTX_sess_set_get_cb(e.server, answer);
        theirs = connect_once(&e, &external);
        calls.asked = 0;
        observe_bool("MODE4", in(k, "resumed from the internal cache"), tls_resumes(e.client, e.server, theirs), 1);
        observe_int("MODE4", in(k, "get_cb asked while the internal cache has it"), calls.asked, 0);

        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        theirs = connect_once(&e, &external);
        SSL_CTX_flush_sessions(e.server, 0); /* marks it: what an external cache has is read anew */
        SSL_SESSION_free(external);
        external = NULL;
        calls.asked = 0;
        observe_bool("MODE4", in(k, "resumed when neither has it"), tls_resumes(e.client, e.server, theirs), 0);
        observe_int("MODE4", in(k, "get_cb asked when the internal cache misses"), calls.asked, 1);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE4_both_sides(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_BOTH, SSL_SESS_CACHE_BOTH);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        observe_int("MODE4", in(k, "BOTH: calls of new_cb"), calls.new_client * 10 + calls.new_server,
                    k->told * 11);
        observe_int("MODE4", in(k, "BOTH: caches that have the session"),
                    in_cache(e.client, k->version, theirs) + in_cache(e.server, k->version, ours),
                    1 + k->stored);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

/* ---- MODE5: expired sessions ---- */

enum { EXPIRED = 2000, CONNECTIONS = 255 };

static void add_expired(SSL_CTX *ctx, int version, int count)
{
    for (int i = 0; i < count; i++) {
        SSL_SESSION *session = made_session(version, 0xee);
        unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH] = { 0xee, (unsigned char)(i >> 8), (unsigned char)i };

        assert_int_equal(SSL_SESSION_set1_id(session, id, sizeof(id)), 1);
        SSL_SESSION_set_time(session, (long)time(NULL) - 1000 - i);
        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
}

/* One after the other; returns how many removals the most expensive of them paid for. */
static int busiest_of(const struct ends *e, SSL_SESSION *offer, int connections)
{
    int busiest = 0;

    for (int i = 0; i < connections; i++) {
        int before = calls.removed;

        assert_int_equal(tls_resumes(e->client, e->server, offer), offer != NULL);
        if (calls.removed - before > busiest)
            busiest = calls.removed - before;
    }
    return busiest;
}

static void auto_clear(const struct kind *k, int server_side, int resumed)
{
    struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, server_side ? SSL_SESS_CACHE_OFF : SSL_SESS_CACHE_CLIENT);
    SSL_CTX *cache = server_side ? e.server : e.client;
    SSL_SESSION *ours, *offer;
    char what[128];
    int busiest;

    SSL_CTX_set_num_tickets(e.server, 1);
    SSL_CTX_sess_set_remove_cb(cache, count_removed);
    offer = connect_once(&e, &ours);
    add_expired(cache, k->version, EXPIRED);
    calls.removed = 0;
    busiest = busiest_of(&e, resumed ? offer : NULL, CONNECTIONS);

    snprintf(what, sizeof(what), "%s, %s, %s: expired left after %d connections", k->name,
             server_side ? "server" : "client", resumed ? "resumed" : "full", CONNECTIONS);
    observe_int("MODE5", what, EXPIRED - calls.removed, 0);
    snprintf(what, sizeof(what), "%s, %s, %s: cleared by the busiest connection", k->name,
             server_side ? "server" : "client", resumed ? "resumed" : "full");
    observe_deviation("MODE5", what,
                      busiest == EXPIRED ? "all" : busiest <= EXPIRED / 50 ? "a small share" : number(busiest),
                      "a small share");
    SSL_SESSION_free(ours);
    SSL_SESSION_free(offer);
    free_ends(&e);
}

/* Under valgrind hundreds of handshakes take a minute: one kind of sessions stands for all. */
#define EACH_KIND_IN_TIME(k) EACH_KIND(k) if (!slowly() || k == kinds)

static void MODE5_auto_clear(void **state)
{
    (void)state;
    for EACH_KIND_IN_TIME(k)
        auto_clear(k, 1, 0);
}

static void MODE5_auto_clear_by_resumed_connections(void **state)
{
    (void)state;
    for EACH_KIND_IN_TIME(k)
        if (k->version != TLS1_3_VERSION) /* there each ticket is offered once */
            auto_clear(k, 1, 1);
}

static void MODE5_auto_clear_by_ticket_connections(void **state)
{
    (void)state;
    if (slowly())
        skip();
    auto_clear(&tls12_tickets, 1, 1);
}

static void MODE5_auto_clear_of_clients(void **state)
{
    (void)state;
    for EACH_KIND_IN_TIME(k)
        auto_clear(k, 0, 0);
}

static void MODE5_auto_clear_of_clients_by_resumed_connections(void **state)
{
    (void)state;
    auto_clear(&kinds[0], 0, 1);
}

static void MODE5_no_auto_clear(void **state)
{
    (void)state;
    if (slowly())
        skip();
    for EACH_KIND(k) {
        struct ends e;

        if (!k->stored)
            continue;
        e = make_ends(k, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_AUTO_CLEAR, SSL_SESS_CACHE_OFF);

        SSL_CTX_sess_set_remove_cb(e.server, count_removed);
        add_expired(e.server, k->version, 50);
        busiest_of(&e, NULL, CONNECTIONS + 1);
        observe_int("MODE5", in(k, "NO_AUTO_CLEAR: cleared in 256 connections"), calls.removed, 0);
        SSL_CTX_flush_sessions(e.server, (long)time(NULL));
        observe_int("MODE5", in(k, "NO_AUTO_CLEAR: cleared by SSL_CTX_flush_sessions"), calls.removed, 50);
        free_ends(&e);
    }
}

/* ---- MODE6, MODE7: the internal cache left out ---- */

static void MODE6_no_internal_lookup(void **state)
{
    const long mode = SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP;

    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, mode, mode);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        observe_bool("MODE6", in(k, "stored by the server all the same"), in_cache(e.server, k->version, ours),
                     k->stored);
        observe_bool("MODE6", in(k, "stored by the client all the same"), in_cache(e.client, k->version, theirs), 1);
        observe_bool("MODE6", in(k, "found by the server"), tls_resumes(e.client, e.server, theirs),
                     !k->stored);
        if (k->stored) {
            SSL_CTX_sess_set_get_cb(e.server, answer);
            external = ours;
            calls.asked = 0;
            observe_bool("MODE6", in(k, "resumed through get_cb"), tls_resumes(e.client, e.server, theirs), 1);
            observe_int("MODE6", in(k, "get_cb asked while the internal cache has it"), calls.asked, 1);
            observe_int("MODE6", in(k, "misses counted"), SSL_CTX_sess_misses(e.server), 0);
        }
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE7_no_internal_store(void **state)
{
    const long mode = SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_INTERNAL_STORE;

    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, mode, mode);
        SSL_SESSION *theirs = connect_once(&e, &external);
        SSL_SESSION *by_hand = made_session(k->version, 7);

        observe_int("MODE7", in(k, "negotiated sessions in the internal caches"),
                    SSL_CTX_sess_number(e.server) + SSL_CTX_sess_number(e.client), 0);
        observe_int("MODE7", in(k, "new_cb is called all the same"), calls.new_client * 10 + calls.new_server,
                    k->told * 11);
        SSL_CTX_sess_set_get_cb(e.server, answer);
        observe_bool("MODE7", in(k, "resumed through get_cb"), tls_resumes(e.client, e.server, theirs), 1);
        observe_int("MODE7", in(k, "get_cb asked"), calls.asked, k->stored);
        observe_number("MODE7", in(k, "its answer in the internal cache"), e.server, 0);
        observe_int("MODE7", in(k, "added by hand"), SSL_CTX_add_session(e.server, by_hand), 1);
        SSL_SESSION_free(by_hand);
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);
    }
}

static void MODE7_get_cb_answers_are_stored_otherwise(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_OFF);
        SSL_SESSION *theirs = connect_once(&e, &external);

        SSL_CTX_sess_set_get_cb(e.server, answer);
        SSL_CTX_set_session_cache_mode(e.server, SSL_SESS_CACHE_SERVER);
        observe_bool("MODE7", in(k, "without the bit: resumed through get_cb"),
                     tls_resumes(e.client, e.server, theirs), 1);
        observe_bool("MODE7", in(k, "without the bit: its answer is in the internal cache"),
                     in_cache(e.server, k->version, external), 1);
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);
    }
}

static void MODE7_no_internal_is_both(void **state)
{
    const long mode = SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL;

    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, mode, SSL_SESS_CACHE_OFF);
        SSL_SESSION *theirs = connect_once(&e, &external);

        observe_number("MODE7", in(k, "NO_INTERNAL: stored"), e.server, 0);
        assert_int_equal(SSL_CTX_add_session(e.server, external), 1);
        observe_bool("MODE7", in(k, "NO_INTERNAL: found though added by hand"),
                     tls_resumes(e.client, e.server, theirs), 0);
        SSL_CTX_sess_set_get_cb(e.server, answer);
        observe_bool("MODE7", in(k, "NO_INTERNAL: resumed through get_cb"),
                     tls_resumes(e.client, e.server, theirs), 1);
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);
    }
}

/* ---- MODE8: time renewed by use ---- */

#ifdef SSL_SESS_CACHE_UPDATE_TIME
static int is_recent(const SSL_SESSION *session)
{
    return (long)time(NULL) - (long)SSL_SESSION_get_time(session) < 50;
}

/* `age` seconds old, good for 300. */
static void make_old(SSL_SESSION *session, long age)
{
    SSL_SESSION_set_timeout(session, 300);
    SSL_SESSION_set_time(session, (long)time(NULL) - age);
}

static void MODE8_internal_hit(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k)
        for (int update = 0; update < 2; update++) {
            struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER | (update ? SSL_SESS_CACHE_UPDATE_TIME : 0),
                                      SSL_SESS_CACHE_OFF);
            SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

            make_old(ours, 100);
            assert_true(tls_resumes(e.client, e.server, theirs));
            observe_bool("MODE8", in(k, update ? "internal hit: renewed" : "internal hit without the bit: renewed"),
                         is_recent(ours), update);
            SSL_SESSION_free(ours);
            SSL_SESSION_free(theirs);
            free_ends(&e);
        }
}

/* Renewed not in its number alone: the session lives on past its first expiry. */
static void MODE8_renewal_prolongs(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_UPDATE_TIME, SSL_SESS_CACHE_OFF);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        make_old(ours, 200);
        assert_true(tls_resumes(e.client, e.server, theirs));
        SSL_CTX_flush_sessions(e.server, (long)time(NULL) + 200);
        observe_bool("MODE8", in(k, "resumed at 200 of 300 s, cached at 400 s"),
                     in_cache(e.server, k->version, ours), 1);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&e);
    }
}

static void MODE8_external_hit(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k)
        for (int store = 0; store < 2; store++) {
            const long no_store = SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE;
            struct ends e = make_ends(k, no_store, SSL_SESS_CACHE_OFF);
            SSL_SESSION *theirs = connect_once(&e, &external);

            SSL_CTX_sess_set_get_cb(e.server, answer);
            SSL_CTX_set_session_cache_mode(e.server, (store ? SSL_SESS_CACHE_SERVER : no_store)
                                                     | SSL_SESS_CACHE_UPDATE_TIME);
            make_old(external, 100);
            assert_true(tls_resumes(e.client, e.server, theirs));
            observe_bool("MODE8", in(k, store ? "external hit: renewed" : "external hit under NO_INTERNAL_STORE: renewed"),
                         is_recent(external), 1);
            SSL_SESSION_free(theirs);
            SSL_SESSION_free(external);
            free_ends(&e);
        }
}

static void MODE8_never_when_expired(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_UPDATE_TIME, SSL_SESS_CACHE_OFF);
        SSL_SESSION *theirs = connect_once(&e, &external);

        make_old(external, 1000);
        observe_bool("MODE8", in(k, "internal, expired: resumed"), tls_resumes(e.client, e.server, theirs), 0);
        observe_bool("MODE8", in(k, "internal, expired: renewed"), is_recent(external), 0);
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);

        e = make_ends(k, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_OFF);
        theirs = connect_once(&e, &external);
        SSL_CTX_sess_set_get_cb(e.server, answer);
        SSL_CTX_set_session_cache_mode(e.server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_UPDATE_TIME);
        make_old(external, 1000);
        observe_bool("MODE8", in(k, "external, expired: resumed"), tls_resumes(e.client, e.server, theirs), 0);
        observe_bool("MODE8", in(k, "external, expired: renewed"), is_recent(external), 0);
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);
    }
}
#endif

/* ---- MODE9: whose session it is ---- */

static void MODE9_contexts_have_sessions_of_their_own(void **state)
{
    (void)state;
    for EACH_STORED_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        struct ends other = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        SSL_SESSION *ours, *theirs = connect_once(&e, &ours);

        observe_bool("MODE9", in(k, "another context has it"),
                     in_cache(other.server, k->version, ours) || SSL_CTX_sess_number(other.server) != 0, 0);
        observe_bool("MODE9", in(k, "another context resumes it"), tls_resumes(e.client, other.server, theirs), 0);
        observe_bool("MODE9", in(k, "its own context resumes it"), tls_resumes(e.client, e.server, theirs), 1);
        SSL_CTX_flush_sessions(other.server, 0);
        observe_bool("MODE9", in(k, "a flush of the other leaves it"), in_cache(e.server, k->version, ours), 1);
        SSL_SESSION_free(ours);
        SSL_SESSION_free(theirs);
        free_ends(&other);
        free_ends(&e);
    }
}

static void set_id_context(SSL_CTX *ctx, const char *id)
{
    assert_int_equal(SSL_CTX_set_session_id_context(ctx, (const unsigned char *)id, (unsigned int)strlen(id)), 1);
}

static void MODE9_another_session_id_context_is_a_miss(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        struct ends e = make_ends(k, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        SSL_SESSION *theirs = connect_once(&e, &external);

        set_id_context(e.server, "another");
        observe_bool("MODE9", in(k, "another session id context: resumed"),
                     tls_resumes(e.client, e.server, theirs), 0);
        set_id_context(e.server, "c_tests");
        if (k->stored) { /* nobody's fault: the session itself is good */
            observe_bool("MODE9", in(k, "another session id context: still cached"),
                         in_cache(e.server, k->version, external), 1);
            observe_bool("MODE9", in(k, "the first session id context again: resumed"),
                         tls_resumes(e.client, e.server, theirs), 1);
            set_id_context(e.server, "another");
            SSL_CTX_sess_set_get_cb(e.server, answer);
            SSL_CTX_set_session_cache_mode(e.server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
            observe_bool("MODE9", in(k, "another session id context, through get_cb: resumed"),
                         tls_resumes(e.client, e.server, theirs), 0);
        }
        SSL_SESSION_free(theirs);
        SSL_SESSION_free(external);
        free_ends(&e);
    }
}

/* ---- MODE10: what a TLS 1.3 server stores ---- */

static void MODE10_stored_by_tls13_servers(void **state)
{
    enum { ON_CTX, ON_SSL };
    static const struct {
        const char *what;
        uint64_t options;
        uint32_t early_data;
        int remove_cb, where, stored;
    } cases[] = {
        { "stateless", 0, 0, 0, ON_CTX, 0 },
        { "stateless with remove_cb", 0, 0, 1, ON_CTX, 2 },
        { "stateful", SSL_OP_NO_TICKET, 0, 0, ON_CTX, 2 },
        { "stateful with remove_cb", SSL_OP_NO_TICKET, 0, 1, ON_CTX, 2 },
        { "stateful by the option of one SSL", SSL_OP_NO_TICKET, 0, 0, ON_SSL, 2 },
        { "early data with anti-replay", 0, 16384, 0, ON_CTX, 2 },
        { "early data with anti-replay on one SSL", 0, 16384, 0, ON_SSL, 2 },
        { "early data without anti-replay", SSL_OP_NO_ANTI_REPLAY, 16384, 0, ON_CTX, 0 },
        { "early data without anti-replay on one SSL", SSL_OP_NO_ANTI_REPLAY, 16384, 0, ON_SSL, 0 },
    };
    char what[96];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ends e = make_ends(&kinds[2], SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF);
        pair p;

        if (cases[i].remove_cb)
            SSL_CTX_sess_set_remove_cb(e.server, count_removed);
        if (cases[i].where == ON_CTX) {
            SSL_CTX_set_options(e.server, cases[i].options);
            SSL_CTX_set_max_early_data(e.server, cases[i].early_data);
        }
        p = tls_prepare(e.client, e.server);
        if (cases[i].where == ON_SSL) {
            SSL_set_options(p.server, cases[i].options);
            SSL_set_max_early_data(p.server, cases[i].early_data);
        }
        assert_true(tls_drive(&p));
        snprintf(what, sizeof(what), "%s: sessions stored", cases[i].what);
        observe_number("MODE10", what, e.server, cases[i].stored);
        snprintf(what, sizeof(what), "%s: calls of new_cb", cases[i].what);
        observe_int("MODE10", what, calls.new_server, 2);
        tls_close(&p);
        free_ends(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(MODE1_default_and_previous),
        RULE_TEST(MODE2_off_stores_nothing),
        RULE_TEST(MODE2_off_takes_effect_at_once),
        RULE_TEST(MODE3_client_sessions_are_stored_not_chosen),
        RULE_TEST(MODE4_internal_first_then_get_cb),
        RULE_TEST(MODE4_both_sides),
        COUNTED_TEST(MODE5_auto_clear),
        COUNTED_TEST(MODE5_auto_clear_by_resumed_connections),
        COUNTED_TEST(MODE5_auto_clear_by_ticket_connections),
        COUNTED_TEST(MODE5_auto_clear_of_clients),
        COUNTED_TEST(MODE5_auto_clear_of_clients_by_resumed_connections),
        COUNTED_TEST(MODE5_no_auto_clear),
        RULE_TEST(MODE6_no_internal_lookup),
        RULE_TEST(MODE7_no_internal_store),
        RULE_TEST(MODE7_get_cb_answers_are_stored_otherwise),
        RULE_TEST(MODE7_no_internal_is_both),
#ifdef SSL_SESS_CACHE_UPDATE_TIME
        OBJECT_TEST(MODE8_internal_hit),
        RULE_TEST(MODE8_renewal_prolongs),
        RULE_TEST(MODE8_external_hit),
        RULE_TEST(MODE8_never_when_expired),
#endif
        RULE_TEST(MODE9_contexts_have_sessions_of_their_own),
        RULE_TEST(MODE9_another_session_id_context_is_a_miss),
        RULE_TEST(MODE10_stored_by_tls13_servers),
    };

    return RUN_PAGE("SSL_CTX_set_session_cache_mode", tests);
}
