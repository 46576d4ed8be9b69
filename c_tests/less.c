/*
 * Under no policy does a server resume less than without it: sizes of a cache that is switched off, programs whose callbacks
 * are the cache, connections that end without close_notify.
 */
#include "harness.h"
#ifdef WITH_REPRISE
#include "reprise.h"

enum { CLIENTS = 20 };

/* Of as many clients, each of which comes back once, those that were resumed. With `drop`, connections just end. */
static int resumed(SSL_CTX *client, SSL_CTX *server, int drop)
{
    SSL_SESSION *session[CLIENTS];
    int count = 0;

    for (int i = 0; i < CLIENTS; i++) {
        pair p = tls_connect(client, server, NULL);

        session[i] = SSL_get1_session(p.client);
        if (drop) {
            SSL_set_shutdown(p.client, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* the client's stays as it is */
            tls_drop(&p);
        } else {
            tls_close(&p);
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        count += tls_resumes(client, server, session[i]);
        SSL_SESSION_free(session[i]);
    }
    return count;
}

static int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };

/* nginx, ssl_session_cache none: the size is for a cache that it has switched off. */
static void a_size_for_a_cache_that_is_off(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int size_first = 0; size_first < 2; size_first++) {
            SSL_CTX *server = server_ctx(versions[i]), *client = client_ctx(versions[i]);

            assert_int_equal(reprise_ctx_set_internal(server, REPRISE_INTERNAL_ALWAYS), 1);
            assert_int_equal(reprise_ctx_set_tickets(server, REPRISE_TICKETS_STATEFUL), 1);
            if (size_first)
                SSL_CTX_sess_set_cache_size(server, 1);
            SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_AUTO_CLEAR |
                                                   SSL_SESS_CACHE_NO_INTERNAL_STORE);
            if (!size_first)
                SSL_CTX_sess_set_cache_size(server, 1);
            assert_int_equal(resumed(client, server, 0), CLIENTS);
            assert_int_equal(SSL_CTX_sess_get_cache_size(server), 1);
            /* It counts as soon as the cache is meant. */
            SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER);
            if (!shared())
                assert_true(resumed(client, server, 0) < CLIENTS);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
}

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl, (void)session;
    return 0;
}

static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    (void)ssl, (void)id, (void)length, (void)copy;
    return NULL;
}

/* Node.js: the callbacks know nothing of what tickets name, so tickets stay what they are. */
static void callbacks_that_are_the_cache(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int always = 0; always < 2; always++) {
            SSL_CTX *server = server_ctx(versions[i]), *client = client_ctx(versions[i]);

            assert_int_equal(reprise_ctx_set_tickets(server, REPRISE_TICKETS_STATEFUL), 1);
            SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL |
                                                   SSL_SESS_CACHE_NO_AUTO_CLEAR);
            SSL_CTX_sess_set_get_cb(server, on_get);
            if (always) {
                assert_int_equal(reprise_ctx_set_internal(server, REPRISE_INTERNAL_ALWAYS), 1);
                assert_int_equal(reprise_ctx_set_semantics(server, REPRISE_SEMANTICS_STOCK), 1);
            }
            SSL_CTX_sess_set_new_cb(server, on_new);
            assert_int_equal(resumed(client, server, 0), CLIENTS);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
}

/* Python's http.server closes without close_notify: that never cost a ticket. */
static void unclean_ends_of_stateful_tickets(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        SSL_CTX *server = server_ctx(versions[i]), *client = client_ctx(versions[i]);

        assert_int_equal(resumed(client, server, 1), CLIENTS);
        assert_int_equal(reprise_ctx_set_tickets(server, REPRISE_TICKETS_STATEFUL), 1);
        assert_int_equal(resumed(client, server, 1), CLIENTS);
        SSL_CTX_free(server);
        /* Where the program asks for such tickets itself, it has what libssl does with them. */
        server = server_ctx(versions[i]);
        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        assert_int_equal(reprise_ctx_set_tickets(server, REPRISE_TICKETS_STATEFUL), 1);
        assert_int_equal(resumed(client, server, 1), 0);
        SSL_CTX_free(server);
        SSL_CTX_free(client);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(a_size_for_a_cache_that_is_off),
        RULE_TEST(callbacks_that_are_the_cache),
        RULE_TEST(unclean_ends_of_stateful_tickets),
    };

    return RUN_PAGE("less", tests);
}
#else
int main(void)
{
    return 0;
}
#endif
