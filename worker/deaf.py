"""Noticing a worker that looks alive and hears nothing.

After a broker has gone and come back, a Celery consumer can stay connected and yet get no messages. Nothing of that
shows in its process, so it is measured: a worker that is idle while a queue of its own is not empty is deaf.
"""

import logging
import time
from typing import Any

from celery.worker import state

log = logging.getLogger("worker")

EXIT_CODE = 70


class DeafCheck:
    """Ends the worker once messages have lain beside it for `patience` seconds; whoever keeps it starts it again."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None

    def check(self, app: Any) -> bool:
        """Whether the worker was told to end."""
        if state.reserved_requests or not waiting_messages(app):
            self._since = None
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since <= self._patience:
            return False
        log.critical("idle for %.0f s while messages wait: ending, to be started again", now - self._since)
        state.should_stop = EXIT_CODE
        return True


def waiting_messages(app: Any) -> int:
    """Messages in the queues of this worker; 0 where the broker cannot be asked, which the consumer notices itself."""
    with app.connection_for_read() as connection:
        try:
            connection.connect()
            with connection.channel() as channel:
                return sum(_length(channel, name, connection.channel_errors) for name in app.amqp.queues)
        except (OSError, *connection.connection_errors):
            return 0


def _length(channel: Any, queue: str, missing: tuple[type[Exception], ...]) -> int:
    try:
        return int(channel.queue_declare(queue, passive=True)[1])
    except missing:  # a queue that is empty does not exist in Redis
        return 0
