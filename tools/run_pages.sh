#!/bin/sh
# Runs the programs of c_tests/ on each side: on stock libssl, on Reprise as documented, on Reprise as stock.
# `--valgrind` runs both sides of Reprise under valgrind instead. OUT/SIDE.tsv gets what was observed.
set -u

valgrind=
if [ "$1" = --valgrind ]; then
    valgrind="valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --child-silent-after-fork=yes"
    shift
fi
out=$1
shift
failed=0

run() { # SIDE PROGRAM [VARIABLE=VALUE]
    side=$1 program=$2 log=$out/$1-$(basename "$2").log
    shift 2
    # shellcheck disable=SC2086 # $valgrind is a command line
    if ! env "$@" timeout 600 $valgrind "$program" >"$log" 2>&1; then
        cat "$log"
        echo "FAILED on $side: $program"
        failed=1
    fi
    printf '%-12s %-36s %s\n' "$side" "$(basename "$program")" "$(sed -n 's/.*PASSED  \] //p' "$log" | head -1)"
}

rm -f "$out"/*.tsv
for page; do
    if [ -z "$valgrind" ]; then
        run stock "$out/stock/$page" CONFORMANCE="$out/stock.tsv"
        run documented "$out/reprise/$page" CONFORMANCE="$out/documented.tsv" REPRISE_SEMANTICS=
        run stock-like "$out/reprise/$page" CONFORMANCE="$out/stock-like.tsv" REPRISE_SEMANTICS=stock
    else
        run documented "$out/reprise/$page" REPRISE_SEMANTICS=
        run stock-like "$out/reprise/$page" REPRISE_SEMANTICS=stock
    fi
done
exit $failed
