/*
 * SSL_CTX_sessions(3): the internal cache as an LHASH, to be read by anyone. libssl hands out its live table; Reprise
 * a copy that each call renews. So every test calls anew after each change, as a program that works with both does.
 */
#include "harness.h"

#include <string.h>
#include <time.h>

#include <openssl/lhash.h>

/* The typed wrappers are private to libssl; these are what they wrap. */
static OPENSSL_LHASH *table_of(SSL_CTX *ctx)
{
    OPENSSL_LHASH *table = (OPENSSL_LHASH *)SSL_CTX_sessions(ctx);

    assert_non_null(table);
    return table;
}

static long items(SSL_CTX *ctx)
{
    return (long)OPENSSL_LH_num_items(table_of(ctx));
}

struct walk { SSL_SESSION *const *expected; size_t count; int met[8], strangers; };

static void visit(void *item, void *arg)
{
    struct walk *walk = arg;

    for (size_t i = 0; i < walk->count; i++)
        if (walk->expected[i] == item) {
            walk->met[i]++;
            return;
        }
    walk->strangers++;
}

/* Walking the table meets each of the `expected` once, and nothing else. */
static int meets(SSL_CTX *ctx, SSL_SESSION *const *expected, size_t count)
{
    struct walk walk = { expected, count, { 0 }, 0 };

    assert_true(count <= sizeof(walk.met) / sizeof(walk.met[0]));
    OPENSSL_LH_doall_arg(table_of(ctx), visit, &walk);
    for (size_t i = 0; i < count; i++)
        if (walk.met[i] != 1)
            return 0;
    return walk.strangers == 0;
}

/* What the table has under the id and the version of `key`. */
static const SSL_SESSION *retrieved(SSL_CTX *ctx, const SSL_SESSION *key)
{
    return OPENSSL_LH_retrieve(table_of(ctx), key);
}

static void ABI1_sessions_added_by_hand(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *all[4], *key = made_session(TLS1_2_VERSION, 2), *other = made_session(TLS1_3_VERSION, 2);

    (void)state;
    observe_int("ABI1", "SSL_CTX_sessions: items when empty", items(ctx), 0);
    observe_bool("ABI1", "SSL_CTX_sessions: walked when empty", meets(ctx, NULL, 0), 1);
    for (unsigned char i = 0; i < 4; i++) {
        all[i] = made_session(TLS1_2_VERSION, i);
        assert_int_equal(SSL_CTX_add_session(ctx, all[i]), 1);
    }
    observe_int("ABI1", "SSL_CTX_sessions: items after 4 were added", items(ctx), 4);
    observe_bool("ABI1", "SSL_CTX_sessions: walking meets each object once", meets(ctx, all, 4), 1);
    observe_bool("ABI1", "SSL_CTX_sessions: found by its id and version", retrieved(ctx, key) == all[2], 1);
    observe_bool("ABI1", "SSL_CTX_sessions: found by its id in another version", retrieved(ctx, other) != NULL, 0);
    observe_bool("ABI1", "SSL_CTX_sessions: agrees with SSL_CTX_sess_number",
                 items(ctx) == SSL_CTX_sess_number(ctx), 1);
    SSL_CTX_free(ctx);
    for (int i = 0; i < 4; i++)
        SSL_SESSION_free(all[i]);
    SSL_SESSION_free(key);
    SSL_SESSION_free(other);
}

static void ABI1_what_left_the_cache_is_not_shown(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *all[4], *again = made_session(TLS1_2_VERSION, 0), *shown[2];

    (void)state;
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_AUTO_CLEAR);
    for (unsigned char i = 0; i < 4; i++) {
        all[i] = made_session(TLS1_2_VERSION, i);
        if (i == 3)
            SSL_SESSION_set_time(all[i], (long)time(NULL) - 1000);
        assert_int_equal(SSL_CTX_add_session(ctx, all[i]), 1);
    }
    observe_bool("ABI1", "SSL_CTX_sessions: shows an expired session until it is cleared", meets(ctx, all, 4), 1);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL));
    observe_bool("ABI1", "SSL_CTX_sessions: after a flush", meets(ctx, all, 3) && items(ctx) == 3, 1);
    assert_int_equal(SSL_CTX_remove_session(ctx, all[2]), 1);
    observe_bool("ABI1", "SSL_CTX_sessions: after a removal", meets(ctx, all, 2) && retrieved(ctx, all[2]) == NULL, 1);
    assert_int_equal(SSL_CTX_add_session(ctx, again), 1);
    shown[0] = again;
    shown[1] = all[1];
    observe_bool("ABI1", "SSL_CTX_sessions: after a replacement",
                 meets(ctx, shown, 2) && retrieved(ctx, all[0]) == again, 1);
    SSL_CTX_flush_sessions(ctx, 0);
    observe_bool("ABI1", "SSL_CTX_sessions: after all were flushed", meets(ctx, NULL, 0) && items(ctx) == 0, 1);
    SSL_CTX_free(ctx);
    for (int i = 0; i < 4; i++)
        SSL_SESSION_free(all[i]);
    SSL_SESSION_free(again);
}

static void ABI1_negotiated_sessions(void **state)
{
    static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION, DTLS1_2_VERSION };
    static const char *const what[] = { "SSL_CTX_sessions: finds a negotiated TLS 1.2 session",
                                        "SSL_CTX_sessions: finds a negotiated TLS 1.3 session",
                                        "SSL_CTX_sessions: finds a negotiated DTLS 1.2 session" };

    (void)state;
    for (int i = 0; i < 3; i++) {
        SSL_CTX *client = client_ctx(versions[i]), *server = server_ctx(versions[i]);
        SSL_SESSION *session;
        pair p;

        SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
        SSL_CTX_set_num_tickets(server, 1);
        SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT);
        p = tls_connect(client, server, NULL);
        session = SSL_get_session(p.server);
        observe_bool("ABI1", what[i], retrieved(server, session) == session && meets(server, &session, 1), 1);
        session = SSL_get_session(p.client);
        assert_true(retrieved(client, session) == session && meets(client, &session, 1));
        tls_drop(&p); /* condemned: gone from both */
        assert_int_equal(items(client) + items(server), 0);
        SSL_CTX_free(client);
        SSL_CTX_free(server);
    }
}

static void ABI1_each_context_has_its_own(void **state)
{
    SSL_CTX *first = server_ctx(TLS1_2_VERSION), *second = server_ctx(TLS1_2_VERSION);
    SSL_SESSION *of_first = made_session(TLS1_2_VERSION, 1), *of_second = made_session(TLS1_2_VERSION, 2);

    (void)state;
    SSL_CTX_add_session(first, of_first);
    SSL_CTX_add_session(second, of_second);
    observe_bool("ABI1", "SSL_CTX_sessions: each context shows its own",
                 meets(first, &of_first, 1) && meets(second, &of_second, 1), 1);
    SSL_CTX_free(first);
    observe_bool("ABI1", "SSL_CTX_sessions: the other context is gone", meets(second, &of_second, 1), 1);
    SSL_CTX_free(second);
    SSL_SESSION_free(of_first);
    SSL_SESSION_free(of_second);
}

static SSL_SESSION *numbered(int n)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 0);
    unsigned char id[32] = { (unsigned char)n, (unsigned char)(n >> 8) };

    assert_int_equal(SSL_SESSION_set1_id(session, id, sizeof(id)), 1);
    return session;
}

static void ABI1_many_sessions(void **state)
{
    enum { MANY = 3000 };
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);
    int found = 0, before = sessions_alive();

    (void)state;
    for (int i = 0; i < MANY; i++) {
        SSL_SESSION *session = numbered(i);

        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
    for (int i = 0; i < MANY; i += 10) {
        SSL_SESSION *key = numbered(i);

        found += retrieved(ctx, key) != NULL;
        SSL_SESSION_free(key);
    }
    observe_bool("ABI1", "SSL_CTX_sessions: 3000 sessions, counted and found", items(ctx) == MANY && found == MANY / 10,
                 1);
    SSL_CTX_flush_sessions(ctx, 0);
    assert_int_equal(items(ctx), 0);
    observe_int("ABI1", "SSL_CTX_sessions: sessions kept alive by showing them", sessions_alive() - before, 0);
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(ABI1_sessions_added_by_hand),
        OBJECT_TEST(ABI1_what_left_the_cache_is_not_shown),
        OBJECT_TEST(ABI1_negotiated_sessions),
        OBJECT_TEST(ABI1_each_context_has_its_own),
        COUNTED_TEST(ABI1_many_sessions),
    };

    return RUN_PAGE("SSL_CTX_sessions", tests);
}
