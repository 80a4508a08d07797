"""`python -m worker.crew`: a worker for each GPU of this host, under one parent that keeps them running."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from store.monitoring import log_lines
from store.settings import SettingsError, load_as
from worker.settings import WorkerSettings
from worker.shares import Share, gpus_there, shares
from worker.telemetry import available_cores

log = logging.getLogger("worker.crew")

_LOOK_SECONDS = 0.2
_LONGEST_PAUSE = 30.0
_HEALTHY_AFTER = 60.0


class Member:
    """A worker as a process, in a session of its own, that dies with this one and is started again when it ends."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._failures = 0
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._started_at = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "--parent-pid", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.share.variables},
            start_new_session=True,  # Ctrl-C in the terminal is the crew's to hear
        )
        log.info("worker %s on %s: process %d", self.share.worker_id, self.share.place, process.pid)
        return process

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def keep(self) -> None:
        """Start it again if it has ended: at once the first time, after a pause that doubles where that goes on."""
        if not self.has_ended():
            return
        lasted = time.monotonic() - self._started_at
        if lasted > _HEALTHY_AFTER:
            self._failures = 0
        if lasted < min(2.0**self._failures - 1.0, _LONGEST_PAUSE):
            return
        self._failures += 1
        log.warning("worker %s ended with code %d and is started again", self.share.worker_id, self._process.returncode)
        self._process = self._start()

    def tell(self, number: signal.Signals) -> None:
        if not self.has_ended():
            self._process.send_signal(number)


class Crew:
    """The workers of this host. Run it in the main thread: they live as long as that does."""

    def __init__(self, members: list[Share]) -> None:
        self._shares = members
        self._stopping = False
        self._interrupts = 0

    def run(self) -> bool:
        """Until SIGTERM, SIGHUP or SIGINT, passed on as SIGTERM, once; a second SIGINT kills instead of waiting.

        Returns:
            Whether every worker could end in order.
        """
        signal.signal(signal.SIGTERM, self._on_term)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(signal.SIGHUP, self._on_term)
        signal.signal(signal.SIGINT, self._on_interrupt)
        members = [Member(share) for share in self._shares]
        while not self._stopping:
            for member in members:
                member.keep()
            time.sleep(_LOOK_SECONDS)
        log.info("stopping: trainings save their state, and their jobs go back to the queue")
        self._tell(members, signal.SIGTERM)
        while not all(member.has_ended() for member in members):
            if self._interrupts > 1:
                self._tell(members, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
        return self._interrupts <= 1

    def _tell(self, members: list[Member], number: signal.Signals) -> None:
        for member in members:
            member.tell(number)

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        self._interrupts += 1


def main() -> int:
    try:
        settings = load_as(WorkerSettings)
        there = gpus_there(settings.gpus)
        members = shares(settings, there, cores=available_cores(), host=socket.gethostname())
    except SettingsError as error:
        print(f"the settings of this worker cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return 2
    log_lines.configure(settings)
    return 0 if Crew(members).run() else 130


if __name__ == "__main__":
    sys.exit(main())
