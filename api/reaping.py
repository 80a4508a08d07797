"""A thread in every API process that puts lost jobs back into the queue; a lease in the database picks one of them."""

import logging
import secrets
from threading import Event, Thread

from api.deps import Parts
from store import leases, reaper

log = logging.getLogger("api.reaper")


class Reaper:
    """Runs until it is stopped, whatever happens to the database or the broker meanwhile."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._token = secrets.token_hex(16)
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and gives up the lease so that another process need not wait for it."""
        self._stopping.set()
        self._thread.join(timeout=5)
        try:
            with self.parts.database.write() as session:
                leases.release(reaper.LEASE, self._token, session=session)
        except Exception as error:
            log.warning("could not give up the reaper's lease, it runs out by itself: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._reap()
            except Exception as error:
                log.warning("the reaper failed and will try again: %s", error)
            self._stopping.wait(self.parts.settings.reaper_seconds)

    def _reap(self) -> None:
        parts = self.parts
        done = reaper.reap_once(parts.database, parts.settings, token=self._token, ring=self._ring)
        for expired in done.expired if done else ():
            log.warning(
                "attempt %d of job %s was lost; the job is %s",
                expired.attempt,
                expired.job_id,
                expired.state.value,
                extra={"job_id": expired.job_id, "attempt": expired.attempt},
            )

    def _ring(self, due: reaper.Doorbell) -> None:
        self.parts.doorbell.ring(due.job_id, due.queue)
