/*
 * A TLS client that comes back: it connects once without a session, then COUNT times offering the newest session it
 * was given, and tells how often the server resumed and what a handshake took.
 *
 *     reconnect [-tls1_2|-tls1_3] [-no_ticket] [-n COUNT] [-clients N] [-fresh] [-abrupt] [-early_data]
 *               [-pause MS] [-race] [-session_out F] [-session_in F] [-servername NAME] [-cert F -key F] [-json]
 *               HOST:PORT...
 *
 * Each visit is a GET / and a close_notify; with -abrupt neither. With -fresh no session is offered at all. -early_data
 * sends the request ahead of the handshake where the session allows it. -clients runs so many processes at once, each
 * with its COUNT visits. -pause has a client wait before it comes back. Of several servers each visit goes to any one,
 * as behind a load balancer. -race takes COUNT sessions and shows each to all servers at once, by a process for each
 * server; "once" counts those whose early data exactly one accepted. A server that names the process that answers
 * ("worker PID") has its workers counted. It measures the server, so it takes care never to lose a session for a reason
 * of its own. Link it with libssl alone.
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

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

enum { HANDSHAKE_MS = 10000, ANSWER_MS = 5000, QUIET_MS = 200, TICKET_MS = 20 };

enum { MAX_CLIENTS = 256, MAX_SERVERS = 16 };

static const char *servers[MAX_SERVERS], *servername, *session_in, *session_out, *cert_file, *key_file;
static int version, no_ticket, fresh, abrupt, early_data, race, json;
static long count = 5, clients = 1, pause_ms, server_count;

/* What one connection saw; in memory that the clients share. */
static struct visit {
    int outcome; /* -1 if it failed, or whether it was resumed */
    int early;   /* whether its early data was accepted */
    long worker; /* who answered, 0 if it is not known */
    double us;   /* of its handshake */
} *visits;

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

static int write_request(char *request, size_t size)
{
    return snprintf(request, size, "GET / HTTP/1.0\r\nHost: %.256s\r\n\r\n", servername ? servername : "localhost");
}

/* A request and its answer: TLS 1.3 tickets come with it. A server that never closes ends it by staying quiet. */
static void get(SSL *ssl, int fd, struct visit *seen)
{
    char text[4097];
    int length = write_request(text, sizeof text), n;

    if (!seen->early && SSL_write(ssl, text, length) <= 0)
        return;
    receive_timeout(fd, ANSWER_MS);
    while ((n = SSL_read(ssl, text, sizeof text - 1)) > 0) {
        const char *worker;

        text[n] = '\0';
        if ((worker = strstr(text, "worker ")) != NULL)
            seen->worker = strtol(worker + 7, NULL, 10);
        receive_timeout(fd, QUIET_MS);
    }
}

/* The request, ahead of the handshake. Whether it was accepted is known afterwards. */
static void get_early(SSL *ssl)
{
    char request[512];
    size_t written;

    SSL_write_early_data(ssl, request, (size_t)write_request(request, sizeof request), &written);
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

/* One connection to this server. */
static void visit(SSL_CTX *ctx, struct visit *seen, const char *address)
{
    SSL *ssl = SSL_new(ctx);
    BIO *tcp = BIO_new_connect(address);
    int fd, one = 1, early = 0;
    static int told;

    *seen = (struct visit){.outcome = -1};
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
        early = early_data && SSL_SESSION_get_max_early_data(newest) > 0;
        if (SSL_SESSION_get_protocol_version(newest) == TLS1_3_VERSION)
            keep(NULL); /* a TLS 1.3 ticket is for one use */
    }

    double start = now_us();
    if (early)
        get_early(ssl);
    if (SSL_connect(ssl) != 1)
        goto end;
    seen->us = now_us() - start;
    seen->outcome = SSL_session_reused(ssl);
    seen->early = early && SSL_get_early_data_status(ssl) == SSL_EARLY_DATA_ACCEPTED;
    if (abrupt) {
        vanish(ssl, fd);
    } else {
        get(ssl, fd, seen);
        close_well(ssl, fd);
    }
end:
    if (seen->outcome < 0 && !told) {
        told = 1; /* the others will have failed for the same reason */
        ERR_print_errors_fp(stderr);
    }
    ERR_clear_error();
    SSL_free(ssl);
    if (abrupt)
        poll(NULL, 0, TICKET_MS); /* the server is to have noticed before the next visit */
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
    fputs("usage: reconnect [-tls1_2|-tls1_3] [-no_ticket] [-n COUNT] [-clients N] [-fresh] [-abrupt] [-early_data]\n"
          "                 [-pause MS] [-race] [-session_out F] [-session_in F] [-servername NAME] [-cert F -key F]\n"
          "                 [-json] HOST:PORT...\n", stderr);
    exit(2);
}

static const char *value(char ***arg)
{
    if ((*arg)[1] == NULL)
        usage();
    return *++*arg;
}

static long number(char ***arg, long least, long most)
{
    char *end;
    long n = strtol(value(arg), &end, 10);

    if (*end != '\0' || n < least || n > most)
        usage();
    return n;
}

static void parse(char **arg)
{
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
        else if (strcmp(*arg, "-early_data") == 0)
            early_data = 1;
        else if (strcmp(*arg, "-race") == 0)
            race = 1;
        else if (strcmp(*arg, "-n") == 0)
            count = number(&arg, 0, 1000000);
        else if (strcmp(*arg, "-clients") == 0)
            clients = number(&arg, 1, MAX_CLIENTS);
        else if (strcmp(*arg, "-pause") == 0)
            pause_ms = number(&arg, 0, 60000);
        else if (strcmp(*arg, "-cert") == 0)
            cert_file = value(&arg);
        else if (strcmp(*arg, "-key") == 0)
            key_file = value(&arg);
        else if (strcmp(*arg, "-session_out") == 0)
            session_out = value(&arg);
        else if (strcmp(*arg, "-session_in") == 0)
            session_in = value(&arg);
        else if (strcmp(*arg, "-servername") == 0)
            servername = value(&arg);
        else if (**arg == '-' || server_count == MAX_SERVERS)
            usage();
        else
            servers[server_count++] = *arg;
    }
    if (server_count == 0 || (clients > 1 && (race || session_out != NULL))
        || (cert_file == NULL) != (key_file == NULL))
        usage();
}

static _Noreturn void fail(const char *what)
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

/* So many processes do `body` from the same moment on, into `seen`, which they share. Returns the seconds it took. */
static double at_once(SSL_CTX *ctx, long processes, void (*body)(SSL_CTX *ctx, struct visit *seen, long number),
                      struct visit *seen)
{
    double start;
    int go[2], status;
    char byte;

    if (pipe(go) != 0)
        fail("no pipe");
    for (long number = 0; number < processes; number++)
        switch (fork()) {
        case -1:
            fail("cannot fork");
        case 0:
            close(go[1]);
            if (read(go[0], &byte, 1) != 0) /* its end: all of them are there */
                _exit(2);
            body(ctx, seen, number);
            _exit(0);
        }
    start = now_us();
    close(go[0]);
    close(go[1]);
    for (long number = 0; number < processes; number++)
        if (wait(&status) < 0 || status != 0)
            fail("a client crashed");
    return (now_us() - start) / 1e6;
}

/* All visits of one client. */
static void come_back(SSL_CTX *ctx, struct visit *seen, long client)
{
    srandom((unsigned)getpid());
    for (long i = 0; i <= count; i++) {
        if (i > 0 && pause_ms > 0)
            poll(NULL, 0, (int)pause_ms);
        visit(ctx, &seen[client * (count + 1) + i], servers[random() % server_count]);
    }
}

static double run_clients(SSL_CTX *ctx)
{
    double start = now_us();

    if (clients > 1)
        return at_once(ctx, clients, come_back, visits);
    come_back(ctx, visits, 0);
    return (now_us() - start) / 1e6;
}

static void race_to(SSL_CTX *ctx, struct visit *seen, long server)
{
    visit(ctx, &seen[server], servers[server]);
}

/* Returns the seconds that the races alone took. */
static double run_races(SSL_CTX *ctx)
{
    double seconds = 0;
    struct visit first;

    for (long i = 0; i < count; i++) {
        keep(NULL);
        visit(ctx, &first, servers[i % server_count]);
        if (newest == NULL)
            fail("the server gave no session to race with");
        seconds += at_once(ctx, server_count, race_to, &visits[i * server_count]);
    }
    return seconds;
}

/* Races whose early data was accepted by one server and no other. */
static long count_once(void)
{
    long once = 0;

    for (long i = 0; race && i < count; i++) {
        int accepted = 0;

        for (long server = 0; server < server_count; server++)
            accepted += visits[i * server_count + server].early;
        once += accepted == 1;
    }
    return once;
}

static int by_worker(const void *a, const void *b)
{
    long x = ((const struct visit *)a)->worker, y = ((const struct visit *)b)->worker;
    return (x > y) - (x < y);
}

static long count_workers(long total)
{
    long workers = 0, last = 0;

    qsort(visits, (size_t)total, sizeof *visits, by_worker);
    for (long i = 0; i < total; i++)
        if (visits[i].worker != last) {
            last = visits[i].worker;
            workers++;
        }
    return workers;
}

int main(int argc, char **argv)
{
    long total, full = 0, resumed = 0, failed = 0, early = 0, once;
    double seconds, slowest = 0, *full_us, *resumed_us;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    (void)argc;
    parse(argv);
    signal(SIGPIPE, SIG_IGN);
    total = race ? count * server_count : clients * (count + 1);
    full_us = calloc((size_t)total, sizeof *full_us);
    resumed_us = calloc((size_t)total, sizeof *resumed_us);
    visits = mmap(NULL, (size_t)total * sizeof *visits, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ctx == NULL || full_us == NULL || resumed_us == NULL || visits == MAP_FAILED)
        fail("out of memory");
    SSL_CTX_set_min_proto_version(ctx, version); /* 0: any */
    SSL_CTX_set_max_proto_version(ctx, version);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(ctx, on_new_session);
    if (no_ticket)
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    if (cert_file != NULL
        && (SSL_CTX_use_certificate_file(ctx, cert_file, SSL_FILETYPE_PEM) != 1
            || SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1))
        fail("cannot use this certificate and key");
#ifdef SSL_OP_IGNORE_UNEXPECTED_EOF
    SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF); /* a rude server must not cost us our session */
#endif
    if (session_in != NULL)
        read_session();

    seconds = race ? run_races(ctx) : run_clients(ctx);
    for (long i = 0; i < total; i++) {
        const struct visit *seen = &visits[i];

        early += seen->early;
        slowest = seen->us > slowest ? seen->us : slowest;
        if (seen->outcome < 0)
            failed++;
        else if (seen->outcome)
            resumed_us[resumed++] = seen->us;
        else
            full_us[full++] = seen->us;
    }
    once = count_once(); /* before the visits are sorted */
    if (session_out != NULL)
        write_session();

    printf(json ? "{\"connections\": %ld, \"full\": %ld, \"resumed\": %ld, \"failed\": %ld, \"full_us\": %.0f, "
                  "\"resumed_us\": %.0f, \"slowest_ms\": %.0f, \"per_second\": %.0f, \"early\": %ld, \"once\": %ld, "
                  "\"workers\": %ld}\n"
                : "connections=%ld full=%ld resumed=%ld failed=%ld full_us=%.0f resumed_us=%.0f slowest_ms=%.0f "
                  "per_second=%.0f early=%ld once=%ld workers=%ld\n",
           total, full, resumed, failed, median(full_us, full), median(resumed_us, resumed), slowest / 1e3,
           (double)total / seconds, early, once, count_workers(total));
    keep(NULL);
    free(full_us);
    free(resumed_us);
    SSL_CTX_free(ctx);
    return failed > 0;
}
