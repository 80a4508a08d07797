"""Sweeps: jobs that are submitted together, share their baselines, and are compared."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Literal, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from store import jobs
from store.db import db_now
from store.errors import IdempotencyConflict, NotFound
from store.jobs import Cursor
from store.models import Job, Json, Sweep, SweepRole
from store.states import ENDED, State
from tid_core.spec import JobSpec

SweepState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Planned(NamedTuple):
    """A job that is to be made."""

    spec: JobSpec
    role: SweepRole
    label: str
    point: Json
    baseline: int | None
    """Place of its baseline among the jobs of the sweep."""
    dataset_id: str
    warnings: Sequence[Json] = ()


class Created(NamedTuple):
    sweep: Sweep
    replayed: bool
    """True where the idempotency key had made this sweep before."""


def create(
    name: str,
    spec: Json,
    planned: Sequence[Planned],
    *,
    session: Session,
    idempotency_key: str | None = None,
    request_hash: str | None = None,
) -> Created:
    """Queue all jobs of a sweep, in their order; they count as announced, as those of `jobs.create`.

    Raises:
        IdempotencyConflict: the key was used with another request.
        NotFound: a spec names the weights of a job that does not exist.
    """
    if idempotency_key is not None and (known := by_key(idempotency_key, request_hash, session=session)):
        return Created(known, replayed=True)
    sweep = Sweep(name=name, spec=spec, idempotency_key=idempotency_key, request_hash=request_hash)
    try:
        with session.begin_nested():
            session.add(sweep)
    except IntegrityError:
        # Another request with the same key was faster; any other violation is a bug and is raised as it is.
        if idempotency_key is None or not (known := by_key(idempotency_key, request_hash, session=session)):
            raise
        return Created(known, replayed=True)
    _add_jobs(sweep, planned, session=session)
    return Created(sweep, replayed=False)


def by_key(idempotency_key: str, request_hash: str | None, *, session: Session) -> Sweep | None:
    """The sweep that this key made, if any.

    Raises:
        IdempotencyConflict: it was made by another request.
    """
    sweep = session.scalar(select(Sweep).where(Sweep.idempotency_key == idempotency_key))
    if sweep is not None and sweep.request_hash != request_hash:
        raise IdempotencyConflict(idempotency_key, sweep.id, "sweep")
    return sweep


def get(sweep_id: str, *, session: Session) -> Sweep:
    """Raises:
    NotFound: no such sweep.
    """
    sweep = session.get(Sweep, sweep_id)
    if sweep is None:
        raise NotFound("sweep", sweep_id)
    return sweep


def page(*, session: Session, limit: int = 50, after: Cursor | None = None, search: str | None = None) -> list[Sweep]:
    """Sweeps, newest first; stable while others are added. Ask for one more than is shown to learn if more follow."""
    in_short = select(Sweep).options(defer(Sweep.spec, raiseload=True))
    statement = in_short.order_by(Sweep.created_at.desc(), Sweep.id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(after.older(Sweep.created_at, Sweep.id))
    if search:
        statement = statement.where(Sweep.name.icontains(search, autoescape=True))
    return list(session.scalars(statement))


def jobs_of(sweep_id: str, *, session: Session) -> list[Job]:
    """The jobs of a sweep, in the order in which they were queued."""
    return list(session.scalars(select(Job).where(Job.sweep_id == sweep_id).order_by(Job.created_at, Job.id)))


def counts(sweep_ids: Collection[str], *, session: Session) -> dict[str, Counter[State]]:
    """How many jobs of each sweep are in each state."""
    statement = select(Job.sweep_id, Job.state, func.count()).where(Job.sweep_id.in_(sweep_ids))
    found: dict[str, Counter[State]] = {sweep_id: Counter() for sweep_id in sweep_ids}
    for sweep_id, state, number in session.execute(statement.group_by(Job.sweep_id, Job.state)):
        found[sweep_id or ""][state] = number
    return found


def state_of(states: Counter[State]) -> SweepState:
    """`queued` before the first job begins, `running` until the last has ended; then `failed` where one has.

    A sweep whose jobs have all been deleted is `cancelled`: it has no result, and never will have.
    """
    if not states.total():
        return "cancelled"
    if states[State.QUEUED] == states.total():
        return "queued"
    if any(state not in ENDED for state, number in states.items() if number):
        return "running"
    if states[State.FAILED]:
        return "failed"
    return "cancelled" if states[State.CANCELLED] else "succeeded"


def request_cancel(sweep_id: str, *, session: Session) -> Sweep:
    """Cancel every job that has not ended. Cancelling twice, or a sweep that has ended, is no error.

    Raises:
        NotFound: no such sweep.
    """
    sweep = get(sweep_id, session=session)
    going_on = [state for state in State if state not in ENDED and state is not State.CANCELLING]
    statement = select(Job).where(Job.sweep_id == sweep_id, Job.state.in_(going_on)).order_by(Job.id).with_for_update()
    for job in session.scalars(statement, execution_options={"populate_existing": True}).all():
        jobs.cancel_locked(job, session=session)
    return sweep


def _add_jobs(sweep: Sweep, planned: Sequence[Planned], *, session: Session) -> None:
    now = session.scalars(select(db_now())).one()
    rows = [jobs.new_row(one.spec, one.dataset_id, one.warnings, session=session) for one in planned]
    for place, (row, one) in enumerate(zip(rows, planned, strict=True)):
        row.sweep_id, row.sweep_role, row.sweep_label, row.sweep_point = sweep.id, one.role, one.label, one.point
        # They are taken in this order, though all are made within one tick of the clock.
        row.created_at = now + timedelta(microseconds=place)
    session.add_all(rows)
    session.flush()
    for row, one in zip(rows, planned, strict=True):
        row.baseline_job_id = rows[one.baseline].id if one.baseline is not None else None
    session.flush()
