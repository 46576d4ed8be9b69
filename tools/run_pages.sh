#!/bin/sh
# Runs the programs of c_tests/ on each side: on stock libssl, on Reprise as documented, on Reprise as stock, and on
# Reprise as documented with its caches in shared memory.
# OUT/SIDE.tsv gets what was observed. `--valgrind` runs both sides of Reprise under valgrind instead.
#
# usage: run_pages.sh [--valgrind] OUT PAGE...
set -u

one() { # OUT SIDE PAGE
    out=$1 side=$2 page=$3
    log=$out/$side-$page${VALGRIND:+-valgrind}.log
    program=$out/reprise/$page
    semantics='' cache=''
    case $side in
        stock) program=$out/stock/$page ;;
        stock-like) semantics=stock ;;
        shared) cache="shm:c_tests-$$?size=64M&keep=off" ;;
    esac
    [ -n "${VALGRIND:-}" ] || export CONFORMANCE="$out/$side.tsv"
    # What the threads of a parent held is lost in a child that has none of them.
    [ "$page" != fork ] || VALGRIND=${VALGRIND:+$VALGRIND --leak-check=no}
    # shellcheck disable=SC2086 # $VALGRIND is a command line
    if REPRISE_SEMANTICS=$semantics REPRISE_CACHE=$cache timeout 900 ${VALGRIND:-} "$program" >"$log" 2>&1; then
        printf '%-12s %-36s %s\n' "$side" "$page" "$(sed -n 's/.*PASSED  \] //p' "$log" | head -1)"
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
sides='stock documented stock-like shared'
if [ "$1" = --valgrind ]; then
    shift
    sides='documented stock-like' # shared.c has the shared cache; its side would take half an hour
    VALGRIND='valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --child-silent-after-fork=yes'
    export VALGRIND REPRISE_SLOWLY=1
else
    rm -f "$1"/*.tsv
fi
out=$1
shift
for page; do
    for side in $sides; do
        echo "$out $side $page"
    done
done | xargs -P "$(nproc)" -n 3 "$0" --one
