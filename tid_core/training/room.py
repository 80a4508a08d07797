"""Waiting for room on a full disk: what a run of days has to write is worth more than hours of its device."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from tid_core.events import TrainingFailure
from tid_core.ranks import num_ranks
from tid_core.training.inference import StopRequested
from tid_core.training.voice import Voice

Result = TypeVar("Result")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY_SECONDS = 1.0


class Room:
    """
    Args:
        patience: seconds that a full disk is waited for; 0 = not at all.
        should_stop: asked while waiting. Not of several ranks, whose answers must meet: they are stopped by force.
    """

    def __init__(self, patience: float, voice: Voice, should_stop: Callable[[], bool]) -> None:
        self._patience = patience
        self._voice = voice
        self._should_stop = should_stop if num_ranks() == 1 else lambda: False
        self._told = False

    def write(self, action: Callable[[], Result]) -> Result:
        """`action`, which writes a file in one step, again and again while the disk is full.

        Raises:
            StopRequested: asked to stop meanwhile; the file is not written.
        """
        since = time.monotonic()
        while True:
            try:
                return action()
            except (OSError, TrainingFailure) as error:
                if not _is_full(error) or time.monotonic() - since >= self._patience:
                    raise
                self._tell(error)
            if self._should_stop():
                raise StopRequested
            time.sleep(_RETRY_SECONDS)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._voice.warn("disk_full", f"the training waits for room on the disk it works on: {error}")


def _is_full(error: OSError | TrainingFailure) -> bool:
    return error.errno in _FULL if isinstance(error, OSError) else error.reason == "disk_full"
