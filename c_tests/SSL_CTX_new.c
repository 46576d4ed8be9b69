/*
 * SSL_CTX_new(3): the life of a context and of what it caches. Contexts die before their connections, connections
 * change over to another context (SNI), sessions outlive both; nothing may be lost, mixed up or freed twice.
 */
#include "harness.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
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

/* A server whose sessions are in its cache, one for each connection. */
static SSL_CTX *caching_server(int version)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(ctx, 1);
    return ctx;
}

static int has(SSL *ssl, const SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    return SSL_has_matching_session_id(ssl, id, length);
}

/* ---- remove_cb, and the context it names ---- */

static struct { int count; SSL_CTX *ctx; } removed;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)session;
    removed.count++;
    removed.ctx = ctx;
}

static void count_removals_of(SSL_CTX *ctx)
{
    removed.count = 0;
    removed.ctx = NULL;
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
}

/* ---- the same SSL, another connection ---- */

/* The server's SSL is cleared and meets a new client; what came before was closed well. */
static void reconnect(pair *p, SSL_CTX *client, SSL_SESSION *offer)
{
    BIO *client_bio, *server_bio;

    for (int round = 0; round < 2; round++) {
        SSL_shutdown(p->client);
        SSL_shutdown(p->server);
    }
    SSL_free(p->client);
    p->client = SSL_new(client);
    assert_non_null(p->client);
    assert_int_equal(BIO_new_bio_pair(&client_bio, 0, &server_bio, 0), 1);
    SSL_set_bio(p->client, client_bio, client_bio);
    SSL_set_bio(p->server, server_bio, server_bio);
    SSL_set_connect_state(p->client);
    if (offer != NULL)
        assert_int_equal(SSL_set_session(p->client, offer), 1);
    assert_int_equal(SSL_clear(p->server), 1);
    assert_true(tls_drive(p));
}

/* ---- the tests: who dies first ---- */

static void CB5_context_freed_before_its_connections(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = caching_server(k->version);
        SSL_SESSION *offer, *ours;
        pair p, q;

        count_removals_of(server);
        p = tls_connect(client, server, NULL);
        q = tls_connect(client, server, NULL);
        offer = SSL_get1_session(p.client);
        ours = SSL_get1_session(p.server);
        SSL_CTX_free(server); /* the connections hold it now */
        SSL_CTX_free(client);
        assert_true(tls_echo(&p));
        observe_bool("GET2", in(k, "context freed, connections alive: sessions stay cached"),
                     has(p.server, ours) && has(q.server, ours) && removed.count == 0, 1);
        tls_close(&p);
        observe_int("CB5", in(k, "context freed, a connection left: removals"), removed.count, 0);
        assert_true(tls_echo(&q));
        tls_close(&q);
        observe_int("CB5", in(k, "context freed, the last connection freed: removals"), removed.count, 2);
        observe_bool("GET2", in(k, "context gone: a session kept is readable, and marked"),
                     SSL_SESSION_get_protocol_version(ours) == k->version && !SSL_SESSION_is_resumable(ours), 1);
        SSL_SESSION_free(offer);
        SSL_SESSION_free(ours);
    }
}

static void GET2_resuming_on_an_SSL_whose_context_was_freed(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *server = caching_server(k->version), *still;
        SSL_SESSION *offer;
        pair p;

        p = tls_connect(client, server, NULL);
        offer = SSL_get1_session(p.client);
        SSL_CTX_free(server);
        reconnect(&p, client, offer);
        observe_bool("GET2", in(k, "context freed, its SSL cleared: resumed"), tls_resumed(&p), 1);
        SSL_SESSION_free(offer);
        offer = SSL_get1_session(p.client);

        still = SSL_get_SSL_CTX(p.server);
        observe_bool("GET2", in(k, "context freed, a new SSL from the one alive: resumed"),
                     tls_resumes(client, still, offer), 1);
        SSL_SESSION_free(offer);
        tls_close(&p);
        SSL_CTX_free(client);
    }
}

static void GET2_sessions_outlive_their_context(void **state)
{
    SSL_CTX *ctx = caching_server(TLS1_2_VERSION), *next;
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 1), *copy;
    int before = sessions_alive();

    (void)state;
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    SSL_CTX_free(ctx);
    observe_int("GET2", "context gone: sessions alive", sessions_alive() - before, 0);
    SSL_SESSION_set_timeout(session, 1000); /* may not reach for a context that is gone */
    SSL_SESSION_set_time(session, (long)time(NULL));
    copy = SSL_SESSION_dup(session);
    assert_non_null(copy);

    next = caching_server(TLS1_2_VERSION);
    observe_int("GET2", "context gone: its session is added to another", SSL_CTX_add_session(next, session), 1);
    observe_bool("GET2", "context gone: the other context has it", in_cache(next, TLS1_2_VERSION, session), 1);
    SSL_CTX_free(next);
    SSL_SESSION_free(session);
    SSL_SESSION_free(copy);
}

static void CB5_up_ref_and_free(void **state)
{
    SSL_CTX *ctx = caching_server(TLS1_2_VERSION);
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);

    (void)state;
    count_removals_of(ctx);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    assert_int_equal(SSL_CTX_up_ref(ctx), 1);
    SSL_CTX_free(ctx);
    observe_bool("CB5", "SSL_CTX_free with a reference left: the cache is as it was",
                 removed.count == 0 && in_cache(ctx, TLS1_2_VERSION, session)
                 && SSL_CTX_sess_get_remove_cb(ctx) == on_remove, 1);
    SSL_CTX_free(ctx);
    observe_bool("CB5", "SSL_CTX_free of the last reference: remove_cb, with that context",
                 removed.count == 1 && removed.ctx == ctx, 1);
    SSL_SESSION_free(session);
}

/* A new context often gets the address of one that is gone: nothing of that one may show. */
static int is_fresh(SSL_CTX *ctx)
{
    return SSL_CTX_get_session_cache_mode(ctx) == SSL_SESS_CACHE_SERVER && SSL_CTX_sess_number(ctx) == 0
        && SSL_CTX_sess_get_cache_size(ctx) == SSL_SESSION_CACHE_MAX_SIZE_DEFAULT
        && SSL_CTX_sess_get_remove_cb(ctx) == NULL && SSL_CTX_sess_get_get_cb(ctx) == NULL
        && SSL_CTX_sess_get_new_cb(ctx) == NULL;
}

static void silent(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
}

static int count_unfresh(int rounds)
{
    int unfresh = 0;

    for (int i = 0; i < rounds; i++) {
        SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
        SSL_SESSION *session = made_session(TLS1_2_VERSION, (unsigned char)i);

        unfresh += !is_fresh(ctx);
        SSL_CTX_sess_set_remove_cb(ctx, silent);
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        SSL_CTX_sess_set_cache_size(ctx, 3);
        unfresh += !added(ctx, session);
        SSL_SESSION_free(session);
        SSL_CTX_free(ctx);
    }
    return unfresh;
}

enum { MANY = 300 };

/* valgrind takes a third of a second for each context. */
static int how_many(void)
{
    return slowly() ? 30 : MANY;
}

static void MODE9_many_contexts(void **state)
{
    SSL_CTX *all[MANY];
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 9);
    int many = how_many(), lost = 0;

    (void)state;
    observe_int("MODE9", "many contexts one after the other: with something of another", count_unfresh(many), 0);
    for (int i = 0; i < many; i++) {
        SSL_SESSION *own = made_session(TLS1_2_VERSION, (unsigned char)i);

        all[i] = caching_server(TLS1_2_VERSION);
        assert_int_equal(SSL_CTX_add_session(all[i], own), 1);
        SSL_SESSION_free(own);
    }
    for (int i = 0; i < many; i += 2) /* every other one goes */
        SSL_CTX_free(all[i]);
    for (int i = 1; i < many; i += 2)
        lost += !numbers(all[i], 1) || in_cache(all[i], TLS1_2_VERSION, session) != (i % 256 == 9);
    observe_int("MODE9", "many contexts, half of them freed: others that lack what was theirs", lost, 0);
    for (int i = 1; i < many; i += 2)
        SSL_CTX_free(all[i]);
    SSL_SESSION_free(session);
}

static void *count_unfresh_of_thread(void *unfresh)
{
    *(int *)unfresh = count_unfresh(how_many() / 3);
    return NULL;
}

static void MODE9_contexts_of_several_threads(void **state)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    int unfresh[THREADS], sum = 0;

    (void)state;
    count_unfresh(1); /* the harness makes its key */
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_unfresh_of_thread, &unfresh[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum += unfresh[i];
    }
    observe_int("MODE9", "4 threads with many contexts each: with something of another", sum, 0);
}

/* ---- SNI: the SSL changes over, its cache does not ---- */

static SSL_CTX *switch_to;

static int on_servername(SSL *ssl, int *alert, void *arg)
{
    (void)alert, (void)arg;
    assert_ptr_equal(SSL_set_SSL_CTX(ssl, switch_to), switch_to);
    return SSL_TLSEXT_ERR_OK;
}

static int on_client_hello(SSL *ssl, int *alert, void *arg)
{
    (void)alert, (void)arg;
    assert_ptr_equal(SSL_set_SSL_CTX(ssl, switch_to), switch_to);
    return SSL_CLIENT_HELLO_SUCCESS;
}

enum way { BY_SERVERNAME, BY_CLIENT_HELLO, WAYS };
static const char *const way_names[WAYS] = { "servername callback", "client_hello callback" };

static void set_switch(SSL_CTX *first, SSL_CTX *second, enum way way)
{
    switch_to = second;
    if (way == BY_SERVERNAME)
        SSL_CTX_set_tlsext_servername_callback(first, on_servername);
    else
        SSL_CTX_set_client_hello_cb(first, on_client_hello, NULL);
}

static pair connect_named(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    pair p = tls_prepare(client, server);

    assert_int_equal(SSL_set_tlsext_host_name(p.client, "localhost"), 1);
    if (offer != NULL)
        assert_int_equal(SSL_set_session(p.client, offer), 1);
    assert_true(tls_drive(&p));
    return p;
}

static int told_first, told_second;

static int on_new_of_first(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(session);
    told_first++;
    return 1;
}

static int on_new_of_second(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(session);
    told_second++;
    return 1;
}

static void MODE9_switched_connections_cache_where_they_were_made(void **state)
{
    char what[128];

    (void)state;
    for EACH_KIND(k)
        for (int way = 0; way < WAYS; way++) {
            SSL_CTX *client = client_ctx(k->version);
            SSL_CTX *first = caching_server(k->version), *second = caching_server(k->version);
            SSL_SESSION *ours, *offer;
            pair p;

            set_switch(first, second, (enum way)way);
            told_first = told_second = 0;
            SSL_CTX_sess_set_new_cb(first, on_new_of_first);
            SSL_CTX_sess_set_new_cb(second, on_new_of_second);
            count_removals_of(first);
            p = connect_named(client, first, NULL);
            assert_ptr_equal(SSL_get_SSL_CTX(p.server), second);
            ours = SSL_get1_session(p.server);
            offer = SSL_get1_session(p.client);

            snprintf(what, sizeof(what), "switched by %s: stored in the context it was made with", way_names[way]);
            observe_bool("MODE9", in(k, what), in_cache(first, k->version, ours) && told_first == 1, 1);
            snprintf(what, sizeof(what), "switched by %s: stored in the context it changed over to", way_names[way]);
            observe_bool("MODE9", in(k, what), in_cache(second, k->version, ours) || SSL_CTX_sess_number(second) > 0
                                               || told_second > 0, 0);
            observe_bool("ID1", in(k, "a switched SSL asks the context it was made with"), has(p.server, ours), 1);
            tls_close(&p);

            p = connect_named(client, first, offer);
            snprintf(what, sizeof(what), "switched by %s: resumed", way_names[way]);
            observe_bool("MODE9", in(k, what), tls_resumed(&p), 1);
            assert_ptr_equal(SSL_get_SSL_CTX(p.server), second);
            SSL_SESSION_free(ours);
            ours = SSL_get1_session(p.server);
            SSL_SESSION_free(offer);
            offer = SSL_get1_session(p.client);
            removed.count = 0;
            tls_drop(&p); /* condemned, where it was stored */
            snprintf(what, sizeof(what), "switched by %s: a bad end reaches the cache it is in", way_names[way]);
            observe_bool("GET5", in(k, what), !in_cache(first, k->version, ours) && removed.count == 1
                                              && removed.ctx == first, 1);
            SSL_SESSION_free(offer);
            offer = tls_session(client, second);
            snprintf(what, sizeof(what), "switched by %s: one of the other context's own is resumed", way_names[way]);
            p = connect_named(client, first, offer);
            observe_bool("MODE9", in(k, what), tls_resumed(&p), 0);
            tls_close(&p);
            SSL_SESSION_free(ours);
            SSL_SESSION_free(offer);
            SSL_CTX_free(client);
            SSL_CTX_free(first);
            SSL_CTX_free(second);
        }
}

/* The mode of the context that the SSL was made with counts; OFF in the other takes the id from a TLS 1.2 session. */
static void MODE9_modes_of_switched_connections(void **state)
{
    const long server = SSL_SESS_CACHE_SERVER, no_internal = SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL;
    const struct { const char *what; long first, second; int stored_tls12, stored_tls13; } cases[] = {
        { "switched, NO_INTERNAL in the other context: stored", server, no_internal, 1, 1 },
        { "switched, OFF in the other context: stored", server, SSL_SESS_CACHE_OFF, 0, 1 },
        { "switched, NO_INTERNAL in the first context: stored", no_internal, server, 0, 0 },
        { "switched, OFF in the first context: stored", SSL_SESS_CACHE_OFF, server, 0, 0 },
    };

    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version), *first, *second;
        pair p;

        for (int i = 0; i < 4; i++) {
            const int stored = k->version == TLS1_3_VERSION ? cases[i].stored_tls13 : cases[i].stored_tls12;

            first = caching_server(k->version);
            second = caching_server(k->version);
            SSL_CTX_set_session_cache_mode(first, cases[i].first);
            SSL_CTX_set_session_cache_mode(second, cases[i].second);
            set_switch(first, second, BY_SERVERNAME);
            p = connect_named(client, first, NULL);
            observe_int("MODE9", in(k, cases[i].what), SSL_CTX_sess_number(first) + 10 * SSL_CTX_sess_number(second),
                        stored);
            tls_close(&p);
            SSL_CTX_free(first);
            SSL_CTX_free(second);
        }
        SSL_CTX_free(client);
    }
}

/* Whichever of the two the application frees first, the SSL holds both. */
static void GET2_contexts_freed_under_a_switched_connection(void **state)
{
    (void)state;
    for EACH_KIND(k)
        for (int order = 0; order < 2; order++) {
            SSL_CTX *client = client_ctx(k->version);
            SSL_CTX *first = caching_server(k->version), *second = caching_server(k->version);
            const int tickets = k->version == TLS1_3_VERSION ? 2 : 1;
            SSL_SESSION *ours, *offer;
            pair p;

            set_switch(first, second, BY_SERVERNAME);
            count_removals_of(first);
            p = connect_named(client, first, NULL);
            ours = SSL_get1_session(p.server);
            offer = SSL_get1_session(p.client);
            SSL_CTX_free(order == 0 ? first : second);
            observe_bool("GET2", in(k, order == 0 ? "switched, then the first context freed: still cached"
                                                  : "switched, then the other context freed: still cached"),
                         has(p.server, ours) && removed.count == 0, 1);
            reconnect(&p, client, offer);
            observe_bool("GET2", in(k, order == 0 ? "switched, then the first context freed: the SSL resumes"
                                                  : "switched, then the other context freed: the SSL resumes"),
                         tls_resumed(&p), 1);
            SSL_CTX_free(order == 0 ? second : first);
            assert_true(tls_echo(&p));
            removed.count = 0;
            tls_close(&p);
            observe_int("CB5", in(k, order == 0 ? "switched, first context freed first: removals at the end"
                                                : "switched, other context freed first: removals at the end"),
                        removed.count, tickets);
            SSL_SESSION_free(ours);
            SSL_SESSION_free(offer);
            SSL_CTX_free(client);
        }
}

/* There, on to a third, and back: the cache is always that of the context the SSL was made with. */
static void MODE9_switched_several_times(void **state)
{
    (void)state;
    for EACH_KIND(k)
        for (int back = 0; back < 2; back++) {
            SSL_CTX *client = client_ctx(k->version), *third = caching_server(k->version);
            SSL_CTX *first = caching_server(k->version), *second = caching_server(k->version);
            pair p = tls_prepare(client, first);

            assert_ptr_equal(SSL_set_SSL_CTX(p.server, second), second);
            assert_ptr_equal(SSL_set_SSL_CTX(p.server, third), third);
            if (back)
                assert_ptr_equal(SSL_set_SSL_CTX(p.server, NULL), first);
            assert_true(tls_drive(&p));
            observe_int("MODE9", in(k, back ? "switched twice and back: contexts that stored it"
                                            : "switched twice: contexts that stored it"),
                        100 * SSL_CTX_sess_number(first) + 10 * SSL_CTX_sess_number(second)
                        + SSL_CTX_sess_number(third), 100);
            tls_close(&p);
            SSL_CTX_free(client);
            SSL_CTX_free(first);
            SSL_CTX_free(second);
            SSL_CTX_free(third);
        }
}

/* SSL_dup makes its copy with the context that the SSL has changed over to: that one caches. */
static void MODE9_SSL_dup_of_a_switched_SSL(void **state)
{
    (void)state;
    for EACH_KIND(k) {
        SSL_CTX *client = client_ctx(k->version);
        SSL_CTX *first = caching_server(k->version), *second = caching_server(k->version);
        SSL_SESSION *offer;
        pair p = tls_prepare(client, first);
        BIO *bio = SSL_get_rbio(p.server);
        SSL *copy;

        assert_ptr_equal(SSL_set_SSL_CTX(p.server, second), second);
        copy = SSL_dup(p.server);
        assert_non_null(copy);
        assert_ptr_equal(SSL_get_SSL_CTX(copy), second);
        assert_int_equal(BIO_up_ref(bio), 1);
        SSL_set_bio(copy, bio, bio);
        SSL_free(p.server);
        p.server = copy;
        assert_true(tls_drive(&p));
        observe_int("MODE9", in(k, "SSL_dup of a switched SSL: contexts that stored it"),
                    10 * SSL_CTX_sess_number(first) + SSL_CTX_sess_number(second), 1);
        offer = SSL_get1_session(p.client);
        tls_close(&p);
        observe_bool("MODE9", in(k, "SSL_dup of a switched SSL: the other context resumes"),
                     tls_resumes(client, second, offer), 1);
        SSL_SESSION_free(offer);
        SSL_CTX_free(client);
        SSL_CTX_free(first);
        SSL_CTX_free(second);
    }
}

/* ---- flushed, used again, freed ---- */

static void CB5_flush_of_all_then_more_use(void **state)
{
    (void)state;
    for EACH_KIND(k)
        for (int late = 0; late < 2; late++) {
            SSL_CTX *client = client_ctx(k->version), *server = caching_server(k->version);
            const int tickets = k->version == TLS1_3_VERSION ? 2 : 1; /* a TLS 1.3 resumption brings a new one */
            SSL_SESSION *offer;

            count_removals_of(server);
            SSL_CTX_flush_sessions(server, 0);
            observe_int("CB5", in(k, "flush of an empty cache: removals"), removed.count, 0);
            for (int round = 1; round <= 3; round++) {
                offer = tls_session(client, server);
                SSL_CTX_flush_sessions(server, late ? LONG_MAX : 0);
                observe_int("CB5", in(k, late ? "flush at the end of time: removals" : "flush of all: removals"),
                            removed.count, 1);
                assert_number(server, 0);
                assert_false(tls_resumes(client, server, offer)); /* a full handshake, so one more is cached */
                SSL_SESSION_free(offer);
                assert_number(server, 1);
                SSL_CTX_flush_sessions(server, late ? LONG_MAX : 0);
                removed.count = 0;
            }
            offer = tls_session(client, server);
            observe_bool("GET2", in(k, late ? "flushes at the end of time, then a new session: resumed"
                                            : "flushes of all, then a new session: resumed"),
                         tls_resumes(client, server, offer), 1);
            SSL_SESSION_free(offer);
            removed.count = 0;
            SSL_CTX_free(server);
            observe_int("CB5", in(k, late ? "flushes at the end of time, then freed: removals"
                                          : "flushes of all, then freed: removals"),
                        removed.count, tickets);
            SSL_CTX_free(client);
        }
}

/* ---- ex_data of a context that is being freed ---- */

struct diary { int removals, frees, removals_at_free; };

static int lower_index, upper_index;

static void diary_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int index, long argl, void *argp)
{
    struct diary *diary = ptr;

    (void)parent, (void)ad, (void)index, (void)argl, (void)argp;
    if (diary == NULL)
        return;
    diary->frees++;
    diary->removals_at_free = diary->removals;
}

static void write_diary(SSL_CTX *ctx, SSL_SESSION *session)
{
    struct diary *lower = SSL_CTX_get_ex_data(ctx, lower_index), *upper = SSL_CTX_get_ex_data(ctx, upper_index);

    (void)session;
    lower->removals++;
    upper->removals++;
}

static void CB5_ex_data_while_the_context_is_freed(void **state)
{
    struct diary lower = { 0, 0, 0 }, upper = { 0, 0, 0 };
    SSL_CTX *ctx;

    (void)state;
    lower_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, diary_free);
    ctx = server_ctx(TLS1_2_VERSION);
    upper_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, diary_free);
    SSL_CTX_set_ex_data(ctx, lower_index, &lower);
    SSL_CTX_set_ex_data(ctx, upper_index, &upper);
    SSL_CTX_sess_set_remove_cb(ctx, write_diary);
    for (unsigned char i = 0; i < 5; i++) {
        SSL_SESSION *session = made_session(TLS1_2_VERSION, i);

        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
    SSL_CTX_free(ctx);
    observe_int("CB5", "SSL_CTX_free: remove_cb calls that read the context's ex_data", lower.removals, 5);
    observe_bool("CB5", "SSL_CTX_free: ex_data is freed once, after the last remove_cb",
                 lower.frees == 1 && upper.frees == 1 && lower.removals_at_free == 5 && upper.removals_at_free == 5,
                 1);
}

#if OPENSSL_VERSION_NUMBER >= 0x30000000L
/* Each library context numbers its ex_data by itself: indices of two may be equal and mean different things. */
static void CB5_context_of_another_library_context(void **state)
{
    OSSL_LIB_CTX *library = OSSL_LIB_CTX_new(), *usual;
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 1), *other = made_session(TLS1_2_VERSION, 2);
    SSL_SESSION *third = made_session(TLS1_2_VERSION, 3);
    SSL_CTX *here = server_ctx(TLS1_2_VERSION), *there, *explicit;

    (void)state;
    explicit = SSL_CTX_new_ex(library, NULL, TLS_server_method());
    assert_non_null(explicit);
    usual = OSSL_LIB_CTX_set0_default(library);
    there = SSL_CTX_new(TLS_server_method());
    assert_non_null(there);
    assert_int_equal(SSL_CTX_add_session(there, session), 1);
    OSSL_LIB_CTX_set0_default(usual);
    assert_int_equal(SSL_CTX_add_session(here, other), 1);
    assert_int_equal(SSL_CTX_add_session(explicit, third), 1);
    observe_bool("MODE9", "contexts of two library contexts: each has its own",
                 in_cache(there, TLS1_2_VERSION, session) && !in_cache(there, TLS1_2_VERSION, other)
                 && numbers(here, 1) && numbers(explicit, 1), 1);
    count_removals_of(there);
    SSL_CTX_free(there);
    observe_bool("CB5", "context of another library context: remove_cb when freed",
                 removed.count == 1 && removed.ctx == there, 1);
    SSL_CTX_free(explicit);
    SSL_CTX_free(here);
    SSL_SESSION_free(session);
    SSL_SESSION_free(other);
    SSL_SESSION_free(third);
    OSSL_LIB_CTX_free(library);
}
#endif

/* A function as libssl itself has it, whoever stands before it. */
static void *of_libssl(const char *name)
{
    static const char *const libraries[] = { "libssl.so.3", "libssl.so.4", "libssl.so.1.1" };

    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        void *library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
        void *function = library == NULL ? NULL : dlsym(library, name);

        if (function != NULL)
            return function;
    }
    return NULL;
}

/* ---- set past the preload: a program that finds libssl's functions by itself ---- */

enum { PAST_NEW = 1, PAST_GET = 2, PAST_REMOVE = 4, PAST_MODE = 8, PAST_SIZE = 16 };

static struct { int new, get, remove, usual_new, usual_get; } calls;

static int usual_new_cb(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl, (void)session;
    calls.usual_new++;
    return 0;
}

static SSL_SESSION *usual_get_cb(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    calls.usual_get++;
    return NULL;
}

static int past_new_cb(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    calls.new++;
    SSL_SESSION_free(session);
    return 1;
}

static SSL_SESSION *past_get_cb(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    calls.get++;
    return NULL;
}

static void past_remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    calls.remove++;
}

static void set_past(SSL_CTX *ctx, int what)
{
    void (*set_new_cb)(SSL_CTX *, int (*)(SSL *, SSL_SESSION *)) = NULL;
    void (*set_get_cb)(SSL_CTX *, SSL_SESSION *(*)(SSL *, const unsigned char *, int, int *)) = NULL;
    void (*set_remove_cb)(SSL_CTX *, void (*)(SSL_CTX *, SSL_SESSION *)) = NULL;
    long (*ctrl)(SSL_CTX *, int, long, void *) = NULL;

    *(void **)&set_new_cb = of_libssl("SSL_CTX_sess_set_new_cb");
    *(void **)&set_get_cb = of_libssl("SSL_CTX_sess_set_get_cb");
    *(void **)&set_remove_cb = of_libssl("SSL_CTX_sess_set_remove_cb");
    *(void **)&ctrl = of_libssl("SSL_CTX_ctrl");
    assert_true(set_new_cb != NULL && set_get_cb != NULL && set_remove_cb != NULL && ctrl != NULL);
    if (what & PAST_NEW)
        set_new_cb(ctx, past_new_cb);
    if (what & PAST_GET)
        set_get_cb(ctx, past_get_cb);
    if (what & PAST_REMOVE)
        set_remove_cb(ctx, past_remove_cb);
    if (what & PAST_MODE)
        ctrl(ctx, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_BOTH, NULL);
    if (what & PAST_SIZE)
        ctrl(ctx, SSL_CTRL_SET_SESS_CACHE_SIZE, 50, NULL);
}

/*
 * Everything is as on stock from then on: what was set either way counts, and no cached session is lost, not for the
 * connection either that notices.
 */
static void CB1_set_past_the_preload(void **state)
{
    static const struct { const char *name; int what; } cases[] = {
        { "new_cb", PAST_NEW }, { "get_cb", PAST_GET }, { "remove_cb", PAST_REMOVE },
        { "two callbacks", PAST_NEW | PAST_REMOVE }, { "three callbacks", PAST_NEW | PAST_GET | PAST_REMOVE },
        { "the mode", PAST_MODE }, { "the size", PAST_SIZE },
        { "everything", PAST_NEW | PAST_GET | PAST_REMOVE | PAST_MODE | PAST_SIZE },
    };

    static const char all[] = "by who was there: 1, from before: 1, from after: 1";
    static const char but_one[] = "by who was there: 0, from before: 1, from after: 1"; /* it calls nothing of Reprise's */

    (void)state;
    for EACH_KIND(k)
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
            SSL_CTX *server = caching_server(k->version), *client = client_ctx(k->version);
            SSL_SESSION *before, *prepared, *after, *removed_one;
            int resumed[3], what = cases[i].what;
            char name[100], seen[200], expected[200];
            pair p;

            SSL_CTX_sess_set_cache_size(server, 100);
            SSL_CTX_sess_set_get_cb(server, usual_get_cb);
            count_removals_of(server);
            memset(&calls, 0, sizeof(calls));
            before = tls_session(client, server);
            prepared = tls_session(client, server);
            assert_true(tls_resumes(client, server, before));
            p = tls_connect(client, server, NULL);
            removed_one = SSL_get1_session(p.server);
            tls_close(&p);
            p = tls_prepare(client, server);
            assert_int_equal(SSL_set_session(p.client, prepared), 1);
            SSL_CTX_sess_set_new_cb(server, usual_new_cb);
            set_past(server, what);

            assert_true(tls_drive(&p));
            resumed[0] = tls_resumed(&p);
            tls_close(&p);
            after = tls_session(client, server);
            resumed[1] = tls_resumes(client, server, before);
            resumed[2] = tls_resumes(client, server, after);
            snprintf(name, sizeof(name), "%s set past the preload: resumed", cases[i].name);
            snprintf(seen, sizeof(seen), "by who was there: %d, from before: %d, from after: %d", resumed[0], resumed[1],
                     resumed[2]);
            /* Where nothing of Reprise's is called any more, nobody can tell a connection that is there already. */
            observe_deviation("CB1", in(k, name), seen, what & PAST_GET ? but_one : all);

            removed.count = 0;
            assert_int_equal(SSL_CTX_remove_session(server, removed_one), 1);
            snprintf(name, sizeof(name), "%s set past the preload: what is got and called", cases[i].name);
            snprintf(seen, sizeof(seen), "new %s, get %s, remove %s, mode %#lx, size %ld",
                     SSL_CTX_sess_get_new_cb(server) == past_new_cb && calls.new > 0 ? "past"
                     : SSL_CTX_sess_get_new_cb(server) == usual_new_cb && calls.new == 0 ? "usual" : "?",
                     SSL_CTX_sess_get_get_cb(server) == past_get_cb ? "past"
                     : SSL_CTX_sess_get_get_cb(server) == usual_get_cb && calls.get == 0 ? "usual" : "?",
                     SSL_CTX_sess_get_remove_cb(server) == past_remove_cb && calls.remove > 0 ? "past"
                     : SSL_CTX_sess_get_remove_cb(server) == on_remove && removed.count == 1 ? "usual" : "?",
                     SSL_CTX_get_session_cache_mode(server), SSL_CTX_sess_get_cache_size(server));
            snprintf(expected, sizeof(expected), "new %s, get %s, remove %s, mode %#x, size %d",
                     what & PAST_NEW ? "past" : "usual", what & PAST_GET ? "past" : "usual",
                     what & PAST_REMOVE ? "past" : "usual",
                     what & PAST_MODE ? SSL_SESS_CACHE_BOTH : SSL_SESS_CACHE_SERVER,
                     what & PAST_SIZE ? 50 : 100);
            observe("CB1", in(k, name), seen, expected);

            snprintf(name, sizeof(name), "%s set past the preload: statistics", cases[i].name);
            snprintf(seen, sizeof(seen), "number=%ld hits=%ld cb_hits=%ld misses=%ld", SSL_CTX_sess_number(server),
                     SSL_CTX_sess_hits(server), SSL_CTX_sess_cb_hits(server), SSL_CTX_sess_misses(server));
            snprintf(expected, sizeof(expected), "number=%d hits=4 cb_hits=0 misses=0",
                     k->version == TLS1_3_VERSION ? 7 : 3);
            if (subject() == STOCK_LIKE && what & PAST_MODE) /* libssl itself has looked, and had nothing yet */
                *strrchr(expected, '0') = '1';
            if (!(what & PAST_GET))
                observe_deviation("CB1", in(k, name), seen, expected);
            SSL_CTX_flush_sessions(server, 0);
            snprintf(name, sizeof(name), "%s set past the preload: resumed after a flush", cases[i].name);
            observe_int("CB1", in(k, name), tls_resumes(client, server, after), 0);
            SSL_SESSION_free(before);
            SSL_SESSION_free(prepared);
            SSL_SESSION_free(after);
            SSL_SESSION_free(removed_one);
            SSL_CTX_free(client);
            SSL_CTX_free(server);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(CB1_set_past_the_preload),
        OBJECT_TEST(CB5_context_freed_before_its_connections),
        RULE_TEST(GET2_resuming_on_an_SSL_whose_context_was_freed),
        RULE_TEST(GET2_sessions_outlive_their_context),
        OBJECT_TEST(CB5_up_ref_and_free),
        RULE_TEST(MODE9_many_contexts),
        RULE_TEST(MODE9_contexts_of_several_threads),
        RULE_TEST(MODE9_switched_connections_cache_where_they_were_made),
        COUNTED_TEST(MODE9_modes_of_switched_connections),
        OBJECT_TEST(GET2_contexts_freed_under_a_switched_connection),
        COUNTED_TEST(MODE9_switched_several_times),
        COUNTED_TEST(MODE9_SSL_dup_of_a_switched_SSL),
        OBJECT_TEST(CB5_flush_of_all_then_more_use),
        OBJECT_TEST(CB5_ex_data_while_the_context_is_freed),
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
        OBJECT_TEST(CB5_context_of_another_library_context),
#endif
    };

    return RUN_PAGE("SSL_CTX_new", tests);
}
