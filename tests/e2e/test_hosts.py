"""Many hosts that share PostgreSQL, Valkey and S3 alone. One is cut off while it trains, and comes back."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from benchmarks.fire import processes
from benchmarks.fire.results import Result, complaints, read_result
from benchmarks.fire.tiny import tiny
from store import checkpoints
from store.artifacts import attempt_key
from store.db import Database
from store.models import Attempt, Checkpoint, Job, LogChunk, Metric, ResumeState, Seat
from store.states import State
from store.upkeep.gc import collect
from tests.hosts import Hosts, network
from tests.site import Site
from tid_core.data.synthetic import write_demo_data

SPEC = {**tiny(3), "resources": {"max_attempts": 3}}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with network("service", "a", "b", "lost") as made:
        yield made


@pytest.fixture(scope="module")
def site(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service, with an uploaded dataset."""
    root = tmp_path_factory.mktemp("site")
    service, a, b, _ = hosts
    write_demo_data(root / "digits", images=12, seed=1)
    archive = shutil.make_archive(str(root / "digits"), "zip", root / "digits")
    shutil.rmtree(root / "digits")
    with Site(root, service, (a, b)).running() as site:
        site.client.add_dataset("digits", archive=Path(archive))
        yield site


class Watched:
    """A job, and its trainings."""

    def __init__(self, site: Site, name: str, queue: str = "default") -> None:
        self.site = site
        self.id = site.client.submit({**SPEC, "name": name, "resources": {"queue": queue}}).id

    def worker(self, attempt: int) -> str:
        """Waits until there is such an attempt."""
        whose = select(Attempt.worker_id).where(Attempt.job_id == self.id, Attempt.number == attempt)
        return str(self.site.wait_for(lambda: self.site.look(whose)))

    def scratch(self, attempt: int) -> Path:
        return self.site.home(self.worker(attempt)) / "work" / self.id / f"attempt-{attempt}"

    def freeze(self, attempt: int) -> int:
        """Halt the training as soon as there is one; returns its process."""
        scratch = self.scratch(attempt)
        while True:
            with suppress(LookupError):
                training = processes.training(scratch)
                os.kill(training, signal.SIGSTOP)
                return training
            time.sleep(0.05)

    def thaw_until_saved(self, training: int, attempt: int) -> None:
        """Let it go on until another state of it lies on the disk of its host."""
        folder = self.scratch(attempt) / "out" / "resume"
        before = set(folder.glob("step-????????"))
        os.kill(training, signal.SIGCONT)
        while set(folder.glob("step-????????")) <= before:
            time.sleep(0.005)
        os.kill(training, signal.SIGSTOP)

    def wait_until_recorded(self, attempt: int) -> None:
        saved = select(ResumeState.step).where(ResumeState.job_id == self.id, ResumeState.attempt == attempt)
        self.site.wait_for(lambda: self.site.look(saved))

    def recorded(self, attempt: int) -> list[Any]:
        """Everything that an attempt has written into the database."""
        with self.site.records.read() as session:
            of_each = [
                session.execute(select(table.__table__).where(table.job_id == self.id, table.attempt == attempt)).all()
                for table in (Metric, ResumeState, Checkpoint, LogChunk)
            ]
        return [row for rows in of_each for row in rows]

    def wait_until_succeeded(self) -> None:
        state = select(Job.state).where(Job.id == self.id)
        self.site.wait_for(lambda: self.site.look(state) not in (State.QUEUED, State.STARTING, State.RUNNING))
        assert self.site.look(state) is State.SUCCEEDED

    def files(self) -> Path:
        """Its checkpoints out of S3, in a folder, each where its key says."""
        with self.site.records.read() as session:
            rows = checkpoints.of_job(self.id, session=session)
        folder = self.site.root / "test"
        for row in rows:
            self.site.artifacts.fetch(row.key, folder / row.key, sha256=row.sha256)
        return folder

    def result(self) -> Result:
        return read_result(self.id, self.site.records, self.files())


def test_a_job_leaves_a_host_that_is_cut_off_and_nothing_of_it_counts_when_it_comes_back(
    site: Site, hosts: Hosts, tmp_path: Path
) -> None:
    parked, lost = Watched(site, "parked", "nobody"), hosts[3]
    locked = select(Job.id).where(Job.id == parked.id).with_for_update(skip_locked=True)
    job = Watched(site, "moves")
    first, training = job.worker(1), job.freeze(1)
    for _ in range(2):  # between the two it tells of the first
        job.thaw_until_saved(training, 1)
    job.wait_until_recorded(1)
    with lost.inside():
        silent = Database(site.url).writer()
        assert silent.scalar(locked) == parked.id
    lost.cut()
    site.workers[first].cut()
    job.thaw_until_saved(training, 1)  # it goes on, and nobody hears of it; frozen, it is still there later
    site.kill("valkey")  # and with it what the host would listen to

    successor = job.freeze(2)
    written, scratch = job.recorded(1), job.scratch(1)
    site.workers[first].heal()
    os.kill(training, signal.SIGCONT)
    site.wait_for(lambda: not scratch.exists() and processes.gone(training))
    assert job.recorded(1) == written
    assert site.look(select(Job.attempt).where(Job.id == job.id, Job.lease_token.is_not(None))) == 2
    os.kill(successor, signal.SIGCONT)
    job.wait_until_succeeded()
    attempts = site.client.attempts(job.id)
    assert [(one.outcome, one.reason) for one in attempts] == [("lost", "worker_lost"), ("succeeded", None)]
    assert {one.worker_id for one in attempts} == {"a", "b"}
    assert (attempts[1].resumed_from_step or 0) > 0

    again = Watched(site, "undisturbed", first)
    again.wait_until_succeeded()
    assert site.parts[first].exit_code() is None, "the same process as ever"
    assert "fetching" not in site.client.logs(again.id).text

    late = tmp_path / "late"
    late.write_bytes(b"of the first attempt")
    site.artifacts.put(f"{attempt_key(job.id, 1)}/checkpoints/late", late)
    collect(site.records, site.settings.model_copy(update={"gc_grace_hours": -1.0}))
    assert list(site.artifacts.listing(attempt_key(job.id, 1))) == []
    assert complaints(job.id, site.records, job.files(), again.result(), cancelled=False) == []

    with site.records.write() as session:
        site.wait_for(lambda: session.scalar(locked) == parked.id)
    silent.invalidate()


def test_two_hosts_train_one_job_and_it_goes_on_after_one_was_cut_off(site: Site) -> None:
    job_id = site.client.submit({**tiny(3), "name": "together", "resources": {"nodes": 2}}).id
    beside = str(site.wait_for(lambda: site.look(select(Seat.worker_id).where(Seat.job_id == job_id))))
    owner = site.look(select(Attempt.worker_id).where(Attempt.job_id == job_id))
    scratch = site.home(owner) / "work" / job_id / "attempt-1"
    while not list((scratch / "out" / "resume").glob("step-????????")):
        time.sleep(0.005)
    ranks = [one for one in processes.tree(processes.training(scratch)) if "--rank-in" in one.command]
    processes.send(signal.SIGSTOP, [one.pid for one in ranks])  # or it might reach its end before the cut
    site.wait_for(lambda: site.look(select(ResumeState.step).where(ResumeState.job_id == job_id)))
    site.workers[beside].cut()

    def reason() -> str | None:
        waiting = site.client.job(job_id).waiting
        return waiting.reason if waiting else None

    site.wait_for(lambda: reason() == "nodes")
    site.workers[beside].heal()
    over = select(Job.state).where(Job.id == job_id, Job.state.in_((State.SUCCEEDED, State.FAILED)))
    assert site.wait_for(lambda: site.look(over)) is State.SUCCEEDED
    lost, done = site.client.attempts(job_id)
    assert (lost.outcome, lost.reason) == ("crashed", "rank_lost")
    assert lost.detail == f"node 1 ({beside}) was silent for longer than its lease"
    assert (done.resumed_from_step or 0) > 0
    assert [{one.worker_id, *one.other_workers} for one in (lost, done)] == [{"a", "b"}, {"a", "b"}]
    assert site.look(select(Job.run_facts).where(Job.id == job_id))["processes"] == 2
