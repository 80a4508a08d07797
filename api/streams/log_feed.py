"""The log of a job as it grows, for all who read along."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Self

import anyio
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.schemas import LogChunk
from api.streams.hub import MAX_SECONDS, Hub, Topic
from store import logs
from store.models import Job
from store.states import ENDED

_KEPT = 1 << 18
"""Bytes that are kept for readers who are at the end of the log."""


class Grown(NamedTuple):
    """A log as it was at the last look."""

    size: int
    tail: bytes
    """What came last, up to `size`."""
    attempt: int
    has_ended: bool


class LogFeed(Topic):
    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.seen: Grown | None = None

    @property
    def is_gone(self) -> bool:
        return self.is_known and self.seen is None

    @classmethod
    def look(cls, topics: Sequence[Self], session: Session) -> list[Grown | None]:
        # The job before its log: one that is seen to have ended writes no more.
        wanted = select(Job.id, Job.state, Job.attempt).where(Job.id.in_([topic.job_id for topic in topics]))
        jobs = {job_id: (state in ENDED, attempt) for job_id, state, attempt in session.execute(wanted)}
        return [topic._see(jobs.get(topic.job_id), session) for topic in topics]

    def take(self, found: Grown | None) -> bool:
        before, self.seen = self.seen, found
        return found is None or found != before

    def since(self, offset: int) -> bytes | None:
        """What came after `offset`; None where that is no longer kept."""
        if self.seen is None or offset < self.seen.size - len(self.seen.tail):
            return None
        return self.seen.tail[len(self.seen.tail) - (self.seen.size - offset) :]

    def _see(self, job: tuple[bool, int] | None, session: Session) -> Grown | None:
        if job is None:
            return None
        size, tail = logs.size(self.job_id, session=session), b""
        if self.seen is not None and size == self.seen.size:
            tail = self.seen.tail
        elif self.seen is not None:
            page = logs.read(self.job_id, offset=self.seen.size, limit_bytes=_KEPT, session=session)
            is_whole = (page.start, page.end) == (self.seen.size, page.size)
            size, tail = page.size, page.text.encode() if is_whole else b""
            if is_whole and len(self.seen.tail) + len(tail) <= _KEPT:
                tail = self.seen.tail + tail
        return Grown(size, tail, job[1], job[0])


async def follow(hub: Hub, job_id: str, begin: LogChunk) -> AsyncIterator[bytes]:
    """The log from its piece `begin` on until the job ends; at most MAX_SECONDS.

    It also ends where a hole would be, because older bytes than those that were read have been dropped.
    """
    deadline = anyio.current_time() + MAX_SECONDS
    yield begin.text.encode()
    offset = begin.next_offset
    with hub.follow(LogFeed, job_id) as feed:
        why = "news"
        while why == "news" and not feed.is_gone:
            news, seen = feed.news, feed.seen
            while seen is not None and offset < seen.size:
                text = await _read_on(hub, feed, offset)
                if not text:
                    return
                yield text
                offset += len(text)
            if seen is not None and seen.has_ended:
                return
            why = await hub.wait(news, deadline)


async def _read_on(hub: Hub, feed: LogFeed, offset: int) -> bytes:
    """What follows; nothing where it was dropped."""
    if kept := feed.since(offset):
        return kept
    page = await hub.read(lambda session: logs.read(feed.job_id, offset=offset, session=session))
    return page.text.encode() if page.start == offset else b""
