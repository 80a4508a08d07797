"""The life of a job as server-sent events."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from api.deps import PartsDep
from api.streams.feed import JobFeed, Listener
from store import jobs

log = logging.getLogger("api.events")
router = APIRouter(tags=["jobs"])

RETRY_MS = 2000


def _existing_job(job_id: str, parts: PartsDep) -> str:
    """A stream cannot say 404 once it has begun, so the job is looked up before."""
    with parts.database.read() as session:
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

    A new listener hears the present state, progress and newest metrics, then every change. The stream ends after the
    job has, after ten minutes, or when this server shuts down; who comes back with `Last-Event-ID` misses no metric, or
    hears `gap` where it were too many. While nothing happens, a comment comes every 15 s.
    """
    is_position = last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) <= 16
    yield ServerSentEvent(retry=RETRY_MS, comment="events of job " + job_id)
    with parts.hub.follow(JobFeed, job_id) as feed:
        listener = Listener(feed, int(last_event_id or 0) if is_position else None)
        try:
            async for event in listener.events(parts.hub):
                yield event
        except SQLAlchemyError as error:
            log.warning("events of job %s stop, the database failed: %s", job_id, error)
