#!/usr/bin/env bash
# One cache for all processes, on stock libssl and on Reprise side by side. Two servers as they are, each with four
# processes that have an SSL_CTX of their own: one in C, and one of CPython's ssl module. A client comes back 200 times.
#
#   REPRISE    the command
#   PREFORK    examples/prefork.c, built on libssl alone
#   RECONNECT  c_tests/tools/reconnect.c
#
# Exit status: 0 only if everything it shows worked on both.
set -u
cd "$(dirname "$0")/.." || exit 1

: "${REPRISE:?}" "${PREFORK:?}" "${RECONNECT:?}"
RECONNECTS=200   # visits with a session
FRESH=50         # visits without one
CLIENTS=8        # at once, for the throughput
EACH=100         # visits of each of them

cache=demo-$$
scratch=$(mktemp -d) || exit 1
server=          # process id of the one that runs
trap '[ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null
      "$REPRISE" cache rm $cache >/dev/null 2>&1; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

declare -A result   # result[side/row]
failures=()
fail() { failures+=("$1"); }

start() { # start SIDE COMMAND: sets address
    local under=()
    [ "$1" = stock ] || under=("$REPRISE" run --cache "shm:$cache?size=8M" --tickets stateful --unclean keep --)
    : >"$scratch/listening" # or the address of the one before would be read
    "${under[@]}" "${@:2}" >"$scratch/listening" 2>"$scratch/errors" &
    server=$!
    for _ in {1..100}; do
        read -r _ _ address <"$scratch/listening" && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    echo "demo: $2 does not start ($1):" >&2
    cat "$scratch/errors" >&2
    exit 1
}

stop() { # stop SIDE
    local status=0
    kill "$server" 2>/dev/null
    wait "$server" || status=$?
    server=
    [ "$status" -eq 0 ] || fail "$1: the server ended with status $status"
    [ ! -s "$scratch/errors" ] || fail "$1: $(head -n 1 "$scratch/errors")"
}

visit() { # visit reconnect's arguments: sets connections, resumed, failed, full_us, per_second ...
    resumed=0 failed=1 full_us=- resumed_us=- per_second=- workers=0
    local line word
    line=$(timeout 60 "$RECONNECT" "$@" "$address")
    for word in $line; do
        declare -g "$word"
    done
    [ "$failed" -eq 0 ]
}

run() { # run SIDE ROW VERSION COMMAND
    local side=$1 row=$1/$2 version=$3
    start "$side" "${@:4}"
    visit "-tls$version" -n "$RECONNECTS" -session_out "$scratch/session" || fail "$row: connections failed"
    result[$row/resumed]=$resumed
    result[$row/resumed_us]=$resumed_us
    [ "$workers" -eq 4 ] || fail "$row: $workers of 4 processes answered"
    case $side in
        stock) [ "$resumed" -lt $((RECONNECTS * 6 / 10)) ] || fail "$row: $resumed of $RECONNECTS, and no need for more" ;;
        *) [ "$resumed" -ge $((RECONNECTS * 99 / 100)) ] || fail "$row: $resumed of $RECONNECTS resumed" ;;
    esac
    visit "-tls$version" -n "$FRESH" -fresh || fail "$row: connections without a session failed"
    result[$row/full_us]=$full_us
    visit "-tls$version" -n "$EACH" -clients "$CLIENTS" || fail "$row: connections of many clients failed"
    result[$row/per_second]=$per_second
    visit "-tls$version" -n 0 -session_out "$scratch/session" || fail "$row: a connection failed"
    stop "$side"

    start "$side" "${@:4}"
    visit "-tls$version" -n 0 -session_in "$scratch/session" || fail "$row: a connection failed after the restart"
    result[$row/restart]=$([ "$resumed" -eq 1 ] && echo yes || echo no)
    [ "$side" = stock ] || [ "$resumed" -eq 1 ] || fail "$row: not resumed after the restart"
    stop "$side"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 \
    -keyout "$scratch/key.pem" -out "$scratch/cert.pem" 2>/dev/null || { echo "demo: no certificate" >&2; exit 1; }

printf '%-44s %9s %9s\n' "4 processes, ECDSA P-256, $(nproc) CPUs" stock Reprise
for program in C Python; do
    for version in 1_2 1_3; do
        case $program in
            C) name='C' command=("$PREFORK" -port 0 -cert "$scratch/cert.pem" -key "$scratch/key.pem") ;;
            *) name='Python'
               command=(python3 tests/programs/prefork_server.py 0 "$scratch/cert.pem" "$scratch/key.pem" 4 "tls$version") ;;
        esac
        for side in stock reprise; do
            run $side "$name, TLS ${version/_/.}" $version "${command[@]}"
        done
        echo "$name, TLS ${version/_/.}"
        while IFS=: read -r title key; do
            printf '%-44s %9s %9s\n' "  $title" "${result[stock/$name, TLS ${version/_/.}/$key]--}" \
                "${result[reprise/$name, TLS ${version/_/.}/$key]--}"
        done <<END
resumed of $RECONNECTS:resumed
full handshake, us:full_us
resumed handshake, us:resumed_us
connections per second, $CLIENTS clients:per_second
resumed after a restart:restart
END
    done
done

for failure in ${failures[@]+"${failures[@]}"}; do
    echo "demo: $failure" >&2
done
[ ${#failures[@]} -eq 0 ]
