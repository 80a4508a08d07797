"""What jobs have cost: the time that their attempts held processes."""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, BindParameter, bindparam, func, select, type_coerce
from sqlalchemy.orm import Session

from store.db import db_now
from store.models import Attempt, Job, MetricLatest

# Made once: every page of a list asks them.
_IDS: Final[BindParameter[list[str]]] = bindparam("ids", expanding=True)
_ENDED: Final = func.coalesce(Attempt.ended_at, db_now())
_MICROSECONDS: Final = func.sum(type_coerce(_ENDED, BigInteger) - type_coerce(Attempt.started_at, BigInteger))
_SPENT: Final = (
    select(Job.id, Job.run_facts, _MICROSECONDS)
    .join(Attempt, Attempt.job_id == Job.id)
    .where(Job.id.in_(_IDS))
    .group_by(Job.id)
)
_MEASURED: Final = {
    "throughput/images_per_second": "images_per_second",
    "time/teacher_share": "teacher_share",
    "memory/peak_bytes": "peak_memory_bytes",
}
_LATEST: Final = select(MetricLatest.job_id, MetricLatest.name, MetricLatest.value).where(
    MetricLatest.job_id.in_(_IDS), MetricLatest.name.in_(_MEASURED)
)


def gpu_seconds(job_ids: Collection[str], *, session: Session) -> dict[str, float]:
    """Wall seconds of every attempt times the processes of the run, by job; 0 where none has begun.

    A run has one process on each of its GPUs, so these are GPU seconds; on the CPU they are process seconds. An
    attempt counts from its claim (the start of the process, the reading of the data and the evaluations are in it) to
    its end, one that runs to now, both by the database's clock, and one that was lost until its lease was over. How
    many processes there are is what the job's last start said, and 1 before the first.
    """
    spent = dict.fromkeys(job_ids, 0.0)
    for job_id, facts, total in session.execute(_SPENT, {"ids": list(job_ids)}):
        spent[job_id] = max(0, int(total)) / 1e6 * int((facts or {}).get("processes", 1))
    return spent


class Cost(NamedTuple):
    """`None` where nothing has been measured (yet)."""

    gpu_seconds: float
    images_per_second: float | None
    teacher_share: float | None
    peak_memory_bytes: float | None


def costs(job_ids: Collection[str], *, session: Session) -> dict[str, Cost]:
    """`gpu_seconds`, and what the training last said of its speed and memory; no series is read for it."""
    told: dict[str, dict[str, float]] = {job_id: {} for job_id in job_ids}
    for job_id, name, value in session.execute(_LATEST, {"ids": list(job_ids)}):
        told[job_id][_MEASURED[name]] = value
    spent = gpu_seconds(job_ids, session=session)
    nothing = dict.fromkeys(_MEASURED.values())
    return {job_id: Cost(seconds, **{**nothing, **told[job_id]}) for job_id, seconds in spent.items()}
