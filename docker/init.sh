#!/bin/sh
# Makes what `docker compose up` needs and git does not hold: .env, the secrets, and the folders that are shared with
# the containers. What is there already stays as it is, so it may be run again at any time.
#
#   sh docker/init.sh
set -eu
umask 077
cd "$(dirname "$0")/.."

secrets=docker/secrets

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# The folder is closed to other accounts of this host. The files in it are open, because Compose mounts each of them by
# itself into containers, whose accounts have other numbers.
secret() {
    if [ ! -e "$secrets/$1" ]; then
        cat >"$secrets/.$1"
        chmod 444 "$secrets/.$1"
        mv "$secrets/.$1" "$secrets/$1"
        echo "made $secrets/$1"
    fi
}
value() { cat "$secrets/$1"; }

make_secrets() {
    mkdir -p "$secrets"
    chmod 700 "$secrets"
    random_hex 32 | secret postgres_password
    printf 'requirepass %s\n' "$(random_hex 32)" | secret valkey_auth
    random_hex 10 | secret tid_s3_access_key_id
    random_hex 32 | secret tid_s3_secret_access_key
    printf 'tid_%s_%s\n' "$(random_hex 6)" "$(random_hex 32)" | secret tid_admin_key
    printf 'tid_%s_%s\n' "$(random_hex 6)" "$(random_hex 32)" | secret tid_prometheus_key
    printf 'postgresql://tid:%s@postgres/tid\n' "$(value postgres_password)" | secret tid_database_url
    printf 'redis://:%s@valkey:6379/0\n' "$(value valkey_auth | cut -d ' ' -f 2)" | secret tid_broker_url
    printf '{"identities": [{"name": "tid", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}]}\n' \
        "$(value tid_s3_access_key_id)" "$(value tid_s3_secret_access_key)" \
        '"Read:tid-artifacts", "Write:tid-artifacts", "List:tid-artifacts"' | secret s3.json
}

make_env() {
    if [ ! -e .env ]; then
        cp .env.example .env
        printf '\nWORKER_HOST=%s\n' "$(uname -n)" >>.env
        echo "made .env"
    fi
    # The results of the demo shall belong to whoever runs this; a root account needs no help.
    if [ "$(id -u)" != 0 ] && ! grep -q '^DEMO_UID=' .env; then
        printf '\nDEMO_UID=%s\nDEMO_GID=%s\n' "$(id -u)" "$(id -g)" >>.env
    fi
}

# Of the containers' own number where the caller may give things away, else of the caller, whose number is in .env.
make_folders() {
    mkdir -p -m 755 tid-data tid-demo
    if [ "$(id -u)" = 0 ]; then chown 10001:10001 tid-demo; fi
}

make_secrets
make_env
make_folders
echo "the admin's API key is in $secrets/tid_admin_key"
command -v nvidia-smi >/dev/null || echo "no GPU seen here: see COMPOSE_FILE in .env, or install NVIDIA's driver"
