"""Work that may hang (a database that was stopped, a network disk), asked for with patience for a moment only."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Limited(Generic[Result]):
    """Runs `work` in a thread of its own, once at a time: who asks while it runs waits for the same answer.

    The thread is a daemon, so that work which never ends does not keep the process from ending.
    """

    def __init__(self, work: Callable[[], Result], *, name: str, seconds: float) -> None:
        self._work, self._name, self._seconds = work, name, seconds
        self._lock = Lock()
        self._going_on: Future[Result] | None = None

    async def ask(self) -> Result:
        """Raises:
        TimeoutError: no answer within `seconds`; the work goes on.
        Exception: whatever the work raises.
        """
        future = asyncio.wrap_future(self._begin())
        await asyncio.wait([future], timeout=self._seconds)  # which cancels nothing
        if not future.done():
            future.add_done_callback(_heed)
            raise TimeoutError
        return future.result()

    def _begin(self) -> Future[Result]:
        with self._lock:
            if self._going_on is None or self._going_on.done():
                self._going_on = Future()
                Thread(target=self._run, args=(self._going_on,), name=self._name, daemon=True).start()
            return self._going_on

    def _run(self, future: Future[Result]) -> None:
        try:
            future.set_result(self._work())
        except BaseException as error:
            future.set_exception(error)


def _heed(future: "asyncio.Future[Result]") -> None:
    """What nobody waited for any more is no error that was overlooked."""
    if not future.cancelled():
        future.exception()
