"""Why and how a running training is asked to stop: politely first, then with SIGKILL."""

import time
from enum import StrEnum
from typing import Final

from store import reasons
from store.models import Draining
from store.settings import Settings
from store.states import State
from worker.child import Child

_LINGER_SECONDS = 30.0


class Reason(StrEnum):
    CANCEL = "cancel"
    PAUSE = "pause"
    DRAIN = "drain"
    SHUTDOWN = "shutdown"


HANDED_BACK: Final = {
    Reason.PAUSE: reasons.PAUSED,
    Reason.DRAIN: reasons.WORKER_DRAINED,
    Reason.SHUTDOWN: reasons.WORKER_STOPPED,
}
"""Why an attempt handed its job back."""


class StopRequest:
    """At most one request to stop, first come first served, and its deadline; but a cancel overrules the others."""

    def __init__(self, settings: Settings) -> None:
        self.reason: Reason | None = None
        self._saving, self._cancelled = settings.terminate_grace_seconds, settings.cancel_grace_seconds
        self._deadline = float("inf")
        self._told_at: float | None = None
        self._took = 0.0
        self._killed = False
        self._finished_at = 0.0

    def see(self, state: State, *, shutting_down: bool, draining: Draining | None) -> None:
        """Take note of what is asked for. All but a cancel want the state saved, and have the longer time for it."""
        wanted = _wanted(state, shutting_down, draining)
        if wanted is None or self.reason is Reason.CANCEL or (self.reason is not None and wanted is not Reason.CANCEL):
            return
        self.reason = wanted
        if self._told_at is not None:
            self._deadline = min(self._deadline, time.monotonic() + self._grace())

    def apply(self, child: Child, *, finished: bool) -> None:
        """SIGTERM when the request is new, SIGKILL when its time is over.

        A process that has said its last word gets a moment to end, so that one that hangs does not hold the job.
        """
        now = time.monotonic()
        if finished:
            self._finished_at = self._finished_at or now
            if now - self._finished_at > _LINGER_SECONDS:
                child.kill()
        elif self.reason is not None and self._told_at is None:
            self._told_at, self._deadline = now, now + self._grace()
            child.terminate()
        elif self.reason is not None and now > self._deadline:
            self._killed = True
            child.kill()

    def ended(self) -> None:
        """The process is gone."""
        self._took = time.monotonic() - self._told_at if self._told_at is not None else 0.0

    def describe(self, *, finished: bool) -> str:
        """How it went, for people."""
        if self._told_at is None:
            return "stopped before its training had begun"
        after = f"{self._took:.1f} s after SIGTERM"
        if self._killed:
            return f"the training had not ended {after} and was killed (SIGKILL); what it saved before is kept"
        return f"the training saved its state and ended {after}" if finished else f"the training ended {after}"

    def _grace(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return self._cancelled if self.reason is Reason.CANCEL else self._saving


def _wanted(state: State, shutting_down: bool, draining: Draining | None) -> Reason | None:
    if state is State.CANCELLING:
        return Reason.CANCEL
    if state is State.PAUSING:
        return Reason.PAUSE
    if shutting_down:
        return Reason.SHUTDOWN
    return Reason.DRAIN if draining == "now" else None
