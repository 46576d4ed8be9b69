#!/bin/sh
# Builds a libssl of another version to test against: tools/libssl.sh VERSION
#
# VERSION is 1.1.1, 3.0, 3.5, 3.6 or 4.0, or 3.0.2, the oldest patch release that is in the field. The sources are those
# of the crate openssl-src, so cargo fetches and verifies them. What is built stays in
# ${XDG_CACHE_HOME:-$HOME/.cache}/reprise/libssl/VERSION, as lib/, include/ and bin/; a second run finds it there. The
# folder is the only line on stdout, progress goes to stderr.
set -eu

version=${1:-}
case $version in
    1.1.1 | 1.1.1w) crate='=111.28.2' ;;
    3.0.2) crate='=300.0.5' ;;
    3.0) crate='=300.0.13' ;;
    3.5) crate='=300.5.5' ;;
    3.6) crate='=300.6.1' ;;
    4.0) crate='=400.0.2' ;;
    *)
        echo "usage: $0 1.1.1|3.0.2|3.0|3.5|3.6|4.0" >&2
        exit 2
        ;;
esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/reprise/libssl
target=$cache/$version
say() { echo "libssl $version: $*" >&2; }

# An upstream build binds libssl's calls of its own functions to itself (-Bsymbolic), most distributions' do not.
# Both kinds exist in the field and both are tested, so say which one this is.
report() {
    if readelf -d "$target"/lib/libssl.so | grep -q SYMBOLIC; then
        say "-Bsymbolic: yes"
    else
        say "-Bsymbolic: no"
    fi
    echo "$target"
    exit 0
}

[ ! -x "$target/bin/openssl" ] || report

for program in cargo cc make perl readelf; do
    command -v $program >/dev/null || {
        say "$program is missing (apt-get install build-essential perl; cargo: https://rustup.rs)"
        exit 1
    }
done

mkdir -p "$cache"
work=$(mktemp -d "$cache/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

say "fetching openssl-src $crate"
mkdir -p "$work/fetch/src"
: >"$work/fetch/src/lib.rs"
cat >"$work/fetch/Cargo.toml" <<TOML
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"

[dependencies]
openssl-src = "$crate"

[workspace]
TOML
manifest=$work/fetch/Cargo.toml
cargo fetch --quiet --manifest-path "$manifest" >&2
source=$(cargo metadata --quiet --format-version 1 --manifest-path "$manifest" |
    grep -o '"manifest_path":"[^"]*/openssl-src-[^"/]*/Cargo.toml"' | cut -d'"' -f4)
source=$(dirname "$source")/openssl

cp -R "$source" "$work/build"
cd "$work/build"

# The crate builds static libraries and leaves out what writes the linker's version script; newer ones lack this.
# The script is made from the list of exports: name, ordinal, version (3_0_0), EXIST:platforms:kind:features.
[ -e util/mkdef.pl ] || cat >util/mkdef.pl <<'PERL'
my ($ordinals) = grep { /\.num$/ } @ARGV;
open my $list, '<', $ordinals or die "$ordinals: $!";
my %exports;
while (<$list>) {
    my ($name, undef, $version, $state) = split;
    push @{$exports{$version}}, $name if defined $state && $state =~ /^EXIST/;
}
sub number { sprintf '%03d%03d%03d', split /_/, shift }
my $parent = '';
for my $version (sort { number($a) <=> number($b) } keys %exports) {
    my $node = 'OPENSSL_' . ($version =~ tr/_/./r);
    my $local = $parent ? '' : " local: *;";
    print "$node { global: @{[map { qq($_;) } @{$exports{$version}}]}$local }$parent;\n";
    $parent = " $node";
}
PERL
log=$work/log
step() {
    say "$1"
    shift
    "$@" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        say "failed: $*"
        exit 1
    }
}

options="shared no-tests --prefix=$target --libdir=lib --openssldir=$target/ssl"
case $version in
    1.1.1*) ;;
    3.0 | 3.0.2) options="$options no-legacy" ;;
    *) options="$options no-legacy no-docs" ;; # the crate leaves out what these two would need
esac
# shellcheck disable=SC2086 # the options are words
step "configuring" ./config $options
step "generating" make --silent build_generated
step "building the libraries and the openssl program, some minutes" \
    make --silent -j"$(nproc)" libssl.so libcrypto.so apps/openssl

install=$work/install
mkdir -p "$install/lib" "$install/bin" "$install/include"
cp -P libssl.so* libcrypto.so* "$install/lib/"
cp apps/openssl "$install/bin/"
cp -R include/openssl "$install/include/"
rm -f "$install"/include/openssl/*.in
LD_LIBRARY_PATH=$install/lib "$install/bin/openssl" version >&2

# Whole or not at all: another run may have been faster, then its result is as good.
mv -T "$install" "$target" 2>/dev/null || [ -x "$target/bin/openssl" ]
report
