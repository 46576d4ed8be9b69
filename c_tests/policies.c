/*
 * What reprise_ctx_set_tickets, reprise_ctx_set_internal and reprise_ctx_set_unclean change, and what they leave alone. There is nothing of this
 * on stock libssl.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>

#include <openssl/err.h>

#include "reprise.h"

static const struct kind { const char *name; int version; } kinds[] = {
    { "TLS 1.2", TLS1_2_VERSION }, { "TLS 1.3", TLS1_3_VERSION },
};

enum end { FREED, CLEARED, CUT, FATAL, REVOKED, ENDS };
static const char *const end_names[ENDS] = { "freed", "cleared", "cut", "a fatal alert", "revoked after another was cut" };

/* The stream from the client ends; the server reads. */
static void cut(pair *p)
{
    char byte;

    (void)BIO_shutdown_wr(SSL_get_wbio(p->client));
    assert_true(SSL_read(p->server, &byte, 1) <= 0);
}

/* A record that no peer made: the server answers with a fatal alert. */
static void inject_garbage(pair *p)
{
    static const unsigned char record[5 + 64] = { 23, 3, 3, 0, 64 };
    char byte;

    assert_int_equal(BIO_write(SSL_get_wbio(p->client), record, sizeof record), (int)sizeof record);
    assert_true(SSL_read(p->server, &byte, 1) <= 0);
}

/* Whether the server resumes a session whose connection ended so. The client's end is always clean. */
static int resumes_after(SSL_CTX *client, SSL_CTX *server, enum end end)
{
    pair p = tls_connect(client, server, NULL), other;
    SSL_SESSION *theirs = SSL_get1_session(p.client);
    int resumes;

    ERR_clear_error();
    switch (end) {
    case CLEARED:
        assert_int_equal(SSL_clear(p.server), 1);
        break;
    case CUT:
        cut(&p);
        break;
    case FATAL:
        inject_garbage(&p);
        break;
    case REVOKED:
        other = tls_connect(client, server, NULL);
        ERR_clear_error();
        cut(&other); /* its error is left on the queue */
        assert_int_equal(SSL_CTX_remove_session(server, SSL_get_session(p.server)), 1);
        SSL_set_shutdown(other.client, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        tls_drop(&other);
        break;
    default:
        break;
    }
    SSL_set_shutdown(p.client, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    tls_drop(&p);
    ERR_clear_error();
    resumes = tls_resumes(client, server, theirs);
    SSL_SESSION_free(theirs);
    return resumes;
}

static void unclean(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int keep = 0; keep < 2; keep++)
            for (int end = 0; end < ENDS; end++) {
                SSL_CTX *server = server_ctx(kinds[k].version), *client = client_ctx(kinds[k].version);
                int expected = keep && (end == FREED || end == CLEARED || end == CUT);
                int resumes;

                SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
                assert_int_equal(reprise_ctx_set_unclean(server, keep ? REPRISE_UNCLEAN_KEEP : REPRISE_UNCLEAN_DROP), 1);
                resumes = resumes_after(client, server, end);
                if (resumes != expected)
                    fail_msg("%s, %s, %s: resumes %d", kinds[k].name, keep ? "keep" : "drop", end_names[end], resumes);
                SSL_CTX_free(server);
                SSL_CTX_free(client);
            }
}

/* Whether a client that resumes has a session which the server caches: after a flush it is of no use. */
static void tickets(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int stateful = 0; stateful < 2; stateful++) {
            SSL_CTX *server = server_ctx(kinds[k].version), *client = client_ctx(kinds[k].version);
            SSL_SESSION *session;

            assert_int_equal(reprise_ctx_set_tickets(server, stateful ? REPRISE_TICKETS_STATEFUL : REPRISE_TICKETS_AS_IS), 1);
            session = tls_session(client, server);
            assert_true(tls_resumes(client, server, session));
            if (stateful)
                assert_true(in_redis() || SSL_CTX_sess_number(server) > 0);
            SSL_CTX_flush_sessions(server, 0);
            assert_int_equal(tls_resumes(client, server, session), !stateful);
            assert_int_equal(SSL_CTX_get_options(server) & SSL_OP_NO_TICKET, 0);
            SSL_SESSION_free(session);
            SSL_CTX_free(server);
            SSL_CTX_free(client);
        }
}

/* A context is a server's and a client's: the client goes on asking for tickets. */
static void tickets_of_clients(void **state)
{
    SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    assert_int_equal(reprise_ctx_set_tickets(client, REPRISE_TICKETS_STATEFUL), 1);
    session = tls_session(client, server);
    assert_true(SSL_SESSION_has_ticket(session));
    SSL_SESSION_free(session);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

/* A program that wants no internal cache has one under this policy, and is told its own mode. */
static void internal(void **state)
{
    static const long modes[] = { SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL,
                                  SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE };

    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
            for (int always = 0; always < 2; always++) {
                SSL_CTX *server = server_ctx(kinds[k].version), *client = client_ctx(kinds[k].version);
                SSL_SESSION *session;
                pair p;

                SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
                SSL_CTX_set_session_cache_mode(server, modes[m]);
                assert_int_equal(reprise_ctx_set_internal(server, always ? REPRISE_INTERNAL_ALWAYS : REPRISE_INTERNAL_AS_IS), 1);
                assert_int_equal(SSL_CTX_get_session_cache_mode(server), modes[m]);
                p = tls_connect(client, server, NULL);
                session = SSL_get1_session(p.client);
                tls_close(&p);
                for (int i = 0; i < 2; i++) {
                    /* A server that caches nothing gives no id. */
                    int resumable = SSL_SESSION_is_resumable(session);

                    assert_int_equal(resumable && tls_resumes(client, server, session), always);
                    assert_int_equal(SSL_CTX_set_session_cache_mode(server, modes[m]), modes[m]);
                }
                SSL_SESSION_free(session);
                SSL_CTX_free(server);
                SSL_CTX_free(client);
            }
}

static int refuses(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl, (void)session;
    return 0;
}

/* As stunnel's does, which has just noted something on the session: it stays all the same. */
static void internal_whatever_new_cb_returns(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        SSL_CTX *server = server_ctx(kinds[k].version), *client = client_ctx(kinds[k].version);
        SSL_SESSION *session;
        pair p;

        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_sess_set_new_cb(server, refuses);
        assert_int_equal(reprise_ctx_set_internal(server, REPRISE_INTERNAL_ALWAYS), 1);
        p = tls_connect(client, server, NULL);
        session = SSL_get1_session(p.client);
        tls_close(&p);
        assert_true(tls_resumes(client, server, session));
        SSL_SESSION_free(session);
        SSL_CTX_free(server);
        SSL_CTX_free(client);
    }
}

static void wrong_arguments(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    ERR_clear_error();
    assert_int_equal(reprise_ctx_set_tickets(ctx, 7), 0);
    assert_string_equal(ERR_lib_error_string(ERR_peek_error()), "reprise");
    assert_non_null(strstr(ERR_reason_error_string(ERR_get_error()), "REPRISE_TICKETS_STATEFUL"));
    assert_int_equal(reprise_ctx_set_unclean(ctx, -1), 0);
    assert_non_null(strstr(ERR_reason_error_string(ERR_get_error()), "REPRISE_UNCLEAN_KEEP"));
    assert_int_equal(reprise_ctx_set_internal(ctx, 2), 0);
    assert_non_null(strstr(ERR_reason_error_string(ERR_get_error()), "REPRISE_INTERNAL_ALWAYS"));
    assert_int_equal(reprise_ctx_set_internal(NULL, 0), 0);
    assert_int_equal(reprise_ctx_set_tickets(NULL, 0), 0);
    assert_int_equal(reprise_ctx_set_unclean(NULL, 0), 0);
    ERR_clear_error();
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(unclean),
        RULE_TEST(tickets),
        RULE_TEST(tickets_of_clients),
        RULE_TEST(internal),
        RULE_TEST(internal_whatever_new_cb_returns),
        RULE_TEST(wrong_arguments),
    };

    return RUN_PAGE("policies", tests);
}
#else
int main(void)
{
    return 0;
}
#endif
