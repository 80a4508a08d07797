"""Workers: who is there, with what device, and when each was last heard of."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import and_, select, update
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.models import Json, Worker

_MISSED: Final = 3
"""Heartbeats that may fail before a worker counts as offline."""


class Seen(NamedTuple):
    worker: Worker
    online: bool


def register(worker_id: str, *, hostname: str, pid: int, queues: Sequence[str], device: Json, session: Session) -> None:
    """Sign a worker on; one that had this id before is replaced."""
    row = {"hostname": hostname, "pid": pid, "queues": list(queues), "device": device}
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
    recent = Worker.heartbeat_at > db_now(-_MISSED * heartbeat_seconds)
    online = and_(Worker.stopped_at.is_(None), recent)
    rows = session.execute(select(Worker, online).order_by(Worker.started_at, Worker.id))
    return [Seen(worker, bool(is_online)) for worker, is_online in rows]


def idle_queues(*, heartbeat_seconds: float, session: Session) -> set[str]:
    """Queues that a worker waits at: online, and without a job."""
    everyone = seen(heartbeat_seconds=heartbeat_seconds, session=session)
    return {queue for worker, online in everyone if online and worker.current_job is None for queue in worker.queues}
