"""Is it alive, is it ready."""

from functools import cache

from fastapi import APIRouter, Request, Response

from api.gate.callers import CALLER
from api.monitoring.readiness import Readiness as Checks
from api.schemas import Dependency, Health, Readiness
from tid_core import version

router = APIRouter(tags=["health"])


@router.get("/healthz", name="live")
def live() -> Health:
    """The process answers."""
    return Health(status="ok", version=_version())


@router.get(
    "/readyz", name="ready", responses={503: {"model": Readiness, "description": "A required dependency is down."}}
)
async def ready(request: Request, response: Response) -> Readiness:
    """Each dependency, what is wrong with it, and how to mend it; 503 where one that is required is not well.

    Answered within two seconds, also where a dependency hangs; once there are API keys, the details are for those that
    may read. Without its broker the service still takes jobs; they
    start when the broker is back.
    """
    checks: Checks = request.app.state.readiness
    dependencies = await checks.look()
    if (caller := CALLER.get()) is None or not caller.may("read"):
        dependencies = [_without_detail(one) for one in dependencies]
    is_ready = all(one.ok or not one.required for one in dependencies)
    response.status_code = 200 if is_ready else 503
    return Readiness(ready=is_ready, dependencies=dependencies)


@cache
def _version() -> str:
    return version.version()  # looked up in the files of what is installed, and this is asked every few seconds


def _without_detail(one: Dependency) -> Dependency:
    """Whoever may not read learns which dependency is down, and nothing of folders and addresses."""
    detail = "ok" if one.ok else "not well; a key that may read is told why"
    return one.model_copy(update={"detail": detail, "remedy": None})
