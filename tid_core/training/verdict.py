"""How a run in several processes ended, from what each of them left behind."""

import signal
from collections.abc import Mapping
from pathlib import Path

from torch.distributed import DistError

from tid_core.events import Finished
from tid_core.training.meeting import RANK_LOST, read_words


def verdict(
    folder: Path, processes: int, exit_codes: Mapping[int, int], error: Exception | None, *, here: range | None = None
) -> Finished:
    """The end of the run, as far as it can be seen on this machine.

    A rank that failed for a reason of its own tells the run's; else one that ended without a word (reasons
    `child_killed`, `child_crashed`: another attempt may do better); else one that missed another.

    Args:
        folder: where the ranks of this machine met.
        processes: ranks of the run.
        exit_codes: of the ranks that failed, in the order in which they were noticed.
        error: why they could not be started or watched, if so.
        here: the ranks of this machine; None = all.
    """
    here = here if here is not None else range(processes)
    words = read_words(folder, here)
    failed = {rank: word for rank, word in words.items() if word.outcome == "failed"}
    causes = [rank for rank, word in failed.items() if word.reason != RANK_LOST]
    if causes:
        cause = failed[causes[0]]
        alone = len(causes) < processes
        detail = f"rank {causes[0]} of {processes}: {cause.detail}" if alone else cause.detail
        return cause.model_copy(update={"detail": detail})
    silent = [rank for rank in exit_codes if rank not in words]
    if silent:
        return _unsaid(silent[0], processes, exit_codes[silent[0]])
    if failed:
        return next(iter(failed.values()))
    if isinstance(error, DistError):
        return Finished(outcome="failed", reason=RANK_LOST, detail=f"another node is gone: {error}"[:500])
    if error is not None:
        return Finished(outcome="failed", reason="internal_error", detail=f"{type(error).__name__}: {error}"[:500])
    if len(words) < len(here):
        missing = min(set(here) - set(words))
        return _unsaid(missing, processes, 0)
    stopped = any(word.outcome == "stopped" for word in words.values())
    return Finished(outcome="stopped" if stopped else "succeeded")


def _unsaid(rank: int, processes: int, code: int) -> Finished:
    who = f"rank {rank} of {processes}"
    if code == -signal.SIGKILL:
        hint = "the system's out-of-memory killer ends processes this way"
        return Finished(outcome="failed", reason="child_killed", detail=f"{who} was killed (SIGKILL); {hint}")
    how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code} and no result"
    return Finished(outcome="failed", reason="child_crashed", detail=f"{who} {how}")
