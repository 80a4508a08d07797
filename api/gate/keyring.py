"""The API keys of the database, as this process last saw them: no request waits for the database to be let in."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.problems import ProblemError
from store import keys
from store.db import Database
from store.models import ApiKey

log = logging.getLogger("api.keys")

FRESH_SECONDS: Final = 2.0
"""For this long a revoked key may still be let in, and a new one still be unknown to other processes."""
OLDEST_SECONDS: Final = 10.0
"""While the database is away nobody is let in by what was known longer ago."""
RETRY_SECONDS: Final = 0.25
"""How soon the database is asked again, for a key that is not known or after a failure."""
_USED_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Known:
    """What was known at one moment."""

    at: float
    any_exist: bool
    usable: Mapping[str, ApiKey]


@dataclass
class KeyRing:
    database: Database
    clock: Callable[[], float] = time.monotonic
    used: set[str] = field(default_factory=set)
    """Keys whose use is to be written down, by whoever takes them from here."""
    _known: Known | None = None
    _tried_at: float = -float("inf")
    _stale_before: float = -float("inf")
    _noted: dict[str, float] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def known(self, *, fresh: float = FRESH_SECONDS) -> Known:
        """The keys as they were at most `fresh` seconds ago, or `OLDEST_SECONDS` while the database is away.

        Raises:
            ProblemError: 503, the database is away for longer.
        """
        if (known := self._recent(fresh)) is not None:
            return known
        async with self._lock:
            if self._recent(fresh) is None and self.clock() - self._tried_at > min(fresh, RETRY_SECONDS):
                await self._refresh()
        if (known := self._recent(OLDEST_SECONDS)) is not None:
            return known
        detail = "the database does not answer, so API keys cannot be checked; try again"
        raise ProblemError(503, "database_unavailable", detail, headers={"Retry-After": "5"})

    async def were_any(self, *, seconds: float) -> bool:
        """Whether there are keys or, where the database does not say so within `seconds`, were when last looked."""
        known = await self._remembered(seconds)
        return known is None or known.any_exist

    async def find(self, key: str, *, seconds: float | None = None) -> ApiKey | None:
        """The usable key that this is, in the same time whether or not its id is known.

        Args:
            seconds: where given, a database that has not answered by then is not waited for: what was known when it
                last did has to do. For what tells how the service is, which is asked when it is not well.

        Raises:
            ProblemError: as in `known`.
        """
        key_id = keys.id_of(key)
        known = (await self._remembered(seconds) if seconds is not None else None) or await self.known()
        if key_id is not None and key_id not in known.usable and seconds is None:
            known = await self.known(fresh=RETRY_SECONDS)  # it may have been made a moment ago
        row = known.usable.get(key_id or "")
        if not keys.fits(key, row.hash if row else None):
            return None
        assert row is not None  # noqa: S101 (or nothing would fit)
        self._note(row.id)
        return row

    async def _remembered(self, seconds: float) -> Known | None:
        """What is known now or, where the database does not say so within `seconds`, was when it last did."""
        looking = asyncio.ensure_future(self.known())
        await asyncio.wait({looking}, timeout=seconds)
        if looking.done() and looking.exception() is None:
            return looking.result()
        looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # which is nobody's surprise
        return self._known

    def forget(self) -> None:
        """Look again at the next request: this process has just changed a key."""
        self._stale_before = self.clock()
        self._tried_at = -float("inf")

    def _recent(self, seconds: float) -> Known | None:
        known = self._known
        is_recent = known is not None and known.at >= max(self.clock() - seconds, self._stale_before)
        return known if is_recent else None

    async def _refresh(self) -> None:
        begun = self._tried_at = self.clock()
        try:
            any_exist, usable = await run_in_threadpool(self._read)
        except SQLAlchemyError as error:
            log.warning("the API keys cannot be read, and are tried again: %s", error)
        else:
            self._known = Known(begun, any_exist, usable)

    def _read(self) -> tuple[bool, dict[str, ApiKey]]:
        with self.database.read() as session:
            usable = {row.id: row for row in keys.usable(session=session)}
            return bool(usable) or keys.exist(session=session), usable

    def _note(self, key_id: str) -> None:
        now = self.clock()
        if now - self._noted.get(key_id, -float("inf")) > _USED_SECONDS:
            self._noted[key_id] = now
            self.used.add(key_id)
