"""What the jobs of a sweep have reached, and what they took: read for its report."""

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from store import sweeps
from store.cost import gpu_seconds
from store.models import Checkpoint, Job, Metric
from store.states import State
from tid_core.sweep import SEED


@dataclass(frozen=True)
class Run:
    """A job with its figures; AP only where it has succeeded."""

    job: Job
    ap: float | None
    ap50: float | None
    teacher_ap: float | None
    gpu_seconds: float

    @property
    def row(self) -> str:
        """What the runs of one setting have in common."""
        values = {path: value for path, value in (self.job.sweep_point or {}).items() if path != SEED}
        return json.dumps([self.job.sweep_role, self.job.method, values], sort_keys=True)


def read_runs(sweep_id: str, *, session: Session) -> list[Run]:
    """In the order in which the jobs were queued."""
    jobs = sweeps.jobs_of(sweep_id, session=session)
    of_sweep = Job.sweep_id == sweep_id
    best = _best(of_sweep, session=session)
    ap50 = _values(of_sweep, "val/AP50", session=session)
    teacher = {job_id: value for (job_id, _), value in _values(of_sweep, "teacher/AP", session=session).items()}
    seconds = gpu_seconds([job.id for job in jobs], session=session)
    runs = []
    for job in jobs:
        step, ap = best.get(job.id, (None, None))
        counts = job.state is State.SUCCEEDED
        runs.append(
            Run(
                job,
                ap=(job.best_ap if ap is None else ap) if counts else None,
                ap50=ap50.get((job.id, step)) if counts and step is not None else None,
                teacher_ap=teacher.get(job.id),
                gpu_seconds=seconds[job.id],
            )
        )
    return runs


def _best(of_sweep: ColumnElement[bool], *, session: Session) -> dict[str, tuple[int, float | None]]:
    """Step and AP of each job's best checkpoint."""
    statement = select(Checkpoint.job_id, Checkpoint.step, Checkpoint.ap).join(Job, Job.id == Checkpoint.job_id)
    rows = session.execute(statement.where(of_sweep, Checkpoint.name == "best"))
    return {job_id: (step, ap) for job_id, step, ap in rows}


def _values(of_sweep: ColumnElement[bool], name: str, *, session: Session) -> dict[tuple[str, int], float]:
    """Job and step to the value of a metric, the last step last."""
    statement = select(Metric.job_id, Metric.step, Metric.value).join(Job, Job.id == Metric.job_id)
    rows = session.execute(statement.where(of_sweep, Metric.name == name, ~Metric.superseded).order_by(Metric.step))
    return {(job_id, step): value for job_id, step, value in rows}
