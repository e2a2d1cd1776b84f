#!/bin/sh
# Makes sure that chaos can make one service's wall clock wrong (services/chaos/targets/local.py). Quiet when it can.
#
#   1. libfaketime is here: nothing to do
#   2. root, or sudo without a password: apt-get install
#   3. neither: print what to install, exit 1
set -eu

say() { echo "setup-libfaketime: $*" >&2; }

ready() { [ -e "/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

ready && exit 0
say "installing libfaketime"
as_root apt-get install -y -qq --no-install-recommends libfaketime >/dev/null \
    || { as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends libfaketime >/dev/null; } \
    || say "apt-get could not install it"
ready && exit 0
say "install libfaketime (Debian: apt install libfaketime), or leave the fault clock-jump out with --faults"
exit 1
