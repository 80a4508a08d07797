"""A thread that collects garbage as `tid gc` does, where TID_GC_EVERY_HOURS asks for it; by one process a round."""

import logging
import secrets
from threading import Event, Thread

from api.deps import Parts
from store import leases
from store.upkeep.garbage import LEASE
from store.upkeep.gc import collect

log = logging.getLogger("api.gc")

_HOUR = 3600.0
_LOOK_SECONDS = 60.0


class Collector:
    """Runs until it is stopped. The lease lasts from one round to the next, also beyond the end of this process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="gc", daemon=True)

    def start(self) -> None:
        if self.parts.settings.gc_every_hours:
            self._thread.start()

    def stop(self) -> None:
        """Does not wait for a round: whatever it is at may be interrupted."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._round()
            except Exception as error:
                log.warning("garbage could not be collected, the next round tries again: %s", error)

    def _round(self) -> None:
        parts, seconds = self.parts, _HOUR * self.parts.settings.gc_every_hours
        with parts.database.write() as session:
            if not leases.acquire(LEASE, secrets.token_hex(16), seconds=seconds, session=session):
                return
        totals = collect(parts.database, parts.settings)
        gone = {
            kind.value: f"{total.number} ({total.num_bytes} bytes)" for kind, total in totals.items() if total.number
        }
        log.info("garbage collected: %s", gone or "nothing")
