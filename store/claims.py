"""Jobs as workers see them: claim, renew, report, let go. Only `claim` is open to all; the rest is for the owner."""

import secrets
from collections.abc import Collection
from typing import Final

from sqlalchemy import ColumnElement, func, literal, select, tuple_, update
from sqlalchemy.orm import Session

from store import metrics, seats, teams
from store.db import UTCTime, db_now
from store.endings import let_go, try_again
from store.fencing import Claim, guard, hold, move
from store.models import Attempt, Dataset, Job, Json, Worker
from store.placement import within_worker
from store.reasons import WORKER_STOPPED
from store.states import WITHOUT_WORKER, Outcome, State
from store.text import storable
from store.waiting import LOOKED_THROUGH, ORDER

_FINAL: Final = {
    Outcome.SUCCEEDED: State.SUCCEEDED,
    Outcome.FAILED: State.FAILED,
    Outcome.CANCELLED: State.CANCELLED,
}


def claim_next(worker_id: str, queues: Collection[str], *, lease_seconds: float, session: Session) -> Claim | None:
    """Become the owner of the first job that waits in these queues: the lowest priority number, then the oldest.

    Of workers that ask at once each gets another job. One that asks for more GPUs than the worker has is passed over.
    One for several workers is claimed once enough are idle, and holds back those behind it (`store.teams`).

    Returns:
        The proof of ownership, or None where no job can begin, or the worker is to drain.
    """
    many = teams.first(worker_id, queues, seconds=lease_seconds, session=session)
    first = select(Job.id).where(Job.state == State.QUEUED, Job.queue.in_(queues), *_may_begin(worker_id))
    first = first.where(Job.nodes == 1)
    if many is not None:
        priority, created_at, job_id = many.place
        first = first.where(tuple_(*ORDER) < tuple_(literal(priority), literal(created_at, UTCTime()), literal(job_id)))
    in_order = first.order_by(*ORDER).limit(1)
    found = session.scalar(in_order.with_for_update(skip_locked=True, of=Job))
    if found is None and many is not None and many.may_begin:
        found = many.job_id
    return None if found is None else _claim(found, worker_id, lease_seconds=lease_seconds, session=session)


def claim(job_id: str, worker_id: str, *, lease_seconds: float, session: Session) -> Claim | None:
    """Become the owner of one queued job, by compare-and-set: of many that try, one gets it.

    Returns:
        The proof of ownership, or None where the job is not queued (any more), does not exist, or has to wait until
        its dataset was looked through (anew, after an update of the service), or where the worker is to drain or lacks
        the GPUs that the job asks for, or where too few others are idle to train it together.
    """
    nodes, queue = session.execute(select(Job.nodes, Job.queue).where(Job.id == job_id)).first() or (1, "")
    if nodes > 1:
        many = teams.first(worker_id, [queue], seconds=lease_seconds, session=session)
        if many is None or many.job_id != job_id or not many.may_begin:
            return None
    return _claim(job_id, worker_id, lease_seconds=lease_seconds, session=session)


def _claim(job_id: str, worker_id: str, *, lease_seconds: float, session: Session) -> Claim | None:
    token = secrets.token_hex(16)
    statement = update(Job).where(Job.id == job_id, Job.state == State.QUEUED, *_may_begin(worker_id))
    row = session.execute(
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
        ).returning(Job.attempt, Job.nodes),
        execution_options={"synchronize_session": False},
    ).first()
    if row is None:
        return None
    attempt, nodes = row
    session.add(Attempt(job_id=job_id, number=attempt, worker_id=worker_id, lease_token=token))
    session.flush()
    claim = Claim(job_id=job_id, attempt=attempt, token=token, worker_id=worker_id)
    seats.open_for(claim, nodes, session=session)
    return claim


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
