#!/bin/sh
# Runs the tests of the cache in Redis, all of them, on each server that is installed beyond the one that `cargo test`
# takes by itself: Redis where it is there, else Valkey. Another program may be named in REPRISE_TEST_REDIS.
set -eu
cd "$(dirname "$0")/.."

seen='' first='' also=''
for name in redis-server valkey-server; do
    server=$(command -v "$name") || continue
    file=$(readlink -f "$server")
    case " $seen " in *" $file "*) continue ;; esac # Valkey under the name of Redis
    seen="$seen $file"
    version=$("$server" --version | sed 's/^\([A-Za-z]*\) server v=\([^ ]*\).*/\1 \2/')
    if [ -z "$first" ]; then
        first=$version
        continue
    fi
    echo "check_redis: on $version"
    REPRISE_TEST_REDIS=$server cargo test --profile proof --locked --no-fail-fast --test redis --test redis_setup --test command
    also="$also, $version"
done
[ -n "$first" ] || {
    echo "check_redis: there is neither redis-server nor valkey-server" >&2
    exit 1
}
echo "check_redis: the tests on Redis are complete on $first (part of check-rust)${also:-; no other server is installed}"
