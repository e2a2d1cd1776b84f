#!/bin/sh
# Makes sure that `countinghouse up --database postgresql` and the tests can start a PostgreSQL. Quiet when they can.
#
#   1. its programs are here (or COUNTINGHOUSE_TEST_POSTGRES names a running one): nothing to do
#   2. root, or sudo without a password: apt-get install, without a server of the machine's own being made and started
#   3. neither: print what to install, exit 1
set -eu

say() { echo "setup-postgresql: $*" >&2; }

have_programs() {
    for folder in "$(dirname "$(readlink -f "$(command -v initdb || echo /)")")" /usr/lib/postgresql/*/bin; do
        [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && return 0
    done
    return 1
}

ready() { [ -n "${COUNTINGHOUSE_TEST_POSTGRES:-}" ] || have_programs; }

# As root: "$@", with sudo if need be.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

can_be_root() {
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
}

install_package() {
    as_root apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

# The common part comes first: it is asked whether a server is to be made when the other is installed.
install_postgresql() {
    say "installing postgresql"
    if ! [ -e /etc/postgresql-common/createcluster.conf ]; then
        install_package postgresql-common || { as_root apt-get update -qq && install_package postgresql-common; }
        as_root sed -i 's/^#\{0,1\}create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    install_package postgresql || { as_root apt-get update -qq && install_package postgresql; }
}

ready && exit 0

if command -v apt-get >/dev/null 2>&1 && can_be_root; then
    install_postgresql || say "apt-get could not install it"
fi

ready && exit 0
say "install PostgreSQL 14 or newer (Debian: apt install postgresql), or set COUNTINGHOUSE_TEST_POSTGRES to a superuser's URL"
exit 1
