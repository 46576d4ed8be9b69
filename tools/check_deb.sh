#!/bin/sh
# The packages of `make deb` on a fresh Debian: installed with apt, used, removed and purged. Fails if something does not
# work, or if a file is left behind or changed.
#
# usage: check_deb.sh bookworm|trixie     REPRISE_DEB names the folder of the packages (target/deb)
set -eu

release=${1:?usage: check_deb.sh bookworm|trixie}
if [ "$(id -u)" != 0 ] || ! command -v mmdebstrap >/dev/null; then
    echo "tools/check_deb.sh needs root and mmdebstrap: sudo apt-get install mmdebstrap" >&2
    exit 1
fi
cd "$(dirname "$0")/.."
folder=${REPRISE_DEB:-target/deb}
ls "$folder"/libreprise0_*.deb >/dev/null || { echo "tools/check_deb.sh: no packages there: make deb" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
trap 'exit 130' INT TERM
# The compiler and Python are for the tests (debian/tests/control). libreprise-dev itself brings libssl-dev.
tools/bare_root.sh "$release" "$root" ca-certificates,openssl,gcc,libc6-dev,pkgconf,python3
proxies=$(env | grep -E '^(https?|ftp|all|no)_proxy=' || true)
chmod 755 "$root" # mktemp's mode locks out users other than root
mkdir "$root/packages"
cp "$folder"/libreprise0_*.deb "$folder"/libreprise-dev_*.deb "$folder"/reprise_*.deb "$root/packages"
mkdir -p "$root/packages/source/c_tests" "$root/packages/source/tests"
cp -r debian examples "$root/packages/source"
cp -r c_tests/tools "$root/packages/source/c_tests"
cp -r tests/programs "$root/packages/source/tests"

cat >"$root/packages/inside.sh" <<'END'
# The loader's cache is written anew, which is no change: that it does not name the library is asked for by itself.
state() { # state NAME: all files with their contents, and all packages
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /packages -o -path /run -o -path /etc/ld.so.cache \
        -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg \) -prune \
        -o -type f -exec sha256sum {} + -o -type l -printf '%p -> %l\n' -o -printf '%p %m %u:%g\n' | sort >"/tmp/$1"
    dpkg-query --show --showformat='${Package} ${Version} ${db:Status-Status}\n' >>"/tmp/$1"
}
apt-get update -qq
state before
apt-get install -qq -y /packages/*.deb >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
echo "installed: $(dpkg-query --show reprise libreprise0 libreprise-dev | tr '\t\n' '  ')"
dpkg --verify reprise libreprise0 libreprise-dev

triplet=$(gcc -print-multiarch)
preloaded=$(reprise run -- sh -c 'echo $LD_PRELOAD')
[ "$preloaded" = "/usr/lib/$triplet/libreprise.so.0" ] || { echo "preloaded: $preloaded"; exit 1; }
[ "$(stat -Lc %a "$preloaded")" = 644 ] || { echo "$preloaded: $(stat -Lc %a "$preloaded"), not 644"; exit 1; }
if ldd "$preloaded" | grep -vE 'linux-vdso|libc\.so|ld-linux'; then echo "$preloaded needs more than libc"; exit 1; fi
# As autopkgtest runs them: in the source, with what is installed.
cd /packages/source
for name in smoke demo; do
    AUTOPKGTEST_TMP=$(mktemp -d) sh "debian/tests/$name"
done
cd /

apt-get remove -qq -y reprise libreprise0 libreprise-dev >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
! command -v reprise || exit 1
dpkg --purge reprise libreprise0 libreprise-dev >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
apt-get autoremove -qq -y --purge >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
state after
diff -u /tmp/before /tmp/after || { echo "left behind, missing or changed, see above"; exit 1; }
if ldconfig -p | grep reprise; then echo "the loader's cache still names it"; exit 1; fi
echo "removed and purged: nothing is left"
END

# The processes and mounts of the root end with this command.
# shellcheck disable=SC2016,SC2086 # the inner shell expands its own; NAME=VALUE words
unshare --mount --pid --fork --kill-child sh -eu -c '
    mount -t proc proc "$1/proc"
    mkdir -p "$1/dev/shm"
    mount -t tmpfs tmpfs "$1/dev/shm"
    root=$1
    shift
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@" \
        sh -eu /packages/inside.sh' sh "$root" $proxies
echo "tools/check_deb.sh: $release: everything passed"
