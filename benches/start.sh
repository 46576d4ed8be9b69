#!/bin/sh
# What the preload costs a program that does no TLS: the time from starting it to its end, with the preload and without,
# in turns. Prints the median of each, the ratio, and what the loader has to do for it.
#
# usage: benches/start.sh [ROUNDS]
set -eu

rounds=${1:-1000}
library=${REPRISE_LIBRARY:-$PWD/target/release/libreprise.so}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/start.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double start(char **command, const char *library, posix_spawn_file_actions_t *quiet)
{
    double before;
    pid_t child;
    int status;

    library ? setenv("LD_PRELOAD", library, 1) : unsetenv("LD_PRELOAD");
    before = now_us();
    if (posix_spawnp(&child, command[0], quiet, NULL, command, environ) != 0 || waitpid(child, &status, 0) != child)
        exit(1);
    return now_us() - before;
}

int main(int argc, char **argv)
{
    int rounds = atoi(argv[1]);
    double *stock = calloc((size_t)rounds, sizeof *stock), *with = calloc((size_t)rounds, sizeof *with);
    posix_spawn_file_actions_t quiet;

    (void)argc;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
    for (int i = 0; i < rounds; i++) {
        if (i % 2)
            stock[i] = start(argv + 3, NULL, &quiet);
        with[i] = start(argv + 3, argv[2], &quiet);
        if (i % 2 == 0)
            stock[i] = start(argv + 3, NULL, &quiet);
    }
    qsort(stock, (size_t)rounds, sizeof *stock, ascending);
    qsort(with, (size_t)rounds, sizeof *with, ascending);
    printf("%8.0f us  %8.0f us  %+6.0f us  %5.2f  ", stock[rounds / 2], with[rounds / 2],
           with[rounds / 2] - stock[rounds / 2], with[rounds / 2] / stock[rounds / 2]);
    return 0;
}
C
${CC:-cc} -O2 -o "$work/start" "$work/start.c"

echo "      stock    preloaded  difference  ratio"
one() {
    "$work/start" "$1" "$library" "$2" ${3:+"$3"} ${4:+"$4"}
    echo "$2 ${3:-} ${4:-}"
}
one "$rounds" true
one "$rounds" ls /
one "$rounds" sh -c 'for i in 1 2 3 4 5 6 7 8; do (:); done'
one "$rounds" sh -c 'for i in 1 2 3 4 5 6 7 8; do /bin/true; done'
one $((rounds / 10 + 1)) /usr/bin/python3 -c pass

echo
echo "needed: $(readelf -dW "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')"
readelf -rW "$library" | awk '/R_[A-Z0-9_]*/ { n[$3 ~ /RELATIVE/ ? "relative" : "symbol"]++ }
    END { print "relocations: " n["relative"] " relative, " n["symbol"] " of a symbol" }'
readelf -lW "$library" | awk '/LOAD/ { size = $6; if ($7 ~ /W/ || $8 ~ /W/) print "writable segment: " size " bytes" }'
