"""How a worker and a job part: by a result, by handing back, or by being lost."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store.db import db_now
from store.fencing import move
from store.models import Attempt, Job
from store.reasons import MAX_ATTEMPTS, PAUSED, RESUMED, USER
from store.states import ENDED, WITHOUT_WORKER, Outcome, State
from store.text import storable


def let_go(
    job: Job, new: State, outcome: Outcome, *, reason: str | None = None, detail: str | None = None, session: Session
) -> None:
    """End the attempt of a locked job and move the job on. From here on its claim is void.

    Raises:
        IllegalTransition: the table has no such move.
    """
    detail = storable(detail) if detail else detail
    _end_attempt(job, outcome, reason, detail, session=session)
    if new in (State.CANCELLED, State.PAUSED):
        reason = USER
    elif reason == PAUSED:  # and resumed before the attempt had ended
        reason = RESUMED
    move(job, new, reason=reason, detail=detail, session=session)
    job.lease_token = job.lease_expires_at = job.eta_seconds = job.progress = None
    job.updated_at = db_now()
    if new in ENDED:
        job.ended_at = db_now()
    else:
        # No longer anybody's, and to be announced at once.
        job.worker_id = job.last_rung_at = None
    session.flush()


def try_again(job: Job, outcome: Outcome, *, reason: str, detail: str | None, session: Session) -> State:
    """Take a locked job from an owner that failed it, and queue it again while attempts are left."""
    new = WITHOUT_WORKER[job.state]
    failures = 1 + _failures(job, session=session)
    if new is not State.QUEUED or failures < job.max_attempts:
        let_go(job, new, outcome, reason=reason, detail=detail, session=session)
        return new
    let_go(job, State.FAILED, outcome, reason=reason, detail=detail, session=session)
    job.status_reason = MAX_ATTEMPTS
    job.detail = f"{failures} of {job.max_attempts} attempts ended without a result; the last: {reason}"
    if detail:
        job.detail += f": {storable(detail)}"
    session.flush()
    return State.FAILED


def _end_attempt(job: Job, outcome: Outcome, reason: str | None, detail: str | None, *, session: Session) -> None:
    attempt = session.get_one(Attempt, (job.id, job.attempt))
    attempt.ended_at, attempt.outcome = db_now(), outcome
    attempt.reason, attempt.detail, attempt.last_step = reason, detail, job.step


def _failures(job: Job, *, session: Session) -> int:
    """Attempts that ended without a result since the last retry. One that was handed back does not count."""
    ended_badly = Attempt.outcome.in_((Outcome.LOST, Outcome.CRASHED))
    counted = (Attempt.job_id == job.id, Attempt.number > job.forgiven, ended_badly)
    return session.scalars(select(func.count()).where(*counted)).one()
