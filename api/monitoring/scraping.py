"""The answer to a scrape: cheap, and there also while the database is not."""

import logging
import time
from typing import Final

from prometheus_client import generate_latest

from api.deps import Parts
from api.monitoring.instruments import Instruments
from api.monitoring.limited import Limited
from store.monitoring import census

log = logging.getLogger("api.scraping")

FRESH_SECONDS: Final = 1.0
LIMIT_SECONDS: Final = 1.2


class Scraper:
    """Takes a census at most once a second, in a thread of its own, however many scrapes there are."""

    def __init__(self, parts: Parts, instruments: Instruments) -> None:
        self._parts, self._instruments = parts, instruments
        self._census = Limited(self._take, name="census", seconds=LIMIT_SECONDS)
        self._taken_at = -FRESH_SECONDS
        instruments.watch(parts.database.engine)

    async def text(self) -> bytes:
        """The registry in the text format of Prometheus."""
        if time.monotonic() - self._taken_at >= FRESH_SECONDS:
            self._instruments.census.latest = await self._look()
            self._taken_at = time.monotonic()
        return generate_latest(self._instruments.registry)

    async def _look(self) -> census.Census | None:
        try:
            return await self._census.ask()
        except Exception as error:  # whatever it is, a scrape is answered
            log.warning("no census for Prometheus: %s: %s", type(error).__name__, error)
            return None

    def _take(self) -> census.Census:
        with self._parts.database.read() as session:
            return census.take(self._parts.settings, session=session)
