"""Which workers may take a job: the GPUs that it asks for, against those that they have (docs/decisions/020)."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, Self

from sqlalchemy import ColumnElement, and_, func, or_, select

from store.db import db_now
from store.models import Job, Json, Worker


class Gpus(NamedTuple):
    """So many GPUs, each with at least so much memory: what a job wants, or what a worker has."""

    number: int
    memory_mib: int

    @classmethod
    def wanted(cls, job: Job) -> Self:
        return cls(job.gpus_wanted, job.min_gpu_memory_mib)

    @classmethod
    def of(cls, worker: Worker) -> Self:
        return cls(worker.gpus, worker.gpu_memory_mib)

    @classmethod
    def usable(cls, device: Json) -> Self:
        """Of a device as its worker tells it; a GPU with a problem is one that no training can use."""
        memory = [gpu.get("memory_total_mib") or 0 for gpu in device.get("gpus") or () if not gpu.get("problem")]
        return cls(len(memory), min(memory, default=0))

    def fit(self, had: "Gpus") -> bool:
        return self.number <= had.number and self.memory_mib <= had.memory_mib

    def __str__(self) -> str:
        number = "no GPU" if not self.number else "1 GPU" if self.number == 1 else f"{self.number} GPUs"
        return f"{number} with {gib(self.memory_mib)}" if self.memory_mib else number


CHOOSY: Final = or_(Job.gpus_wanted > 0, Job.nodes > 1)
"""Jobs that not any single worker may take, and for which therefore not any worker is woken."""


def announced(gpus_wanted: int, nodes: int) -> ColumnElement[datetime] | None:
    """When a job that its maker rings for counts as announced: the reaper is to wake a worker for a choosy one."""
    return None if gpus_wanted > 0 or nodes > 1 else db_now()


def within(number: ColumnElement[int] | int, memory_mib: ColumnElement[int] | int) -> ColumnElement[bool]:
    """Jobs that want no more than this."""
    return and_(Job.gpus_wanted <= number, Job.min_gpu_memory_mib <= memory_mib)


def within_worker(worker_id: str) -> ColumnElement[bool]:
    """Jobs that the worker may take by what it has; one without a row has nothing."""
    own = (
        func.coalesce(select(column).where(Worker.id == worker_id).scalar_subquery(), 0)
        for column in (Worker.gpus, Worker.gpu_memory_mib)
    )
    return within(*own)


def largest(online: Iterable[Worker]) -> list[Gpus]:
    """What the workers have, without what another has more of: most GPUs first. Empty where there is no worker."""
    distinct = sorted({Gpus.of(worker) for worker in online}, reverse=True)
    return [one for one in distinct if not any(one != other and one.fit(other) for other in distinct)]


def nobody(wanted: Gpus, queue: str, online: Sequence[Worker]) -> str:
    """Why no worker of the queue may take the job, and what to do."""
    has = f"no worker of the queue {queue!r} has {wanted}"
    if not online:
        return f"{has}: none is online"
    found = largest(online)
    if not found[0].number:
        return f"{has}: none has a GPU that it can use; start a worker that has"
    had = ", or ".join(f"{one.number} with {gib(one.memory_mib)}" for one in found)
    who = "the largest has" if len(found) == 1 else "the largest have"
    return f"{has}; {who} {had}: ask for less, or start a worker that has more"


def gib(mebibytes: int) -> str:
    """Rounded down, so that what does not fit does not look as if it did."""
    return f"{mebibytes * 10 // 1024 / 10:g} GiB" if mebibytes else "unknown memory"
