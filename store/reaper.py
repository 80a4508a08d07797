"""What keeps jobs from being lost: jobs of silent workers go back to the queue, and the queue is announced again."""

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from store import leases, watch, workers
from store.db import Database, db_now
from store.endings import try_again
from store.models import Dataset, Job
from store.reasons import WORKER_LOST
from store.settings import Settings
from store.states import Outcome, State
from store.waiting import LOOKED_THROUGH

LEASE: Final = "reaper"
LEASE_ROUNDS: Final = 5


class Doorbell(NamedTuple):
    """A queued job to be announced to the workers of its queue."""

    job_id: str
    queue: str
    priority: int


class Expired(NamedTuple):
    job_id: str
    attempt: int
    state: State
    """What became of the job: queued, paused, cancelled or failed."""


class Reaped(NamedTuple):
    expired: list[Expired]
    rung: list[Doorbell]


def reap_once(database: Database, settings: Settings, *, token: str, ring: Callable[[Doorbell], None]) -> Reaped | None:
    """One round, in the one process that holds the lease; `token` is that of the calling process.

    No lease expires until rounds have followed each other for `lease_seconds`: after an absence of the database, its
    owners get the time to renew theirs.

    `ring` is called after the commit. Where it fails, the job is announced again after `ring_seconds`.

    Returns:
        What was done, or None where another process holds the lease.
    """
    with database.write() as session:
        if not leases.acquire(LEASE, token, seconds=LEASE_ROUNDS * settings.reaper_seconds, session=session):
            return None
        watched = watch.seen_for(gap_seconds=_gap_seconds(settings), session=session)
        _shorten_leases(settings.lease_seconds, session=session)
        expired = expire_leases(session=session) if watched >= timedelta(seconds=settings.lease_seconds) else []
        idle = workers.idle_queues(heartbeat_seconds=settings.heartbeat_seconds, session=session)
        rung = due_doorbells(idle, ring_seconds=settings.ring_seconds, session=session)
    for doorbell in rung:
        ring(doorbell)
    return Reaped(expired, rung)


def expire_leases(*, session: Session) -> list[Expired]:
    """Take the jobs of workers that have been silent for longer than their lease, by the database's clock."""
    return _expire_where(Job.lease_expires_at < db_now(), "was silent for longer than its lease", session=session)


def expire_of(worker_id: str, *, session: Session) -> list[Expired]:
    """Take the jobs leased under the name of a worker that begins anew: whoever held them is gone.

    Were that process alive after all, its writes would be refused.
    """
    return _expire_where(Job.worker_id == worker_id, "was started again", session=session)


def due_doorbells(idle_queues: Collection[str], *, ring_seconds: float, session: Session) -> list[Doorbell]:
    """Queued jobs that were never announced, or not for `ring_seconds` although they may begin and a worker is idle.

    Where all are busy, nobody would answer: messages would pile up behind a long training for as long as it takes.

    Returns:
        In queue order; now they count as announced.
    """
    may_begin = Job.dataset_id.in_(select(Dataset.id).where(Dataset.state.in_(LOOKED_THROUGH)))
    long_ago = or_(Job.last_rung_at <= db_now(-ring_seconds), Job.last_rung_at > db_now(ring_seconds))  # the clock!
    unheard = and_(long_ago, Job.queue.in_(idle_queues), may_begin)
    due = or_(Job.last_rung_at.is_(None), unheard)
    statement = update(Job).where(Job.state == State.QUEUED, due).values(last_rung_at=db_now())
    rows = session.execute(
        statement.returning(Job.priority, Job.created_at, Job.id, Job.queue),
        execution_options={"synchronize_session": False},
    )
    in_order = sorted(rows, key=lambda row: (row.priority, row.created_at, row.id))
    return [Doorbell(row.id, row.queue, row.priority) for row in in_order]


def _shorten_leases(lease_seconds: float, *, session: Session) -> None:
    """Leases that end in a far future were written before the clock was set back: who is alive writes another."""
    endless = (Job.lease_token.is_not(None), Job.lease_expires_at > db_now(leases.FAR * lease_seconds))
    session.execute(
        update(Job).where(*endless).values(lease_expires_at=db_now(lease_seconds)),
        execution_options={"synchronize_session": False},
    )


def _expire_where(condition: ColumnElement[bool], why: str, *, session: Session) -> list[Expired]:
    held = select(Job).where(Job.lease_token.is_not(None), condition).order_by(Job.id)
    jobs = session.scalars(held.with_for_update(skip_locked=True), execution_options={"populate_existing": True}).all()
    return [_expire(job, why, session=session) for job in jobs]


def _expire(job: Job, why: str, *, session: Session) -> Expired:
    attempt = job.attempt
    detail = f"worker {job.worker_id} {why}"
    state = try_again(job, Outcome.LOST, reason=WORKER_LOST, detail=detail, session=session)
    return Expired(job.id, attempt, state)


def _gap_seconds(settings: Settings) -> float:
    """The longest pause between two rounds in which no lease of an owner that is well can have run out.

    An owner renews once in a heartbeat, and needs some of the next to notice that the database is back.
    """
    return max(settings.lease_seconds - 1.5 * settings.heartbeat_seconds, 3 * settings.reaper_seconds)
