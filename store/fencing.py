"""Ownership of a job: the claim that a worker holds, and the guard in front of everything that it writes."""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store.db import db_now
from store.errors import LeaseLost, NotFound
from store.models import Job
from store.states import State, check


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
    statement = update(Job).where(Job.id == claim.job_id, Job.lease_token == claim.token).values(updated_at=db_now())
    job: Job | None = session.scalar(statement.returning(Job), execution_options={"populate_existing": True})
    if job is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return job


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
