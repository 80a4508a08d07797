"""Metric series of a job, as JSON for charts and as CSV for everything else."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.deps import PartsDep
from api.routers.results import prefers
from api.routing import Router
from api.schemas import BestEvaluation, LatestMetric, Metrics, MetricsSummary
from store import jobs, metrics
from store.db import Database
from store.metrics import Sample
from store.models import Metric

router = Router(prefix="/jobs/{job_id}", tags=["jobs"])

DEFAULT_POINTS = 1000
COLUMNS = ("name", "step", "epoch", "value")


@router.get(
    "/metrics",
    name="metrics",
    response_model=Metrics,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def read(
    job_id: str,
    request: Request,
    parts: PartsDep,
    name: Annotated[
        list[str] | None, Query(description="A series, or several by a prefix and `*`; none = all. Repeatable.")
    ] = None,
    since_step: Annotated[int | None, Query(ge=-1, le=2**53, description="Only points after this step.")] = None,
    max_points: Annotated[
        int | None,
        Query(
            ge=2,
            le=1_000_000,
            description="Thin longer series, keeping their peaks. "
            f"Without it: {DEFAULT_POINTS} points a series in JSON, all in CSV.",
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        Literal["json", "csv"] | None, Query(description="Overrides the Accept header.")
    ] = None,
) -> Response:
    """Series of the job, and a summary with the newest value of every series and the best mAP.

    Points of a lost attempt beyond the step that the next one resumed from are left out. A series that has no
    points yet is left out as well.
    """
    with parts.database.read() as session:
        jobs.get(job_id, session=session)
        latest = metrics.latest(job_id, session=session)
        wanted = _matching(list(latest), name)
        if not prefers(request, format, "csv", "text/csv"):
            limit = max_points or DEFAULT_POINTS
            series = _series(job_id, wanted, since_step, limit, session=session)
            summary = _summary(job_id, latest, session=session)
            # What `Metrics` looks like: a model for each point would take longer than everything else.
            return Response(to_json({"series": series, "summary": summary}), media_type="application/json")
    lines = _csv(job_id, wanted, since_step, max_points, parts.database)
    headers = {"Content-Disposition": f'attachment; filename="{job_id}-metrics.csv"'}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


def _matching(known: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return list(known)
    exact = {one for one in wanted if not one.endswith("*")}
    prefixes = tuple(one.removesuffix("*") for one in wanted if one.endswith("*"))
    return [one for one in known if one in exact or one.startswith(prefixes)]


def _series(
    job_id: str, names: Sequence[str], since: int | None, max_points: int, *, session: Session
) -> list[dict[str, Any]]:
    counted = select(Metric.name, func.count()).where(Metric.job_id == job_id, Metric.name.in_(names))
    if since is not None:
        counted = counted.where(Metric.step > since)
    rows = session.execute(counted.where(~Metric.superseded).group_by(Metric.name))
    totals = {name: total for name, total in rows}  # noqa: C416 (rows are no tuples to mypy)
    series = []
    for name in names:
        samples = metrics.read(job_id, name, since_step=since, max_points=max_points, session=session)
        points = [{"step": step, "epoch": epoch, "value": value} for step, epoch, value in samples]
        series.append({"name": name, "points": points, "total_points": totals.get(name, 0)})
    return series


def _summary(job_id: str, latest: Mapping[str, Sample], *, session: Session) -> MetricsSummary:
    best = session.execute(
        select(Metric.value, Metric.step, Metric.epoch)
        .where(Metric.job_id == job_id, Metric.name == metrics.BEST, ~Metric.superseded)
        .order_by(Metric.value.desc(), Metric.step)
        .limit(1)
    ).first()
    return MetricsSummary(
        latest={name: LatestMetric.model_validate(sample) for name, sample in latest.items()},
        best=None if best is None else BestEvaluation(ap=best.value, step=best.step, epoch=best.epoch),
    )


def _csv(job_id: str, names: Sequence[str], since: int | None, max_points: int | None, db: Database) -> Iterator[str]:
    """Series after series, each read in a session of its own: none is held while the client takes its time."""
    yield ",".join(COLUMNS) + "\r\n"
    for name in names:
        with db.read() as session:
            samples = metrics.read(job_id, name, since_step=since, max_points=max_points, session=session)
        text = io.StringIO()
        csv.writer(text).writerows((name, *sample) for sample in samples)
        yield text.getvalue()
