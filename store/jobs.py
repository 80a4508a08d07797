"""Jobs as their users see them: submit, read, cancel. What else can be asked of them is in `store.control`."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, SQLColumnExpression, literal, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.db import UTCTime, db_now
from store.errors import IdempotencyConflict, NotFound, TeacherNotReady
from store.fencing import locked, move
from store.models import Checkpoint, Job, Json
from store.monitoring import tracing
from store.placement import announced
from store.reasons import USER
from store.states import ACTIONS, Action, NotPossible, State
from tid_core.spec import JobSpec, JobWeights

_AFTER = timedelta(microseconds=1)
_NEWEST = (Job.created_at.desc(), Job.id.desc())


class Created(NamedTuple):
    job: Job
    replayed: bool
    """True where the idempotency key had made this job before."""


class Cursor(NamedTuple):
    """Position in a list that has its newest row first."""

    created_at: datetime
    id: str

    def older(self, created_at: SQLColumnExpression[datetime], row_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
        """The rows that follow this position."""
        return tuple_(created_at, row_id) < tuple_(literal(self.created_at, UTCTime()), literal(self.id))


def create(
    spec: JobSpec,
    *,
    dataset_id: str,
    session: Session,
    idempotency_key: str | None = None,
    request_hash: str | None = None,
    warnings: Sequence[Json] = (),
) -> Created:
    """Queue a job, and behind it its baseline twin if the spec wants one.

    Both count as announced: the caller rings for each after its commit; the reaper rings again for what stays queued.

    Raises:
        IdempotencyConflict: the key was used with another request.
        NotFound: the spec names the weights of a job that does not exist.
    """
    if idempotency_key is not None and (known := by_key(idempotency_key, request_hash, session=session)):
        return Created(known, replayed=True)
    job = new_row(spec, dataset_id, warnings, session=session)
    job.idempotency_key, job.request_hash = idempotency_key, request_hash
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:
        # Another request with the same key was faster; any other violation is a bug and is raised as it is.
        if idempotency_key is None or not (known := by_key(idempotency_key, request_hash, session=session)):
            raise
        return Created(known, replayed=True)
    if spec.baseline:
        _add_twin(job, spec, warnings, session=session)
    return Created(job, replayed=False)


def by_key(idempotency_key: str, request_hash: str | None, *, session: Session) -> Job | None:
    """The job that this key made, if any.

    Raises:
        IdempotencyConflict: it was made by another request.
    """
    job = session.scalar(select(Job).where(Job.idempotency_key == idempotency_key))
    if job is not None and job.request_hash != request_hash:
        raise IdempotencyConflict(idempotency_key, job.id)
    return job


def get(job_id: str, *, session: Session) -> Job:
    """Raises:
    NotFound: no such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


def page(
    *,
    session: Session,
    limit: int = 50,
    after: Cursor | None = None,
    states: Collection[State] = (),
    methods: Collection[str] = (),
    queue: str | None = None,
    search: str | None = None,
    sweep_id: str | None = None,
) -> list[Job]:
    """Jobs, newest first; stable while others are added. Ask for one more than is shown to learn if more follow.

    They are found in the index that holds all that lists are filtered by; only their own rows, with their specs, are
    read.
    """
    statement = select(Job.id).order_by(*_NEWEST).limit(limit)
    if after is not None:
        statement = statement.where(after.older(Job.created_at, Job.id))
    if states:
        statement = statement.where(Job.state.in_(states))
    if methods:
        statement = statement.where(Job.method.in_(methods))
    if queue is not None:
        statement = statement.where(Job.queue == queue)
    if sweep_id is not None:
        statement = statement.where(Job.sweep_id == sweep_id)
    if search:
        statement = statement.where(Job.name.icontains(search, autoescape=True))
    return list(session.scalars(select(Job).where(Job.id.in_(statement)).order_by(*_NEWEST)))


def request_cancel(job_id: str, *, session: Session) -> Job:
    """Cancel a job, and with it its baseline twin unless that has ended: alone, the twin compares with nothing.

    A baseline that the jobs of a sweep share is nobody's twin and goes on. Waiting jobs are cancelled at once; a worker
    learns of it at its next heartbeat. Cancelling twice is no error.

    Raises:
        NotFound: no such job.
        NotPossible: the job has ended.
    """
    job = locked(job_id, session=session)
    if job.state not in (State.CANCELLING, State.CANCELLED):
        cancel_locked(job, session=session)
    twin = locked_twin(job, session=session)
    if twin is not None and twin.state in ACTIONS[Action.CANCEL]:
        cancel_locked(twin, session=session)
    return job


def locked_twin(job: Job, *, session: Session) -> Job | None:
    """The baseline that is this job's alone, locked. One that the jobs of a sweep share is nobody's."""
    twin_id = session.scalar(select(Job.id).where(Job.id == job.baseline_job_id, Job.twin_of == job.id))
    return None if twin_id is None else locked(twin_id, session=session)


def teacher_checkpoint(
    job_id: str, checkpoint: str = "best", *, session: Session, file_format: str = "safetensors"
) -> Checkpoint:
    """A checkpoint of a job that has succeeded, to teach or to start from.

    Raises:
        NotFound: no such job.
        TeacherNotReady: the job has not succeeded, or kept no such checkpoint.
    """
    job = get(job_id, session=session)
    if job.state is not State.SUCCEEDED:
        raise TeacherNotReady(f"job {job_id} is {job.state}; a job whose weights are used must have succeeded")
    row = session.get(Checkpoint, (job_id, checkpoint, file_format))
    if row is None:
        kept = session.scalars(select(Checkpoint.name).where(Checkpoint.job_id == job_id).distinct())
        raise TeacherNotReady(
            f"job {job_id} kept no checkpoint {checkpoint!r}; it has: {', '.join(sorted(kept)) or 'none'}"
        )
    return row


def new_row(spec: JobSpec, dataset_id: str, warnings: Sequence[Json], *, session: Session) -> Job:
    """A queued job that is not yet added. It counts as announced.

    Raises:
        NotFound: the spec names the weights of a job that does not exist.
    """
    teacher = spec.teacher.weights if spec.teacher else None
    teacher_job_id = teacher.job if isinstance(teacher, JobWeights) else None
    for weights in (teacher, spec.student.weights):
        if isinstance(weights, JobWeights):
            _pin(weights.job, session=session)
    return Job(
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        method=spec.method_name,
        queue=spec.resources.queue,
        priority=spec.resources.priority,
        gpus_wanted=spec.gpus_needed,
        min_gpu_memory_mib=spec.resources.min_gpu_memory_mib,
        nodes=spec.resources.nodes,
        max_attempts=spec.resources.max_attempts,
        epochs=spec.training.epochs,
        dataset_id=dataset_id,
        teacher_job_id=teacher_job_id,
        warnings=list(warnings),
        last_rung_at=announced(spec.gpus_needed, spec.resources.nodes),
        traceparent=tracing.traceparent(),
    )


def _pin(job_id: str, *, session: Session) -> None:
    """Keep a job from being deleted before this transaction ends.

    Raises:
        NotFound: there is no such job (any more).
    """
    there = select(Job.id).where(Job.id == job_id).with_for_update(read=True, key_share=True)
    if session.scalar(there) is None:
        raise NotFound("job", job_id)


def _add_twin(job: Job, spec: JobSpec, warnings: Sequence[Json], *, session: Session) -> None:
    twin = new_row(spec.baseline_twin(), job.dataset_id, warnings, session=session)
    # Queued behind its job, also where both are made within one tick of the clock.
    twin.twin_of, twin.created_at = job.id, job.created_at + _AFTER
    session.add(twin)
    session.flush()
    job.baseline_job_id = twin.id
    session.flush()


def cancel_locked(job: Job, *, session: Session) -> None:
    """Cancel one job that this transaction has locked.

    Raises:
        NotPossible: it has ended, or is being cancelled already.
    """
    if job.state not in ACTIONS[Action.CANCEL]:
        raise NotPossible(Action.CANCEL, job.id, job.state)
    waiting = job.state in (State.QUEUED, State.PAUSED)
    move(job, State.CANCELLED if waiting else State.CANCELLING, reason=USER, session=session)
    job.updated_at = db_now()
    if waiting:
        job.ended_at = db_now()
    session.flush()
