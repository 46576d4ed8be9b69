#!/bin/sh
# Debian packages in target/deb, built from the tarball of `make dist` as on a build server: without network.
set -eu
cd "$(dirname "$0")/.."

missing=
for tool in dpkg-buildpackage:dpkg-dev dh:debhelper xz:xz-utils lintian:lintian; do
    command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
[ -z "$missing" ] || { echo "Something is missing. Run: sudo apt-get install$missing" >&2; exit 1; }

name=reprise-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
tarball=target/dist/$name.tar.xz
[ -e "$tarball" ] || { echo "$tarball is missing: make dist" >&2; exit 1; }
rm -rf target/deb
mkdir -p target/deb
cp "$tarball" "target/deb/reprise_${name#reprise-}.orig.tar.xz"
tar -xf "$tarball" -C target/deb
cd "target/deb/$name"

# Debian's Rust if this is the one in the PATH and new enough, else whatever rustup has.
profile=
if ! dpkg-query --search "$(realpath "$(command -v cargo)")" >/dev/null 2>&1; then
    profile=-Ppkg.reprise.rustup
fi
dpkg-checkbuilddeps $profile || { echo "Install these with apt-get." >&2; exit 1; }

# A network namespace of its own, where the system allows one.
offline="unshare --map-current-user --net"
$offline true 2>/dev/null || offline=
[ -n "$offline" ] || echo "make deb: no network namespace here; cargo alone is kept from the network" >&2
$offline dpkg-buildpackage --no-sign $profile
cd ..
rm -rf "$name"
lintian --info --fail-on error ./*.changes
ls -l ./*.deb
