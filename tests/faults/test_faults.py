"""The service under fire: whatever is killed, every job ends, counts once, and ends as if nothing had been."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fire import processes
from benchmarks.fire.databases import Sqlite

Result = tuple[dict[str, str], dict[tuple[str, int], float]]


@pytest.fixture(scope="module")
def undisturbed(service: Any, spec: dict[str, Any]) -> Result:
    """Students and curves of a job that nothing happens to, but that it is announced three times."""
    job_id = service.client.submit({**spec, "name": "undisturbed"}).id
    service.ring(job_id)
    service.ring(job_id)
    assert service.client.wait(job_id).state == "succeeded"
    assert [attempt.outcome for attempt in service.client.attempts(job_id)] == ["succeeded"]
    return service.weights(job_id), service.curves(job_id)


def test_a_job_from_post_to_file(service: Any, undisturbed: Result, tmp_path: Path) -> None:
    weights, curves = undisturbed
    assert set(weights) == {"best", "last"}
    assert [step for name, step in sorted(curves) if name == "loss/total"] == list(range(1, 25))
    job = service.client.find("undisturbed")
    file = tmp_path / "student.safetensors"
    service.client.download(job.id, "best", path=file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == weights["best"]
    (worker,) = service.client.workers()
    assert worker.alive
    assert worker.device["cpus"] >= 1


def test_a_job_outlives_its_worker_and_the_service(service: Any, spec: dict[str, Any], undisturbed: Result) -> None:
    """kill -9 of the worker, SIGTERM to all its processes, a stop of the whole service: four attempts, one result."""
    job_id = service.client.submit({**spec, "name": "survivor"}).id
    training = service.wait_until_saved(job_id, step=4, attempt=1)
    (worker,) = service.client.workers()
    assert (worker.state, worker.current_job) == ("busy", job_id)
    service.kill("worker-0")
    service.wait_for(lambda: processes.gone(training))  # it dies with the process that watched it

    service.wait_until_saved(job_id, step=9, attempt=2)
    os.killpg(service.embedded.parts["worker-0"].pid, signal.SIGTERM)

    service.wait_until_saved(job_id, step=14, attempt=3)
    service.stop()
    service.start()

    assert service.client.wait(job_id).state == "succeeded"
    attempts = service.client.attempts(job_id)
    assert [attempt.outcome for attempt in attempts] == ["lost", "handed_back", "handed_back", "succeeded"]
    assert [attempt.reason for attempt in attempts[:3]] == ["worker_lost", "worker_stopped", "worker_stopped"]
    assert attempts[1].resumed_from_step >= 4
    assert [attempt.resumed_from_step for attempt in attempts[2:]] == [attempt.last_step for attempt in attempts[1:3]]
    assert (service.weights(job_id), service.curves(job_id)) == undisturbed


def test_a_lost_message_and_a_killed_api_cost_nothing(service: Any, spec: dict[str, Any], undisturbed: Result) -> None:
    """The broker forgets the second job, the API dies; a job is cancelled while it runs, and the other one follows."""
    endless = {**spec["training"], "epochs": 1000}  # however long the API takes to come back
    first = service.client.submit({**spec, "name": "cancelled", "training": endless}).id
    training = service.wait_until_saved(first, step=2, attempt=1)
    second = service.client.submit({**spec, "name": "forgotten"}).id
    service.kill("valkey")
    service.kill("api")
    service.wait_for(lambda: service.embedded.parts["api"].restarts and service.answers())
    assert service.client.cancel(first).state == "cancelling"
    assert service.client.wait(first).state == "cancelled"
    assert processes.gone(training)

    assert service.client.wait(second).state == "succeeded"
    assert len(service.client.attempts(second)) == 1
    assert (service.weights(second), service.curves(second)) == undisturbed


def test_a_locked_database_is_waited_for(service: Any, spec: dict[str, Any], undisturbed: Result) -> None:
    """Nobody can write for longer than a lease: the owner cannot renew, and nobody takes its job for that."""
    job_id = service.client.submit({**spec, "name": "locked out"}).id
    training = service.wait_until_saved(job_id, step=2, attempt=1)
    os.kill(training, signal.SIGSTOP)  # so that it is not over before
    Sqlite(service.home / "tid.db").block(8.0)
    os.kill(training, signal.SIGCONT)
    assert service.client.wait(job_id).state == "succeeded"
    assert [attempt.outcome for attempt in service.client.attempts(job_id)] == ["succeeded"]
    assert (service.weights(job_id), service.curves(job_id)) == undisturbed
