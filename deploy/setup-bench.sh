#!/bin/sh
# Installs what `make bench-settle` measures beside us: the packages of requirements-bench.lock, redis-server, the Restate
# server (npm, by tests/bench/peers/restate/package-lock.json), and the Temporal CLI (built from Go modules). The last two
# go to the user's cache. Quiet when they are there. What cannot be installed is said, and left out by name.
set -u

# The newest that `go install` can build: later ones replace a module in their go.mod. Checked by Go's checksum database.
temporal=v1.5.1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countinghouse/bench"

say() { echo "setup-bench: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# Debian starts a server of its own when the package is installed: RUNLEVEL keeps invoke-rc.d from it.
install_redis() { as_root env RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server >/dev/null 2>&1; }

# No script of a package is run: one of them reports the installation to its maker.
install_restate() {
    mkdir -p "$cache/restate" "$cache/bin" && cp tests/bench/peers/restate/package*.json "$cache/restate" \
        && npm ci --prefix "$cache/restate" --ignore-scripts --no-audit --no-fund --silent >/dev/null 2>&1 \
        && ln -sf "$cache"/restate/node_modules/@restatedev/restate-server-*/bin/restate-server "$cache/bin/restate-server"
}

install_temporal() {
    mkdir -p "$cache/bin" && GOBIN="$cache/bin" go install "github.com/temporalio/cli/cmd/temporal@$temporal" >/dev/null 2>&1
}

cd "$(dirname "$0")/.." || exit 1
.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements-bench.lock >&2 \
    || say "the packages of requirements-bench.lock could not be installed"

if ! has redis-server; then
    say "installing redis-server"
    install_redis || { as_root apt-get update -qq >/dev/null 2>&1 && install_redis; } || say "apt-get could not install redis-server"
fi

if ! cmp -s tests/bench/peers/restate/package-lock.json "$cache/restate/package-lock.json" || ! has "$cache/bin/restate-server"; then
    if has npm; then
        say "installing the Restate server"
        install_restate || say "npm could not install the Restate server"
    else
        say "npm is missing: no Restate server"
    fi
fi

if ! has temporal && ! has "$cache/bin/temporal"; then
    if has go; then
        say "building the Temporal CLI (two minutes)"
        install_temporal || say "go could not build the Temporal CLI"
    else
        say "go is missing: no Temporal CLI"
    fi
fi
exit 0
