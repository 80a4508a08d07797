"""Counts for monitoring: one short read of indexed rows, whatever the number of jobs that have ended."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import waiting, workers
from store.db import db_now
from store.models import Attempt, Job, Lease, MetricLatest
from store.reaper import LEASE, LEASE_ROUNDS
from store.settings import Settings
from store.states import Outcome, State
from store.waiting import Reason

PACE: Final = ("time/step_seconds", "throughput/images_per_second")
"""Series of a training whose newest values are told."""
_BROKEN_OFF: Final = (Outcome.LOST, Outcome.CRASHED)


class Queue(NamedTuple):
    jobs: int
    oldest_seconds: float
    """Since the job that has waited longest was queued, which may be the second time."""


class AtWork(NamedTuple):
    """A worker that is online."""

    worker_id: str
    state: str
    gpus: Sequence[dict[str, Any]]


class Census(NamedTuple):
    states: dict[State, int]
    queues: dict[str, Queue]
    waiting: dict[Reason, int]
    """Jobs by the reason why they wait."""
    attempts: dict[str, int]
    """By outcome; `running` for those that have none yet."""
    recovered: dict[Outcome, int]
    """Attempts that were lost or crashed, and whose job went on."""
    oldest_lease_seconds: float
    reaper_age_seconds: float | None
    workers: list[AtWork]
    pace: dict[tuple[str, str], float]
    """Newest value by worker and series, of the jobs that are running."""


def take(settings: Settings, *, session: Session) -> Census:
    now = session.scalars(select(db_now())).one()
    heartbeat = settings.heartbeat_seconds
    return Census(
        states=_states(session),
        queues=_queues(now, session),
        waiting=waiting.reasons(heartbeat_seconds=heartbeat, session=session),
        attempts=_attempts(session),
        recovered=_recovered(session),
        oldest_lease_seconds=_oldest_lease(now, settings.lease_seconds, session),
        reaper_age_seconds=_reaper_age(now, settings.reaper_seconds, session),
        workers=[
            AtWork(one.id, _worker_state(one), (one.telemetry or {}).get("gpus") or [])
            for one in workers.online(heartbeat_seconds=heartbeat, session=session)
        ],
        pace=_pace(session),
    )


def _states(session: Session) -> dict[State, int]:
    found = session.execute(select(Job.state, func.count()).group_by(Job.state))
    return {**dict.fromkeys(State, 0), **{state: number for state, number in found}}  # noqa: C416 (rows are no tuples)


def _queues(now: datetime, session: Session) -> dict[str, Queue]:
    statement = select(Job.queue, func.count(), func.min(Job.updated_at)).where(Job.state == State.QUEUED)
    rows = session.execute(statement.group_by(Job.queue))
    return {queue: Queue(number, _seconds(now, oldest)) for queue, number, oldest in rows}


def _attempts(session: Session) -> dict[str, int]:
    rows = session.execute(select(Attempt.outcome, func.count()).group_by(Attempt.outcome))
    none = dict.fromkeys(["running", *(outcome.value for outcome in Outcome)], 0)
    return {**none, **{outcome.value if outcome else "running": number for outcome, number in rows}}


def _recovered(session: Session) -> dict[Outcome, int]:
    """The last attempt of a job that failed recovered nothing; every other one was followed by more."""
    gave_up = (Job.state == State.FAILED) & (Job.attempt == Attempt.number)
    statement = select(Attempt.outcome, func.count()).join(Job, Job.id == Attempt.job_id)
    rows = session.execute(statement.where(Attempt.outcome.in_(_BROKEN_OFF), ~gave_up).group_by(Attempt.outcome))
    return {**dict.fromkeys(_BROKEN_OFF, 0), **{outcome: number for outcome, number in rows if outcome}}


def _oldest_lease(now: datetime, lease_seconds: float, session: Session) -> float:
    """Seconds since the owner that has been silent longest renewed its lease; 0 where nothing is owned."""
    expires = session.scalar(select(func.min(Job.lease_expires_at)).where(Job.lease_token.is_not(None)))
    return 0.0 if expires is None else max(0.0, lease_seconds - (expires - now).total_seconds())


def _reaper_age(now: datetime, reaper_seconds: float, session: Session) -> float | None:
    expires = session.scalar(select(Lease.expires_at).where(Lease.name == LEASE))
    return None if expires is None else max(0.0, LEASE_ROUNDS * reaper_seconds - (expires - now).total_seconds())


def _pace(session: Session) -> dict[tuple[str, str], float]:
    statement = select(Job.worker_id, MetricLatest.name, MetricLatest.value).join(
        MetricLatest, (MetricLatest.job_id == Job.id) & MetricLatest.name.in_(PACE)
    )
    rows = session.execute(statement.where(Job.state == State.RUNNING))
    return {(worker_id, name): value for worker_id, name, value in rows if worker_id}


def _worker_state(worker: Any) -> str:
    if worker.draining:
        return "draining"
    return "idle" if worker.current_job is None else "busy"


def _seconds(now: datetime, then: datetime) -> float:
    return max(0.0, (now - then).total_seconds())
