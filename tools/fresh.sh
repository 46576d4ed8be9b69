#!/bin/sh
# The README's two commands on a bare machine: in a new minimal root of a Debian release that has make, the machine's
# certificates and its Rust, and nothing else. So no package that somebody installed by hand hides a missing step.
#
#   usage: fresh.sh [--only STEPS] [--no-security] bookworm|trixie
#
# The steps, each in a clone of its own of what is committed:
#   root   as root: make demo, make check
#   user   in another such root, as an ordinary user: `make` and `make demo` say what is missing, in a line that can
#          be run; root runs make setup; then the user runs make demo, make check
# --only takes steps (`--only root`) or single commands of theirs (`--only root:check`), separated by commas.
# --no-security leaves the security archive out, for the libssl of the release as it was published.
#
# Needs root, mmdebstrap and the right to mount: exit status 3 and one line where that is not so. Else 0 when all
# passed, 1 when something failed, with a list of what did. FRESH_DIR is where the roots are made (/var/tmp).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
only=root,user security=yes
while [ $# -gt 1 ]; do
    case $1 in
        --only)
            only=$2
            shift
            ;;
        --no-security) security=no ;;
        *) break ;;
    esac
    shift
done
release=${1:-}
case $#:$release in
    1:bookworm | 1:trixie) ;;
    *)
        sed -n 's/^#   usage: /usage: tools\//p' "$0" >&2
        exit 2
        ;;
esac
for word in $(echo "$only" | tr , ' '); do
    case $word in
        root | user | root:demo | root:check | user:demo | user:check) ;;
        *)
            echo "fresh.sh: --only knows no $word" >&2
            exit 2
            ;;
    esac
done
cannot() {
    echo "fresh.sh: $*" >&2
    exit 3
}
wanted() { # STEP COMMAND
    case ,$only, in *,"$1",* | *,"$1:$2",*) return 0 ;; esac
    return 1
}

# What is mounted below, and every process that a test leaves behind, ends with these namespaces.
if [ "${FRESH_INSIDE:-}" != yes ]; then
    [ "$(id -u)" = 0 ] || cannot "only root can make a root file system"
    command -v mmdebstrap >/dev/null || {
        command -v apt-get >/dev/null || cannot "mmdebstrap is missing"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap; } >/dev/null 2>&1 ||
            cannot "mmdebstrap is missing and cannot be installed"
    }
    unshare --mount --pid --fork --kill-child --mount-proc true 2>/dev/null || cannot "this machine does not let root mount"
    [ $security = yes ] || set -- --no-security "$@"
    FRESH_INSIDE=yes exec unshare --mount --pid --fork --kill-child --mount-proc "$0" --only "$only" "$@"
fi
# What is killed in the end is all that this process can see.
[ $$ = 1 ] || cannot "FRESH_INSIDE is set, but this is no PID namespace of its own"

folder=$(mktemp -d "${FRESH_DIR:-/var/tmp}/reprise-$release-XXXXXX")
clean_up() {
    set +e # Whether the check passed does not depend on what is left to clean up.
    kill -KILL -1 2>/dev/null # all that is left in this PID namespace, in which this script is the first
    for root in "$folder"/root "$folder"/user; do
        umount --recursive "$root" 2>/dev/null
    done
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$folder"
failed=
passed=0

# --- the root ---------------------------------------------------------------------------------------------------------

say() { echo "fresh.sh: $release: $*"; }

say "making the root"
bare=$folder/base
tools=$(dirname "$0")
if [ $security = yes ]; then
    "$tools/bare_root.sh" "$release" "$bare" make,ca-certificates
else
    "$tools/bare_root.sh" --no-security "$release" "$bare" make,ca-certificates
fi || cannot "no root of $release can be made here"
rust=$(cd / && rustc --print sysroot) || cannot "no Rust on this machine"
mkdir -p "$bare/opt/rust"
chroot "$bare" useradd --create-home --shell /bin/sh somebody
# A package that starts its service at once would take a port that a test wants.
printf '#!/bin/sh\nexit 101\n' >"$bare/usr/sbin/policy-rc.d"
chmod 755 "$bare/usr/sbin/policy-rc.d"
# Nothing here has to survive a power loss.
echo force-unsafe-io >"$bare/etc/dpkg/dpkg.cfg.d/unsafe-io"
# How this machine's cargo reaches the crates.
cargo_home=${CARGO_HOME:-${HOME:-/root}/.cargo}
for home in root home/somebody; do
    mkdir -p "$bare/$home/.cargo"
    cp "$cargo_home"/config* "$bare/$home/.cargo/" 2>/dev/null || true
done
chroot "$bare" chown -R somebody: /home/somebody
proxies=$(env | grep -E '^(https?|ftp|all|no)_proxy=' || true)

new_root() { # NAME: a copy of the base, with what a running system has; sets root
    root=$folder/$1
    cp -a "$bare" "$root"
    mount --bind "$root" "$root" # tests that make namespaces of their own need a root that is mounted
    mount --bind "$rust" "$root/opt/rust" && mount -o remount,bind,ro "$root/opt/rust"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys" && mount --make-rslave "$root/sys"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    for device in null zero full random urandom tty; do
        # shellcheck disable=SC2046 # two numbers
        mknod -m 666 "$root/dev/$device" c $(stat -c '0x%t 0x%T' "/dev/$device")
    done
    ln -s /proc/self/fd "$root/dev/fd"
    for stream in 0:stdin 1:stdout 2:stderr; do
        ln -s "/proc/self/fd/${stream%:*}" "$root/dev/${stream#*:}"
    done
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
}

within() { # USER FOLDER COMMAND...
    user=$1 where=$2
    shift 2
    # shellcheck disable=SC2086,SC2016 # NAME=VALUE words; the inner shell expands its own
    chroot "$root" setpriv --reuid "$user" --regid "$user" --init-groups env -i \
        HOME="$(chroot "$root" getent passwd "$user" | cut -d : -f 6)" USER="$user" TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ${CI:+CI=$CI} $proxies \
        sh -c 'cd "$0" && exec "$@"' "$where" "$@" </dev/null
}
clone() { # FOLDER USER
    # Whoever owns this checkout.
    git -c safe.directory='*' clone --quiet --no-hardlinks --upload-pack "git -c safe.directory='*' upload-pack" \
        "$here" "$root$1"
    chroot "$root" chown -R "$2:" "$1"
}

# --- the steps --------------------------------------------------------------------------------------------------------

step() { # STEP NAME COMMAND...
    step=$1 name=$2
    shift 2
    say "$step: $name"
    start=$(date +%s)
    if "$@"; then
        passed=$((passed + 1))
        say "$step: $name passed after $(($(date +%s) - start)) s"
    else
        failed="$failed
  $release: $step: $name"
        say "$step: $name FAILED after $(($(date +%s) - start)) s"
    fi
}
# What is missing is named in a line that can be run, and nothing is done halfway.
told() { # COMMAND...
    output=$("$@" 2>&1) && {
        echo "$output"
        echo "succeeded, although something is missing"
        return 1
    }
    echo "$output"
    install=$(echo "$output" | sed -n 's/.*Run: sudo apt-get update && sudo \(apt-get install -y .*\)/\1/p')
    [ -n "$install" ] || return 1
    # What is named can be had. The lists of packages are as absent afterwards as in any bare root.
    within root / sh -c "apt-get update -qq && $install --simulate >/dev/null && rm -rf /var/lib/apt/lists/*"
}

if wanted root demo || wanted root check; then
    new_root root
    clone /root/reprise root
    # Where Redis and Valkey both exist, the tests run on each.
    within root / sh -c 'apt-get update -qq && ! apt-cache show valkey-server >/dev/null 2>&1 ||
        apt-get install -y -qq --no-install-recommends valkey-server valkey-tools redis-server redis-tools' >/dev/null 2>&1
    say "libssl: $(within root / sh -c 'apt-cache policy libssl-dev | sed -n "s/.*Candidate: //p"')"
    for target in demo check; do
        ! wanted root $target || step root "make $target" within root /root/reprise make $target
    done
fi
if wanted user demo || wanted user check; then
    new_root user
    clone /home/somebody/reprise somebody
    step user "make says what is missing" told within somebody /home/somebody/reprise make
    step user "make demo says what is missing" told within somebody /home/somebody/reprise make demo
    step user "make check says what is missing" told within somebody /home/somebody/reprise make check
    clone /root/reprise root
    step user "make setup by root" within root /root/reprise make setup
    for target in demo check; do
        ! wanted user $target || step user "make $target" within somebody /home/somebody/reprise make $target
    done
fi

[ -z "$failed" ] || {
    echo "fresh.sh: failed:$failed"
    exit 1
}
say "all $passed steps passed"
