"""Metric series: written in batches by the owner of a job, read whole, since a step, or thinned for a chart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, delete, func, select, union, update
from sqlalchemy.orm import Session

from store.db import EPOCH, db_now, upsert
from store.fencing import Claim, guard
from store.models import Metric, MetricLatest
from store.text import storable

_MICROSECOND: Final = timedelta(microseconds=1)
# By SQLite a row at a time, which costs no round trip; by PostgreSQL all rows in one.
_UPSERT_ROWS: Final = """
INSERT INTO metrics (job_id, attempt, at, superseded, name, step, epoch, value) VALUES (?, ?, ?, false, ?, ?, ?, ?)
ON CONFLICT (job_id, name, step) DO UPDATE SET attempt = excluded.attempt, at = excluded.at,
    superseded = excluded.superseded, epoch = excluded.epoch, value = excluded.value"""
_UPSERT_COLUMNS: Final = """
INSERT INTO metrics (job_id, attempt, at, superseded, name, step, epoch, value)
SELECT %s, %s, %s, false, point.name, point.step, point.epoch, point.value
FROM unnest(%s::text[], %s::bigint[], %s::integer[], %s::double precision[]) AS point (name, step, epoch, value)
ON CONFLICT (job_id, name, step) DO UPDATE SET attempt = excluded.attempt, at = excluded.at,
    superseded = excluded.superseded, epoch = excluded.epoch, value = excluded.value"""
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
    known: dict[str, str] = {}
    finite: dict[tuple[str, int], Point] = {}
    for point in points:
        if math.isfinite(point.value):
            name = known.get(point.name) or known.setdefault(point.name, storable(point.name))
            finite[name, point.step] = point if name == point.name else point._replace(name=name)
    if not finite:
        return
    at = _instant(claim.job_id, session=session)
    _upsert(claim, list(finite.values()), at, session=session)
    _record_latest(claim.job_id, finite.values(), at, session=session)
    best = [point.value for point in finite.values() if point.name == BEST]
    if best:
        job.best_ap = max(best if job.best_ap is None else [*best, job.best_ap])
        session.flush()


def _upsert(claim: Claim, points: Sequence[Point], at: datetime, *, session: Session) -> None:
    """As the drivers have it: SQLAlchemy does more for each row than storing it takes."""
    connection, micros = session.connection(), (at - EPOCH) // _MICROSECOND
    if connection.dialect.name == "postgresql":
        names, steps, epochs, values = (list(column) for column in zip(*points, strict=True))
        columns = (names, steps, epochs, [float(value) for value in values])
        connection.exec_driver_sql(_UPSERT_COLUMNS, (claim.job_id, claim.attempt, micros, *columns))
    else:
        owner = (claim.job_id, claim.attempt, micros)
        connection.exec_driver_sql(_UPSERT_ROWS, [(*owner, *point) for point in points])


def _instant(job_id: str, *, session: Session) -> datetime:
    """Now, by the database's clock, and in any case later than all that is stored of this job.

    Listeners know by it what they have heard, so two batches within one tick, or a clock that is set back, must not
    look the same to them.
    """
    newest: ColumnElement[datetime | None] = func.max(MetricLatest.at)
    statement = select(db_now(), newest).where(MetricLatest.job_id == job_id)
    now, last = session.execute(statement).one()
    return now if last is None else max(now, last + _MICROSECOND)


def _record_latest(job_id: str, points: Iterable[Point], at: datetime, *, session: Session) -> None:
    newest = {point.name: point for point in sorted(points, key=lambda point: point.step)}
    if not newest:
        return
    insert = upsert(session, MetricLatest).values(at=at)
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
    at = _instant(claim.job_id, session=session)
    series = (Metric.job_id == claim.job_id, Metric.name.in_(names))
    beyond = Metric.step > step if step > 0 else Metric.step >= 0
    earlier = Metric.attempt < claim.attempt
    session.execute(
        update(Metric).where(*series, beyond, earlier).values(superseded=True),
        execution_options={"synchronize_session": False},
    )
    session.execute(delete(MetricLatest).where(MetricLatest.job_id == claim.job_id))
    for name in names:
        which = {"job_id": claim.job_id, "series": name, "since": _BEFORE_ALL}
        newest = _samples(_LAST, which, session=session)
        _record_latest(claim.job_id, [Point(name, *sample) for sample in newest], at, session=session)
    valid = (Metric.job_id == claim.job_id, Metric.name == BEST, ~Metric.superseded)
    return session.scalar(select(func.max(Metric.value)).where(*valid))


def forget(job_id: str, *, session: Session) -> None:
    """Set aside everything that was measured so far: a new attempt begins at the first step."""
    everything = update(Metric).where(Metric.job_id == job_id).values(superseded=True)
    session.execute(everything, execution_options={"synchronize_session": False})
    session.execute(delete(MetricLatest).where(MetricLatest.job_id == job_id))


def names(job_id: str, *, session: Session) -> list[str]:
    """In the order of their characters, which is not every database's."""
    return sorted(session.scalars(select(MetricLatest.name).where(MetricLatest.job_id == job_id)))


def latest(job_id: str, *, session: Session) -> dict[str, Sample]:
    """The newest point of each series, without reading the series."""
    rows = session.connection().execute(_LATEST, {"job_id": job_id})
    return {name: Sample(step, epoch, value) for name, step, epoch, value in sorted(rows)}


def read(
    job_id: str, name: str, *, since_step: int | None = None, max_points: int | None = None, session: Session
) -> list[Sample]:
    """The points of a series in order, after `since_step`; superseded ones are never among them.

    With `max_points`, a longer series is thinned: its first and last point, and the lowest and the highest point of
    each of equally wide ranges of steps. No peak is lost.

    Raises:
        ValueError: max_points < 2.
    """
    which = {"job_id": job_id, "series": name, "since": _BEFORE_ALL if since_step is None else since_step}
    if max_points is None:
        return _samples(_IN_ORDER, which, session=session)
    if max_points < 2:
        raise ValueError(f"max_points ({max_points}) must be at least 2: the first and the last point are always given")
    if not _samples(_ONE_FURTHER, {**which, "further": max_points}, session=session):
        return _samples(_IN_ORDER, which, session=session)
    (head,) = _samples(_FIRST, which, session=session)
    (tail,) = _samples(_LAST, which, session=session)
    extremes: list[Sample] = []
    if num_ranges := (max_points - 2) // 2:
        ranges = {"first": head.step, "last": tail.step, "width": (tail.step - head.step) // num_ranges + 1}
        extremes = _samples(_EXTREMES, {**which, **ranges}, session=session)
    return sorted({head, *extremes, tail})


def _samples(statement: Select[int, int, float], values: Mapping[str, Any], *, session: Session) -> list[Sample]:
    """Without the ORM, which does more for each row than reading it takes."""
    return list(map(Sample._make, session.connection().execute(statement, values).all()))


def _extremes() -> Select[int, int, float]:
    """The lowest and the highest point of each range of steps, found by the database in one statement."""
    first, last, width = (bindparam(name, type_=BigInteger) for name in ("first", "last", "width"))
    ranges = select(first.label("low")).cte("ranges", recursive=True)
    ranges = ranges.union_all(select(ranges.c.low + width).where(ranges.c.low + width <= last))
    # Ranges of the primary key, each sorted by itself: cheaper than grouping the series, on both databases.
    inside = select(Metric.step).where(*_SERIES, Metric.step >= ranges.c.low, Metric.step < ranges.c.low + width)
    inside = inside.limit(1)
    lowest = select(inside.order_by(Metric.value, Metric.step).correlate(ranges).scalar_subquery().label("step"))
    highest = select(inside.order_by(Metric.value.desc(), Metric.step).correlate(ranges).scalar_subquery())
    steps = union(lowest.select_from(ranges), highest.select_from(ranges)).cte("extremes")
    return _POINTS.join(steps, steps.c.step == Metric.step)


# Made once: to build the largest takes longer than to run it.
_BEFORE_ALL: Final = -(1 << 62)
_SERIES: Final = (Metric.job_id == bindparam("job_id"), Metric.name == bindparam("series"), ~Metric.superseded)
_POINTS: Final = select(Metric.step, Metric.epoch, Metric.value).where(*_SERIES)
_SINCE: Final = _POINTS.where(Metric.step > bindparam("since"))
_IN_ORDER: Final = _SINCE.order_by(Metric.step)
_FIRST: Final = _IN_ORDER.limit(1)
_LAST: Final = _SINCE.order_by(Metric.step.desc()).limit(1)
_ONE_FURTHER: Final = _IN_ORDER.limit(1).offset(bindparam("further"))
_EXTREMES: Final = _extremes()
_LATEST: Final = select(MetricLatest.name, MetricLatest.step, MetricLatest.epoch, MetricLatest.value).where(
    MetricLatest.job_id == bindparam("job_id")
)
