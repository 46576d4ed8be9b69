#!/usr/bin/env bash
# nginx with four workers: its own `ssl_session_cache shared:` on stock libssl, and `builtin` in Reprise's shared cache.
# How many connections are resumed, and how many a second there are, of eight clients that come back; in pairs.
#
# usage: benches/nginx.sh [PAIRS]        (after make; needs nginx)
set -eu
cd "$(dirname "$0")/.."
pairs=${1:-7}
make --no-print-directory all target/reconnect >/dev/null
scratch=$(mktemp -d)
chmod 755 "$scratch" # for workers of another user
cache=nginx-$$
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; wait; target/release/reprise cache rm $cache >/dev/null 2>&1; rm -rf "$scratch"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 \
    -keyout "$scratch/key.pem" -out "$scratch/cert.pem" 2>/dev/null

# visit SIDE VERSION: sets resumed and per_second
visit() {
    local port=$((RANDOM % 20000 + 20000)) cache_of_nginx='shared:SSL:10m' under=() line word
    [ "$1" = stock ] || { cache_of_nginx=builtin under=(target/release/reprise run --cache "shm:$cache?size=16M" --); }
    cat >"$scratch/nginx.conf" <<CONF
daemon off; pid $scratch/pid; error_log $scratch/error.log; worker_processes 4;
events { worker_connections 256; }
http {
    access_log off;
    server {
        listen 127.0.0.1:$port ssl reuseport;
        ssl_certificate $scratch/cert.pem; ssl_certificate_key $scratch/key.pem;
        ssl_session_cache $cache_of_nginx; ssl_session_tickets off; ssl_protocols TLSv1.2 TLSv1.3;
        return 200 "ok";
    }
}
CONF
    "${under[@]}" nginx -c "$scratch/nginx.conf" -e "$scratch/error.log" &
    server=$!
    for _ in {1..50}; do
        ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
        sleep 0.1
    done
    line=$(target/reconnect "-tls$2" -clients 8 -n 500 "127.0.0.1:$port")
    resumed=0 per_second=0
    for word in $line; do
        case $word in resumed=* | per_second=*) declare -g "$word" ;; esac
    done
    kill "$server"
    wait "$server" || true
    server=
}

for version in 1_2 1_3; do
    for ((pair = 1; pair <= pairs; pair++)); do
        order=(stock reprise)
        ((pair % 2)) || order=(reprise stock)
        for side in "${order[@]}"; do
            visit "$side" "$version"
            # shellcheck disable=SC2154 # visit() declares them
            echo "$version $side $resumed $per_second"
        done
    done
done | awk '
    { n = ++count[$1 " " $2]; resumed[$1 " " $2] += $3; rate[$1 " " $2, n] = $4 }
    END {
        print "| TLS | resumed of 4000, shared: zone | Reprise | connections/s, shared: zone | Reprise | ratio, geometric mean | min..max |"
        print "|---|--:|--:|--:|--:|--:|--:|"
        versions = split("1_2 1_3", version, " ")
        for (at = 1; at <= versions; at++) {
            v = version[at]
            pairs = count[v " stock"]; low = 9; high = 0; logs = 0; a = 0; b = 0
            for (i = 1; i <= pairs; i++) {
                r = rate[v " reprise", i] / rate[v " stock", i]
                logs += log(r); if (r < low) low = r; if (r > high) high = r
                a += rate[v " stock", i]; b += rate[v " reprise", i]
            }
            name = v; sub("_", ".", name)
            printf "| %s | %d | %d | %d | %d | %.2f | %.2f..%.2f |\n", name, resumed[v " stock"] / pairs, resumed[v " reprise"] / pairs, a / pairs, b / pairs, exp(logs / pairs), low, high
        }
    }'
