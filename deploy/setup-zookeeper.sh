#!/bin/sh
# Makes sure that `countinghouse up` can start a ZooKeeper; called by `make setup`. Quiet when it can already.
#
#   1. Java and ZooKeeper's jars are here (or COUNTINGHOUSE_ZOOKEEPER names a running one): nothing to do
#   2. root, or sudo without a password: apt-get install
#   3. neither: download the packages and unpack them into the user's cache, where services/devstack/components/zookeeper.py looks
#   4. none of that: print what to install, exit 1
set -eu

cache="${XDG_CACHE_HOME:-$HOME/.cache}/countinghouse/zookeeper"
jars=/usr/share/java

say() { echo "setup-zookeeper: $*" >&2; }

have_java() {
    command -v java >/dev/null 2>&1 || { [ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ]; }
}

# All that services/devstack/components/zookeeper.py needs, below the root directory $1.
complete() {
    for jar in zookeeper zookeeper-jute slf4j-api slf4j-simple metrics-core commons-cli; do
        [ -e "$1$jars/$jar.jar" ] || return 1
    done
}

have_jars() {
    [ -n "${COUNTINGHOUSE_ZOOKEEPER_CLASSPATH:-}" ] || complete "" || complete "$cache" \
        || command -v zkServer.sh >/dev/null 2>&1
}

have_docker() {
    command -v docker >/dev/null 2>&1 && timeout 5 docker info >/dev/null 2>&1
}

ready() {
    [ -n "${COUNTINGHOUSE_ZOOKEEPER:-}" ] || { have_java && have_jars; }
}

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

known_to_apt() {
    apt-cache show "$1" >/dev/null 2>&1
}

missing_packages() {
    have_jars || echo zookeeper
    have_java || echo default-jre-headless
}

install_packages() {
    packages="$(missing_packages)"
    for package in $packages; do
        known_to_apt "$package" || { as_root apt-get update -qq && break; }
    done
    say "installing $(echo $packages)"
    # An index that is out of date names files that are gone: renew it and try once more.
    # shellcheck disable=SC2086
    as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null \
        || { as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null; }
}

# The packages of ZooKeeper's class path; their other dependencies are of no use to the server.
unpack_packages() {
    packages="libzookeeper-java libcommons-cli-java libcommons-io-java libdropwizard-metrics-java libfindbugs-annotations-java
        libjackson2-annotations-java libjackson2-core-java libjackson2-databind-java libjetty9-java libnetty-java
        libslf4j-java libsnappy-java"
    draft="$cache.draft.$$"
    mkdir -p "$draft/packages"
    trap 'rm -rf "$draft"' EXIT
    say "not root: unpacking ZooKeeper's packages into $cache"
    # shellcheck disable=SC2086
    (cd "$draft/packages" && apt-get download -qq $packages >/dev/null) || return 1
    for archive in "$draft"/packages/*.deb; do
        [ -e "$archive" ] || return 1
        dpkg -x "$archive" "$draft/tree"
    done
    complete "$draft/tree" || return 1
    rm -rf "$cache"
    mv "$draft/tree" "$cache"
}

ready && exit 0

if command -v apt-get >/dev/null 2>&1; then
    if can_be_root; then
        install_packages || say "apt-get could not install them"
    elif ! have_jars; then
        unpack_packages || say "the packages could not be had; does apt know them (apt-get update)?"
    fi
fi

ready && exit 0
have_docker && { say "no Java with ZooKeeper; Docker's zookeeper:3.9 will be used"; exit 0; }
have_jars || say "install ZooKeeper (apt install zookeeper, or unpack Apache's archive and put its bin/ on PATH)"
have_java || say "install Java (apt install default-jre-headless), or set JAVA_HOME"
say "or start Docker, or set COUNTINGHOUSE_ZOOKEEPER=host:port to use a ZooKeeper that runs"
exit 1
