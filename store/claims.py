"""Jobs as workers see them: claim, renew, report, let go. Only `claim` is open to all; the rest is for the owner."""

import secrets
from collections.abc import Collection
from typing import Final

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from store import metrics
from store.db import db_now
from store.endings import let_go, try_again
from store.fencing import Claim, guard, hold, move
from store.models import Attempt, Dataset, Job, Json, Worker
from store.placement import within_worker
from store.reasons import WORKER_STOPPED
from store.states import WITHOUT_WORKER, Outcome, State
from store.text import storable
from store.waiting import LOOKED_THROUGH

_FINAL: Final = {
    Outcome.SUCCEEDED: State.SUCCEEDED,
    Outcome.FAILED: State.FAILED,
    Outcome.CANCELLED: State.CANCELLED,
}


def claim_next(worker_id: str, queues: Collection[str], *, lease_seconds: float, session: Session) -> Claim | None:
    """Become the owner of the first job that waits in these queues: the lowest priority number, then the oldest.

    Of workers that ask at once each gets another job. One that asks for more GPUs than the worker has is passed over.

    Returns:
        The proof of ownership, or None where no job can begin, or the worker is to drain.
    """
    first = select(Job.id).where(Job.state == State.QUEUED, Job.queue.in_(queues), *_may_begin(worker_id))
    in_order = first.order_by(Job.priority, Job.created_at, Job.id).limit(1)
    job_id = session.scalar(in_order.with_for_update(skip_locked=True, of=Job))
    return None if job_id is None else claim(job_id, worker_id, lease_seconds=lease_seconds, session=session)


def claim(job_id: str, worker_id: str, *, lease_seconds: float, session: Session) -> Claim | None:
    """Become the owner of one queued job, by compare-and-set: of many that try, one gets it.

    Returns:
        The proof of ownership, or None where the job is not queued (any more), does not exist, or has to wait until
        its dataset was looked through (anew, after an update of the service), or where the worker is to drain or lacks
        the GPUs that the job asks for.
    """
    token = secrets.token_hex(16)
    statement = update(Job).where(Job.id == job_id, Job.state == State.QUEUED, *_may_begin(worker_id))
    attempt = session.scalar(
        statement.values(
            state=State.STARTING,
            status_reason=None,
            detail=None,
            attempt=Job.attempt + 1,
            worker_id=worker_id,
            lease_token=token,
            lease_expires_at=db_now(lease_seconds),
            started_at=func.coalesce(Job.started_at, db_now()),
            updated_at=db_now(),
        ).returning(Job.attempt),
        execution_options={"synchronize_session": False},
    )
    if attempt is None:
        return None
    session.add(Attempt(job_id=job_id, number=attempt, worker_id=worker_id, lease_token=token))
    session.flush()
    return Claim(job_id=job_id, attempt=attempt, token=token, worker_id=worker_id)


def _may_begin(worker_id: str) -> tuple[ColumnElement[bool], ...]:
    """What must hold of a queued job and of the worker; here, so that a worker that knows nothing of it is refused."""
    looked_through = select(Dataset.id).where(Dataset.state.in_(LOOKED_THROUGH))
    drained = select(Worker.id).where(Worker.id == worker_id, Worker.draining.is_not(None))
    return Job.dataset_id.in_(looked_through), ~drained.exists(), within_worker(worker_id)


def renew(claim: Claim, *, lease_seconds: float, session: Session) -> State | None:
    """Extend the lease.

    Returns:
        The state of the job (`cancelling` and `pausing` ask the owner to stop), or None where the lease is lost.
    """
    job = hold(claim, lease_expires_at=db_now(lease_seconds), session=session)
    return None if job is None else job.state


def mark_started(
    claim: Claim,
    *,
    resumed_from_step: int,
    total_steps: int,
    epochs: int,
    run_facts: Json | None = None,
    session: Session,
) -> State:
    """The training is under way. What dead attempts measured beyond the step of the resume is superseded.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    if job.state is State.STARTING:
        move(job, State.RUNNING, session=session)
    job.step, job.total_steps, job.epochs, job.run_facts = resumed_from_step, total_steps, epochs, run_facts
    session.get_one(Attempt, (claim.job_id, claim.attempt)).resumed_from_step = resumed_from_step
    job.best_ap = metrics.supersede(claim, resumed_from_step, session=session)
    session.flush()
    return job.state


def record_progress(
    claim: Claim, *, step: int, epoch: int, eta_seconds: float | None, progress: Json, session: Session
) -> State:
    """Raises:
    LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    job.step, job.epoch, job.eta_seconds, job.progress = step, epoch, eta_seconds, progress
    session.flush()
    return job.state


def add_warning(claim: Claim, *, code: str, detail: str, session: Session) -> None:
    """Add to the warnings of the job; the same one, from a later attempt, is kept once.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    warning: Json = {"code": code, "detail": storable(detail)}
    if warning not in job.warnings:
        job.warnings = [*job.warnings, warning]
    session.flush()


def finish(
    claim: Claim, outcome: Outcome, *, reason: str | None = None, detail: str | None = None, session: Session
) -> State:
    """End the job: succeeded, failed or cancelled. A job asked to cancel ends `cancelled`, however its training ended.

    Raises:
        LeaseLost: the job has another owner or none.
        IllegalTransition: e.g. `cancelled` without a request to cancel, or `succeeded` before `mark_started`.
    """
    job = guard(claim, session=session)
    new = State.CANCELLED if job.state is State.CANCELLING else _FINAL[outcome]
    let_go(job, new, outcome, reason=reason, detail=detail, session=session)
    return new


def hand_back(claim: Claim, *, reason: str = WORKER_STOPPED, detail: str | None = None, session: Session) -> State:
    """Give up the job with its state saved: it is queued again (or paused, or cancelled, as was asked for).

    This does not count against `max_attempts`.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    new = WITHOUT_WORKER[job.state]
    outcome = Outcome.CANCELLED if new is State.CANCELLED else Outcome.HANDED_BACK
    let_go(job, new, outcome, reason=reason, detail=detail, session=session)
    return new


def crashed(claim: Claim, *, reason: str, detail: str | None = None, session: Session) -> State:
    """The training died without a last word: another attempt follows, up to `max_attempts`.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    job = guard(claim, session=session)
    return try_again(job, Outcome.CRASHED, reason=reason, detail=detail, session=session)
