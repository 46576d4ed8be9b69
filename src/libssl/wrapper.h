/* What bindgen reads: the types and constants of libssl that Reprise names. */
#include <openssl/err.h>
#include <openssl/ssl.h>

/* Macros with casts, which bindgen cannot evaluate, as enumerators. */
enum reprise_constants {
    OP_NO_TICKET = SSL_OP_NO_TICKET,
    OP_NO_ANTI_REPLAY = SSL_OP_NO_ANTI_REPLAY,
};
