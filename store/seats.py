"""Seats: places beside the owner of an attempt for the further workers that its job wants (docs/decisions/021).

They are opened by the claim, and live as long as the attempt has its owner; whoever sits in one of a dead attempt
learns it at the next renewal.
"""

import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from store.db import db_now
from store.fencing import Claim
from store.models import Job, Seat, Worker
from store.placement import within_worker
from store.reasons import WORKER_DRAINED, WORKER_STOPPED
from store.text import storable

LEFT: Final = (WORKER_STOPPED, WORKER_DRAINED)
"""Reasons for which a seat is given up that count against nothing."""
_ALIVE: Final = and_(Job.id == Seat.job_id, Job.attempt == Seat.attempt, Job.lease_token.is_not(None))
_TAKEN: Final = and_(Seat.token.is_not(None), Seat.ended_at.is_(None))
_OPEN: Final = and_(Seat.worker_id.is_(None), Seat.ended_at.is_(None))


@dataclass(frozen=True)
class Seated:
    """Proof of a seat; the token is that of who sits there alone."""

    job_id: str
    attempt: int
    node: int
    nodes: int
    """Of the whole job, its owner included."""
    token: str
    worker_id: str


class Meeting(NamedTuple):
    """Where the owner waits for the others; None: not yet known."""

    host: str | None
    port: int | None


class Look(NamedTuple):
    """A seat as the owner sees it."""

    seat: Seat
    is_silent: bool
    """Whether its lease is over."""


class OpenSeat(NamedTuple):
    """One that nobody has taken, of an attempt that has an owner."""

    job_id: str
    attempt: int
    node: int
    queue: str
    priority: int
    gpus_wanted: int
    min_gpu_memory_mib: int
    is_due: bool
    """Whether it is to be announced."""


def open_for(claim: Claim, nodes: int, *, session: Session) -> None:
    """One for each node but the first, in the transaction of the claim: whoever counts idle workers sees them."""
    session.add_all(Seat(job_id=claim.job_id, attempt=claim.attempt, node=node) for node in range(1, nodes))
    session.flush()


def announce(claim: Claim, host: str, port: int, *, session: Session) -> None:
    """Say where the owner waits. Call it where the claim is guarded."""
    statement = update(Seat).where(*_of(claim)).values(host=host, port=port)
    session.execute(statement, execution_options={"synchronize_session": False})


def take_next(worker_id: str, queues: Collection[str], *, lease_seconds: float, session: Session) -> Seated | None:
    """Take a seat that is open in these queues, by compare-and-set: that of the first job in order.

    Returns:
        The proof, or None where there is none for this worker, or the worker is to drain.
    """
    drained = select(Worker.id).where(Worker.id == worker_id, Worker.draining.is_not(None))
    for_me = (Job.queue.in_(queues), Job.worker_id != worker_id, within_worker(worker_id), ~drained.exists())
    first = select(Seat.job_id, Seat.attempt, Seat.node, Job.nodes).join(Job, _ALIVE).where(_OPEN, *for_me)
    in_order = first.order_by(Job.priority, Job.created_at, Job.id, Seat.node).limit(1)
    found = session.execute(in_order.with_for_update(skip_locked=True, of=Seat)).first()
    if found is None:
        return None
    job_id, attempt, node, nodes = found
    token = secrets.token_hex(16)
    place = (Seat.job_id == job_id, Seat.attempt == attempt, Seat.node == node, _OPEN)
    taken = update(Seat).where(*place, _is_alive())
    taken = taken.values(worker_id=worker_id, token=token, lease_expires_at=db_now(lease_seconds))
    if session.scalar(taken.returning(Seat.node), execution_options={"synchronize_session": False}) is None:
        return None
    return Seated(job_id, attempt, node, nodes, token, worker_id)


def renew(seated: Seated, *, lease_seconds: float, session: Session) -> Meeting | None:
    """Extend the lease.

    Returns:
        Where the owner waits, or None where the seat is void: another sits there, or the attempt is over.
    """
    statement = update(Seat).where(*_own(seated), _is_alive()).values(lease_expires_at=db_now(lease_seconds))
    row = session.execute(
        statement.returning(Seat.host, Seat.port), execution_options={"synchronize_session": False}
    ).first()
    return None if row is None else Meeting(*row)


def leave(seated: Seated, *, reason: str | None, detail: str | None = None, session: Session) -> bool:
    """Give the seat up; `reason`: why, unless the training ended in agreement with the others.

    Returns:
        Whether it was this worker's.
    """
    values = {"ended_at": db_now(), "reason": reason, "detail": storable(detail) if detail else None}
    statement = update(Seat).where(*_own(seated)).values(token=None, lease_expires_at=None, **values)
    return session.scalar(statement.returning(Seat.node), execution_options={"synchronize_session": False}) is not None


def give_up_of(worker_id: str, reason: str, *, session: Session) -> None:
    """A worker that begins anew sits nowhere: whoever did under its name is gone."""
    values = {"ended_at": db_now(), "reason": reason, "detail": f"worker {worker_id} was started again"}
    statement = update(Seat).where(Seat.worker_id == worker_id, _TAKEN)
    statement = statement.values(token=None, lease_expires_at=None, **values)
    session.execute(statement, execution_options={"synchronize_session": False})


def look(claim: Claim, *, session: Session) -> list[Look]:
    """The seats of the claimed attempt, by node."""
    silent = func.coalesce(Seat.lease_expires_at < db_now(), False)
    statement = select(Seat, silent).where(*_of(claim)).order_by(Seat.node)
    rows = session.execute(statement, execution_options={"populate_existing": True})
    return [Look(seat, bool(is_silent)) for seat, is_silent in rows]


def hostnames(seated: Seated, *, session: Session) -> list[str]:
    """Of the owner's host and of that of who sits; what is not known is left out."""
    owner = session.scalar(select(Job.worker_id).where(Job.id == seated.job_id))
    rows = session.execute(select(Worker.id, Worker.hostname).where(Worker.id.in_([owner, seated.worker_id])))
    names = {worker_id: hostname for worker_id, hostname in rows}  # noqa: C416 (rows are no tuples to mypy)
    return [names[one] for one in (owner, seated.worker_id) if one in names]


def occupied(*, session: Session) -> set[str]:
    """Workers that own a job or sit in a seat of one."""
    owners = select(Job.worker_id).where(Job.lease_token.is_not(None))
    sitting = select(Seat.worker_id).join(Job, _ALIVE).where(_TAKEN)
    return {name for name in session.scalars(owners.union_all(sitting)) if name is not None}


def job_of(worker_id: str, *, session: Session) -> str | None:
    """The job in a seat of which the worker sits."""
    return session.scalar(select(Seat.job_id).join(Job, _ALIVE).where(Seat.worker_id == worker_id, _TAKEN).limit(1))


def waiting(*, ring_seconds: float = 0.0, session: Session) -> list[OpenSeat]:
    """Seats that are open, first those of the first job; due where they were not announced for `ring_seconds`."""
    rung = Seat.last_rung_at
    is_due = or_(rung.is_(None), rung <= db_now(-ring_seconds), rung > db_now(ring_seconds))  # the clock!
    wanted = (Job.queue, Job.priority, Job.gpus_wanted, Job.min_gpu_memory_mib, is_due)
    statement = select(Seat.job_id, Seat.attempt, Seat.node, *wanted).join(Job, _ALIVE).where(_OPEN)
    rows = session.execute(statement.order_by(Job.priority, Job.created_at, Job.id, Seat.node))
    return [OpenSeat(*row) for row in rows]


def count_as_announced(seats: Iterable[OpenSeat], *, session: Session) -> None:
    for one in seats:
        place = (Seat.job_id == one.job_id, Seat.attempt == one.attempt, Seat.node == one.node)
        session.execute(
            update(Seat).where(*place).values(last_rung_at=db_now()), execution_options={"synchronize_session": False}
        )


def workers_of(job_id: str, *, session: Session) -> dict[int, list[str]]:
    """By attempt: who sat beside its owner, by node."""
    statement = select(Seat.attempt, Seat.worker_id).where(Seat.job_id == job_id, Seat.worker_id.is_not(None))
    found: dict[int, list[str]] = {}
    for attempt, worker_id in session.execute(statement.order_by(Seat.attempt, Seat.node)):
        found.setdefault(attempt, []).append(str(worker_id))
    return found


def _of(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (Seat.job_id == claim.job_id, Seat.attempt == claim.attempt)


def _own(seated: Seated) -> tuple[ColumnElement[bool], ...]:
    place = (Seat.job_id == seated.job_id, Seat.attempt == seated.attempt, Seat.node == seated.node)
    return (*place, Seat.token == seated.token)


def _is_alive() -> ColumnElement[bool]:
    """Whether the attempt of the seat that is written has an owner."""
    return select(Job.id).where(_ALIVE).correlate(Seat).exists()
