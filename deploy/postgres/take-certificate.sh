#!/bin/bash
# Takes the key and certificate that the operator hands out for PostgreSQL, and those that are renewed. The server wants
# the key to be its own and readable by no other user, and the operator cannot give files away.
set -eu
given=/run/secrets/server.pem taken=/var/run/postgresql/server.pem

trap exit TERM INT
while true; do
  if ! cmp -s "$given" "$taken"; then
    install -m 600 "$given" "$taken.new"
    mv "$taken.new" "$taken"
    psql --quiet --username postgres --command 'SELECT pg_reload_conf()' >/dev/null 2>&1 || true # not yet started
  fi
  sleep 5 &
  wait $!
done
