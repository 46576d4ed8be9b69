#!/bin/sh
# Makes a minimal root file system of a Debian release in a new folder. It reaches the archives as this machine does: with its
# mirrors, proxies and certificates.
#
#   usage: bare_root.sh [--no-security] bookworm|trixie FOLDER PACKAGE[,PACKAGE...]
#
# --no-security leaves the security archive out, for the packages of the release as it was published. Needs root and
# mmdebstrap.
set -eu

security=yes
[ "${1:-}" != --no-security ] || { security=no && shift; }
[ $# = 3 ] || { sed -n 's/^#   usage: /usage: tools\//p' "$0" >&2; exit 2; }
release=$1 root=$2 packages=$3

archive() { # debian|debian-security
    # shellcheck disable=SC2016 # apt expands it
    uri=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -E "/$1/?\$" | head -n 1)
    echo "${uri:-http://deb.debian.org/$1}"
}
sources() {
    echo "deb $(archive debian) $release main"
    echo "deb $(archive debian) $release-updates main"
    [ $security = no ] || echo "deb $(archive debian-security) $release-security main"
}

settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
trap 'exit 1' HUP INT TERM
apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https|ftp|Check-|Retries|By-Hash)' >"$settings" || true
sources | mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt="$settings" "$release" "$root" -
cp /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
if [ -d /usr/local/share/ca-certificates ] && [ -d "$root/usr/local/share" ]; then
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -R /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
fi
