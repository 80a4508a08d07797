"""Noticing a worker that looks alive and hears nothing.

After a broker has gone and come back, a Celery consumer can stay connected and yet get no messages. Nothing of that
shows in its process, so it is measured: a worker that is idle while a queue of its own is not empty is deaf.
"""

import logging
import time
from datetime import timedelta
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.worker import state

log = logging.getLogger("worker")


class DeafCheck:
    """Ends the worker once messages have lain beside it for `patience`; whoever keeps it running starts it again."""

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience.total_seconds()
        self._since: float | None = None

    def check(self, consumer: Any) -> None:
        """Raises:
        WorkerShutdown: messages were left lying for too long.
        """
        if state.reserved_requests or not waiting_messages(consumer):
            self._since = None
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > self._patience:
            log.critical("idle for %.0f s while messages wait: ending, to be started again", now - self._since)
            state.should_stop = 1
            raise WorkerShutdown(1)


def waiting_messages(consumer: Any) -> int:
    """Messages in the queues of this worker; 0 where the broker cannot be asked, which the consumer notices itself."""
    with consumer.app.connection_for_read() as connection:
        return sum(_length(connection, name) for name in consumer.app.amqp.queues)


def _length(connection: Any, queue: str) -> int:
    try:
        return int(connection.default_channel.queue_declare(queue, passive=True)[1])
    except (OSError, *connection.connection_errors, *connection.channel_errors):
        return 0  # a queue that is empty does not exist in Redis
