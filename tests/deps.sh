#!/bin/sh
# Installs what is missing to build and run Causeway: sh tests/deps.sh run|test|rivals
# Says what it installs; without root it prints the command to run and ends.
set -eu

missing=""
# Where Debian has servers, which not everybody has in the PATH.
PATH=$PATH:/usr/sbin

# need PACKAGES COMMAND...: unless one of the commands is there, the packages are missing.
need() {
    packages=$1
    shift
    for command in "$@"; do
        if command -v "$command" >/dev/null 2>&1; then
            return
        fi
    done
    missing="$missing $packages"
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "deps: Rust is not installed: see https://rustup.rs" >&2
    exit 1
fi

need cmake cmake
need "gcc libc6-dev" cc gcc clang
if [ "$1" != run ] || [ -z "${REDIS_URL:-}${CONF:-}" ]; then
    need redis-server redis-server
fi
if [ "$1" = test ]; then
    need redis-tools redis-cli
    need chromium chromium chromium-browser google-chrome
    need openssl openssl
fi
if [ "$1" != run ]; then
    need nodejs node
    need npm npm
    # Debian has the means to make an environment in a package of its own.
    if ! python3 -c "import ensurepip, venv" >/dev/null 2>&1; then
        missing="$missing python3-venv"
    fi
    # What the edge is compared with.
    need nginx-light nginx
    need haproxy haproxy
fi

if [ -z "$missing" ]; then
    exit 0
fi
install="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: missing, and there is no apt-get to install it:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "deps: missing:$missing" >&2
    echo "deps: run this, then try again: sudo $install" >&2
    exit 1
fi
echo "deps: installing:$missing"
apt-get update -qq
# At this runlevel Debian starts no service that it installs: the tests start what they need.
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive $install
