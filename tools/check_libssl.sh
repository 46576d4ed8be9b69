#!/bin/sh
# The C tests and s_server on libssl as its authors build it (-Bsymbolic: its own calls stay inside), version by
# version. Each is built once, outside the repository (tools/libssl.sh).
#
# usage: check_libssl.sh [VERSION...]
set -eu

[ $# -gt 0 ] || set -- 1.1.1 3.0 3.5 3.6 4.0
for version; do
    folder=$(tools/libssl.sh "$version")
    echo "libssl $version"
    make --no-print-directory check-observed LIBSSL="$folder"
    REPRISE_TEST_LIBSSL=$folder cargo test --release --locked --test s_server
    # 1.1.1 is left out: tests/differential.rs says why.
    if [ "$version" != 1.1.1 ]; then
        REPRISE_SEQUENCES=2000 REPRISE_TEST_LIBSSL=$folder cargo test --release --locked --test differential
    fi
done
# Given alone, a version has nobody to share with.
[ $# -eq 1 ] || tools/check_shared_versions.sh
