#!/bin/sh
# Names the packages that a job needs and this machine lacks, and with --install installs them.
#
#   usage: setup.sh build|demo|check [--install]
#
#   build   compiles and installs Reprise
#   demo    runs `make demo` as well
#   check   runs the tests as well: the programs that run under Reprise, and the linters
#
# A package is missing when what the job uses of it is missing: a program, a header, a module. Only root can install;
# everybody else is told the one line to run. Exit status: 0 when nothing is missing, else 1.
set -eu

job=${1:-build} install=${2:-}
case $job:$install in
    build: | demo: | check: | build:--install | demo:--install | check:--install) ;;
    *)
        echo "usage: $0 build|demo|check [--install]" >&2
        exit 2
        ;;
esac
root=no
[ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || root=yes

missing=
need() { # PACKAGE TEST...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
program() { command -v "$1" || command -v "/usr/sbin/$1"; }
header() {
    for folder in /usr/include /usr/include/*-linux-gnu /usr/local/include; do
        [ ! -e "$folder/$1" ] || return 0
    done
    return 1
}
exists() { # FILE...: whether one of what a pattern stands for is there
    for file; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}
# bindgen loads the C interface of Clang and reads the headers that come with the compiler. The C++ interface
# (libclang-cpp.so), which many programs bring along, is of no use to it.
libclang() {
    # LIBCLANG_PATH tells bindgen the folder, or the file itself.
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        [ -f "$LIBCLANG_PATH" ] || exists "$LIBCLANG_PATH"/libclang.so* "$LIBCLANG_PATH"/libclang-[0-9]*.so*
        return
    fi
    exists /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* \
        /usr/lib/*/libclang.so* /usr/lib/*/libclang-[0-9]*.so* /usr/lib64/libclang.so* /usr/lib/libclang.so* &&
        exists /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h
}
cmocka() { header cmocka.h; }
# CPython's own tests of its ssl module are in a package that is named after the version.
python_tests() { /usr/bin/python3 -c 'import test.test_ssl'; }
python_tests_package() {
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        version=$(apt-cache show python3 2>/dev/null | sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
    # shellcheck disable=SC1091 # it is the machine's
    case ${version:-$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}")} in
        bookworm) version=3.11 ;;
        trixie) version=3.13 ;;
    esac
    # Where nothing tells the version, the package comes in a second round, when Python is there.
    [ -z "$version" ] || echo "libpython$version-testsuite"
}
# The tests of caches in Redis take Redis or Valkey, a server with its client.
redis() {
    { program redis-server && program redis-cli; } || { program valkey-server && program valkey-cli; }
}

look() {
    missing=
    need gcc            program cc
    need libc6-dev      header stdlib.h
    need g++            program c++
    need make           program make
    need pkg-config     program pkg-config
    need libssl-dev     header openssl/ssl.h
    need libclang-dev   libclang
    need binutils       program readelf
    [ "$job" != build ] || return 0

    need openssl        program openssl
    need python3        test -x /usr/bin/python3
    [ "$job" != demo ] || return 0

    need libcmocka-dev         cmocka
    need libsqlite3-dev        header sqlite3.h
    need valgrind              program valgrind
    need strace                program strace
    need nginx-light           program nginx
    need apache2-bin           program apache2
    need haproxy               program haproxy
    need stunnel4              program stunnel
    need postgresql            exists /usr/lib/postgresql/*/bin/postgres
    need "redis-server redis-tools" redis
    need curl                  program curl
    need php-cli               program php
    need libio-socket-ssl-perl perl -MIO::Socket::SSL -e 1
    need gunicorn              program gunicorn
    need uvicorn               program uvicorn
    need nodejs                test -x /usr/bin/nodejs
    need clang                 program clang
    need cmake                 program cmake
    need meson                 program meson
    need ninja-build           program ninja
    need mandoc                program mandoc
    need shellcheck            program shellcheck
    need "$(python_tests_package)" python_tests
}

look
if [ -n "$missing" ] && [ "$install" = --install ] && [ $root = yes ]; then
    export DEBIAN_FRONTEND=noninteractive
    echo "Installing$missing"
    apt-get update -qq
    look # what a package is called may be known only now
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
    look
    [ -z "$missing" ] || {
        echo "Installed, but something is still not found that should be in:$missing" >&2
        exit 1
    }
fi
if [ -n "$missing" ] && ! command -v apt-get >/dev/null; then
    echo "Something is missing. Install what Debian calls:$missing" >&2
    exit 1
fi
if [ -n "$missing" ]; then
    sudo='sudo '
    [ $root = no ] || sudo=
    echo "Something is missing. Run: ${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi

rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || have=
if [ -z "$have" ] || [ "$(printf '%s\n' "$rust" "$have" | sort -V | head -n 1)" != "$rust" ]; then
    echo "Rust $rust or newer is missing${have:+ (here is $have)}. Run: curl https://sh.rustup.rs -sSf | sh -s -- -y" >&2
    exit 1
fi
if [ "$job" = check ] && ! { cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1; then
    echo "Parts of Rust are missing. Run: rustup component add clippy rustfmt" >&2
    exit 1
fi
