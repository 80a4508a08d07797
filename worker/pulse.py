"""A file that shows, to whoever looks after this process, that the worker's loop still turns.

The row in the database says the same to everybody else, but a health check that has to load a database driver every
few seconds would cost more than the worker itself.
"""

import logging
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger("worker")


class Pulse:
    """Renews `HOME/run/NAME.pulse`; read by docker/alive/worker.py."""

    def __init__(self, home: Path, worker_id: str) -> None:
        self.path = home / "run" / f"{quote(worker_id, safe='')}.pulse"
        self._warned = False

    def beat(self) -> None:
        """A file that cannot be written is no reason to stop working; it is told once."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            if not self._warned:
                log.warning("health checks will not see this worker: %s cannot be written: %s", self.path, error)
            self._warned = True

    def end(self) -> None:
        """The worker is leaving, and nobody should wait for its pulse."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s stays: %s", self.path, error)
