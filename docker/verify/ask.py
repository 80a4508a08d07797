"""What docker/verify.sh asks of the service: the Python client, in a container of the API's image, through the port.

ask.py ready SECONDS                       until GET /readyz agrees and a worker is online
ask.py submit NAME EPOCHS [TEACHER]        a job, distilled by TID from that job's best; prints its id
ask.py until JOB STATE SECONDS             until the job is in this state; any other end is a failure
ask.py trains JOB ATTEMPT STEPS SECONDS    until this attempt has gone so many steps beyond where it began
ask.py attempts JOB                        one line for each: how it ended, from which step to which
ask.py sum JOB                             sha256 of the best student, as its row says
ask.py scraped URL SECONDS                 until the Prometheus there has read the API's figures
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from api.schemas import TERMINAL_STATES
from client.client import Client
from client.console import say
from client.errors import ClientError

POLL = 0.5
"""Seconds."""
TRAINING = {
    "batch_size": 4,
    "optimizer": "adamw",
    "lr": 0.003,
    "warmup_steps": 4,
    "log_every_steps": 1,
    "save_every_steps": 5,
    "threads": 1,  # also on a host that has other work to do
}


def spec(name: str, epochs: int, teacher: str | None) -> dict[str, Any]:
    """Six steps an epoch, at 64 pixels."""
    return {
        "name": name,
        "dataset": "scenes",
        "teacher": {"weights": {"job": teacher, "checkpoint": "best"}} if teacher else None,
        "student": {"detector": "fcos_conv5_tiny" if teacher else "fcos_conv10_small"},
        "data": {"min_size": [64], "max_size": 64},
        "training": {**TRAINING, "epochs": epochs},
        "evaluation": {"maps": 0, "every_epochs": 10},
        "baseline": False,
    }


def submit(client: Client, name: str, epochs: str, teacher: str | None = None) -> None:
    say(client.submit(spec(name, int(epochs), teacher)).id)


def ready(client: Client, seconds: str) -> None:
    def look() -> bool:
        try:
            found = client.ready()
        except ClientError as error:
            tell(str(error))
            return False
        missing = [f"{one.name}: {one.detail}" for one in found.dependencies if not one.ok]
        tell("; ".join(missing) or "everything answers")
        return found.ready and not any(line.startswith("workers") for line in missing)

    wait(look, float(seconds))


def until(client: Client, job_id: str, state: str, seconds: str) -> None:
    def look() -> bool:
        job = client.job(job_id)
        tell(f"{job.state}, attempt {job.attempt}, step {job.progress.step} of {job.progress.total_steps}")
        if job.state in TERMINAL_STATES and job.state != state:
            sys.exit(f"the job is {job.state} ({job.status_reason}: {job.detail}), not {state}")
        return job.state == state

    wait(look, float(seconds))


def trains(client: Client, job_id: str, number: str, steps: str, seconds: str) -> None:
    def look() -> bool:
        job = client.job(job_id)
        tell(f"{job.state}, attempt {job.attempt}, step {job.progress.step}")
        if job.state in TERMINAL_STATES:
            sys.exit(f"the job is {job.state} ({job.status_reason}: {job.detail}) before step {steps}")
        began = next((one.resumed_from_step for one in client.attempts(job_id) if one.number == int(number)), None)
        return began is not None and job.state == "running" and job.progress.step - began >= int(steps)

    wait(look, float(seconds))


def attempts(client: Client, job_id: str) -> None:
    for one in client.attempts(job_id):
        reason = f" ({one.reason})" if one.reason else ""
        end = f" to {one.last_step}" if one.ended_at else ""
        say(f"attempt {one.number} {one.outcome or 'runs'}{reason}: from step {one.resumed_from_step}{end}")


def digest(client: Client, job_id: str) -> None:
    kept = next(one for one in client.checkpoints(job_id) if one.name == "best")
    say(next(one for one in kept.files if one.format == "safetensors").sha256)


def scraped(_client: Client, url: str, seconds: str) -> None:
    def look() -> bool:
        try:
            rules = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
            (target,) = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
        except (httpx.TransportError, ValueError) as error:
            tell(str(error))
            return False
        tell(f"{len(rules)} groups of rules; the API is {target['health']}: {target['lastError']}")
        return bool(rules) and target["health"] == "up"

    wait(look, float(seconds))


_told = ""


def tell(text: str) -> None:
    """What it waits for, on stderr, whenever that is something else."""
    global _told
    if text != _told:
        _told = text
        sys.stderr.write(f"{text}\n")


def wait(look: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            sys.exit(f"still waiting after {seconds:g} s: {_told}")
        time.sleep(POLL)


COMMANDS: dict[str, Callable[..., None]] = {
    "ready": ready,
    "submit": submit,
    "until": until,
    "trains": trains,
    "attempts": attempts,
    "sum": digest,
    "scraped": scraped,
}


def main() -> None:
    name, *arguments = sys.argv[1:]
    with Client(retries=8) as client:
        COMMANDS[name](client, *arguments)


if __name__ == "__main__":
    try:
        main()
    except ClientError as error:
        sys.exit(str(error))
