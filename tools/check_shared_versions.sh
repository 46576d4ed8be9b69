#!/usr/bin/env bash
# Processes of different libssl versions on one shared cache: a session that one of them negotiated is resumed by the
# next, among 3.x and 4.x; 1.1.1, whose sessions are written differently, stays apart.
#
# usage: check_shared_versions.sh        (after make; builds the versions if they are not there)
set -eu
cd "$(dirname "$0")/.."
make --no-print-directory all target/reconnect >/dev/null
scratch=$(mktemp -d)
cache=versions-$$
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; target/release/reprise cache rm $cache >/dev/null 2>&1; rm -rf "$scratch"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 \
    -keyout "$scratch/key.pem" -out "$scratch/cert.pem" 2>/dev/null

# visit VERSION RECONNECT-ARGUMENTS: prints how many connections were resumed
visit() {
    local folder port line word resumed=0
    folder=$(tools/libssl.sh "$1" 2>/dev/null)
    shift
    for port in $((RANDOM % 20000 + 20000)) $((RANDOM % 20000 + 20000)); do
        LD_LIBRARY_PATH=$folder/lib LD_PRELOAD=$PWD/target/release/libreprise.so REPRISE_CACHE="shm:$cache?size=1M" \
            REPRISE_SEMANTICS=stock "$folder/bin/openssl" s_server -accept "$port" -cert "$scratch/cert.pem" \
            -key "$scratch/key.pem" -no_ticket -tls1_2 -www >"$scratch/log" 2>&1 &
        server=$!
        for _ in {1..50}; do
            ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break 2
            sleep 0.1
        done
    done
    line=$(target/reconnect -tls1_2 "$@" "127.0.0.1:$port")
    for word in $line; do
        case $word in resumed=*) resumed=${word#*=} ;; esac
    done
    kill "$server"
    wait "$server" 2>/dev/null || true
    server=
    echo "$resumed"
}

failed=0
expect() { # expect VERSION RESUMED
    local seen
    seen=$(visit "$1" -n 0 -session_in "$scratch/session")
    echo "a session of 3.0, shown to $1: resumed $seen times"
    [ "$seen" -eq "$2" ] || failed=1
}

visit 3.0 -n 1 -session_out "$scratch/session" >/dev/null
expect 3.5 1
expect 3.6 1
expect 3.0 1
expect 1.1.1 0
expect 4.0 1
exit $failed
