#!/bin/sh
# Runs the programs of c_tests/ on each side: on stock libssl, on Reprise as documented, on Reprise as stock, and on
# Reprise as documented with its caches in shared memory, and in a Redis that is started for it.
# OUT/SIDE.tsv gets what was observed. `--valgrind` runs Reprise under valgrind instead: as documented, and as stock the
# pages on functions of the manual (SSL_*), which the semantics are about; all pages with `--valgrind-all`. `--quick`
# leaves the sides out that share a cache.
#
# Stock comes first: Reprise as stock is compared with what stock did in the same run. Nothing is expected of stock
# itself, because its patch releases differ: a test that it does not finish is named, and left out on Reprise as stock.
#
# usage: run_pages.sh [--quick|--valgrind|--valgrind-all] OUT PAGE...
set -u

one() { # OUT SIDE PAGE
    out=$1 side=$2 page=$3
    log=$out/$side-$page${VALGRIND:+-valgrind}.log
    record=$out/$side${VALGRIND:+-valgrind}.tsv
    program=$out/reprise/$page
    semantics='' cache=''
    CONFORMANCE_STOCK=$out/stock${VALGRIND:+-valgrind}.tsv
    export CONFORMANCE_STOCK
    case $side in
        stock) program=$out/stock/$page VALGRIND='' ;;
        stock-like) semantics=stock ;;
        shared) cache="shm:c_tests-$$?size=64M&keep=off" ;;
        redis) cache=$REDIS ;;
    esac
    [ -n "${VALGRIND:-}" ] || export CONFORMANCE="$record"
    # What the threads of a parent held is lost in a child that has none of them, as with Redis in every child; and what libssl
    # had in hand when a callback did not return.
    case $page/$side in fork*/* | unwind/* | */redis) VALGRIND=${VALGRIND:+$VALGRIND --leak-check=no} ;; esac
    status=0
    # shellcheck disable=SC2086 # $VALGRIND is a command line
    REPRISE_SEMANTICS=$semantics REPRISE_CACHE=$cache timeout 900 ${VALGRIND:-} "$program" >"$log" 2>&1 || status=$?
    if [ $status = 0 ]; then
        printf '%-12s %-36s %s\n' "$side" "$page" "$(sed -n 's/.*PASSED  \] //p' "$log" | head -1)"
    elif [ "$side" = stock ] && [ $status != 124 ]; then
        failed=$(awk '/^\[ RUN / { begun[$4] } /^\[ *(OK|SKIPPED) *\]/ { delete begun[$NF] } /test\(s\) run/ { whole = 1 }
            END { for (name in begun) printf " %s", name; if (!whole) printf " and all after it" }' "$log")
        printf '%-12s %-36s %s\n' "$side" "$page" "not finished by this libssl:$failed"
    else
        { cat "$log"; echo "FAILED on $side: $program"; } >&2
        return 1
    fi
}

if [ "$1" = --one ]; then
    shift
    one "$@"
    exit
fi
sides='documented stock-like shared' quick=no every=no
if [ "$1" = --quick ]; then
    shift
    sides='documented stock-like' quick=yes
elif [ "$1" = --valgrind ] || [ "$1" = --valgrind-all ]; then
    [ "$1" = --valgrind ] || every=yes
    shift
    sides='documented stock-like' # shared.c has the shared cache; its side would take half an hour
    # Where threads take turns by chance, one that never waits may keep the others from theirs for minutes.
    VALGRIND='valgrind --quiet --fair-sched=try --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --child-silent-after-fork=yes'
    export VALGRIND REPRISE_SLOWLY=1
fi
out=$1
shift
for side in stock $sides redis; do
    rm -f "$out/$side${VALGRIND:+-valgrind}.tsv"
done

# No time is short for the tests of rules: a lookup has a second, which it needs on no machine.
folder=$(mktemp -d)
server=
trap 'kill ${server:+"$server"} 2>/dev/null; wait; rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
program=${REPRISE_TEST_REDIS:-$(command -v redis-server || command -v valkey-server)}
if [ $quick = yes ]; then
    :
elif [ -n "$program" ]; then
    (umask 077 && od -An -vtx1 -N32 /dev/urandom | tr -d ' \n' >"$folder/key")
    "$program" --port 0 --unixsocket "$folder/redis.sock" --save '' --appendonly no --dir "$folder" \
        --logfile "$folder/redis.log" &
    server=$!
    for _ in $(seq 500); do
        [ ! -S "$folder/redis.sock" ] || break
        sleep 0.1
    done
    [ -S "$folder/redis.sock" ] || { echo "$program does not start:" >&2; cat "$folder/redis.log" >&2; exit 1; }
    REDIS="redis+unix://$folder/redis.sock?key=$folder/key&deadline=1s"
    export REDIS
    sides="$sides redis"
else
    echo "redis: left out, there is no redis-server (nor valkey-server)"
fi

for page; do
    echo "$out stock $page"
done | xargs -P "$(nproc)" -n 3 "$0" --one || exit 1
: >>"$out/stock${VALGRIND:+-valgrind}.tsv" # where no page has anything to ask stock
for page; do
    for side in $sides; do
        # Under valgrind, Redis is for the page that is about it.
        case ${VALGRIND:+valgrind}/$page/$side/$every in
            /* | */documented/* | */SSL_*/stock-like/* | */stock-like/yes | */redis/redis/*) echo "$out $side $page" ;;
        esac
    done
done | xargs -P "$(nproc)" -n 3 "$0" --one
