/*
 * A prefork TLS server such as people write: N processes, each with a listening socket and, as many do, an SSL_CTX of
 * its own. A client that comes back meets the process that knows its session one time in N.
 *
 *     prefork -cert F -key F [-port P] [-workers N] [-ctx_before_fork] [-tickets] [-tls1_2|-tls1_3]
 *             [-client_ca F] [-early_data BYTES] [-serve_before_fork N]
 *
 * It listens on 127.0.0.1 (-port 0: on a free port, which it prints) and answers every request with a line that names
 * the process that answered. A worker that dies is replaced. SIGTERM and SIGINT end all of them, each with a line of
 * what it counted. With -client_ca clients must show a certificate. There are no tickets that carry the session
 * themselves, unless -tickets asks for them. With -serve_before_fork the parent makes the context and serves N
 * connections before there are workers.
 *
 *     cc -std=c11 -D_GNU_SOURCE prefork.c -lssl -lcrypto
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

enum { MAX_WORKERS = 64, PATIENCE_S = 5 };

static const char *cert_file, *key_file, *client_ca;
static int port = 4433, workers = 4, ctx_before_fork, tickets, version, early_bytes, serve_before_fork;

static SSL_CTX *ctx;
static int listeners[MAX_WORKERS]; /* one for each worker */
static pid_t pids[MAX_WORKERS];
static long connections, resumptions; /* of this worker */
static volatile sig_atomic_t stopping;

static void die(const char *what)
{
    fprintf(stderr, "prefork: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void make_context(void)
{
    static const unsigned char name[] = "examples/prefork";

    ctx = SSL_CTX_new(TLS_server_method());
    if (ctx == NULL)
        die("cannot make a context");
    SSL_CTX_set_min_proto_version(ctx, version ? version : TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(ctx, version);
    if (!tickets)
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    if (SSL_CTX_use_certificate_chain_file(ctx, cert_file) != 1
        || SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1)
        die("cannot use this certificate and key");
    if (client_ca != NULL) {
        if (SSL_CTX_load_verify_locations(ctx, client_ca, NULL) != 1)
            die("cannot use these CAs");
        SSL_CTX_set_client_CA_list(ctx, SSL_load_client_CA_file(client_ca));
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    }
    SSL_CTX_set_session_id_context(ctx, name, sizeof name - 1);
    SSL_CTX_set_max_early_data(ctx, (uint32_t)early_bytes);
}

/* ---- A worker. --------------------------------------------------------------------------------------------------- */

/* Reads what comes as early data, which may be the whole request. Returns its length, or -1 if the handshake fails. */
static int accept_early(SSL *ssl, char *request, size_t size)
{
    size_t length = 0, n;

    for (;;) {
        switch (SSL_read_early_data(ssl, request + length, size - 1 - length, &n)) {
        case SSL_READ_EARLY_DATA_ERROR:
            return -1;
        case SSL_READ_EARLY_DATA_FINISH:
            return (int)length;
        default:
            length += n;
        }
    }
}

static void serve(int fd)
{
    struct timeval patience = {PATIENCE_S, 0}, linger = {1, 0};
    char request[4096], line[128], rest[256];
    int one = 1, length = 0, n;
    SSL *ssl = SSL_new(ctx);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (ssl == NULL || !SSL_set_fd(ssl, fd))
        goto end;
    if (early_bytes > 0 && (length = accept_early(ssl, request, sizeof request)) < 0)
        goto end;
    if (SSL_accept(ssl) != 1)
        goto end;
    connections++;
    resumptions += SSL_session_reused(ssl);

    request[length] = '\0';
    while (strstr(request, "\r\n\r\n") == NULL && length < (int)sizeof request - 1) {
        if ((n = SSL_read(ssl, request + length, (int)sizeof request - 1 - length)) <= 0)
            break;
        length += n;
        request[length] = '\0';
    }
    if (length > 0) {
        n = snprintf(line, sizeof line, "HTTP/1.0 200 OK\r\n\r\nworker %d, %s, %s handshake%s\n", (int)getpid(),
                     SSL_get_version(ssl), SSL_session_reused(ssl) ? "resumed" : "full",
                     SSL_get_early_data_status(ssl) == SSL_EARLY_DATA_ACCEPTED ? ", early data" : "");
        SSL_write(ssl, line, n);
    }
    /* Ours suffices. Reading on keeps the kernel from resetting the connection before our answer is read. */
    if (SSL_shutdown(ssl) == 0 && shutdown(fd, SHUT_WR) == 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &linger, sizeof linger);
        while (recv(fd, rest, sizeof rest, 0) > 0)
            ;
    }
end:
    SSL_free(ssl);
    close(fd);
    ERR_clear_error();
}

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

static void work(int number)
{
    struct pollfd incoming = {listeners[number], POLLIN, 0};
    sigset_t none;

    for (int i = 0; i < workers; i++)
        if (i != number)
            close(listeners[i]);
    if (!ctx_before_fork)
        make_context();
    sigemptyset(&none); /* SIGTERM comes while it waits for a connection, and never while it serves one */
    while (!stopping)
        if (ppoll(&incoming, 1, NULL, &none) > 0) {
            int fd = accept(listeners[number], NULL, NULL);
            if (fd >= 0)
                serve(fd);
        }
    printf("worker %d: %ld connections, %ld resumed\n", (int)getpid(), connections, resumptions);
    SSL_CTX_free(ctx);
    exit(0);
}

/* ---- Their parent. ----------------------------------------------------------------------------------------------- */

/* Whoever replaces a worker goes on with its socket: connections wait there, and are not lost. */
static void listen_on_port(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET};
    socklen_t size = sizeof here;
    int one = 1;

    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < workers; i++) {
        here.sin_port = htons((uint16_t)port);
        listeners[i] = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listeners[i], SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(listeners[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
        if (bind(listeners[i], (struct sockaddr *)&here, size) != 0 || listen(listeners[i], 128) != 0
            || getsockname(listeners[i], (struct sockaddr *)&here, &size) != 0)
            die("cannot listen on this port");
        port = ntohs(here.sin_port);
    }
    printf("listening on 127.0.0.1:%d\n", port);
    fflush(stdout); /* or each worker would print it, too */
}

/* Threads and connections of a library may exist from here on: the workers inherit what fork leaves of them. */
static void serve_first(void)
{
    struct pollfd incoming[MAX_WORKERS];

    for (int i = 0; i < workers; i++)
        incoming[i] = (struct pollfd){listeners[i], POLLIN, 0};
    while (connections < serve_before_fork && poll(incoming, (nfds_t)workers, -1) > 0)
        for (int i = 0; i < workers; i++)
            if (incoming[i].revents != 0)
                serve(accept(listeners[i], NULL, NULL));
    connections = resumptions = 0;
}

static void start(int number)
{
    pids[number] = fork();
    if (pids[number] < 0)
        die("cannot fork");
    if (pids[number] == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        work(number);
    }
}

static void usage(void)
{
    fputs("usage: prefork -cert F -key F [-port P] [-workers N] [-ctx_before_fork] [-tickets] [-tls1_2|-tls1_3]\n"
          "               [-client_ca F] [-early_data BYTES] [-serve_before_fork N]\n", stderr);
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
        else if (strcmp(*arg, "-workers") == 0)
            workers = number(&arg, 1, MAX_WORKERS);
        else if (strcmp(*arg, "-cert") == 0)
            cert_file = value(&arg);
        else if (strcmp(*arg, "-key") == 0)
            key_file = value(&arg);
        else if (strcmp(*arg, "-client_ca") == 0)
            client_ca = value(&arg);
        else if (strcmp(*arg, "-early_data") == 0)
            early_bytes = number(&arg, 0, 4000); /* a request, which is read at once */
        else if (strcmp(*arg, "-ctx_before_fork") == 0)
            ctx_before_fork = 1;
        else if (strcmp(*arg, "-serve_before_fork") == 0)
            ctx_before_fork = serve_before_fork = number(&arg, 1, 1000);
        else if (strcmp(*arg, "-tickets") == 0)
            tickets = 1;
        else if (strcmp(*arg, "-tls1_2") == 0)
            version = TLS1_2_VERSION;
        else if (strcmp(*arg, "-tls1_3") == 0)
            version = TLS1_3_VERSION;
        else
            usage();
    }
    if (cert_file == NULL || key_file == NULL)
        usage();
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = stop};
    sigset_t awaited;
    int signal_number, failed = 0, status;
    pid_t pid;

    (void)argc;
    parse(argv);
    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGTERM);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGCHLD);
    sigprocmask(SIG_BLOCK, &awaited, NULL); /* inherited by the workers */

    if (ctx_before_fork)
        make_context();
    listen_on_port();
    serve_first();
    for (int i = 0; i < workers; i++)
        start(i);
    while (sigwait(&awaited, &signal_number) == 0 && signal_number == SIGCHLD)
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            int i = 0;

            while (pids[i] != pid)
                i++;
            pids[i] = -1;
            if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
                failed = 1; /* it said why, and the next one could do no better */
                goto end;
            }
            start(i);
        }
end:
    for (int i = 0; i < workers; i++)
        if (pids[i] > 0)
            kill(pids[i], SIGTERM);
    while ((pid = wait(&status)) > 0 || errno == EINTR)
        if (pid > 0 && status != 0)
            failed = 1;
    SSL_CTX_free(ctx);
    return failed;
}
