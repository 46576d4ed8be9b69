/*
 * What every test of c_tests/ stands on: contexts with a fresh certificate, whole TLS handshakes in memory,
 * a count of every SSL_SESSION alive, and observe(), which checks a rule and records what was seen.
 *
 * The tests hold no expectation of stock libssl: patch releases differ. Stock runs first and records what it does,
 * and Reprise with stock semantics must then do the same, on whatever libssl is loaded.
 *
 * A test program speaks OpenSSL's public API only. The Makefile links it twice, with libssl alone and with
 * libreprise ahead of libssl; the same code runs on both sides.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* The tests call by name what 3.4 and later deprecate: SSL_CTX_flush_sessions, SSL_SESSION_get_time and set_time. */
#define OPENSSL_API_COMPAT 30000
#include <openssl/ssl.h>

/* Which library answers, and by which semantics. */
enum subject { STOCK, DOCUMENTED, STOCK_LIKE };
enum subject subject(void);       /* from reprise_version() being in the process and REPRISE_SEMANTICS */
/* Whether the internal caches are outside the process (REPRISE_CACHE), where objects come back as equal copies: in shared
 * memory or in Redis. Each context of server_ctx and client_ctx still has a cache of its own. */
int shared(void);
int in_redis(void);

/*
 * `observed` was seen for `rule` ("CB3"); `what` names the situation in a few words and is unique within the rule.
 * It is recorded as one line in the file $CONFORMANCE (appended; tab separated: rule, what, observed), from which
 * docs/conformance.md is made. The test fails unless it is what is expected of the subject:
 * - of stock libssl, anything;
 * - of Reprise with documented semantics, `documented`;
 * - of Reprise with stock semantics, what stock recorded in the file $CONFORMANCE_STOCK. Where stock crashed,
 *   deadlocked or let a call fail, and where it recorded nothing, `documented`.
 */
void observe(const char *rule, const char *what, const char *observed, const char *documented);
/* The same for what Reprise does on purpose with both semantics, whatever stock does. */
void observe_deviation(const char *rule, const char *what, const char *observed, const char *expected);
/* observe() for numbers and for truths. */
void observe_int(const char *rule, const char *what, long observed, long documented);
void observe_bool(const char *rule, const char *what, int observed, int documented); /* "yes" / "no" */
const char *number(long n);       /* a decimal, good until 8 further calls */

/* Sessions alive in the process (counted by SSL_SESSION ex_data callbacks), and the test's setup and teardown: */
int sessions_alive(void);
/* setup notes the count; teardown fails the test unless it is back: every session freed, none twice. */
int references_setup(void **state);
int references_teardown(void **state);
#define RULE_TEST(f) cmocka_unit_test_setup_teardown(f, references_setup, references_teardown)

/*
 * A test of what holds where the cache keeps the program's own objects, and keeps them for one SSL_CTX alone: left out
 * where caches are shared. What holds there instead is in shared.c.
 */
#define OBJECT_TEST(f) { #f, shared() ? left_out : f, references_setup, references_teardown, NULL }
void left_out(void **state);

/*
 * A test of what holds where the cache knows each session it has: it counts them, has a size limit, clears those that
 * have expired, and shows them to remove_cb. Left out in Redis; what holds there instead is in redis.c.
 */
#define COUNTED_TEST(f) { #f, in_redis() ? left_out : f, references_setup, references_teardown, NULL }
/* Whether so many sessions are in the cache, which is not asked in Redis. */
#define numbers(ctx, number) (in_redis() || SSL_CTX_sess_number(ctx) == (number))
#define assert_number(ctx, number) \
    do { if (!in_redis()) assert_int_equal(SSL_CTX_sess_number(ctx), number); } while (0)
#define observe_number(rule, what, ctx, documented) \
    do { if (!in_redis()) observe_int(rule, what, SSL_CTX_sess_number(ctx), documented); } while (0)

/* Contexts. `version` is TLS1_2_VERSION, TLS1_3_VERSION or DTLS1_2_VERSION: exactly that one. The server has a
 * certificate (one key for the process, made at first use) and the session id context "c_tests". */
SSL_CTX *server_ctx(int version);
SSL_CTX *client_ctx(int version);
/* The same for a method of any versions: QUIC's. */
SSL_CTX *server_ctx_with(const SSL_METHOD *method);
SSL_CTX *client_ctx_with(const SSL_METHOD *method);

/* A connection in memory (BIO pairs). */
typedef struct { SSL *client, *server; } pair;
/* Handshakes to the end, TLS 1.3 tickets delivered, offering `offer` (may be NULL). Fails the test if it fails. */
pair tls_connect(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer);
/* The same, but returns 0 when the handshake fails (the pair is freed then), 1 when it succeeds. */
int tls_try(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer, pair *out);
/* Connected SSLs that the caller made and set up (NULL SSL: made here), handshake not begun; then drive it. */
pair tls_prepare(SSL_CTX *client, SSL_CTX *server);
int tls_drive(pair *p);           /* 1 both done, 0 failed; leaves the pair in place */
int tls_resumed(const pair *p);   /* both sides agree, or the test fails */
void tls_close(pair *p);          /* SSL_shutdown on both sides, then free: a good end, sessions stay */
void tls_drop(pair *p);           /* SSL_free without SSL_shutdown: libssl condemns the sessions (GET5) */
int tls_echo(pair *p);            /* a few bytes each way; 1 when they arrive */

/* A full handshake closed well; returns the client's resumable session, one reference for the caller. */
SSL_SESSION *tls_session(SSL_CTX *client, SSL_CTX *server);
/* Connects offering `offer`, closes well; 1 when it was resumed. */
int tls_resumes(SSL_CTX *client, SSL_CTX *server, SSL_SESSION *offer);

/* A session made by hand, no handshake: id of 32 bytes of `fill`, that version, a cipher and a master key,
 * time now, timeout 300. One reference for the caller. */
SSL_SESSION *made_session(int version, unsigned char fill);

/* Is the session with this id in ctx's internal cache? Asked by SSL_has_matching_session_id. */
int in_cache(SSL_CTX *ctx, int version, const SSL_SESSION *session);

/* Whether a cache of this subject holds one session less than its size (SIZE1), which releases of libssl differ in. */
int holds_one_less(void);

/* SSL_CTX_add_session, where other threads or processes are at work: one that must not wait long for them may refuse a
 * session for a while in a shared cache, on a machine that is very busy. */
int added(SSL_CTX *ctx, SSL_SESSION *session);

/* Whether the program runs under valgrind (REPRISE_SLOWLY), where a few rounds have to do. */
int slowly(void);

/* How many rounds these are under valgrind: a tenth, and one at least. Elsewhere all. */
int fewer(int rounds);

/* A key and a self-signed certificate for it that no other context has. The caller's own. */
X509 *other_certificate(EVP_PKEY **key);
/* Adds a common name to its subject; it is to be signed again. */
void add_common_name(X509 *certificate, const char *name);

/* A ticket, and who is shown it. */
struct ticket_race {
    SSL_CTX *server, *client;
    SSL_SESSION *ticket;
    int start[2];                 /* a pipe; its end is the start */
};
/* Offers the ticket with early data; whether that was accepted. */
int race_ticket(const struct ticket_race *racer);
/* The same after the start, in a forked child. */
int wait_and_race_ticket(const struct ticket_race *racer);

/* Whether the errors on the queue, which is empty then, are Reprise's and say `part`, and nothing of a password ("hunter2"). */
int errors_say(const char *part);

/* Runs `f(arg)` in a forked child for at most `seconds`: "returns N", "deadlocks", or "crashes" (killed by a signal). */
const char *in_child(int (*f)(void *), void *arg, unsigned seconds);

/*
 * cmocka's main with the name of the manual page; returns what main returns. Notes in $CONFORMANCE that the page began
 * and which tests finished. A test that stock did not finish, because it failed or crashed there, is left out on Reprise
 * with stock semantics: stock did not get to what it would be compared with.
 */
#define RUN_PAGE(page, tests) run_page(page, tests, sizeof(tests) / sizeof(*(tests)))
int run_page(const char *page, const struct CMUnitTest *tests, size_t count);

/* A test that leaves itself out has finished. */
#undef skip
#define skip() (test_finished(), _skip(__FILE__, __LINE__))
void test_finished(void);

#endif
