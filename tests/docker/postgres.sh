#!/bin/sh
# What of the official image's entrypoint the stack relies on: a new database has a superuser with the password of
# POSTGRES_PASSWORD_FILE, and the SQL files of /docker-entrypoint-initdb.d have been run in it over the socket alone.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --encoding UTF8 \
    --auth-local trust --auth-host scram-sha-256
  pg_ctl --pgdata "$PGDATA" --wait --options "-c listen_addresses='' -c unix_socket_directories=$PGHOST" start
  for file in /docker-entrypoint-initdb.d/*.sql; do
    psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --file "$file"
  done
  pg_ctl --pgdata "$PGDATA" --wait --mode fast stop
fi
exec "$@" -c unix_socket_directories="$PGHOST"
