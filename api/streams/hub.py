"""Following: of all that is followed, one task reads what is new, once a second, for all who listen.

A listener holds neither a thread nor a connection to the database, and has no queue that could fill up: a topic keeps
its present state and the latest news, and each listener takes from there what it has not sent yet. One that reads
slowly delays nobody; if it falls behind the news that are kept, it reads the rest from the database once.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Self, TypeVar, cast

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from store.db import Database

log = logging.getLogger("api.hub")

LOOK_SECONDS = 1.0
MAX_SECONDS = 600.0
"""Longest time that a stream stays open; its listener comes back."""
_CATCHING_UP = 4
"""Listeners that read for themselves at the same time; the others wait, and requests have connections left."""
Answer = TypeVar("Answer")
AnyTopic = TypeVar("AnyTopic", bound="Topic")


class Topic(ABC):
    """Something about one job that is followed."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.listeners = 0
        self.is_known = False
        """Whether it has been looked at."""
        self._news = asyncio.Event()

    @classmethod
    @abstractmethod
    def look(cls, topics: Sequence[Self], session: Session) -> list[Any]:
        """Read what is new of each; in another thread, so nothing is changed here."""

    @abstractmethod
    def take(self, found: Any) -> bool:
        """Make what `look` found the present; whether anything is new."""

    @property
    def news(self) -> asyncio.Event:
        """Set at the next change. To miss none, take it before reading the topic."""
        return self._news

    def tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Hub:
    """What is followed in this process. For the event loop's thread alone."""

    def __init__(self, database: Database) -> None:
        self.is_closing = False
        self._database = database
        self._topics: dict[tuple[type[Topic], str], Topic] = {}
        self._wanted = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._looking, self._catching_up = CapacityLimiter(1), CapacityLimiter(_CATCHING_UP)

    @contextmanager
    def follow(self, kind: type[AnyTopic], job_id: str) -> Iterator[AnyTopic]:
        """The topic, looked at while anyone is in this block."""
        topic = cast(AnyTopic, self._topics.setdefault((kind, job_id), kind(job_id)))
        topic.listeners += 1
        self._wanted.set()
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="hub")
        try:
            yield topic
        finally:
            topic.listeners -= 1
            if not topic.listeners:
                del self._topics[kind, job_id]

    async def wait(self, news: asyncio.Event, until: float) -> Literal["news", "time", "shutdown"]:
        """Wait for news, at most until that time of the event loop."""
        if not self.is_closing:
            with anyio.move_on_after(max(0.0, until - anyio.current_time())):
                await news.wait()
        if self.is_closing:
            return "shutdown"
        return "news" if news.is_set() else "time"

    async def read(self, question: Callable[[Session], Answer]) -> Answer:
        """One short read for one listener."""

        def ask() -> Answer:
            with self._database.read() as session:
                return question(session)

        return await run_sync(ask, limiter=self._catching_up)

    def close(self) -> None:
        """Let every stream end now; its listener may come back to another process."""
        self.is_closing = True
        for topic in self._topics.values():
            topic.tell()

    async def stop(self) -> None:
        self.close()
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def _poll(self) -> None:
        """Everything once a second, and what is new at once."""
        due = anyio.current_time()
        while self._topics and not self.is_closing:
            self._wanted.clear()
            is_due = anyio.current_time() >= due
            if is_due:
                due = anyio.current_time() + LOOK_SECONDS
            await self._look([topic for topic in self._topics.values() if is_due or not topic.is_known])
            with anyio.move_on_after(max(0.0, due - anyio.current_time())):
                await self._wanted.wait()
        self._poller = None

    async def _look(self, topics: Sequence[Topic]) -> None:
        try:
            for topic, found in await run_sync(self._read, topics, limiter=self._looking):
                topic.is_known = True
                if topic.take(found):
                    topic.tell()
        except SQLAlchemyError as error:
            log.warning("nothing new is told of %d jobs, the database failed: %s", len(topics), error)
        except Exception:  # the next look may be better, and without this task nobody would hear anything any more
            log.exception("nothing new is told of %d jobs", len(topics))

    def _read(self, topics: Sequence[Topic]) -> list[tuple[Topic, Any]]:
        found: list[tuple[Topic, Any]] = []
        with self._database.read() as session:
            for kind in {type(topic) for topic in topics}:
                alike = [topic for topic in topics if type(topic) is kind]
                found += zip(alike, kind.look(alike, session), strict=True)
        return found
