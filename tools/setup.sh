#!/bin/sh
# Installs what building needs and is missing, with --check also what the tests do: the programs that run under Reprise.
# Who is not root is told the one line to run.
set -eu

missing=
need() { # PACKAGE TEST...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { for folder in /usr/include /usr/include/x86_64-linux-gnu /usr/include/aarch64-linux-gnu /usr/local/include; do
    [ -e "$folder/$1" ] && return 0; done; return 1; }
redis() { command -v redis-server || command -v valkey-server; }
postgresql() { ls /usr/lib/postgresql/*/bin/postgres; }
libclang() { ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so*; }

need gcc            command -v cc
need g++            command -v c++
need pkg-config     command -v pkg-config
need libssl-dev     header openssl/ssl.h
need libclang-dev   libclang
need openssl        command -v openssl
need python3        test -x /usr/bin/python3
need binutils       command -v readelf
if [ "${1:-}" = --check ]; then
    need libcmocka-dev         header cmocka.h
    need libsqlite3-dev        header sqlite3.h
    need valgrind              command -v valgrind
    need strace                command -v strace
    need util-linux            command -v unshare
    need nginx-light           command -v nginx
    need apache2-bin           command -v /usr/sbin/apache2
    need haproxy               command -v /usr/sbin/haproxy
    need stunnel4              command -v stunnel
    need postgresql            postgresql
    need redis-server          command -v redis-server
    need redis-tools           command -v redis-cli
    need curl                  command -v curl
    need libpython3-testsuite  /usr/bin/python3 -c 'import test.test_ssl'
    need php-cli               command -v php
    need redis-server          redis
    need libio-socket-ssl-perl perl -MIO::Socket::SSL -e 1
fi

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086 # a list of words
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "Something is missing. Run: sudo apt-get install$missing" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null || {
    echo "Rust 1.88 or newer is missing. See https://rustup.rs, or run: sudo apt-get install rustup && rustup default stable" >&2
    exit 1
}
