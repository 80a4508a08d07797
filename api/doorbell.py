"""The doorbell: a Celery message that holds a job's id and wakes a worker. The truth is in the database.

A broker that is down costs latency, never a job: ringing happens in a thread of its own, with short
timeouts, and what was not rung now is rung later by the reaper.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

log = logging.getLogger("api.doorbell")

TASK = "tid.run_job"
SECONDS = 0.5
MESSAGE_SECONDS = 60
MAX_WAITING = 1000


class Doorbell:
    """Rings without ever holding up, or failing, the one who asks."""

    def __init__(self, broker_url: str, *, on_failure: Callable[[], None] = lambda: None) -> None:
        self.broker_url = broker_url
        self._on_failure = on_failure
        self._app: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="doorbell")
        self._waiting = 0
        self._lock = Lock()

    def ring(self, job_id: str, queue: str) -> None:
        """Hand the ring to the thread. Dropped, for the reaper to ring again, while too many wait for the broker."""
        with self._lock:
            if self._waiting >= MAX_WAITING:
                return
            self._waiting += 1
        self._thread.submit(self._ring, job_id, queue)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Reach the broker once.

        Raises:
            Exception: whatever the transport says when it cannot.
        """
        with self._celery().connection_for_write(connect_timeout=SECONDS) as connection:
            connection.ensure_connection(max_retries=0, timeout=SECONDS)

    def _ring(self, job_id: str, queue: str) -> None:
        try:
            self._celery().send_task(
                TASK, [job_id], queue=queue, expires=MESSAGE_SECONDS, retry=False, ignore_result=True
            )
        except Exception as error:
            self._on_failure()
            log.warning("could not ring for job %s (the reaper will): %s", job_id, error, extra={"job_id": job_id})
        finally:
            with self._lock:
                self._waiting -= 1

    def _celery(self) -> Any:
        """Celery takes a while to import, so only those who ring pay for it."""
        if self._app is None:
            from celery import Celery

            self._app = Celery("tid", broker=self.broker_url, set_as_current=False)
            self._app.conf.update(
                broker_connection_timeout=SECONDS,
                broker_connection_retry=False,
                broker_transport_options={
                    "socket_timeout": SECONDS,
                    "socket_connect_timeout": SECONDS,
                    "retry_on_timeout": False,
                    "max_retries": 0,
                },
                task_ignore_result=True,
            )
        return self._app
