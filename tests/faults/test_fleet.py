"""The scaled-out service: each fault, with the real processes, and afterwards the same bits as without it."""

import os
import signal
from typing import Any

import pytest
import redis
from sqlalchemy import func, select

from benchmarks.fire import processes
from benchmarks.fire.databases import Postgres
from benchmarks.fire.fleet import Fleet, patiently
from benchmarks.fire.results import SPEC, Result, complaints, read_result
from benchmarks.fire.tiny import tiny
from store.models import Metric, ResumeState
from store.states import State

EPOCHS = 12
STEPS = 3 * EPOCHS
LONG = {**SPEC, **tiny(EPOCHS)}
"""Long enough to be met while it trains, also on a quick machine."""
OVER_THE_LEASE = 7.5
"""Seconds; a lease lasts six."""


class Watched:
    """One job, and which attempt at it is under way."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.id = fleet.client.submit({**LONG, "name": name}).id

    def wait_until_saved(self, *, attempt: int, step: int = 1) -> tuple[str, int]:
        """Until a state of this attempt is recorded; returns its worker and its training's process."""
        saved = select(ResumeState.step).where(
            ResumeState.job_id == self.id, ResumeState.attempt == attempt, ResumeState.step >= step
        )
        self.fleet.wait_for(lambda: self.look(saved))
        worker = self.attempts()[attempt - 1].worker_id
        training = self.fleet.training(worker)
        assert training is not None
        return worker, training

    def look(self, statement: Any) -> Any:
        with self.fleet.records.read() as session:
            return session.scalar(statement)

    def attempts(self) -> Any:
        return patiently(lambda: self.fleet.client.attempts(self.id))

    def state(self) -> tuple[str, int]:
        job = patiently(lambda: self.fleet.client.job(self.id))
        return job.state, job.attempt

    def wrong(self, reference: Result) -> list[str]:
        """After the end of the job."""
        self.fleet.wait_for(lambda: self.state()[0] not in (State.QUEUED, State.STARTING, State.RUNNING))
        artifacts = self.fleet.home / "artifacts"
        return complaints(self.id, self.fleet.records, artifacts, reference, cancelled=False)


@pytest.fixture(scope="module")
def reference(fleet: Fleet) -> Result:
    """A job that both idle workers are told of, several times and at once; nothing else happens to it."""
    job = Watched(fleet, "undisturbed")
    fleet.ring(job.id, times=4)
    fleet.wait_for(lambda: job.state()[0] == State.SUCCEEDED)
    return read_result(job.id, fleet.records, fleet.home / "artifacts")


def test_of_two_workers_that_are_told_at_once_one_runs_the_job(fleet: Fleet, reference: Result) -> None:
    job = fleet.client.find("undisturbed")
    assert [attempt.outcome for attempt in fleet.client.attempts(job.id)] == ["succeeded"]
    assert [step for name, step in sorted(reference.curves) if name == "loss/total"] == list(range(1, STEPS + 1))
    assert set(reference.weights) == {"best", "last"}


def test_what_takes_no_worker_costs_no_attempt(fleet: Fleet, reference: Result) -> None:
    """Messages, API, Valkey and PostgreSQL are lost, the training is frozen: longer than the lease, one by one."""
    with redis.Redis(unix_socket_path=str(fleet.socket)) as broker:
        frozen = [pid for worker in fleet.workers for pid in fleet.pool(worker)]
        processes.send(signal.SIGSTOP, frozen)  # so that nobody hears the message before it is lost,
        fleet.wait_for(lambda: broker.info("clients")["blocked_clients"] == 0)  # also none that asked before it froze
        job = Watched(fleet, "endures")
        fleet.wait_for(lambda: broker.delete("default"))
        processes.send(signal.SIGCONT, frozen)
    _, training = job.wait_until_saved(attempt=1)
    os.kill(training, signal.SIGSTOP)
    before = fleet.kill("api")
    fleet.kill("valkey")
    fleet.wait_for(lambda: fleet.pid("api") != before and fleet.answers())
    assert isinstance(fleet.database, Postgres)
    fleet.database.kill(OVER_THE_LEASE)
    fleet.wait_for(fleet.answers)
    assert job.state() == (State.RUNNING, 1)
    fleet.database.block(OVER_THE_LEASE)
    fleet.wait_for(fleet.answers)
    assert job.state() == (State.RUNNING, 1)
    os.kill(training, signal.SIGCONT)
    assert job.wrong(reference) == []
    assert len(job.attempts()) == 1


def test_a_frozen_worker_that_lost_its_job_does_no_harm(fleet: Fleet, reference: Result) -> None:
    """Then the training of its successor is killed, and the worker of the next one told to stop."""
    job = Watched(fleet, "survives")
    first, old = job.wait_until_saved(attempt=1)
    frozen = fleet.pool(first)
    processes.send(signal.SIGSTOP, frozen)  # its training goes on, until nobody takes what it says
    second, training = job.wait_until_saved(attempt=2, step=3)
    assert second != first  # and so one of the two had the wrong clock
    os.kill(training, signal.SIGSTOP)
    written = select(func.count()).where(Metric.job_id == job.id, Metric.attempt == 1)
    scratch = fleet.home / "work" / job.id
    files, points = set((scratch / "attempt-2").rglob("*")), job.look(written)
    processes.send(signal.SIGCONT, frozen)
    fleet.wait_for(lambda: processes.gone(old) and not (scratch / "attempt-1").exists())
    assert job.look(written) == points
    assert job.state() == (State.RUNNING, 2)
    assert files <= set((scratch / "attempt-2").rglob("*"))

    os.kill(training, signal.SIGKILL)
    third, training = job.wait_until_saved(attempt=3)
    os.kill(training, signal.SIGSTOP)  # or it might reach its end before the worker has heard
    stopped = fleet.kill(third, signal.SIGTERM)
    fleet.wait_for(lambda: processes.has_pending(training, signal.SIGTERM))
    os.kill(training, signal.SIGCONT)
    fleet.wait_for(lambda: fleet.pid(third) != stopped)
    assert job.wrong(reference) == []
    attempts = job.attempts()
    assert [attempt.outcome for attempt in attempts] == ["lost", "crashed", "handed_back", "succeeded"]
    assert [attempt.reason for attempt in attempts[:3]] == ["worker_lost", "child_killed", "worker_stopped"]
    assert attempts[3].resumed_from_step == attempts[2].last_step
