"""What Prometheus reads at `GET /metrics`: counts of this process, and a census of the database beside them.

Each application has a registry of its own. Labels are few and bounded: operations of the API, states, reasons, queues,
workers that are online. A job is no label: there is no end to jobs, and a worker does one at a time.
"""

import platform
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from store.monitoring.census import PACE, Census, Queue

_MOST_QUEUES: Final = 50
REQUEST_LABELS: Final = ("operation", "status")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)


class Instruments:
    """The registry of one application, and what its code counts with."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.census = CensusCollector()
        own: Any = {"registry": self.registry}
        self.requests = Histogram(
            "tid_http_request_duration_seconds",
            "Time until the answer's headers were sent; a stream or a download then goes on.",
            REQUEST_LABELS,
            buckets=_SECONDS,
            **own,
        )
        self.listeners = Gauge("tid_event_listeners", "Streams of job events that are open in this process.", **own)
        self.doorbell_failures = Counter(
            "tid_doorbell_failures",
            "Messages that the broker did not take; the reaper announces the jobs again.",
            **own,
        )
        self.database_errors = Counter(
            "tid_database_errors", "Statements or connections of this process that the database failed.", **own
        )
        Info("tid_build", "Version of this server.", **own).info(
            {"version": version, "python": platform.python_version()}
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(self.census)

    def observe(self, operation: str, status: int, seconds: float) -> None:
        """Count a request by its operation (never its path) and the class of its status, such as 2xx."""
        self.requests.labels(operation, f"{status // 100}xx").observe(seconds)

    def watch(self, engine: Engine) -> None:
        """Count what the database fails: being away, a full disk, a lock that is not given. Not refused values."""

        @event.listens_for(engine, "handle_error")
        def _count(context: ExceptionContext) -> None:
            if isinstance(context.sqlalchemy_exception, (OperationalError, InterfaceError, InternalError)):
                self.database_errors.inc()


class CensusCollector(Collector):
    """Gauges of the database as it was when last looked at; none but `tid_database_up` where it does not answer."""

    def __init__(self) -> None:
        self.latest: Census | None = None

    def describe(self) -> Sequence[Metric]:
        return [_gauge(*one) for one in GAUGES]

    def collect(self) -> Iterator[Metric]:
        census = self.latest
        yield _gauge(*GAUGES[0], samples=[((), 0.0 if census is None else 1.0)])
        if census is None:
            return
        samples = _samples(census)
        for name, text, labels in GAUGES[1:]:
            yield _gauge(name, text, labels, samples=samples[name])


GAUGES: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("tid_database_up", "1 where the database answered the last census, 0 where it did not.", ()),
    ("tid_jobs", "Jobs by state.", ("state",)),
    ("tid_queue_jobs", "Jobs that wait for a worker, by queue.", ("queue",)),
    ("tid_queue_oldest_age_seconds", "How long the job that waits longest has been in its queue.", ("queue",)),
    ("tid_waiting_jobs", "Jobs that do not run, by the reason why they wait.", ("reason",)),
    ("tid_attempts", "Attempts of all jobs that are kept, by outcome; `running` has none yet.", ("outcome",)),
    ("tid_faults_recovered", "Attempts that were lost or crashed, and whose job went on.", ("outcome",)),
    ("tid_lease_oldest_age_seconds", "How long the owner of a job that is silent longest has been silent.", ()),
    ("tid_reaper_age_seconds", "Since some API process last looked for lost jobs.", ()),
    ("tid_workers", "Workers that are online, by state.", ("state",)),
    ("tid_step_seconds", "Time of a training step of the job that a worker is at.", ("worker",)),
    ("tid_images_per_second", "Images trained on per second by the job that a worker is at.", ("worker",)),
    ("tid_gpu_utilization_ratio", "Share of time in which the GPU was busy, 0 to 1.", ("worker", "gpu")),
    ("tid_gpu_memory_used_bytes", "Memory of the GPU that is in use.", ("worker", "gpu")),
    ("tid_gpu_memory_total_bytes", "Memory of the GPU.", ("worker", "gpu")),
    ("tid_gpu_temperature_celsius", "Temperature of the GPU.", ("worker", "gpu")),
)
_Sample = tuple[tuple[str, ...], float]
_OF_GPU: Final = {
    "tid_gpu_utilization_ratio": ("load_percent", 0.01),
    "tid_gpu_memory_used_bytes": ("memory_used_mib", float(1 << 20)),
    "tid_gpu_memory_total_bytes": ("memory_total_mib", float(1 << 20)),
    "tid_gpu_temperature_celsius": ("celsius", 1.0),
}
"""Field of the worker's telemetry, and what one of it is in the unit of the metric."""


def _samples(census: Census) -> dict[str, list[_Sample]]:
    queues = _largest(census.queues)
    states = dict.fromkeys(("idle", "busy", "draining"), 0)
    for worker in census.workers:
        states[worker.state] += 1
    ages = {
        "tid_lease_oldest_age_seconds": census.oldest_lease_seconds,
        "tid_reaper_age_seconds": census.reaper_age_seconds,
    }
    return {
        "tid_jobs": _by(census.states),
        "tid_queue_jobs": _by({name: queue.jobs for name, queue in queues.items()}),
        "tid_queue_oldest_age_seconds": _by({name: queue.oldest_seconds for name, queue in queues.items()}),
        "tid_waiting_jobs": _by(census.waiting),
        "tid_attempts": _by(census.attempts),
        "tid_faults_recovered": _by(census.recovered),
        "tid_workers": _by(states),
        **{name: [((), age)] if age is not None else [] for name, age in ages.items()},
        **{
            name: _paces(census, series)
            for name, series in zip(("tid_step_seconds", "tid_images_per_second"), PACE, strict=True)
        },
        **{name: list(_gpus(census, *of)) for name, of in _OF_GPU.items()},
    }


def _largest(queues: dict[str, Queue]) -> dict[str, Queue]:
    """Names of queues are up to those who submit jobs, so there is an end to those that are told apart."""
    in_order = sorted(queues.items(), key=lambda item: -item[1].jobs)
    rest = [queue for _, queue in in_order[_MOST_QUEUES:]]
    others = {"(others)": Queue(sum(one.jobs for one in rest), max(one.oldest_seconds for one in rest))} if rest else {}
    return {**dict(in_order[:_MOST_QUEUES]), **others}


def _by(counts: Any) -> list[_Sample]:
    return [((str(label),), float(number)) for label, number in counts.items()]


def _paces(census: Census, series: str) -> list[_Sample]:
    return [((worker,), value) for (worker, name), value in census.pace.items() if name == series]


def _gpus(census: Census, field: str, unit: float) -> Iterator[_Sample]:
    for worker in census.workers:
        for gpu in worker.gpus:
            if gpu.get(field) is not None:
                yield (worker.worker_id, str(gpu.get("uuid"))), gpu[field] * unit


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Sequence[_Sample] = ()) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
