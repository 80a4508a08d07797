"""The spans of one attempt, below the request that made the job: waiting, claim, plan, start, first step."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db import Database
from store.fencing import Claim
from store.models import Attempt, Job
from store.monitoring import tracing
from store.monitoring.log_lines import about
from tid_core.events import Event, Metrics, Started


class AttemptTrace:
    """Does nothing where traces are off. Of spans that are open at the end, each ends then."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    @classmethod
    @contextmanager
    def of(cls, claim: Claim, database: Database, asked_at: datetime) -> Iterator[Self]:
        """The span of the attempt, from the moment at which its worker asked for the job."""
        trace = cls()
        if not tracing.is_on():
            yield trace
            return
        with database.read() as session:
            parent, waiting_since = _origin(claim, session)
        ids = {"tid__job_id": claim.job_id, "tid__attempt": claim.attempt, "tid__worker_id": claim.worker_id}
        with ExitStack() as stack:
            stack.enter_context(tracing.span("attempt", parent=parent, kind="consumer", **ids))
            stack.enter_context(about(trace_id=tracing.trace_id()))
            stack.callback(tracing.flush)
            stack.callback(trace._end_all)
            for name, began, ended in (("queued", waiting_since, asked_at), ("claim", asked_at, datetime.now(UTC))):
                tracing.open_span(name, began=min(began, ended)).end(int(ended.timestamp() * 1e9))
            yield trace

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with tracing.span(name):
            yield

    def began(self) -> None:
        """The training process was started."""
        self._begin("start")

    def hear(self, events: Sequence[Event]) -> None:
        """`start` ends when the training is set up, `first step` with the first step that it tells of."""
        for event in events if self._open else ():
            if isinstance(event, Started):
                self._end("start")
                self._begin("first step")
            elif isinstance(event, Metrics):
                self._end("first step")

    def _begin(self, name: str) -> None:
        if (span := tracing.open_span(name)) is not None:
            self._open[name] = span

    def _end(self, name: str) -> None:
        if (span := self._open.pop(name, None)) is not None:
            span.end()

    def _end_all(self) -> None:
        for name in list(self._open):
            self._end(name)


def _origin(claim: Claim, session: Session) -> tuple[str | None, datetime]:
    """The span that made the job, and since when it has waited: for its first attempt, or since its last one."""
    parent, created_at = session.execute(select(Job.traceparent, Job.created_at).where(Job.id == claim.job_id)).one()
    before = select(Attempt.ended_at).where(Attempt.job_id == claim.job_id, Attempt.number == claim.attempt - 1)
    return parent, session.scalar(before) or created_at
