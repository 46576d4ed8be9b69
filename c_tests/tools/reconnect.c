/*
 * A TLS client that comes back: it connects once without a session, then COUNT times offering the newest session it
 * was given, and tells how often the server resumed and what a handshake took.
 *
 *     reconnect [-tls1_2|-tls1_3] [-no_ticket] [-n COUNT] [-fresh] [-abrupt] [-session_out F] [-session_in F]
 *               [-servername NAME] [-json] HOST:PORT
 *
 * Each visit is a GET / and a close_notify; with -abrupt neither. With -fresh no session is offered at all. It measures
 * the server, so it takes care never to lose a session for a reason of its own. Link it with libssl alone.
 * Exit status: 0, 1 if a connection failed, 2 for wrong usage or files.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

enum { HANDSHAKE_MS = 10000, ANSWER_MS = 5000, QUIET_MS = 200, TICKET_MS = 20 };

static const char *address, *servername, *session_in, *session_out;
static int version, no_ticket, fresh, abrupt, json;
static long count = 5;

static SSL_SESSION *newest; /* the session to offer next, one reference */

static void keep(SSL_SESSION *session)
{
    SSL_SESSION_free(newest);
    newest = session;
}

static int on_new_session(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    keep(session);
    return 1;
}

static void receive_timeout(int fd, int ms)
{
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* A request and its answer: TLS 1.3 tickets come with it. A server that never closes ends it by staying quiet. */
static void get(SSL *ssl, int fd)
{
    char request[512], answer[4096];
    int length = snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: %.256s\r\n\r\n",
                          servername ? servername : "localhost");

    if (SSL_write(ssl, request, length) <= 0)
        return;
    receive_timeout(fd, ANSWER_MS);
    while (SSL_read(ssl, answer, sizeof answer) > 0)
        receive_timeout(fd, QUIET_MS);
}

static void close_well(SSL *ssl, int fd)
{
    receive_timeout(fd, QUIET_MS);
    if (SSL_shutdown(ssl) == 0)
        SSL_shutdown(ssl);
}

/* Takes the tickets and is gone: no request (the server might answer and close well by itself), no close_notify. */
static void vanish(SSL *ssl, int fd)
{
    struct pollfd incoming = {fd, POLLIN, 0};
    char byte;

    SSL_clear_mode(ssl, SSL_MODE_AUTO_RETRY); /* SSL_read returns after each ticket */
    while (poll(&incoming, 1, TICKET_MS) > 0 && SSL_get_error(ssl, SSL_read(ssl, &byte, 1)) == SSL_ERROR_WANT_READ)
        ;
    SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* or SSL_free condemned our session too */
}

/* One connection. Returns -1 if it failed, or whether it was resumed. */
static int visit(SSL_CTX *ctx, double *us)
{
    SSL *ssl = SSL_new(ctx);
    BIO *tcp = BIO_new_connect(address);
    int fd, one = 1, resumed = -1;
    static int told;

    if (ssl == NULL || tcp == NULL || BIO_do_connect(tcp) <= 0) {
        BIO_free_all(tcp);
        goto end;
    }
    BIO_get_fd(tcp, &fd);
    SSL_set_bio(ssl, tcp, tcp);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    receive_timeout(fd, HANDSHAKE_MS);
    if (servername != NULL)
        SSL_set_tlsext_host_name(ssl, servername);
    if (newest != NULL && !fresh) {
        SSL_set_session(ssl, newest);
        if (SSL_SESSION_get_protocol_version(newest) == TLS1_3_VERSION)
            keep(NULL); /* a TLS 1.3 ticket is for one use */
    }

    double start = now_us();
    if (SSL_connect(ssl) != 1)
        goto end;
    *us = now_us() - start;
    resumed = SSL_session_reused(ssl);
    if (abrupt) {
        vanish(ssl, fd);
    } else {
        get(ssl, fd);
        close_well(ssl, fd);
    }
end:
    if (resumed < 0 && !told) {
        told = 1; /* the others will have failed for the same reason */
        ERR_print_errors_fp(stderr);
    }
    ERR_clear_error();
    SSL_free(ssl);
    if (abrupt)
        poll(NULL, 0, TICKET_MS); /* the server is to have noticed before the next visit */
    return resumed;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, long n)
{
    if (n == 0)
        return 0;
    qsort(values, (size_t)n, sizeof *values, ascending);
    return values[n / 2];
}

static void usage(void)
{
    fputs("usage: reconnect [-tls1_2|-tls1_3] [-no_ticket] [-n COUNT] [-fresh] [-abrupt] [-session_out F]\n"
          "                 [-session_in F] [-servername NAME] [-json] HOST:PORT\n", stderr);
    exit(2);
}

static const char *value(char ***arg)
{
    if ((*arg)[1] == NULL)
        usage();
    return *++*arg;
}

static void parse(char **arg)
{
    char *end;

    for (arg++; *arg != NULL; arg++) {
        if (strcmp(*arg, "-tls1_2") == 0)
            version = TLS1_2_VERSION;
        else if (strcmp(*arg, "-tls1_3") == 0)
            version = TLS1_3_VERSION;
        else if (strcmp(*arg, "-no_ticket") == 0)
            no_ticket = 1;
        else if (strcmp(*arg, "-fresh") == 0)
            fresh = 1;
        else if (strcmp(*arg, "-abrupt") == 0)
            abrupt = 1;
        else if (strcmp(*arg, "-json") == 0)
            json = 1;
        else if (strcmp(*arg, "-n") == 0) {
            count = strtol(value(&arg), &end, 10);
            if (*end != '\0' || count < 0 || count > 1000000)
                usage();
        } else if (strcmp(*arg, "-session_out") == 0)
            session_out = value(&arg);
        else if (strcmp(*arg, "-session_in") == 0)
            session_in = value(&arg);
        else if (strcmp(*arg, "-servername") == 0)
            servername = value(&arg);
        else if (**arg == '-' || address != NULL)
            usage();
        else
            address = *arg;
    }
    if (address == NULL)
        usage();
}

static void fail(const char *what)
{
    fprintf(stderr, "reconnect: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(2);
}

static void read_session(void)
{
    BIO *file = BIO_new_file(session_in, "r");

    keep(file == NULL ? NULL : PEM_read_bio_SSL_SESSION(file, NULL, NULL, NULL));
    BIO_free(file);
    if (newest == NULL)
        fail("cannot read the session file");
}

static void write_session(void)
{
    BIO *file;

    if (newest == NULL)
        fail("the server gave no session to write");
    file = BIO_new_file(session_out, "w");
    if (file == NULL || !PEM_write_bio_SSL_SESSION(file, newest))
        fail("cannot write the session file");
    BIO_free(file);
}

int main(int argc, char **argv)
{
    long full = 0, resumed = 0, failed = 0;
    double us = 0, *full_us, *resumed_us;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    (void)argc;
    parse(argv);
    signal(SIGPIPE, SIG_IGN);
    full_us = calloc((size_t)count + 1, sizeof *full_us);
    resumed_us = calloc((size_t)count + 1, sizeof *resumed_us);
    if (ctx == NULL || full_us == NULL || resumed_us == NULL)
        fail("out of memory");
    SSL_CTX_set_min_proto_version(ctx, version); /* 0: any */
    SSL_CTX_set_max_proto_version(ctx, version);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(ctx, on_new_session);
    if (no_ticket)
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
#ifdef SSL_OP_IGNORE_UNEXPECTED_EOF
    SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF); /* a rude server must not cost us our session */
#endif
    if (session_in != NULL)
        read_session();

    for (long i = 0; i <= count; i++) {
        int outcome = visit(ctx, &us);

        if (outcome < 0)
            failed++;
        else if (outcome)
            resumed_us[resumed++] = us;
        else
            full_us[full++] = us;
    }
    if (session_out != NULL)
        write_session();

    printf(json ? "{\"connections\": %ld, \"full\": %ld, \"resumed\": %ld, \"failed\": %ld, \"full_us\": %.0f, "
                  "\"resumed_us\": %.0f}\n"
                : "connections=%ld full=%ld resumed=%ld failed=%ld full_us=%.0f resumed_us=%.0f\n",
           count + 1, full, resumed, failed, median(full_us, full), median(resumed_us, resumed));
    keep(NULL);
    free(full_us);
    free(resumed_us);
    SSL_CTX_free(ctx);
    return failed > 0;
}
