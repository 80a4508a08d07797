"""The attempts at a job: where each ran, for how long, from where to where, and how it ended."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import seats
from store.db import db_now
from store.models import Attempt, Job


class Told(NamedTuple):
    """An attempt, with what is known only by looking at its job and the clock."""

    attempt: Attempt
    seconds: float
    """From its claim to its end, or to now, by the database's clock."""
    lease_expires_at: datetime | None
    """Of the one that runs."""
    steps: int | None
    """Optimiser steps done; None before the training began."""
    beside: list[str]
    """Workers of its further nodes, in their order."""


def of_job(job: Job, *, session: Session) -> list[Told]:
    """In the order in which they began."""
    statement = select(Attempt, db_now()).where(Attempt.job_id == job.id).order_by(Attempt.number)
    beside = seats.workers_of(job.id, session=session) if job.nodes > 1 else {}
    return [_told(attempt, job, now, beside.get(attempt.number, [])) for attempt, now in session.execute(statement)]


def _told(attempt: Attempt, job: Job, now: datetime, beside: list[str]) -> Told:
    runs = attempt.ended_at is None and attempt.number == job.attempt
    step = job.step if runs else attempt.last_step
    first = attempt.resumed_from_step
    return Told(
        attempt,
        seconds=max(0.0, ((attempt.ended_at or now) - attempt.started_at).total_seconds()),
        lease_expires_at=job.lease_expires_at if runs else None,
        steps=None if first is None or step is None else max(0, step - first),
        beside=beside,
    )
