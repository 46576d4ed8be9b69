/*
 * openssl-quic(7): the session cache under QUIC. Real UDP sockets on loopback, a listener, clients that come back.
 * There libssl calls the callbacks with the mutex of the connection held, and a program holds objects that are not
 * connections: listeners, streams, domains.
 *
 * What runs it is libssl 3.5 and later: before, there is no QUIC server to come back to.
 */
#include "harness.h"

#include <openssl/opensslconf.h>
#include <openssl/opensslv.h>

#if OPENSSL_VERSION_NUMBER >= 0x30500000L && !defined(OPENSSL_NO_QUIC)

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>

#ifdef WITH_REPRISE
#include "reprise.h"
#endif

enum { TICKETS = 2, PATIENCE = 20 /* seconds: what takes longer has failed */ };

static const unsigned char protocol[] = { 4, 't', 'e', 's', 't' };

static int in_time(time_t start)
{
    return time(NULL) - start <= PATIENCE;
}

/* ---- contexts ---- */

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *length, const unsigned char *in,
                           unsigned int in_length, void *arg)
{
    (void)ssl, (void)arg;
    return SSL_select_next_proto((unsigned char **)out, length, protocol, sizeof(protocol), in, in_length)
            == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static SSL_CTX *quic_server(void)
{
    SSL_CTX *ctx = server_ctx_with(OSSL_QUIC_server_method());

    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    SSL_CTX_set_num_tickets(ctx, TICKETS);
    return ctx;
}

/* One whose tickets only name a session, and whose internal cache has it. */
static SSL_CTX *caching_server(void)
{
    SSL_CTX *ctx = quic_server();

    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    return ctx;
}

/* The last session that came, and how many did. */
static _Atomic(SSL_SESSION *) last;
static atomic_int came;

static int on_ticket(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(atomic_exchange(&last, session));
    atomic_fetch_add(&came, 1);
    return 1;
}

static SSL_CTX *quic_client_with(const SSL_METHOD *method)
{
    SSL_CTX *ctx = client_ctx_with(method);

    assert_int_equal(SSL_CTX_set_alpn_protos(ctx, protocol, sizeof(protocol)), 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(ctx, on_ticket);
    return ctx;
}

static SSL_CTX *quic_client(void)
{
    return quic_client_with(OSSL_QUIC_client_method());
}

/* ---- listeners and connections ---- */

typedef struct { SSL *ssl; BIO_ADDR *address; } listener;

static BIO *udp(struct sockaddr_in *bound)
{
    struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(any);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    BIO *bio;

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&any, length), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&any, &length), 0);
    if (bound != NULL)
        *bound = any;
    bio = BIO_new_dgram(fd, BIO_CLOSE);
    assert_non_null(bio);
    return bio;
}

static void begin_to_listen(listener *l, int blocking)
{
    struct sockaddr_in bound;
    BIO *bio = udp(&bound);

    SSL_set_bio(l->ssl, bio, bio);
    l->address = BIO_ADDR_new();
    assert_int_equal(BIO_ADDR_rawmake(l->address, AF_INET, &bound.sin_addr, sizeof(bound.sin_addr), bound.sin_port), 1);
    assert_int_equal(SSL_set_blocking_mode(l->ssl, blocking), 1);
    assert_int_equal(SSL_listen(l->ssl), 1);
}

static listener listen_with(SSL_CTX *ctx)
{
    listener l = { SSL_new_listener(ctx, 0), NULL };

    assert_non_null(l.ssl);
    begin_to_listen(&l, 0);
    return l;
}

static void stop(listener *l)
{
    SSL_free(l->ssl);
    BIO_ADDR_free(l->address);
}

static SSL *dial(SSL_CTX *ctx, const listener *l, SSL_SESSION *offer, int blocking)
{
    SSL *ssl = SSL_new(ctx);
    BIO *bio = udp(NULL);

    assert_non_null(ssl);
    SSL_set_bio(ssl, bio, bio);
    assert_int_equal(SSL_set1_initial_peer_addr(ssl, l->address), 1);
    assert_int_equal(SSL_set_blocking_mode(ssl, blocking), 1);
    if (offer != NULL) {
        SSL_SESSION *copy = SSL_SESSION_dup(offer); /* libssl marks what was used; `offer` can be offered again */

        assert_int_equal(SSL_set_session(ssl, copy), 1);
        SSL_SESSION_free(copy);
    }
    return ssl;
}

/* All that is to be done at both ends now, and a moment for what is under way. */
static void turn(SSL *client, SSL *listening, SSL *server)
{
    struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };

    ERR_clear_error();
    SSL_handle_events(client);
    SSL_handle_events(listening);
    if (server != NULL)
        SSL_handle_events(server);
    fds[0].fd = SSL_get_fd(client);
    fds[1].fd = SSL_get_fd(listening);
    poll(fds, 2, 1);
    ERR_clear_error();
}

/* A connection, both ends in one thread; all tickets have come. Libssl sends one where a session was resumed. */
static pair quic_connect(SSL_CTX *ctx, const listener *l, SSL_SESSION *offer)
{
    pair p = { dial(ctx, l, offer, 0), NULL };
    int had = atomic_load(&came), done = 0;
    time_t start = time(NULL);

    while (!done || p.server == NULL || !SSL_is_init_finished(p.server)
           || atomic_load(&came) - had < (SSL_session_reused(p.client) ? 1 : TICKETS)) {
        if (!done)
            done = SSL_connect(p.client) == 1;
        turn(p.client, l->ssl, p.server);
        if (p.server == NULL)
            p.server = SSL_accept_connection(l->ssl, SSL_ACCEPT_CONNECTION_NO_BLOCK);
        if (!in_time(start))
            fail_msg("client connected: %d, server: %d, tickets: %d", done, p.server != NULL,
                     atomic_load(&came) - had);
    }
    return p;
}

/*
 * A good end. Each side says so before it can hear it of the other: an end that was closed by its peer, and is through
 * with that, says nothing any more, and libssl condemns the session as if there had been no SSL_shutdown.
 */
static void quic_close(pair *p, const listener *l)
{
    const uint64_t at_once = SSL_SHUTDOWN_FLAG_RAPID | SSL_SHUTDOWN_FLAG_NO_BLOCK;
    time_t start = time(NULL);

    while ((SSL_shutdown_ex(p->server, at_once, NULL, 0) & SSL_shutdown_ex(p->client, at_once, NULL, 0)) != 1
           && in_time(start))
        turn(p->client, l->ssl, p->server);
    SSL_free(p->client);
    SSL_free(p->server);
}

/* A full handshake closed well: the client's last session, one reference for the caller. */
static SSL_SESSION *quic_session(SSL_CTX *ctx, const listener *l)
{
    pair p = quic_connect(ctx, l, NULL);
    SSL_SESSION *session = SSL_get1_session(p.client);

    assert_false(tls_resumed(&p));
    assert_true(SSL_SESSION_is_resumable(session));
    quic_close(&p, l);
    return session;
}

static int quic_resumes(SSL_CTX *ctx, const listener *l, SSL_SESSION *offer)
{
    pair p = quic_connect(ctx, l, offer);
    int resumed = tls_resumed(&p);

    quic_close(&p, l);
    return resumed;
}

/* A server that listens, a client, and a session of the two. */
typedef struct { SSL_CTX *server, *client; listener l; SSL_SESSION *offer; } scene;

static scene begin(SSL_CTX *server)
{
    scene s = { server, quic_client(), listen_with(server), NULL };

    s.offer = quic_session(s.client, &s.l);
    return s;
}

static void end(scene *s)
{
    SSL_SESSION_free(s->offer);
    SSL_SESSION_free(atomic_exchange(&last, NULL));
    stop(&s->l);
    SSL_CTX_free(s->server);
    SSL_CTX_free(s->client);
}

/* ---- the tests ---- */

static int new_calls, new_version, new_keeps;
static SSL_SESSION *kept;

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    new_calls++;
    new_version = SSL_SESSION_get_protocol_version(session);
    if (!new_keeps)
        return 0;
    SSL_SESSION_free(kept);
    kept = session;
    return 1;
}

static void CB2_new_cb(void **state)
{
    SSL_CTX *server = caching_server(), *client = quic_client();
    listener l = listen_with(server);
    SSL_SESSION *offer;

    (void)state;
    new_calls = 0;
    new_keeps = 1;
    SSL_CTX_sess_set_new_cb(server, on_new);
    offer = quic_session(client, &l);
    observe_int("CB4", "QUIC, client: calls of new_cb, full handshake", atomic_load(&came), TICKETS);
    observe_int("CB4", "QUIC, server: calls of new_cb, full handshake", new_calls, TICKETS);
    observe_bool("CB2", "QUIC: its sessions are of TLS 1.3", new_version == TLS1_3_VERSION
                 && SSL_SESSION_get_protocol_version(offer) == TLS1_3_VERSION, 1);
    observe_bool("CB2", "QUIC: resumed", quic_resumes(client, &l, offer), 1);
    observe_int("CB4", "QUIC, client: calls of new_cb, resumed", atomic_load(&came) - TICKETS, 1);
    observe_int("CB4", "QUIC, server: calls of new_cb, resumed", new_calls - TICKETS, 1);
    new_keeps = 0;
    SSL_SESSION_free(quic_session(client, &l));
    observe_number("CB3", "QUIC, server, returned 0: cached", server, TICKETS + 1);
    SSL_SESSION_free(kept);
    kept = NULL;
    SSL_SESSION_free(offer);
    stop(&l);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

static void MODE10_tickets(void **state)
{
    scene stateless = begin(quic_server()), stateful = begin(caching_server());

    (void)state;
    observe_number("MODE10", "QUIC, stateless tickets: cached", stateless.server, 0);
    observe_bool("MODE10", "QUIC, stateless tickets: resumed",
                 quic_resumes(stateless.client, &stateless.l, stateless.offer), 1);
    observe_number("MODE10", "QUIC, stateful tickets: cached", stateful.server, TICKETS);
    observe_bool("MODE10", "QUIC, stateful tickets: resumed",
                 quic_resumes(stateful.client, &stateful.l, stateful.offer), 1);
    end(&stateless);
    end(&stateful);
}

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
}

static void MODE10_remove_cb(void **state)
{
    SSL_CTX *server = quic_server();
    scene s;

    (void)state;
    SSL_CTX_sess_set_remove_cb(server, on_remove);
    s = begin(server);
    observe_number("MODE10", "QUIC, stateless tickets and a remove_cb: cached", server, TICKETS);
    end(&s);
}

static void MODE4_modes(void **state)
{
    static const struct { const char *what; long mode; int cached, resumed; } cases[] = {
        { "QUIC, SERVER", SSL_SESS_CACHE_SERVER, TICKETS, 1 },
        { "QUIC, BOTH", SSL_SESS_CACHE_BOTH, TICKETS, 1 },
        { "QUIC, OFF", SSL_SESS_CACHE_OFF, 0, 0 },
        { "QUIC, NO_INTERNAL_STORE", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_STORE, 0, 0 },
        { "QUIC, NO_INTERNAL_LOOKUP", SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, TICKETS, 0 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        SSL_CTX *server = caching_server();
        char what[64];
        scene s;

        SSL_CTX_set_session_cache_mode(server, cases[i].mode);
        s = begin(server);
        snprintf(what, sizeof(what), "%s: cached", cases[i].what);
        observe_number("MODE4", what, server, cases[i].cached);
        snprintf(what, sizeof(what), "%s: resumed", cases[i].what);
        observe_bool("MODE4", what, quic_resumes(s.client, &s.l, s.offer), cases[i].resumed);
        end(&s);
    }
}

static void MODE9_another_session_id_context(void **state)
{
    scene s = begin(caching_server());

    (void)state;
    SSL_CTX_set_session_id_context(s.server, (const unsigned char *)"other", 5);
    observe_bool("MODE9", "QUIC: resumed under another session id context", quic_resumes(s.client, &s.l, s.offer), 0);
    end(&s);
}

/* ---- an external cache ---- */

static int get_calls, get_length;

static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    unsigned int own;

    (void)ssl;
    get_calls++;
    get_length = length;
    *copy = 1;
    if (kept == NULL || memcmp(SSL_SESSION_get_id(kept, &own), id, (size_t)length) != 0 || own != (unsigned)length)
        return NULL;
    return kept;
}

static void CB7_external_cache(void **state)
{
    SSL_CTX *server = caching_server();
    scene s;

    (void)state;
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(server, on_new);
    SSL_CTX_sess_set_get_cb(server, on_get);
    new_keeps = 1;
    get_calls = 0;
    s = begin(server);
    observe_int("CB7", "QUIC: calls of get_cb where nothing is offered", get_calls, 0);
    observe_bool("CB7", "QUIC: resumed from the external cache", quic_resumes(s.client, &s.l, s.offer), 1);
    observe_int("CB7", "QUIC: the id has bytes", get_length, 32);
    observe_int("CB7", "QUIC: calls of get_cb", get_calls, 1);
    observe_bool("CB7", "QUIC: resumed where the external cache has another", quic_resumes(s.client, &s.l, s.offer), 0);
    SSL_SESSION_free(kept);
    kept = NULL;
    end(&s);
}

/* ---- leaving the cache ---- */

static void ADD5_removed_and_flushed(void **state)
{
    scene s = begin(caching_server());
    SSL_SESSION *ours;
    pair p;

    (void)state;
    p = quic_connect(s.client, &s.l, NULL);
    ours = SSL_get1_session(p.server);
    SSL_SESSION_free(s.offer);
    s.offer = SSL_get1_session(p.client);
    quic_close(&p, &s.l);
    observe_int("ADD5", "QUIC: SSL_CTX_remove_session", SSL_CTX_remove_session(s.server, ours), 1);
    observe_int("ADD5", "QUIC: SSL_CTX_remove_session again", SSL_CTX_remove_session(s.server, ours), 0);
    observe_bool("ADD5", "QUIC: resumed after it was removed", quic_resumes(s.client, &s.l, s.offer), 0);
    SSL_SESSION_free(ours);
    SSL_SESSION_free(s.offer);
    s.offer = quic_session(s.client, &s.l);
    SSL_CTX_flush_sessions(s.server, 0);
    observe_number("FLUSH1", "QUIC: cached after a flush", s.server, 0);
    observe_bool("FLUSH1", "QUIC: resumed after a flush", quic_resumes(s.client, &s.l, s.offer), 0);
    end(&s);
}

/* Freed without a word to the peer. */
static void GET5_no_shutdown(void **state)
{
    scene s = begin(caching_server());
    pair p = quic_connect(s.client, &s.l, NULL);
    SSL_SESSION *offer = SSL_get1_session(p.client);

    (void)state;
    SSL_free(p.client);
    SSL_free(p.server);
    observe_bool("GET5", "QUIC: freed without SSL_shutdown: the client's is resumable",
                 SSL_SESSION_is_resumable(offer), 0);
    observe_number("GET5", "QUIC: freed without SSL_shutdown: cached", s.server, 2 * TICKETS - 1);
    SSL_SESSION_free(offer);
    end(&s);
}

static void STAT1_counters(void **state)
{
    scene s = begin(caching_server());
    char seen[128];

    (void)state;
    quic_resumes(s.client, &s.l, s.offer);
    SSL_CTX_flush_sessions(s.server, 0);
    quic_resumes(s.client, &s.l, s.offer);
    snprintf(seen, sizeof(seen), "accept=%ld accept_good=%ld hits=%ld cb_hits=%ld misses=%ld number=%ld",
             SSL_CTX_sess_accept(s.server), SSL_CTX_sess_accept_good(s.server), SSL_CTX_sess_hits(s.server),
             SSL_CTX_sess_cb_hits(s.server), SSL_CTX_sess_misses(s.server),
             in_redis() ? 2 : SSL_CTX_sess_number(s.server));
    observe("STAT1", "QUIC, server: full, resumed, flushed, declined", seen,
                 "accept=3 accept_good=3 hits=1 cb_hits=0 misses=1 number=2");
    snprintf(seen, sizeof(seen), "connect=%ld connect_good=%ld hits=%ld",
             SSL_CTX_sess_connect(s.client), SSL_CTX_sess_connect_good(s.client), SSL_CTX_sess_hits(s.client));
    observe("STAT1", "QUIC, client: full, resumed, declined", seen, "connect=3 connect_good=3 hits=1");
    end(&s);
}

/* ---- many connections, and contexts that die first ---- */

static void MODE9_many_on_one_listener(void **state)
{
    enum { MANY = 8 };
    scene s = begin(caching_server());
    SSL_SESSION *offers[MANY];
    pair pairs[MANY];
    int resumed = 0;

    (void)state;
    for (int i = 0; i < MANY; i++)
        pairs[i] = quic_connect(s.client, &s.l, NULL);
    for (int i = 0; i < MANY; i++) {
        offers[i] = SSL_get1_session(pairs[i].client);
        quic_close(&pairs[i], &s.l);
    }
    for (int i = 0; i < MANY; i++)
        pairs[i] = quic_connect(s.client, &s.l, offers[MANY - 1 - i]);
    for (int i = 0; i < MANY; i++) {
        resumed += tls_resumed(&pairs[i]);
        quic_close(&pairs[i], &s.l);
        SSL_SESSION_free(offers[i]);
    }
    observe_int("MODE9", "QUIC: resumed of 8 connections at once", resumed, MANY);
    end(&s);
}

static int removals;

static void on_removal(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)ctx, (void)session;
    removals++;
}

static void CB5_context_freed_first(void **state)
{
    scene s = begin(caching_server());
    pair p = quic_connect(s.client, &s.l, s.offer);

    (void)state;
    removals = 0;
    SSL_CTX_sess_set_remove_cb(s.server, on_removal);
    assert_int_equal(SSL_CTX_up_ref(s.client), 1);
    SSL_CTX_free(s.server);
    SSL_CTX_free(s.client);
    observe_int("CB5", "QUIC: context freed, a connection and a listener left: removals", removals, 0);
    SSL_SESSION_free(s.offer);
    s.offer = quic_session(s.client, &s.l);
    observe_bool("GET2", "QUIC: context freed, its listener listens on: resumed",
                 quic_resumes(s.client, &s.l, s.offer), 1);
    quic_close(&p, &s.l);
    SSL_SESSION_free(s.offer);
    SSL_SESSION_free(atomic_exchange(&last, NULL));
    SSL_CTX_free(s.client);
    removals = 0;
    stop(&s.l);
    observe_bool("CB5", "QUIC: context freed, then its listener: removals", removals > 0, 1);
}

/* ---- callbacks that call back ---- */

static int within, entered, failures;

static void call_everything(SSL_CTX *ctx, SSL *ssl)
{
    SSL_SESSION *mine, *own;
    long mode, size, count;

    if (within)
        return;
    within = 1;
    entered++;
    mine = made_session(TLS1_3_VERSION, 0xAA);
    SSL_SESSION_set_timeout(mine, 3600);
    size = SSL_CTX_sess_set_cache_size(ctx, 1000);
    failures += SSL_CTX_sess_get_cache_size(ctx) != 1000;
    mode = SSL_CTX_get_session_cache_mode(ctx);
    failures += SSL_CTX_set_session_cache_mode(ctx, mode) != mode;
    count = SSL_CTX_sess_number(ctx);
    failures += SSL_CTX_add_session(ctx, mine) != 1;
    failures += !numbers(ctx, count + 1);
    failures += SSL_CTX_remove_session(ctx, mine) != 1;
    failures += SSL_CTX_remove_session(ctx, mine) != 0;
    SSL_CTX_flush_sessions(ctx, 1);
    failures += !numbers(ctx, count);
    failures += SSL_CTX_sessions(ctx) == NULL;
    SSL_CTX_sess_set_new_cb(ctx, SSL_CTX_sess_get_new_cb(ctx));
    SSL_CTX_sess_set_get_cb(ctx, SSL_CTX_sess_get_get_cb(ctx));
    SSL_CTX_sess_set_remove_cb(ctx, SSL_CTX_sess_get_remove_cb(ctx));
    failures += SSL_CTX_sess_hits(ctx) < 0 || SSL_CTX_sess_misses(ctx) < 0 || SSL_CTX_sess_accept(ctx) < 0;
    SSL_CTX_sess_set_cache_size(ctx, size);
    SSL_SESSION_free(mine);
    if (ssl != NULL) {
        own = SSL_get1_session(ssl);
        failures += own != SSL_get_session(ssl);
        SSL_SESSION_free(own);
        failures += SSL_has_matching_session_id(ssl, (const unsigned char *)"unknown", 7) != 0;
        failures += SSL_get_SSL_CTX(ssl) != ctx;
        failures += SSL_session_reused(ssl) < 0;
    }
    within = 0;
}

static int calling_new_cb(SSL *ssl, SSL_SESSION *session)
{
    call_everything(SSL_get_SSL_CTX(ssl), ssl);
    return on_new(ssl, session);
}

static int calling_ticket_cb(SSL *ssl, SSL_SESSION *session)
{
    call_everything(SSL_get_SSL_CTX(ssl), ssl);
    return on_ticket(ssl, session);
}

static SSL_SESSION *calling_get_cb(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    call_everything(SSL_get_SSL_CTX(ssl), ssl);
    return on_get(ssl, id, length, copy);
}

static void calling_remove_cb(SSL_CTX *ctx, SSL_SESSION *session)
{
    (void)session;
    call_everything(ctx, NULL);
}

enum event { NEW_SERVER, NEW_CLIENT, GET, REMOVE_SERVER, CONDEMN };

/* Bits: 1 nothing was called, 2 a call failed, 4 not resumed. */
static int call_back(void *arg)
{
    enum event event = *(enum event *)arg;
    SSL_CTX *server = caching_server();
    scene s;
    pair p;
    int resumed;

    entered = failures = 0;
    new_keeps = 1;
    if (event == NEW_SERVER)
        SSL_CTX_sess_set_new_cb(server, calling_new_cb);
    if (event == GET) {
        SSL_CTX_sess_set_new_cb(server, on_new);
        SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL_LOOKUP);
        SSL_CTX_sess_set_get_cb(server, calling_get_cb);
    }
    s = begin(server);
    if (event == NEW_CLIENT)
        SSL_CTX_sess_set_new_cb(s.client, calling_ticket_cb);
    if (event == REMOVE_SERVER || event == CONDEMN)
        SSL_CTX_sess_set_remove_cb(server, calling_remove_cb);
    resumed = quic_resumes(s.client, &s.l, s.offer);
    p = quic_connect(s.client, &s.l, NULL);
    if (event == REMOVE_SERVER)
        SSL_CTX_remove_session(server, SSL_get_session(p.server));
    SSL_free(p.client); /* without SSL_shutdown: libssl condemns the sessions */
    SSL_free(p.server);
    SSL_CTX_sess_set_remove_cb(server, NULL);
    end(&s);
    return (entered == 0) | (failures != 0) << 1 | !resumed << 2;
}

static void CB11_callbacks_call_back(void **state)
{
    static const struct { enum event event; const char *what; } cases[] = {
        { NEW_SERVER, "QUIC, new_cb of a server: calling back" },
        { NEW_CLIENT, "QUIC, new_cb of a client: calling back" },
        { GET, "QUIC, get_cb: calling back" },
        { REMOVE_SERVER, "QUIC, remove_cb on SSL_CTX_remove_session: calling back" },
        { CONDEMN, "QUIC, remove_cb on a missing shutdown: calling back" },
    };

    (void)state;
    SSL_SESSION_free(made_session(TLS1_3_VERSION, 1)); /* so that it needs no context in the callback */
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        observe("CB11", cases[i].what, in_child(call_back, (void *)&cases[i].event, PATIENCE), "returns 0");
}

/* ---- blocking, in threads of their own ---- */

enum { CLIENTS = 4, ROUNDS = 3 };

struct serving { SSL *listening; int resumed; };

/* One connection after the other, each closed by this end (see quic_close). */
static void *serve(void *arg)
{
    struct serving *serving = arg;
    char bytes[2];

    for (int i = 0; i < CLIENTS * ROUNDS; i++) {
        SSL *ssl = SSL_accept_connection(serving->listening, 0);

        if (ssl == NULL)
            break;
        if (SSL_accept(ssl) == 1 && SSL_read(ssl, bytes, 1) == 1 && SSL_write(ssl, bytes, 1) == 1
            && SSL_read(ssl, bytes, 1) == 1) {
            serving->resumed += SSL_session_reused(ssl);
            SSL_shutdown_ex(ssl, SSL_SHUTDOWN_FLAG_RAPID, NULL, 0);
        }
        SSL_free(ssl);
    }
    return NULL;
}

struct visiting { const listener *l; SSL_CTX *ctx; int resumed, failed; };

/* Comes back with the session of the time before. The answer to the first byte comes after the tickets. */
static void *visit(void *arg)
{
    struct visiting *visiting = arg;
    SSL_SESSION *offer = NULL;
    char byte = 'x';

    for (int i = 0; i < ROUNDS; i++) {
        SSL *ssl = dial(visiting->ctx, visiting->l, offer, 1);

        visiting->failed += SSL_connect(ssl) != 1 || SSL_write(ssl, &byte, 1) != 1 || SSL_read(ssl, &byte, 1) != 1;
        visiting->resumed += SSL_session_reused(ssl);
        SSL_SESSION_free(offer);
        offer = SSL_SESSION_dup(SSL_get_session(ssl));
        visiting->failed += SSL_write(ssl, &byte, 1) != 1 || SSL_read(ssl, &byte, 1) > 0;
        SSL_free(ssl);
    }
    SSL_SESSION_free(offer);
    return NULL;
}

static int in_threads(void *arg)
{
    SSL_CTX *server = caching_server(), *client = quic_client_with(arg);
    listener l = { SSL_new_listener(server, 0), NULL };
    struct serving serving = { l.ssl, 0 };
    struct visiting visiting[CLIENTS];
    pthread_t server_thread, threads[CLIENTS];
    int resumed = 0, failed = 0;

    begin_to_listen(&l, 1);
    assert_int_equal(pthread_create(&server_thread, NULL, serve, &serving), 0);
    for (int i = 0; i < CLIENTS; i++) {
        visiting[i] = (struct visiting){ &l, client, 0, 0 };
        assert_int_equal(pthread_create(&threads[i], NULL, visit, &visiting[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        resumed += visiting[i].resumed;
        failed += visiting[i].failed;
    }
    pthread_join(server_thread, NULL);
    stop(&l);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    if (failed > 0 || resumed != serving.resumed)
        return 100;
    return arg == (void *)OSSL_QUIC_client_method() ? resumed : 0;
}

static void MODE4_blocking_in_threads(void **state)
{
    (void)state;
    observe("MODE4", "QUIC, blocking, 4 clients that return twice: resumed",
                 in_child(in_threads, (void *)OSSL_QUIC_client_method(), PATIENCE), "returns 8");
    if (slowly())
        return; /* threads take turns there, and QUIC's own timers run out */
    /* Tickets that libssl's own thread received are not handed to TLS: nothing is resumed. */
    observe("MODE4", "QUIC, thread-assisted, 4 clients that return twice: failed",
                 in_child(in_threads, (void *)OSSL_QUIC_client_thread_method(), PATIENCE), "returns 0");
}

/* ---- early data, which libssl's QUIC does not have ---- */

static void REPLAY1_early_data(void **state)
{
    SSL_CTX *server = caching_server();
    scene s;
    int resumed = 0;

    (void)state;
    SSL_CTX_set_max_early_data(server, 0xffffffff);
    s = begin(server);
    for (int i = 0; i < 3; i++)
        resumed += quic_resumes(s.client, &s.l, s.offer);
    observe_int("REPLAY1", "QUIC, max_early_data: resumed of 3 with one session", resumed, 1);
    end(&s);
}

/* ---- objects that are not connections ---- */

/* What our functions answer for it. None of them fits what is no connection. */
static const char *answers(SSL *ssl, SSL_CTX *ctx, SSL_SESSION *session)
{
    static char text[200];
    SSL_SESSION *one = SSL_get1_session(ssl);

    snprintf(text, sizeof(text), "get %s, get1 %s, set %d, has %d, SSL_CTX %s, switched %s, clear %d",
             SSL_get_session(ssl) == NULL ? "none" : "one", one == NULL ? "none" : "one",
             SSL_set_session(ssl, session),
             SSL_has_matching_session_id(ssl, (const unsigned char *)"unknown", 7),
             SSL_get_SSL_CTX(ssl) == ctx ? "its own" : "another", SSL_set_SSL_CTX(ssl, ctx) == NULL ? "no" : "yes",
             SSL_clear(ssl));
    SSL_SESSION_free(one);
    ERR_clear_error();
    return text;
}

static void GET1_objects(void **state)
{
    static const char nothing[] = "get none, get1 none, set 0, has 0, SSL_CTX its own, switched no, clear 0";
    static const char its_own[] = "get one, get1 one, set 1, has 0, SSL_CTX its own, switched no, clear 0";
    scene s = begin(caching_server());
    pair p = quic_connect(s.client, &s.l, s.offer);
    SSL *stream = SSL_new_stream(p.client, 0), *domain = SSL_new_domain(s.server, 0), *other;
    SSL_SESSION *own = SSL_get1_session(p.client);

    (void)state;
    assert_non_null(stream);
    assert_non_null(domain);
    observe_bool("GET1", "QUIC, connection: SSL_get_session is its session",
                 SSL_get_session(p.client) == own && SSL_SESSION_is_resumable(own), 1);
    observe("BAD1", "QUIC, stream", answers(stream, s.client, s.offer), nothing);
    observe("BAD1", "QUIC, listener", answers(s.l.ssl, s.server, s.offer), nothing);
    observe("BAD1", "QUIC, domain", answers(domain, s.server, s.offer), nothing);
    observe("BAD1", "QUIC, connection in use", answers(p.client, s.client, s.offer), its_own);
    SSL_set_connect_state(stream);
    SSL_set_connect_state(p.client);
    SSL_set_connect_state(s.l.ssl);
    SSL_set_connect_state(domain);
    observe_int("BAD1", "QUIC, listener: SSL_connect", SSL_connect(s.l.ssl), 0);
    observe_int("BAD1", "QUIC, domain: SSL_connect", SSL_connect(domain), 0);
    ERR_clear_error();
    other = SSL_new_listener_from(domain, 0);
    observe_bool("BAD1", "QUIC, domain: a listener of it", other != NULL, 1);
    observe_bool("BAD1", "QUIC, a server's context: SSL_new", SSL_new(s.server) != NULL, 0);
    ERR_clear_error();
    SSL_free(other);
    SSL_free(domain);
    SSL_free(stream);
    SSL_SESSION_free(own);
    quic_close(&p, &s.l);
    observe_bool("BAD1", "QUIC: resumed after all that", quic_resumes(s.client, &s.l, s.offer), 1);
    end(&s);
}

/* A listener with a domain behind it is one like any other. */
static void MODE4_listener_of_a_domain(void **state)
{
    SSL_CTX *server = caching_server(), *client = quic_client();
    SSL *domain = SSL_new_domain(server, 0);
    listener l = { SSL_new_listener_from(domain, 0), NULL };
    SSL_SESSION *offer;

    (void)state;
    begin_to_listen(&l, 0);
    offer = quic_session(client, &l);
    observe_bool("MODE4", "QUIC, a listener of a domain: resumed", quic_resumes(client, &l, offer), 1);
    SSL_SESSION_free(offer);
    SSL_SESSION_free(atomic_exchange(&last, NULL));
    stop(&l);
    SSL_free(domain);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
}

/* ---- what only Reprise has ---- */

/* A QUIC connection issues the tickets that its context asks for, whatever REPRISE_TICKETS says. */
static void tickets_stateful(void **state)
{
    (void)state;
#ifdef WITH_REPRISE
    SSL_CTX *server = quic_server();
    scene s;

    assert_int_equal(reprise_ctx_set_tickets(server, REPRISE_TICKETS_STATEFUL), 1);
    s = begin(server);
    assert_number(server, 0);
    assert_true(quic_resumes(s.client, &s.l, s.offer));
    end(&s);
#endif
}

static void unclean_keep(void **state)
{
    (void)state;
#ifdef WITH_REPRISE
    scene s = begin(caching_server());
    SSL_SESSION *offer;
    pair p;

    assert_int_equal(reprise_ctx_set_unclean(s.server, REPRISE_UNCLEAN_KEEP), 1);
    p = quic_connect(s.client, &s.l, NULL);
    offer = SSL_SESSION_dup(SSL_get_session(p.client));
    SSL_free(p.client);
    SSL_free(p.server);
    assert_true(quic_resumes(s.client, &s.l, offer));
    SSL_SESSION_free(offer);
    end(&s);
#endif
}

static int begin_test(void **state)
{
    atomic_store(&came, 0);
    new_calls = 0;
    return references_setup(state);
}

/* Also after a test that failed. */
static int end_test(void **state)
{
    SSL_SESSION_free(atomic_exchange(&last, NULL));
    return references_teardown(state);
}

#define QUIC_TEST(f) cmocka_unit_test_setup_teardown(f, begin_test, end_test)
#define QUIC_OBJECT_TEST(f) { #f, shared() ? left_out : f, begin_test, end_test, NULL }

int main(void)
{
    const struct CMUnitTest tests[] = {
        QUIC_TEST(CB2_new_cb),
        QUIC_TEST(MODE10_tickets),
        QUIC_TEST(MODE10_remove_cb),
        QUIC_TEST(MODE4_modes),
        QUIC_TEST(MODE9_another_session_id_context),
        QUIC_TEST(CB7_external_cache),
        QUIC_TEST(ADD5_removed_and_flushed),
        QUIC_TEST(GET5_no_shutdown),
        QUIC_TEST(STAT1_counters),
        QUIC_TEST(MODE9_many_on_one_listener),
        QUIC_OBJECT_TEST(CB5_context_freed_first),
        QUIC_TEST(CB11_callbacks_call_back),
        QUIC_TEST(MODE4_blocking_in_threads),
        QUIC_TEST(REPLAY1_early_data),
        QUIC_TEST(GET1_objects),
        QUIC_TEST(MODE4_listener_of_a_domain),
        QUIC_TEST(tickets_stateful),
        QUIC_TEST(unclean_keep),
    };

    return RUN_PAGE("quic", tests);
}

#else

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(left_out) };

    return RUN_PAGE("quic", tests);
}

#endif
