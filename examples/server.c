/*
 * A threaded HTTPS server whose TLS sessions survive a restart: the session callbacks of SSL_CTX_sess_set_get_cb(3)
 * with SQLite behind them.
 *
 *     server [-port P] [-cert F -key F] [-db FILE] [-tls1_2|-tls1_3] [-no_ticket] [-no_internal] [-threads N]
 *
 * GET / tells how the connection was made, GET /stats the counters of the cache. It listens on 127.0.0.1 (-port 0: on
 * a free port, which it prints). SIGTERM and SIGINT end it.
 *
 * Only sessions known by an id come to the cache. Clients that take tickets carry the session themselves, sealed with
 * a key that dies with the process; -no_ticket makes everyone use ids, in TLS 1.3 by tickets that hold nothing else.
 *
 *     cc -std=c11 -D_GNU_SOURCE server.c -lssl -lcrypto -lsqlite3 -pthread
 *     cc -std=c11 -D_GNU_SOURCE -DWITH_REPRISE server.c -lreprise -lssl -lcrypto -lsqlite3 -pthread
 */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define OPENSSL_API_COMPAT 30000 /* SSL_SESSION_get_time is deprecated from 3.4 on, and every version has it */
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#ifdef WITH_REPRISE
#include "reprise.h"
#else
#include <openssl/ssl.h>
#endif
#include <openssl/x509.h>
#include <sqlite3.h>

enum { MAX_THREADS = 256, PATIENCE_S = 5, BUSY_MS = 100, HOUSEKEEPING_S = 60, SESSION_S = 3600 };

static const char *cert_file, *key_file, *db_file;
static int port = 4433, threads = 4, version, no_ticket, no_internal;

static SSL_CTX *ctx;
static int listener;
static atomic_int stopping;

static void die(const char *what)
{
    fprintf(stderr, "server: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

/* ---- The external cache: a table of id, expiry and the session in DER. ------------------------------------------ */

/* Every thread has a connection of its own, so no thread waits for another one's statement. */
static _Thread_local struct {
    sqlite3 *db;
    sqlite3_stmt *put, *get, *del, *purge;
} store;

/* Returns 0 if the database cannot be used. Without it every lookup is a miss: slower handshakes, not failed ones. */
static int store_open(void)
{
    static const char schema[] =
        "PRAGMA journal_mode = WAL;"   /* readers do not wait for the writer */
        "PRAGMA synchronous = NORMAL;" /* a session lost with the machine costs one full handshake, no more */
        "CREATE TABLE IF NOT EXISTS sessions (id BLOB PRIMARY KEY, expiry INTEGER NOT NULL, der BLOB NOT NULL)"
        " WITHOUT ROWID;";

    return sqlite3_open(db_file, &store.db) == SQLITE_OK
        && sqlite3_busy_timeout(store.db, BUSY_MS) == SQLITE_OK
        && sqlite3_exec(store.db, schema, NULL, NULL, NULL) == SQLITE_OK
        && sqlite3_prepare_v2(store.db, "INSERT OR REPLACE INTO sessions (id, expiry, der) VALUES (?1, ?2, ?3)", -1,
                              &store.put, NULL) == SQLITE_OK
        && sqlite3_prepare_v2(store.db, "SELECT der FROM sessions WHERE id = ?1 AND expiry > ?2", -1, &store.get,
                              NULL) == SQLITE_OK
        && sqlite3_prepare_v2(store.db, "DELETE FROM sessions WHERE id = ?1", -1, &store.del, NULL) == SQLITE_OK
        && sqlite3_prepare_v2(store.db, "DELETE FROM sessions WHERE expiry <= ?1", -1, &store.purge,
                              NULL) == SQLITE_OK;
}

static void store_close(void)
{
    sqlite3_finalize(store.put);
    sqlite3_finalize(store.get);
    sqlite3_finalize(store.del);
    sqlite3_finalize(store.purge);
    sqlite3_close(store.db);
    memset(&store, 0, sizeof store);
}

/* Expired sessions that nobody asks for again would stay for ever. */
static void store_purge(void)
{
    if (store.purge == NULL)
        return;
    sqlite3_bind_int64(store.purge, 1, time(NULL));
    sqlite3_step(store.purge);
    sqlite3_reset(store.purge);
}

/* A session was negotiated; we are given a reference to it. */
static int on_new(SSL *ssl, SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);
    int stateless = SSL_version(ssl) == TLS1_3_VERSION && !(SSL_get_options(ssl) & SSL_OP_NO_TICKET);
    int size = i2d_SSL_SESSION(session, NULL);
    unsigned char *der, *end;

    if (store.put != NULL && !stateless && size > 0 && (der = end = malloc((size_t)size)) != NULL) {
        i2d_SSL_SESSION(session, &end);
        sqlite3_bind_blob(store.put, 1, id, (int)length, SQLITE_STATIC);
        sqlite3_bind_int64(store.put, 2,
                           (sqlite3_int64)SSL_SESSION_get_time(session) + SSL_SESSION_get_timeout(session));
        sqlite3_bind_blob(store.put, 3, der, size, SQLITE_STATIC);
        sqlite3_step(store.put); /* an error loses the session, nothing else */
        sqlite3_reset(store.put);
        sqlite3_clear_bindings(store.put);
        OPENSSL_cleanse(der, (size_t)size); /* it holds the master secret */
        free(der);
    }

    /* 1: the reference is ours, so we free it. By the manual, 0 would take the session out of the internal cache. */
    SSL_SESSION_free(session);
    return 1;
}

/* A client proposed an id which the internal cache does not know. */
static SSL_SESSION *on_get(SSL *ssl, const unsigned char *id, int length, int *copy)
{
    SSL_SESSION *session = NULL;

    (void)ssl;
    *copy = 0; /* the only reference of what we return passes to the library */
    if (store.get == NULL)
        return NULL;
    sqlite3_bind_blob(store.get, 1, id, length, SQLITE_STATIC);
    sqlite3_bind_int64(store.get, 2, time(NULL));
    if (sqlite3_step(store.get) == SQLITE_ROW) {
        const unsigned char *der = sqlite3_column_blob(store.get, 0);
        session = d2i_SSL_SESSION(NULL, &der, sqlite3_column_bytes(store.get, 0));
        ERR_clear_error(); /* a row that cannot be read is a miss, not an error of this connection */
    }
    sqlite3_reset(store.get);
    sqlite3_clear_bindings(store.get);
    return session;
}

/* A session must not be resumed any more: it expired, was not shut down cleanly, or fell out of the internal cache. */
static void on_remove(SSL_CTX *of, SSL_SESSION *session)
{
    unsigned int length;
    const unsigned char *id = SSL_SESSION_get_id(session, &length);

    (void)of;
    if (store.del == NULL)
        return;
    sqlite3_bind_blob(store.del, 1, id, (int)length, SQLITE_STATIC);
    sqlite3_step(store.del);
    sqlite3_reset(store.del);
    sqlite3_clear_bindings(store.del);
}

/* ---- The context. ------------------------------------------------------------------------------------------------ */

static void self_signed(void)
{
    EVP_PKEY_CTX *generator = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    EVP_PKEY *key = NULL;
    X509 *cert = X509_new();

    if (generator == NULL || cert == NULL || EVP_PKEY_keygen_init(generator) <= 0
        || EVP_PKEY_CTX_set_ec_paramgen_curve_nid(generator, NID_X9_62_prime256v1) <= 0
        || EVP_PKEY_keygen(generator, &key) <= 0)
        die("cannot make a key");
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), (long)time(NULL));
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 30L * 24 * 3600);
    X509_set_pubkey(cert, key);
    X509_NAME *name = X509_NAME_new();
    if (name == NULL
        || !X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0)
        || !X509_set_subject_name(cert, name) || !X509_set_issuer_name(cert, name)
        || !X509_sign(cert, key, EVP_sha256()) || SSL_CTX_use_certificate(ctx, cert) != 1
        || SSL_CTX_use_PrivateKey(ctx, key) != 1)
        die("cannot make a certificate");
    X509_NAME_free(name);
    X509_free(cert);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(generator);
}

static void make_context(void)
{
    static const unsigned char name[] = "examples/server";

    ctx = SSL_CTX_new(TLS_server_method());
    if (ctx == NULL)
        die("cannot make a context");
    SSL_CTX_set_min_proto_version(ctx, version ? version : TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(ctx, version);
    if (no_ticket)
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);

    if (cert_file == NULL)
        self_signed();
    else if (SSL_CTX_use_certificate_chain_file(ctx, cert_file) != 1
             || SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1)
        die("cannot use this certificate and key");

    /* Sessions are only resumed where the id context is the same; the next process must set the same. */
    SSL_CTX_set_session_id_context(ctx, name, sizeof name - 1);
    SSL_CTX_set_timeout(ctx, SESSION_S);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER | (no_internal ? SSL_SESS_CACHE_NO_INTERNAL : 0));
    if (db_file != NULL) {
        SSL_CTX_sess_set_new_cb(ctx, on_new);
        SSL_CTX_sess_set_get_cb(ctx, on_get);
        SSL_CTX_sess_set_remove_cb(ctx, on_remove);
    }
}

/* ---- HTTP. ------------------------------------------------------------------------------------------------------- */

static void write_stats(FILE *out)
{
    fprintf(out, "sess_number %ld\n", SSL_CTX_sess_number(ctx));
    fprintf(out, "sess_connect %ld\n", SSL_CTX_sess_connect(ctx));
    fprintf(out, "sess_connect_good %ld\n", SSL_CTX_sess_connect_good(ctx));
    fprintf(out, "sess_connect_renegotiate %ld\n", SSL_CTX_sess_connect_renegotiate(ctx));
    fprintf(out, "sess_accept %ld\n", SSL_CTX_sess_accept(ctx));
    fprintf(out, "sess_accept_good %ld\n", SSL_CTX_sess_accept_good(ctx));
    fprintf(out, "sess_accept_renegotiate %ld\n", SSL_CTX_sess_accept_renegotiate(ctx));
    fprintf(out, "sess_hits %ld\n", SSL_CTX_sess_hits(ctx));
    fprintf(out, "sess_cb_hits %ld\n", SSL_CTX_sess_cb_hits(ctx));
    fprintf(out, "sess_misses %ld\n", SSL_CTX_sess_misses(ctx));
    fprintf(out, "sess_timeouts %ld\n", SSL_CTX_sess_timeouts(ctx));
    fprintf(out, "sess_cache_full %ld\n", SSL_CTX_sess_cache_full(ctx));
#ifdef WITH_REPRISE
    reprise_stats s;

    if (reprise_ctx_stats(ctx, &s, sizeof s) != 1)
        return;
#define FIELD(name) fprintf(out, "reprise_" #name " %" PRIu64 "\n", s.name)
    FIELD(sessions);
    FIELD(stored);
    FIELD(replaced);
    FIELD(evicted);
    FIELD(expired);
    FIELD(flushed);
    FIELD(removed);
    FIELD(rejected);
    FIELD(taken);
    FIELD(condemned);
    FIELD(hits);
    FIELD(misses);
    FIELD(unusable);
    FIELD(external_hits);
    FIELD(external_misses);
    FIELD(external_refused);
    FIELD(replays);
    FIELD(negotiated);
#undef FIELD
#endif
}

static void answer(SSL *ssl, const char *request)
{
    const char *status = "200 OK";
    char *body = NULL, head[256];
    size_t body_length = 0;
    FILE *out = open_memstream(&body, &body_length);

    if (out == NULL)
        return;
    if (strncmp(request, "GET ", 4) != 0) {
        status = "405 Method Not Allowed";
        fputs("only GET\n", out);
    } else if (strncmp(request + 4, "/stats ", 7) == 0) {
        write_stats(out);
    } else if (strncmp(request + 4, "/ ", 2) == 0) {
        fprintf(out, "%s, %s handshake\n", SSL_get_version(ssl), SSL_session_reused(ssl) ? "resumed" : "full");
    } else {
        status = "404 Not Found";
        fputs("there is / and /stats\n", out);
    }
    if (fclose(out) == 0) {
        int length = snprintf(head, sizeof head,
                              "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s"
                              "Connection: close\r\n\r\n",
                              status, body_length, *status == '4' ? "Allow: GET\r\n" : "");
        if (SSL_write(ssl, head, length) > 0)
            SSL_write(ssl, body, (int)body_length);
    }
    free(body);
}

/* Reads a request up to its empty line. Returns 0 when the client has nothing (more) to ask. */
static int read_request(SSL *ssl, char *request, size_t size)
{
    size_t length = 0;

    for (;;) {
        int n = SSL_read(ssl, request + length, (int)(size - 1 - length));

        if (n <= 0)
            return 0;
        length += (size_t)n;
        request[length] = '\0';
        if (strstr(request, "\r\n\r\n") != NULL)
            return 1;
        if (length == size - 1)
            return 0;
    }
}

static void serve(int fd)
{
    struct timeval patience = {PATIENCE_S, 0}, linger = {1, 0};
    char request[4096], rest[256];
    int one = 1;
    SSL *ssl = SSL_new(ctx);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (ssl != NULL && SSL_set_fd(ssl, fd) && SSL_accept(ssl) == 1) {
        if (read_request(ssl, request, sizeof request))
            answer(ssl, request);
        /*
         * Our close_notify; freed without it, the session would count as broken and could not be resumed. That of the
         * client is not waited for: many send none, and this would be held against their session. Reading on until it
         * leaves keeps the kernel from resetting the connection before our answer is read.
         */
        if (SSL_shutdown(ssl) == 0 && shutdown(fd, SHUT_WR) == 0) {
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &linger, sizeof linger);
            while (recv(fd, rest, sizeof rest, 0) > 0)
                ;
        }
    }
    SSL_free(ssl);
    close(fd);
    ERR_clear_error(); /* the next connection of this thread must not find it */
}

static void *worker(void *unused)
{
    if (db_file != NULL && !store_open())
        fprintf(stderr, "server: a thread runs without %s: %s\n", db_file, sqlite3_errmsg(store.db));
    while (!stopping) {
        int fd = accept(listener, NULL, NULL);

        if (fd >= 0)
            serve(fd);
        else if (!stopping)
            usleep(10000); /* out of descriptors, most likely: let others finish */
    }
    store_close();
    return unused;
}

/* ---- main. ------------------------------------------------------------------------------------------------------- */

static void usage(void)
{
    fputs("usage: server [-port P] [-cert F -key F] [-db FILE] [-tls1_2|-tls1_3] [-no_ticket] [-no_internal]\n"
          "              [-threads N]\n", stderr);
    exit(2);
}

static const char *value(char ***arg)
{
    if ((*arg)[1] == NULL)
        usage();
    return *++*arg;
}

static int number(char ***arg, long least, long most)
{
    char *end;
    long n = strtol(value(arg), &end, 10);

    if (*end != '\0' || n < least || n > most)
        usage();
    return (int)n;
}

static void parse(char **arg)
{
    for (arg++; *arg != NULL; arg++) {
        if (strcmp(*arg, "-port") == 0)
            port = number(&arg, 0, 65535);
        else if (strcmp(*arg, "-cert") == 0)
            cert_file = value(&arg);
        else if (strcmp(*arg, "-key") == 0)
            key_file = value(&arg);
        else if (strcmp(*arg, "-db") == 0)
            db_file = value(&arg);
        else if (strcmp(*arg, "-tls1_2") == 0)
            version = TLS1_2_VERSION;
        else if (strcmp(*arg, "-tls1_3") == 0)
            version = TLS1_3_VERSION;
        else if (strcmp(*arg, "-no_ticket") == 0)
            no_ticket = 1;
        else if (strcmp(*arg, "-no_internal") == 0)
            no_internal = 1;
        else if (strcmp(*arg, "-threads") == 0)
            threads = number(&arg, 1, MAX_THREADS);
        else
            usage();
    }
    if ((cert_file == NULL) != (key_file == NULL))
        usage();
}

static void start_listening(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof here;
    int one = 1;

    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, size) != 0 || listen(listener, 128) != 0
        || getsockname(listener, (struct sockaddr *)&here, &size) != 0)
        die("cannot listen on this port");
    printf("listening on 127.0.0.1:%d\n", ntohs(here.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    pthread_t pool[MAX_THREADS];
    struct timespec housekeeping = {HOUSEKEEPING_S, 0};
    sigset_t end;
    int running = 0;

    (void)argc;
    parse(argv);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&end);
    sigaddset(&end, SIGINT);
    sigaddset(&end, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &end, NULL); /* inherited by the pool; main waits for them */

    umask(077); /* the database holds the keys of past and future connections: for this user only */
    if (db_file != NULL && !store_open())
        die(sqlite3_errmsg(store.db));
    store_purge();
    make_context();
    start_listening();
    while (running < threads && pthread_create(&pool[running], NULL, worker, NULL) == 0)
        running++;
    if (running == 0)
        die("cannot start a thread");

    while (sigtimedwait(&end, NULL, &housekeeping) < 0)
        store_purge();

    stopping = 1;
    shutdown(listener, SHUT_RDWR); /* wakes every accept() */
    for (int i = 0; i < running; i++)
        pthread_join(pool[i], NULL);
    close(listener);
    /* SSL_CTX_free hands all that is still cached to remove_cb: those are the sessions to find after a restart. */
    SSL_CTX_sess_set_remove_cb(ctx, NULL);
    SSL_CTX_free(ctx);
    store_close();
    sqlite3_shutdown();
    return 0;
}
