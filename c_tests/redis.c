/*
 * What is different where the internal cache is in Redis: sessions come back as equal copies, outlive their SSL_CTX, and
 * belong to whoever is the same service, in whatever process; they are written behind, nobody counts them, and Redis clears
 * what has expired. Each line here is one of the table in docs/fleet.md; all else is as the other pages have it, which
 * are run on Redis, too. tools/run_pages.sh starts the server.
 */
#include "harness.h"

#ifdef WITH_REPRISE
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/lhash.h>

#include "reprise.h"

enum { WORKERS = 4, PATIENCE = 500 /* tries, each 20 ms after the last */ };

static char url[512];

/* A cache for one test, among the same server's keys. */
static int cache_setup(void **state)
{
    static int number;

    snprintf(url, sizeof url, "%s&prefix=%d.%d:", getenv("REPRISE_CACHE"), (int)getpid(), ++number);
    return references_setup(state);
}

#define CACHE_TEST(f) cmocka_unit_test_setup_teardown(f, cache_setup, references_teardown)

static void a_while(void)
{
    static const struct timespec time = { 0, 20 * 1000 * 1000 };

    nanosleep(&time, NULL);
}

/* A server with stateful tickets and no names of CAs of its own: two of them are the same service. */
static SSL_CTX *service(int version)
{
    SSL_CTX *ctx = server_ctx(version);

    SSL_CTX_set_client_CA_list(ctx, sk_X509_NAME_new_null());
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    return ctx;
}

/* All that was stored has arrived. */
static void written(SSL_CTX *ctx)
{
    for (int tries = 0; SSL_CTX_sess_number(ctx) != 0; tries++) {
        assert_true(tries < PATIENCE);
        a_while();
    }
}

static void add(SSL_CTX *ctx, unsigned char fill, long timeout)
{
    SSL_SESSION *session = made_session(TLS1_2_VERSION, fill);

    SSL_SESSION_set_timeout(session, timeout);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 1);
    SSL_SESSION_free(session);
}

/* What names the session of `add`. Made without a time: that would be the cached one's, too. */
static SSL_SESSION *named(unsigned char fill)
{
    SSL_SESSION *session = SSL_SESSION_new();
    unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH];

    memset(id, fill, sizeof id);
    assert_int_equal(SSL_SESSION_set1_id(session, id, sizeof id), 1);
    assert_int_equal(SSL_SESSION_set_protocol_version(session, TLS1_2_VERSION), 1);
    return session;
}

static int has(SSL_CTX *ctx, unsigned char fill)
{
    SSL_SESSION *session = named(fill);
    int found = in_cache(ctx, TLS1_2_VERSION, session);

    SSL_SESSION_free(session);
    return found;
}

static int removes(SSL_CTX *ctx, unsigned char fill)
{
    SSL_SESSION *session = named(fill);
    int was_there = SSL_CTX_remove_session(ctx, session);

    SSL_SESSION_free(session);
    return was_there;
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

static SSL_CTX *watched_service(void)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);

    SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    memset(&removed, 0, sizeof removed);
    return ctx;
}

/* ---- other processes ---- */

/* What a child's function returns. It has none of this process's connections to Redis, nor what is not written yet. */
static int in_another_process(int (*body)(void *), void *arg)
{
    int result = -1;
    const char *told = in_child(body, arg, 30);

    if (sscanf(told, "returns %d", &result) != 1)
        fail_msg("the other process %s", told);
    return result;
}

static int finds(void *fill)
{
    SSL_CTX *own = service(TLS1_2_VERSION);
    int found = has(own, *(unsigned char *)fill);

    SSL_CTX_free(own);
    return found;
}

/* Whether another process finds it. */
static int has_elsewhere(unsigned char fill)
{
    return in_another_process(finds, &fill);
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
    SSL_SESSION_free(session);
    assert_int_equal(sessions_alive(), alive - 1);
    assert_true(has(ctx, 1)); /* at once */
    written(ctx);
    assert_true(has(ctx, 1));
    SSL_CTX_free(ctx);
}

static void ADD3_an_equal_session_is_written_again(void **state)
{
    SSL_CTX *ctx = watched_service();

    (void)state;
    add(ctx, 1, 300);
    add(ctx, 1, 300);
    written(ctx);
    add(ctx, 1, 200);
    assert_int_equal(removed.calls, 0);
    assert_true(has(ctx, 1));
    assert_true(removes(ctx, 1));
    assert_false(has(ctx, 1));
    SSL_CTX_free(ctx);
}

static void ADD4_a_session_that_cannot_be_resumed_is_not_stored(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    SSL_SESSION *session = SSL_SESSION_new();

    (void)state;
    assert_int_equal(SSL_SESSION_set1_id(session, (const unsigned char *)"without a cipher", 16), 1);
    assert_int_equal(SSL_CTX_add_session(ctx, session), 0);
    assert_false(in_cache(ctx, TLS1_2_VERSION, session));
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
}

static void ADD5_removal_reaches_all(void **state)
{
    SSL_CTX *ctx = watched_service(), *other = service(TLS1_2_VERSION);

    (void)state;
    add(ctx, 1, 300);
    written(ctx);
    assert_true(has_elsewhere(1));
    assert_true(removes(other, 1));
    assert_int_equal(removed.calls, 0); /* only where it was removed */
    assert_false(has(ctx, 1));
    assert_false(has_elsewhere(1));
    assert_false(removes(ctx, 1));
    add(ctx, 2, 300);
    removed.calls = 0;
    removes(ctx, 2); /* whether it was there may not be known while it is on its way */
    assert_int_equal(removed.calls, 1);
    assert_int_equal(removed.first, 2);
    written(ctx);
    assert_false(has_elsewhere(2)); /* what was not written yet is not written any more */
    SSL_CTX_free(other);
    SSL_CTX_free(ctx);
}

static void ADD6_a_mark_comes_along(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server), *theirs = SSL_get1_session(p.client);

    (void)state;
    tls_close(&p);
    assert_int_equal(SSL_CTX_remove_session(ctx, ours), 1);
    assert_false(SSL_SESSION_is_resumable(ours));
    assert_int_equal(SSL_CTX_add_session(ctx, ours), 1);
    assert_false(tls_resumes(client, ctx, theirs));
    SSL_SESSION_free(ours);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

/* A handshake's new session is in the cache for a program that asks, as any other. */
static void ID1_the_newest_id_is_taken(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server);

    (void)state;
    tls_close(&p);
    for (int i = 0; i < 3; i++)
        assert_true(in_cache(ctx, TLS1_2_VERSION, ours));
    SSL_SESSION_free(ours);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

/* ---- what nobody counts ---- */

static void STAT1_number_is_what_is_not_written_yet(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);

    (void)state;
    for (unsigned char i = 0; i < 100; i++)
        add(ctx, i, 300);
    assert_in_range(SSL_CTX_sess_number(ctx), 0, 100);
    written(ctx);
    assert_non_null(SSL_CTX_sessions(ctx));
    assert_int_equal(OPENSSL_LH_num_items((OPENSSL_LHASH *)SSL_CTX_sessions(ctx)), 0);
    for (unsigned char i = 0; i < 100; i++)
        assert_true(has(ctx, i));
    SSL_CTX_free(ctx);
}

static void SIZE1_is_no_limit(void **state)
{
    SSL_CTX *ctx = watched_service();

    (void)state;
    SSL_CTX_sess_set_cache_size(ctx, 5);
    for (unsigned char i = 0; i < 100; i++)
        add(ctx, i, 300);
    written(ctx);
    for (unsigned char i = 0; i < 100; i++)
        assert_true(has(ctx, i));
    assert_int_equal(SSL_CTX_sess_get_cache_size(ctx), 5);
    assert_int_equal(SSL_CTX_sess_cache_full(ctx), 0);
    assert_int_equal(removed.calls, 0);
    SSL_CTX_free(ctx);
}

/* ---- time ---- */

static void MODE5_redis_clears_what_has_expired(void **state)
{
    SSL_CTX *ctx = watched_service();

    (void)state;
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_AUTO_CLEAR);
    add(ctx, 1, 1);
    add(ctx, 2, 300);
    written(ctx);
    assert_true(has_elsewhere(1));
    for (int tries = 0; has(ctx, 1); tries++) {
        assert_true(tries < PATIENCE);
        a_while();
    }
    assert_false(has_elsewhere(1));
    assert_true(has_elsewhere(2));
    assert_int_equal(removed.calls, 0);
    SSL_CTX_free(ctx);
}

static void FLUSH1_all_or_what_has_expired(void **state)
{
    SSL_CTX *ctx = watched_service(), *other = service(TLS1_2_VERSION);
    SSL_SESSION *held = made_session(TLS1_2_VERSION, 3);

    (void)state;
    add(ctx, 1, 100);
    assert_int_equal(SSL_CTX_add_session(ctx, held), 1);
    written(ctx);
    add(ctx, 2, 100);
    SSL_CTX_flush_sessions(ctx, (long)time(NULL) + 200);
    assert_true(has(ctx, 1) && has(ctx, 2));
    SSL_CTX_flush_sessions(ctx, 0);
    assert_false(has(ctx, 1) || has(ctx, 2));
    assert_false(has(other, 1) || has(other, 2));
    assert_false(has_elsewhere(1) || has_elsewhere(2));
    assert_int_equal(removed.calls, 0);
    SSL_SESSION_set_timeout(held, 200); /* who has it still does not bring it back */
    for (int i = 0; i < 10; i++) {
        a_while();
        assert_false(has(ctx, 3) || has_elsewhere(3));
    }
    SSL_SESSION_free(held);
    add(ctx, 1, 100); /* and then it goes on */
    written(ctx);
    assert_true(has(other, 1) && has_elsewhere(1));
    SSL_CTX_flush_sessions(other, 0);
    assert_false(has(ctx, 1) || has_elsewhere(1));
    SSL_CTX_free(other);
    SSL_CTX_free(ctx);
}

static void FLUSH2_a_new_time_is_written_through(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server), *theirs = SSL_get1_session(p.client);

    (void)state;
    tls_close(&p);
    SSL_SESSION_set_timeout(ours, 1000);
    written(ctx);
    SSL_SESSION_set_time(ours, (long)time(NULL) - 500);
    assert_true(tls_resumes(client, ctx, theirs));
    SSL_SESSION_set_time(ours, (long)time(NULL) - 2000);
    assert_false(tls_resumes(client, ctx, theirs));
    SSL_SESSION_set_time(ours, (long)time(NULL)); /* it has left: nobody's any more */
    for (int tries = 0; in_cache(ctx, TLS1_2_VERSION, ours); tries++) {
        assert_true(tries < PATIENCE);
        a_while();
    }
    assert_false(tls_resumes(client, ctx, theirs));
    SSL_SESSION_free(ours);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

#ifdef SSL_SESS_CACHE_UPDATE_TIME /* since 3.0 */
/* It would expire in ten seconds, and is used: another process resumes it twelve seconds later. */
static void MODE8_a_renewal_is_written_through(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_connect(client, ctx, NULL);
    SSL_SESSION *ours = SSL_get1_session(p.server), *theirs = SSL_get1_session(p.client);
    time_t until = time(NULL) + 12;

    (void)state;
    tls_close(&p);
    SSL_SESSION_set_timeout(ours, 300);
    SSL_SESSION_set_time(ours, (long)time(NULL) - 290);
    written(ctx);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_UPDATE_TIME);
    assert_true(tls_resumes(client, ctx, theirs));
    while (time(NULL) < until)
        a_while();
    assert_true(in_cache(ctx, TLS1_2_VERSION, ours));
    assert_true(tls_resumes(client, ctx, theirs));
    SSL_SESSION_free(ours);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}
#endif

/* ---- contexts ---- */

static void CB5_sessions_outlive_their_context(void **state)
{
    SSL_CTX *ctx = watched_service();

    (void)state;
    add(ctx, 1, 300);
    SSL_CTX_free(ctx);
    assert_int_equal(removed.calls, 0);
    ctx = service(TLS1_2_VERSION);
    assert_true(has(ctx, 1));
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
    add(first, 1, 300);
    for (int way = 0; way < WAYS; way++) {
        SSL_CTX *second = service(TLS1_2_VERSION);
        X509_NAME *name = X509_NAME_new();

        assert_true(has(second, 1)); /* still the same */
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
        assert_false(has(second, 1));
        if (way != MUST) /* where the handshake fails without a certificate */
            assert_false(tls_resumes(client, second, theirs));
        SSL_CTX_flush_sessions(second, 0);
        SSL_CTX_free(second);
        assert_true(has(first, 1));
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
    SSL_CTX *ctx = server_ctx(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *theirs;

    (void)state;
    SSL_CTX_set_client_CA_list(ctx, sk_X509_NAME_new_null());
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    assert_int_equal(reprise_ctx_set_cache(ctx, "memory:"), 1);
    theirs = tls_session(client, ctx);
    add(ctx, 1, 300);
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    assert_true(has(ctx, 1));
    assert_true(tls_resumes(client, ctx, theirs)); /* though its id vouches for nothing */
    written(ctx);
    assert_true(has_elsewhere(1));
    assert_int_equal(reprise_ctx_set_cache(ctx, "memory:"), 1); /* what is shared stays where it is */
    assert_false(has(ctx, 1));
    assert_false(tls_resumes(client, ctx, theirs));
    assert_int_equal(reprise_ctx_set_cache(ctx, url), 1);
    assert_true(tls_resumes(client, ctx, theirs));
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

static void errors(void **state)
{
    static const struct { const char *url, *part; } wrong[] = {
        { "redis://", "redis" }, { "redis://u:hunter2@x", "key is missing" }, { "redis://u:hunter2@x:0/0?key=/k", "port" },
        { "redis://u:hunter2@x/0?key=/nowhere/key", "/nowhere/key" }, { "redis://:hunter2@x/0?key=/dev/null", "/dev/null" },
        { "redis://:hunter2@x?key=/k&deadline=2m", "deadline" }, { "redis://:hunter2@x?key=/k&colour=red", "colour" },
        { "redis:hunter2@x", "redis" }, { "redis+cluster://:hunter2@a,,b?key=/k", "host 2" },
    };
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    char path[] = "/tmp/reprise-key-XXXXXX", of_others[64];
    int file = mkstemp(path);

    (void)state;
    ERR_clear_error();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(reprise_ctx_set_cache(ctx, wrong[i].url), 0);
        assert_true(errors_say(wrong[i].part));
    }
    assert_true(file >= 0 && fchmod(file, 0644) == 0);
    snprintf(of_others, sizeof of_others, "redis://:hunter2@x?key=%s", path);
    assert_int_equal(reprise_ctx_set_cache(ctx, of_others), 0);
    assert_true(errors_say("0644"));
    assert_int_equal(fchmod(file, 0600), 0);
    assert_int_equal(reprise_ctx_set_cache(ctx, of_others), 0);
    assert_true(errors_say("no key"));
    close(file);
    unlink(path);
    add(ctx, 1, 300); /* in the cache it had */
    written(ctx);
    assert_true(has_elsewhere(1));
    SSL_CTX_free(ctx);
}

/* ---- processes ---- */

/* A client's session on its way from one process to another. */
struct crossing {
    int version, length;
    unsigned char der[4096];
};

static struct crossing *new_crossing(int version)
{
    struct crossing *crossing = mmap(NULL, sizeof *crossing, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_true(crossing != MAP_FAILED);
    crossing->version = version;
    return crossing;
}

static int connects(void *arg)
{
    struct crossing *crossing = arg;
    SSL_CTX *server = service(crossing->version), *client = client_ctx(crossing->version);
    SSL_SESSION *session = tls_session(client, server);
    unsigned char *end = crossing->der;

    if (i2d_SSL_SESSION(session, NULL) > (int)sizeof crossing->der)
        return 1;
    crossing->length = i2d_SSL_SESSION(session, &end);
    SSL_SESSION_free(session);
    written(server);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    return 0;
}

/* How many of a few tries, one after the other, resume. */
static int returns(void *arg)
{
    struct crossing *crossing = arg;
    SSL_CTX *server = service(crossing->version), *client = client_ctx(crossing->version);
    const unsigned char *der = crossing->der;
    SSL_SESSION *session = d2i_SSL_SESSION(NULL, &der, crossing->length);
    int resumed = tls_resumes(client, server, session);

    SSL_SESSION_free(session);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    return resumed;
}

static void MODE4_resumed_by_another_process(void **state)
{
    static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION, DTLS1_2_VERSION };

    (void)state;
    SSL_CTX_free(service(TLS1_2_VERSION)); /* the certificate is everybody's */
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        struct crossing *crossing = new_crossing(versions[i]);

        assert_int_equal(in_another_process(connects, crossing), 0);
        assert_int_equal(in_another_process(returns, crossing), 1);
        assert_int_equal(returns(crossing), 1);
        munmap(crossing, sizeof *crossing);
    }
}

/* In a process that was forked off while the cache was in use, with the context it was given. */
static int goes_on(void *inherited)
{
    SSL_CTX *ctx = inherited, *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *theirs = tls_session(client, ctx);
    int right = has(ctx, 1) && tls_resumes(client, ctx, theirs) && removes(ctx, 1);

    add(ctx, 2, 300);
    written(ctx);
    right = right && tls_resumes(client, ctx, theirs) && has(ctx, 2);
    SSL_SESSION_free(theirs);
    SSL_CTX_free(client);
    return right;
}

static void FORK1_both_go_on(void **state)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    SSL_SESSION *theirs = tls_session(client, ctx);

    (void)state;
    for (int i = 0; i < 3; i++) {
        add(ctx, 1, 300);
        written(ctx);
        add(ctx, 3, 300); /* on its way */
        assert_int_equal(in_another_process(goes_on, ctx), 1);
        assert_true(!has(ctx, 1) && has(ctx, 2) && has(ctx, 3));
        assert_true(tls_resumes(client, ctx, theirs));
    }
    SSL_SESSION_free(theirs);
    SSL_CTX_free(ctx);
    SSL_CTX_free(client);
}

static int begins(void *unused)
{
    SSL_CTX *ctx = service(TLS1_2_VERSION);
    int found;

    (void)unused;
    add(ctx, 1, 300);
    found = has(ctx, 1);
    SSL_CTX_free(ctx);
    return found;
}

/* Writing goes on when the last context has gone, and a fork may come at any moment of it. */
static void FORK1_when_no_context_is_left(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        SSL_CTX *ctx = service(TLS1_2_VERSION);

        for (int fill = 0; fill < 256; fill++)
            add(ctx, (unsigned char)fill, 300);
        SSL_CTX_free(ctx);
        assert_int_equal(in_another_process(begins, NULL), 1);
    }
}

/* REPLAY1: however many processes are shown a ticket at once, one accepts its early data. */
static void REPLAY1_once_for_all_processes(void **state)
{
    const char *rounds = getenv("REPRISE_RACES");
    int tickets = rounds != NULL ? atoi(rounds) : slowly() ? 3 : 50, accepted = 0;
    struct ticket_race racer = { service(TLS1_3_VERSION), client_ctx(TLS1_3_VERSION), NULL, { -1, -1 } };

    (void)state;
    SSL_CTX_set_max_early_data(racer.server, 1024);
    for (int i = 0; i < tickets; i++) {
        pid_t child[WORKERS];
        int of_this = 0;

        racer.ticket = tls_session(racer.client, racer.server);
        written(racer.server);
        assert_int_equal(pipe(racer.start), 0);
        for (int worker = 0; worker < WORKERS; worker++)
            if ((child[worker] = fork()) == 0)
                _exit(wait_and_race_ticket(&racer));
        close(racer.start[0]);
        close(racer.start[1]);
        if (i % 2 == 1) /* the process that issued it is in the race */
            of_this += race_ticket(&racer);
        for (int worker = 0; worker < WORKERS; worker++) {
            int status;

            assert_int_equal(waitpid(child[worker], &status, 0), child[worker]);
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
            of_this += WEXITSTATUS(status);
        }
        of_this += race_ticket(&racer); /* and a late one */
        assert_int_equal(of_this, 1);
        accepted += of_this;
        SSL_SESSION_free(racer.ticket);
    }
    assert_int_equal(accepted, tickets);
    SSL_CTX_free(racer.server);
    SSL_CTX_free(racer.client);
}

/* ---- ids that vouch for themselves, and others ---- */

static int own_ids(SSL *ssl, unsigned char *id, unsigned int *length)
{
    static unsigned int number;

    (void)ssl;
    memset(id, 'g', *length);
    snprintf((char *)id, *length, "%d.%u", (int)getpid(), ++number);
    return 1;
}

static int is_own(SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    return length == 32 && id[31] == 'g';
}

/* Whose ids a service makes, and what it does with others. */
enum ids { ISSUED, OF_THE_CONTEXT, OF_THE_CONNECTION, ADDED, WAYS };

/* The client's session of a full handshake whose server was told whose ids to use. */
static SSL_SESSION *session_of(enum ids ids, SSL_CTX *server, SSL_CTX *client)
{
    SSL_CTX *maker = ids == ADDED ? service(TLS1_2_VERSION) : server;
    SSL_SESSION *ours, *theirs;
    pair p;

    if (ids == ADDED)
        assert_int_equal(reprise_ctx_set_cache(maker, "memory:"), 1);
    if (ids == OF_THE_CONTEXT || ids == ADDED)
        assert_int_equal(SSL_CTX_set_generate_session_id(maker, own_ids), 1);
    p = tls_prepare(client, maker);
    if (ids == OF_THE_CONNECTION)
        assert_int_equal(SSL_set_generate_session_id(p.server, own_ids), 1);
    assert_true(tls_drive(&p));
    ours = SSL_get1_session(p.server);
    theirs = SSL_get1_session(p.client);
    assert_int_equal(is_own(ours), ids != ISSUED);
    tls_close(&p);
    if (ids == ADDED) {
        assert_int_equal(SSL_CTX_add_session(server, ours), 1);
        SSL_CTX_free(maker);
    }
    SSL_SESSION_free(ours);
    return theirs;
}

static void ID1_ids_of_the_program_are_found(void **state)
{
    (void)state;
    for (enum ids ids = ISSUED; ids < WAYS; ids++) {
        SSL_CTX *server, *other, *client = client_ctx(TLS1_2_VERSION);
        struct crossing *crossing = new_crossing(TLS1_2_VERSION);
        unsigned char *end = crossing->der;
        SSL_SESSION *first, *theirs;
        int tries;

        assert_int_equal(cache_setup(state), 0); /* a new cache */
        server = service(TLS1_2_VERSION);
        other = service(TLS1_2_VERSION);
        first = tls_session(client, other); /* all know by now that there are no strangers */
        assert_true(tls_resumes(client, server, first));
        theirs = session_of(ids, server, client);
        assert_true(tls_resumes(client, server, theirs));
        /* One that was negotiated elsewhere and added by hand is for the context that it was added to. */
        assert_int_equal(tls_resumes(client, other, theirs), ids != ADDED);
        written(server);
        assert_true(tls_resumes(client, server, theirs));
        crossing->length = i2d_SSL_SESSION(theirs, &end);
        /* A process that has begun before may have to ask first. */
        for (tries = 0; ids != ADDED && !in_another_process(returns, crossing); tries++) {
            assert_true(tries < 100);
            a_while();
        }
        SSL_SESSION_free(first);
        SSL_SESSION_free(theirs);
        SSL_CTX_free(server);
        SSL_CTX_free(other);
        SSL_CTX_free(client);
        munmap(crossing, sizeof *crossing);
    }
}

/* A process that is there already: it tells when it begins and when it has seen the session. */
struct waiter {
    struct crossing *crossing;
    int told[2], tells[2];
};

static int learns(void *arg)
{
    struct waiter *waiter = arg;
    SSL_CTX *server = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    const unsigned char *der = waiter->crossing->der;
    SSL_SESSION *own = tls_session(client, server), *session;
    int resumed = 0;
    char byte = 0;

    if (!tls_resumes(client, server, own))
        return 2;
    tls_resumes(client, server, NULL);
    if (write(waiter->tells[1], "", 1) != 1 || read(waiter->told[0], &byte, 1) != 1)
        return 3;
    session = d2i_SSL_SESSION(NULL, &der, waiter->crossing->length);
    for (int tries = 0; tries < 250 && !resumed; tries++) {
        resumed = tls_resumes(client, server, session);
        a_while();
    }
    return resumed;
}

/* It has the function that issues ids, and there is nobody any more who issues one. */
static void ID1_a_connection_outlives_the_cache(void **state)
{
    SSL_CTX *server = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    pair p = tls_prepare(client, server);

    (void)state;
    assert_int_equal(reprise_ctx_set_cache(server, "memory:"), 1);
    assert_int_equal(tls_drive(&p), 1);
    tls_close(&p);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

/* A session with an id that nobody issued is found, within seconds, by processes that have never seen such a one. */
static void ID1_strangers_are_announced(void **state)
{
    struct waiter waiter = { new_crossing(TLS1_2_VERSION), { -1, -1 }, { -1, -1 } };
    SSL_CTX *server = service(TLS1_2_VERSION), *client = client_ctx(TLS1_2_VERSION);
    unsigned char *end = waiter.crossing->der;
    SSL_SESSION *theirs;
    int status;
    char byte;
    pid_t child;

    (void)state;
    assert_int_equal(pipe(waiter.told), 0);
    assert_int_equal(pipe(waiter.tells), 0);
    if ((child = fork()) == 0)
        _exit(learns(&waiter));
    assert_int_equal(read(waiter.tells[0], &byte, 1), 1);
    theirs = session_of(OF_THE_CONTEXT, server, client);
    written(server);
    waiter.crossing->length = i2d_SSL_SESSION(theirs, &end);
    assert_int_equal(write(waiter.told[1], "", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    for (int i = 0; i < 2; i++) {
        close(waiter.told[i]);
        close(waiter.tells[i]);
    }
    SSL_SESSION_free(theirs);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    munmap(waiter.crossing, sizeof *waiter.crossing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TEST(ADD1_the_cache_holds_a_copy),
        CACHE_TEST(ADD3_an_equal_session_is_written_again),
        CACHE_TEST(ADD4_a_session_that_cannot_be_resumed_is_not_stored),
        CACHE_TEST(ADD5_removal_reaches_all),
        CACHE_TEST(ADD6_a_mark_comes_along),
        CACHE_TEST(ID1_the_newest_id_is_taken),
        CACHE_TEST(STAT1_number_is_what_is_not_written_yet),
        CACHE_TEST(SIZE1_is_no_limit),
        CACHE_TEST(MODE5_redis_clears_what_has_expired),
        CACHE_TEST(FLUSH1_all_or_what_has_expired),
        CACHE_TEST(FLUSH2_a_new_time_is_written_through),
#ifdef SSL_SESS_CACHE_UPDATE_TIME
        CACHE_TEST(MODE8_a_renewal_is_written_through),
#endif
        CACHE_TEST(CB5_sessions_outlive_their_context),
        CACHE_TEST(MODE9_services_are_apart),
        CACHE_TEST(sessions_move_along),
        CACHE_TEST(errors),
        CACHE_TEST(MODE4_resumed_by_another_process),
        CACHE_TEST(FORK1_both_go_on),
        CACHE_TEST(FORK1_when_no_context_is_left),
        CACHE_TEST(REPLAY1_once_for_all_processes),
        CACHE_TEST(ID1_ids_of_the_program_are_found),
        CACHE_TEST(ID1_a_connection_outlives_the_cache),
        CACHE_TEST(ID1_strangers_are_announced),
    };

    return in_redis() ? RUN_PAGE("redis", tests) : 0;
}
#else
int main(void)
{
    return 0;
}
#endif
