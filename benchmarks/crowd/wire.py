"""The statements of a worker again, without what Python does to make them: one worker's are noted, and sent for others.

So one core of a client is enough for as many workers as the server can take, and the server does what it would do for
real ones: the same statements in the same transactions, a connection for each heartbeat, and one that is kept for
reports, looked at before each use.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Engine, event

from benchmarks.crowd.members import NAMES, Member, Pace
from store.db import Database

STEP = 770_000_000
"""A step that nothing else is equal to."""
_MICROSECONDS = 10**15
"""Whatever is larger is an instant."""


class Sent(NamedTuple):
    sql: str
    values: Any
    is_many: bool


class Tape:
    """What one worker sent for each thing that it does."""

    def __init__(self, member: Member) -> None:
        self.names = (member.worker_id, member.claim.job_id, member.claim.token)
        with _noting() as self.beat:
            member.beat()
        with _noting() as self.progress:
            member.tell([], STEP, "")
        with _noting() as self.metrics:
            member.tell([STEP], STEP, "")
        with _noting() as self.metrics_and_log:
            member.tell([STEP], STEP, "x" * 90 + "\n")


@contextmanager
def _noting() -> Iterator[list[Sent]]:
    sent: list[Sent] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, is_many: bool) -> None:
        sent.append(Sent(statement, values, is_many))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class WireMember:
    """A worker that has signed on by itself; from then on its statements come off the tape."""

    def __init__(self, member: Member, tape: Tape, kept: Database, brief: Database, pace: Pace) -> None:
        self._tape, self._kept, self._brief, self._pace = tape, kept, brief, pace
        ours = (member.worker_id, member.claim.job_id, member.claim.token)
        self._names = dict(zip(tape.names, ours, strict=True))
        self._began = 0.0
        self._step = self._line = 0

    def begin(self, now: float) -> None:
        self._began = now

    def beat(self) -> None:
        self._send(self._tape.beat, 0, self._brief)

    def report(self, now: float) -> int:
        step = int((now - self._began) * self._pace.steps_per_second)
        line = int((now - self._began) * self._pace.lines_per_second)
        every = self._pace.log_every_steps
        logged = range(self._step // every * every + every, step + 1, every)
        tape = self._tape.metrics if logged else self._tape.progress
        if line > self._line:
            tape = self._tape.metrics_and_log
        self._step, self._line = step, line
        self._send(tape, step, self._kept)
        return len(NAMES) if tape is not self._tape.progress else 0

    def _send(self, tape: list[Sent], step: int, database: Database) -> None:
        """One transaction. A report that is late has the points of one log in it, not of all that were missed."""
        connection = database.engine.raw_connection()
        cursor = connection.cursor()
        for sent in tape:
            values = self._filled(sent.values, step)
            (cursor.executemany if sent.is_many else cursor.execute)(sent.sql, values)
        connection.commit()
        connection.close()

    def _filled(self, value: Any, step: int, name: str = "") -> Any:
        match value:
            case dict():
                return {key: self._filled(one, step, key) for key, one in value.items()}
            case list() | tuple():
                return type(value)(self._filled(one, step) for one in value)
            case str():
                return self._names.get(value, value)
            case int() if name.startswith(("seq", "offset")):
                return self._line + 1 if name.startswith("seq") else 91 * self._line
            case int() if value == STEP:
                return step
            case int() if value > _MICROSECONDS:
                return time.time_ns() // 1000
        return value
