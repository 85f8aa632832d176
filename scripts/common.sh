# Sourced by the scripts in this directory.
#
# Runs as root, with sudo or without: sandboxes need root. Build results belong to the user who
# called sudo, with that user's cargo.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
cd "$root"

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "sandboxes need root: run it with sudo"
[ "$(uname -s)" = Linux ] || fail "this needs Linux"

# The owner of the source tree, and that user's home, where rustup keeps cargo.
owner=${SUDO_USER:-root}
home=$(getent passwd "$owner" | cut -d: -f6)
export CARGO_HOME=${CARGO_HOME:-$home/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
export PATH="$CARGO_HOME/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Runs a command as the owner of the files.
as_owner() {
    if [ "$owner" = root ]; then
        "$@"
    else
        # PATH is set by env, because sudo's secure_path would replace it, and has no cargo.
        sudo -u "$owner" --preserve-env=CARGO_HOME,RUSTUP_HOME,ASHD_PROFILE,CARGO_TERM_COLOR,CARGO_INCREMENTAL -H -- env PATH="$PATH" "$@"
    fi
}

as_owner mkdir -p "$cache"

# Optimised by default; ASHD_PROFILE=dev builds in a third of the time, and runs slower.
case ${ASHD_PROFILE:=release} in
    release) bin=$root/target/release ;;
    dev) bin=$root/target/debug ;;
    *) fail "ASHD_PROFILE=$ASHD_PROFILE is neither release nor dev" ;;
esac
profile=(--profile "$ASHD_PROFILE" --locked)
export ASHD_PROFILE
