"""Is it alive, is it ready."""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from sqlalchemy import text

from api.deps import Parts, PartsDep
from api.schemas import Dependency, Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", name="live")
def live(request: Request) -> Health:
    """The process answers."""
    return Health(status="ok", version=request.app.version)


@router.get("/readyz", name="ready", responses={503: {"model": Readiness, "description": "A dependency is down."}})
def ready(parts: PartsDep, response: Response) -> Readiness:
    """Each dependency, and what is wrong with it; 503 unless all are well.

    Without its broker the service still takes jobs; they start when the broker is back.
    """
    checks: dict[str, Callable[[Parts], str]] = {
        "database": _database,
        "migrations": _migrations,
        "broker": _broker,
    }
    dependencies = [_checked(name, check, parts) for name, check in checks.items()]
    is_ready = all(dependency.ok for dependency in dependencies)
    response.status_code = 200 if is_ready else 503
    return Readiness(ready=is_ready, dependencies=dependencies)


def _checked(name: str, check: Callable[[Parts], str], parts: Parts) -> Dependency:
    try:
        problem = check(parts)
    except Exception as error:  # whatever a driver raises, it is the answer
        problem = f"{type(error).__name__}: does not answer"
    return Dependency.model_validate({"name": name, "ok": not problem, "detail": problem or "ok"})


def _database(parts: Parts) -> str:
    with parts.database.read() as session:
        session.execute(text("SELECT 1"))
    return ""


def _migrations(parts: Parts) -> str:
    from store.upgrade import current_revision, newest_revision  # Alembic is slow to import

    current, newest = current_revision(parts.settings.database_url), newest_revision()
    return "" if current == newest else f"the tables are at revision {current}, this server needs {newest}"


def _broker(parts: Parts) -> str:
    parts.doorbell.check()
    return ""
