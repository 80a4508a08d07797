"""The life of a job: its states, and the one table of moves between them."""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Outcome(StrEnum):
    """How an attempt ended. `handed_back`: stopped by its worker with its state saved; `lost`: it fell silent."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    CRASHED = "crashed"
    LOST = "lost"


_S = State
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.FAILED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.QUEUED, _S.PAUSING, _S.CANCELLING}),
    _S.PAUSING: frozenset({_S.PAUSED, _S.SUCCEEDED, _S.FAILED, _S.CANCELLING}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.CANCELLED: frozenset(),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
}
ENDED: Final = frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED})
OWNED: Final = frozenset({_S.STARTING, _S.RUNNING, _S.PAUSING, _S.CANCELLING})
"""States in which a worker holds a lease."""
WITHOUT_WORKER: Final = {
    _S.STARTING: _S.QUEUED,
    _S.RUNNING: _S.QUEUED,
    _S.PAUSING: _S.PAUSED,
    _S.CANCELLING: _S.CANCELLED,
}
"""Where a job goes when its worker lets go of it or is lost."""


class IllegalTransition(Exception):
    """A move that the table does not have."""

    def __init__(self, old: State, new: State) -> None:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing, the job has ended"
        super().__init__(f"a job cannot go from {old} to {new}; from {old} it can go to: {allowed}")
        self.old = old
        self.new = new


def check(old: State, new: State) -> None:
    """Raises:
    IllegalTransition: the table has no such move.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(old, new)
