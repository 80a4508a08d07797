"""Sweeps: submit, list, read, cancel, and the report that compares their jobs."""

from typing import Annotated, Literal

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from api import idempotency, paging
from api.deps import PartsDep, ReadSession, WriteSession
from api.routers.jobs import Text
from api.routers.results import prefers
from api.routing import Router
from api.schemas import Page
from api.sweeps import submission as sweeping
from api.sweeps.reports import as_csv, build_report
from api.sweeps.schemas import Sweep, SweepDryRun, SweepReport, SweepSummary
from api.sweeps.views import summaries, sweep_full
from store import sweeps
from store.jobs import Cursor
from tid_core.sweep import SweepSpec

router = Router(prefix="/sweeps", tags=["sweeps"])


@router.post(
    "",
    name="create",
    status_code=201,
    response_model=Sweep,
    responses={200: {"model": SweepDryRun, "description": "The answer to `dry_run=true`."}, 201: idempotency.ANSWER},
)
def create(
    sweep: SweepSpec,
    parts: PartsDep,
    response: Response,
    key: idempotency.IdempotencyKey,
    dry_run: Annotated[bool, Query(description="Only say whether the sweep would be accepted.")] = False,
) -> Sweep | Response:
    """Queue a job for every combination of the axes, and once for each seed and recipe the baseline that they share.

    Each job is checked as POST /jobs checks it, and nothing is stored unless all are fine. Problems point to the value
    of an axis or to the base, and say which points have them.
    """
    if dry_run:
        answer: SweepDryRun = sweeping.dry_run(sweep, parts)
        return JSONResponse(answer.model_dump(mode="json"))
    submitted = sweeping.submit(sweep, parts, idempotency_key=key)
    response.headers["Location"] = f"/sweeps/{submitted.sweep.id}"
    if submitted.replayed:
        response.headers[idempotency.REPLAYED] = "true"
    return submitted.sweep


@router.get("", name="list")
def list_sweeps(
    session: ReadSession,
    search: Annotated[Text | None, Query(description="Part of the name, in any case.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> Page[SweepSummary]:
    """Sweeps, newest first. Pages stay stable while sweeps are added."""
    of = paging.listing("sweeps", search=search)
    after = paging.decode(cursor, of) if cursor else None
    rows = sweeps.page(session=session, limit=limit + 1, after=after, search=search)
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(Cursor(shown[-1].created_at, shown[-1].id), of) if has_more else None
    return Page(data=summaries(shown, session=session), has_more=has_more, next_cursor=following)


@router.get("/{sweep_id}", name="get")
def get(sweep_id: str, session: ReadSession) -> Sweep:
    """A sweep with its jobs."""
    return sweep_full(sweeps.get(sweep_id, session=session), session=session)


@router.post("/{sweep_id}/cancel", name="cancel", status_code=202)
def cancel(sweep_id: str, session: WriteSession) -> Sweep:
    """Cancel every job of the sweep that has not ended. Cancelling twice, or a sweep that has ended, is no error."""
    return sweep_full(sweeps.request_cancel(sweep_id, session=session), session=session)


@router.get(
    "/{sweep_id}/report",
    name="report",
    response_model=SweepReport,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def report(
    sweep_id: str,
    request: Request,
    session: ReadSession,
    format: Annotated[  # noqa: A002
        Literal["json", "csv"] | None, Query(description="Overrides the Accept header.")
    ] = None,
) -> SweepReport | Response:
    """Every setting over its seeds: AP, the gain over the baseline of the same seed with its 95 % interval, the cost.

    As CSV one line per setting, without the single runs.
    """
    found = build_report(sweeps.get(sweep_id, session=session), session=session)
    if not prefers(request, format, "csv", "text/csv"):
        return found
    headers = {"Content-Disposition": f'attachment; filename="{sweep_id}-report.csv"'}
    return Response(as_csv(found), media_type="text/csv; charset=utf-8", headers=headers)
