# shellcheck shell=bash
# What docker/verify.sh is made of: telling, finding Docker, asking the service. $SITE is the copy that is verified,
# $WORK the folder around it.

readonly SKIPPED=77 # as Automake has it: neither right nor wrong
readonly LEAST_GIB=20

skip() {
    echo "skipped: $*"
    exit "$SKIPPED"
}

wrong() {
    echo "$*" >&2
    exit 1
}

# One line for each step: its time, its title, and what it printed. A command that fails ends the script; see failed().
step() {
    local began=$SECONDS
    TITLE=$1
    shift
    "$@" >"$WORK/said" 2>>"$WORK/log"
    printf 'ok %4d s  %s%s\n' $((SECONDS - began)) "$TITLE" "$(sed '1s/^/: /; 2,$s/^/, /' "$WORK/said" | tr -d '\n')"
    TITLE=
}

failed() {
    printf 'FAILED     %s\n' "$TITLE"
    tail -n 25 "$WORK/said" "$WORK/log" | sed 's/^/    /'
    if [[ -f $SITE/.env ]]; then
        compose ps --all
        compose logs --no-color --tail 30
    fi
}

# Sets COMPOSE, or ends.
prerequisites() {
    local why
    [[ $(uname -s) == Linux ]] || skip "this needs Linux"
    command -v docker >/dev/null || skip "there is no docker command; Debian has it as docker.io"
    why=$(docker version --format '{{.Server.Version}}' 2>&1) || skip "no Docker engine answers: ${why##*$'\n'}"
    version_at_least 20.10 "$why" || skip "the Docker engine is $why; 20.10 or later is needed"
    find_compose
    [[ $(free_gib) -ge $LEAST_GIB ]] || skip "$(free_gib) GiB are free for images; $LEAST_GIB are needed"
    [[ -z $GPU ]] || command -v nvidia-smi >/dev/null || skip "--gpu needs a GPU, and NVIDIA's driver"
    if [[ -n $STANDINS ]]; then
        [[ $(id -u) == 0 ]] || skip "--standins makes a root file system, so it needs root"
        command -v debootstrap >/dev/null || skip "--standins needs debootstrap"
    fi
}

find_compose() {
    local candidate version
    for candidate in "docker compose" docker-compose "$ROOT/.venv/bin/docker-compose"; do
        read -r -a COMPOSE <<<"$candidate"
        version=$("${COMPOSE[@]}" version --short 2>/dev/null) || continue
        version_at_least 2.24.4 "${version#v}" && return
    done
    skip "there is no Docker Compose 2.24.4 or later, as plugin, on PATH or in .venv"
}

version_at_least() { printf '%s\n' "$1" "$2" | sort --check=quiet --version-sort; }

free_gib() {
    local folder
    folder=$(docker info --format '{{.DockerRootDir}}')
    [[ -d $folder ]] || folder=/
    df --output=avail --block-size=1G "$folder" | tail -n 1 | tr -d ' '
}

compose() { (cd "$SITE" && "${COMPOSE[@]}" --project-name "$PROJECT" "$@"); }
containers() { docker ps --all --quiet --filter "$LABEL"; }
container() { compose ps --all --quiet "$1"; }
look() { docker inspect --format "$2" "$(container "$1")"; }

# A port that nothing listens on.
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 20000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    wrong "no free port was found"
}

# A program of the API's image, on this host's network: what it reaches, it reaches through the published port.
# shellcheck disable=SC2153 # PORT is verify.sh's
client() {
    docker run --rm --network host --user "$(id -u):$(id -g)" --env HOME=/tmp --env TID_URL="http://127.0.0.1:$PORT" \
        --env TID_API_KEY_FILE=/run/key --volume "$SITE/docker/secrets/tid_admin_key:/run/key:ro" \
        --volume "$SITE/docker/verify:/verify:ro" --volume "$WORK/out:/out" --workdir /out "$API_IMAGE" "$@"
}
tid() { client tid "$@"; }
ask() { client python /verify/ask.py "$@"; }
