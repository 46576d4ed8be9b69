/*
 * What is different where the internal cache is in shared memory: sessions come back as equal copies, outlive their
 * SSL_CTX, and belong to whoever is the same service, in whatever process. Each line here is one of the table in
 * docs/shared-cache.md; all else is as the other pages have it, which are run on a shared cache, too.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/err.h>

#include "reprise.h"

enum { WORKERS = 4 };

static char url[64], path[64];

/* A cache for one test. */
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

/* A server with stateful tickets and no names of CAs of its own: two of them are the same service. */
static SSL_CTX *service(int version)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_client_CA_list(ctx, sk_X509_NAME_new_null());
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    return ctx;
}

static void add(SSL_CTX *ctx, unsigned char fill, long timeout)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

    SSL_SESSION_set_timeout(session, timeout);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    SSL_SESSION_free(session);
}

static int has(SSL_CTX *ctx, unsigned char fill)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);
    int found = in_cache(ctx, TLS1_2_VERSION, session);

    SSL_SESSION_free(session);
    return found;
}

static struct {
    int calls;
    unsigned char first; /* byte of the last one's id */
} removed;

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    unsigned length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    (void)ctx;
    removed.calls++;
    removed.first = length == 0 ? 0 : id[0];
}

/* ---- objects ---- */

static void ADD1_the_cache_holds_a_copy(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);
    int alive = sessions_alive();

    (void)state;
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    assert_int_equal(sessions_alive(), alive);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    SSL_SESSION_free(session);
    assert_int_equal(sessions_alive(), alive - 1);
    assert_true(has(ctx, 1));
    SSL_CTX_free(ctx);
}

static void ADD3_an_equal_session_is_the_same(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *one = made_session(TLS1_2_VERSION, 1), *two = SSL_SESSION_dup(one);

    (void)state;
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    removed.calls = 0;
    assert_int_equal(SSL_CTX_add_session(ctx, one), 1);
    assert_int_equal(SSL_CTX_add_session(ctx, two), 0);
    assert_int_equal(removed.calls, 0);
    SSL_SESSION_set_timeout(two, 1);       /* written through: ids are the cache's only names */
    assert_int_equal(SSL_CTX_add_session(ctx, two), 0);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 100);
    assert_int_equal(removed.calls, 1);
    SSL_SESSION_free(one);
    SSL_SESSION_free(two);
    SSL_CTX_free(ctx);
}

static void ADD4_a_session_that_cannot_be_resumed_is_not_stored(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *session = SSL_SESSION_new();

    (void)state;
    assert_int_equal(SSL_SESSION_set1_id(session, (const unsigned char *)"without a cipher", 16), 1);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 0);
    assert_int_equal(SSL_CTX_sess_number(ctx), 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

static void ADD6_a_mark_comes_along(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_CTX *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server), *theirs = SSL_get1_session(p.client);

    (void)state;
    tls_close(&p);
    assert_int_equal(SSL_CTX_remove_session(ctx, ours), 1);
    assert_false(SSL_SESSION_is_resumable(ours));
    assert_int_equal(SSL_CTX_add_session(ctx, ours), 1);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    assert_false(tls_resumes(client, ctx, theirs));
    SSL_SESSION_free(ours);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

static void CB5_remove_cb_is_shown_an_equal_session(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *session;

    (void)state;
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    removed.calls = 0;
    SSL_CTX_sess_set_cache_size(ctx, 2);
    add(ctx, 1, 300);
    add(ctx, 2, 100);
    add(ctx, 3, 200);
    assert_int_equal(removed.calls, 1);
    assert_int_equal(removed.first, 2);
    session = made_session(TLS1_2_VERSION, 1);
    SSL_SESSION_set_timeout(session, 50);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 0);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 60);
    assert_int_equal(removed.calls, 2);
    assert_int_equal(removed.first, 1);
    SSL_CTX_flush_sessions(ctx, 0);
    assert_int_equal(removed.calls, 3);
    assert_int_equal(removed.first, 3);
    assert_int_equal(SSL_CTX_remove_session(ctx, session), 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

#ifdef SSL_SESS_CACHE_UPDATE_TIME /* since 3.0 */
static void MODE8_a_renewal_is_written_through(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server), *theirs = SSL_get1_session(p.client);

    (void)state;
    tls_close(&p);
    SSL_SESSION_set_timeout(ours, 300);
    SSL_SESSION_set_time(ours, (long)time(NULL) - 200);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_UPDATE_TIME);
    assert_true(tls_resumes(client, ctx, theirs));
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 200);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 400);
    assert_int_equal(SSL_CTX_sess_number(ctx), 0);
    SSL_SESSION_free(ours);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}
#endif

/* FLUSH2: an object that was never added has nothing to do with the cached session of its id. */
static void FLUSH2_of_another_object_changes_nothing(void **state)
{
    static const unsigned char other[SSL_MAX_MASTER_KEY_LENGTH] = "another secret";
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *never_added = made_session(TLS1_2_VERSION, 1);

    (void)state;
    add(ctx, 1, 300);
    assert_int_equal(SSL_SESSION_set1_master_key(never_added, other, sizeof other), 1);
    SSL_SESSION_set_time(never_added, (long)time(NULL) - 100000);
    SSL_SESSION_set_timeout(never_added, 1);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 100);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    SSL_SESSION_set_time(never_added, (long)time(NULL) + 100000);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 400);
    assert_int_equal(SSL_CTX_sess_number(ctx), 0);
    SSL_SESSION_free(never_added);
    SSL_CTX_free(ctx);
}

/* ---- contexts ---- */

static void CB5_sessions_outlive_their_context(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);

    (void)state;
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    removed.calls = 0;
    add(ctx, 1, 300);
    SSL_CTX_free(ctx);
    assert_int_equal(removed.calls, 0);
    ctx = service(TLS1_2_VERSION);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    assert_true(has(ctx, 1));
    SSL_CTX_free(ctx);
}

static void SIZE1_the_default_size_is_no_limit(void **state)
{
    enum { MANY = 20480 + 100 };
    SSL_CTX *ctx;

    (void)state;
    snprintf(url, sizeof url, "shm:%s?size=8M", path + strlen("/dev/shm/reprise-"));
    ctx = service(TLS1_2_VERSION);
    for (unsigned i = 0; i < MANY; i++) {
        SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);

        assert_int_equal(SSL_SESSION_set1_id(session, (unsigned char *)&i, sizeof i), 1);
        assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
        SSL_SESSION_free(session);
    }
    assert_int_equal(SSL_CTX_sess_number(ctx), MANY);
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), SSL_SESSION_CACHE_MAX_SIZE_DEFAULT);
    SSL_CTX_sess_set_cache_size(ctx, 5);
    for (int i = 0; SSL_CTX_sess_number(ctx) > 5 && i < 1000; i++)
        add(ctx, (unsigned char)i, 10);
    assert_int_equal(SSL_CTX_sess_number(ctx), 5);
    SSL_CTX_free(ctx);
}

/* MODE9: who shows another certificate, asks for others, or says that it is another one has sessions of its own. */
static void MODE9_services_are_apart(void **state)
{
    enum { ID_CONTEXT, CERTIFICATE, ASKS, MUST, NAMES, WAYS };
    SSL_CTX *first = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *theirs = tls_session(client, first);
    EVP_PKEY *key;
    X509 *certificate = other_certificate(&key);

    (void)state;
    for (int way = 0; way < WAYS; way++) {
        SSL_CTX *second = service(TLS1_2_VERSION);
        X509_NAME *name = X509_NAME_new();

        assert_int_equal(SSL_CTX_sess_number(second), 1); /* still the same */
        switch (way) {
        case ID_CONTEXT:
            assert_int_equal(SSL_CTX_set_session_id_context(second, (const unsigned char *)"c_other", 7), 1);
            break;
        case CERTIFICATE:
            assert_int_equal(SSL_CTX_use_certificate(second, certificate), 1);
            assert_int_equal(SSL_CTX_use_PrivateKey(second, key), 1);
            break;
        case ASKS:
            SSL_CTX_set_verify(second, SSL_VERIFY_PEER, NULL);
            break;
        case MUST:
            SSL_CTX_set_verify(second, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
            break;
        case NAMES:
            assert_int_equal(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"CA", -1, -1, 0), 1);
            sk_X509_NAME_push(SSL_CTX_get_client_CA_list(second), X509_NAME_dup(name));
            break;
        }
        X509_NAME_free(name);
        assert_int_equal(SSL_CTX_sess_number(second), 0);
        if (way != MUST) /* where the handshake fails without a certificate */
            assert_false(tls_resumes(client, second, theirs));
        SSL_CTX_flush_sessions(second, 0);
        SSL_CTX_free(second);
        assert_int_equal(SSL_CTX_sess_number(first), 1);
    }
    assert_true(tls_resumes(client, first, theirs));
    SSL_SESSION_free(theirs);
    X509_free(certificate);
    EVP_PKEY_free(key);
    SSL_CTX_free(first);
    SSL_CTX_free(client);
}

static void sessions_move_along(void **state)
{
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION);

    (void)state;
    assert_int_equal(reprise_ctx_set_cache(ctx, "memory:"), 1);
    add(ctx, 1, 300);
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    assert_true(has(ctx, 1));
    assert_int_equal(reprise_ctx_set_cache(ctx, "memory:"), 1); /* what is shared stays where it is */
    assert_int_equal(SSL_CTX_sess_number(ctx), 0);
    SSL_CTX_free(ctx);
}

static void errors(void **state)
{
    static const struct { const char *url, *part; } wrong[] = {
        { "", "no cache URL" }, { "shm:", "shm:" }, { "shm:a/b", "a/b" }, { "shm:x?size=1", "out of range" },
        { "shm:x?size=lots", "lots" }, { "shm:x?colour=red", "colour" }, { "redis://x", "key is missing" },
    };
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    char other_size[80];

    (void)state;
    ERR_clear_error();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(reprise_ctx_set_cache(ctx, wrong[i].url), 0);
        assert_true(errors_say(wrong[i].part));
    }
    snprintf(other_size, sizeof other_size, "shm:%s?size=4M", path + strlen("/dev/shm/reprise-"));
    assert_int_equal(reprise_ctx_set_cache(ctx, other_size), 0);
    assert_true(errors_say("2M"));
    assert_int_equal(reprise_ctx_set_cache(ctx, NULL), 0);
    assert_true(errors_say("NULL"));
    assert_int_equal(reprise_ctx_set_cache(NULL, url), 0);
    assert_true(errors_say("NULL"));
    add(ctx, 1, 300); /* in the cache it had */
    assert_int_equal(SSL_CTX_sess_number(ctx), 1);
    SSL_CTX_free(ctx);
}

/* ---- processes ---- */

/* What a child's function returns, 0 to 255. */
static int in_another_process(int (*body)(void *), void *arg)
{
    int status = -1;
    pid_t child = fork();

    if (child == 0)
        _exit(body(arg));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* In a process of its own, with a context of its own. */
static int finds_and_adds(void *unused)
{
    SSL_CTX *own = service(TLS1_2_VERSION);

    (void)unused;
    SSL_CTX_sess_set_remove_cb(own, on_remove);
    removed.calls = 0;
    if (!has(own, 1) || SSL_CTX_sess_number(own) != 1)
        return 1;
    add(own, 2, 300);
    add(own, 3, 300);
    SSL_SESSION *third = made_session(TLS1_2_VERSION, 3);
    if (SSL_CTX_remove_session(own, third) != 1 || removed.calls != 1)
        return 2;
    SSL_SESSION_free(third);
    SSL_CTX_free(own);
    return 0;
}

static void processes_share(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);

    (void)state;
    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    removed.calls = 0;
    add(ctx, 1, 300);
    assert_int_equal(in_another_process(finds_and_adds, NULL), 0);
    assert_true(has(ctx, 1) && has(ctx, 2) && !has(ctx, 3));
    assert_int_equal(SSL_CTX_sess_number(ctx), 2);
    assert_int_equal(removed.calls, 0); /* where it was removed, not here */
    SSL_CTX_free(ctx);
}

/* REPLAY1: however many processes are shown a ticket at once, one accepts its early data. */
static void REPLAY1_once_for_all_processes(void **state)
{
    const char *rounds = getenv("REPRISE_RACES");
    int tickets = rounds != NULL ? atoi(rounds) : slowly() ? 3 : 100, accepted = 0;
    struct ticket_race racer = { service(TLS1_3_VERSION), client_ctx(TLS1_3_VERSION), NULL, { -1, -1 } };

    (void)state;
    SSL_CTX_set_max_early_data(racer.server, 1024);
    for (int i = 0; i < tickets; i++) {
        pid_t child[WORKERS];

        racer.ticket = tls_session(racer.client, racer.server);
        assert_int_equal(pipe(racer.start), 0);
        for (int worker = 0; worker < WORKERS; worker++)
            if ((child[worker] = fork()) == 0)
                _exit(wait_and_race_ticket(&racer));
        close(racer.start[0]);
        close(racer.start[1]);
        int of_this = 0;
        for (int worker = 0; worker < WORKERS; worker++) {
            int status;

            assert_int_equal(waitpid(child[worker], &status, 0), child[worker]);
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
            of_this += WEXITSTATUS(status);
        }
        assert_int_equal(of_this, 1);
        accepted += of_this;
        SSL_SESSION_free(racer.ticket);
    }
    assert_int_equal(accepted, tickets);
    SSL_CTX_free(racer.server);
    SSL_CTX_free(racer.client);
}

/* LIFE1: what is too old to be resumed brings no early data either. */
static void LIFE1_no_early_data_beyond_the_maximum_age(void **state)
{
    (void)state;
    for (int age = 0; age <= 1; age++) {
        struct ticket_race racer = { service(TLS1_3_VERSION), client_ctx(TLS1_3_VERSION), NULL, { -1, -1 } };

        SSL_CTX_set_max_early_data(racer.server, 1024);
        assert_int_equal(reprise_ctx_set_max_age(racer.server, age), 1);
        racer.ticket = tls_session(racer.client, racer.server);
        assert_int_equal(race_ticket(&racer), 1);
        SSL_SESSION_free(racer.ticket);
        racer.ticket = tls_session(racer.client, racer.server);
        sleep(3);
        assert_int_equal(race_ticket(&racer), age == 0);
        SSL_SESSION_free(racer.ticket);
        SSL_CTX_free(racer.server);
        SSL_CTX_free(racer.client);
    }
}

static void secrets_are_the_users_own(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    struct stat file;

    (void)state;
    assert_int_equal(stat(path, &file), 0);
    assert_int_equal(file.st_mode & 07777, 0600);
    assert_int_equal(file.st_uid, geteuid());
    SSL_CTX_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TEST(ADD1_the_cache_holds_a_copy),
        CACHE_TEST(ADD3_an_equal_session_is_the_same),
        CACHE_TEST(ADD4_a_session_that_cannot_be_resumed_is_not_stored),
        CACHE_TEST(ADD6_a_mark_comes_along),
        CACHE_TEST(CB5_remove_cb_is_shown_an_equal_session),
#ifdef SSL_SESS_CACHE_UPDATE_TIME
        CACHE_TEST(MODE8_a_renewal_is_written_through),
#endif
        CACHE_TEST(FLUSH2_of_another_object_changes_nothing),
        CACHE_TEST(CB5_sessions_outlive_their_context),
        CACHE_TEST(SIZE1_the_default_size_is_no_limit),
        CACHE_TEST(MODE9_services_are_apart),
        CACHE_TEST(sessions_move_along),
        CACHE_TEST(errors),
        CACHE_TEST(processes_share),
        CACHE_TEST(REPLAY1_once_for_all_processes),
        CACHE_TEST(LIFE1_no_early_data_beyond_the_maximum_age),
        CACHE_TEST(secrets_are_the_users_own),
    };

    /* Where stock differs, this is not what it is about. */
    return subject() == DOCUMENTED ? RUN_PAGE("shared", tests) : 0;
}
#else
int main(void)
{
    return 0;
}
#endif
