"""Workers: who is there, with what device, and when each was last heard of."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.errors import NotFound
from store.models import Draining, Job, Json, Worker
from store.placement import CHOOSY, Gpus
from store.states import State

_MISSED: Final = 3
"""Heartbeats that may fail before a worker counts as offline."""


class Seen(NamedTuple):
    worker: Worker
    online: bool


def register(worker_id: str, *, hostname: str, pid: int, queues: Sequence[str], device: Json, session: Session) -> None:
    """Sign a worker on; one that had this id before is replaced, but drains on if it was told to drain."""
    gpus, memory = Gpus.usable(device)
    row = {"hostname": hostname, "pid": pid, "queues": list(queues), "device": device}
    row |= {"gpus": gpus, "gpu_memory_mib": memory}
    fresh = {"telemetry": None, "current_job": None, "stopped_at": None}
    insert = upsert(session, Worker).values(id=worker_id, started_at=db_now(), heartbeat_at=db_now(), **row, **fresh)
    replaced = {name: insert.excluded[name] for name in (*row, *fresh, "started_at", "heartbeat_at")}
    session.execute(insert.on_conflict_do_update(index_elements=["id"], set_=replaced))


def heartbeat(worker_id: str, *, current_job: str | None, telemetry: Json | None = None, session: Session) -> bool:
    """Returns:
    False where no such worker is signed on: register again.
    """
    values = {"current_job": current_job, "telemetry": telemetry, "heartbeat_at": db_now()}
    statement = update(Worker).where(Worker.id == worker_id, Worker.stopped_at.is_(None)).values(**values)
    found = session.scalar(statement.returning(Worker.id), execution_options={"synchronize_session": False})
    return found is not None


def sign_off(worker_id: str, *, session: Session) -> None:
    statement = update(Worker).where(Worker.id == worker_id).values(stopped_at=db_now(), current_job=None)
    session.execute(statement, execution_options={"synchronize_session": False})


def seen(*, heartbeat_seconds: float, session: Session) -> list[Seen]:
    """All workers, the longest at work first; online by the database's clock, whatever the hosts' clocks say."""
    rows = session.execute(select(Worker, _online(heartbeat_seconds)).order_by(Worker.started_at, Worker.id))
    return [Seen(worker, bool(is_online)) for worker, is_online in rows]


def online(*, heartbeat_seconds: float, session: Session) -> list[Worker]:
    """Workers that were heard of lately, and have not signed off."""
    statement = select(Worker).where(_online(heartbeat_seconds)).order_by(Worker.started_at, Worker.id)
    return list(session.scalars(statement))


def get(worker_id: str, *, heartbeat_seconds: float, session: Session) -> Seen:
    """Raises:
    NotFound: no worker was ever signed on under this id.
    """
    row = session.execute(select(Worker, _online(heartbeat_seconds)).where(Worker.id == worker_id)).first()
    if row is None:
        raise NotFound("worker", worker_id)
    return Seen(row[0], bool(row[1]))


def idle(*, heartbeat_seconds: float, session: Session) -> list[Worker]:
    """Workers that wait for a job: online, without one, and not told to drain."""
    everyone = online(heartbeat_seconds=heartbeat_seconds, session=session)
    return [worker for worker in everyone if worker.current_job is None and worker.draining is None]


def bell(worker_id: str) -> str:
    """The queue of the broker whose messages wake this worker and no other. No queue of jobs can have such a name."""
    return f"worker:{worker_id}"


def drain(worker_id: str, draining: Draining, *, session: Session) -> None:
    """From now on the worker can claim nothing, whatever becomes of its process; it learns of it at its next heartbeat.

    Raises:
        NotFound: as in `get`.
    """
    _set_draining(worker_id, draining, session=session)


def undrain(worker_id: str, *, session: Session) -> None:
    """The worker takes jobs again; what it may begin with is to be announced at once.

    Raises:
        NotFound: as in `get`.
    """
    for queue in _set_draining(worker_id, None, session=session):
        waits = (Job.state == State.QUEUED, Job.queue == queue)
        first = select(Job.id).where(*waits).order_by(Job.priority, Job.created_at, Job.id).limit(1)
        session.execute(
            update(Job).where(*waits, or_(CHOOSY, Job.id == first.scalar_subquery())).values(last_rung_at=None),
            execution_options={"synchronize_session": False},
        )


def draining(worker_id: str, *, session: Session) -> Draining | None:
    """What the worker was told, if it is to drain."""
    told: Draining | None = session.scalar(select(Worker.draining).where(Worker.id == worker_id))
    return told


def _set_draining(worker_id: str, value: Draining | None, *, session: Session) -> list[str]:
    """Returns the queues of the worker."""
    statement = update(Worker).where(Worker.id == worker_id).values(draining=value).returning(Worker.queues)
    queues = session.scalar(statement, execution_options={"synchronize_session": False})
    if queues is None:
        raise NotFound("worker", worker_id)
    return queues


def _online(heartbeat_seconds: float) -> ColumnElement[bool]:
    recent = Worker.heartbeat_at > db_now(-_MISSED * heartbeat_seconds)
    return and_(Worker.stopped_at.is_(None), recent)
