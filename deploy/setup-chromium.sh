#!/bin/sh
# Makes sure that `make test-console` has a Chromium, and prints its path; otherwise quiet when it is there.
#
#   1. chromium is on PATH: nothing to do
#   2. install Debian's package `chromium`, with fonts for Chinese
#   3. apt-get cannot: print what to install, exit 1
set -eu

say() { echo "setup-chromium: $*" >&2; }

ready() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

install() { as_root apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null 2>&1; }

ready && exit 0
say "installing Debian's chromium"
install || { as_root apt-get update -qq >/dev/null && install; } || say "apt-get could not install it"
ready && exit 0
say "install chromium (Debian: apt install chromium fonts-noto-cjk)"
exit 1
