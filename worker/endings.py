"""What a training process that ended without saying so probably died of."""

import signal
from dataclasses import dataclass

RANK_LOST = "rank_lost"
"""Of a rank or a node that found another one gone, or fell silent itself."""
CRASHES = ("child_killed", "child_crashed", "device_missing", RANK_LOST)
"""Reasons that call for another attempt, also where a training in several processes found them by itself."""
OUT_OF_MEMORY_HINT = "the system's out-of-memory killer ends processes this way"


@dataclass(frozen=True)
class Ending:
    """A reason code and a sentence for people."""

    reason: str
    detail: str


def explain(code: int, log_tail: str) -> Ending:
    """The ending of a process that exited with `code` (negative = signal) and never sent Finished."""
    if code == -signal.SIGKILL:
        return Ending("child_killed", f"the training process was killed (SIGKILL); {OUT_OF_MEMORY_HINT}")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Ending("child_crashed", f"the training process was ended by {name}{_last(log_tail)}")
    return Ending("child_crashed", f"the training process exited with code {code} and no result{_last(log_tail)}")


def _last(log_tail: str) -> str:
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:500]}" if lines else ""
