#!/bin/sh
# Makes the secret files of compose.yaml in docker/secrets: random, for the containers' user alone, never overwritten.
#
#   docker/secrets.sh [FOLDER]
#
# Containers run as user 10001. Started by root, this gives the files to that user with mode 600. Anyone else may not give a
# file away: then they are readable files in a folder that only you can enter (mode 700).
set -eu
folder=${1:-$(dirname "$0")/secrets}
user=10001
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

keep() { # NAME: what comes on standard input, where there is no such file yet
  if [ -e "$folder/$1" ]; then
    echo "$1: kept"
    return
  fi
  cat >"$folder/.$1.tmp"
  if [ "$(id -u)" = 0 ]; then chown "$user:$user" "$folder/.$1.tmp"; else chmod 644 "$folder/.$1.tmp"; fi
  mv "$folder/.$1.tmp" "$folder/$1"
  echo "$1: made"
}

random() { # BYTES, as hexadecimal digits
  od -An -v -N "$1" -tx1 /dev/urandom | tr -d ' \n'
}

for name in postgres_password mlflow_database_password prefect_database_password mlflow_admin_password \
  mlflow_scorer_password mlflow_flask_key prefect_password api_keys s3_secret_key; do
  random 32 | keep "$name"
done
random 10 | keep s3_access_key
printf '{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin"]}]}\n' \
  "$(cat "$folder/s3_access_key")" "$(cat "$folder/s3_secret_key")" | keep s3.json
