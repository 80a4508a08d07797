"""Why jobs wait, and how many are before them: read off the queue, the datasets and the workers, stored nowhere."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, and_, func, literal, literal_column, or_, select, tuple_
from sqlalchemy.orm import Session

from store import workers
from store.db import UTCTime, db_now
from store.models import Dataset, Job, Worker
from store.placement import Gpus, largest, nobody, within
from store.reasons import NODES_MISSING
from store.states import State

Reason = Literal["dataset", "no_worker", "no_fitting_worker", "all_drained", "starting_soon", "busy", "nodes", "paused"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
LOOKED_THROUGH: Final = ("ready", "invalid")
"""States of a dataset whose jobs may begin; those of an invalid one begin and fail with its report."""
ORDER: Final = (Job.priority, Job.created_at, Job.id)
"""The order in which the jobs of a queue are taken."""
RESTS: Final = and_(func.coalesce(Job.status_reason, "") == NODES_MISSING, Job.updated_at > db_now(-60.0))
"""Jobs whose workers did not all come: they let others go first for a minute."""
SEVERAL: Final = Job.nodes > literal_column("1")
"""Jobs for several workers, as the index has it that holds those alone."""


class Waiting(NamedTuple):
    reason: Reason
    detail: str
    position: int | None
    """1 for the next job of its queue that a worker there may take; None for one that is paused, or that none may."""


class _Crew(NamedTuple):
    """Workers that are online, and have what a job asks for."""

    idle: int = 0
    busy: int = 0
    drained: int = 0

    @classmethod
    def of(cls, staff: Iterable[Worker], wanted: Gpus) -> "_Crew":
        fit = [worker for worker in staff if wanted.fit(Gpus.of(worker))]
        able = [worker for worker in fit if not worker.draining]
        busy = sum(worker.current_job is not None for worker in able)
        return cls(len(able) - busy, busy, len(fit) - len(able))


class _Holder(NamedTuple):
    """A job for several workers that waits until enough are idle, and holds back those behind it (`store.teams`)."""

    place: tuple[int, datetime, str]
    detail: str


_Staff = Mapping[str, Sequence[Worker]]
"""By queue: its workers that are online."""


def of_jobs(rows: Iterable[Job], *, heartbeat_seconds: float, session: Session) -> dict[str, Waiting]:
    """Why each of these jobs waits; one that does not wait is left out. The same few statements for any number."""
    rows = list(rows)
    found = {
        row.id: Waiting("paused", "paused, until it is resumed", None) for row in rows if row.state is State.PAUSED
    }
    queued = [row for row in rows if row.state is State.QUEUED]
    if not queued:
        return found
    staff = _staff({row.queue for row in queued}, heartbeat_seconds=heartbeat_seconds, session=session)
    places = _places(queued, staff, session=session)
    states = _datasets({row.dataset_id for row in queued}, session=session)
    for row in queued:
        told = _for_worker(row.queue, Gpus.wanted(row), places.get(row.id, 1), staff[row.queue], row.nodes)
        if states[row.dataset_id] not in LOOKED_THROUGH:
            detail = f"its dataset is being looked through ({states[row.dataset_id]})"
            told = Waiting("dataset", detail, told.position)
        found[row.id] = told
    _hold_back([row for row in queued if found[row.id].reason == "starting_soon"], found, staff, session=session)
    return found


def _hold_back(rows: Sequence[Job], found: dict[str, Waiting], staff: _Staff, *, session: Session) -> None:
    """Of these jobs, for which a worker is free, those that it does not take yet: another comes first."""
    holders = _holders(staff, session=session) if rows else {}
    for row in rows:
        holder = holders.get(row.queue)
        if holder is not None and (row.priority, row.created_at, row.id) > holder.place:
            found[row.id] = found[row.id]._replace(reason="nodes", detail=holder.detail)


def nobody_fits(wanted: Gpus, queue: str, *, heartbeat_seconds: float, session: Session) -> str | None:
    """Why no worker that is online may take a job that wants these GPUs; None where one may, busy or not."""
    staff = _staff([queue], heartbeat_seconds=heartbeat_seconds, session=session)[queue]
    return None if any(wanted.fit(Gpus.of(worker)) for worker in staff) else nobody(wanted, queue, staff)


def too_few(nodes: int, wanted: Gpus, queue: str, *, heartbeat_seconds: float, session: Session) -> str | None:
    """Why a job for several workers cannot begin with those that are online; None where it can, once they are idle."""
    staff = _staff([queue], heartbeat_seconds=heartbeat_seconds, session=session)[queue]
    fit = sum(wanted.fit(Gpus.of(worker)) for worker in staff)
    if fit >= nodes:
        return None
    having = f" with {wanted}" if wanted.number else ""
    there = f"{fit} {'is' if fit == 1 else 'are'} online"
    return (
        f"the job needs {nodes} workers of the queue {queue!r}{having} at once, {there}: ask for fewer, or start more"
    )


def reasons(*, heartbeat_seconds: float, session: Session) -> dict[Reason, int]:
    """How many jobs wait for each reason, 0 included."""
    alike = (Job.queue, Job.gpus_wanted, Job.min_gpu_memory_mib, Job.nodes, Dataset.state)
    statement = select(*alike, func.count()).join(Dataset, Dataset.id == Job.dataset_id)
    rows = session.execute(statement.where(Job.state == State.QUEUED).group_by(*alike)).all()
    ready = Counter[tuple[Gpus, str, int]]()
    for queue, gpus, memory_mib, nodes, state, number in rows:
        ready[Gpus(gpus, memory_mib), queue, nodes] += number if state in LOOKED_THROUGH else 0
    found = dict.fromkeys(REASONS, 0)
    found["dataset"] = sum(row[-1] for row in rows) - ready.total()
    staff = _staff({queue for _, queue, _ in ready}, heartbeat_seconds=heartbeat_seconds, session=session)
    holders = _holders(staff, session=session) if any(nodes > 1 for _, _, nodes in ready) else {}
    begins = Counter[str]()
    for (wanted, queue, nodes), number in sorted(ready.items(), reverse=True):  # those that fewer workers fit first
        idle = max(0, _Crew.of(staff[queue], wanted).idle - begins[queue])
        soon = min(number, idle // nodes) if queue not in holders else 0
        begins[queue] += soon * nodes
        found["starting_soon"] += soon
        if number > soon:
            rest: Reason = "nodes"
            if not idle or queue not in holders:
                rest = _for_worker(queue, wanted, 1 + len(staff[queue]), staff[queue], nodes).reason
            found[rest] += number - soon
    found["paused"] = session.scalars(select(func.count()).where(Job.state == State.PAUSED)).one()
    return found


def _for_worker(queue: str, wanted: Gpus, position: int, staff: Sequence[Worker], nodes: int) -> Waiting:
    if not staff:
        return Waiting("no_worker", f"no worker of the queue {queue!r} is online", position)
    crew = _Crew.of(staff, wanted)
    if crew == _Crew():
        return Waiting("no_fitting_worker", nobody(wanted, queue, staff), None)
    having = f" with {wanted}" if wanted.number else ""
    if not crew.idle and not crew.busy:
        who = "the worker" if crew.drained == 1 else f"all {crew.drained} workers"
        return Waiting("all_drained", f"{who} of the queue {queue!r}{having} may take no job: drained", position)
    if nodes > 1 and crew.idle < nodes:
        return Waiting("nodes", f"needs {_at_once(nodes, crew, f' of the queue {queue!r}{having}')}", position)
    if position + nodes - 1 <= crew.idle:
        return Waiting("starting_soon", "a worker is free and will take it", position)
    ahead = f"{position - 1} {'job' if position == 2 else 'jobs'} ahead"
    at_work = f"{crew.busy} {'worker' if crew.busy == 1 else 'workers'}{having} busy"
    return Waiting("busy", f"{ahead}, {at_work}", position)


def _at_once(nodes: int, crew: _Crew, of_what: str) -> str:
    number, what = (crew.idle, "idle") if crew.idle + crew.busy >= nodes else (crew.idle + crew.busy, "online")
    return f"{nodes} workers{of_what} at once, {number} {'is' if number == 1 else 'are'} {what}"


def _holders(staff: _Staff, *, session: Session) -> dict[str, _Holder]:
    """By queue."""
    wanted = (Job.id, Job.queue, Job.priority, Job.created_at, Job.nodes, Job.gpus_wanted, Job.min_gpu_memory_mib)
    ready = Job.dataset_id.in_(select(Dataset.id).where(Dataset.state.in_(LOOKED_THROUGH)))
    statement = select(*wanted).where(Job.state == State.QUEUED, SEVERAL, Job.queue.in_(staff), ready, ~RESTS)
    holders: dict[str, _Holder] = {}
    for job in session.execute(statement.order_by(*ORDER)):
        crew = _Crew.of(staff[job.queue], Gpus(job.gpus_wanted, job.min_gpu_memory_mib))
        if job.queue not in holders and crew.idle < job.nodes <= crew.idle + crew.busy:
            detail = f"job {job.id} is first: it needs {_at_once(job.nodes, crew, '')}"
            holders[job.queue] = _Holder((job.priority, job.created_at, job.id), detail)
    return holders


def _places(queued: Sequence[Job], staff: _Staff, *, session: Session) -> dict[str, int]:
    """By the index of waiting jobs: for one job a count of those before it, for several one pass over their queues.

    Jobs that no worker there may take are in nobody's way, and have no place.
    """
    if len(queued) == 1:
        return {queued[0].id: _place(queued[0], staff, session=session)}
    place = func.row_number().over(partition_by=Job.queue, order_by=ORDER)
    compete = or_(*(_competing(queue, staff[queue]) for queue in {row.queue for row in queued}))
    numbered = select(Job.id, place.label("place")).where(Job.state == State.QUEUED, compete).subquery()
    wanted = numbered.c.id.in_([row.id for row in queued])
    return {job_id: number for job_id, number in session.execute(select(numbered).where(wanted))}  # noqa: C416


def _place(job: Job, staff: _Staff, *, session: Session) -> int:
    own = tuple_(literal(job.priority), literal(job.created_at, UTCTime()), literal(job.id))
    compete = _competing(job.queue, staff[job.queue])
    before = select(func.count()).where(Job.state == State.QUEUED, compete, tuple_(*ORDER) < own)
    return 1 + session.scalars(before).one()


def _competing(queue: str, staff: Sequence[Worker]) -> ColumnElement[bool]:
    """Jobs of the queue that some worker that is online may take; all of them where none is online."""
    able = [within(*gpus) for gpus in largest(staff)]
    return and_(Job.queue == queue, or_(*able)) if able else Job.queue == queue


def _staff(queues: Collection[str], *, heartbeat_seconds: float, session: Session) -> _Staff:
    staff: dict[str, list[Worker]] = {queue: [] for queue in queues}
    for worker in workers.online(heartbeat_seconds=heartbeat_seconds, session=session):
        for queue in staff.keys() & set(worker.queues):
            staff[queue].append(worker)
    return staff


def _datasets(ids: Collection[str], *, session: Session) -> dict[str, str]:
    rows = session.execute(select(Dataset.id, Dataset.state).where(Dataset.id.in_(ids)))
    return {dataset_id: state for dataset_id, state in rows}  # noqa: C416 (rows are no tuples to mypy)
