/*
 * SSL_get_peer_cert_chain(3): a server sees of a client that it resumes what it saw in the full handshake, wherever the
 * session was meanwhile: its certificate, what it showed beside that, and the result of verifying both.
 */
#include "harness.h"

#include <string.h>

#include <openssl/x509v3.h>

enum { ROUNDS = 4 };

/* Who a client is: a certificate below one of a CA, and the CAs that it shows beside its own. */
struct pki {
    X509 *root, *middle, *leaf;
    EVP_PKEY *root_key, *middle_key, *leaf_key;
};

static X509 *issued(EVP_PKEY **key, const char *name, int is_ca, X509 *issuer, EVP_PKEY *issuer_key)
{
    X509 *made = other_certificate(key);
    X509_EXTENSION *constraints = X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints, is_ca ? "CA:TRUE" : "CA:FALSE");

    X509_set_version(made, 2);
    add_common_name(made, name);
    assert_int_equal(X509_set_issuer_name(made, X509_get_subject_name(issuer != NULL ? issuer : made)), 1);
    assert_int_equal(X509_add_ext(made, constraints, -1), 1);
    X509_EXTENSION_free(constraints);
    assert_true(X509_sign(made, issuer != NULL ? issuer_key : *key, EVP_sha256()) > 0);
    return made;
}

static struct pki new_pki(const char *root)
{
    struct pki pki;

    pki.root = issued(&pki.root_key, root, 1, NULL, NULL);
    pki.middle = issued(&pki.middle_key, "middle", 1, pki.root, pki.root_key);
    pki.leaf = issued(&pki.leaf_key, "leaf", 0, pki.middle, pki.middle_key);
    return pki;
}

static void free_pki(struct pki *pki)
{
    X509_free(pki->root);
    X509_free(pki->middle);
    X509_free(pki->leaf);
    EVP_PKEY_free(pki->root_key);
    EVP_PKEY_free(pki->middle_key);
    EVP_PKEY_free(pki->leaf_key);
}

static SSL_CTX *trusting(int version, X509 *root)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET); /* a ticket that has the whole session has no chain, on any side */
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    assert_int_equal(X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), root), 1);
    return ctx;
}

/* A client that shows so many certificates beside its own. */
static SSL_CTX *showing(int version, const struct pki *pki, int count)
{
    SSL_CTX *ctx = client_ctx(version);
    X509 *shown[] = { pki->middle, pki->root };

    SSL_CTX_set_mode(ctx, SSL_MODE_NO_AUTO_CHAIN);
    assert_int_equal(SSL_CTX_use_certificate(ctx, pki->leaf), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, pki->leaf_key), 1);
    for (int i = 0; i < count; i++)
        assert_int_equal(SSL_CTX_add1_chain_cert(ctx, shown[i]), 1);
    return ctx;
}

static X509 *peer_of(const SSL *ssl)
{
    return SSL_SESSION_get0_peer(SSL_get_session(ssl));
}

/* What a server sees of a client: the certificates beside its own (-1 without a chain), where they are the ones that
 * were shown, and the result. */
static void assert_sees(const SSL *server, const struct pki *pki, int count)
{
    X509 *shown[] = { pki->middle, pki->root };
    STACK_OF(X509) *chain = SSL_get_peer_cert_chain(server);

    assert_non_null(peer_of(server));
    assert_int_equal(X509_cmp(peer_of(server), pki->leaf), 0);
    assert_int_equal(SSL_get_verify_result(server), X509_V_OK);
    assert_non_null(chain);
    assert_int_equal(sk_X509_num(chain), count);
    for (int i = 0; i < count; i++)
        assert_int_equal(X509_cmp(sk_X509_value(chain, i), shown[i]), 0);
    assert_ptr_equal(SSL_get_peer_cert_chain(server), chain);
}

/* The same after each of several resumptions, of which each has the session of the one before. */
static void LESS1_a_chain_is_there_after_a_resumption(void **state)
{
    struct pki pki = new_pki("root");

    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (int count = 1; count <= 2; count++) {
            SSL_CTX *server = trusting(version, pki.root), *client = showing(version, &pki, count);
            SSL_SESSION *session = NULL;

            for (int round = 0; round < ROUNDS; round++) {
                pair p = tls_connect(client, server, session);
                STACK_OF(X509) *before = SSL_get_peer_cert_chain(p.server), *verified;

                assert_int_equal(tls_resumed(&p), round > 0);
                assert_sees(p.server, &pki, count);
                verified = SSL_get0_verified_chain(p.server);
                assert_int_equal(verified == NULL, round > 0); /* it is of the handshake that verified */
                assert_true(tls_echo(&p));
                assert_ptr_equal(SSL_get_peer_cert_chain(p.server), before);
                SSL_SESSION_free(session);
                session = SSL_get1_session(p.client);
                tls_close(&p);
            }
            SSL_SESSION_free(session);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
    free_pki(&pki);
}

/* A program that adds what was negotiated, too, as stunnel does, has only the object to add. */
static void LESS1_a_session_that_is_added_by_hand(void **state)
{
    struct pki pki = new_pki("root");

    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (int by_hand_only = 0; by_hand_only < 2; by_hand_only++) {
            SSL_CTX *server = trusting(version, pki.root), *client = showing(version, &pki, 1);
            SSL_SESSION *session;
            pair p;

            if (by_hand_only)
                SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE);
            p = tls_connect(client, server, NULL);
            SSL_CTX_add_session(server, SSL_get_session(p.server));
            session = SSL_get1_session(p.client);
            tls_close(&p);
            SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER);
            p = tls_connect(client, server, session);
            assert_int_equal(tls_resumed(&p), 1);
            assert_sees(p.server, &pki, 1);
            tls_close(&p);
            SSL_SESSION_free(session);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
    free_pki(&pki);
}

/* A client that shows its own certificate only has a chain of none. So has one that shows none: where libssl has an empty
 * chain for it, there may be no chain after a resumption. */
static void LESS1_clients_without_a_chain(void **state)
{
    struct pki pki = new_pki("root");

    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++)
        for (int anonymous = 0; anonymous < 2; anonymous++) {
            SSL_CTX *server = trusting(version, pki.root);
            SSL_CTX *client = anonymous ? client_ctx(version) : showing(version, &pki, 0);
            SSL_SESSION *session = NULL;

            assert_int_equal(X509_STORE_add_cert(SSL_CTX_get_cert_store(server), pki.middle), 1);
            for (int round = 0; round < 3; round++) {
                pair p = tls_connect(client, server, session);

                assert_int_equal(tls_resumed(&p), round > 0);
                if (anonymous) {
                    assert_null(peer_of(p.server));
                    assert_true(sk_X509_num(SSL_get_peer_cert_chain(p.server)) <= 0);
                } else
                    assert_sees(p.server, &pki, 0);
                SSL_SESSION_free(session);
                session = SSL_get1_session(p.client);
                tls_close(&p);
            }
            SSL_SESSION_free(session);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
    free_pki(&pki);
}

/* The chain lives as long as the session, also without the connection and its SSL_CTX; and the certificate may be kept
 * for longer than that. */
static void LESS1_a_chain_lives_as_long_as_its_session(void **state)
{
    struct pki pki = new_pki("root");
    SSL_CTX *server = trusting(TLS1_2_VERSION, pki.root), *client = showing(TLS1_2_VERSION, &pki, 2);
    SSL_SESSION *offer = tls_session(client, server), *kept;
    STACK_OF(X509) *chain;
    X509 *peer;
    pair p;

    (void)state;
    p = tls_connect(client, server, offer);
    assert_int_equal(tls_resumed(&p), 1);
    chain = SSL_get_peer_cert_chain(p.server);
    kept = SSL_get1_session(p.server);
    peer = peer_of(p.server);
    assert_int_equal(X509_up_ref(peer), 1);
    tls_close(&p);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    assert_int_equal(sk_X509_num(chain), 2);
    assert_int_equal(X509_cmp(sk_X509_value(chain, 0), pki.middle), 0);
    SSL_SESSION_free(kept);
    SSL_SESSION_free(offer);
    assert_int_equal(X509_cmp(peer, pki.leaf), 0);
    X509_free(peer);
    free_pki(&pki);
}

/* A connection has the chain of its own client, and SSL_clear leaves it what it leaves it without Reprise. */
static void LESS1_each_connection_has_its_own_client_s(void **state)
{
    struct pki one = new_pki("root"), other = new_pki("another root");
    SSL_CTX *server = trusting(TLS1_2_VERSION, one.root);
    SSL_CTX *first = showing(TLS1_2_VERSION, &one, 1), *second = showing(TLS1_2_VERSION, &other, 2);
    SSL_SESSION *of_first, *of_second;
    pair p, q;

    (void)state;
    assert_int_equal(X509_STORE_add_cert(SSL_CTX_get_cert_store(server), other.root), 1);
    of_first = tls_session(first, server);
    of_second = tls_session(second, server);
    p = tls_connect(first, server, of_first);
    q = tls_connect(second, server, of_second);
    assert_int_equal(tls_resumed(&p) + tls_resumed(&q), 2);
    assert_sees(p.server, &one, 1);
    assert_sees(q.server, &other, 2);
    tls_close(&q);
    assert_sees(p.server, &one, 1);
    SSL_shutdown(p.server);
    SSL_shutdown(p.client);
    assert_int_equal(SSL_clear(p.server), 1);
    if (SSL_get_session(p.server) != NULL)
        assert_sees(p.server, &one, 1);
    else
        assert_null(SSL_get_peer_cert_chain(p.server));
    tls_close(&p);
    SSL_SESSION_free(of_first);
    SSL_SESSION_free(of_second);
    SSL_CTX_free(server);
    SSL_CTX_free(first);
    SSL_CTX_free(second);
    free_pki(&one);
    free_pki(&other);
}

/* A client sees its server's chain, and after a resumption with a session that it kept as an object as well. */
static void LESS1_what_a_client_sees(void **state)
{
    (void)state;
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
        SSL_CTX *server = server_ctx(version), *client = client_ctx(version);
        SSL_SESSION *session = NULL;
        SSL *fresh = SSL_new(client);

        assert_null(SSL_get_peer_cert_chain(fresh));
        SSL_free(fresh);
        assert_null(SSL_get_peer_cert_chain(NULL));
        for (int round = 0; round < 2; round++) {
            pair p = tls_connect(client, server, session);

            assert_int_equal(tls_resumed(&p), round > 0);
            assert_int_equal(sk_X509_num(SSL_get_peer_cert_chain(p.client)), 1); /* a client's has the peer's own */
            assert_null(SSL_get_peer_cert_chain(p.server));
            SSL_SESSION_free(session);
            session = SSL_get1_session(p.client);
            tls_close(&p);
        }
        SSL_SESSION_free(session);
        SSL_CTX_free(server);
        SSL_CTX_free(client);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(LESS1_a_chain_is_there_after_a_resumption),
        RULE_TEST(LESS1_a_session_that_is_added_by_hand),
        RULE_TEST(LESS1_clients_without_a_chain),
        RULE_TEST(LESS1_a_chain_lives_as_long_as_its_session),
        RULE_TEST(LESS1_each_connection_has_its_own_client_s),
        RULE_TEST(LESS1_what_a_client_sees),
    };

    return RUN_PAGE("SSL_get_peer_cert_chain", tests);
}
