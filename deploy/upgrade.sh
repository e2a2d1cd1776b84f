#!/bin/sh
# Replaces the containers of the running deployment by those of the image that is built here, while calls go on: the
# instances of a service one after the other, the services that others call first.
#
#   make compose-upgrade        COMPOSE_PROJECT_NAME, COUNTINGHOUSE_PORTS … as the deployment was started with
#
# ZooKeeper and PostgreSQL stay as they are; `docker compose up -d` replaces them, and calls fail meanwhile. So it does
# with everything where CHANGELOG says that a version cannot run beside the one before.
# Exits 1 if a step fails: what is replaced stays so, and the next start of this script goes on.
set -eu
cd "$(dirname "$0")"

WAIT_S=120

say() { echo "upgrade: $*" >&2; }
run_job() { say "$1"; docker compose run --rm --no-deps -T "$1" >&2; }
replace() { say "$*"; docker compose up -d --no-deps --wait --wait-timeout "$WAIT_S" "$@" >&2; }

registered() {  # as a provider; consumers are listed behind an empty line
    docker compose exec -T operator countinghouse registry ls | sed '/^$/q' | grep -q " $1 "
}

wait_registered() {  # others call an instance once it is in the registry: only then the next one may go
    tries=$WAIT_S
    until registered "$1"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { say "$1 is not in the registry after $WAIT_S s; see \`docker compose logs $1\`"; exit 1; }
        sleep 1
    done
}

docker compose build >&2
replace operator
for job in roles tree order-migrate ledger-migrate payment-migrate acquirer-migrate; do run_job "$job"; done
for instance in order-1 order-2 ledger-1 ledger-2 payment-1 payment-2; do
    replace "$instance"
    wait_registered "$instance"
done
replace acquirer
replace order-prune ledger-prune payment-prune
say "done"
