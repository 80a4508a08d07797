"""Ownership of a job: the claim that a worker holds, and the guard in front of everything that it writes."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store.db import db_now
from store.errors import LeaseLost, NotFound
from store.models import Job
from store.states import State, check

_HELD: Final = "tid_held"
"""Key in the `info` of a session."""


@dataclass(frozen=True)
class Claim:
    """Proof of ownership; the token changes with every attempt."""

    job_id: str
    attempt: int
    token: str
    worker_id: str


def guard(claim: Claim, *, session: Session) -> Job:
    """Lock the claimed job until the transaction ends, so that nobody can take it over in between.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = _held(claim, session) or hold(claim, session=session)
    if job is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return job


def hold(claim: Claim, *, session: Session, **values: Any) -> Job | None:
    """Write the claimed job, which locks it. What follows in the transaction is guarded without writing it again: each
    write of this row is a new copy of it, spec included.

    Returns:
        The job, or None where it has another owner or none.
    """
    statement = update(Job).where(Job.id == claim.job_id, Job.lease_token == claim.token)
    statement = statement.values(updated_at=db_now(), **values)
    job: Job | None = session.scalar(statement.returning(Job), execution_options={"populate_existing": True})
    if job is not None:
        session.info[_HELD] = _Held(claim, job, session.get_transaction(), session.get_nested_transaction())
    return job


class _Held(NamedTuple):
    claim: Claim
    job: Job
    transaction: object
    savepoint: object
    """Where it is rolled back to, the lock is gone."""


def _held(claim: Claim, session: Session) -> Job | None:
    """The job, if this transaction has locked it for this claim and has not let go of it since."""
    held: _Held | None = session.info.get(_HELD)
    if held is None or held.claim != claim or held.transaction is not session.get_transaction():
        return None
    if held.savepoint not in (None, session.get_nested_transaction()):
        return None
    return held.job if held.job.lease_token == claim.token else None


def locked(job_id: str, *, session: Session) -> Job:
    """The job, locked until the transaction ends (SQLite: the write transaction itself is the lock).

    Raises:
        NotFound: no such job.
    """
    statement = select(Job).where(Job.id == job_id).with_for_update()
    job = session.scalar(statement, execution_options={"populate_existing": True})
    if job is None:
        raise NotFound("job", job_id)
    return job


def move(job: Job, new: State, *, reason: str | None = None, detail: str | None = None, session: Session) -> None:
    """Move a locked job along the table of transitions.

    Raises:
        IllegalTransition: the table has no such move.
    """
    check(job.state, new)
    job.state, job.status_reason, job.detail = new, reason, detail
    session.flush()
