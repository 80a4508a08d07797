"""Jobs that are kept under way while the service is hurt, and what became of them."""

import logging
import threading
from collections import Counter
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.fire import processes
from benchmarks.fire.faults import Scene
from benchmarks.fire.fleet import patiently
from benchmarks.fire.listening import Listener
from benchmarks.fire.results import SPEC, STEPS, Result, complaints, read_result
from store.models import Attempt, Job
from store.states import ENDED, State

log = logging.getLogger("jobs")

_UNDER_WAY = 3
_POLL_SECONDS = 0.5


class Verdict(NamedTuple):
    jobs: int
    lost: int
    doubled: int
    wrong: int
    outcomes: Counter[str]
    """How the attempts ended."""
    complaints: list[str]


class Load:
    """Submits a job whenever fewer than three are under way."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._fleet = scene, scene.fleet
        self._accepted: list[str] = []
        self._listeners: dict[str, Listener] = {}
        self._states: dict[str, tuple[State, int]] = {}
        self._full = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        scene.open_jobs = self.open

    def reference(self) -> Result:
        fleet = self._fleet
        data = fleet.home.parent / "data" / "digits"
        fleet.client.add_dataset("digits", data)
        job_id = fleet.client.submit({**SPEC, "name": "undisturbed"}).id
        fleet.client.wait(job_id)
        result = read_result(job_id, fleet.records, fleet.home / "artifacts")
        steps = [step for name, step in sorted(result.curves) if name == "loss/total"]
        assert steps == list(range(1, STEPS + 1)), steps
        return result

    def start(self) -> None:
        self._thread.start()

    def open(self) -> list[str]:
        """Jobs that have not ended, as of the last look."""
        return [job_id for job_id in self._accepted if self._state(job_id) not in ENDED]

    def progress(self) -> str:
        counts = Counter(str(self._state(job_id)) for job_id in self._accepted)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))

    def finish(self, timeout: float) -> None:
        """No further jobs; wait for the end of those that there are."""
        self._full.set()
        try:
            self._fleet.wait_for(lambda: not self.open() and self._fleet.answers(), timeout)
        except TimeoutError:
            log.error("jobs that have not ended: %s", self.open())
        self._stopping.set()
        self._thread.join()

    def judge(self, reference: Result) -> Verdict:
        fleet, lost, doubled, wrong, told = self._fleet, 0, 0, 0, []
        with fleet.records.read() as session:
            recorded = session.scalars(select(Job.id).where(Job.name != "undisturbed")).all()
            outcomes = Counter(str(outcome) for outcome in session.scalars(select(Attempt.outcome)))
        for job_id in self._accepted:
            cancelled = job_id in self._scene.cancelled
            artifacts = fleet.home / "artifacts"
            found = complaints(job_id, fleet.records, artifacts, reference, cancelled=cancelled)
            if self._state(job_id) is State.SUCCEEDED:
                found += self._listeners[job_id].complaints(reference)
            lost += self._state(job_id) not in ENDED or job_id not in recorded
            doubled += any("succeeded, the job is at" in one for one in found)
            wrong += bool(found)
            told += [f"job {job_id} {one}" for one in found]
        extra = set(recorded) - set(self._accepted)
        told += [f"job {job_id} was made without an answer to anybody" for job_id in extra]
        told += self._leftovers()
        return Verdict(len(self._accepted), lost, doubled + len(extra), wrong, outcomes, told)

    def _leftovers(self) -> list[str]:
        """Once every job has ended, nobody trains, and no folder of an attempt is kept."""
        told = []
        if trainings := self._fleet.trainings():
            commands = [one.command for one in processes.listing() if one.pid in trainings]
            told.append(f"trainings that nobody wants: {commands}")
        for worker in self._fleet.workers:
            before = self._fleet.kill(worker)
            self._fleet.wait_for(lambda worker=worker, before=before: self._fleet.pid(worker) != before)  # type: ignore[misc]
        work = self._fleet.home / "work"
        try:
            self._fleet.wait_for(lambda: not work.is_dir() or not any(work.iterdir()), 60.0)
        except TimeoutError:
            told.append(f"folders that nobody needs: {[path.name for path in work.iterdir()]}")
        return told

    def _state(self, job_id: str) -> State:
        return self._states.get(job_id, (State.QUEUED, 0))[0]

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            self._look()
            if not self._full.is_set() and len(self.open()) < _UNDER_WAY:
                number = len(self._accepted)
                key = f"chaos-{number}"
                spec = {**SPEC, "name": key}
                job = patiently(lambda spec=spec, key=key: self._fleet.client.submit(spec, idempotency_key=key))  # type: ignore[misc]
                self._listeners[job.id] = Listener(self._fleet.client.url, job.id)
                self._accepted.append(job.id)
                log.info("job %s accepted", job.id)

    def _look(self) -> None:
        try:
            with self._fleet.records.read() as session:
                rows = session.execute(select(Job.id, Job.state, Job.attempt, Job.step, Job.status_reason)).all()
        except SQLAlchemyError:
            return
        for job_id, state, attempt, step, reason in rows:
            if self._states.get(job_id) != (state, attempt):
                self._states[job_id] = (state, attempt)
                log.info("job %s is %s, attempt %d, step %d, %s", job_id, state, attempt, step, reason)
