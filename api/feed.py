"""What a listener of a job has not heard yet. Each look is one short read; nothing is held in between."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from fastapi.sse import ServerSentEvent
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.schemas import EndEvent, MetricsEvent, StateEvent
from api.views import job_warnings, progress_of
from store.models import Job, Metric, MetricLatest
from store.states import ENDED

MAX_REPLAY = 10_000
_Row = tuple[int, int, int, str, float]
"""Step, epoch, attempt, name, value."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass
class Feed:
    """Position of one listener.

    `heard` is the time, by the database's clock, up to which metrics were sent; it is the id of events, so
    that a listener who comes back with `Last-Event-ID` continues there. States and progress are snapshots
    and need no position.
    """

    job_id: str
    heard: int | None = None
    is_over: bool = False
    _last: dict[str, Any] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)

    def look(self, session: Session) -> list[ServerSentEvent]:
        """Everything new since the last look, states before metrics, and `end` last."""
        job = session.get(Job, self.job_id)
        if job is None:
            self.is_over = True
            return [self._event("end", EndEvent(reason="deleted"))]
        events = list(self._changes(job))
        events += self._metrics(job, session)
        if job.state in ENDED:
            self.is_over = True
            events.append(self._event("end", EndEvent(reason="ended")))
        return events

    def _event(self, name: str, data: Any) -> ServerSentEvent:
        return ServerSentEvent(event=name, data=data, id=str(self.heard or 0))

    def _changes(self, job: Job) -> Iterator[ServerSentEvent]:
        state = StateEvent(
            state=job.state.value,
            status_reason=job.status_reason,
            detail=job.detail,
            attempt=job.attempt,
            worker_id=job.worker_id,
            best_ap=job.best_ap,
            warnings=job_warnings(job),
        )
        for name, value in (("state", state), ("progress", progress_of(job))):
            if self._last.get(name) != value:
                self._last[name] = value
                yield self._event(name, value)

    def _metrics(self, job: Job, session: Session) -> list[ServerSentEvent]:
        latest = session.execute(
            select(MetricLatest.name, MetricLatest.at, MetricLatest.step, MetricLatest.value, MetricLatest.epoch).where(
                MetricLatest.job_id == job.id
            )
        ).all()
        until = max((_micros(at) for _, at, *_ in latest), default=0)
        if self.heard is None:
            # A new listener starts from the newest value of every series; what came before is at GET .../metrics.
            rows = [(step, epoch, job.attempt, name, value) for name, _, step, value, epoch in latest]
        elif until > self.heard:
            newest = {name: step for name, at, step, *_ in latest if _micros(at) > self.heard}
            rows = self._rows_since(job, newest, until, session)
        else:
            return []
        position = self.heard or 0
        events = [ServerSentEvent(event="metrics", data=event, id=str(position)) for event in _by_step(rows)]
        self.heard = until
        self._steps = {name: step for name, _, step, *_ in latest}
        if events:
            # Only the last event of a look moves the position: cut off before it, a listener hears the look again.
            events[-1] = events[-1].model_copy(update={"id": str(until)})
        return events

    def _rows_since(self, job: Job, newest: dict[str, int], until: int, session: Session) -> list[_Row]:
        """Points of the series in `newest` that were written after `heard`, at most MAX_REPLAY, the newest of them."""
        since = _EPOCH + (self.heard or 0) * _MICROSECOND
        # The step keeps the database from walking whole series; a later attempt starts below it again.
        floors = {name: self._steps.get(name, -1) for name in newest}
        beyond = [
            (Metric.name == name) & (Metric.step > floor if newest[name] > floor else Metric.step >= 0)
            for name, floor in floors.items()
        ]
        found = session.execute(
            select(Metric.step, Metric.epoch, Metric.attempt, Metric.name, Metric.value)
            .where(Metric.job_id == job.id, or_(*beyond), ~Metric.superseded)
            .where(Metric.at > since, Metric.at <= _EPOCH + until * _MICROSECOND)
            .order_by(Metric.at.desc(), Metric.step.desc())
            .limit(MAX_REPLAY)
        )
        return [(row.step, row.epoch, row.attempt, row.name, row.value) for row in found]


def _by_step(rows: list[_Row]) -> Iterator[MetricsEvent]:
    ordered = sorted(rows)
    for (step, epoch, attempt), group in groupby(ordered, key=lambda row: row[:3]):
        yield MetricsEvent(step=step, epoch=epoch, attempt=attempt, values={row[3]: row[4] for row in group})


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND
