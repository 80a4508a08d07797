"""The Celery side of a worker: it hears the doorbell, and the supervisor then runs what waits in the worker's queues.

The message is only a doorbell: it is acknowledged before the work starts, it may be lost, repeated or late, and the
claim in the database decides who runs what: the first of the worker's queues, not the job for which it rang. Hence
early acknowledgement, no prefetching, and no use of `expires`.
"""

import logging
import os
import time
from typing import Any, ClassVar

from celery import Celery, Task, bootsteps
from celery.signals import setup_logging, worker_process_init, worker_shutdown, worker_shutting_down
from celery.worker import state
from celery.worker.request import Request
from kombu.entity import Exchange, Queue

from store import workers
from store.monitoring import log_lines, tracing
from store.settings import load_as
from tid_core.lifetime import die_with_parent
from worker.deaf import DeafCheck
from worker.presence import Presence
from worker.pulse import Pulse
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag

log = logging.getLogger("worker")

_RETRY_SECONDS = 1.0
# Seconds; a broker whose host was cut off would hold up the heartbeats, which come from the loop that listens to it.
_PATIENCE = {"socket_keepalive": True, "health_check_interval": 10, "socket_connect_timeout": 10, "socket_timeout": 30}
SETTINGS = load_as(WorkerSettings)
PRESENCE = Presence(SETTINGS)
PULSE = Pulse(SETTINGS.home, SETTINGS.worker_id)
MAIN_PID = os.getpid()
STOP = StopFlag()  # here, because the pool forks after this module is imported


def configure(app: Celery, settings: WorkerSettings) -> None:
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        result_backend=None,
        task_default_queue=settings.queues.split(",")[0],
        task_queues=[_queue(name) for name in (*settings.queues.split(","), workers.bell(settings.worker_id))],
        accept_content=["json"],
        worker_pool="prefork",
        worker_pool_start_method="fork",
        worker_concurrency=1,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_PATIENCE,
        timezone="UTC",
    )


def _queue(name: str) -> Any:
    """With an exchange of its own: by default all share one, and a message for the first would land in each."""
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]


class _Lasting(Request):  # type: ignore[misc]
    """A message does not expire: `expires` compares the clocks of two hosts, and a needless ring costs nothing."""

    def maybe_expire(self) -> bool:
        return False


class Doorbell(Task):  # type: ignore[misc]
    Request: ClassVar[type] = _Lasting


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Writes the worker's row for as long as, and only while, messages are being consumed."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        self.deaf = DeafCheck(SETTINGS.deaf_seconds)
        self.timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        def beat() -> None:
            PRESENCE.beat()
            PULSE.beat()
            self.deaf.check(app)

        while not PRESENCE.beat():  # without a database, what a message asks for could not be done
            state.maybe_shutdown()
            time.sleep(_RETRY_SECONDS)
        PULSE.beat()
        self.timer = consumer.timer.call_repeatedly(SETTINGS.heartbeat_seconds, beat)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 (the signature is Celery's)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def shutdown(self, consumer: Any) -> None:
        self.stop(consumer)


app = Celery("tid", broker=SETTINGS.broker_url, task_cls=Doorbell)
configure(app, SETTINGS)
app.steps["consumer"].add(Heartbeat)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    """Celery's lines look like ours; what it would set up is left out as soon as somebody hears this signal."""
    log_lines.configure(SETTINGS)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _end_with_the_main_process(**_: Any) -> None:
    """Left alone, a pool process would go on with its job, and its GPU, beside the worker that is started anew."""
    die_with_parent(MAIN_PID)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _tell_the_pool(**_: Any) -> None:
    STOP.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _sign_off(**_: Any) -> None:
    PRESENCE.leave()
    PULSE.end()


@app.task(name="tid.run_job")  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:  # noqa: ARG001 (it says for which job it rang, to those who read messages)
    """Woken up: run what waits for this worker, in this pool process."""
    from worker.supervisor import work

    tracing.configure("tid-worker")  # here, because what exports the spans does not survive a fork
    work(SETTINGS, STOP)
