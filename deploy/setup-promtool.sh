#!/bin/sh
# Makes sure that `make check-alerts` has promtool, and prints its path; otherwise quiet when it is there.
#
#   1. promtool is on PATH, or was unpacked before: nothing to do
#   2. download Debian's package `prometheus` and unpack promtool alone into the user's cache: the package itself would start a
#      server on this machine
#   3. apt-get cannot: print what to install, exit 1
set -eu

cache="${XDG_CACHE_HOME:-$HOME/.cache}/countinghouse/promtool"

say() { echo "setup-promtool: $*" >&2; }

ready() {
    found=$(command -v promtool || ls "$cache/promtool" 2>/dev/null) || return 1
    echo "$found"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

download() { apt-get download -qq prometheus >/dev/null 2>&1; }

# In a folder of its own, and moved into place when it is whole.
unpack() (
    mkdir -p "$cache"
    draft=$(mktemp -d "$cache/draft.XXXXXX")
    trap 'rm -rf "$draft"' EXIT
    cd "$draft"
    download || { as_root apt-get update -qq >/dev/null && download; } || exit 1
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool && mv usr/bin/promtool "$cache/promtool"
)

ready && exit 0
say "unpacking promtool from Debian's prometheus into $cache"
unpack || say "apt-get could not download it"
ready && exit 0
say "install promtool (Debian: apt install prometheus, or Prometheus' own archive) and put it on PATH"
exit 1
