"""Why and how a running training is asked to stop: politely first, then with SIGKILL."""

import time
from enum import StrEnum

from store.settings import Settings
from store.states import State
from worker.child import Child

_LINGER_SECONDS = 30.0


class Reason(StrEnum):
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"


class StopRequest:
    """At most one request to stop, first come first served, and its deadline."""

    def __init__(self, settings: Settings) -> None:
        self.reason: Reason | None = None
        self._grace = {
            Reason.CANCEL: settings.cancel_grace_seconds,
            Reason.SHUTDOWN: settings.terminate_grace_seconds,
        }
        self._deadline = 0.0
        self._told = False
        self._finished_at = 0.0

    def see(self, state: State, *, shutting_down: bool) -> None:
        """Take note of what is asked for; pausing stops like a shutdown does, with the state saved."""
        if self.reason is not None:
            return
        if state is State.CANCELLING:
            self._set(Reason.CANCEL)
        elif shutting_down or state is State.PAUSING:
            self._set(Reason.SHUTDOWN)

    def apply(self, child: Child, *, finished: bool) -> None:
        """SIGTERM when the request is new, SIGKILL when its time is over.

        A process that has said its last word gets a moment to end, so that one that hangs does not hold the job.
        """
        now = time.monotonic()
        if finished:
            self._finished_at = self._finished_at or now
            if now - self._finished_at > _LINGER_SECONDS:
                child.kill()
        elif self.reason is not None and not self._told:
            self._told = True
            child.terminate()
        elif self.reason is not None and now > self._deadline:
            child.kill()

    def _set(self, reason: Reason) -> None:
        self.reason = reason
        self._deadline = time.monotonic() + self._grace[reason]
