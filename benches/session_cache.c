/*
 * What the session cache costs, seen through OpenSSL's public API.
 *
 *   session_cache WHAT [-threads N] [-sessions N] [-seconds S | -count N]
 *
 * The same binary measures the libssl it is linked with, or whatever library is loaded ahead of it; the line it
 * prints names the library that answers. benches/paired.rs runs it on both sides in turn: on a busy machine only
 * the ratio of two neighbouring runs means something.
 *
 * -count is for each thread. With it the work is fixed, as instruction counts need it; the timed part of every
 * thread is the function timed():
 *   valgrind --tool=callgrind --toggle-collect=timed session_cache matching -count 100000
 */
#define _GNU_SOURCE /* dladdr, RTLD_DEFAULT */
#define OPENSSL_API_COMPAT 30000 /* SSL_CTX_flush_sessions and SSL_SESSION_set_time, the names every version has */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#define ID_LENGTH 32
#define POOL 50000    /* fresh sessions of a thread in one round of add_remove: 50 MB */
#define HOT_POOL 300  /* so few that they stay in the processor's cache */
#define CACHED 20000  /* sessions cached beforehand: just under the default limit of 20480 */
#define LONG_LIVED 100000
#define SHORT_LIVED 300

static struct {
    int threads;
    size_t sessions; /* 0: as WHAT wants it */
    double seconds;
    uint64_t count;  /* 0: as many as fit into `seconds` */
} options = {.threads = 1, .seconds = 1};

/* One thread of a measurement; a cache line or two of its own, so that the counting does not slow the others. */
struct worker {
    _Alignas(128) pthread_t thread;
    int number;
    uint64_t limit; /* operations of one round, 0: until `stop` */
    uint64_t ops;
    double began, ended;
    SSL *ssl;
    SSL_CTX *client, *empty;
    SSL_SESSION *session, **pool;
};

/* Something to measure by several threads. A round is prepare, timed, finish; only timed is on the clock. */
struct measurement {
    const char *what;
    void (*setup)(void);
    void (*prepare)(struct worker *w);
    void (*timed)(struct worker *w);
    void (*finish)(struct worker *w);
    uint64_t round; /* operations of a round; 0: one round takes all the time */
};

static const char *what; /* is measured, as the command line says */
static const struct measurement *measurement;
static SSL_CTX *server; /* the one context that all threads share */
static unsigned char (*ids)[ID_LENGTH];
static size_t id_count;
static pthread_barrier_t barrier;
static atomic_int stop, over;

static _Noreturn void die(const char *why)
{
    fprintf(stderr, "session_cache: %s\n", why);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void must(int holds, const char *what)
{
    if (!holds)
        die(what);
}

static void *allocate(size_t n, size_t size)
{
    void *memory = calloc(n, size);

    must(memory != NULL, "out of memory");
    return memory;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* splitmix64: both sides of a pair shall see the same ids. `state` is the caller's. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void random_id(unsigned char *id, uint64_t *state)
{
    for (size_t i = 0; i < ID_LENGTH; i += sizeof(uint64_t)) {
        uint64_t r = next_random(state);

        memcpy(id + i, &r, sizeof r);
    }
}

/* ---- the line that is printed ---- */

/* The file whose SSL_CTX_add_session this process calls: the proof of which side was measured. */
static const char *library(void)
{
    Dl_info info;
    const char *slash;

    if (dladdr(dlsym(RTLD_DEFAULT, "SSL_CTX_add_session"), &info) == 0 || info.dli_fname == NULL)
        return "unknown";
    slash = strrchr(info.dli_fname, '/');
    return slash != NULL ? slash + 1 : info.dli_fname;
}

static void print_line(size_t sessions, uint64_t ops, double seconds)
{
    printf("what=%s library=%s threads=%d sessions=%zu ops=%llu seconds=%.6f rate=%.1f", what, library(),
           options.threads, sessions, (unsigned long long)ops, seconds, (double)ops / seconds);
}

/* ---- sessions and contexts ---- */

static SSL_CTX *new_server(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    must(ctx != NULL, "SSL_CTX_new");
    must(SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"bench", 5), "SSL_CTX_set_session_id_context");
    return ctx;
}

static SSL_SESSION *new_session(const unsigned char *id, long lifetime)
{
    static const unsigned char secret[48];
    SSL_SESSION *session = SSL_SESSION_new();

    /* A cipher and a secret, or it could not leave the process. SSL_has_matching_session_id compares the version too: a fresh TLS_server_method SSL says TLS 1.3. */
    must(session != NULL && SSL_SESSION_set1_id(session, id, ID_LENGTH) &&
             SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) && SSL_SESSION_set_timeout(session, lifetime) &&
             SSL_SESSION_set1_master_key(session, secret, sizeof secret) &&
             SSL_SESSION_set_cipher(session, sk_SSL_CIPHER_value(SSL_CTX_get_ciphers(server), 0)),
         "cannot make a session");
    return session;
}

static void random_ids(size_t n, uint64_t seed)
{
    free(ids);
    ids = allocate(n, sizeof *ids);
    id_count = n;
    for (size_t i = 0; i < n; i++)
        random_id(ids[i], &seed);
}

/* Sessions with the ids of `ids`, all with one expiry: a second that passes meanwhile must not order them. */
static SSL_SESSION **new_sessions(size_t n, long lifetime)
{
    SSL_SESSION **sessions = allocate(n, sizeof *sessions);
    long made = (long)time(NULL);

    for (size_t i = 0; i < n; i++) {
        sessions[i] = new_session(ids[i], lifetime);
        SSL_SESSION_set_time(sessions[i], made);
    }
    return sessions;
}

static void free_sessions(SSL_SESSION **sessions, size_t n)
{
    for (size_t i = 0; i < n; i++)
        SSL_SESSION_free(sessions[i]);
    free(sessions);
}

static void add_all(SSL_SESSION **sessions, size_t n)
{
    for (size_t i = 0; i < n; i++)
        must(SSL_CTX_add_session(server, sessions[i]), "SSL_CTX_add_session");
}

/* Sessions made one after the other lie in memory so, and a processor fetches ahead what is used in that order. */
static void scatter(SSL_SESSION **sessions, size_t n, uint64_t seed)
{
    for (size_t i = n - 1; i > 0; i--) {
        size_t j = next_random(&seed) % (i + 1);
        SSL_SESSION *other = sessions[i];

        sessions[i] = sessions[j];
        sessions[j] = other;
    }
}

static int is_scattered(void)
{
    return strstr(what, "_scattered") != NULL;
}

/* Caches n sessions with fresh random ids, which the cache alone owns then; `ids` lists them. */
static void fill_cache(size_t n, uint64_t seed, long lifetime)
{
    SSL_SESSION **sessions;

    random_ids(n, seed);
    sessions = new_sessions(n, lifetime);
    if (is_scattered())
        scatter(sessions, n, seed);
    add_all(sessions, n);
    free_sessions(sessions, n);
}

static size_t sessions_or(size_t usual)
{
    return options.sessions != 0 ? options.sessions : usual;
}

/* ---- rounds of several threads ---- */

static int more(const struct worker *w, uint64_t done)
{
    return w->limit != 0 ? done < w->limit : !atomic_load_explicit(&stop, memory_order_relaxed);
}

/* A function of its own, so that callgrind can switch on and off here. */
__attribute__((noinline)) static void timed(struct worker *w)
{
    measurement->timed(w);
}

static void *run_worker(void *argument)
{
    struct worker *w = argument;

    do {
        if (measurement->prepare != NULL)
            measurement->prepare(w);
        pthread_barrier_wait(&barrier);
        w->began = now();
        timed(w);
        w->ended = now();
        pthread_barrier_wait(&barrier);
        if (measurement->finish != NULL)
            measurement->finish(w);
        pthread_barrier_wait(&barrier); /* main has decided by now */
    } while (!atomic_load(&over));
    return NULL;
}

static void sleep_for(double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds};

    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL);
}

static void measure(void)
{
    struct worker *workers = aligned_alloc(_Alignof(struct worker), (size_t)options.threads * sizeof *workers);
    uint64_t ops = 0, done = 0, limit = options.count;
    double seconds = 0;

    must(workers != NULL, "out of memory");
    memset(workers, 0, (size_t)options.threads * sizeof *workers);
    if (measurement->setup != NULL)
        measurement->setup();
    pthread_barrier_init(&barrier, NULL, (unsigned)options.threads + 1);
    if (measurement->round != 0 && (limit == 0 || limit > measurement->round))
        limit = measurement->round;
    for (int i = 0; i < options.threads; i++) {
        workers[i].number = i;
        workers[i].limit = limit;
        must(pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]) == 0, "pthread_create");
    }
    for (int last = 0; !last;) {
        double began, ended;

        pthread_barrier_wait(&barrier);
        if (limit == 0) {
            sleep_for(options.seconds);
            atomic_store(&stop, 1);
        }
        pthread_barrier_wait(&barrier);
        /* The threads' own clocks: on a full machine this thread may wake up late. */
        began = workers[0].began;
        ended = workers[0].ended;
        for (int i = 0; i < options.threads; i++) {
            began = workers[i].began < began ? workers[i].began : began;
            ended = workers[i].ended > ended ? workers[i].ended : ended;
            ops += workers[i].ops;
        }
        seconds += ended - began;
        done += limit;
        if (measurement->round == 0)
            last = 1;
        else if (options.count == 0)
            last = seconds >= options.seconds;
        else
            last = done >= options.count;
        if (last) {
            atomic_store(&over, 1);
        } else if (options.count != 0 && options.count - done < limit) {
            limit = options.count - done;
            for (int i = 0; i < options.threads; i++)
                workers[i].limit = limit;
        }
        pthread_barrier_wait(&barrier);
    }
    for (int i = 0; i < options.threads; i++)
        pthread_join(workers[i].thread, NULL);
    print_line((size_t)SSL_CTX_sess_number(server), ops, seconds);
    printf("\n");
    free(workers);
}

/* ---- matching, matching_miss: SSL_has_matching_session_id ---- */

static void matching_setup(void)
{
    size_t n = sessions_or(CACHED);
    uint64_t seed = 2;

    server = new_server();
    SSL_CTX_sess_set_cache_size(server, (long)n * 2);
    fill_cache(n, 1, LONG_LIVED);
    /* Not in the order in which they were made, which is also their order in memory. */
    for (size_t i = n - 1; i > 0; i--) {
        size_t j = next_random(&seed) % (i + 1);
        unsigned char other[ID_LENGTH];

        memcpy(other, ids[i], ID_LENGTH);
        memcpy(ids[i], ids[j], ID_LENGTH);
        memcpy(ids[j], other, ID_LENGTH);
    }
}

static void matching_miss_setup(void)
{
    matching_setup();
    random_ids(id_count, 3);
}

static void matching_prepare(struct worker *w)
{
    w->ssl = SSL_new(server);
    must(w->ssl != NULL && SSL_version(w->ssl) == TLS1_3_VERSION, "SSL_new");
}

static uint64_t count_matches(struct worker *w)
{
    size_t at = id_count / (size_t)options.threads * (size_t)w->number;
    uint64_t done = 0, found = 0;

    for (; more(w, done); done++) {
        found += SSL_has_matching_session_id(w->ssl, ids[at], ID_LENGTH) != 0;
        if (++at == id_count)
            at = 0;
    }
    w->ops = done;
    return found;
}

static void matching_timed(struct worker *w)
{
    must(count_matches(w) == w->ops, "a cached session was not found");
}

static void matching_miss_timed(struct worker *w)
{
    must(count_matches(w) == 0, "a session was found that is not there");
}

static void matching_finish(struct worker *w)
{
    SSL_free(w->ssl);
}

/* ---- add_remove: SSL_CTX_add_session, then SSL_CTX_remove_session, of sessions never cached before ---- */

static void add_remove_setup(void)
{
    size_t n = sessions_or(CACHED);

    server = new_server();
    SSL_CTX_sess_set_cache_size(server, (long)n * 2);
    fill_cache(n, 1, LONG_LIVED);
}

static void add_remove_prepare(struct worker *w)
{
    static atomic_uint_fast64_t streams = 100;
    uint64_t seed = atomic_fetch_add(&streams, 1) << 32;
    unsigned char id[ID_LENGTH];

    w->pool = allocate(w->limit, sizeof *w->pool);
    for (uint64_t i = 0; i < w->limit; i++) {
        random_id(id, &seed);
        w->pool[i] = new_session(id, LONG_LIVED);
    }
    if (is_scattered())
        scatter(w->pool, w->limit, seed);
}

static void add_remove_timed(struct worker *w)
{
    uint64_t good = 0;

    for (uint64_t i = 0; i < w->limit; i++)
        good += SSL_CTX_add_session(server, w->pool[i]) && SSL_CTX_remove_session(server, w->pool[i]);
    w->ops = w->limit;
    must(good == w->ops, "a session was not added or not removed");
}

static void add_remove_finish(struct worker *w)
{
    free_sessions(w->pool, w->limit);
}

/* ---- limit_*: what no cache can be faster than ---- */

static void limit_setup(void)
{
    server = new_server();
    random_ids(1, 1);
}

static void limit_up_ref_prepare(struct worker *w)
{
    w->session = new_session(ids[0], LONG_LIVED);
}

static void limit_up_ref_shared_prepare(struct worker *w)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static SSL_SESSION *shared;

    pthread_mutex_lock(&lock);
    if (shared == NULL)
        shared = new_session(ids[0], LONG_LIVED);
    else
        SSL_SESSION_up_ref(shared);
    w->session = shared;
    pthread_mutex_unlock(&lock);
}

static void limit_up_ref_timed(struct worker *w)
{
    for (w->ops = 0; more(w, w->ops); w->ops++) {
        SSL_SESSION_up_ref(w->session);
        SSL_SESSION_free(w->session);
    }
}

static void limit_up_ref_finish(struct worker *w)
{
    SSL_SESSION_free(w->session);
}

/* Marking a session not resumable: what removing comes to in a context that does not have it. */
static void limit_mark_prepare(struct worker *w)
{
    limit_up_ref_prepare(w);
    w->empty = new_server();
}

static void limit_mark_timed(struct worker *w)
{
    for (w->ops = 0; more(w, w->ops); w->ops++)
        SSL_CTX_remove_session(w->empty, w->session);
}

static void limit_mark_finish(struct worker *w)
{
    SSL_CTX_free(w->empty);
    limit_up_ref_finish(w);
}

/*
 * A bare hash table of the same ids in the same order: one array of cells that say where the key is, read atomically.
 * The ids are random, so their first bytes will do for a hash. No library is called.
 */
#define CELLS 32768
_Static_assert(CACHED < CELLS, "the table would be full");
static _Atomic uint32_t cells[CELLS]; /* 0 or the place of a key, plus 1 */
static unsigned char (*keys)[ID_LENGTH];

static size_t home(const unsigned char *id)
{
    uint64_t hash;

    memcpy(&hash, id, sizeof hash);
    return hash % CELLS;
}

static void limit_probe_setup(void)
{
    options.sessions = 0;
    matching_setup();
    keys = allocate(id_count, sizeof *keys);
    for (size_t i = 0; i < id_count; i++) {
        size_t cell = home(ids[i]), place = i * 7919 % id_count; /* a prime: neighbours in `ids` are none in `keys` */

        while (cells[cell] != 0)
            cell = (cell + 1) % CELLS;
        cells[cell] = (uint32_t)place + 1;
        memcpy(keys[place], ids[i], ID_LENGTH);
    }
}

static int probe(const unsigned char *id)
{
    uint32_t place;

    for (size_t cell = home(id);; cell = (cell + 1) % CELLS) {
        place = atomic_load_explicit(&cells[cell], memory_order_acquire);
        if (place == 0)
            return 0;
        if (memcmp(keys[place - 1], id, ID_LENGTH) == 0)
            return 1;
    }
}

static void limit_probe_timed(struct worker *w)
{
    size_t at = id_count / (size_t)options.threads * (size_t)w->number;
    uint64_t found = 0;

    for (w->ops = 0; more(w, w->ops); w->ops++) {
        found += (uint64_t)probe(ids[at]);
        if (++at == id_count)
            at = 0;
    }
    must(found == w->ops, "a key was not found");
}

static void limit_new_free_timed(struct worker *w)
{
    for (w->ops = 0; more(w, w->ops); w->ops++)
        SSL_SESSION_free(SSL_SESSION_new());
}

/* ---- handshake_*: client and server in one thread, over a BIO pair ---- */

static void use_new_certificate(SSL_CTX *ctx)
{
    EVP_PKEY_CTX *generator = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    EVP_PKEY *key = NULL;
    X509 *certificate = X509_new();

    must(generator != NULL && EVP_PKEY_keygen_init(generator) > 0 &&
             EVP_PKEY_CTX_set_ec_paramgen_curve_nid(generator, NID_X9_62_prime256v1) > 0 &&
             EVP_PKEY_keygen(generator, &key) > 0,
         "cannot make a key");
    must(certificate != NULL && X509_set_version(certificate, 2) &&
             ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1) &&
             X509_gmtime_adj(X509_getm_notBefore(certificate), 0) != NULL &&
             X509_gmtime_adj(X509_getm_notAfter(certificate), 86400) != NULL &&
             X509_set_pubkey(certificate, key) && X509_sign(certificate, key, EVP_sha256()) > 0,
         "cannot make a certificate");
    must(SSL_CTX_use_certificate(ctx, certificate) && SSL_CTX_use_PrivateKey(ctx, key), "cannot use the certificate");
    X509_free(certificate);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(generator);
}

static int handshake_version(void)
{
    return strstr(what, "tls12") != NULL ? TLS1_2_VERSION : TLS1_3_VERSION;
}

static void set_version(SSL_CTX *ctx)
{
    must(SSL_CTX_set_min_proto_version(ctx, handshake_version()) &&
             SSL_CTX_set_max_proto_version(ctx, handshake_version()),
         "cannot set the protocol version");
}

static void handshake_setup(void)
{
    server = new_server();
    set_version(server);
    /* TLS 1.2 then resumes by session id, TLS 1.3 by stateful tickets: both out of the internal cache. */
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    use_new_certificate(server);
}

/* One step of a side; 1 when its handshake is done. */
static int step(SSL *ssl)
{
    int result = SSL_do_handshake(ssl), error;

    if (result == 1)
        return 1;
    error = SSL_get_error(ssl, result);
    must(error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE, "handshake failed");
    return 0;
}

/* A whole connection that offers `offer` if it is there; returns the client's newest session, one reference. */
static SSL_SESSION *handshake(SSL_CTX *client_ctx, SSL_SESSION *offer)
{
    SSL *client = SSL_new(client_ctx), *accepted = SSL_new(server);
    BIO *client_bio = NULL, *server_bio = NULL;
    SSL_SESSION *session;
    int client_done = 0, server_done = 0;
    char byte;

    must(client != NULL && accepted != NULL && BIO_new_bio_pair(&client_bio, 0, &server_bio, 0), "cannot connect");
    SSL_set_bio(client, client_bio, client_bio);
    SSL_set_bio(accepted, server_bio, server_bio);
    SSL_set_connect_state(client);
    SSL_set_accept_state(accepted);
    if (offer != NULL)
        must(SSL_set_session(client, offer), "SSL_set_session");
    while (!client_done || !server_done) {
        client_done = step(client);
        server_done = step(accepted);
    }
    must(SSL_read(client, &byte, 1) <= 0, "data out of nowhere"); /* takes in the tickets of TLS 1.3 */
    must(SSL_session_reused(client) == (offer != NULL), "resumed, or not, against what was asked");
    session = SSL_get1_session(client);
    /* Both close in good order, or libssl would throw the session out of the cache. */
    SSL_shutdown(client);
    SSL_shutdown(accepted);
    SSL_free(client);
    SSL_free(accepted);
    return session;
}

/* A client context for each thread: clients are other processes in real life, only the server is shared. */
static void handshake_prepare(struct worker *w)
{
    w->client = SSL_CTX_new(TLS_client_method());
    must(w->client != NULL, "SSL_CTX_new");
    set_version(w->client);
    w->session = handshake(w->client, NULL); /* the first one loads algorithms: never on the clock */
}

static void handshake_full_timed(struct worker *w)
{
    for (w->ops = 0; more(w, w->ops); w->ops++)
        SSL_SESSION_free(handshake(w->client, NULL));
}

static void handshake_resumed_timed(struct worker *w)
{
    for (w->ops = 0; more(w, w->ops); w->ops++) {
        SSL_SESSION *newest = handshake(w->client, w->session);

        SSL_SESSION_free(w->session);
        w->session = newest;
    }
}

static void handshake_finish(struct worker *w)
{
    SSL_SESSION_free(w->session);
    SSL_CTX_free(w->client);
}

/* ---- measured once, by one thread ---- */

/* Adds N sessions whose expiry times are in no order to an empty cache. */
static double add_mixed_once(size_t n, uint64_t seed)
{
    SSL_SESSION **sessions;
    double began, seconds;

    SSL_CTX_free(server);
    server = new_server();
    SSL_CTX_sess_set_cache_size(server, (long)n * 2);
    random_ids(n, seed);
    sessions = new_sessions(n, LONG_LIVED);
    for (size_t i = 0; i < n; i++)
        SSL_SESSION_set_timeout(sessions[i], 1 + (long)(next_random(&seed) % 100000));
    began = now();
    add_all(sessions, n);
    seconds = now() - began;
    free_sessions(sessions, n);
    return seconds;
}

static void add_mixed(void)
{
    size_t n = sessions_or(10000);

    print_line(n, n, add_mixed_once(n, 1));
    printf("\n");
}

/* Again and again, in memory that the process has used before. */
static void add_mixed_warm(void)
{
    size_t n = sessions_or(10000), added = 0;
    double seconds = 0;

    add_mixed_once(n, 1);
    do {
        added += n;
        seconds += add_mixed_once(n, added);
    } while (seconds < options.seconds / 10);
    print_line(n, added, seconds);
    printf("\n");
}

/* The cache is the only owner of the N sessions that flush and lookups_while_flush flush. */
static double flush_short_lived(size_t left)
{
    double began = now(), seconds;

    SSL_CTX_flush_sessions(server, (long)time(NULL) + SHORT_LIVED + 1000);
    seconds = now() - began;
    must((size_t)SSL_CTX_sess_number(server) == left, "the flush left something, or took too much");
    return seconds;
}

static void flush(void)
{
    size_t n = sessions_or(1000000);

    server = new_server();
    SSL_CTX_sess_set_cache_size(server, (long)n * 2);
    fill_cache(n, 1, SHORT_LIVED);
    print_line(n, n, flush_short_lived(0));
    printf("\n");
}

struct lookups {
    uint64_t *nanoseconds;
    size_t count;
    double seconds;
};
static atomic_int ready, flushing;

static void *run_lookups(void *argument)
{
    struct lookups *l = argument;
    SSL *ssl = SSL_new(server);
    size_t at = 0;
    uint64_t before, after;
    double began;

    must(ssl != NULL, "SSL_new");
    atomic_store(&ready, 1);
    while (!atomic_load(&flushing))
        must(SSL_has_matching_session_id(ssl, ids[at++ % id_count], ID_LENGTH), "a cached session was not found");
    began = now();
    before = now_ns();
    for (size_t i = 0; i < l->count; i++) {
        must(SSL_has_matching_session_id(ssl, ids[at++ % id_count], ID_LENGTH), "a cached session was not found");
        after = now_ns();
        l->nanoseconds[i] = after - before;
        before = after;
    }
    l->seconds = now() - began;
    SSL_free(ssl);
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* One thread looks up sessions that stay while another flushes N expired ones: does anybody wait for the flush? */
static void lookups_while_flush(void)
{
    static const struct { const char *name; double share; } quantiles[] = {
        {"p50_ns", 0.5}, {"p90_ns", 0.9}, {"p99_ns", 0.99}, {"p999_ns", 0.999}, {"p9999_ns", 0.9999},
        {"p99999_ns", 0.99999},
    };
    size_t n = sessions_or(1000000);
    struct lookups l = {.count = options.count != 0 ? options.count : 1000000};
    pthread_t thread;
    double flush_seconds;

    l.nanoseconds = allocate(l.count, sizeof *l.nanoseconds);
    memset(l.nanoseconds, 1, l.count * sizeof *l.nanoseconds); /* page faults now, not in the middle of it */
    server = new_server();
    SSL_CTX_sess_set_cache_size(server, (long)(n + CACHED) * 2);
    fill_cache(n, 1, SHORT_LIVED);
    fill_cache(CACHED, 2, LONG_LIVED);
    must(pthread_create(&thread, NULL, run_lookups, &l) == 0, "pthread_create");
    while (!atomic_load(&ready))
        sleep_for(0.001);
    atomic_store(&flushing, 1);
    flush_seconds = flush_short_lived(CACHED);
    pthread_join(thread, NULL);
    qsort(l.nanoseconds, l.count, sizeof *l.nanoseconds, by_size);
    print_line(n, l.count, l.seconds);
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++)
        printf(" %s=%llu", quantiles[i].name,
               (unsigned long long)l.nanoseconds[(size_t)((double)l.count * quantiles[i].share)]);
    printf(" max_ns=%llu flush_seconds=%.6f\n", (unsigned long long)l.nanoseconds[l.count - 1], flush_seconds);
    free(l.nanoseconds);
}

static double resident(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long size = 0, pages = 0;

    must(file != NULL && fscanf(file, "%ld %ld", &size, &pages) == 2, "cannot read /proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* What a session costs while it is cached beyond the object itself, and the object. */
static void memory(void)
{
    size_t n = sessions_or(1000000);
    SSL_SESSION **sessions;
    double empty, made, added, began, seconds;

    server = new_server();
    SSL_CTX_sess_set_cache_size(server, 0);
    random_ids(n, 1);
    SSL_SESSION_free(new_session(ids[0], LONG_LIVED));
    empty = resident();
    sessions = new_sessions(n, LONG_LIVED);
    made = resident();
    began = now();
    add_all(sessions, n);
    seconds = now() - began;
    added = resident();
    print_line(n, n, seconds);
    printf(" rss_per_session=%.1f rss_per_object=%.1f\n", (added - made) / (double)n, (made - empty) / (double)n);
    free_sessions(sessions, n);
}

/* ---- main ---- */

static const struct measurement measurements[] = {
    {"matching", matching_setup, matching_prepare, matching_timed, matching_finish, 0},
    {"matching_miss", matching_miss_setup, matching_prepare, matching_miss_timed, matching_finish, 0},
    {"add_remove", add_remove_setup, add_remove_prepare, add_remove_timed, add_remove_finish, POOL},
    {"add_remove_scattered", add_remove_setup, add_remove_prepare, add_remove_timed, add_remove_finish, POOL},
    {"add_remove_hot", add_remove_setup, add_remove_prepare, add_remove_timed, add_remove_finish, HOT_POOL},
    {"handshake_tls12_full", handshake_setup, handshake_prepare, handshake_full_timed, handshake_finish, 0},
    {"handshake_tls12_resumed", handshake_setup, handshake_prepare, handshake_resumed_timed, handshake_finish, 0},
    {"handshake_tls13_full", handshake_setup, handshake_prepare, handshake_full_timed, handshake_finish, 0},
    {"handshake_tls13_stateful_resumed", handshake_setup, handshake_prepare, handshake_resumed_timed,
     handshake_finish, 0},
    {"limit_probe", limit_probe_setup, NULL, limit_probe_timed, NULL, 0},
    {"limit_mark", limit_setup, limit_mark_prepare, limit_mark_timed, limit_mark_finish, 0},
    {"limit_up_ref", limit_setup, limit_up_ref_prepare, limit_up_ref_timed, limit_up_ref_finish, 0},
    {"limit_up_ref_shared", limit_setup, limit_up_ref_shared_prepare, limit_up_ref_timed, limit_up_ref_finish, 0},
    {"limit_new_free", limit_setup, NULL, limit_new_free_timed, NULL, 0},
};

static const struct { const char *what; void (*run)(void); } single_threaded[] = {
    {"add_mixed", add_mixed},
    {"add_mixed_warm", add_mixed_warm},
    {"flush", flush},
    {"flush_scattered", flush},
    {"lookups_while_flush", lookups_while_flush},
    {"memory", memory},
};

static int usage(void)
{
    fprintf(stderr, "usage: session_cache WHAT [-threads N] [-sessions N] [-seconds S | -count N]\n"
                    "WHAT with -threads:");
    for (size_t i = 0; i < sizeof measurements / sizeof *measurements; i++)
        fprintf(stderr, " %s", measurements[i].what);
    fprintf(stderr, "\nWHAT of one thread:");
    for (size_t i = 0; i < sizeof single_threaded / sizeof *single_threaded; i++)
        fprintf(stderr, " %s", single_threaded[i].what);
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc % 2 != 0)
        return usage();
    for (int i = 2; i < argc; i += 2) {
        char *end;
        double value = strtod(argv[i + 1], &end);

        if (*end != '\0' || value <= 0)
            return usage();
        if (strcmp(argv[i], "-threads") == 0 && value >= 1 && value <= 1024)
            options.threads = (int)value;
        else if (strcmp(argv[i], "-sessions") == 0 && value >= 2)
            options.sessions = (size_t)value;
        else if (strcmp(argv[i], "-seconds") == 0)
            options.seconds = value;
        else if (strcmp(argv[i], "-count") == 0 && value >= 1)
            options.count = (uint64_t)value;
        else
            return usage();
    }
    what = argv[1];
    for (size_t i = 0; i < sizeof measurements / sizeof *measurements; i++) {
        if (strcmp(what, measurements[i].what) == 0) {
            measurement = &measurements[i];
            measure();
            SSL_CTX_free(server);
            free(ids);
            free(keys);
            return 0;
        }
    }
    for (size_t i = 0; i < sizeof single_threaded / sizeof *single_threaded; i++) {
        if (strcmp(what, single_threaded[i].what) == 0) {
            options.threads = 1;
            single_threaded[i].run();
            SSL_CTX_free(server);
            free(ids);
            return 0;
        }
    }
    return usage();
}
