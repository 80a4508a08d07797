"""Is it alive, is it ready."""

from fastapi import APIRouter, Request, Response

from api.readiness import Readiness as Checks
from api.schemas import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", name="live")
def live(request: Request) -> Health:
    """The process answers."""
    return Health(status="ok", version=request.app.version)


@router.get(
    "/readyz", name="ready", responses={503: {"model": Readiness, "description": "A required dependency is down."}}
)
async def ready(request: Request, response: Response) -> Readiness:
    """Each dependency, what is wrong with it, and how to mend it; 503 where one that is required is not well.

    Answered within two seconds, also where a dependency hangs. Without its broker the service still takes jobs; they
    start when the broker is back.
    """
    checks: Checks = request.app.state.readiness
    dependencies = await checks.look()
    is_ready = all(one.ok or not one.required for one in dependencies)
    response.status_code = 200 if is_ready else 503
    return Readiness(ready=is_ready, dependencies=dependencies)
