#!/bin/sh
# The source of a release with all crates in it: target/dist/reprise-VERSION.tar.xz of the last commit. It is the same,
# byte for byte, whoever makes it: `git archive`, the crates of Cargo.lock, and nothing of this machine.
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C
unset XZ_OPT XZ_DEFAULTS TAR_OPTIONS
umask 022

git rev-parse --verify --quiet HEAD >/dev/null || { echo "make dist needs a clone made by git" >&2; exit 1; }
[ -z "$(git status --porcelain --untracked-files=no)" ] \
    || echo "make dist: what is not committed is not in it" >&2
version=$(git show HEAD:Cargo.toml | sed -n 's/^version = "\(.*\)"/\1/p' | head -1)
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
name=reprise-$version
tarball=$PWD/target/dist/$name.tar.xz

mkdir -p target/dist
cd target/dist
rm -rf "$name"
mkdir "$name"
git -C ../.. -c core.autocrlf=false -c core.eol=lf -c tar.umask=0022 archive HEAD | tar -x -C "$name"
cd "$name"
../../../tools/crates.py vendor vendor
mkdir -p .cargo
cat >.cargo/config.toml <<END
# The crates of a release come with it.
[source.crates-io]
replace-with = "vendor"

[source.vendor]
directory = "vendor"
END
tools/crates.py check || { echo "debian/copyright is not what Cargo.lock's crates say: make copyright" >&2; exit 1; }
cd ..

tar --create --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --mode=u=rwX,go=rX "$name" | xz -6 --threads=1 >"$tarball.new"
mv "$tarball.new" "$tarball"
rm -rf "$name"
sha256sum "$name.tar.xz"
