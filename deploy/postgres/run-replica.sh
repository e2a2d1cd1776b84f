#!/bin/bash
# Runs the PostgreSQL server $REPLICA under Patroni, with the key and certificate that the operator hands out, and those
# that are renewed. The server wants the key to be its own and readable by no other user.
set -eu
given=/run/secrets/server.pem taken=/var/run/postgresql/server.pem

take() {
  install -m 600 "$given" "$taken.new"
  mv "$taken.new" "$taken"
}

take_renewed() {
  while sleep 5; do
    if ! cmp -s "$given" "$taken"; then
      take
      kill -HUP 1 # Patroni, which tells the server
    fi
  done
}

take
take_renewed &
export PATRONI_NAME=$REPLICA
export PATRONI_POSTGRESQL_CONNECT_ADDRESS=$REPLICA:5432
export PATRONI_RESTAPI_CONNECT_ADDRESS=$REPLICA:8008
PATRONI_POSTGRESQL_BIN_DIR=$(dirname "$(find /usr/lib/postgresql -name initdb | sort --version-sort | tail -1)")
export PATRONI_POSTGRESQL_BIN_DIR
exec patroni /etc/countinghouse/patroni.yml
