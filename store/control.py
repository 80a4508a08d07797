"""What users ask of a job that is there: pause, resume, retry, another priority. To cancel is in `store.jobs`.

What is asked of a job is asked of its baseline twin too, where the twin is in a state for it: alone, the twin would
take the GPU that a pause is to free, or be missing in the comparison. A twin can be asked alone, by its own id.
"""

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store import jobs, metrics
from store.artifacts import attempt_key
from store.db import db_now
from store.errors import NotFound, TeacherNotReady
from store.fencing import locked, move
from store.jobs import locked_twin
from store.models import Artifact, Attempt, Checkpoint, Job, ResumeState
from store.placement import announced
from store.reasons import RESUMED, RETRIED, USER
from store.states import ACTIONS, Action, NotPossible, State
from tid_core.spec import JobSpec, JobWeights


class Asked(NamedTuple):
    """A job, and what is to be done after the commit."""

    job: Job
    queued: list[Job]
    """Jobs that wait for a worker now, and are to be announced."""
    outdated: list[str]
    """Keys of artifacts that no row names any more, to be deleted."""


def request_pause(job_id: str, *, session: Session) -> Job:
    """A waiting job is `paused` at once; one that a worker has is `pausing` until its state is saved.

    Pausing twice is no error.

    Raises:
        NotFound: no such job.
        NotPossible: the job has ended, or is being cancelled.
    """
    job, _ = _ask(Action.PAUSE, job_id, _pause, already=(State.PAUSING, State.PAUSED), session=session)
    return job


def request_resume(job_id: str, *, session: Session) -> Asked:
    """A paused job waits again, and continues from its newest state; one that is still `pausing` goes on.

    Resuming a job that waits or runs is no error.

    Raises:
        NotFound: no such job.
        NotPossible: the job has ended, or is being cancelled.
    """
    already = (State.QUEUED, State.STARTING, State.RUNNING)
    job, changed = _ask(Action.RESUME, job_id, _resume, already=already, session=session)
    return Asked(job, [one for one in changed if one.state is State.QUEUED], [])


def request_retry(job_id: str, *, fresh: bool, session: Session) -> Asked:
    """Another attempt at a job that failed or was cancelled. Its failures so far no longer count.

    It continues from the newest state that was kept. Where none was, or with `fresh`, it begins anew, and what earlier
    attempts measured and wrote is forgotten: nothing of it can be taken for the new result.

    Raises:
        NotFound: no such job.
        NotPossible: the job has not ended, or has succeeded.
        TeacherNotReady: the job whose weights it needs is gone.
    """
    outdated: list[str] = []

    def retry(job: Job, session: Session) -> None:
        outdated.extend(_retry(job, fresh=fresh, session=session))

    job, changed = _ask(Action.RETRY, job_id, retry, already=(), session=session)
    return Asked(job, changed, outdated)


def set_priority(job_id: str, priority: int, *, session: Session) -> Job:
    """Change the place in the queue, 0 first .. 9; of a job that a worker has, where it waits once more.

    Raises:
        NotFound: no such job.
        NotPossible: the job has ended.
    """

    def change(job: Job, session: Session) -> None:
        job.priority, job.updated_at = priority, db_now()
        session.flush()

    return _ask(Action.PRIORITISE, job_id, change, already=(), session=session)[0]


def _ask(
    action: Action,
    job_id: str,
    change: Callable[[Job, Session], None],
    *,
    already: tuple[State, ...],
    session: Session,
) -> tuple[Job, list[Job]]:
    """Do it to the job, unless it is `already` so, and to its twin where that is possible; all that were changed."""
    job, changed = locked(job_id, session=session), []
    if job.state in ACTIONS[action]:
        change(job, session)
        changed.append(job)
    elif job.state not in already:
        raise NotPossible(action, job.id, job.state)
    twin = locked_twin(job, session=session)
    if twin is not None and twin.state in ACTIONS[action]:
        change(twin, session)
        changed.append(twin)
    return job, changed


def _pause(job: Job, session: Session) -> None:
    new = State.PAUSED if job.state is State.QUEUED else State.PAUSING
    move(job, new, reason=USER, session=session)
    job.updated_at = db_now()
    session.flush()


def _resume(job: Job, session: Session) -> None:
    if job.state is State.PAUSED:
        _queue(job, RESUMED, session=session)
        return
    # Its worker may have asked the training to stop by now: it then hands the job back, and another attempt goes on.
    attempt = session.get_one(Attempt, (job.id, job.attempt))
    has_begun = attempt.resumed_from_step is not None
    move(job, State.RUNNING if has_begun else State.STARTING, session=session)
    job.updated_at = db_now()
    session.flush()


def _retry(job: Job, *, fresh: bool, session: Session) -> list[str]:
    """Returns the keys of what was given up."""
    _check_weights(job, session=session)
    of_job = ResumeState.job_id == job.id
    has_state = session.scalar(select(ResumeState.step).where(of_job).limit(1)) is not None
    outdated = [] if has_state and not fresh else _begin_anew(job, session=session)
    job.forgiven, job.ended_at = job.attempt, None
    _queue(job, RETRIED, session=session)
    return outdated


def _begin_anew(job: Job, *, session: Session) -> list[str]:
    for table in (ResumeState, Checkpoint, Artifact):
        session.execute(delete(table).where(table.job_id == job.id))
    metrics.forget(job.id, session=session)
    job.step = job.epoch = 0
    job.best_ap = job.total_steps = None
    job.warnings = [warning for warning in job.warnings if warning.get("field") is not None]  # those of the preflight
    return [attempt_key(job.id, number) for number in range(1, job.attempt + 1)]


def _queue(job: Job, reason: str, *, session: Session) -> None:
    move(job, State.QUEUED, reason=reason, session=session)
    job.worker_id = job.eta_seconds = job.progress = None
    job.last_rung_at, job.updated_at = announced(job.gpus_wanted, job.nodes), db_now()
    session.flush()


def _check_weights(job: Job, *, session: Session) -> None:
    """Raises:
    TeacherNotReady: weights that the job is to begin with, or to learn from, were deleted since.
    """
    spec = JobSpec.model_validate(job.spec)
    for weights in (spec.teacher.weights if spec.teacher else None, spec.student.weights):
        if isinstance(weights, JobWeights):
            try:
                jobs.teacher_checkpoint(weights.job, weights.checkpoint, session=session)
            except NotFound as error:
                raise TeacherNotReady(f"job {job.id} needs the weights of job {weights.job}, which is gone") from error
