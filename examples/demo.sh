#!/usr/bin/env bash
# The same server twice, on libssl alone and with Reprise ahead of it, and a client that comes back: how many of its
# handshakes are resumed, what they cost, whether sessions survive a restart (in SQLite), and what the counters say.
#
#   STOCK_SERVER    examples/server.c built on libssl
#   REPRISE_SERVER  the same built with -DWITH_REPRISE and -lreprise
#   RECONNECT       c_tests/tools/reconnect.c
#
# Exit status: 0 only if everything it shows worked on both.
set -u

: "${STOCK_SERVER:?}" "${REPRISE_SERVER:?}" "${RECONNECT:?}"
RECONNECTS=100  # visits with a session, of a client that closes well
FRESH=50        # visits without one
RUDE=20         # visits of a client that leaves without a close_notify, which costs it the session

scratch=$(mktemp -d) || exit 1
server=          # process id of the one that runs
trap '[ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

declare -A result   # result[side/row]
failures=()

fail() { failures+=("$1"); }

start() { # start SIDE PROGRAM
    : >"$scratch/listening" # or the address of the one before would be read
    "$2" -port 0 -no_ticket -db "$scratch/$1.sqlite" >"$scratch/listening" 2>"$scratch/$1.err" &
    server=$!
    address=
    for _ in {1..100}; do
        read -r _ _ address <"$scratch/listening" && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    echo "demo: $2 does not start:" >&2
    cat "$scratch/$1.err" >&2
    exit 1
}

stop() { # stop SIDE
    local status=0
    kill "$server" 2>/dev/null
    wait "$server" || status=$?
    server=
    [ "$status" -eq 0 ] || fail "$1: the server ended with status $status"
}

visit() { # visit reconnect's arguments: sets connections, full, resumed, failed, full_us and resumed_us
    connections=0 full=0 resumed=0 failed=1 full_us=- resumed_us=-
    local line word
    line=$(timeout 20 "$RECONNECT" "$@" "$address")
    for word in $line; do
        declare -g "$word"
    done
    [ "$failed" -eq 0 ]
}

run() { # run SIDE PROGRAM
    local side=$1 version name number

    start "$side" "$2"
    for version in 1_2 1_3; do
        visit "-tls$version" -n "$RECONNECTS" -session_out "$scratch/$side.$version" \
            || fail "$side, TLS ${version/_/.}: connections failed"
        result[$side/$version/handshakes]=$connections
        result[$side/$version/resumed]=$resumed
        result[$side/$version/resumed_us]=$resumed_us
        [ "$resumed" -eq "$RECONNECTS" ] || fail "$side, TLS ${version/_/.}: $resumed of $RECONNECTS resumed"

        visit "-tls$version" -n "$FRESH" -fresh \
            || fail "$side, TLS ${version/_/.}: connections without a session failed"
        result[$side/$version/full_us]=$full_us

        visit "-tls$version" -n "$RUDE" -abrupt || fail "$side, TLS ${version/_/.}: rude connections failed"
        result[$side/$version/rude]="$resumed of $RUDE"
        [ "$resumed" -eq 0 ] || fail "$side, TLS ${version/_/.}: resumed without a close_notify"
    done
    while read -r name number; do
        result[$side/$name]=$number
        [[ " ${counters[*]-} " == *" $name "* ]] || counters+=("$name")
    done < <(curl --silent --show-error --insecure --max-time 10 "https://$address/stats")
    [ -n "${result[$side/sess_accept]-}" ] || fail "$side: no /stats"
    stop "$side"

    start "$side" "$2"
    for version in 1_2 1_3; do
        if visit "-tls$version" -n 0 -session_in "$scratch/$side.$version" && [ "$resumed" -eq 1 ]; then
            result[$side/$version/restart]=yes
        else
            result[$side/$version/restart]=no
            fail "$side, TLS ${version/_/.}: not resumed after the restart"
        fi
    done
    stop "$side"
}

row() { # row TITLE KEY
    printf '%-36s %10s %10s\n' "$1" "${result[stock/$2]--}" "${result[reprise/$2]--}"
}

counters=()
run stock "$STOCK_SERVER"
run reprise "$REPRISE_SERVER"
[ -n "${result[reprise/reprise_sessions]-}" ] || fail "reprise: $REPRISE_SERVER does not run with Reprise"

printf '%-36s %10s %10s\n' '' stock Reprise
for version in 1_2 1_3; do
    [ $version = 1_2 ] && echo 'TLS 1.2, session ids' || echo 'TLS 1.3, stateful tickets'
    row '  handshakes' $version/handshakes
    row '  resumed' $version/resumed
    row '  full handshake, us' $version/full_us
    row '  resumed handshake, us' $version/resumed_us
    row '  resumed without close_notify' $version/rude
    row '  resumed after a restart' $version/restart
done
echo 'Counters before the restart (without those that are 0)'
for name in "${counters[@]}"; do
    [ "${result[stock/$name]-0}${result[reprise/$name]-0}" = 00 ] && continue
    case $name in
        sess_*) row "  SSL_CTX_$name" "$name" ;;
        reprise_*) row "  reprise_ctx_stats: ${name#reprise_}" "$name" ;;
    esac
done

for failure in ${failures[@]+"${failures[@]}"}; do
    echo "demo: $failure" >&2
done
[ ${#failures[@]} -eq 0 ]
