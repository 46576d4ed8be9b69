/*
 * Reprise: OpenSSL's session cache as a library of its own. Generated from the Rust sources; do not edit.
 *
 * Link with -lreprise ahead of -lssl -lcrypto. Every function that Reprise answers instead of libssl is declared again,
 * so that the compiler compares the prototypes; the names that OpenSSL has as macros are functions here.
 */

#ifndef REPRISE_H
#define REPRISE_H

/* The version of this header; reprise_version() tells that of the library. */
#define REPRISE_VERSION_MAJOR 0
#define REPRISE_VERSION_MINOR 1
#define REPRISE_VERSION_PATCH 0

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <openssl/ssl.h>

#if OPENSSL_VERSION_NUMBER < 0x30000000L
typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
#endif

#undef SSL_CTX_get_session_cache_mode
#undef SSL_CTX_sess_accept
#undef SSL_CTX_sess_accept_good
#undef SSL_CTX_sess_accept_renegotiate
#undef SSL_CTX_sess_cache_full
#undef SSL_CTX_sess_cb_hits
#undef SSL_CTX_sess_connect
#undef SSL_CTX_sess_connect_good
#undef SSL_CTX_sess_connect_renegotiate
#undef SSL_CTX_sess_get_cache_size
#undef SSL_CTX_sess_hits
#undef SSL_CTX_sess_misses
#undef SSL_CTX_sess_number
#undef SSL_CTX_sess_set_cache_size
#undef SSL_CTX_sess_timeouts
#undef SSL_CTX_set_session_cache_mode
#undef SSL_get0_session

/* OpenSSL's header declares most of these functions, too. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
#endif

/* Do what the manual pages promise. */
#define REPRISE_SEMANTICS_DOCUMENTED 0

/* Do what the loaded libssl does where it differs from the manual pages. */
#define REPRISE_SEMANTICS_STOCK 1

/* Tickets as the program asks libssl for them. */
#define REPRISE_TICKETS_AS_IS 0

/* Only tickets that name a session in the cache. */
#define REPRISE_TICKETS_STATEFUL 1

/* The internal cache as the program's session cache mode has it. */
#define REPRISE_INTERNAL_AS_IS 0

/* Servers use it even if that switches it off. */
#define REPRISE_INTERNAL_ALWAYS 1

/* A connection that ends without close_notify costs the session, as libssl has it. */
#define REPRISE_UNCLEAN_DROP 0

/* It does not; a fatal alert still does. */
#define REPRISE_UNCLEAN_KEEP 1

/* The version of the struct that follows. */
#define REPRISE_STATS_VERSION 1

/* What happened in the cache of an SSL_CTX since it was made. Later versions only add fields at the end. */
typedef struct {
  /* REPRISE_STATS_VERSION of the library. */
  uint32_t version;
  /* The bytes that the library filled in. */
  uint32_t size;
  /* Sessions in the cache now. */
  uint64_t sessions;
  /* Sessions that entered the cache. */
  uint64_t stored;
  /* Left because another object with the same id came. */
  uint64_t replaced;
  /* Left because the cache was full. */
  uint64_t evicted;
  /* Cleared on their own after they had expired. */
  uint64_t expired;
  /* Left through SSL_CTX_flush_sessions. */
  uint64_t flushed;
  /* Left through SSL_CTX_remove_session, called by the program or by libssl. */
  uint64_t removed;
  /* Left because new_cb returned 0. */
  uint64_t rejected;
  /* Left to the one connection that may use them for early data. */
  uint64_t taken;
  /* Removals of sessions that were not cached. */
  uint64_t condemned;
  /* A server asked the cache for a session and had it. */
  uint64_t hits;
  /* A server asked the cache for a session that was not there. */
  uint64_t misses;
  /* A server asked for a session that is there but marked not resumable. */
  uint64_t unusable;
  /* get_cb had the session. */
  uint64_t external_hits;
  /* get_cb had none. */
  uint64_t external_misses;
  /* get_cb returned one that could not be used: another id or version, incomplete, marked not resumable. */
  uint64_t external_refused;
  /* Tickets for early data that were shown again after they had been accepted. */
  uint64_t replays;
  /* Sessions that libssl negotiated and handed to the cache. */
  uint64_t negotiated;
  /* Sessions that could not be stored for want of memory. */
  uint64_t store_errors;
} reprise_stats;

#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */

/*
 * Sets the callback for each session that was negotiated. It is given a reference of its own: returning 1 keeps it,
 * returning 0 gives it back, and the session leaves the internal cache. NULL sets none. See SSL_CTX_sess_set_get_cb(3).
 */
void SSL_CTX_sess_set_new_cb(SSL_CTX *ctx, int (*new_session_cb)(SSL *ssl, SSL_SESSION *sess));

/*
 * Sets the callback for each session that leaves the internal cache or that libssl condemns. Its result does not exist;
 * the session stays the library's. See SSL_CTX_sess_set_get_cb(3).
 */
void SSL_CTX_sess_set_remove_cb(SSL_CTX *ctx, void (*remove_session_cb)(SSL_CTX *ctx, SSL_SESSION *sess));

/*
 * Sets the callback that a server asks for a session which the internal cache does not have. `*copy` is 1 before the
 * call; a callback that sets it to 0 passes its own reference on. See SSL_CTX_sess_set_get_cb(3).
 */
void SSL_CTX_sess_set_get_cb(SSL_CTX *ctx, SSL_SESSION *(*get_session_cb)(SSL *ssl,
                                                                          const unsigned char *data,
                                                                          int len,
                                                                          int *copy));

/* The callback that was set, NULL if none is. See SSL_CTX_sess_set_get_cb(3). */
int (*SSL_CTX_sess_get_new_cb(SSL_CTX *ctx))(SSL *ssl, SSL_SESSION *sess);

/* The callback that was set, NULL if none is. See SSL_CTX_sess_set_get_cb(3). */
void (*SSL_CTX_sess_get_remove_cb(SSL_CTX *ctx))(SSL_CTX *ctx, SSL_SESSION *sess);

/* The callback that was set, NULL if none is. See SSL_CTX_sess_set_get_cb(3). */
SSL_SESSION *(*SSL_CTX_sess_get_get_cb(SSL_CTX *ctx))(SSL *ssl, const unsigned char *data, int len, int *copy);

/*
 * The session of a connection, without a reference: it may go with the next operation. NULL where there is none. See
 * SSL_get_session(3).
 */
SSL_SESSION *SSL_get_session(const SSL *ssl);

/* The same as SSL_get_session. See SSL_get_session(3). */
SSL_SESSION *SSL_get0_session(const SSL *ssl);

/*
 * The session of a connection with a reference for the caller, who frees it. NULL where there is none. See
 * SSL_get_session(3).
 */
SSL_SESSION *SSL_get1_session(SSL *ssl);

/*
 * The certificates that the peer showed, on a server without the peer's own. After a resumption they are those of the
 * full handshake, also where the session came from a cache that others use. No reference is taken: they go with the
 * session. NULL where the peer showed none.
 */
STACK_OF(X509) *SSL_get_peer_cert_chain(const SSL *ssl);

/*
 * Moves a connection to another SSL_CTX, as a servername callback does. Sessions go on being cached in the one that the
 * connection was made with. Returns the connection's SSL_CTX, NULL on failure.
 */
SSL_CTX *SSL_set_SSL_CTX(SSL *ssl, SSL_CTX *ctx);

/* Sets the callback that chooses the certificate of one connection: see SSL_CTX_set_cert_cb. */
void SSL_set_cert_cb(SSL *s, int (*cb)(SSL *ssl, void *arg), void *arg);

/*
 * Whether a session with this id, of the connection's protocol version, is in the internal cache: 1 or 0. See
 * SSL_CTX_set_generate_session_id(3).
 */
int SSL_has_matching_session_id(const SSL *ssl, const unsigned char *id, unsigned int id_len);

/*
 * Sets the function that makes the session ids of a context's servers, NULL for libssl's own. An id that is in the
 * internal cache fails the handshake. Returns 1; 0 for NULL. See SSL_CTX_set_generate_session_id(3).
 */
int SSL_CTX_set_generate_session_id(SSL_CTX *ctx, GEN_SESSION_CB cb);

/* The same for one connection, whose function wins over its context's. */
int SSL_set_generate_session_id(SSL *ssl, GEN_SESSION_CB cb);

/* Frees a reference to a connection. Under REPRISE_UNCLEAN=keep the session of one that was not shut down stays. */
void SSL_free(SSL *ssl);

/* Makes a connection ready to be used again. As to its session, see SSL_free. */
int SSL_clear(SSL *s);

/*
 * Makes a connection a client's, which has tickets as its program wants them, whatever REPRISE_TICKETS says of servers.
 */
void SSL_set_connect_state(SSL *s);

/* Starts a client's handshake: see SSL_set_connect_state. */
int SSL_connect(SSL *ssl);

/* Makes an SSL_CTX whose session cache Reprise serves. NULL on failure, with libssl's error on the queue. */
SSL_CTX *SSL_CTX_new(const SSL_METHOD *method);

/* The same in a library context and with a property query (OpenSSL has it since 3.0). */
SSL_CTX *SSL_CTX_new_ex(OSSL_LIB_CTX *libctx, const char *propq, const SSL_METHOD *method);

/*
 * Makes a connection. Here expired sessions are cleared a few at a time: a connection that is resumed by a ticket, and
 * a client's, may not touch the cache at all. NULL on failure, with libssl's error on the queue. See
 * SSL_CTX_set_session_cache_mode(3).
 */
SSL *SSL_new(SSL_CTX *ctx);

/*
 * Says which sessions may be resumed in `ctx` (SSL_CTX_set_session_id_context(3)). In a cache that others use as well
 * they do not cross to contexts where it is another one. Returns 1, or 0 with an error on the queue.
 */
int SSL_CTX_set_session_id_context(SSL_CTX *ctx, const unsigned char *sid_ctx, unsigned int sid_ctx_len);

/*
 * Sets how the peers of a context's connections are verified (SSL_CTX_set_cert_verify_callback(3)). In a cache that
 * others use as well, sessions do not cross to contexts where that is done in another way.
 */
void SSL_CTX_set_cert_verify_callback(SSL_CTX *ctx, int (*cb)(X509_STORE_CTX *store, void *arg), void *arg);

/*
 * Sets a callback of a context by its number: of all there are, SSL_CTX_set_tlsext_servername_callback(3), a macro, is
 * noted here. Where a cache is shared, what that callback does with a connection tells which sessions are for it. NULL:
 * 0.
 */
long SSL_CTX_callback_ctrl(SSL_CTX *ctx,
                           int cmd,
                           void (*fp)(void));

/*
 * Sets the callback that chooses a connection's certificate (SSL_CTX_set_cert_cb(3)). As to sessions in a shared cache,
 * see SSL_CTX_callback_ctrl.
 */
void SSL_CTX_set_cert_cb(SSL_CTX *c,
                         int (*cb)(SSL *ssl, void *arg),
                         void *arg);

/*
 * SSL_CTX_ctrl(3): the cache mode (44, 45), the cache size (42, 43) and the counters (20 to 31) are answered here,
 * everything else by libssl.
 */
long SSL_CTX_ctrl(SSL_CTX *ctx, int cmd, long larg, void *parg);

/*
 * Sets the cache mode, all bits as given, and returns the previous one. NULL: 0. See SSL_CTX_set_session_cache_mode(3).
 */
long SSL_CTX_set_session_cache_mode(SSL_CTX *ctx, long mode);

/* The cache mode; SSL_SESS_CACHE_SERVER unless it was set. NULL: 0. See SSL_CTX_set_session_cache_mode(3). */
long SSL_CTX_get_session_cache_mode(SSL_CTX *ctx);

/*
 * Sets how many sessions the internal cache holds, 0 for no limit, and returns the previous size. NULL and a negative
 * size: 0, and nothing changes. See SSL_CTX_sess_set_cache_size(3).
 */
long SSL_CTX_sess_set_cache_size(SSL_CTX *ctx, long t);

/*
 * How many sessions the internal cache holds at most, 0 for no limit; 20480 unless it was set. NULL: 0. See
 * SSL_CTX_sess_set_cache_size(3).
 */
long SSL_CTX_sess_get_cache_size(SSL_CTX *ctx);

/* Sessions in the internal cache now. NULL: 0, here and below. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_number(SSL_CTX *ctx);

/* Handshakes begun as a client. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_connect(SSL_CTX *ctx);

/* Handshakes finished as a client. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_connect_good(SSL_CTX *ctx);

/* Renegotiations begun as a client. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_connect_renegotiate(SSL_CTX *ctx);

/* Handshakes begun as a server. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_accept(SSL_CTX *ctx);

/* Handshakes finished as a server. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_accept_good(SSL_CTX *ctx);

/* Renegotiations begun as a server. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_accept_renegotiate(SSL_CTX *ctx);

/* Sessions reused. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_hits(SSL_CTX *ctx);

/* Sessions that get_cb had. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_cb_hits(SSL_CTX *ctx);

/* Sessions that were proposed by clients and not found in the internal cache. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_misses(SSL_CTX *ctx);

/* Sessions that were proposed by clients and had expired. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_timeouts(SSL_CTX *ctx);

/* Sessions that left because the cache was full. See SSL_CTX_sess_number(3). */
long SSL_CTX_sess_cache_full(SSL_CTX *ctx);

/*
 * Puts `session` into the internal cache, which takes one reference. Another object with its id leaves. Works under
 * NO_INTERNAL_STORE and with caching off, too.
 *
 * Returns 1, or 0 if this very object is cached already, if it has no id, or if there is no memory for it. See
 * SSL_CTX_add_session(3).
 */
int SSL_CTX_add_session(SSL_CTX *ctx, SSL_SESSION *session);

/*
 * Removes the session with the id of `session` from the internal cache, which frees its reference, marks it and
 * `session` not resumable and calls remove_cb.
 *
 * Returns 1, or 0 if no such session is cached; NULL and a session without an id are not. See SSL_CTX_add_session(3)
 * and SSL_CTX_sess_set_get_cb(3).
 */
int SSL_CTX_remove_session(SSL_CTX *ctx, SSL_SESSION *session);

/*
 * Removes every session that has expired at `tm`, in seconds since the epoch, all of them for 0. Each is marked not
 * resumable, remove_cb is called for it, and the cache's reference is freed. See SSL_CTX_flush_sessions(3).
 */
void SSL_CTX_flush_sessions(SSL_CTX *ctx, long tm);

/* SSL_CTX_flush_sessions with a time_t, for every libssl (OpenSSL has it since 3.4). */
void SSL_CTX_flush_sessions_ex(SSL_CTX *ctx, time_t tm);

/*
 * The sessions in the internal cache as an LHASH. It is a picture of the cache as it is now: it does not change with
 * the cache, and is good until the next call for this `ctx` or the end of `ctx`.
 */
LHASH_OF(SSL_SESSION) *SSL_CTX_sessions(SSL_CTX *ctx);

/* The version of the library, "MAJOR.MINOR.PATCH". Static. */
const char *reprise_version(void);

/*
 * Chooses REPRISE_SEMANTICS_DOCUMENTED or REPRISE_SEMANTICS_STOCK for one SSL_CTX, best before it is used; the
 * environment variable REPRISE_SEMANTICS chooses for all. Returns 1, or 0 with an error on the queue.
 */
int reprise_ctx_set_semantics(SSL_CTX *ctx, int semantics);

/* The semantics of an SSL_CTX, or -1 with an error on the queue. */
int reprise_ctx_get_semantics(SSL_CTX *ctx);

/*
 * Chooses where the sessions of one SSL_CTX are cached, best before it is used: "memory:", in this process, or
 * "shm:NAME?size=64M", in memory that all processes of this user share which name it. The environment variable
 * REPRISE_CACHE chooses for all contexts. What is cached in this process moves along. Returns 1, or 0 with an error on
 * the queue, and then nothing has changed.
 */
int reprise_ctx_set_cache(SSL_CTX *ctx, const char *url);

/*
 * Chooses REPRISE_TICKETS_AS_IS or REPRISE_TICKETS_STATEFUL for the servers of one SSL_CTX. Stateful tickets only name
 * a session in the cache: it can be revoked, and whoever shares the cache knows them without ticket keys. The
 * environment variable REPRISE_TICKETS chooses for all contexts. Returns 1, or 0 with an error on the queue.
 */
int reprise_ctx_set_tickets(SSL_CTX *ctx,
                            int tickets);

/*
 * Chooses REPRISE_INTERNAL_AS_IS or REPRISE_INTERNAL_ALWAYS for the servers of one SSL_CTX: whether the internal cache
 * is used even under SSL_SESS_CACHE_OFF and SSL_SESS_CACHE_NO_INTERNAL. The environment variable REPRISE_INTERNAL
 * chooses for all contexts, for programs that cannot be told otherwise. Returns 1, or 0 with an error on the queue.
 */
int reprise_ctx_set_internal(SSL_CTX *ctx,
                             int internal);

/*
 * Chooses REPRISE_UNCLEAN_DROP or REPRISE_UNCLEAN_KEEP for the servers of one SSL_CTX: whether a session stays whose
 * connection ends without close_notify, as most of the web's do. The environment variable REPRISE_UNCLEAN chooses for
 * all contexts. Returns 1, or 0 with an error on the queue.
 */
int reprise_ctx_set_unclean(SSL_CTX *ctx, int unclean);

/*
 * Sets the most seconds for which a session of an SSL_CTX is resumed after its full handshake, however often it was
 * renewed; 0 for no limit. The environment variable REPRISE_MAX_AGE sets it for all contexts. Returns 1, or 0 with an
 * error on the queue.
 */
int reprise_ctx_set_max_age(SSL_CTX *ctx,
                            uint32_t seconds);

/*
 * Fills in `*stats`, which has `size` bytes: pass sizeof(reprise_stats). A program made for an older version gets the
 * fields it knows. Returns 1, or 0 with an error on the queue.
 */
int reprise_ctx_stats(SSL_CTX *ctx, reprise_stats *stats, size_t size);

/* Sets when `s` was established, in seconds since the epoch, and returns `t`; 0 for NULL. */
long SSL_SESSION_set_time(SSL_SESSION *s, long t);

/* SSL_SESSION_set_time with a time_t, for every libssl (OpenSSL has it since 3.3). */
time_t SSL_SESSION_set_time_ex(SSL_SESSION *s, time_t t);

/* Sets how many seconds after its time `s` expires. Returns 1; 0 for NULL. */
long SSL_SESSION_set_timeout(SSL_SESSION *s, long t);

#ifdef __cplusplus
}  /* extern "C" */
#endif  /* __cplusplus */

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif  /* REPRISE_H */
