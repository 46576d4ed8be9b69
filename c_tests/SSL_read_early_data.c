/*
 * SSL_read_early_data(3): early data is accepted once for each ticket, whoever asks (REPLAY1).
 *
 * The server's anti-replay protection stands on the session cache: a ticket is good for early data while its session
 * is cached, and using it takes the session out. Every attempt here writes early data and reads what arrives.
 */
#define _POSIX_C_SOURCE 200809L /* pthread_barrier_t */
#include "harness.h"

#include <pthread.h>
#include <string.h>

enum { EARLY = 1024, RACERS = 8, ROUNDS = 50 };
static const char early[] = "GET /early";

static SSL_CTX *early_server(void)
{
    SSL_CTX *ctx = server_ctx(TLS1_3_VERSION);

    SSL_CTX_set_max_early_data(ctx, EARLY);
    return ctx;
}

/* A session good for early data, one reference for the caller. */
static SSL_SESSION *ticket(SSL_CTX *client, SSL_CTX *server)
{
    SSL_SESSION *session = tls_session(client, server);

    assert_int_equal(SSL_SESSION_get_max_early_data(session), EARLY);
    return session;
}

/* The same ticket as another process would have it: no object shared. */
static SSL_SESSION *copied(SSL_SESSION *session)
{
    unsigned char bytes[8192], *out = bytes;
    const unsigned char *in = bytes;
    int length = i2d_SSL_SESSION(session, NULL);
    SSL_SESSION *copy;

    assert_true(length > 0 && length <= (int)sizeof bytes);
    i2d_SSL_SESSION(session, &out);
    copy = d2i_SSL_SESSION(NULL, &in, length);
    assert_non_null(copy);
    return copy;
}

/* The client's first flight: its hello and the early data. */
static pair begin(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    pair p = tls_prepare(client, server);
    size_t written;

    assert_int_equal(SSL_set_session(p.client, offer), 1);
    assert_int_equal(SSL_write_early_data(p.client, early, sizeof early, &written), 1);
    assert_int_equal(written, sizeof early);
    return p;
}

/* What the server made of it. */
struct answer {
    int status;        /* SSL_get_early_data_status */
    size_t read;       /* bytes of early data the application got */
    int error;
    char data[64];
};

/* The server reads until early data ends, and answers. Runs in threads, so it asserts nothing. */
static void serve(SSL *server, struct answer *answer)
{
    int round, result = SSL_READ_EARLY_DATA_ERROR;

    memset(answer, 0, sizeof *answer);
    for (round = 0; round < 100 && result != SSL_READ_EARLY_DATA_FINISH; round++) {
        size_t n = 0;

        result = SSL_read_early_data(server, answer->data + answer->read, sizeof answer->data - answer->read, &n);
        if (result == SSL_READ_EARLY_DATA_SUCCESS)
            answer->read += n;
        /* All that the client sent is there, so waiting for more means that the early data was read to its end. */
        if (result == SSL_READ_EARLY_DATA_ERROR)
            break;
    }
    answer->status = SSL_get_early_data_status(server);
    answer->error = result == SSL_READ_EARLY_DATA_ERROR && SSL_get_error(server, 0) != SSL_ERROR_WANT_READ;
}

/* Both sides to the end of the handshake, whatever became of the early data. */
static void finish(pair *p)
{
    struct answer rest;
    int round;

    for (round = 0; round < 10 && !(SSL_is_init_finished(p->client) && SSL_is_init_finished(p->server)); round++) {
        SSL_do_handshake(p->client);
        serve(p->server, &rest);
        SSL_do_handshake(p->server);
    }
    assert_true(tls_drive(p));
}

struct outcome {
    int accepted, resumed;
};

/* Settles one attempt: both sides agree, accepted data is the data sent, refused data never reached the application. */
static struct outcome settle(pair *p, const struct answer *answer)
{
    struct outcome outcome;

    assert_false(answer->error);
    finish(p);
    outcome.accepted = SSL_get_early_data_status(p->server) == SSL_EARLY_DATA_ACCEPTED;
    outcome.resumed = tls_resumed(p);
    assert_int_equal(answer->status, SSL_get_early_data_status(p->server));
    assert_int_equal(SSL_get_early_data_status(p->client), SSL_get_early_data_status(p->server));
    if (outcome.accepted) {
        assert_int_equal(answer->read, sizeof early);
        assert_memory_equal(answer->data, early, sizeof early);
    } else {
        assert_int_equal(SSL_get_early_data_status(p->server), SSL_EARLY_DATA_REJECTED);
        assert_int_equal(answer->read, 0);
    }
    assert_true(tls_echo(p));
    return outcome;
}

/* One whole attempt with a copy of `offer`; where `next` is not NULL, the session it ended with goes there. */
static struct outcome attempt(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer, SSL_SESSION **next)
{
    SSL_SESSION *copy = copied(offer);
    pair p = begin(client, server, copy);
    struct answer answer;
    struct outcome outcome;

    serve(p.server, &answer);
    outcome = settle(&p, &answer);
    if (next != NULL)
        *next = SSL_get1_session(p.client);
    tls_close(&p);
    SSL_SESSION_free(copy);
    return outcome;
}

/* How often `times` attempts in a row with one ticket are accepted; each accepted one must be resumed. */
static int accepted_of(int times, SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    int accepted = 0;

    while (times-- > 0) {
        struct outcome outcome = attempt(client, server, offer, NULL);

        assert_int_equal(outcome.resumed, outcome.accepted);
        accepted += outcome.accepted;
    }
    return accepted;
}

static void REPLAY1_a_replayed_ticket_is_refused(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = ticket(client, server);

    (void)state;
    observe_int("REPLAY1", "accepted of 3 replays, internal cache", accepted_of(3, client, server, session), 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* Also without early data a ticket of such a server is spent by use: the server cannot tell before it looked. */
static void REPLAY1_a_ticket_spent_without_early_data_is_refused(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = ticket(client, server), *copy = copied(session);

    (void)state;
    assert_true(tls_resumes(client, server, copy));
    observe_int("REPLAY1", "accepted of 1 after the ticket was used without early data",
                accepted_of(1, client, server, session), 0);
    SSL_SESSION_free(session);
    SSL_SESSION_free(copy);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void REPLAY1_a_removed_ticket_is_refused(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = ticket(client, server);

    (void)state;
    SSL_CTX_flush_sessions(server, 0);
    observe_int("REPLAY1", "accepted of 1 after SSL_CTX_flush_sessions", accepted_of(1, client, server, session), 0);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static SSL_SESSION *received[4];
static int received_count;

static int receive(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    assert_true(received_count < 4);
    received[received_count++] = session;
    return 1;
}

static void REPLAY1_both_tickets_of_a_connection_work_once_each(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION), *other = client_ctx(TLS1_3_VERSION);
    int accepted = 0, i;

    (void)state;
    received_count = 0;
    SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(client, receive);
    SSL_SESSION_free(ticket(client, server));
    assert_int_equal(received_count, 2);
    for (i = 0; i < 2; i++) {
        accepted += accepted_of(2, other, server, received[i]);
        SSL_SESSION_free(received[i]);
    }
    observe_int("REPLAY1", "accepted of 2 tickets of one connection, each used twice", accepted, 2);
    SSL_CTX_free(client);
    SSL_CTX_free(other);
    SSL_CTX_free(server);
}

static void REPLAY1_new_tickets_of_a_0rtt_connection_work_once(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = ticket(client, server);
    int i;

    (void)state;
    for (i = 0; i < 5; i++) {
        SSL_SESSION *next;
        struct outcome outcome = attempt(client, server, session, &next);

        assert_true(outcome.accepted);
        assert_true(outcome.resumed);
        assert_int_equal(accepted_of(1, client, server, session), 0);
        SSL_SESSION_free(session);
        session = next;
    }
    observe_int("REPLAY1", "accepted of 3 replays of a ticket from the 5th 0-RTT connection in a chain",
                accepted_of(3, client, server, session), 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static SSL_SESSION *issued[16];
static int issued_count, told, told_of_strangers;

static int keep_issued(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    assert_true(issued_count < 16);
    issued[issued_count++] = session;
    return 1;
}

static void note_removed(SSL_CTX *ctx, SSL_SESSION *session)
{
    int at = 0;

    (void)ctx;
    while (at < issued_count && issued[at] != session)
        at++;
    if (at == issued_count)
        told_of_strangers++;
    told++;
}

/* Sessions that were removed, and added again, are marked for good. A ticket takes its own out of the cache all the same. */
static void CB5_a_marked_session_leaves_with_remove_cb(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    (void)state;
    issued_count = 0;
    SSL_CTX_sess_set_new_cb(server, keep_issued);
    SSL_CTX_sess_set_remove_cb(server, note_removed);
    session = ticket(client, server);
    for (int i = 0; i < issued_count; i++) {
        SSL_CTX_remove_session(server, issued[i]);
        assert_int_equal(SSL_CTX_add_session(server, issued[i]), 1);
    }
    told = told_of_strangers = 0;
    attempt(client, server, session, NULL);
    observe_int("CB5", "calls of remove_cb for a marked session that is shown with early data", told, 1);
    SSL_CTX_free(server);
    observe_int("CB5", "sessions unknown to the program that remove_cb is given by SSL_CTX_free", told_of_strangers, 0);
    observe_int("CB5", "sessions of that context for which it was not called once", issued_count - told, 0);
    while (issued_count > 0)
        SSL_SESSION_free(issued[--issued_count]);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
}

static void REPLAY1_without_anti_replay_accepted_again(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_ANTI_REPLAY);
    session = ticket(client, server);
    observe_int("REPLAY1", "accepted of 3 replays with SSL_OP_NO_ANTI_REPLAY",
                accepted_of(3, client, server, session), 3);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* The same with the sessions in the cache, not in the tickets. */
static void REPLAY1_without_anti_replay_and_tickets_accepted_again(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session;

    (void)state;
    SSL_CTX_set_options(server, SSL_OP_NO_ANTI_REPLAY | SSL_OP_NO_TICKET);
    session = ticket(client, server);
    observe_int("REPLAY1", "accepted of 3 replays with SSL_OP_NO_ANTI_REPLAY and SSL_OP_NO_TICKET",
                accepted_of(3, client, server, session), 3);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

struct racer {
    pair p;
    SSL_SESSION *copy;
    struct answer answer;
    pthread_barrier_t *start;
};

static void *race(void *arg)
{
    struct racer *racer = arg;

    pthread_barrier_wait(racer->start);
    serve(racer->p.server, &racer->answer);
    return NULL;
}

/* All first flights are written, then all servers read theirs at once. Returns how many were accepted. */
static int accepted_of_a_race(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    struct racer racers[RACERS];
    pthread_t threads[RACERS];
    pthread_barrier_t start;
    int i, accepted = 0;

    assert_int_equal(pthread_barrier_init(&start, NULL, RACERS), 0);
    for (i = 0; i < RACERS; i++) {
        racers[i].copy = copied(offer);
        racers[i].p = begin(client, server, racers[i].copy);
        racers[i].start = &start;
    }
    for (i = 0; i < RACERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    for (i = 0; i < RACERS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    pthread_barrier_destroy(&start);
    for (i = 0; i < RACERS; i++) {
        struct outcome outcome = settle(&racers[i].p, &racers[i].answer);

        assert_int_equal(outcome.resumed, outcome.accepted);
        accepted += outcome.accepted;
        tls_close(&racers[i].p);
        SSL_SESSION_free(racers[i].copy);
    }
    return accepted;
}

/* In how many of ROUNDS races exactly one was accepted. Under valgrind, where threads take turns, a tenth stands for all. */
static int rounds_with_exactly_one(SSL_CTX *client, SSL_CTX *server)
{
    const int step = ROUNDS / fewer(ROUNDS);
    int good = 0;

    for (int round = 0; round < ROUNDS; round += step) {
        SSL_SESSION *session = ticket(client, server);

        good += accepted_of_a_race(client, server, session) == 1 ? step : 0;
        SSL_SESSION_free(session);
    }
    return good;
}

static void REPLAY1_of_racing_threads_one_is_accepted(void **state)
{
    SSL_CTX *server = early_server(), *client = client_ctx(TLS1_3_VERSION);

    (void)state;
    observe_int("REPLAY1", "of 50 races of 8 threads with one ticket, those where exactly one was accepted",
                rounds_with_exactly_one(client, server), ROUNDS);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

/* An external cache of one process: bytes by id. `deletes` says whether remove_cb takes entries out. */
enum { PLACES = 64 };
static struct {
    pthread_mutex_t lock;
    int deletes, next;
    struct {
        unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH], bytes[2048];
        unsigned int id_length;
        int length;
    } place[PLACES];
} outside = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int find(const unsigned char *id, unsigned int length)
{
    int i;

    for (i = 0; i < PLACES; i++)
        if (outside.place[i].length > 0 && outside.place[i].id_length == length
                && memcmp(outside.place[i].id, id, length) == 0)
            return i;
    return -1;
}

static int keep(SSL *ssl, SSL_SESSION *session)
{
    unsigned int id_length;
    const unsigned char *id = SSL_SESSION_get_id(session, &id_length);
    int length = i2d_SSL_SESSION(session, NULL);

    (void)ssl;
    pthread_mutex_lock(&outside.lock);
    if (length > 0 && length <= (int)sizeof outside.place->bytes) {
        int i = outside.next++ % PLACES;
        unsigned char *end = outside.place[i].bytes;

        memcpy(outside.place[i].id, id, id_length);
        outside.place[i].id_length = id_length;
        outside.place[i].length = i2d_SSL_SESSION(session, &end);
    }
    pthread_mutex_unlock(&outside.lock);
    SSL_SESSION_free(session);
    return 1;
}

static SSL_SESSION *give(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    SSL_SESSION *session = NULL;
    int i;

    (void)ssl;
    *copy = 0;
    pthread_mutex_lock(&outside.lock);
    i = find(id, (unsigned int)length);
    if (i >= 0) {
        const unsigned char *bytes = outside.place[i].bytes;

        session = d2i_SSL_SESSION(NULL, &bytes, outside.place[i].length);
    }
    pthread_mutex_unlock(&outside.lock);
    return session;
}

static void drop(SSL_CTX *ctx, SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);
    int i;

    (void)ctx;
    pthread_mutex_lock(&outside.lock);
    i = find(id, length);
    if (i >= 0 && outside.deletes)
        outside.place[i].length = 0;
    pthread_mutex_unlock(&outside.lock);
}

static SSL_CTX *server_with_external_cache(long mode, int deletes)
{
    SSL_CTX *ctx = early_server();

    outside.deletes = deletes;
    outside.next = 0;
    memset(outside.place, 0, sizeof outside.place);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | mode);
    SSL_CTX_sess_set_new_cb(ctx, keep);
    SSL_CTX_sess_set_get_cb(ctx, give);
    SSL_CTX_sess_set_remove_cb(ctx, drop);
    return ctx;
}

/* Three replays in a row, as many as stock and Reprise answer differently. */
static void replayed_outside(const char *what, long mode, int deletes)
{
    SSL_CTX *server = server_with_external_cache(mode, deletes), *client = client_ctx(TLS1_3_VERSION);
    SSL_SESSION *session = ticket(client, server);

    observe_int("REPLAY1", what, accepted_of(3, client, server, session), 1);
    SSL_SESSION_free(session);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
}

static void REPLAY1_external_cache_that_deletes(void **state)
{
    (void)state;
    replayed_outside("accepted of 3 replays, external cache that deletes", 0, 1);
}

static void REPLAY1_external_cache_that_does_not_delete(void **state)
{
    (void)state;
    replayed_outside("accepted of 3 replays, external cache that does not delete", 0, 0);
}

static void REPLAY1_external_cache_that_does_not_delete_no_internal_lookup(void **state)
{
    (void)state;
    replayed_outside("accepted of 3 replays, external cache that does not delete, NO_INTERNAL_LOOKUP",
                     SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, 0);
}

static void REPLAY1_external_cache_that_deletes_no_internal(void **state)
{
    (void)state;
    replayed_outside("accepted of 3 replays, external cache that deletes, NO_INTERNAL",
                     SSL_SESS_CACHE_NO_INTERNAL, 1);
}

static void REPLAY1_external_cache_that_does_not_delete_no_internal(void **state)
{
    (void)state;
    replayed_outside("accepted of 3 replays, external cache that does not delete, NO_INTERNAL",
                     SSL_SESS_CACHE_NO_INTERNAL, 0);
}

/* On stock several threads win now and then: which rounds is a matter of luck, so only the promise is asserted. */
static void REPLAY1_of_racing_threads_one_is_accepted_external_cache(void **state)
{
    static const long mode[] = { 0, SSL_SESS_CACHE_NO_INTERNAL };
    size_t i;
    int deletes;

    (void)state;
    if (subject() != DOCUMENTED)
        skip();
    for (i = 0; i < sizeof mode / sizeof *mode; i++)
        for (deletes = 0; deletes < 2; deletes++) {
            SSL_CTX *server = server_with_external_cache(mode[i], deletes), *client = client_ctx(TLS1_3_VERSION);

            assert_int_equal(rounds_with_exactly_one(client, server), ROUNDS);
            SSL_CTX_free(client);
            SSL_CTX_free(server);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RULE_TEST(REPLAY1_a_replayed_ticket_is_refused),
        RULE_TEST(REPLAY1_a_ticket_spent_without_early_data_is_refused),
        RULE_TEST(REPLAY1_a_removed_ticket_is_refused),
        RULE_TEST(REPLAY1_both_tickets_of_a_connection_work_once_each),
        RULE_TEST(REPLAY1_new_tickets_of_a_0rtt_connection_work_once),
        OBJECT_TEST(CB5_a_marked_session_leaves_with_remove_cb),
        RULE_TEST(REPLAY1_without_anti_replay_accepted_again),
        RULE_TEST(REPLAY1_without_anti_replay_and_tickets_accepted_again),
        RULE_TEST(REPLAY1_of_racing_threads_one_is_accepted),
        RULE_TEST(REPLAY1_external_cache_that_deletes),
        RULE_TEST(REPLAY1_external_cache_that_does_not_delete),
        RULE_TEST(REPLAY1_external_cache_that_does_not_delete_no_internal_lookup),
        RULE_TEST(REPLAY1_external_cache_that_deletes_no_internal),
        RULE_TEST(REPLAY1_external_cache_that_does_not_delete_no_internal),
        RULE_TEST(REPLAY1_of_racing_threads_one_is_accepted_external_cache),
    };

    return RUN_PAGE("SSL_read_early_data", tests);
}
