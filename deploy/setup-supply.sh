#!/bin/sh
# Makes .venv-supply with exactly what requirements-supply.lock names: the tools of `make check-supply`. They are in an
# environment of their own: the product and its tests do not depend on them. Quiet when they are there.
# Exits 1 if the packages cannot be installed.
set -eu

say() { echo "setup-supply: $*" >&2; }

cd "$(dirname "$0")/.."
installed=.venv-supply/requirements-supply.lock
cmp -s requirements-supply.lock "$installed" && exit 0
say "installing the $(grep -c '^[a-z0-9].*==' requirements-supply.lock) packages of requirements-supply.lock into .venv-supply"
.venv/bin/python -m venv --clear .venv-supply
.venv-supply/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements-supply.lock >&2 \
    || { say "the packages could not be installed; pip says why above"; exit 1; }
cp requirements-supply.lock "$installed"
