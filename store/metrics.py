"""Metric series: written in batches by the owner of a job, read whole, since a step, or thinned for a chart."""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.fencing import Claim, guard
from store.models import Metric, MetricLatest

BEST: Final = "val/AP"
"""The series whose maximum is the job's best AP."""


class Point(NamedTuple):
    """A scalar to store."""

    name: str
    step: int
    epoch: int
    value: float


class Sample(NamedTuple):
    """A scalar as read from its series."""

    step: int
    epoch: int
    value: float


def record(claim: Claim, points: Iterable[Point], *, session: Session) -> None:
    """Store a batch. The same step again replaces the value, so a batch may be sent twice.

    Values that are not finite are left out: neither JSON nor SQLite can hold them.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    finite = {(point.name, point.step): point for point in points if math.isfinite(point.value)}
    if not finite:
        return
    owner = {"job_id": claim.job_id, "attempt": claim.attempt, "superseded": False}
    rows = [{**owner, **point._asdict()} for point in finite.values()]
    insert = upsert(session, Metric).values(at=db_now())
    replaced = {name: insert.excluded[name] for name in ("value", "epoch", "attempt", "at", "superseded")}
    session.connection().execute(
        insert.on_conflict_do_update(index_elements=["job_id", "name", "step"], set_=replaced), rows
    )
    _record_latest(claim.job_id, finite.values(), session=session)
    best = [point.value for point in finite.values() if point.name == BEST]
    if best:
        job.best_ap = max(best if job.best_ap is None else [*best, job.best_ap])
        session.flush()


def _record_latest(job_id: str, points: Iterable[Point], *, session: Session) -> None:
    newest = {point.name: point for point in sorted(points, key=lambda point: point.step)}
    insert = upsert(session, MetricLatest).values(at=db_now())
    replaced = {name: insert.excluded[name] for name in ("step", "value", "epoch", "at")}
    insert = insert.on_conflict_do_update(
        index_elements=["job_id", "name"], set_=replaced, where=insert.excluded.step >= MetricLatest.step
    )
    session.connection().execute(insert, [{"job_id": job_id, **point._asdict()} for point in newest.values()])


def supersede(claim: Claim, step: int, *, session: Session) -> float | None:
    """Set aside what earlier attempts measured beyond the step that this one resumes from (0 = all of it).

    Returns:
        The best AP of what remains.
    """
    names = session.scalars(select(MetricLatest.name).where(MetricLatest.job_id == claim.job_id)).all()
    series = (Metric.job_id == claim.job_id, Metric.name.in_(names))
    beyond = Metric.step > step if step > 0 else Metric.step >= 0
    earlier = Metric.attempt < claim.attempt
    session.execute(
        update(Metric).where(*series, beyond, earlier).values(superseded=True),
        execution_options={"synchronize_session": False},
    )
    session.execute(delete(MetricLatest).where(MetricLatest.job_id == claim.job_id))
    for name in names:
        newest = session.execute(_points(claim.job_id, name).order_by(Metric.step.desc()).limit(1)).first()
        if newest is not None:
            step_, epoch, value = newest
            _record_latest(claim.job_id, [Point(name, step_, epoch, value)], session=session)
    valid = (Metric.job_id == claim.job_id, Metric.name == BEST, ~Metric.superseded)
    return session.scalar(select(func.max(Metric.value)).where(*valid))


def _points(job_id: str, name: str) -> Select[int, int, float]:
    valid = (Metric.job_id == job_id, Metric.name == name, ~Metric.superseded)
    return select(Metric.step, Metric.epoch, Metric.value).where(*valid)
