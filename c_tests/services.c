/*
 * Who may resume what in a shared cache, where it takes a program of its own to see it: what a client's context was given
 * by a server is never a server's, verify callbacks tell services apart, and so does what single connections are told.
 * "A" and "b" stand for contexts of two processes: each pair is one that stock keeps apart, having a cache for each.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>
#include <unistd.h>

#include <openssl/x509v3.h>

#include "reprise.h"

static char url[64], path[64];
static SSL_SESSION *newest; /* of the client that came last */

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
    SSL_SESSION_free(newest);
    newest = NULL;
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

static void signing(SSL_CTX *ctx) { no_callback(ctx); assert_int_equal(SSL_CTX_set1_sigalgs_list(ctx, "ECDSA+SHA256"), 1); }
static void signing_otherwise(SSL_CTX *ctx)
{
    no_callback(ctx);
    assert_int_equal(SSL_CTX_set1_sigalgs_list(ctx, "ECDSA+SHA256:ECDSA+SHA384"), 1);
}
static void clients_signing(SSL_CTX *ctx)
{
    no_callback(ctx);
    assert_int_equal(SSL_CTX_set1_client_sigalgs_list(ctx, "ECDSA+SHA256:RSA+SHA256"), 1);
}
static void groups(SSL_CTX *ctx)
{
    int nids[] = { NID_X9_62_prime256v1 };

    no_callback(ctx);
    assert_int_equal(SSL_CTX_set1_groups(ctx, nids, 1), 1);
}
static void strict(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_cert_flags(ctx, SSL_CERT_FLAG_SUITEB_128_LOS); }
static void once(SSL_CTX *ctx) { SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_CLIENT_ONCE, NULL); }
static void flags(SSL_CTX *ctx)
{
    no_callback(ctx);
    assert_int_equal(X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(ctx), X509_V_FLAG_X509_STRICT), 1);
}
static void bound(SSL_CTX *ctx) { no_callback(ctx); assert_int_equal(SSL_CTX_set_min_proto_version(ctx, TLS1_1_VERSION), 1); }
static void forbidden(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_options(ctx, SSL_OP_NO_TLSv1_1); }
static void ciphers(SSL_CTX *ctx)
{
    no_callback(ctx);
    assert_int_equal(SSL_CTX_set_cipher_list(ctx, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"), 1);
}

static X509 *person(const char *name, EVP_PKEY **key);
static X509_CRL *revoking(X509 *who, EVP_PKEY *key);
static int tells_verify_store(void);
static X509 *authority; /* the same one for all contexts of a test, and a list of its own */
static X509_CRL *authority_list;

static X509_STORE *store_of(int has_authority, int has_list)
{
    X509_STORE *store = X509_STORE_new();

    if (has_authority)
        X509_STORE_add_cert(store, authority);
    if (has_list)
        X509_STORE_add_crl(store, authority_list);
    return store;
}

static void trust(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_cert_store(ctx, store_of(1, 0)); }
static void distrust(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_cert_store(ctx, store_of(1, 1)); }
static void names(SSL_CTX *ctx) { no_callback(ctx); assert_int_equal(SSL_CTX_add_client_CA(ctx, authority), 1); }
static void judging_store(SSL_CTX *ctx)
{
    X509_STORE *store = store_of(0, 0);

    no_callback(ctx);
    X509_STORE_set_verify_cb(store, accept_some);
    SSL_CTX_set_cert_store(ctx, store);
}
static void verify_store(SSL_CTX *ctx)
{
    no_callback(ctx);
    if (tells_verify_store())
        SSL_CTX_set0_verify_cert_store(ctx, store_of(1, 0));
    else
        SSL_CTX_set_verify_depth(ctx, 5); /* something else */
}
static void replay(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_options(ctx, SSL_OP_NO_ANTI_REPLAY); }
static int on_name(SSL *ssl, int *alert, void *arg) { (void)ssl, (void)alert, (void)arg; return SSL_TLSEXT_ERR_OK; }
static int on_name_too(SSL *ssl, int *alert, void *arg) { return on_name(ssl, alert, arg) + 0; }
static void named(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_tlsext_servername_callback(ctx, on_name); }
static void named_too(SSL_CTX *ctx) { no_callback(ctx); SSL_CTX_set_tlsext_servername_callback(ctx, on_name_too); }

/* Each of them is a service of its own, and two with the same are one. Set after a session came, it counts as well. */
static void ISO1_settings_tell_services_apart(void **state)
{
    static const struct { const char *what; void (*set)(SSL_CTX *); int shared; } settings[] = {
        { "no callback", no_callback, 1 }, { "one that accepts all", all, 1 }, { "another", some, 1 },
        { "a cert verify callback", whole, 1 }, { "with an argument", with_argument, 0 }, { "a purpose", purpose, 1 },
        { "a depth", depth, 1 }, { "security level 0", level, 1 }, { "signature algorithms", signing, 1 },
        { "other ones", signing_otherwise, 1 }, { "those of clients", clients_signing, 1 }, { "groups", groups, 1 }, { "Suite B", strict, 1 },
        { "no protection from replays", replay, 1 }, { "a servername callback", named, 1 },
        { "another one", named_too, 1 }, { "verifying once", once, 1 }, { "flags", flags, 1 }, { "a version", bound, 1 },
        { "a forbidden version", forbidden, 1 }, { "ciphers", ciphers, 1 }, { "a CA", trust, 1 },
        { "a list of revoked certificates", distrust, 1 }, { "names of CAs", names, 1 },
        { "a store with a callback", judging_store, 1 }, { "a store for verifying", verify_store, 1 },
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
        { "a host", host, 1 },
#endif
    };
    enum { COUNT = sizeof settings / sizeof *settings };
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);
    EVP_PKEY *key;

    (void)state, (void)host;
    authority = person("authority", &key);
    authority_list = revoking(authority, key);
    for (int one = 0; one < COUNT; one++) {
        SSL_CTX *ctx = service(TLS1_2_VERSION), *other = service(TLS1_2_VERSION);
        SSL_SESSION *session;

        settings[one].set(ctx);
        session = tls_session(client, ctx);
        assert_true(tls_resumes(client, ctx, session));
        for (int two = 0; two < COUNT; two++) {
            int resumes;

            if (slowly() && two != one && two != (one + 1) % COUNT)
                continue;
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
    X509_CRL_free(authority_list);
    X509_free(authority);
    EVP_PKEY_free(key);
}

/* ---- two contexts that stock keeps apart ---- */

/* -1: refused, 0: a full handshake, 1: resumed. `prepare` is called with the server's connection. */
static int visit(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer, const char *name, void (*prepare)(SSL *))
{
    pair p = tls_prepare(client, server);
    int outcome = -1;

    if (offer != NULL)
        assert_int_equal(SSL_set_session(p.client, offer), 1);
    if (name != NULL)
        SSL_set_tlsext_host_name(p.client, name);
    if (prepare != NULL)
        prepare(p.server);
    SSL_SESSION_free(newest);
    newest = NULL;
    if (tls_drive(&p)) {
        outcome = SSL_session_reused(p.server);
        newest = SSL_get1_session(p.client);
        tls_close(&p);
    } else
        tls_drop(&p);
    return outcome;
}

static SSL_SESSION *take_newest(void)
{
    SSL_SESSION *taken = newest;

    assert_non_null(taken);
    newest = NULL;
    return taken;
}

/* A certificate of its own signature, for mail of `name`@x.org and the address 1.2.3.4. */
static X509 *person(const char *name, EVP_PKEY **key)
{
    X509 *made = other_certificate(key);
    X509_EXTENSION *names;
    char value[80];

    X509_set_version(made, 2);
    add_common_name(made, name);
    X509_set_issuer_name(made, X509_get_subject_name(made));
    snprintf(value, sizeof value, "email:%s@x.org,DNS:%s.test,IP:1.2.3.4", name, name);
    names = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, value);
    assert_int_equal(X509_add_ext(made, names, -1), 1);
    X509_EXTENSION_free(names);
    assert_true(X509_sign(made, *key, EVP_sha256()) > 0);
    return made;
}

/* A list that revokes `who`, and which it has signed itself. */
static X509_CRL *revoking(X509 *who, EVP_PKEY *key)
{
    X509_CRL *list = X509_CRL_new();
    X509_REVOKED *entry = X509_REVOKED_new();
    ASN1_TIME *when = X509_gmtime_adj(NULL, -50);

    X509_CRL_set_version(list, 1);
    X509_CRL_set_issuer_name(list, X509_get_subject_name(who));
    X509_CRL_set1_lastUpdate(list, when);
    X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(who));
    X509_REVOKED_set_revocationDate(entry, when);
    X509_CRL_add0_revoked(list, entry);
    X509_gmtime_adj(when, 1000);
    X509_CRL_set1_nextUpdate(list, when);
    assert_true(X509_CRL_sign(list, key, EVP_sha256()) > 0);
    ASN1_TIME_free(when);
    return list;
}

static SSL_CTX *client_of(int version, X509 *certificate, EVP_PKEY *key)
{
    SSL_CTX *client = client_ctx(version);

    assert_int_equal(SSL_CTX_use_certificate(client, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(client, key), 1);
    return client;
}

enum { DEMANDED = SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT };

static SSL_CTX *trusting(int version, X509 *certificate)
{
    SSL_CTX *ctx = service(version);

    if (certificate != NULL)
        assert_int_equal(X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), certificate), 1);
    return ctx;
}

static unsigned int psk_of_client(SSL *ssl, const char *hint, char *id, unsigned int most, unsigned char *psk, unsigned int room)
{
    (void)ssl, (void)hint, (void)most, (void)room;
    strcpy(id, "bob");
    memset(psk, 'A', 16);
    return 16;
}

static unsigned int psk_of_a(SSL *ssl, const char *id, unsigned char *psk, unsigned int room)
{
    (void)ssl, (void)room;
    memset(psk, 'A', 16);
    return strcmp(id, "bob") == 0 ? 16 : 0; /* with TLS 1.3 it is asked of tickets, too */
}

static unsigned int psk_of_b(SSL *ssl, const char *id, unsigned char *psk, unsigned int room)
{
    (void)ssl, (void)room;
    memset(psk, 'B', 16);
    return strcmp(id, "bob") == 0 ? 16 : 0; /* with TLS 1.3 it is asked of tickets, too */
}

/* A key that both know is all that such a client shows. Which keys a server knows is not in its SSL_CTX. */
static void ISO1_sessions_of_shared_keys_stay(void **state)
{
    static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };

    (void)state;
    for (int i = 0; i < 2; i++) {
        SSL_CTX *a = service(versions[i]), *b = service(versions[i]);
        SSL_CTX *client = client_ctx(versions[i]), *later = client_ctx(versions[i]);
        SSL_CTX *all[] = { a, b, client, later };
        SSL_SESSION *session;

        for (int one = 0; one < 4; one++)
            assert_int_equal(versions[i] == TLS1_2_VERSION
                ? SSL_CTX_set_cipher_list(all[one], "PSK-AES128-GCM-SHA256")
                : SSL_CTX_set_ciphersuites(all[one], "TLS_AES_128_GCM_SHA256"), 1);
        SSL_CTX_set_psk_server_callback(a, psk_of_a);
        SSL_CTX_set_psk_server_callback(b, psk_of_b);
        SSL_CTX_set_psk_client_callback(client, psk_of_client);
        if (versions[i] == TLS1_2_VERSION) /* it offers such ciphers only with a callback */
            SSL_CTX_set_psk_client_callback(later, psk_of_client);
        assert_int_not_equal(visit(client, a, NULL, NULL, NULL), -1);
        session = take_newest();
        for (int round = 0; round < 2; round++) {
            assert_int_not_equal(visit(later, b, session, NULL, NULL), 1);
            assert_int_equal(visit(later, a, session, NULL, NULL), 1);
        }
        SSL_SESSION_free(session);
        for (int one = 0; one < 4; one++)
            SSL_CTX_free(all[one]);
    }
}

#ifndef OPENSSL_NO_SRP
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/* bob's password is what the program has attached to its SSL_CTX. */
static int password_of_bob(SSL *ssl, int *alert, void *password)
{
    (void)alert;
    return SSL_set_srp_server_param_pw(ssl, "bob", password, "2048") == 1 ? SSL_ERROR_NONE : SSL3_AL_FATAL;
}

/* A password is all that such a client knows. Which ones a server takes is not in its SSL_CTX. */
static void ISO1_sessions_of_passwords_stay(void **state)
{
    SSL_CTX *a = service(TLS1_2_VERSION), *b = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_CTX *all[] = { a, b, client };
    SSL_SESSION *session;

    (void)state;
    for (int one = 0; one < 3; one++)
        assert_int_equal(SSL_CTX_set_cipher_list(all[one], "SRP-AES-128-CBC-SHA"), 1);
    for (int one = 0; one < 2; one++) {
        SSL_CTX_set_srp_username_callback(all[one], password_of_bob);
        SSL_CTX_set_srp_cb_arg(all[one], one == 0 ? "secret" : "another");
    }
    SSL_CTX_set_srp_username(client, "bob");
    SSL_CTX_set_srp_password(client, "secret");
    assert_int_equal(visit(client, b, NULL, NULL, NULL), -1);
    assert_int_equal(visit(client, a, NULL, NULL, NULL), 0);
    session = take_newest();
    for (int round = 0; round < 2; round++) {
        assert_int_not_equal(visit(client, b, session, NULL, NULL), 1);
        assert_int_equal(visit(client, a, session, NULL, NULL), 1);
    }
    SSL_SESSION_free(session);
    for (int one = 0; one < 3; one++)
        SSL_CTX_free(all[one]);
}
#endif

/* Lists of ciphers that are replaced one after another may have the place of the first. */
static void ISO1_ciphers_that_are_replaced_twice(void **state)
{
    static const char *const lists[] = { "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
                                         "ECDHE-ECDSA-CHACHA20-POLY1305" };
    SSL_CTX *client = client_ctx(TLS1_2_VERSION), *server = service(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    for (int round = 0; round < 4; round++) {
        assert_int_equal(SSL_CTX_set_cipher_list(server, lists[0]), 1);
        assert_int_equal(visit(client, server, NULL, NULL, NULL), 0);
        session = take_newest();
        assert_int_equal(visit(client, server, session, NULL, NULL), 1);
        for (int i = 0; i <= round; i++)
            assert_int_equal(SSL_CTX_set_cipher_list(server, lists[1 + i % 2]), 1);
        assert_int_equal(visit(client, server, session, NULL, NULL), 0);
        SSL_SESSION_free(session);
    }
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

static int of_ctx = -1;

/* What it decides hangs on what the program has attached to the SSL_CTX. */
static int accept_named(int ok, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    const char *wanted = SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), of_ctx);
    char name[80] = "";

    X509_NAME_get_text_by_NID(X509_get_subject_name(X509_STORE_CTX_get_current_cert(store)), NID_commonName, name, sizeof name);
    return ok && strcmp(name, wanted) == 0;
}

static int accept_lenient(int ok, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());

    return ok || strcmp(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), of_ctx), "alice") == 0;
}

static int accept_named_whole(X509_STORE_CTX *store, void *arg)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());

    (void)arg;
    X509_STORE_CTX_set_error(store, X509_V_OK);
    return strcmp(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), of_ctx), "alice") == 0;
}

/* A callback in the same place of the same program may decide otherwise: sessions of clients that it has judged stay with
 * their SSL_CTX, unless the URL has a label. Those without a certificate, which it was not asked about, are shared. */
static void ISO1_what_a_verify_callback_judged_stays(void **state)
{
    (void)state;
    if (of_ctx < 0)
        of_ctx = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (int how = 0; how < 4; how++) {
            EVP_PKEY *key;
            X509 *alice = person("alice", &key);
            SSL_CTX *client = client_of(version, alice, key), *nobody = client_ctx(version);
            SSL_CTX *servers[2], *labelled[2];
            SSL_SESSION *session;

            for (int i = 0; i < 4; i++) {
                SSL_CTX *ctx = trusting(version, how == 1 ? NULL : alice);

                SSL_CTX_set_verify(ctx, how == 3 ? SSL_VERIFY_PEER : DEMANDED,
                                   how == 0 || how == 3 ? accept_named : how == 1 ? accept_lenient : NULL);
                if (how == 2)
                    SSL_CTX_set_cert_verify_callback(ctx, accept_named_whole, NULL);
                SSL_CTX_set_ex_data(ctx, of_ctx, i % 2 ? "bob" : "alice");
                if (i < 2)
                    servers[i] = ctx;
                else {
                    char with_label[sizeof url + 20];

                    snprintf(with_label, sizeof with_label, "%s&service=equal", url);
                    assert_int_equal(reprise_ctx_set_cache(ctx, with_label), 1);
                    labelled[i - 2] = ctx;
                }
            }
            if (how == 3) {
                assert_int_equal(visit(nobody, servers[0], NULL, NULL, NULL), 0);
                session = take_newest();
                assert_int_equal(visit(nobody, servers[1], session, NULL, NULL), 1);
            } else {
                assert_int_equal(visit(client, servers[0], NULL, NULL, NULL), 0);
                session = take_newest();
                assert_int_not_equal(visit(client, servers[1], session, NULL, NULL), 1);
                /* Stock: refused. One that changes the result is not asked again, and its sessions are lost. */
                if (how != 1)
                    assert_int_equal(visit(client, servers[0], session, NULL, NULL), 1);
            }
            SSL_SESSION_free(session);
            if (how == 0) {
                assert_int_equal(visit(client, labelled[0], NULL, NULL, NULL), 0);
                session = take_newest();
                assert_int_equal(visit(client, labelled[1], session, NULL, NULL), 1);
                SSL_SESSION_free(session);
            }
            for (int i = 0; i < 2; i++) {
                SSL_CTX_free(servers[i]);
                SSL_CTX_free(labelled[i]);
            }
            SSL_CTX_free(client);
            SSL_CTX_free(nobody);
            X509_free(alice);
            EVP_PKEY_free(key);
        }
}

static int demand_for_secret(SSL *ssl, int *alert, void *arg)
{
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);

    (void)alert, (void)arg;
    if (name != NULL && (strstr(name, "secret") != NULL || strstr(name, "Secret") != NULL))
        SSL_set_verify(ssl, DEMANDED, NULL);
    return SSL_TLSEXT_ERR_OK;
}

/* The servername callback demands a certificate for some names. A session without one is for its own name only, also in
 * a context that has not seen the other name yet, and whatever else it has seen. */
static void ISO1_a_session_is_for_one_server_name(void **state)
{
    static const char *const secret[] = { "secret.test", "Secret.test", "other.secret.test", "SECRET.test" };
    EVP_PKEY *key;
    X509 *alice = person("alice", &key);

    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
        SSL_CTX *client = client_ctx(version), *of_alice = client_of(version, alice, key);
        SSL_CTX *a = trusting(version, alice), *b = trusting(version, alice);
        SSL_SESSION *session, *unnamed, *hers;

        SSL_CTX_set_tlsext_servername_callback(a, demand_for_secret);
        SSL_CTX_set_tlsext_servername_callback(b, demand_for_secret);
        assert_int_equal(visit(client, a, NULL, "public.test", NULL), 0);
        session = take_newest();
        assert_int_equal(visit(client, a, NULL, NULL, NULL), 0);
        unnamed = take_newest();
        for (int seen = 0; seen < 3; seen++) {
            for (unsigned i = 0; i < sizeof secret / sizeof *secret; i++) {
                assert_int_not_equal(visit(client, b, session, secret[i], NULL), 1);
                assert_int_not_equal(visit(client, b, unnamed, secret[i], NULL), 1);
            }
            if (seen == 0)
                assert_int_equal(visit(of_alice, b, NULL, "secret.test", NULL), 0);
            if (seen == 1)
                for (int i = 0; i < fewer(1100); i++) {
                    char name[40];

                    snprintf(name, sizeof name, "n%d.test", i);
                    assert_int_equal(visit(client, b, NULL, name, NULL), 0);
                }
        }
        /* Its own name, once that is known: before the table is full, here. */
        SSL_CTX_free(b);
        b = trusting(version, alice);
        SSL_CTX_set_tlsext_servername_callback(b, demand_for_secret);
        assert_int_equal(visit(client, b, session, "public.test", NULL), 0);
        assert_int_equal(visit(client, b, session, "Public.test", NULL), 1);
        assert_int_equal(visit(client, b, unnamed, NULL, NULL), 1);
        assert_int_equal(visit(of_alice, a, NULL, "secret.test", NULL), 0);
        hers = take_newest();
        assert_int_equal(visit(of_alice, b, hers, "secret.test", NULL), 0);
        assert_int_equal(visit(of_alice, b, hers, "secret.test", NULL), 1);
        SSL_SESSION_free(session);
        SSL_SESSION_free(unnamed);
        SSL_SESSION_free(hers);
        SSL_CTX_free(a);
        SSL_CTX_free(b);
        SSL_CTX_free(client);
        SSL_CTX_free(of_alice);
    }
    X509_free(alice);
    EVP_PKEY_free(key);
}

static int of_ssl = -1;
static int lax;

static void be_lax(SSL *server) { SSL_set_verify(server, SSL_VERIFY_NONE, NULL); }
static void mark_lax(SSL *server) { SSL_set_ex_data(server, of_ssl, lax ? &lax : NULL); }

static int demand_unless_lax(SSL *ssl, void *arg)
{
    (void)arg;
    SSL_set_verify(ssl, SSL_get_ex_data(ssl, of_ssl) != NULL ? SSL_VERIFY_NONE : DEMANDED, NULL);
    return 1;
}

/* One SSL_CTX for two listeners, of which one asks for no certificates: it says so before the handshake, or in the
 * cert_cb, which is called after the lookup. */
static void ISO1_listeners_of_one_context(void **state)
{
    (void)state;
    if (of_ssl < 0)
        of_ssl = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (int late = 0; late < 2; late++) {
            SSL_CTX *client = client_ctx(version), *a = service(version), *b = service(version);
            SSL_SESSION *session;
            void (*of_lax)(SSL *) = late ? mark_lax : be_lax;

            SSL_CTX_set_verify(a, late ? SSL_VERIFY_PEER : DEMANDED, NULL);
            SSL_CTX_set_verify(b, late ? SSL_VERIFY_PEER : DEMANDED, NULL);
            if (late) {
                SSL_CTX_set_cert_cb(a, demand_unless_lax, NULL);
                SSL_CTX_set_cert_cb(b, demand_unless_lax, NULL);
            }
            lax = 1;
            assert_int_equal(visit(client, a, NULL, NULL, of_lax), 0);
            session = take_newest();
            assert_int_equal(visit(client, b, NULL, NULL, of_lax), 0);
            if (!late)
                assert_int_equal(visit(client, b, session, NULL, of_lax), 1);
            lax = 0;
            assert_int_equal(visit(client, b, NULL, NULL, late ? mark_lax : NULL), -1);
            assert_int_equal(visit(client, b, session, NULL, late ? mark_lax : NULL), -1);
            SSL_SESSION_free(session);
            SSL_CTX_free(a);
            SSL_CTX_free(b);
            SSL_CTX_free(client);
        }
}

static SSL_SESSION *elsewhere;

static SSL_SESSION *from_elsewhere(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length;
    *copy = 1;
    return elsewhere;
}

/* A session that the program brings, by get_cb or by hand, says nothing of what its connection was told. */
static void ISO1_what_a_program_brings_stays(void **state)
{
    (void)state;
    for (int by_hand = 0; by_hand < 2; by_hand++) {
        SSL_CTX *client = client_ctx(TLS1_2_VERSION), *a = service(TLS1_2_VERSION), *b = service(TLS1_2_VERSION);
        SSL_SESSION *session;
        pair p = tls_prepare(client, a);

        SSL_CTX_set_verify(a, DEMANDED, NULL);
        SSL_CTX_set_verify(b, DEMANDED, NULL);
        be_lax(p.server);
        assert_true(tls_drive(&p));
        elsewhere = SSL_get1_session(p.server);
        session = SSL_get1_session(p.client);
        tls_close(&p);
        assert_int_equal(visit(client, b, NULL, NULL, be_lax), 0); /* of what this thread negotiates last, more is known */
        SSL_CTX_flush_sessions(a, 0);
        if (by_hand)
            assert_int_equal(SSL_CTX_add_session(a, elsewhere), 1);
        else {
            SSL_CTX_sess_set_get_cb(a, from_elsewhere);
            assert_int_equal(visit(client, a, session, NULL, be_lax), 1);
            SSL_CTX_sess_set_get_cb(a, NULL);
        }
        assert_true(in_cache(b, TLS1_2_VERSION, session));
        assert_int_equal(visit(client, b, session, NULL, NULL), -1);
        assert_int_equal(visit(client, b, session, NULL, be_lax), 0);
        assert_int_equal(visit(client, a, session, NULL, be_lax), 1);
        SSL_SESSION_free(elsewhere);
        SSL_SESSION_free(session);
        SSL_CTX_free(a);
        SSL_CTX_free(b);
        SSL_CTX_free(client);
    }
}

static SSL_SESSION *with_another_secret(SSL_SESSION *session)
{
    SSL_SESSION *changed = SSL_SESSION_dup(session);
    unsigned char secret[48];

    memset(secret, 'x', sizeof secret);
    assert_int_equal(SSL_SESSION_set1_master_key(changed, secret, sizeof secret), 1);
    return changed;
}

/* Nor does one that has the id of a session that is cached, and another secret: it is not that one. */
static void ISO1_another_session_with_the_same_id_stays(void **state)
{
    SSL_CTX *client = client_ctx(TLS1_2_VERSION), *a = service(TLS1_2_VERSION), *b = service(TLS1_2_VERSION);
    SSL_SESSION *session, *of_server, *of_client;
    pair p = tls_connect(client, a, NULL);

    (void)state;
    of_server = with_another_secret(SSL_get_session(p.server));
    of_client = with_another_secret(SSL_get_session(p.client));
    session = SSL_get1_session(p.client);
    tls_close(&p);
    assert_int_equal(visit(client, b, session, NULL, NULL), 1);
    assert_int_equal(visit(client, b, NULL, NULL, NULL), 0); /* of what this thread negotiates last, more is known */
    assert_int_equal(SSL_CTX_add_session(a, of_server), 1);
    assert_int_not_equal(visit(client, b, of_client, NULL, NULL), 1);
    assert_int_equal(visit(client, a, of_client, NULL, NULL), 1);
    SSL_SESSION_free(session);
    SSL_SESSION_free(of_server);
    SSL_SESSION_free(of_client);
    SSL_CTX_free(a);
    SSL_CTX_free(b);
    SSL_CTX_free(client);
}

/* A program that adds what its handshakes leave (stunnel does) shares it, also where the cache has it already. */
static void ISO2_what_a_handshake_leaves_is_shared(void **state)
{
    (void)state;
    for (int semantics = 0; semantics < 2; semantics++)
        for (int stores = 0; stores < 2; stores++) {
            SSL_CTX *client = client_ctx(TLS1_2_VERSION), *a = service(TLS1_2_VERSION), *b = service(TLS1_2_VERSION);
            SSL_SESSION *session;
            pair p;

            reprise_ctx_set_semantics(a, semantics ? REPRISE_SEMANTICS_STOCK : REPRISE_SEMANTICS_DOCUMENTED);
            SSL_CTX_set_session_cache_mode(a, SSL_SESS_CACHE_SERVER | (stores ? 0 : SSL_SESS_CACHE_NO_INTERNAL_STORE));
            p = tls_connect(client, a, NULL);
            session = SSL_get1_session(p.client);
            assert_int_equal(SSL_CTX_add_session(a, SSL_get_session(p.server)), !stores);
            tls_close(&p);
            assert_int_equal(visit(client, b, session, NULL, NULL), 1);
            assert_int_equal(visit(client, a, session, NULL, NULL), 1);
            SSL_SESSION_free(session);
            SSL_CTX_free(a);
            SSL_CTX_free(b);
            SSL_CTX_free(client);
        }
}

static int want_mail(SSL *ssl, void *whose) { return X509_VERIFY_PARAM_set1_email(SSL_get0_param(ssl), whose, 0); }
static int want_ip(SSL *ssl, void *which) { return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), which); }
static int want_host(SSL *ssl, void *host)
{
    return X509_VERIFY_PARAM_set1_host(SSL_get0_param(ssl), "alice.test", 0)
        && (host == NULL || X509_VERIFY_PARAM_set1_host(SSL_get0_param(ssl), host, 0));
}
static int want_store(SSL *ssl, void *store) { return SSL_set1_verify_cert_store(ssl, store) == 1; }

/* Libssl 1.1.1 and the first releases of 3.0 do not tell which store was set for verifying: see docs/shared-cache.md. */
static int tells_verify_store(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    X509_STORE *store;
    int tells = SSL_CTX_ctrl(ctx, 137 /* SSL_CTRL_GET_VERIFY_CERT_STORE */, 0, &store) == 1;

    SSL_CTX_free(ctx);
    return tells;
}

/* A cert_cb says whom it wants for a connection. It is called after the lookup, and not at all where one succeeds. */
static void ISO1_parameters_of_connections(void **state)
{
    EVP_PKEY *key;
    X509 *alice = person("alice", &key);
    X509_STORE *stores[2] = { X509_STORE_new(), X509_STORE_new() };
    X509_CRL *list = revoking(alice, key);
    struct { const char *what; int (*want)(SSL *, void *); void *of[2]; } wants[] = {
        { "mail", want_mail, { "alice@x.org", "bob@x.org" } }, { "an address", want_ip, { "1.2.3.4", "9.9.9.9" } },
        { "a host", want_host, { NULL, "bob.test" } }, { "a store", want_store, { stores[0], stores[1] } },
    };
    const unsigned count = sizeof wants / sizeof *wants - (tells_verify_store() ? 0 : 1);

    (void)state;
    for (int i = 0; i < 2; i++)
        X509_STORE_add_cert(stores[i], alice);
    X509_STORE_add_crl(stores[1], list);
    X509_STORE_set_flags(stores[1], X509_V_FLAG_CRL_CHECK);
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (unsigned i = 0; i < count; i++) {
            SSL_CTX *client = client_of(version, alice, key), *servers[3];
            SSL_SESSION *session;

            for (int which = 0; which < 3; which++) { /* two that want the same, and another */
                servers[which] = trusting(version, alice);
                SSL_CTX_set_verify(servers[which], DEMANDED, NULL);
                SSL_CTX_set_cert_cb(servers[which], wants[i].want, wants[i].of[which / 2]);
            }
            assert_int_equal(visit(client, servers[0], NULL, NULL, NULL), 0);
            session = take_newest();
            for (int round = 0; round < 2; round++) { /* as without a session, whatever libssl thinks of a list in that store */
                int shown = visit(client, servers[2], session, NULL, NULL);

                if (shown == 1 || shown != visit(client, servers[2], NULL, NULL, NULL))
                    fail_msg("%s", wants[i].what);
            }
            assert_int_equal(visit(client, servers[0], session, NULL, NULL), 1);
            assert_int_equal(visit(client, servers[1], NULL, NULL, NULL), 0);
            assert_int_equal(visit(client, servers[1], session, NULL, NULL), wants[i].want != want_store);
            SSL_SESSION_free(session);
            for (int which = 0; which < 3; which++)
                SSL_CTX_free(servers[which]);
            SSL_CTX_free(client);
        }
    for (int i = 0; i < 2; i++)
        X509_STORE_free(stores[i]);
    X509_CRL_free(list);
    X509_free(alice);
    EVP_PKEY_free(key);
}

static void give_store(SSL_CTX *ctx, int verify_store, X509_STORE *store)
{
    if (verify_store)
        assert_int_equal(SSL_CTX_set1_verify_cert_store(ctx, store), 1);
    else
        SSL_CTX_set1_cert_store(ctx, store);
}

static SSL_CTX *host_ctx;

static int to_host(SSL *ssl, int *alert, void *arg)
{
    (void)alert, (void)arg;
    SSL_set_SSL_CTX(ssl, host_ctx);
    SSL_set_verify(ssl, SSL_CTX_get_verify_mode(host_ctx), SSL_CTX_get_verify_callback(host_ctx));
    return SSL_TLSEXT_ERR_OK;
}

/* A virtual host is given another trust store, which knows that the client was revoked: the next lookup already sees it. */
static void ISO1_a_virtual_host_is_as_it_is_now(void **state)
{
    const int tells = tells_verify_store();

    (void)state;
    for (int verify_store = 0; verify_store <= tells; verify_store++) {
        EVP_PKEY *key;
        X509 *alice = person("alice", &key);
        X509_CRL *list = revoking(alice, key);
        X509_STORE *before = X509_STORE_new(), *after = X509_STORE_new();
        SSL_CTX *client = client_of(TLS1_2_VERSION, alice, key), *first = service(TLS1_2_VERSION);
        SSL_SESSION *session;

        host_ctx = service(TLS1_2_VERSION);
        SSL_CTX_set_tlsext_servername_callback(first, to_host);
        X509_STORE_add_cert(before, alice);
        X509_STORE_add_cert(after, alice);
        X509_STORE_add_crl(after, list);
        X509_STORE_set_flags(after, X509_V_FLAG_CRL_CHECK);
        SSL_CTX_set_verify(host_ctx, DEMANDED, NULL);
        give_store(host_ctx, verify_store, before);
        assert_int_equal(visit(client, first, NULL, "v.test", NULL), 0);
        session = take_newest();
        assert_int_equal(visit(client, first, session, "v.test", NULL), 1);
        give_store(host_ctx, verify_store, after);
        for (int i = 0; i < 3; i++) /* refused, or judged in a full handshake: 4.0 looks at no list for a trusted certificate */
            assert_true(visit(client, first, session, "v.test", NULL) < 1);
        SSL_SESSION_free(session);
        X509_STORE_free(before);
        X509_STORE_free(after);
        SSL_CTX_free(host_ctx);
        SSL_CTX_free(first);
        SSL_CTX_free(client);
        X509_CRL_free(list);
        X509_free(alice);
        EVP_PKEY_free(key);
    }
}

/* A virtual host is replaced by one that demands certificates, which mostly gets the address of the first. */
static void ISO1_an_address_is_used_again(void **state)
{
    SSL_CTX *client = client_ctx(TLS1_2_VERSION), *first = service(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    host_ctx = service(TLS1_2_VERSION);
    SSL_CTX_set_tlsext_servername_callback(first, to_host);
    assert_int_equal(visit(client, first, NULL, "v.test", NULL), 0);
    session = take_newest();
    assert_int_equal(visit(client, first, session, "v.test", NULL), 1);
    SSL_CTX_free(host_ctx);
    host_ctx = service(TLS1_2_VERSION);
    SSL_CTX_set_verify(host_ctx, DEMANDED, NULL);
    assert_int_equal(visit(client, first, session, "v.test", NULL), -1);
    assert_int_equal(visit(client, first, session, "v.test", NULL), -1);
    /* One that asks for none shares again. */
    SSL_CTX_free(host_ctx);
    host_ctx = service(TLS1_2_VERSION);
    assert_int_equal(visit(client, first, NULL, "v.test", NULL), 0);
    SSL_SESSION_free(session);
    session = take_newest();
    assert_int_equal(visit(client, first, session, "v.test", NULL), 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(host_ctx);
    SSL_CTX_free(first);
    SSL_CTX_free(client);
}

/* Parameters that are changed where they are make the context another service at once. */
static void ISO1_parameters_are_compared_by_content(void **state)
{
    SSL_CTX *client = client_ctx(TLS1_2_VERSION), *a = service(TLS1_2_VERSION), *b = service(TLS1_2_VERSION);
    SSL_SESSION *before, *after;

    (void)state;
    for (int mail = 0; mail < 2; mail++) {
        int (*set)(X509_VERIFY_PARAM *, const char *, size_t) =
            mail ? X509_VERIFY_PARAM_set1_email : X509_VERIFY_PARAM_set1_host;

        assert_int_equal(set(SSL_CTX_get0_param(a), mail ? "a@x.org" : "a.test", 0), 1);
        assert_int_equal(visit(client, a, NULL, NULL, NULL), 0);
        before = take_newest();
        assert_int_equal(visit(client, a, before, NULL, NULL), 1);
        assert_int_equal(set(SSL_CTX_get0_param(a), mail ? "b@x.org" : "b.test", 0), 1);
        assert_int_equal(set(SSL_CTX_get0_param(b), mail ? "b@x.org" : "b.test", 0), 1);
        assert_int_equal(visit(client, a, before, NULL, NULL), 0);
        assert_int_equal(visit(client, b, NULL, NULL, NULL), 0);
        after = take_newest();
        assert_int_equal(visit(client, a, after, NULL, NULL), 1);
        SSL_SESSION_free(before);
        SSL_SESSION_free(after);
    }
    SSL_CTX_free(a);
    SSL_CTX_free(b);
    SSL_CTX_free(client);
}

/* A certificate asked for later, in another handshake or after it, is not how connections with that name turn out. */
static void LESS1_a_certificate_that_is_asked_for_later(void **state)
{
    EVP_PKEY *key;
    X509 *alice = person("alice", &key);

    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
        SSL_CTX *client = client_of(version, alice, key), *server = trusting(version, alice);
        SSL_SESSION *session;
        char byte;
        pair p;

        SSL_CTX_set_post_handshake_auth(client, 1);
        SSL_CTX_set_tlsext_servername_callback(server, demand_for_secret);
        assert_int_equal(visit(client, server, NULL, "a.test", NULL), 0);
        session = take_newest();
        p = tls_prepare(client, server);
        SSL_set_tlsext_host_name(p.client, "a.test");
        assert_true(tls_drive(&p));
        SSL_set_verify(p.server, SSL_VERIFY_PEER, NULL);
        assert_int_equal(version == TLS1_2_VERSION ? SSL_renegotiate(p.server)
                                                   : SSL_verify_client_post_handshake(p.server), 1);
        for (int i = 0; i < 10; i++) {
            SSL_do_handshake(p.server);
            SSL_read(p.client, &byte, 1);
            SSL_read(p.server, &byte, 1);
        }
        assert_non_null(SSL_SESSION_get0_peer(SSL_get_session(p.server)));
        tls_close(&p);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(visit(client, server, session, "a.test", NULL), 1);
            SSL_SESSION_free(session);
            session = take_newest();
        }
        SSL_SESSION_free(session);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
    X509_free(alice);
    EVP_PKEY_free(key);
}

#if OPENSSL_VERSION_NUMBER >= 0x30000000L
static void expect_bob(SSL *ssl)
{
    assert_int_equal(X509_VERIFY_PARAM_set1_email(SSL_get0_param(ssl), "bob@x.org", 0), 1);
}

static void demand_bob(SSL *ssl)
{
    expect_bob(ssl);
    SSL_set_verify(ssl, DEMANDED, accept_some);
}

/* A program tells a connection to demand a certificate once it has let its client in, who showed none or one that only another
 * callback accepted, and issues a ticket then. It is for the SSL_CTX that issued it, which is what stock does, whether or
 * not the handshake itself issued tickets, and also where a label says that callbacks which look equal are. */
static void ISO1_a_ticket_after_a_demand_that_came_later(void **state)
{
    EVP_PKEY *key;
    X509 *eve = person("eve", &key);

    (void)state;
    for (int tickets = 0; tickets < 3; tickets++)
        for (int let_in = 0; let_in < 2; let_in++) {
            SSL_CTX *client = let_in ? client_of(TLS1_3_VERSION, eve, key) : client_ctx(TLS1_3_VERSION);
            SSL_CTX *a = trusting(TLS1_3_VERSION, eve), *b = trusting(TLS1_3_VERSION, eve);
            SSL_SESSION *session;
            char labelled[96];
            pair p;

            snprintf(labelled, sizeof labelled, "%s&service=bob", url);
            assert_int_equal(reprise_ctx_set_cache(a, labelled) + reprise_ctx_set_cache(b, labelled), 2);
            SSL_CTX_set_num_tickets(a, tickets);
            p = tls_prepare(client, a);
            expect_bob(p.server);
            if (let_in)
                SSL_set_verify(p.server, SSL_VERIFY_PEER, accept_all);
            assert_true(tls_drive(&p));
            demand_bob(p.server);
            assert_int_equal(SSL_new_session_ticket(p.server), 1);
            assert_true(tls_echo(&p));
            assert_true(tls_echo(&p)); /* the ticket leaves with what is written after it was asked for */
            session = SSL_get1_session(p.client);
            assert_true(SSL_SESSION_is_resumable(session));
            tls_close(&p);
            assert_int_equal(visit(client, b, NULL, NULL, demand_bob), -1);
            assert_int_equal(visit(client, b, session, NULL, demand_bob), -1);
            SSL_SESSION_free(session);
            SSL_CTX_free(client);
            SSL_CTX_free(a);
            SSL_CTX_free(b);
        }
    X509_free(eve);
    EVP_PKEY_free(key);
}
#endif

/* ---- the host ---- */

static int judged;

static int judge_with_connection(int ok, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());

    judged += SSL_is_server(ssl);
    return ok;
}

#if OPENSSL_VERSION_NUMBER >= 0x40000000L
typedef const X509 looked_at;
#else
typedef X509 looked_at;
#endif

static int is_issued(X509_STORE_CTX *store, looked_at *certificate, looked_at *issuer)
{
    judged += SSL_is_server(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
    return X509_check_issued(issuer, certificate) == X509_V_OK;
}

/* Functions of a trust store find the connection, as they do in a handshake. Its verify callback is not called. */
static void HOST1_functions_of_a_trust_store(void **state)
{
    (void)state;
    for (int other = 0; other < 2; other++) {
        EVP_PKEY *key;
        X509 *alice = person("alice", &key);
        SSL_CTX *client = client_of(TLS1_2_VERSION, alice, key), *server = trusting(TLS1_2_VERSION, alice);
        SSL_SESSION *session;
        int before;

        SSL_CTX_set_mode(server, SSL_MODE_NO_AUTO_CHAIN); /* which asks the store without a connection */
        SSL_CTX_set_verify(server, DEMANDED, NULL);
        if (other)
            X509_STORE_set_check_issued(SSL_CTX_get_cert_store(server), is_issued);
        else
            X509_STORE_set_verify_cb(SSL_CTX_get_cert_store(server), judge_with_connection);
        assert_int_equal(visit(client, server, NULL, NULL, NULL), 0);
        session = take_newest();
        before = judged;
        assert_true(before > 0);
        assert_int_equal(visit(client, server, session, NULL, NULL), 1);
        assert_int_equal(judged > before, other);
        SSL_SESSION_free(session);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
        X509_free(alice);
        EVP_PKEY_free(key);
    }
}

static SSL_CTX *told_by_new;

static void tell(void *parent, void *value, CRYPTO_EX_DATA *data, int index, long argl, void *argp)
{
    (void)parent, (void)value, (void)data, (void)index, (void)argl, (void)argp;
    if (told_by_new != NULL)
        SSL_CTX_set_session_id_context(told_by_new, (const unsigned char *)"c_tests", 7);
}

/* Certificates of every kind are found by a connection that is made for that. The program hears of it, and may call back. */
static void CB11_ex_data_of_connections(void **state)
{
    SSL_CTX *client = client_ctx(TLS1_2_VERSION), *server = service(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    assert_true(SSL_get_ex_new_index(0, NULL, tell, NULL, NULL) >= 0);
    told_by_new = server;
    session = tls_session(client, server);
    assert_true(tls_resumes(client, server, session));
    told_by_new = NULL;
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* What is noted on the way to libssl bears being called with nothing. */
static void BAD1_callbacks_for_nobody(void **state)
{
    (void)state;
    assert_int_equal(SSL_CTX_callback_ctrl(NULL, SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, NULL), 0);
    SSL_CTX_set_cert_cb(NULL, demand_unless_lax, NULL);
    SSL_set_cert_cb(NULL, demand_unless_lax, NULL);
}

/* With a maximum age, a session ends with its client's certificate, also in memory, where nothing verifies that again. */
static void LIFE1_a_certificate_that_ends(void **state)
{
    enum { CASES = 4 };
    SSL_CTX *clients[CASES], *servers[CASES];
    SSL_SESSION *sessions[CASES];
    EVP_PKEY *key;
    X509 *alice = person("alice", &key);

    (void)state;
    X509_gmtime_adj(X509_getm_notBefore(alice), -5);
    X509_gmtime_adj(X509_getm_notAfter(alice), slowly() ? 20 : 4);
    assert_true(X509_sign(alice, key, EVP_sha256()) > 0);
    for (int i = 0; i < CASES; i++) { /* each version, in shared memory and in that of the process */
        const int version = i % 2 ? TLS1_3_VERSION : TLS1_2_VERSION;

        clients[i] = client_of(version, alice, key);
        servers[i] = trusting(version, alice);
        SSL_CTX_set_verify(servers[i], SSL_VERIFY_PEER, NULL);
        if (i / 2)
            assert_int_equal(reprise_ctx_set_cache(servers[i], "memory:"), 1);
        assert_int_equal(reprise_ctx_set_max_age(servers[i], 1000), 1);
        assert_int_equal(visit(clients[i], servers[i], NULL, NULL, NULL), 0);
        sessions[i] = take_newest();
        assert_int_equal(visit(clients[i], servers[i], sessions[i], NULL, NULL), 1);
        SSL_SESSION_free(sessions[i]);
        sessions[i] = take_newest(); /* renewed, from 1.3 on */
    }
    while (X509_cmp_current_time(X509_get0_notAfter(alice)) > 0)
        sleep(1);
    for (int i = 0; i < CASES; i++) {
        if (visit(clients[i], servers[i], sessions[i], NULL, NULL) == 1)
            fail_msg("case %d is resumed", i);
        SSL_SESSION_free(sessions[i]);
        SSL_CTX_free(clients[i]);
        SSL_CTX_free(servers[i]);
    }
    X509_free(alice);
    EVP_PKEY_free(key);
}

static int left;
static void count_left(SSL_CTX *ctx, SSL_SESSION *session) { (void)ctx, (void)session, left++; }

/* A ticket for early data leaves the cache when it is looked up, also where it turns out to be too old. */
static void CB5_a_ticket_that_is_too_old(void **state)
{
    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        SSL_CTX *client = client_ctx(TLS1_3_VERSION), *server = service(TLS1_3_VERSION);
        SSL_SESSION *session;

        if (in_memory)
            assert_int_equal(reprise_ctx_set_cache(server, "memory:"), 1);
        SSL_CTX_set_max_early_data(server, 1000);
        SSL_CTX_set_num_tickets(server, 1);
        SSL_CTX_sess_set_remove_cb(server, count_left);
        reprise_ctx_set_max_age(server, 1);
        session = tls_session(client, server);
        assert_int_equal(SSL_CTX_sess_number(server), 1);
        SSL_CTX_set_num_tickets(server, 0);
        sleep(3);
        left = 0;
        assert_int_equal(visit(client, server, session, NULL, NULL), 0);
        assert_int_equal(SSL_CTX_sess_number(server), 0);
        assert_int_equal(left, 1);
        SSL_SESSION_free(session);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TEST(ISO1_a_client_s_session_is_no_server_s),
        CACHE_TEST(ISO1_settings_tell_services_apart),
        CACHE_TEST(ISO1_sessions_of_shared_keys_stay),
#ifndef OPENSSL_NO_SRP
        CACHE_TEST(ISO1_sessions_of_passwords_stay),
#endif
        CACHE_TEST(ISO1_ciphers_that_are_replaced_twice),
        CACHE_TEST(ISO1_what_a_verify_callback_judged_stays),
        CACHE_TEST(ISO1_a_session_is_for_one_server_name),
        CACHE_TEST(ISO1_listeners_of_one_context),
        CACHE_TEST(ISO1_what_a_program_brings_stays),
        CACHE_TEST(ISO1_another_session_with_the_same_id_stays),
        CACHE_TEST(ISO2_what_a_handshake_leaves_is_shared),
        CACHE_TEST(ISO1_parameters_of_connections),
        CACHE_TEST(ISO1_a_virtual_host_is_as_it_is_now),
        CACHE_TEST(ISO1_an_address_is_used_again),
        CACHE_TEST(ISO1_parameters_are_compared_by_content),
        CACHE_TEST(LESS1_a_certificate_that_is_asked_for_later),
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
        CACHE_TEST(ISO1_a_ticket_after_a_demand_that_came_later),
#endif
        CACHE_TEST(HOST1_functions_of_a_trust_store),
        CACHE_TEST(CB11_ex_data_of_connections),
        CACHE_TEST(BAD1_callbacks_for_nobody),
        CACHE_TEST(CB5_a_ticket_that_is_too_old),
        CACHE_TEST(LIFE1_a_certificate_that_ends),
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
