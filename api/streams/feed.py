"""The life of a job as events: what is kept for all its listeners, and what each of them has not heard yet."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple, Self

import anyio
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from api.schemas import EndEvent, GapEvent, MetricsEvent, Progress, StateEvent
from api.streams.hub import MAX_SECONDS, Hub, Topic
from api.views import job_warnings, progress_of
from store import news
from store.models import Job
from store.news import Measured, Newest
from store.states import ENDED

MAX_REPLAY = 10_000
"""Points that are sent at most to a listener who comes back."""
_KEPT = 2_000
"""Points that are kept for listeners who read slowly."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Not the spec, which is long and never changes.
_READ = (
    Job.state, Job.status_reason, Job.detail, Job.attempt, Job.worker_id, Job.best_ap, Job.warnings, Job.progress,
    Job.step, Job.total_steps, Job.epoch, Job.epochs, Job.eta_seconds,
)  # fmt: skip


class Batch(NamedTuple):
    """Metrics that were written after one position and not after another, as events."""

    since: int
    until: int
    points: int
    events: tuple[ServerSentEvent, ...]


class Seen(NamedTuple):
    """A job as it was at the last look. Positions are microseconds of the database's clock."""

    state: StateEvent
    progress: Progress
    latest: Sequence[Newest]
    until: int
    has_ended: bool


_Found = tuple[Seen, Batch | None]


class JobFeed(Topic):
    """What is kept of a job for all who listen."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.seen: Seen | None = None
        self.batches: deque[Batch] = deque()

    @property
    def is_gone(self) -> bool:
        return self.is_known and self.seen is None

    @classmethod
    def look(cls, topics: Sequence[Self], session: Session) -> list[_Found | None]:
        ids = [topic.job_id for topic in topics]
        # The job before its metrics: one that is seen to have ended has no more to come.
        rows = session.scalars(select(Job).options(load_only(*_READ)).where(Job.id.in_(ids)))
        jobs = {job.id: job for job in rows}
        newest = news.newest(ids, session=session)
        return [topic._see(jobs.get(topic.job_id), newest[topic.job_id], session) for topic in topics]

    def take(self, found: _Found | None) -> bool:
        before = self.seen
        self.seen, batch = found or (None, None)
        if batch is not None:
            self.batches.append(batch)
            while sum(kept.points for kept in self.batches) > _KEPT and len(self.batches) > 1:
                self.batches.popleft()
        return self.seen != before

    def after(self, position: int) -> list[ServerSentEvent] | None:
        """Events since a position that was told by this feed; None where it is another, or too long ago."""
        batches = list(self.batches)
        while batches and batches[0].since != position:
            batches.pop(0)
        return [event for batch in batches for event in batch.events] if batches else None

    def _see(self, job: Job | None, latest: Sequence[Newest], session: Session) -> _Found | None:
        if job is None:
            return None
        until, batch = max((_micros(point.at) for point in latest), default=0), None
        if self.seen is not None:
            since, until = self.seen.until, max(until, self.seen.until)
            batch = read(self.job_id, since, until, session) if until > since else None
        return Seen(_state_of(job), progress_of(job), latest, until, job.state in ENDED), batch


class Listener:
    """One stream: which state it has told, and up to where it has told metrics.

    `heard` is the id of events, so that a listener who comes back with `Last-Event-ID` goes on there. States and
    progress are snapshots and need no position.
    """

    def __init__(self, feed: JobFeed, heard: int | None) -> None:
        self._feed, self._heard = feed, heard
        self._told: dict[str, BaseModel] = {}

    async def events(self, hub: Hub) -> AsyncIterator[ServerSentEvent]:
        deadline = anyio.current_time() + MAX_SECONDS
        while True:
            news = self._feed.news
            seen = self._feed.seen
            if seen is not None:
                for event in self._snapshots(seen):
                    yield event
                for event in await self._metrics(seen, hub):
                    yield event
            if self._feed.is_gone or (seen is not None and seen.has_ended):
                yield self._event("end", EndEvent(reason="ended" if seen is not None else "deleted"))
                return
            why = await hub.wait(news, deadline)
            if why != "news":
                yield self._event("end", EndEvent(reason=why))
                return

    def _snapshots(self, seen: Seen) -> Iterator[ServerSentEvent]:
        for name, value in (("state", seen.state), ("progress", seen.progress)):
            if self._told.get(name) != value:
                self._told[name] = value
                yield self._event(name, value)

    async def _metrics(self, seen: Seen, hub: Hub) -> Sequence[ServerSentEvent]:
        since = self._heard
        if since is not None and seen.until <= since:
            return ()
        self._heard = seen.until
        if since is None:
            # A new listener starts from the newest value of every series; what came before is at GET .../metrics.
            rows = [Measured(one.step, one.epoch, seen.state.attempt, one.name, one.value) for one in seen.latest]
            return _as_events(rows, 0, seen.until)
        kept = self._feed.after(since)
        if kept is None:
            batch = await hub.read(lambda session: read(self._feed.job_id, since, seen.until, session))
            return batch.events
        self._heard = self._feed.batches[-1].until
        return kept

    def _event(self, name: str, data: BaseModel) -> ServerSentEvent:
        return _event(name, data, self._heard or 0)


def read(job_id: str, since: int, until: int, session: Session) -> Batch:
    """The points between two positions; of more than MAX_REPLAY the newest, behind an event that says so."""
    rows = news.measured(job_id, _time(since), _time(until), limit=MAX_REPLAY + 1, session=session)
    shown = rows[:MAX_REPLAY]
    events = _as_events(shown, since, until)
    if len(rows) > len(shown):
        events = (_event("gap", GapEvent(points=len(shown)), since), *events)
    return Batch(since, until, len(shown), events)


def _as_events(rows: Iterable[Measured], since: int, until: int) -> tuple[ServerSentEvent, ...]:
    """Only the last event moves the position: who is cut off before it hears all of them again."""
    steps = list(_by_step(rows))
    ids = [since] * (len(steps) - 1) + [until]
    return tuple(_event("metrics", step, position) for step, position in zip(steps, ids, strict=False))


def _by_step(rows: Iterable[Measured]) -> Iterator[MetricsEvent]:
    for (step, epoch, attempt), group in groupby(sorted(rows), key=lambda row: row[:3]):
        yield MetricsEvent(step=step, epoch=epoch, attempt=attempt, values={row.name: row.value for row in group})


def _event(name: str, data: BaseModel, position: int) -> ServerSentEvent:
    """Written out once, however many listen."""
    return ServerSentEvent(event=name, raw_data=data.model_dump_json(), id=str(position))


def _state_of(job: Job) -> StateEvent:
    return StateEvent(
        state=job.state.value,
        status_reason=job.status_reason,
        detail=job.detail,
        attempt=job.attempt,
        worker_id=job.worker_id,
        best_ap=job.best_ap,
        warnings=job_warnings(job),
    )


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time(position: int) -> datetime:
    return _EPOCH + position * _MICROSECOND
