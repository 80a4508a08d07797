"""Jobs that several workers train together: when enough of them are idle, and what such a job holds back meanwhile.

Strictly in order: while the first of them waits for workers that are at work, jobs behind it do not begin on those that
it could use, else a queue of small jobs would keep it waiting for ever. One that could not begin even if all were idle
holds nothing back, and neither does one whose workers did not all come a moment ago: one of them may be idle by its row
alone.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from store import seats
from store.db import db_now
from store.models import Dataset, Job, Worker
from store.placement import Gpus
from store.states import State
from store.waiting import LOOKED_THROUGH, ORDER, RESTS, SEVERAL

_LOCK: Final = 0x7469645F7465616D
"""Of PostgreSQL, for the length of a transaction: workers are counted by one claim at a time."""


class First(NamedTuple):
    """The first job for several workers that could begin if they were idle."""

    job_id: str
    place: tuple[int, datetime, str]
    """In the order of the queue."""
    may_begin: bool
    """Enough are, and the worker that asks is one of them."""


def first(worker_id: str, queues: Collection[str], *, seconds: float, session: Session) -> First | None:
    """What this worker has to look at before it takes a job for itself; `seconds`: how long ago others may have been
    heard of."""
    if not _waiting(queues, session=session):
        return None
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
        session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    staff = _staff(seconds, session=session)
    occupied = seats.occupied(session=session)
    for job in _waiting(queues, session=session):
        able = [one for one in staff if job.queue in one.queues and Gpus.wanted(job).fit(Gpus.of(one))]
        if len(able) < job.nodes or all(one.id != worker_id for one in able):
            continue
        idle = [one for one in able if one.id not in occupied]
        queues_of_idle = {queue for one in idle for queue in one.queues}
        promised = sum(seat.queue in queues_of_idle for seat in seats.waiting(session=session))
        may_begin = any(one.id == worker_id for one in idle) and len(idle) - promised >= job.nodes
        return First(job.id, (job.priority, job.created_at, job.id), may_begin)
    return None


def _waiting(queues: Collection[str], *, session: Session) -> list[Any]:
    ready = Job.dataset_id.in_(select(Dataset.id).where(Dataset.state.in_(LOOKED_THROUGH)))
    wanted = (Job.id, Job.queue, Job.priority, Job.created_at, Job.nodes, Job.gpus_wanted, Job.min_gpu_memory_mib)
    statement = select(*wanted).where(Job.state == State.QUEUED, SEVERAL, Job.queue.in_(queues), ready, ~RESTS)
    return list(session.execute(statement.order_by(*ORDER)))


def _staff(seconds: float, *, session: Session) -> list[Worker]:
    here = (Worker.stopped_at.is_(None), Worker.draining.is_(None), Worker.heartbeat_at > db_now(-seconds))
    return list(session.scalars(select(Worker).where(*here), execution_options={"populate_existing": True}))
