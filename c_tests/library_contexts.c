/*
 * OSSL_LIB_CTX(3): the session cache in library contexts of a program's own. Each has its own providers and counts its
 * ex_data by itself; the default one can be exchanged while connections live, and may be good for nothing.
 *
 * Before 3.0 there is one library context, and nothing to see.
 */
#include "harness.h"

#include <openssl/opensslv.h>

#if OPENSSL_VERSION_NUMBER >= 0x30000000L

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <openssl/x509.h>

static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };

/* ---- a library context and what can be made in it ---- */

typedef struct { OSSL_LIB_CTX *library; const char *propq; EVP_PKEY *key; X509 *certificate; } world;

static world world_in(OSSL_LIB_CTX *library, const char *propq)
{
    world w = { library, propq, NULL, X509_new_ex(library, propq) };
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_from_name(library, "EC", propq);
    X509_NAME *name = X509_NAME_new();

    assert_non_null(maker);
    assert_int_equal(EVP_PKEY_keygen_init(maker), 1);
    assert_int_equal(EVP_PKEY_CTX_set_group_name(maker, "P-256"), 1);
    assert_int_equal(EVP_PKEY_keygen(maker, &w.key), 1);
    EVP_PKEY_CTX_free(maker);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_version(w.certificate, 2);
    X509_set_subject_name(w.certificate, name);
    X509_set_issuer_name(w.certificate, name);
    X509_gmtime_adj(X509_getm_notBefore(w.certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(w.certificate), 24 * 3600);
    X509_set_pubkey(w.certificate, w.key);
    assert_true(X509_sign(w.certificate, w.key, EVP_sha256()) > 0);
    X509_NAME_free(name);
    return w;
}

/* A library context of its own with the default provider. */
static world new_world(void)
{
    return world_in(OSSL_LIB_CTX_new(), NULL);
}

static void forget(world *w)
{
    EVP_PKEY_free(w->key);
    X509_free(w->certificate);
}

static void end(world *w)
{
    forget(w);
    OSSL_LIB_CTX_free(w->library);
}

static SSL_CTX *client_of(const world *w, int version)
{
    SSL_CTX *ctx = SSL_CTX_new_ex(w->library, w->propq, TLS_method());

    assert_non_null(ctx);
    SSL_CTX_set_min_proto_version(ctx, version);
    SSL_CTX_set_max_proto_version(ctx, version);
    return ctx;
}

static SSL_CTX *server_of(const world *w, int version)
{
    SSL_CTX *ctx = client_of(w, version);

    assert_int_equal(SSL_CTX_use_certificate(ctx, w->certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, w->key), 1);
    assert_int_equal(SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"c_tests", 7), 1);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(ctx, 1);
    return ctx;
}

static int removals;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    removals++;
}

/* Resumed, removed and then not, flushed and then not, told of the rest: nothing is missing. Returns what is. */
static const char *life(SSL_CTX *client, SSL_CTX *server)
{
    SSL_SESSION *offer = tls_session(client, server), *ours;
    const char *missing = "nothing";
    pair p;

    if (!tls_resumes(client, server, offer))
        missing = "resumption";
    SSL_SESSION_free(offer);
    p = tls_connect(client, server, NULL);
    offer = SSL_get1_session(p.client);
    ours = SSL_get1_session(p.server);
    tls_close(&p);
    if (SSL_CTX_remove_session(server, ours) != 1 || SSL_SESSION_is_resumable(ours))
        missing = "the mark";
    if (tls_resumes(client, server, offer))
        missing = "removal";
    SSL_SESSION_free(offer);
    SSL_SESSION_free(ours);
    offer = tls_session(client, server);
    SSL_CTX_flush_sessions(server, 0);
    if (!numbers(server, 0) || tls_resumes(client, server, offer))
        missing = "a flush";
    SSL_SESSION_free(offer);
    return missing;
}

static const char *life_in(const world *w)
{
    const char *missing = "nothing";

    for (size_t i = 0; i < 2; i++) {
        SSL_CTX *client = client_of(w, versions[i]), *server = server_of(w, versions[i]);
        const char *one = life(client, server);

        if (strcmp(one, "nothing") != 0)
            missing = one;
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
    return missing;
}

/* ---- explicit library contexts ---- */

static void MODE9_a_library_context_of_ones_own(void **state)
{
    static const char *const queries[] = { NULL, "provider=default", "?fips=yes", "?provider=base" };
    world w = new_world();
    char what[96];

    (void)state;
    for (size_t i = 0; i < sizeof(queries) / sizeof(*queries); i++) {
        w.propq = queries[i];
        snprintf(what, sizeof(what), "a library context, properties \"%s\": missing", w.propq == NULL ? "" : w.propq);
        observe("MODE9", what, life_in(&w), "nothing");
    }
    end(&w);
}

/* A query that no provider answers: no SSL_CTX, and nothing that a later one would suffer from. */
static void BAD1_no_provider(void **state)
{
    static const char *const queries[] = { "fips=yes", "provider=base", "provider=none" };
    world w = new_world();
    char what[96];

    (void)state;
    for (size_t i = 0; i < sizeof(queries) / sizeof(*queries); i++) {
        SSL_CTX *ctx = SSL_CTX_new_ex(w.library, queries[i], TLS_method());

        snprintf(what, sizeof(what), "SSL_CTX_new_ex, properties \"%s\" != NULL", queries[i]);
        observe_bool("BAD1", what, ctx != NULL, 0);
        observe_bool("BAD1", "SSL_CTX_new_ex without a provider: an error is queued", ERR_peek_error() != 0, 1);
        ERR_clear_error();
    }
    observe("BAD1", "SSL_CTX_new_ex after one that failed: missing", life_in(&w), "nothing");
    end(&w);
}

/* Contexts of several library contexts side by side, and each library context goes while others stay. */
static void CB5_library_contexts_come_and_go(void **state)
{
    world first = new_world(), second, third;

    (void)state;
    observe("CB5", "the first library context: missing", life_in(&first), "nothing");
    second = new_world();
    {
        SSL_CTX *client = client_of(&second, TLS1_2_VERSION), *server = server_of(&second, TLS1_2_VERSION);

        end(&first);
        observe("CB5", "another, after the first is gone: missing", life(client, server), "nothing");
        SSL_CTX_flush_sessions(server, 0);
        SSL_CTX_sess_set_remove_cb(server, on_remove);
        SSL_SESSION_free(tls_session(client, server));
        removals = 0;
        SSL_CTX_free(server);
        SSL_CTX_free(client);
        if (!shared())
            observe_int("CB5", "another, after the first is gone: remove_cb when freed", removals, 1);
    }
    end(&second);
    third = new_world();
    observe("CB5", "a third, after both are gone: missing", life_in(&third), "nothing");
    end(&third);
}

/* ---- the default library context, exchanged ---- */

static void MODE9_the_default_exchanged(void **state)
{
    world one = new_world(), other = new_world();
    OSSL_LIB_CTX *usual = OSSL_LIB_CTX_set0_default(one.library);
    SSL_CTX *client = client_of(&one, TLS1_3_VERSION), *server = server_of(&one, TLS1_3_VERSION);
    SSL_SESSION *offer = tls_session(client, server);

    (void)state;
    OSSL_LIB_CTX_set0_default(other.library);
    observe_bool("MODE9", "the default library context exchanged: resumed", tls_resumes(client, server, offer), 1);
    observe("MODE9", "the default library context exchanged, contexts of before: missing", life(client, server),
                 "nothing");
    observe("MODE9", "the default library context exchanged, contexts of the new one: missing", life_in(&other),
                 "nothing");
    SSL_SESSION_free(offer);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    OSSL_LIB_CTX_set0_default(usual);
    end(&one);
    end(&other);
}

static SSL_CTX *switch_to;

static int on_servername(SSL *ssl, int *alert, void *arg)
{
    (void)alert, (void)arg;
    assert_ptr_equal(SSL_set_SSL_CTX(ssl, switch_to), switch_to);
    return SSL_TLSEXT_ERR_OK;
}

/* Connects with SNI and data of the program's in the SSL's ex_data. Whether the data was kept; `resumed` is told. */
static int keeps_data(SSL_CTX *client, SSL_CTX *server, int index, SSL_SESSION **offer, int *resumed)
{
    static int mark;
    pair p = tls_prepare(client, server);
    int kept;

    assert_int_equal(SSL_set_ex_data(p.server, index, &mark), 1);
    SSL_set_tlsext_host_name(p.client, "localhost");
    if (*offer != NULL)
        assert_int_equal(SSL_set_session(p.client, *offer), 1);
    assert_true(tls_drive(&p));
    kept = SSL_get_ex_data(p.server, index) == &mark;
    *resumed = tls_resumed(&p);
    SSL_SESSION_free(*offer);
    *offer = SSL_get1_session(p.client);
    tls_close(&p);
    return kept;
}

/*
 * A program's index of one library context may be anybody's in another: what stands there is the program's. The first
 * connection changes over in one, all others in the other, where an index is asked for first.
 */
static int changes_over(void *arg)
{
    world one = new_world(), other = new_world();
    int wrong = 0;

    (void)arg;
    for (int round = 0; round < 2; round++) {
        const world *w = round == 0 ? &one : &other;
        SSL_CTX *client = client_of(w, TLS1_2_VERSION), *first = server_of(w, TLS1_2_VERSION);
        SSL_SESSION *offer = NULL;
        OSSL_LIB_CTX *usual;
        int index, resumed;

        usual = OSSL_LIB_CTX_set0_default(w->library);
        switch_to = server_of(w, TLS1_2_VERSION);
        SSL_CTX_set_tlsext_servername_callback(first, on_servername);
        if (round == 0) {
            pair p = tls_prepare(client, first);

            SSL_set_tlsext_host_name(p.client, "localhost");
            assert_true(tls_drive(&p));
            tls_close(&p);
        }
        for (int i = 0; i < 3; i++) {
            index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
            assert_true(index >= 0);
            wrong |= !keeps_data(client, first, index, &offer, &resumed);
            wrong |= (resumed != (i > 0)) << 1;
        }
        wrong |= (!shared() && SSL_CTX_sess_number(switch_to) != 0) << 2;
        SSL_SESSION_free(offer);
        SSL_CTX_free(switch_to);
        SSL_CTX_free(first);
        SSL_CTX_free(client);
        OSSL_LIB_CTX_set0_default(usual);
    }
    end(&one);
    end(&other);
    return wrong;
}

static void MODE9_ex_data_of_connections_that_change_over(void **state)
{
    (void)state;
    observe("MODE9", "changed over in two library contexts: the program's ex_data lost, not resumed, misplaced",
                 in_child(changes_over, NULL, 20), "returns 0");
}

/* ---- threads with defaults of their own ---- */

static void *live_by_default(void *result)
{
    world w = new_world();
    OSSL_LIB_CTX *usual = OSSL_LIB_CTX_set0_default(w.library);
    const char *missing = "nothing";

    for (int i = 0; i < fewer(3) && strcmp(missing, "nothing") == 0; i++)
        missing = life_in(&w);
    *(const char **)result = missing;
    OSSL_LIB_CTX_set0_default(usual);
    end(&w);
    return NULL;
}

static void MODE9_threads_with_defaults_of_their_own(void **state)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    const char *missing[THREADS], *all = "nothing";
    world w = new_world();

    (void)state;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, live_by_default, &missing[i]), 0);
    observe("MODE9", "threads with library contexts of their own, the main one: missing", life_in(&w), "nothing");
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (strcmp(missing[i], "nothing") != 0)
            all = missing[i];
    }
    observe("MODE9", "threads with library contexts of their own: missing", all, "nothing");
    end(&w);
}

/* ---- a default library context that is good for nothing ---- */

static OSSL_LIB_CTX *empty;

static OSSL_LIB_CTX *enter_nothing(void)
{
    empty = OSSL_LIB_CTX_new();
    assert_non_null(OSSL_PROVIDER_load(empty, "null"));
    return OSSL_LIB_CTX_set0_default(empty);
}

/* Bits: 1 an SSL_CTX was made, 2 no error, 4 our functions on NULL, 8 the one that works misses something */
static int live_without_default(void *arg)
{
    world w = new_world();
    SSL_CTX *none;
    int wrong = 0;

    (void)arg;
    enter_nothing();
    none = SSL_CTX_new(TLS_method());
    wrong |= none != NULL;
    wrong |= (ERR_peek_error() == 0) << 1;
    ERR_clear_error();
    wrong |= (strcmp(life_in(&w), "nothing") != 0) << 3;
    wrong |= (ERR_peek_error() != 0) << 4;
    end(&w);
    return wrong;
}

static void *live_in_a_thread(void *arg)
{
    OSSL_LIB_CTX_set0_default(empty); /* each thread has a default of its own */
    return (void *)life_in(arg);
}

/* Marking sessions needs an SSL_CTX of Reprise's own, which each thread would make in the default library context. */
static int threads_without_default(void *arg)
{
    world w = new_world();
    pthread_t threads[4];
    int wrong = 0;

    (void)arg;
    enter_nothing();
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, live_in_a_thread, &w), 0);
    for (int i = 0; i < 4; i++) {
        void *missing;

        pthread_join(threads[i], &missing);
        wrong += strcmp(missing, "nothing") != 0;
    }
    end(&w);
    return wrong;
}

static int live_in_a_child(void *arg)
{
    return strcmp(life_in(arg), "nothing") != 0;
}

static int forked_without_default(void *arg)
{
    world w = new_world();
    const char *result;

    (void)arg;
    enter_nothing();
    assert_string_equal(life_in(&w), "nothing");
    result = in_child(live_in_a_child, &w, 10);
    end(&w);
    return strcmp(result, "returns 0") != 0;
}

static void BAD1_default_with_the_null_provider(void **state)
{
    (void)state;
    observe("BAD1", "null provider by default: SSL_CTX_new fails, another library context works",
                 in_child(live_without_default, NULL, 20), "returns 0");
    observe("BAD1", "null provider by default: threads that miss something",
                 in_child(threads_without_default, NULL, 20), "returns 0");
    observe("FORK1", "null provider by default: a child misses something",
                 in_child(forked_without_default, NULL, 20), "returns 0");
}

/* Two services, told apart by their certificates: neither resumes what the other negotiated, shared cache or not. */
static int crosses(void *arg)
{
    world w = new_world(), v = world_in(w.library, NULL);
    int crossed = 0;

    (void)arg;
    enter_nothing();
    for (int i = 0; i < 2; i++) {
        SSL_CTX *client = client_of(&w, versions[i]);
        SSL_CTX *one = server_of(&w, versions[i]), *other = server_of(&v, versions[i]);
        SSL_SESSION *offer = tls_session(client, one);

        crossed += tls_resumes(client, other, offer);
        SSL_SESSION_free(offer);
        SSL_CTX_free(client);
        SSL_CTX_free(one);
        SSL_CTX_free(other);
    }
    forget(&v);
    end(&w);
    return crossed;
}

static void MODE9_services_stay_apart(void **state)
{
    (void)state;
    observe("MODE9", "null provider by default: sessions that cross from one certificate to another",
                 in_child(crosses, NULL, 20), "returns 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(BAD1_default_with_the_null_provider), /* while nothing is known of any library context */
        cmocka_unit_test(MODE9_services_stay_apart),
        cmocka_unit_test(MODE9_ex_data_of_connections_that_change_over),
        RULE_TEST(CB5_library_contexts_come_and_go),
        RULE_TEST(MODE9_a_library_context_of_ones_own),
        RULE_TEST(BAD1_no_provider),
        cmocka_unit_test(MODE9_the_default_exchanged),
        cmocka_unit_test(MODE9_threads_with_defaults_of_their_own),
    };

    return RUN_PAGE("library_contexts", tests);
}

#else

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(left_out) };

    return RUN_PAGE("library_contexts", tests);
}

#endif
