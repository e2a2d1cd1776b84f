#!/usr/bin/env bash
# Makes .venv with exactly what requirements.lock names, and this project on top, and prints each step.
# Usage: setup-python.sh [python]
set -euo pipefail
say() { echo "setup-python: $*"; }
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Countinghouse needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 names one" >&2; exit 1; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  # Debian keeps both in a package of their own
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say "installing python3-venv"
    (apt-get install -y -qq python3-venv || { apt-get update -qq && apt-get install -y -qq python3-venv; }) >/dev/null
  else
    echo "this Python has no venv; install it (Debian: apt install python3-venv)" >&2
    exit 1
  fi
fi
if [[ ! -x .venv/bin/python ]]; then
  say "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
say "installing the $(grep -c '^[a-z0-9].*==' requirements.lock) packages of requirements.lock (half a minute the first time)"
.venv/bin/python -m pip install --progress-bar off --require-hashes --no-deps -r requirements.lock \
  | awk '/^Collecting/ { print "  " $2; fflush() }'
say "installing this project"
.venv/bin/python -m pip install -q --no-build-isolation --no-deps --editable .
