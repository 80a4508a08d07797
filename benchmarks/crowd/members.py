"""Workers that write what real ones write, at the same times, and train nothing.

What they call is what a worker calls: `worker.presence` for its own row, `worker.link` and `worker.recorder` for the
job.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from store import claims, jobs, workers
from store.db import Database
from store.fencing import Claim
from store.models import Dataset, Draining
from tid_core.events import Event, Metrics, Progress, Started
from tid_core.spec import JobSpec
from worker.child import Heard
from worker.link import Link
from worker.presence import Presence
from worker.recorder import Recorder
from worker.settings import WorkerSettings
from worker.uploads import Storage

NAMES = tuple(
    [f"loss/{name}" for name in ("total", "task", "distill", "classification", "box_regression", "centerness")]
    + [f"loss/tid/{area}/{level}" for area in ("high", "medium", "low") for level in ("p3", "p4")]
    + [
        "grad/norm",
        "lr",
        "memory/peak_bytes",
        "time/step_seconds",
        "time/teacher_share",
        "throughput/images_per_second",
    ]
    + ["grad/distill_ratio", "positives"]
)
"""Series of a TID training: 20."""
_LONG = 150.0
_BEGUN = {
    "resumed_from_step": 0, "total_steps": 1_000_000, "steps_per_epoch": 80_000, "epochs": 12, "device": "cuda",
    "precision": "bf16", "student_parameters": 19_000_000, "teacher_parameters": None,
}  # fmt: skip
LINE = "a line of a log as a data loader or a library would print it, of about this length: %06d\n"


@dataclass(frozen=True)
class Pace:
    """What a training does in a second; the defaults are those of a ResNet-18 with batches of 16 on a current GPU."""

    steps_per_second: float = 4.0
    log_every_steps: int = 10
    lines_per_second: float = 0.1


def submit(number: int, database: Database) -> None:
    """Queue so many jobs on one dataset that is ready."""
    spec = JobSpec.model_validate({"student": {"detector": "fcos_resnet18_small"}, "dataset": "d"})
    with database.write() as session:
        row = Dataset(name="d", source="folder", state="ready", root="/d", facts={}, classes=[], index_prefix="d")
        session.add(row)
        session.flush()
        for _ in range(number):
            jobs.create(spec, dataset_id=row.id, session=session)


class Member:
    """One worker with a job that it trains for ever."""

    def __init__(self, settings: WorkerSettings, database: Database, pace: Pace) -> None:
        self._settings, self._database, self._pace = settings, database, pace
        self.worker_id, self.heartbeat_seconds = settings.worker_id, settings.heartbeat_seconds
        self._presence = Presence(settings)
        self._began = 0.0
        self._step = self._line = 0

    def sign_on(self) -> None:
        """Register, claim a job, report that its training began; with a lease that lasts until all have done so."""
        self.beat()
        with self._database.write() as session:
            queues = self._settings.queues.split(",")
            claim = claims.claim_next(self._settings.worker_id, queues, lease_seconds=_LONG, session=session)
        if claim is None:
            raise RuntimeError("no job is left for this worker")
        self.claim = claim
        self._recorder = Recorder(claim, Storage(self._settings, claim), self._settings)
        self._link = self._linked(claim, _LONG)
        self._send([Started.model_validate(_BEGUN)], "")
        self._link = self._linked(claim, self._settings.lease_seconds)

    def begin(self, now: float) -> None:
        """From now on time passes in the training."""
        self._began = now

    def beat(self) -> None:
        if not self._presence.beat():
            raise RuntimeError("the heartbeat was not written")

    def report(self, now: float) -> int:
        """What the training said since the last time, in one transaction; returns the number of points."""
        step = math.floor((now - self._began) * self._pace.steps_per_second)
        line = math.floor((now - self._began) * self._pace.lines_per_second)
        logged = [at for at in range(self._step + 1, step + 1) if at % self._pace.log_every_steps == 0]
        self.tell(logged, step, "".join(LINE % number for number in range(self._line, line)))
        self._step, self._line = step, line
        return len(logged) * len(NAMES)

    def tell(self, logged: Sequence[int], step: int, log: str) -> None:
        """Metrics of these steps, progress, and what was printed."""
        events: list[Event] = [Metrics(step=at, epoch=1, values=_values(at)) for at in logged]
        progress = {"phase": "training", "step": step, "epoch": 1, "done": step, "total": 1_000_000}
        events.append(Progress.model_validate({**progress, "images_per_second": 64.0, "eta_seconds": 3600.5}))
        self._send(events, log)

    def _linked(self, claim: Claim, lease_seconds: float) -> Link:
        return Link(self._database, claim, lease_seconds, patience=self._settings.offline_seconds)

    def _send(self, events: list[Event], log: str) -> None:
        self._recorder.hear(Heard(events, log))

        def write(session: Session) -> Draining | None:
            self._recorder.write(session)
            return workers.draining(self._settings.worker_id, session=session)

        self._link.write(write)
        self._recorder.clear()


def _values(step: int) -> dict[str, float]:
    return {name: math.exp(-step / 3e4) + number for number, name in enumerate(NAMES)}


def settings_of(number: int, url: str, home: Path) -> WorkerSettings:
    return WorkerSettings(worker_id=f"gpu-{number:05d}", database_url=url, home=home)
