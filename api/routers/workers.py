"""Who does the work, and who is to stop."""

from sqlalchemy.orm import Session

from api.deps import Parts, PartsDep, ReadSession, WriteSession
from api.routing import Router
from api.schemas import DrainIn, Items, Worker
from store import workers

# `:path`, because a worker may be called anything, with slashes too.
router = Router(prefix="/workers", tags=["workers"])


@router.get("", name="list")
def list_workers(session: ReadSession, parts: PartsDep) -> Items[Worker]:
    """Workers with their devices, and the job each is at."""
    seen = workers.seen(heartbeat_seconds=parts.settings.heartbeat_seconds, session=session)
    return Items(data=[_worker(found) for found in seen])


@router.post("/{worker_id:path}/drain", name="drain", status_code=202)
def drain(worker_id: str, parts: PartsDep, session: WriteSession, body: DrainIn | None = None) -> Worker:
    """Let a worker take no more jobs, also after a new start under this name, until it is undrained.

    The job that it has goes back to the queue with its state saved, or with `wait` is finished first. Asking again is
    no error, and the last word counts.
    """
    wait = body is not None and body.wait
    workers.drain(worker_id, "wait" if wait else "now", session=session)
    return _read(worker_id, parts, session=session)


@router.post("/{worker_id:path}/undrain", name="undrain")
def undrain(worker_id: str, parts: PartsDep, session: WriteSession) -> Worker:
    """Let a worker take jobs again. No error where it takes them already."""
    workers.undrain(worker_id, session=session)
    return _read(worker_id, parts, session=session)


def _read(worker_id: str, parts: Parts, *, session: Session) -> Worker:
    heartbeat_seconds = parts.settings.heartbeat_seconds
    return _worker(workers.get(worker_id, heartbeat_seconds=heartbeat_seconds, session=session))


def _worker(found: workers.Seen) -> Worker:
    row = found.worker
    same = {name: getattr(row, name) for name in Worker.model_fields if hasattr(row, name)}
    return Worker.model_validate({**same, "state": _state(found), "alive": found.online})


def _state(found: workers.Seen) -> str:
    row = found.worker
    if not found.online:
        return "lost" if row.stopped_at is None else "stopped"
    if row.draining:
        return "draining" if row.current_job else "drained"
    return "busy" if row.current_job else "idle"
