"""Who does the work."""

from fastapi import APIRouter

from api.deps import PartsDep, ReadSession
from api.schemas import Items, Worker
from store import workers

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", name="list")
def list_workers(session: ReadSession, parts: PartsDep) -> Items[Worker]:
    """Workers with their devices, and the job each is at."""
    seen = workers.seen(heartbeat_seconds=parts.settings.heartbeat_seconds, session=session)
    return Items(data=[_worker(found) for found in seen])


def _worker(found: workers.Seen) -> Worker:
    row = found.worker
    same = {name: getattr(row, name) for name in Worker.model_fields if hasattr(row, name)}
    busy = "busy" if row.current_job else "idle"
    state = busy if found.online else "lost" if row.stopped_at is None else "stopped"
    return Worker.model_validate({**same, "state": state, "alive": found.online})
