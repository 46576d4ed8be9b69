/*
 * The harness behind every test of c_tests/: see harness.h for what each function promises.
 *
 * Everything goes through the public API of libssl, and through nothing that 1.1.1, 3.x and 4.0 do not share, so
 * that one source runs on each of them, with Reprise in between or without.
 */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "harness.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

enum { TEXT = 256 };

/* ---- who answers, and what was seen ---- */

enum subject subject(void)
{
    const char *semantics = getenv("REPRISE_SEMANTICS");

    if (dlsym(RTLD_DEFAULT, "reprise_version") == NULL)
        return STOCK;
    return semantics != NULL && strcmp(semantics, "stock") == 0 ? STOCK_LIKE : DOCUMENTED;
}

static int cached_in(const char *scheme)
{
    const char *cache = getenv("REPRISE_CACHE");

    return subject() != STOCK && cache != NULL && strncmp(cache, scheme, strlen(scheme)) == 0;
}

int shared(void)
{
    return cached_in("shm:") || in_redis();
}

int in_redis(void)
{
    return cached_in("redis");
}

static const char *subject_name(void)
{
    static const char *const names[] = { "stock libssl", "Reprise (documented)", "Reprise (stock)" };

    return names[subject()];
}

const char *number(long n)
{
    static _Thread_local char text[8][24];
    static _Thread_local unsigned turn;
    char *out = text[turn++ % 8];

    snprintf(out, sizeof(text[0]), "%ld", n);
    return out;
}

/* Says whether this (rule, what) comes for the first time: a situation met in a loop is one line of the record. */
static int first_time(const char *rule, const char *what)
{
    static char seen[1024][TEXT];
    static int count;
    char line[TEXT];

    snprintf(line, sizeof(line), "%s\t%s", rule, what);
    for (int i = 0; i < count; i++)
        if (strcmp(seen[i], line) == 0)
            return 0;
    assert_true(count < 1024);
    memcpy(seen[count++], line, sizeof(line));
    return 1;
}

/* One write, appended: programs and their children may record into the same file at the same time. */
static void append(const char *first, const char *second, const char *third)
{
    const char *path = getenv("CONFORMANCE");
    char line[2 * TEXT];
    int fd, length;

    if (path == NULL || path[0] == '\0')
        return;
    length = snprintf(line, sizeof(line), "%s\t%s\t%s\n", first, second, third);
    assert_true(length > 0 && (size_t)length < sizeof(line));
    fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, (size_t)length) != length)
        fail_msg("cannot append to CONFORMANCE=%s", path);
    close(fd);
}

/* What the stock side recorded after these two words; NULL if nothing. */
static const char *of_stock(const char *first, const char *second)
{
    enum { LINES = 4096 };
    static char lines[LINES][2 * TEXT];
    static int count = -1;
    char start[2 * TEXT];
    size_t length;

    if (count < 0) {
        const char *path = getenv("CONFORMANCE_STOCK");
        FILE *file = path == NULL ? NULL : fopen(path, "re");

        if (file == NULL)
            fail_msg("CONFORMANCE_STOCK names no file with what stock libssl does: use tools/run_pages.sh");
        for (count = 0; count < LINES && fgets(lines[count], sizeof(lines[count]), file) != NULL; count++)
            lines[count][strcspn(lines[count], "\n")] = '\0';
        assert_true(count < LINES);
        fclose(file);
    }
    length = (size_t)snprintf(start, sizeof(start), "%s\t%s\t", first, second);
    for (int i = 0; i < count; i++)
        if (strncmp(lines[i], start, length) == 0)
            return lines[i] + length;
    return NULL;
}

/* What nobody wants done again. */
static int is_harm(const char *observed)
{
    return strcmp(observed, "crashes") == 0 || strcmp(observed, "deadlocks") == 0 || strcmp(observed, "a call fails") == 0;
}

static void observe_expecting(const char *rule, const char *what, const char *observed, const char *expected)
{
    if (first_time(rule, what))
        append(rule, what, observed);
    if (subject() != STOCK && strcmp(observed, expected) != 0)
        fail_msg("%s, %s: %s was expected of %s, observed: %s", rule, what, expected, subject_name(), observed);
}

void observe(const char *rule, const char *what, const char *observed, const char *documented)
{
    const char *stock = subject() == STOCK_LIKE ? of_stock(rule, what) : NULL;

    observe_expecting(rule, what, observed, stock != NULL && !is_harm(stock) ? stock : documented);
}

void observe_deviation(const char *rule, const char *what, const char *observed, const char *expected)
{
    observe_expecting(rule, what, observed, expected);
}

void observe_int(const char *rule, const char *what, long observed, long documented)
{
    observe(rule, what, number(observed), number(documented));
}

void observe_bool(const char *rule, const char *what, int observed, int documented)
{
    observe(rule, what, observed ? "yes" : "no", documented ? "yes" : "no");
}

/* ---- the tests of a page ---- */

/* Lines of the record that no rule has begin with these words; conformance.py passes over them. */
static const char BEGAN[] = "# began", FINISHED[] = "# finished";
static const char *current_page;
static int finished;

void test_finished(void)
{
    finished = 1;
}

static void run_and_note(void **state)
{
    const struct CMUnitTest *test = *state;

    finished = 0;
    if (subject() == STOCK_LIKE && of_stock(BEGAN, current_page) != NULL) {
        char name[TEXT];

        snprintf(name, sizeof(name), "%s: %s", current_page, test->name);
        if (of_stock(FINISHED, name) == NULL) {
            print_message("%s: left out, stock libssl does not finish it\n", test->name);
            skip();
        }
    }
    test->test_func(state);
    finished = 1;
}

static int tear_down_and_note(void **state)
{
    const struct CMUnitTest *test = *state;
    int result = test->teardown_func == NULL ? 0 : test->teardown_func(state);
    char name[TEXT];

    snprintf(name, sizeof(name), "%s: %s", current_page, test->name);
    if (result == 0 && finished)
        append(FINISHED, name, "yes");
    return result;
}

int run_page(const char *page, const struct CMUnitTest *tests, size_t count)
{
    struct CMUnitTest *noted = calloc(count, sizeof(*noted));
    int failed;

    current_page = page;
    append(BEGAN, page, "yes");
    for (size_t i = 0; i < count; i++) {
        noted[i] = tests[i];
        noted[i].test_func = run_and_note;
        noted[i].teardown_func = tear_down_and_note;
        noted[i].initial_state = (void *)&tests[i];
    }
    failed = _cmocka_run_group_tests(page, noted, count, NULL, NULL);
    free(noted);
    return failed;
}

/* ---- the count of sessions ---- */

/* Each session carries a number of its own in its ex_data. The numbers below LIMIT are checked for being freed once. */
enum { LIMIT = 1 << 22 };
static atomic_int alive, freed_twice;
static atomic_long last_tag;
static atomic_uchar freed[LIMIT];
static int tag_index = -1;
/* Reprise keeps a session of its own with each SSL_CTX, made in SSL_CTX_new: nothing a test has to account for. */
static _Thread_local int making_ctx;

static void session_new(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int index, long argl, void *argp)
{
    (void)parent, (void)ptr, (void)argl, (void)argp;
    if (making_ctx)
        return;
    CRYPTO_set_ex_data(ad, index, (void *)(intptr_t)(atomic_fetch_add(&last_tag, 1) + 1));
    atomic_fetch_add(&alive, 1);
}

static void session_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int index, long argl, void *argp)
{
    long tag = (long)(intptr_t)ptr;

    (void)parent, (void)ad, (void)index, (void)argl, (void)argp;
    if (tag == 0)
        return;
    atomic_fetch_sub(&alive, 1);
    if (tag < LIMIT && atomic_exchange(&freed[tag], 1) != 0)
        atomic_fetch_add(&freed_twice, 1);
}

/* A copied session has been through session_new: it keeps the number it was given there. */
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
static int session_dup(CRYPTO_EX_DATA *to, const CRYPTO_EX_DATA *from, void **from_d, int index, long argl, void *argp)
#else
static int session_dup(CRYPTO_EX_DATA *to, const CRYPTO_EX_DATA *from, void *from_d, int index, long argl, void *argp)
#endif
{
    (void)from, (void)argl, (void)argp;
    *(void **)from_d = CRYPTO_get_ex_data(to, index);
    return 1;
}

int sessions_alive(void)
{
    return atomic_load(&alive);
}

static int alive_before;

int references_setup(void **state)
{
    (void)state;
    if (tag_index < 0)
        tag_index = SSL_SESSION_get_ex_new_index(0, NULL, session_new, session_dup, session_free);
    if (tag_index < 0)
        return -1;
    alive_before = sessions_alive();
    atomic_store(&freed_twice, 0);
    return 0;
}

int references_teardown(void **state)
{
    int left = sessions_alive() - alive_before;
    int twice = atomic_load(&freed_twice);

    (void)state;
    if (left != 0)
        print_error("references: %d sessions %s\n", abs(left), left > 0 ? "leaked" : "freed that were not ours");
    if (twice != 0)
        print_error("references: %d sessions freed twice\n", twice);
    return left == 0 && twice == 0 ? 0 : -1;
}

int slowly(void)
{
    return getenv("REPRISE_SLOWLY") != NULL;
}

int fewer(int rounds)
{
    return !slowly() ? rounds : rounds < 10 ? 1 : rounds / 10;
}

void left_out(void **state)
{
    (void)state;
    skip();
}

/* ---- contexts ---- */

static EVP_PKEY *key;
static X509 *certificate;

/* One self-signed P-256 certificate for the whole process. */
static void make_certificate(void)
{
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    X509_NAME *name = X509_NAME_new();

    assert_int_equal(EVP_PKEY_keygen_init(maker), 1);
    assert_int_equal(EVP_PKEY_CTX_set_ec_paramgen_curve_nid(maker, NID_X9_62_prime256v1), 1);
    assert_int_equal(EVP_PKEY_keygen(maker, &key), 1);
    EVP_PKEY_CTX_free(maker);

    certificate = X509_new();
    assert_non_null(certificate);
    assert_int_equal(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost",
                                                -1, -1, 0), 1);
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_set_subject_name(certificate, name);
    X509_set_issuer_name(certificate, name);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
    X509_set_pubkey(certificate, key);
    assert_true(X509_sign(certificate, key, EVP_sha256()) > 0);
    X509_NAME_free(name);
}

/*
 * Contexts that ask clients for certificates of other CAs are not the same service: each gets a name of its own to tell
 * them, which nothing else depends on, or in a shared cache all contexts of a test would have the same sessions.
 */
static void make_unique(SSL_CTX *ctx)
{
    static atomic_int number;
    STACK_OF(X509_NAME) *names = sk_X509_NAME_new_null();
    X509_NAME *name = X509_NAME_new();
    char text[32];

    snprintf(text, sizeof(text), "%d.%d", (int)getpid(), atomic_fetch_add(&number, 1));
    assert_int_equal(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (unsigned char *)text, -1, -1, 0), 1);
    assert_true(sk_X509_NAME_push(names, name) > 0);
    SSL_CTX_set_client_CA_list(ctx, names);
}

SSL_CTX *client_ctx_with(const SSL_METHOD *method)
{
    SSL_CTX *ctx;

    making_ctx = 1;
    ctx = SSL_CTX_new(method);
    making_ctx = 0;
    assert_non_null(ctx);
    if (shared())
        make_unique(ctx);
    return ctx;
}

SSL_CTX *server_ctx_with(const SSL_METHOD *method)
{
    static const unsigned char id_context[] = "c_tests";
    SSL_CTX *ctx = client_ctx_with(method);

    if (certificate == NULL)
        make_certificate();
    assert_int_equal(SSL_CTX_use_certificate(ctx, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    assert_int_equal(SSL_CTX_set_session_id_context(ctx, id_context, sizeof(id_context) - 1), 1);
    return ctx;
}

static const SSL_METHOD *method_of(int version)
{
    return version == DTLS1_2_VERSION ? DTLS_method() : TLS_method();
}

static SSL_CTX *speaking(SSL_CTX *ctx, int version)
{
    assert_int_equal(SSL_CTX_set_min_proto_version(ctx, version), 1);
    assert_int_equal(SSL_CTX_set_max_proto_version(ctx, version), 1);
    return ctx;
}

SSL_CTX *server_ctx(int version)
{
    return speaking(server_ctx_with(method_of(version)), version);
}

SSL_CTX *client_ctx(int version)
{
    return speaking(client_ctx_with(method_of(version)), version);
}

/* ---- connections ---- */

/* DTLS wants datagrams kept apart, which a BIO pair does not do and a pair of local sockets does. */
static void connect_datagrams(pair *p)
{
    SSL *ends[2] = { p->client, p->server };
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    for (int i = 0; i < 2; i++) {
        BIO *bio = BIO_new_socket(fds[i], BIO_CLOSE);

        assert_non_null(bio);
        SSL_set_bio(ends[i], bio, bio);
        SSL_set_options(ends[i], SSL_OP_NO_QUERY_MTU);
        DTLS_set_link_mtu(ends[i], 1500);
    }
}

static void connect_streams(pair *p)
{
    BIO *client, *server;

    assert_int_equal(BIO_new_bio_pair(&client, 0, &server, 0), 1);
    SSL_set_bio(p->client, client, client);
    SSL_set_bio(p->server, server, server);
}

pair tls_prepare(SSL_CTX *client, SSL_CTX *server)
{
    pair p = { SSL_new(client), SSL_new(server) };

    assert_non_null(p.client);
    assert_non_null(p.server);
    SSL_set_connect_state(p.client);
    SSL_set_accept_state(p.server);
    if (SSL_is_dtls(p.client))
        connect_datagrams(&p);
    else
        connect_streams(&p);
    return p;
}

enum progress { GOING_ON, DONE, FAILED };

static enum progress progress_of(SSL *ssl, int result)
{
    if (result == 1)
        return DONE;
    switch (SSL_get_error(ssl, result)) {
    case SSL_ERROR_SSL:
    case SSL_ERROR_SYSCALL:
    case SSL_ERROR_ZERO_RETURN:
        return FAILED;
    default:
        return GOING_ON;
    }
}

static enum progress step(SSL *ssl)
{
    ERR_clear_error();
    return progress_of(ssl, SSL_do_handshake(ssl));
}

/* Reads where no data can be: what arrives is tickets and alerts. */
static enum progress absorb(SSL *ssl)
{
    char byte;

    ERR_clear_error();
    return progress_of(ssl, SSL_peek(ssl, &byte, 1));
}

int tls_drive(pair *p)
{
    enum progress client = GOING_ON, server = GOING_ON;

    for (int round = 0; round < 1000 && (client == GOING_ON || server == GOING_ON); round++) {
        if (client == GOING_ON)
            client = step(p->client);
        if (server == GOING_ON)
            server = step(p->server);
        if (client == FAILED || server == FAILED)
            break;
    }
    /* After a failure too: the other end shall hear the alert. */
    if (client != FAILED)
        client = client == DONE ? absorb(p->client) : step(p->client);
    if (server != FAILED)
        server = server == DONE ? absorb(p->server) : step(p->server);
    ERR_clear_error();
    return client != FAILED && server != FAILED && SSL_is_init_finished(p->client) && SSL_is_init_finished(p->server);
}

static void free_pair(pair *p)
{
    SSL_free(p->client);
    SSL_free(p->server);
    p->client = p->server = NULL;
}

int tls_try(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer, pair *out)
{
    *out = tls_prepare(client, server);
    if (offer != NULL)
        assert_int_equal(SSL_set_session(out->client, offer), 1);
    if (tls_drive(out))
        return 1;
    free_pair(out);
    return 0;
}

pair tls_connect(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    pair p;

    if (!tls_try(client, server, offer, &p))
        fail_msg("the handshake failed");
    return p;
}

int tls_resumed(const pair *p)
{
    int client = SSL_session_reused(p->client), server = SSL_session_reused(p->server);

    if (client != server)
        fail_msg("client says resumed: %d, server says resumed: %d", client, server);
    return server;
}

void tls_close(pair *p)
{
    for (int round = 0; round < 2; round++) {
        SSL_shutdown(p->client);
        SSL_shutdown(p->server);
    }
    ERR_clear_error();
    free_pair(p);
}

void tls_drop(pair *p)
{
    free_pair(p);
}

static int carries(SSL *from, SSL *to)
{
    static const char sent[] = "echo";
    char got[sizeof(sent)] = "";

    return SSL_write(from, sent, sizeof(sent)) == (int)sizeof(sent)
        && SSL_read(to, got, sizeof(got)) == (int)sizeof(got)
        && memcmp(sent, got, sizeof(sent)) == 0;
}

int tls_echo(pair *p)
{
    return carries(p->client, p->server) && carries(p->server, p->client);
}

SSL_SESSION *tls_session(SSL_CTX *client, SSL_CTX *server)
{
    pair p = tls_connect(client, server, NULL);
    SSL_SESSION *session = SSL_get1_session(p.client);

    assert_false(tls_resumed(&p));
    assert_true(SSL_SESSION_is_resumable(session));
    tls_close(&p);
    return session;
}

int tls_resumes(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer)
{
    pair p = tls_connect(client, server, offer);
    int resumed = tls_resumed(&p);

    tls_close(&p);
    return resumed;
}

/* ---- sessions ---- */

static const SSL_CIPHER *cipher_named(const char *name)
{
    SSL_CTX *ctx = client_ctx(TLS1_3_VERSION);
    STACK_OF(SSL_CIPHER) *all = SSL_CTX_get_ciphers(ctx);
    const SSL_CIPHER *found = NULL;

    for (int i = 0; i < sk_SSL_CIPHER_num(all); i++)
        if (strcmp(SSL_CIPHER_get_name(sk_SSL_CIPHER_value(all, i)), name) == 0)
            found = sk_SSL_CIPHER_value(all, i); /* in a table of libssl: outlives the context */
    SSL_CTX_free(ctx);
    assert_non_null(found);
    return found;
}

SSL_SESSION *made_session(int version, unsigned char fill)
{
    static _Thread_local const SSL_CIPHER *tls13, *older;
    static const unsigned char id_context[] = "c_tests";
    unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH], secret[SSL_MAX_MASTER_KEY_LENGTH];
    int is_tls13 = version == TLS1_3_VERSION;
    SSL_SESSION *session = SSL_SESSION_new();

    if (tls13 == NULL) {
        tls13 = cipher_named("TLS_AES_128_GCM_SHA256");
        older = cipher_named("ECDHE-ECDSA-AES128-GCM-SHA256");
    }
    memset(id, fill, sizeof(id));
    memset(secret, fill, sizeof(secret));
    assert_non_null(session); /* new: its time is now */
    assert_int_equal(SSL_SESSION_set1_id(session, id, sizeof(id)), 1);
    assert_int_equal(SSL_SESSION_set1_id_context(session, id_context, sizeof(id_context) - 1), 1);
    assert_int_equal(SSL_SESSION_set_protocol_version(session, version), 1);
    assert_int_equal(SSL_SESSION_set_cipher(session, is_tls13 ? tls13 : older), 1);
    assert_int_equal(SSL_SESSION_set1_master_key(session, secret, is_tls13 ? 32 : sizeof(secret)), 1);
    SSL_SESSION_set_timeout(session, 300);
    return session;
}

/* A cache lookup compares protocol versions, and an SSL has one only after its handshake, or with the method of one. */
static const SSL_METHOD *negotiated_method(int version)
{
    static struct { int version; const SSL_METHOD *method; } known[3];
    SSL_CTX *client, *server;
    pair p;
    int i;

    for (i = 0; i < 3 && known[i].method != NULL; i++)
        if (known[i].version == version)
            return known[i].method;
    assert_true(i < 3);
    client = client_ctx(version);
    server = server_ctx(version);
    p = tls_connect(client, server, NULL);
    known[i].version = version;
    known[i].method = SSL_get_ssl_method(p.server);
    tls_close(&p);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    return known[i].method;
}

X509 *other_certificate(EVP_PKEY **key)
{
    X509 *made = X509_new();
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);

    *key = NULL;
    assert_int_equal(EVP_PKEY_keygen_init(maker), 1);
    assert_int_equal(EVP_PKEY_CTX_set_ec_paramgen_curve_nid(maker, NID_X9_62_prime256v1), 1);
    assert_int_equal(EVP_PKEY_keygen(maker, key), 1);
    EVP_PKEY_CTX_free(maker);
    X509_gmtime_adj(X509_getm_notBefore(made), 0);
    X509_gmtime_adj(X509_getm_notAfter(made), 1000);
    assert_int_equal(X509_set_pubkey(made, *key), 1);
    assert_true(X509_sign(made, *key, EVP_sha256()) > 0);
    return made;
}

void add_common_name(X509 *certificate, const char *name)
{
    X509_NAME *subject = X509_NAME_dup(X509_get_subject_name(certificate)); /* 4.0 gives no other to change */

    assert_int_equal(X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0), 1);
    assert_int_equal(X509_set_subject_name(certificate, subject), 1);
    X509_NAME_free(subject);
}

int race_ticket(const struct ticket_race *racer)
{
    pair p = tls_prepare(racer->client, racer->server);
    SSL_SESSION *own = SSL_SESSION_dup(racer->ticket);
    char early[16];
    size_t length;
    int accepted;

    assert_int_equal(SSL_set_session(p.client, own), 1);
    SSL_SESSION_free(own);
    assert_int_equal(SSL_write_early_data(p.client, "once", 4, &length), 1);
    SSL_read_early_data(p.server, early, sizeof early, &length);
    accepted = SSL_get_early_data_status(p.server) == SSL_EARLY_DATA_ACCEPTED;
    tls_drop(&p);
    return accepted;
}

int wait_and_race_ticket(const struct ticket_race *racer)
{
    char byte;

    close(racer->start[1]);
    return read(racer->start[0], &byte, 1) == 0 && race_ticket(racer);
}

int errors_say(const char *part)
{
    BIO *out = BIO_new(BIO_s_mem());
    char *text;
    int says;

    ERR_print_errors(out);
    BIO_write(out, "", 1);
    BIO_get_mem_data(out, &text);
    says = strstr(text, ":reprise:") != NULL && strstr(text, part) != NULL && strstr(text, "hunter2") == NULL;
    if (!says)
        print_error("%s\n", text);
    BIO_free(out);
    return says;
}

int added(SSL_CTX *ctx, SSL_SESSION *session)
{
    static const struct timespec a_while = { 0, 20 * 1000 * 1000 };

    for (int tries = shared() ? 100 : 1; tries > 0; tries--) {
        if (SSL_CTX_add_session(ctx, session))
            return 1;
        if (tries > 1)
            nanosleep(&a_while, NULL);
    }
    return 0;
}

int holds_one_less(void)
{
    enum { SIZE = 4 };
    SSL_CTX *ctx;
    long held;

    if (subject() == DOCUMENTED)
        return 0;
    ctx = server_ctx(TLS1_2_VERSION);
    SSL_CTX_sess_set_cache_size(ctx, SIZE);
    for (unsigned char i = 0; i < SIZE; i++) {
        SSL_SESSION *session = made_session(TLS1_2_VERSION, i);

        SSL_CTX_add_session(ctx, session);
        SSL_SESSION_free(session);
    }
    held = SSL_CTX_sess_number(ctx);
    SSL_CTX_free(ctx);
    return held == SIZE - 1;
}

int in_cache(SSL_CTX *ctx, int version, const SSL_SESSION *session)
{
    SSL *ssl = SSL_new(ctx);
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);
    int found;

    assert_non_null(ssl);
    assert_int_equal(SSL_set_ssl_method(ssl, negotiated_method(version)), 1);
    found = SSL_has_matching_session_id(ssl, id, length);
    SSL_free(ssl);
    return found;
}

/* ---- children ---- */

struct work { int (*f)(void *); void *arg; int result; };

static void *run_work(void *arg)
{
    struct work *work = arg;

    work->result = work->f(work->arg);
    return NULL;
}

/*
 * In the child, nothing may return into cmocka: its signal handlers are undone, and the work runs in a thread of its
 * own, where a failed assertion finds no test to jump back to and ends the process with 255.
 */
static void child(struct work *work)
{
    static const int caught[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGABRT };
    pthread_t thread;

    for (size_t i = 0; i < sizeof(caught) / sizeof(caught[0]); i++)
        signal(caught[i], SIG_DFL);
    if (pthread_create(&thread, NULL, run_work, work) != 0 || pthread_join(thread, NULL) != 0)
        _exit(254);
    _exit(work->result);
}

const char *in_child(int (*f)(void *), void *arg, unsigned seconds)
{
    static char text[TEXT];
    const struct timespec pause = { 0, 2000000 };
    struct work work = { f, arg, 0 };
    struct timespec start, now;
    int status;
    pid_t pid, ended;

    if (slowly() && subject() != STOCK) /* which runs without valgrind */
        seconds *= 6;
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child(&work);

    clock_gettime(CLOCK_MONOTONIC, &start);
    while ((ended = waitpid(pid, &status, WNOHANG)) == 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - start.tv_sec >= (time_t)seconds + 1) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return "deadlocks";
        }
        nanosleep(&pause, NULL);
    }
    assert_int_equal(ended, pid);
    if (!WIFEXITED(status))
        return "crashes";
    snprintf(text, sizeof(text), "returns %d", WEXITSTATUS(status));
    return text;
}
