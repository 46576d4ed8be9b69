/* A session in the cache of a context, which is that of Reprise: stock libssl has no reprise_ctx_stats. */
#include <stdio.h>
#include <reprise.h> /* includes <openssl/ssl.h> */

int main(void)
{
    static const unsigned char id[SSL_MAX_SSL_SESSION_ID_LENGTH] = "smoke";
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL_SESSION *session = SSL_SESSION_new();
    reprise_stats stats = {0};

    if (ctx == NULL || session == NULL || SSL_SESSION_set1_id(session, id, sizeof id) != 1 ||
        SSL_CTX_add_session(ctx, session) != 1 || reprise_ctx_stats(ctx, &stats, sizeof stats) != 1)
        return 1;
    printf("Reprise %s, %lu session cached\n", reprise_version(), (unsigned long)stats.sessions);
    SSL_SESSION_free(session);
    SSL_CTX_free(ctx);
    return 0;
}
