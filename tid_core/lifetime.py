"""Processes that end with the one that started them, however that ends. Free of torch."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


class ParentGone(BaseException):
    """Nobody listens any more. Not an Exception: no handler may turn it into an event."""


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when the one that started it ends; to be exact, the thread that did.

    Raises:
        ParentGone: it has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise ParentGone
