"""The life of a job as server-sent events."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.deps import Parts, PartsDep, ReadSession
from api.feed import Feed
from api.schemas import EndEvent
from store import jobs

log = logging.getLogger("api.events")
router = APIRouter(tags=["jobs"])

LOOK_SECONDS = 1.0
MAX_SECONDS = 600.0
RETRY_MS = 2000


def _existing_job(job_id: str, session: ReadSession) -> str:
    """A stream cannot say 404 once it has begun, so the job is looked up before."""
    return jobs.get(job_id, session=session).id


@router.get("/jobs/{job_id}/events", name="events", response_class=EventSourceResponse)
async def events(
    job_id: Annotated[str, Depends(_existing_job)],
    parts: PartsDep,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event heard; what came since is sent.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job: events `state`, `progress`, `metrics`, and a last `end`.

    A new listener hears the present state, progress and newest metrics, then every change. The stream ends
    after the job has, or after ten minutes; who comes back with `Last-Event-ID` misses no metric.
    """
    is_position = last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) <= 16
    feed = Feed(job_id, heard=int(last_event_id or 0) if is_position else None)
    async for event in _follow(feed, parts):
        yield event


async def _follow(feed: Feed, parts: Parts) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY_MS, comment="events of job " + feed.job_id)
    deadline = anyio.current_time() + MAX_SECONDS
    while not feed.is_over and anyio.current_time() < deadline:
        try:
            for event in await run_in_threadpool(_look, feed, parts):
                yield event
        except SQLAlchemyError as error:
            log.warning("events of job %s stop, the database failed: %s", feed.job_id, error)
            return
        if not feed.is_over:
            await anyio.sleep(LOOK_SECONDS)
    if not feed.is_over:
        yield ServerSentEvent(event="end", data=EndEvent(reason="time"), id=str(feed.heard or 0))


def _look(feed: Feed, parts: Parts) -> list[ServerSentEvent]:
    with parts.database.read() as session:
        return feed.look(session)
