#!/bin/sh
# Looks for data races with ThreadSanitizer: Reprise, Rust's standard library and the C programs are instrumented and
# share one runtime, Rust's. libssl and libcrypto are the installed ones, not instrumented: c_tests/tsan.supp.
# Needs clang and a nightly Rust with rust-src. Builds into target/tsan.
#
# What it finds is plain accesses that race. It tries no other orders of atomic accesses, knows no fences, and does not
# see memory of libssl used after it was freed: valgrind does (make check-valgrind).
set -eu
cd "$(dirname "$0")/.."

target=x86_64-unknown-linux-gnu
out=$PWD/target/tsan
library=$out/$target/release

fail() {
    echo "check_threads: $*" >&2
    exit 1
}
run() { # [NAME=VALUE]... COMMAND...
    echo "+ $*"
    env "$@"
}
cargo_tsan() {
    run RUSTFLAGS=-Zsanitizer=thread CARGO_TARGET_DIR="$out" \
        cargo +nightly "$@" --release --locked -Zbuild-std --target $target
}
compile() { # OBJECT ARGUMENT...
    object=$1
    shift
    run clang -std=c11 -D_GNU_SOURCE= -Wall -Wextra -Wpedantic -Werror -O1 -g \
        -DWITH_REPRISE -Iinclude -c "$@" -o "$object"
}
# The library finds the runtime in the program, which therefore has all of it and exports it.
link() { # PROGRAM OBJECT...
    program=$1
    shift
    run clang -rdynamic "$@" -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive -o "$program" \
        -lcmocka -L"$library" -Wl,-rpath,"$library" -lreprise -lssl -lcrypto -lpthread -ldl -lm -lrt
}

command -v clang >/dev/null || fail 'clang is missing: apt-get install clang'
sysroot=$(rustc +nightly --print sysroot) || fail 'a nightly Rust is missing: rustup toolchain install nightly'
[ -e "$sysroot/lib/rustlib/src" ] || fail 'rust-src is missing: rustup +nightly component add rust-src'
runtime=$(ls "$sysroot/lib/rustlib/$target/lib"/librustc*_rt.tsan.a) || fail 'this Rust has no ThreadSanitizer'
export TSAN_OPTIONS="suppressions=$PWD/c_tests/tsan.supp"

cargo_tsan build
ln -sf libreprise.so "$library/libreprise.so.0"
nm -D "$library/libreprise.so" | grep -q __tsan_write || fail 'the library is not instrumented'

# libssl's reference counts are not seen, so that the last reference's free would look like a race with whatever other
# threads did while they had theirs. Therefore libssl gets memory that ThreadSanitizer does not know, before any
# constructor runs, and before the runtime is there: this file is not instrumented.
compile "$out/memory.o" -x c - <<'C'
#include <openssl/crypto.h>
#include <stdlib.h>
extern void *__libc_malloc(size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
static void *get(size_t size, const char *file, int line) { (void)file, (void)line; return __libc_malloc(size); }
static void *resize(void *old, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return __libc_realloc(old, size);
}
static void give(void *memory, const char *file, int line) { (void)file, (void)line; __libc_free(memory); }
static void begin(void)
{
    if (!CRYPTO_set_mem_functions(get, resize, give))
        abort();
}
__attribute__((used, section(".preinit_array"))) static void (*const before_all)(void) = begin;
C

# First of all, that a race is reported in such a program.
compile "$out/racy.o" -fsanitize=thread -x c - <<'C'
#include <pthread.h>
static int shared;
static void *count(void *unused) { shared++; return unused; }
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, count, NULL);
    shared++;
    return pthread_join(thread, NULL);
}
C
link "$out/racy" "$out/racy.o" "$out/memory.o"
if run "$out/racy" >"$out/racy.log" 2>&1 || ! grep -q 'WARNING: ThreadSanitizer: data race' "$out/racy.log"; then
    cat "$out/racy.log"
    fail 'a race was not seen'
fi

compile "$out/harness.o" -fsanitize=thread c_tests/harness.c
for page in threads soak; do
    compile "$out/$page.o" -fsanitize=thread c_tests/$page.c
    link "$out/$page" "$out/$page.o" "$out/harness.o" "$out/memory.o"
    for semantics in documented stock; do
        run REPRISE_SEMANTICS=$semantics CONFORMANCE_STOCK=/dev/null "$out/$page" || fail "$page, $semantics"
    done
done
cargo_tsan test --test cache_threads
echo "check_threads: no races"
