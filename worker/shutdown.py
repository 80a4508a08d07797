"""How a stopping worker tells the process that runs the job.

SIGTERM reaches the worker's main process, where Celery then waits for the running task; the pool process learns
nothing of it. A pipe made before the pool forks reaches it: the main process writes one byte that nobody reads, so
every pool process, also one forked later, sees the pipe readable from then on. Writing is safe in a signal handler.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopFlag:
    """A flag that is shared with processes forked after it was made, and cannot be taken back."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)

    def set(self) -> None:
        try:
            os.write(self._write_fd, b"x")
        except BlockingIOError:  # full of earlier bytes: set already
            return

    def is_set(self) -> bool:
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        return bool(poll.poll(0))


@contextmanager
def on_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """Service managers may send SIGTERM to every process at once: this one, too, then stops in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: note())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
