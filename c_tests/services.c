/*
 * Who may resume what in a shared cache, where it takes a program of its own to see it: what a client's context was given
 * by a server is never a server's, and verify callbacks tell services apart.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>
#include <unistd.h>

#include <openssl/x509v3.h>

#include "reprise.h"

static char url[64], path[64];

static int cache_setup(void **state)
{
    static int number;

    snprintf(path, sizeof path, "/dev/shm/reprise-c_tests-%d-%d", (int)getpid(), ++number);
    snprintf(url, sizeof url, "shm:%s?size=2M", path + strlen("/dev/shm/reprise-"));
    return references_setup(state);
}

static int cache_teardown(void **state)
{
    unlink(path);
    return references_teardown(state);
}

#define CACHE_TEST(f) cmocka_unit_test_setup_teardown(f, cache_setup, cache_teardown)

static SSL_CTX *service(int version)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_client_CA_list(ctx, sk_X509_NAME_new_null()); /* none of its own, which the harness gives it */
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    return ctx;
}

/* A program's client visits a server that is not to be trusted, which then shows that session to the program's server:
 * whichever way it came into the cache, and whether the contexts are two equal ones or one. */
static void ISO1_a_client_s_session_is_no_server_s(void **state)
{
    (void)state;
    for (int by_hand = 0; by_hand < 2; by_hand++)
        for (int same = 0; same < 2; same++) {
            SSL_CTX *visitor = service(TLS1_2_VERSION), *server = same ? visitor : service(TLS1_2_VERSION);
            SSL_CTX *malicious = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
            pair p;
            SSL_SESSION *session;

            SSL_CTX_set_session_cache_mode(visitor, by_hand ? SSL_SESS_CACHE_OFF : SSL_SESS_CACHE_BOTH);
            SSL_CTX_set_options(malicious, SSL_OP_NO_TICKET);
            p = tls_connect(visitor, malicious, NULL);
            session = SSL_get1_session(p.client);
            tls_close(&p);
            if (by_hand)
                assert_int_equal(SSL_CTX_add_session(visitor, session), 1);
            SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_BOTH);
            assert_true(in_cache(visitor, TLS1_2_VERSION, session));
            assert_int_equal(in_cache(server, TLS1_2_VERSION, session), same);
            assert_false(tls_resumes(client, server, session));
            if (by_hand) { /* the manual's functions find it where it was put */
                assert_int_equal(SSL_CTX_remove_session(visitor, session), 1);
                assert_false(in_cache(visitor, TLS1_2_VERSION, session));
            }
            SSL_SESSION_free(session);
            SSL_CTX_free(visitor);
            if (!same)
                SSL_CTX_free(server);
            SSL_CTX_free(malicious);
            SSL_CTX_free(client);
        }
}

static int accept_all(int ok, X509_STORE_CTX *store)
{
    (void)store;
    return ok | 1;
}

static int accept_some(int ok, X509_STORE_CTX *store)
{
    return ok && X509_STORE_CTX_get_error_depth(store) < 3;
}

static int verified(X509_STORE_CTX *store, void *arg)
{
    (void)arg;
    return X509_verify_cert(store);
}

static int argument;

static void no_callback(SSL_CTX *ctx) { SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL); }
static void all(SSL_CTX *ctx) { SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, accept_all); }
static void some(SSL_CTX *ctx) { SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, accept_some); }
static void whole(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_cert_verify_callback(ctx, verified, NULL); }
static void with_argument(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_cert_verify_callback(ctx, verified, &argument); }
static void purpose(SSL_CTX *ctx) { no_callback(ctx); assert_int_equal(SSL_CTX_set_purpose(ctx, X509_PURPOSE_ANY), 1); }
static void host(SSL_CTX *ctx)
{
    no_callback(ctx);
    assert_int_equal(X509_VERIFY_PARAM_set1_host(SSL_CTX_get0_param(ctx), "localhost", 0), 1);
}
static void depth(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_verify_depth(ctx, 3); }
static void level(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_security_level(ctx, 0); }

/* Each of them is a service of its own, and two with the same are one. Set after a session came, it counts as well. */
static void ISO1_settings_tell_services_apart(void **state)
{
    static const struct { const char *what; void (*set)(SSL_CTX *); int shared; } settings[] = {
        { "no callback", no_callback, 1 }, { "one that accepts all", all, 1 }, { "another", some, 1 },
        { "a cert verify callback", whole, 1 }, { "with an argument", with_argument, 0 }, { "a purpose", purpose, 1 },
        { "a depth", depth, 1 }, { "security level 0", level, 1 },
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
        { "a host", host, 1 },
#endif
    };
    enum { COUNT = sizeof settings / sizeof *settings };
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);

    (void)state, (void)host;
    for (int one = 0; one < COUNT; one++) {
        SSL_CTX *ctx = service(TLS1_2_VERSION), *other = service(TLS1_2_VERSION);
        SSL_SESSION *session;

        settings[one].set(ctx);
        session = tls_session(client, ctx);
        assert_true(tls_resumes(client, ctx, session));
        for (int two = 0; two < COUNT; two++) {
            int resumes;

            SSL_CTX_free(other);
            other = service(TLS1_2_VERSION);
            if (two % 2)
                assert_false(tls_resumes(client, other, session));
            settings[two].set(other);
            resumes = tls_resumes(client, other, session);
            if (resumes != (one == two && settings[one].shared))
                fail_msg("from %s to %s: %d", settings[one].what, settings[two].what, resumes);
        }
        SSL_SESSION_free(session);
        SSL_CTX_free(ctx);
        SSL_CTX_free(other);
    }
    SSL_CTX_free(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TEST(ISO1_a_client_s_session_is_no_server_s),
        CACHE_TEST(ISO1_settings_tell_services_apart),
    };

    /* Where stock differs, this is not what it is about. */
    return subject() == DOCUMENTED ? RUN_PAGE("services", tests) : 0;
}
#else
int main(void)
{
    return 0;
}
#endif
