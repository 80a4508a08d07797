# shellcheck shell=bash
# The steps of docker/verify.sh. What a step prints is told on its line; what one finds out for the next lies in $WORK.

set_up() {
    tar -C "$ROOT" --exclude-vcs --exclude=./.venv --exclude=./.env --exclude=./docker/secrets --exclude=./tid-data \
        --exclude=./tid-demo --exclude=__pycache__ -c . | tar -C "$SITE" -x
    sh "$SITE/docker/init.sh" >&2
    {
        echo "PUBLISH=127.0.0.1:$PORT"
        echo "PROMETHEUS_PUBLISH=127.0.0.1:$PROMETHEUS_PORT"
        echo "API_IMAGE=$API_IMAGE"
        echo "WORKER_IMAGE=$WORKER_IMAGE"
        [[ -n $GPU ]] || echo "COMPOSE_FILE=docker-compose.yml:docker/compose.cpu.yml"
        [[ -z $STANDINS ]] || "$SITE/docker/standins/build.sh"
    } >>"$SITE/.env"
}

# By BuildKit where its plugin is new enough for Compose, else by the engine's own builder. That one gets the host's
# network, without which it reaches nothing where the engine may not set up any (`dockerd --iptables=false`).
build() {
    local image
    has_buildkit || export DOCKER_BUILDKIT=0 BUILD_NETWORK=host
    compose build api worker >&2
    for image in "$API_IMAGE" "$WORKER_IMAGE"; do
        echo "$image $(megabytes "$image") MB"
    done
}
has_buildkit() {
    [[ ${DOCKER_BUILDKIT:-1} != 0 ]] &&
        version_at_least 0.17 "$(docker buildx version 2>/dev/null | sed -n 's/.* v\([0-9.]*\).*/\1/p')"
}
megabytes() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

api_image() {
    [[ $(megabytes "$API_IMAGE") -lt 400 ]] || wrong "the image has $(megabytes "$API_IMAGE") MB, not less than 400"
    docker run --rm "$API_IMAGE" python -c '
import importlib.util, sys
sys.exit(importlib.util.find_spec("torch") and "the image has torch")'
    not_root "$API_IMAGE"
}
worker_image() { not_root "$WORKER_IMAGE"; }
not_root() { [[ $(docker run --rm "$1" id -u) =~ ^[1-9] ]] || wrong "$1 runs as root"; }

# What is waited for shows as it changes.
be_ready() { ask ready 300 2> >(sed 's/^/           /' >&3); }

one_port() {
    local ports
    # shellcheck disable=SC2016 # the variables are those of Go's template
    ports=$(containers | xargs docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}}
        {{- range $port, $bound := .NetworkSettings.Ports}}{{range $bound}} {{.HostIp}}:{{.HostPort}}{{end}}{{end}}' |
        grep ' ')
    [[ $ports == "api 127.0.0.1:$PORT" ]] || wrong "published are: $ports"
    echo "$ports"
}

read_only() {
    local service
    containers | xargs docker inspect --format '{{.Name}} {{.HostConfig.ReadonlyRootfs}}' >"$WORK/read-only"
    ! grep -v ' true$' "$WORK/read-only" >&2 || wrong "these can write to their root file system"
    for service in api worker; do
        ! compose exec -T "$service" touch /opt/tid/written 2>"$WORK/refusal" || wrong "$service could write to /opt/tid"
        grep -q 'Read-only file system' "$WORK/refusal" || wrong "$service: $(cat "$WORK/refusal")"
    done
    echo "$(wc -l <"$WORK/read-only") containers"
}

send_dataset() {
    client python /verify/scenes.py /out/scenes.zip
    tid datasets add scenes /out/scenes.zip >&2
}

train_teacher() {
    ask submit verify-teacher 4 >"$WORK/teacher"
    ask "until" "$(cat "$WORK/teacher")" succeeded 900
}

survive_kill() {
    local job
    job=$(ask submit verify-student 40 "$(cat "$WORK/teacher")")
    echo "$job" >"$WORK/student"
    ask trains "$job" 1 40 600
    kill_container worker
    ask "until" "$job" succeeded 900
    ask attempts "$job" >"$WORK/attempts"
    [[ $(look worker '{{.RestartCount}}') -ge 1 ]] || wrong "Docker has not restarted the worker"
    grep -qE '^attempt 1 lost ' "$WORK/attempts" || wrong "the first attempt was not lost: $(cat "$WORK/attempts")"
    grep -qE '^attempt 2 succeeded: from step [1-9]' "$WORK/attempts" || wrong "the second did not go on: $(cat "$WORK/attempts")"
    cat "$WORK/attempts"
}

# SIGKILL to its first process. `docker kill` would count as a wish that it stays down.
kill_container() {
    docker run --rm --pid host --user 0 "$API_IMAGE" python -c "import os; os.kill($(look "$1" '{{.State.Pid}}'), 9)"
}

compare_with_twin() {
    local job
    job=$(ask submit verify-twin 40 "$(cat "$WORK/teacher")")
    ask "until" "$job" succeeded 900
    [[ $(ask sum "$job") == "$(ask sum "$(cat "$WORK/student")")" ]] || wrong "the weights differ"
}

download() {
    local job row
    job=$(cat "$WORK/student")
    row=$(ask sum "$job")
    tid download "$job" --force --out /out/best.safetensors | tee "$WORK/downloaded" >&2
    grep -q "sha256 $row" "$WORK/downloaded" || wrong "the header states another sha256 than the row, $row"
    echo "$row  $WORK/out/best.safetensors" | sha256sum --check --status || wrong "the file has another sha256 than $row"
    echo "$row"
}

load_student() {
    local job
    job=$(cat "$WORK/student")
    tid download "$job" --format pt --out /out/best.pt >&2
    tid download "$job" --format card --out /out/card.json >&2
    docker run --rm --network none --volume "$WORK/out:/out:ro" --workdir /out "$WORKER_IMAGE" python -c '
import json
from safetensors.torch import load_file
names = {}
exec(json.load(open("card.json"))["torchvision"], names)
print(names["model"].load_state_dict(load_file("best.safetensors"), strict=True))'
}

drain() {
    local job began code
    job=$(ask submit verify-long 5000 "$(cat "$WORK/teacher")")
    echo "$job" >"$WORK/long"
    ask trains "$job" 1 20 600
    began=$SECONDS
    compose stop worker
    code=$(look worker '{{.State.ExitCode}}')
    [[ $code == 0 ]] || wrong "the worker ended with code $code"
    ask "until" "$job" queued 30
    ask attempts "$job" >"$WORK/attempts"
    grep -qE '^attempt 1 handed_back \(worker_stopped\): from step 0 to [1-9]' "$WORK/attempts" || wrong "attempts: $(cat "$WORK/attempts")"
    echo "exit code 0 after $((SECONDS - began)) s"
}

go_on() {
    local job
    job=$(cat "$WORK/long")
    compose start worker
    ask trains "$job" 2 5 600
    ask attempts "$job" | grep -E '^attempt 2 runs: from step [1-9]' || wrong "the second attempt began anew"
    tid cancel "$job" >&2
    ask "until" "$job" cancelled 60
}

restart_api() {
    compose restart api
    be_ready
    download
}

down_and_up() {
    compose down --timeout 60
    compose up --detach --no-build
    be_ready
    download
}

run_demo() {
    compose run --rm -T demo --quick >&2
    [[ -s $SITE/tid-demo/report.json ]] || wrong "the demo left no report"
}

watch() {
    compose --profile monitoring up --detach --no-build prometheus
    ask scraped "http://127.0.0.1:$PROMETHEUS_PORT" 120
}

# Passwords and secret keys are 64 hexadecimal digits, in each of the files that hold them.
secrets_stay() {
    grep -ohE '[0-9a-f]{64}' "$SITE"/docker/secrets/* | sort -u >"$WORK/patterns"
    [[ -s $WORK/patterns ]] || wrong "docker/secrets holds no secret"
    {
        containers | xargs docker inspect
        compose logs --no-color
        docker history --no-trunc "$API_IMAGE"
        docker history --no-trunc "$WORKER_IMAGE"
    } >"$WORK/told"
    ! grep -qF -f "$WORK/patterns" "$WORK/told" || wrong "a secret is told: $(grep -cF -f "$WORK/patterns" "$WORK/told") lines"
    echo "$(wc -l <"$WORK/patterns") secrets, $(wc -l <"$WORK/told") lines"
}

tear_down() {
    local left
    compose --profile '*' down --volumes --timeout 60
    left=$(containers && docker volume ls --quiet --filter "$LABEL" && docker network ls --quiet --filter "$LABEL")
    [[ -z $left ]] || wrong "left: $left"
}
