/*
 * Random sequences of calls of the session-cache API, connections among them, with everything that a program can see
 * written down: what is returned, which callbacks run in which order, counters, references, marks, the error queue.
 * Run on stock and on Reprise with stock semantics, the same sequences must print the same text (tests/differential.rs).
 *
 *   differential FIRST COUNT     COUNT sequences; the number of a sequence decides all of it
 *
 * Not called, because stock itself is undefined or differs from run to run there:
 * - a session is never added to a second SSL_CTX: libssl 3.0 and later keep one place in a list for each object (ADD3);
 * - a session that is marked (SSL_SESSION_is_resumable) is not added, and one that is cached is marked only where it leaves:
 *   libssl resumes what is cached and marked, Reprise never does;
 * - a session without an id is not added: libssl could never remove it again;
 * - callbacks do not call back into their SSL_CTX: libssl holds its lock (CB11);
 * And nothing depends on when a second ends: times lie half a thousand seconds apart, and libssl's clock stands still.
 */
#include "../harness.h"

#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

enum { SERVERS = 2, CLIENT = SERVERS, CONTEXTS, SLOTS = 6, NAMES = 4096, STEPS = 40 };

static uint64_t state;
static time_t base;                     /* now */

static unsigned below(unsigned n)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (unsigned)((z ^ z >> 31) % n);
}

static int chance(unsigned percent)
{
    return below(100) < percent;
}

/* libssl asks one of these for the time. */
time_t time(time_t *out)
{
    if (out != NULL)
        *out = base;
    return base;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    *now = (struct timeval) { .tv_sec = base };
    return 0;
}

/* What callbacks do, one set for each SSL_CTX. */
struct context {
    SSL_CTX *ctx;
    int version, new_keeps, get_copies, get_finds;
};
static struct context contexts[CONTEXTS];
static int accepting;                   /* the server of a connection that is being made; its cache is used even after SSL_set_SSL_CTX */
static SSL_SESSION *slots[SLOTS];       /* a reference each, or NULL */
static int home_index;                  /* of a session: one more than the number of its SSL_CTX, 0 as long as it has none */

/* ---- what is written down ---- */

/* Session ids are random: they are called by the order in which they appeared. */
static struct { unsigned char id[32]; unsigned length; } names[NAMES];
static int named;
static int alive_before_all;            /* what stock leaked in earlier sequences is not counted again */

static const char *name_of(const SSL_SESSION *session)
{
    static char text[8][32];
    static int next;
    char *out = text[next++ % 8];
    unsigned length;
    const unsigned char *id;
    int i;

    if (session == NULL)
        return "NULL";
    id = SSL_SESSION_get_id(session, &length);
    for (i = 0; i < named && (names[i].length != length || memcmp(names[i].id, id, length) != 0); i++)
        ;
    if (i == named && named < NAMES) {
        memcpy(names[i].id, id, length);
        names[named++].length = length;
    }
    snprintf(out, sizeof(*text), "s%d", i);
    for (i = 0; i < SLOTS; i++)
        if (slots[i] == session)
            snprintf(out + strlen(out), sizeof(*text) - strlen(out), "@%d", i);
    return out;
}

static int number_of(const SSL_CTX *ctx)
{
    for (int i = 0; i < CONTEXTS; i++)
        if (contexts[i].ctx == ctx)
            return i;
    return -1;
}

static long thousands(long seconds)
{
    return (seconds + 500) / 1000;
}

static void print_state(void)
{
    unsigned long error;

    for (int i = 0; i < CONTEXTS; i++) {
        SSL_CTX *ctx = contexts[i].ctx;

        if (ctx == NULL)
            continue;
        printf("   %d: %ld in, connect %ld %ld %ld, accept %ld %ld %ld, hits %ld %ld, misses %ld, timeouts %ld, "
               "full %ld, lhash %lu\n", i,
               SSL_CTX_sess_number(ctx), SSL_CTX_sess_connect(ctx), SSL_CTX_sess_connect_good(ctx),
               SSL_CTX_sess_connect_renegotiate(ctx), SSL_CTX_sess_accept(ctx), SSL_CTX_sess_accept_good(ctx),
               SSL_CTX_sess_accept_renegotiate(ctx), SSL_CTX_sess_hits(ctx), SSL_CTX_sess_cb_hits(ctx),
               SSL_CTX_sess_misses(ctx), SSL_CTX_sess_timeouts(ctx), SSL_CTX_sess_cache_full(ctx),
               OPENSSL_LH_num_items((const OPENSSL_LHASH *)SSL_CTX_sessions(ctx)));
    }
    printf("   %d alive", sessions_alive() - alive_before_all);
    for (int i = 0; i < SLOTS; i++)
        if (slots[i] != NULL)
            printf(", %s%s %ld+%ld", name_of(slots[i]), SSL_SESSION_is_resumable(slots[i]) ? "" : " marked",
                   thousands((long)(SSL_SESSION_get_time(slots[i]) - base)), SSL_SESSION_get_timeout(slots[i]));
    while ((error = ERR_get_error()) != 0)
        printf(", error %d:%d", ERR_GET_LIB(error), ERR_GET_REASON(error));
    printf("\n");
}

/* ---- callbacks ---- */

static void put(int slot, SSL_SESSION *session)
{
    SSL_SESSION *old = slots[slot];

    slots[slot] = session;
    SSL_SESSION_free(old);
}

static int home_of(const SSL_SESSION *session)
{
    return (int)(intptr_t)SSL_SESSION_get_ex_data(session, home_index) - 1;
}

/* A copy is in no cache. */
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
static int no_home(CRYPTO_EX_DATA *to, const CRYPTO_EX_DATA *from, void **from_d, int index, long argl, void *argp)
#else
static int no_home(CRYPTO_EX_DATA *to, const CRYPTO_EX_DATA *from, void *from_d, int index, long argl, void *argp)
#endif
{
    (void)to, (void)from, (void)index, (void)argl, (void)argp;
    *(void **)from_d = NULL;
    return 1;
}

/* Whether it may be in the cache of that SSL_CTX, which is then its home. */
static int at_home(SSL_SESSION *session, int number)
{
    if (home_of(session) < 0)
        SSL_SESSION_set_ex_data(session, home_index, (void *)(intptr_t)(number + 1));
    return home_of(session) == number;
}

static int has_id(const SSL_SESSION *session)
{
    unsigned length;

    SSL_SESSION_get_id(session, &length);
    return length > 0;
}

static int cache_of(const SSL *ssl)
{
    return SSL_is_server(ssl) ? accepting : CLIENT;
}

static int on_new(SSL *ssl, SSL_SESSION *session)
{
    int number = cache_of(ssl), keeps = contexts[number].new_keeps;

    printf("   new_cb(%d, %s) = %d\n", number, name_of(session), keeps);
    at_home(session, number);
    if (keeps)
        put((int)below(SLOTS), session);
    return keeps;
}

static void on_remove(SSL_CTX *ctx, SSL_SESSION *session)
{
    printf("   remove_cb(%d, %s%s)\n", number_of(ctx), name_of(session), SSL_SESSION_is_resumable(session) ? "" : " marked");
}

static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    int number = cache_of(ssl);
    const struct context *c = &contexts[number];

    *copy = c->get_copies;
    for (int i = 0; c->get_finds && i < SLOTS; i++) {
        unsigned its;
        const unsigned char *its_id;

        if (slots[i] == NULL)
            continue;
        its_id = SSL_SESSION_get_id(slots[i], &its);
        if (its != (unsigned)length || memcmp(id, its_id, its) != 0 || !at_home(slots[i], number))
            continue;
        printf("   get_cb(%d) = %s, copy %d\n", number, name_of(slots[i]), *copy);
        if (!*copy)
            SSL_SESSION_up_ref(slots[i]);
        return slots[i];
    }
    printf("   get_cb(%d) = NULL\n", number);
    return NULL;
}

/* ---- steps ---- */

static void set_callbacks(struct context *c)
{
    c->new_keeps = (int)below(2);
    c->get_copies = (int)below(2);
    c->get_finds = chance(80);
    SSL_CTX_sess_set_new_cb(c->ctx, chance(60) ? on_new : NULL);
    SSL_CTX_sess_set_remove_cb(c->ctx, chance(60) ? on_remove : NULL);
    SSL_CTX_sess_set_get_cb(c->ctx, chance(40) ? on_get : NULL);
}

static long any_mode(void)
{
    long mode = chance(85) ? SSL_SESS_CACHE_BOTH : (long)below(4);

    if (chance(10))
        mode |= SSL_SESS_CACHE_NO_AUTO_CLEAR;
    if (chance(15))
        mode |= SSL_SESS_CACHE_NO_INTERNAL_LOOKUP;
    if (chance(15))
        mode |= SSL_SESS_CACHE_NO_INTERNAL_STORE;
    return mode;
}

static void make_context(int number)
{
    struct context *c = &contexts[number];

    c->version = chance(60) ? TLS1_2_VERSION : TLS1_3_VERSION;
    c->ctx = number == CLIENT ? client_ctx(c->version) : server_ctx(c->version);
    if (number == CLIENT) {
        SSL_CTX_set_min_proto_version(c->ctx, TLS1_2_VERSION);
        SSL_CTX_set_max_proto_version(c->ctx, TLS1_3_VERSION);
    }
    if (chance(60))
        SSL_CTX_set_options(c->ctx, SSL_OP_NO_TICKET);
    if (chance(70))
        SSL_CTX_set_session_cache_mode(c->ctx, any_mode());
    if (chance(40))
        SSL_CTX_sess_set_cache_size(c->ctx, below(5));
    if (chance(20))
        SSL_CTX_set_timeout(c->ctx, 1000 * (1 + (long)below(20)));
    if (number != CLIENT && chance(20))
        SSL_CTX_set_max_early_data(c->ctx, 1000);
    if (chance(20))
        SSL_CTX_set_options(c->ctx, SSL_OP_NO_ANTI_REPLAY);
    if (chance(10))
        SSL_CTX_set_num_tickets(c->ctx, below(4));
    if (chance(60))
        set_callbacks(c);
    printf("   version %x\n", (unsigned)c->version);
}

static void connect(int number)
{
    int slot = chance(60) ? 0 : (int)below(SLOTS), offers = chance(70) && slots[slot] != NULL, ending = (int)below(4);
    int take = (int)below(SLOTS), whose = (int)below(3);
    pair p = tls_prepare(contexts[CLIENT].ctx, contexts[number].ctx);
    int done, set = offers ? SSL_set_session(p.client, slots[slot]) : -1;

    printf(" connect(%d) offering %s = %d\n", number, offers ? name_of(slots[slot]) : "nothing", set);
    accepting = number;
    done = tls_drive(&p);
    printf("   done %d, resumed %d %d, ending %d\n", done, SSL_session_reused(p.client), SSL_session_reused(p.server), ending);
    printf("   sessions %s %s\n", name_of(SSL_get_session(p.client)), name_of(SSL_get_session(p.server)));
    if (done && chance(10))
        printf("   renegotiate %d", SSL_renegotiate(p.client)), printf(" %d\n", tls_drive(&p));
    if (SSL_get_session(p.client) != NULL && chance(60)) {
        put(0, SSL_get1_session(p.client));
        at_home(slots[0], CLIENT);
    }
    if (whose < 2 && SSL_get_session(whose ? p.server : p.client) != NULL) {
        SSL_SESSION *session = SSL_get1_session(whose ? p.server : p.client);

        at_home(session, whose ? number : CLIENT);
        put(take, session);
    }
    switch (ending) {
    case 0:
        tls_drop(&p);
        break;
    case 1:
        SSL_set_shutdown(p.server, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_set_quiet_shutdown(p.client, 1);
        tls_close(&p);
        break;
    default:
        tls_close(&p);
    }
}

/* A slot that has a session, made for it where there was none. */
static int filled(void)
{
    int slot = (int)below(SLOTS);

    for (int i = 0; i < SLOTS && chance(80); i++, slot = (slot + 1) % SLOTS)
        if (slots[slot] != NULL)
            return slot;
    put(slot, made_session(chance(70) ? TLS1_2_VERSION : TLS1_3_VERSION, (unsigned char)below(5)));
    SSL_SESSION_set_time(slots[slot], base + 1000 * ((long)below(10) - 4));
    SSL_SESSION_set_timeout(slots[slot], 1000 * (long)below(10) + 500);
    return slot;
}

static void step(void)
{
    int number = (int)below(CONTEXTS), slot;
    struct context *c = &contexts[number];
    SSL *ssl;

    switch (below(28)) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6:
        connect((int)below(SERVERS));
        break;
    case 7: case 8: case 9: case 10:
        slot = filled();
        if (has_id(slots[slot]) && SSL_SESSION_is_resumable(slots[slot]) && at_home(slots[slot], number))
            printf(" add(%d, %s) =", number, name_of(slots[slot])), printf(" %d\n", SSL_CTX_add_session(c->ctx, slots[slot]));
        break;
    case 11: case 12:
        slot = filled();
        if (!at_home(slots[slot], number))
            break;
        printf(" remove(%d, %s)\n", number, name_of(slots[slot]));
        printf("   = %d\n", SSL_CTX_remove_session(c->ctx, slots[slot]));
        break;
    case 13: {
        long when = below(4) == 0 ? 0 : base + 1000 * ((long)below(16) - 4) + 500;

        printf(" flush(%d, %ld)\n", number, when == 0 ? 0 : thousands(when - base));
        SSL_CTX_flush_sessions(c->ctx, when);
        break;
    }
    case 14:
        slot = filled();
        printf(" set_time(%s) = %ld\n", name_of(slots[slot]),
               thousands(SSL_SESSION_set_time(slots[slot], base + 1000 * ((long)below(10) - 4)) - base));
        break;
    case 15:
        slot = filled();
        printf(" set_timeout(%s) = %ld\n", name_of(slots[slot]), SSL_SESSION_set_timeout(slots[slot], 1000 * (long)below(10) + 500));
        break;
    case 16: {
        long mode = any_mode();

        printf(" set_mode(%d, %lx) = %lx\n", number, mode, SSL_CTX_set_session_cache_mode(c->ctx, mode));
        printf("   get_mode = %lx\n", SSL_CTX_get_session_cache_mode(c->ctx));
        break;
    }
    case 17: {
        long size = (long)below(6);

        printf(" set_cache_size(%d, %ld) = %ld\n", number, size, SSL_CTX_sess_set_cache_size(c->ctx, size));
        printf("   get = %ld\n", SSL_CTX_sess_get_cache_size(c->ctx));
        break;
    }
    case 18:
        printf(" set_callbacks(%d)\n", number);
        set_callbacks(c);
        printf("   %d %d %d\n", SSL_CTX_sess_get_new_cb(c->ctx) != NULL, SSL_CTX_sess_get_remove_cb(c->ctx) != NULL,
               SSL_CTX_sess_get_get_cb(c->ctx) != NULL);
        break;
    case 19:
        slot = filled();
        ssl = SSL_new(c->ctx);
        {
            unsigned length;
            const unsigned char *id = SSL_SESSION_get_id(slots[slot], &length);

            printf(" has_matching(%d, %s) = %d\n", number, name_of(slots[slot]), SSL_has_matching_session_id(ssl, id, length));
        }
        SSL_free(ssl);
        break;
    case 20:
        slot = (int)below(SLOTS);
        printf(" free(%s)\n", name_of(slots[slot]));
        put(slot, NULL);
        break;
    case 21:
        slot = filled();
        if (home_of(slots[slot]) < 0) { /* with an id that a cache knows it by, it must not be changed */
            unsigned char id[32];

            memset(id, (int)below(5), sizeof(id));
            printf(" set1_id(%s)", name_of(slots[slot]));
            printf(" = %d", SSL_SESSION_set1_id(slots[slot], id, sizeof(id)));
            printf(" %s\n", name_of(slots[slot]));
        }
        break;
    case 22: {
        SSL_SESSION *offer;

        slot = filled();
        offer = slots[slot];
        ssl = SSL_new(c->ctx);
        printf(" set_session(%d, %s) = %d", number, name_of(offer), SSL_set_session(ssl, offer));
        printf(" %d %d\n", SSL_get_session(ssl) == offer, SSL_session_reused(ssl));
        if (chance(50))
            SSL_clear(ssl);
        SSL_free(ssl);
        break;
    }
    case 23: {
        SSL_SESSION *copy;

        slot = filled();
        copy = SSL_SESSION_dup(slots[slot]);
        printf(" dup(%s) = %s\n", name_of(slots[slot]), name_of(copy));
        put((int)below(SLOTS), copy);
        break;
    }
    case 24: {
        unsigned char bytes[8192], *end = bytes;
        const unsigned char *begin = bytes;
        int length;

        slot = filled();
        length = i2d_SSL_SESSION(slots[slot], NULL);
        if (length <= 0 || length > (int)sizeof(bytes))
            break;
        i2d_SSL_SESSION(slots[slot], &end);
        printf(" through bytes(%s)", name_of(slots[slot]));
        put(slot, d2i_SSL_SESSION(NULL, &begin, length));
        printf(" = %s\n", name_of(slots[slot]));
        break;
    }
    case 25: {
        pair p = tls_prepare(contexts[CLIENT].ctx, contexts[0].ctx);
        int switched = (int)below(SERVERS);

        accepting = 0;
        printf(" set_SSL_CTX = %d", number_of(SSL_set_SSL_CTX(p.server, contexts[switched].ctx)));
        if (slots[0] != NULL)
            printf(", offering %s = %d", name_of(slots[0]), SSL_set_session(p.client, slots[0]));
        printf("\n   done %d", tls_drive(&p));
        printf(", resumed %d %d\n", SSL_session_reused(p.client), SSL_session_reused(p.server));
        tls_close(&p);
        break;
    }
    case 26:
        printf(" set_timeout(%d) = %ld\n", number, SSL_CTX_set_timeout(c->ctx, 1000 * (1 + (long)below(20))));
        break;
    default:
        printf(" SSL_CTX_free(%d)\n", number);
        SSL_CTX_free(c->ctx);
        c->ctx = NULL;
        for (int i = 0; i < SLOTS; i++)   /* what stays could only be added to an SSL_CTX of another life */
            if (slots[i] != NULL && home_of(slots[i]) == number && chance(50))
                put(i, NULL);
        make_context(number);
    }
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct timespec now;

    references_setup(NULL);
    home_index = SSL_SESSION_get_ex_new_index(0, NULL, NULL, no_home, NULL);
    clock_gettime(CLOCK_REALTIME, &now);
    base = now.tv_sec;
    for (uint64_t sequence = first; sequence < first + count; sequence++) {
        state = sequence;
        state = (uint64_t)below(1u << 31) << 32 | below(1u << 31); /* far from the next sequence's */
        named = 0;
        alive_before_all = sessions_alive();
        printf("sequence %llu\n", (unsigned long long)sequence);
        for (int i = 0; i < CONTEXTS; i++)
            make_context(i);
        for (int i = 0; i < STEPS; i++) {
            printf(" %d:", i);
            step();
            print_state();
            fflush(stdout);
        }
        printf(" the end\n");
        for (int i = 0; i < SLOTS; i++)
            put(i, NULL);
        for (int i = 0; i < CONTEXTS; i++) {
            SSL_CTX_free(contexts[i].ctx);
            contexts[i].ctx = NULL;
        }
        ERR_clear_error();
        printf("   %d alive\n", sessions_alive() - alive_before_all);
    }
    return 0;
}
