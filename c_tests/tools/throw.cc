/*
 * Callbacks that throw, as those of programs in C++ may: the exception goes through libssl (and Reprise) to the program, and
 * what it went through is left whole. Prints what it did; tests/unwind.rs runs it on libssl alone and with Reprise.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include <openssl/ssl.h>

static SSL_CTX *server, *client;
static SSL *ssl[2];
static std::string what;

struct thrown : std::runtime_error {
    using std::runtime_error::runtime_error;
};

extern "C" {
static int on_new(SSL *, SSL_SESSION *session)
{
    SSL_SESSION_free(session);
    throw thrown("new_cb");
}

static void on_remove(SSL_CTX *, SSL_SESSION *)
{
    throw thrown("remove_cb");
}

static SSL_SESSION *on_get(SSL *, const unsigned char *, int, int *)
{
    throw thrown("get_cb");
}

static int generate(const SSL *, unsigned char *, unsigned int *)
{
    throw thrown("generator");
}

static void on_info(const SSL *, int, int)
{
    throw thrown("info_cb");
}
}

static void check(bool holds, const char *claim)
{
    if (!holds) {
        std::printf("FAILED: %s\n", claim);
        std::exit(1);
    }
}

static void prepare(SSL_SESSION *offer)
{
    BIO *one, *other;

    SSL_free(ssl[0]);
    SSL_free(ssl[1]);
    ssl[0] = SSL_new(client);
    ssl[1] = SSL_new(server);
    check(BIO_new_bio_pair(&one, 1 << 16, &other, 1 << 16) == 1, "there is memory");
    SSL_set_bio(ssl[0], one, one);
    SSL_set_bio(ssl[1], other, other);
    SSL_set_connect_state(ssl[0]);
    SSL_set_accept_state(ssl[1]);
    if (offer != nullptr)
        SSL_set_session(ssl[0], offer);
}

static bool handshake(SSL_SESSION *offer)
{
    int done[2] = { 0, 0 };

    prepare(offer);
    for (int i = 0; i < 10 && done[0] + done[1] < 2; i++)
        for (int side = 0; side < 2; side++)
            if (SSL_do_handshake(ssl[side]) == 1)
                done[side] = 1;
    return done[0] + done[1] == 2;
}

static void expect(const char *from, void (*work)())
{
    static const char *last = "";
    bool caught = false;

    try {
        work();
    } catch (const thrown &error) {
        caught = true;
        check(std::strcmp(error.what(), from) == 0, "it is what was thrown");
    }
    check(caught, "the exception arrives");
    last = from;
    std::printf("%s\n", last);
    std::fflush(stdout);
}

static SSL_SESSION *session;

static SSL_SESSION *with_id(unsigned char fill)
{
    unsigned char id[32];
    SSL_SESSION *made = SSL_SESSION_new();

    std::memset(id, fill, sizeof id);
    SSL_SESSION_set1_id(made, id, sizeof id);
    SSL_SESSION_set_protocol_version(made, TLS1_2_VERSION);
    return made;
}

int main(int, char **argv)
{
    server = SSL_CTX_new(TLS_server_method());
    client = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(server, TLS1_2_VERSION);
    SSL_CTX_set_options(server, SSL_OP_NO_TICKET);
    SSL_CTX_set_session_id_context(server, (const unsigned char *)"throw", 5);
    check(SSL_CTX_use_certificate_file(server, argv[1], SSL_FILETYPE_PEM) == 1, "the certificate is there");
    check(SSL_CTX_use_PrivateKey_file(server, argv[2], SSL_FILETYPE_PEM) == 1, "the key is there");

    for (int round = 0; round < 100; round++) {
        check(handshake(nullptr), "a handshake");
        session = SSL_get1_session(ssl[0]);
        SSL_shutdown(ssl[0]);
        SSL_shutdown(ssl[1]);
        check(handshake(session) && SSL_session_reused(ssl[1]), "a resumption");
        SSL_shutdown(ssl[0]);
        SSL_shutdown(ssl[1]);

        SSL_CTX_sess_set_new_cb(server, on_new);
        expect("new_cb", [] { handshake(nullptr); });
        SSL_CTX_sess_set_new_cb(server, nullptr);

        SSL_CTX_set_generate_session_id(server, (GEN_SESSION_CB)generate);
        expect("generator", [] { handshake(nullptr); });
        SSL_CTX_set_generate_session_id(server, nullptr);

        SSL_CTX_set_info_callback(client, on_info);
        expect("info_cb", [] { prepare(nullptr); SSL_connect(ssl[0]); });
        SSL_CTX_set_info_callback(client, nullptr);

        SSL_CTX_sess_set_remove_cb(server, on_remove);
        expect("remove_cb", [] { SSL_CTX_remove_session(server, session); });
        SSL_CTX_sess_set_remove_cb(server, nullptr);

        SSL_CTX_sess_set_get_cb(server, on_get);
        expect("get_cb", [] { handshake(session); });
        SSL_CTX_sess_set_get_cb(server, nullptr);
        SSL_SESSION_free(session);
    }

    /* Libssl alone goes on holding the context's lock after these. */
    if (argv[3] != nullptr) {
        for (int round = 0; round < 100; round++) {
            for (unsigned char fill = 1; fill <= 50; fill++) {
                SSL_SESSION *made = with_id(fill);

                SSL_CTX_add_session(server, made);
                SSL_SESSION_free(made);
            }
            SSL_CTX_sess_set_remove_cb(server, on_remove);
            expect("remove_cb", [] { SSL_CTX_flush_sessions(server, 0); });
            SSL_CTX_sess_set_remove_cb(server, nullptr);
            SSL_CTX_flush_sessions(server, 0);
            check(SSL_CTX_sess_number(server) == 0, "nothing is left");
        }
    }
    SSL_free(ssl[0]);
    SSL_free(ssl[1]);
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    std::printf("done\n");
    return 0;
}
