"""What a job has to tell: attempts, log, report."""

from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.deps import PartsDep, ReadSession
from api.problems import ProblemError
from api.reports import build_report
from api.routing import Router
from api.schemas import Attempt, FieldProblem, Items, LogChunk, Report
from api.streams import log_feed
from store import jobs, logs, models
from store.attempts import Told, of_job

router = Router(prefix="/jobs/{job_id}", tags=["jobs"])

LOG_BYTES = 1 << 20


@router.get("/attempts", name="attempts")
def attempts(job_id: str, session: ReadSession) -> Items[Attempt]:
    """Every start of the job: where it ran, from which step it went on, and how it ended."""
    job = jobs.get(job_id, session=session)
    return Items(data=[_attempt(told) for told in of_job(job, session=session)])


def _attempt(told: Told) -> Attempt:
    row = told.attempt
    same = {name: getattr(row, name) for name in Attempt.model_fields if hasattr(row, name)}
    computed = {"seconds": told.seconds, "lease_expires_at": told.lease_expires_at, "steps": told.steps}
    same["other_workers"] = told.beside
    return Attempt.model_validate({**same, **computed, "outcome": row.outcome and row.outcome.value})


@router.get("/report", name="report")
def report(job_id: str, session: ReadSession) -> Report:
    """Student against its no-distillation baseline and its teacher: AP, AP per class, parameters, gain, recovery.

    What is not known, or not yet, is null with a `reason`.
    """
    return build_report(jobs.get(job_id, session=session), session=session)


@router.get(
    "/logs",
    name="logs",
    response_model=LogChunk,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def log(
    job_id: str,
    request: Request,
    parts: PartsDep,
    session: ReadSession,
    offset: Annotated[int, Query(ge=-(2**53), le=2**53, description="Bytes; negative: from the end.")] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=10_000, description="Only what this attempt wrote.")] = None,
    format: Annotated[  # noqa: A002
        Literal["json", "text"] | None, Query(description="Overrides the Accept header.")
    ] = None,
    follow: Annotated[
        bool, Query(description="As text/plain, and whatever is added is sent until the job ends, at most ten minutes.")
    ] = False,
) -> LogChunk | Response:
    """What the training printed, at most 1 MiB at once. As text/plain, `X-Next-Offset` says where to read on.

    With `follow`, `X-Log-Offset` says where the text begins: that and the bytes received are the offset to go on from
    where the stream was cut, or ended before the job did.
    """
    jobs.get(job_id, session=session)
    if follow:
        _check_follow(attempt, format)
    chunk = _log_chunk(job_id, offset, attempt, session=session)
    if follow:
        lines = log_feed.follow(parts.hub, job_id, chunk)
        headers = {"X-Log-Offset": str(chunk.offset), "X-Accel-Buffering": "no"}
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=headers)
    if prefers(request, format, "text", "text/plain"):
        return PlainTextResponse(chunk.text, headers={"X-Next-Offset": str(chunk.next_offset)})
    return chunk


def _check_follow(attempt: int | None, format_: str | None) -> None:
    """
    Raises:
        ProblemError: 422, it is asked for together with what it cannot be.
    """
    for name, value, expected in (("attempt", attempt, "no attempt: the whole log"), ("format", format_, "text")):
        if value not in (None, expected):
            detail = f"follow cannot be had with {name}={value}"
            problem = FieldProblem(code="not_with_follow", field=name, detail=detail, expected=expected)
            raise ProblemError(422, "request_invalid", detail, errors=[problem])


def prefers(request: Request, format_: str | None, short: str, media_type: str) -> bool:
    """Whether another form than JSON is wanted: `?format=` decides, else an Accept that names it and not JSON."""
    if format_ is not None:
        return format_ == short
    accept = request.headers.get("accept", "")
    return media_type in accept and "application/json" not in accept


def _log_chunk(job_id: str, offset: int, attempt: int | None, *, session: Session) -> LogChunk:
    limit = LOG_BYTES
    last: int | None = None
    if attempt is not None:
        first, last = _bounds(job_id, attempt, session=session)
        offset = max(last + offset, first) if offset < 0 else max(offset, first)
        limit = min(limit, max(last - offset, 0))
    page = logs.read(job_id, offset=offset, limit_bytes=limit, session=session)
    size = page.size if last is None else last
    return LogChunk(text=page.text, offset=page.start, next_offset=page.end, truncated=page.end < size)


def _bounds(job_id: str, attempt: int, *, session: Session) -> tuple[int, int]:
    """First and last byte of what an attempt wrote; an attempt writes without a gap, and after those before it."""
    row = models.LogChunk
    statement = select(func.min(row.offset), func.max(row.offset + row.bytes))
    first, last = session.execute(statement.where(row.job_id == job_id, row.attempt == attempt)).one()
    return first or 0, last or 0
