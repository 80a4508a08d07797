"""Why jobs wait, and how many are before them: read off the queue, the datasets and the workers, stored nowhere."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal, NamedTuple, get_args

from sqlalchemy import func, literal, select, tuple_
from sqlalchemy.orm import Session

from store import workers
from store.db import UTCTime
from store.models import Dataset, Job
from store.states import State

Reason = Literal["dataset", "no_worker", "all_drained", "starting_soon", "busy", "paused"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
LOOKED_THROUGH: Final = ("ready", "invalid")
"""States of a dataset whose jobs may begin; those of an invalid one begin and fail with its report."""
ORDER: Final = (Job.priority, Job.created_at, Job.id)
"""The order in which the jobs of a queue are taken."""


class Waiting(NamedTuple):
    reason: Reason
    detail: str
    position: int | None
    """1 for the next job of its queue; None for one that is paused."""


class _Crew(NamedTuple):
    """Workers of a queue that are online."""

    idle: int = 0
    busy: int = 0
    drained: int = 0


def of_jobs(rows: Iterable[Job], *, heartbeat_seconds: float, session: Session) -> dict[str, Waiting]:
    """Why each of these jobs waits; one that does not wait is left out. The same few statements for any number."""
    rows = list(rows)
    found = {
        row.id: Waiting("paused", "paused, until it is resumed", None) for row in rows if row.state is State.PAUSED
    }
    queued = [row for row in rows if row.state is State.QUEUED]
    if not queued:
        return found
    places = _places(queued, session=session)
    crews = _crews({row.queue for row in queued}, heartbeat_seconds=heartbeat_seconds, session=session)
    states = _datasets({row.dataset_id for row in queued}, session=session)
    for row in queued:
        position = places.get(row.id, 1)
        if states[row.dataset_id] not in LOOKED_THROUGH:
            detail = f"its dataset is being looked through ({states[row.dataset_id]})"
            found[row.id] = Waiting("dataset", detail, position)
        else:
            found[row.id] = _for_worker(row.queue, position, crews[row.queue])
    return found


def reasons(*, heartbeat_seconds: float, session: Session) -> dict[Reason, int]:
    """How many jobs wait for each reason, 0 included."""
    statement = select(Job.queue, Dataset.state, func.count()).join(Dataset, Dataset.id == Job.dataset_id)
    rows = session.execute(statement.where(Job.state == State.QUEUED).group_by(Job.queue, Dataset.state)).all()
    ready = Counter[str]()
    for queue, state, number in rows:
        ready[queue] += number if state in LOOKED_THROUGH else 0
    found = dict.fromkeys(REASONS, 0)
    found["dataset"] = sum(number for _, _, number in rows) - ready.total()
    crews = _crews(ready, heartbeat_seconds=heartbeat_seconds, session=session)
    for queue, number in ready.items():
        soon = min(number, crews[queue].idle)
        found["starting_soon"] += soon
        if number > soon:
            found[_for_worker(queue, number, crews[queue]).reason] += number - soon
    found["paused"] = session.scalars(select(func.count()).where(Job.state == State.PAUSED)).one()
    return found


def _for_worker(queue: str, position: int, crew: _Crew) -> Waiting:
    if crew == _Crew():
        return Waiting("no_worker", f"no worker of the queue {queue!r} is online", position)
    if not crew.idle and not crew.busy:
        who = "the worker" if crew.drained == 1 else f"all {crew.drained} workers"
        return Waiting("all_drained", f"{who} of the queue {queue!r} may take no job: drained", position)
    if position <= crew.idle:
        return Waiting("starting_soon", "a worker is free and will take it", position)
    ahead = f"{position - 1} {'job' if position == 2 else 'jobs'} ahead"
    at_work = f"{crew.busy} {'worker' if crew.busy == 1 else 'workers'} busy"
    return Waiting("busy", f"{ahead}, {at_work}", position)


def _places(queued: Sequence[Job], *, session: Session) -> dict[str, int]:
    """By the index of waiting jobs: for one job a count of those before it, for several one pass over their queues."""
    if len(queued) == 1:
        return {queued[0].id: _place(queued[0], session=session)}
    place = func.row_number().over(partition_by=Job.queue, order_by=ORDER)
    in_queue = Job.queue.in_({row.queue for row in queued})
    numbered = select(Job.id, place.label("place")).where(Job.state == State.QUEUED, in_queue).subquery()
    wanted = numbered.c.id.in_([row.id for row in queued])
    return {job_id: number for job_id, number in session.execute(select(numbered).where(wanted))}  # noqa: C416


def _place(job: Job, *, session: Session) -> int:
    own = tuple_(literal(job.priority), literal(job.created_at, UTCTime()), literal(job.id))
    before = select(func.count()).where(Job.state == State.QUEUED, Job.queue == job.queue, tuple_(*ORDER) < own)
    return 1 + session.scalars(before).one()


def _crews(queues: Collection[str], *, heartbeat_seconds: float, session: Session) -> dict[str, _Crew]:
    crews = dict.fromkeys(queues, _Crew())
    for worker in workers.online(heartbeat_seconds=heartbeat_seconds, session=session):
        for queue in crews.keys() & set(worker.queues):
            idle, busy, drained = crews[queue]
            if worker.draining:
                crews[queue] = _Crew(idle, busy, drained + 1)
            else:
                is_busy = worker.current_job is not None
                crews[queue] = _Crew(idle + (not is_busy), busy + is_busy, drained)
    return crews


def _datasets(ids: Collection[str], *, session: Session) -> dict[str, str]:
    rows = session.execute(select(Dataset.id, Dataset.state).where(Dataset.id.in_(ids)))
    return {dataset_id: state for dataset_id, state in rows}  # noqa: C416 (rows are no tuples to mypy)
