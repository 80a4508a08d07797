"""Jobs: submit, list, read, cancel."""

from typing import Annotated

from fastapi import Query, Response
from fastapi.responses import JSONResponse

from api import idempotency, paging, submission
from api.deps import PartsDep, ReadSession, WriteSession
from api.routing import Router
from api.schemas import DryRun, Job, JobSummary, Page
from api.views import job_full, job_summaries
from store import jobs
from store.states import State
from tid_core.spec import JobSpec

router = Router(prefix="/jobs", tags=["jobs"])

Text = Annotated[str, Query(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


@router.post(
    "",
    name="create",
    status_code=201,
    response_model=Job,
    responses={200: {"model": DryRun, "description": "The answer to `dry_run=true`."}, 201: idempotency.ANSWER},
)
def create(
    spec: JobSpec,
    parts: PartsDep,
    response: Response,
    key: idempotency.IdempotencyKey,
    dry_run: Annotated[bool, Query(description="Only say whether the job would be accepted.")] = False,
) -> Job | Response:
    """Check a job and queue it, with its baseline twin where `baseline: true`.

    422 tells every problem of the spec at once, 409 that a job it builds on is not ready. With `dry_run` the same
    findings, and warnings, come as 200.
    """
    if dry_run:
        answer: DryRun = submission.dry_run(spec, parts)
        return JSONResponse(answer.model_dump(mode="json"))
    submitted = submission.submit(spec, parts, idempotency_key=key)
    response.headers["Location"] = f"/jobs/{submitted.job.id}"
    if submitted.replayed:
        response.headers[idempotency.REPLAYED] = "true"
    return submitted.job


@router.get("", name="list")
def list_jobs(
    session: ReadSession,
    parts: PartsDep,
    state: Annotated[list[State] | None, Query(description="Any of these states.")] = None,
    method: Annotated[list[Text] | None, Query(description="Any of these methods.")] = None,
    queue: Text | None = None,
    search: Annotated[Text | None, Query(description="Part of the name, in any case.")] = None,
    sweep: Annotated[Text | None, Query(description="Jobs of the sweep with this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> Page[JobSummary]:
    """Jobs, newest first. Pages stay stable while jobs are added."""
    of = paging.listing("jobs", state=state, method=method, queue=queue, search=search, sweep=sweep)
    rows = jobs.page(
        session=session,
        limit=limit + 1,
        after=paging.decode(cursor, of) if cursor else None,
        states=state or (),
        methods=method or (),
        queue=queue,
        search=search,
        sweep_id=sweep,
    )
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(jobs.Cursor(shown[-1].created_at, shown[-1].id), of) if has_more else None
    return Page(data=job_summaries(shown, parts, session=session), has_more=has_more, next_cursor=following)


@router.get("/{job_id}", name="get")
def get(job_id: str, parts: PartsDep, session: ReadSession) -> Job:
    """A job with its resolved spec."""
    return job_full(jobs.get(job_id, session=session), parts, session=session)


@router.post("/{job_id}/cancel", name="cancel", status_code=202)
def cancel(job_id: str, parts: PartsDep, session: WriteSession) -> Job:
    """Ask a job, and its baseline twin, to stop.

    A waiting job is cancelled at once; a running one says `cancelling` first.
    Cancelling twice is no error; 409 where the job has ended otherwise.
    """
    return job_full(jobs.request_cancel(job_id, session=session), parts, session=session)
