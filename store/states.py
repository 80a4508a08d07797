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
    _S.PAUSING: frozenset({_S.PAUSED, _S.STARTING, _S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.CANCELLING}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),
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


class Action(StrEnum):
    """What a user can ask of a job."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"
    PRIORITISE = "changing its priority"
    DELETE = "delete"


ACTIONS: Final[dict[Action, frozenset[State]]] = {
    Action.PAUSE: frozenset({_S.QUEUED, _S.STARTING, _S.RUNNING}),
    Action.RESUME: frozenset({_S.PAUSING, _S.PAUSED}),
    Action.CANCEL: frozenset({_S.QUEUED, _S.STARTING, _S.RUNNING, _S.PAUSING, _S.PAUSED}),
    Action.RETRY: frozenset({_S.CANCELLED, _S.FAILED}),
    Action.PRIORITISE: frozenset(State) - ENDED,
    Action.DELETE: ENDED,
}
"""States in which each does something; a test holds them against the table."""


class IllegalTransition(Exception):
    """A move that the table does not have."""

    def __init__(self, old: State, new: State) -> None:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing, the job has ended"
        super().__init__(f"a job cannot go from {old} to {new}; from {old} it can go to: {allowed}")


class NotPossible(IllegalTransition):
    """What a user asks of a job cannot be done in its state; the text names what can."""

    def __init__(self, action: Action, job_id: str, state: State) -> None:
        now = "is" if state not in ENDED else "has ended:"
        hint = "; cancel it first" if action is Action.DELETE and state is not State.CANCELLING else ""
        possible = (
            ", ".join(one for one, states in ACTIONS.items() if state in states) or "nothing, it ends in a moment"
        )
        Exception.__init__(self, f"job {job_id} {now} {state}, so {action} is not possible{hint}; possible: {possible}")


def check(old: State, new: State) -> None:
    """Raises:
    IllegalTransition: the table has no such move.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(old, new)
