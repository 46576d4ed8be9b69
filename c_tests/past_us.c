/*
 * What a program does to a context with functions that it found by itself (dlsym on libssl's handle), and the order in which
 * sessions leave together.
 */
#define OPENSSL_SUPPRESS_DEPRECATED /* SSL_CTX_flush_sessions is the name programs use */
#define _GNU_SOURCE /* RTLD_NOLOAD */
#include "harness.h"

#include <dlfcn.h>
#include <string.h>
#include <time.h>

static unsigned char order[256];
static int gone;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    unsigned int length;

    (void)ctx;
    order[gone++] = SSL_SESSION_get_id(session, &length)[0];
}

/* libssl's own function of this name, past everybody in between. */
static void *of_libssl(const char *function)
{
    static const char *const names[] = { "libssl.so.3", "libssl.so.1.1", "libssl.so.4" };
    void *found = NULL;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && found == NULL; i++) {
        void *handle = dlopen(names[i], RTLD_NOW | RTLD_NOLOAD);

        if (handle != NULL)
            found = dlsym(handle, function);
    }
    assert_non_null(found);
    return found;
}

static void a_flush_of_libssl_s_own(void **state)
{
    void (*flush)(SSL_CTX *, long) = NULL;

    (void)state;
    *(void **)&flush = of_libssl("SSL_CTX_flush_sessions");
    for (int round = 0; round < 3; round++) {
        SSL_CTX *server = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
        SSL_SESSION *session, *other;

        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_sess_set_remove_cb(server, on_remove);
        session = tls_session(client, server);
        gone = 0;
        flush(server, 0);
        assert_int_equal(gone, 1);
        assert_int_equal(SSL_CTX_sess_number(server), 0);
        /* It is as good as before, and its end is heard. */
        if (round > 0) {
            other = tls_session(client, server);
            assert_true(tls_resumes(client, server, other));
            flush(server, 0);
            assert_int_equal(gone, 2);
            SSL_SESSION_free(other);
            other = tls_session(client, server);
            SSL_SESSION_free(other);
            assert_int_equal(SSL_CTX_sess_number(server), 1);
            gone = 0;
            SSL_CTX_free(server);
            assert_int_equal(gone, 1);
        } else {
            SSL_CTX_free(server);
        }
        SSL_SESSION_free(session);
        SSL_CTX_free(client);
    }
}

/* As they would have expired, and of those that expire in one second the first that came first. */
static void sessions_leave_in_the_order_of_their_expiry(void **state)
{
    enum { NUMBER = 100 };

    (void)state;
    for (int how = 0; how < 3; how++) {
        SSL_CTX *ctx = SSL_CTX_new(TLS_method());
        time_t now = time(NULL);

        SSL_CTX_sess_set_remove_cb(ctx, on_remove);
        for (int i = 0; i < NUMBER; i++) {
            SSL_SESSION *session = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));

            SSL_SESSION_set_time(session, (long)now);
            SSL_SESSION_set_timeout(session, 1000 + 37 * i % NUMBER); /* each of them once */
            SSL_CTX_add_session(ctx, session);
            SSL_SESSION_free(session);
        }
        gone = 0;
        if (how == 0)
            SSL_CTX_flush_sessions(ctx, 0);
        if (how == 1)
            SSL_CTX_flush_sessions(ctx, (long)now + 5000);
        SSL_CTX_free(ctx);
        assert_int_equal(gone, NUMBER);
        for (int i = 1; i < NUMBER; i++)
            assert_true(37 * (order[i - 1] - 1) % NUMBER < 37 * (order[i] - 1) % NUMBER);
    }
}

/* The limit was lowered: whatever is added next, the surplus leaves. */
static void one_that_replaces_makes_the_surplus_leave(void **state)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    SSL_SESSION *again = made_session(TLS1_2_VERSION, 10);

    (void)state;
    SSL_SESSION_set_timeout(again, 5000);
    for (int i = 0; i < 20; i++) {
        SSL_SESSION *session = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));

        SSL_CTX_add_session(ctx, session);
        SSL_SESSION_free(session);
    }
    SSL_CTX_sess_set_cache_size(ctx, 5);
    assert_int_equal(SSL_CTX_add_session(ctx, again), 1);
    assert_true(SSL_CTX_sess_number(ctx) <= 5);
    assert_true(SSL_CTX_sess_number(ctx) >= 4);
    SSL_SESSION_free(again);
    SSL_CTX_free(ctx);
}

/*
 * OpenSSL 4.1 issues no TLS 1.3 tickets with SSL_OP_NO_TICKET where a context caches nothing. It judges by the mode that
 * libssl itself has: that is off only where the program's mode is, and has the program's sides.
 */
static void libssl_s_own_mode_is_not_off(void **state)
{
    static const long modes[] = {
        SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_BOTH, SSL_SESS_CACHE_NO_AUTO_CLEAR,
        SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL, SSL_SESS_CACHE_BOTH | SSL_SESS_CACHE_NO_INTERNAL_STORE,
        SSL_SESS_CACHE_NO_INTERNAL,
    };
    long (*ctrl)(SSL_CTX *, int, long, void *) = NULL;
    int (*set_internal)(SSL_CTX *, int) = NULL;
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());

    (void)state;
    *(void **)&ctrl = of_libssl("SSL_CTX_ctrl");
    *(void **)&set_internal = dlsym(RTLD_DEFAULT, "reprise_ctx_set_internal");
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        long own;

        SSL_CTX_set_session_cache_mode(ctx, modes[i]);
        own = ctrl(ctx, SSL_CTRL_GET_SESS_CACHE_MODE, 0, NULL);
        assert_int_not_equal(own, SSL_SESS_CACHE_OFF);
        assert_int_equal(own & SSL_SESS_CACHE_BOTH, modes[i] & SSL_SESS_CACHE_BOTH);
    }
    if (set_internal != NULL) {
        /* Its servers cache although the program's mode is off. */
        assert_int_equal(set_internal(ctx, 1), 1);
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        assert_true(ctrl(ctx, SSL_CTRL_GET_SESS_CACHE_MODE, 0, NULL) & SSL_SESS_CACHE_SERVER);
    }
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(a_flush_of_libssl_s_own),
        OBJECT_TEST(sessions_leave_in_the_order_of_their_expiry),
        OBJECT_TEST(one_that_replaces_makes_the_surplus_leave),
        RULE_TEST(libssl_s_own_mode_is_not_off),
    };

    return RUN_PAGE("past_us", tests);
}
