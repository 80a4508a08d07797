#!/usr/bin/env bash
# Proof that docker-compose.yml does what it should, on this host: a copy of this tree is set up as docker/README.md
# says, with secrets, volumes and a port of its own; a student is distilled through the port while its worker is killed;
# everything is taken down again.
#
#   docker/verify.sh                 with the images that .env.example names
#   docker/verify.sh --standins      with stand-ins for them (docker/standins/), where no registry can be reached
#     --gpu     with this host's GPUs; else without
#     --keep    leave everything as it is at the end, to look around
#     --check   only say whether it could run here
#
# Exit codes: 0 proved, 1 not, 77 skipped, with the reason, where Docker or something else is missing.
set -euo pipefail
umask 022 # containers of other accounts read what is shared with them

ROOT=$(cd "$(dirname "$0")/.." && pwd)
STANDINS='' GPU='' KEEP='' CHECK=''
for option in "$@"; do
    case $option in
        --standins) STANDINS=1 ;;
        --gpu) GPU=1 ;;
        --keep) KEEP=1 ;;
        --check) CHECK=1 ;;
        *)
            sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
    esac
done

# shellcheck source-path=SCRIPTDIR source=verify/tools.sh
. "$ROOT/docker/verify/tools.sh"
# shellcheck source-path=SCRIPTDIR source=verify/checks.sh
. "$ROOT/docker/verify/checks.sh"

prerequisites
[[ -z $CHECK ]] || { echo "it can run here: Compose is ${COMPOSE[*]}"; exit 0; }

WORK=$(mktemp -d)
readonly WORK SITE=$WORK/site PROJECT=tid-verify-$$ API_IMAGE=tid-api:verify WORKER_IMAGE=tid-worker:verify
readonly LABEL=label=com.docker.compose.project=$PROJECT
TITLE=
PORT=$(free_port) PROMETHEUS_PORT=$(free_port)
mkdir "$SITE" "$WORK/out"

exec 3>&1
finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    exec >&3 2>&3 # a step that fails leaves them redirected
    case $code in
        0) ;;
        130) echo "interrupted; taking everything down" ;;
        *) failed ;;
    esac
    if [[ -n $KEEP ]]; then
        echo "kept: cd $SITE && ${COMPOSE[*]} --project-name $PROJECT ps; the API is at http://127.0.0.1:$PORT"
    else
        compose --profile '*' down --volumes --timeout 10 >/dev/null 2>&1 || true
        rm -rf "$WORK"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

step "a copy of the tree, its .env and its secrets" set_up
step "images are built" build
step "the API's image is small, without PyTorch, and not root's" api_image
step "neither is the worker's" worker_image
step "docker compose up" compose up --detach --no-build --quiet-pull
step "everything is ready, and a worker is online" be_ready
[[ -z $GPU ]] || step "the worker sees the GPUs" compose exec -T worker nvidia-smi --list-gpus
step "only the API has a port on this host" one_port
step "no container can write to its root file system" read_only
step "a dataset is sent and looked through" send_dataset
step "a teacher is trained" train_teacher
step "a student trains on, from a saved state, after its worker's container was killed" survive_kill
[[ -n $GPU ]] || step "it has the bits of one that was not interrupted" compare_with_twin
step "it arrives with the sha256 that its row and its header state" download
step "the lines of its model card load it, every key, in the worker's image" load_student
step "SIGTERM: the worker ends in time, and hands its job back with a state" drain
step "the job goes on when the worker is back" go_on
step "the API is restarted: nothing is lost" restart_api
step "compose down and up: nothing is lost" down_and_up
step "the demo" run_demo
step "Prometheus reads its figures, and has rules for alerts" watch
step "no password or key shows in what Docker and the logs tell" secrets_stay
[[ -n $KEEP ]] || step "compose down --volumes leaves nothing" tear_down
echo "proved in $SECONDS s; the images tid-api:verify and tid-worker:verify stay, to be quicker next time"
