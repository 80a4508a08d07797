"""The application: `uvicorn api.app:create_app --factory`, or `api.app:app`."""

from typing import Any

from fastapi import Depends, FastAPI

from api import documents, problems
from api.gate.guard import GuardMiddleware
from api.lifespan import lifespan
from api.middleware import EdgeMiddleware
from api.monitoring.instruments import Instruments
from api.naming import operation_id
from api.queries import check_query
from api.routers import (
    catalogue,
    control,
    datasets,
    events,
    files,
    health,
    jobs,
    keys,
    metrics,
    prometheus,
    results,
    sweeps,
    workers,
)
from api.schemas import ProblemDetails
from store.settings import Settings, get_settings
from tid_core.version import version

API_VERSION = "0.1.0"
"""Of what openapi.json describes, which changes with it; `GET /healthz` tells the version of the software."""
DESCRIPTION = """Distil an object detector as a job: POST a teacher, a student and a dataset; watch mAP; download the
student.

Errors are RFC 9457 problem details. Times are RFC 3339 in UTC. 422 means the request's content, 404 and 409 the state
of things."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. Nothing is opened or started before its lifespan begins."""
    settings = settings or get_settings()
    app = FastAPI(
        title="TID service",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=operation_id,
        responses={"default": {"model": ProblemDetails, "description": "What is wrong, as problem details."}},
        redirect_slashes=False,
        dependencies=[Depends(check_query)],
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.instruments = Instruments(version())
    problems.install(app)
    for module in (
        jobs,
        control,
        metrics,
        events,
        results,
        files,
        sweeps,
        datasets,
        catalogue,
        workers,
        health,
        keys,
        prometheus,
        documents,
    ):
        app.include_router(module.router)
    app.add_middleware(GuardMiddleware)
    app.add_middleware(EdgeMiddleware, max_body_bytes=settings.max_body_bytes, max_upload_bytes=settings.upload_bytes)
    documents.describe(app)
    return app


def __getattr__(name: str) -> Any:
    """`api.app:app` is built when it is asked for, so that importing this module reads no settings."""
    if name == "app":
        globals()["app"] = create_app()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
