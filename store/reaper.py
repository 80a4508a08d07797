"""What keeps jobs from being lost: jobs of silent workers go back to the queue, and the queue is announced again."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, false, or_, select, update
from sqlalchemy.orm import Session

from store import leases, seats, watch, workers
from store.db import Database, db_now
from store.endings import try_again
from store.models import Dataset, Job, Seat, Worker
from store.placement import CHOOSY, Gpus, within
from store.reasons import WORKER_LOST
from store.settings import Settings
from store.states import Outcome, State
from store.waiting import LOOKED_THROUGH, ORDER

LEASE: Final = "reaper"
LEASE_ROUNDS: Final = 5
_MOST_RUNG: Final = 1000
"""In one round: what is written is locked, and a claim passes over what is locked."""


class Doorbell(NamedTuple):
    """A queued job to be announced to the workers of its queue."""

    job_id: str
    queue: str
    """Of the broker: that of the job, or the bell of one worker."""
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
        idle = workers.idle(heartbeat_seconds=settings.heartbeat_seconds, session=session)
        queues = {queue for worker in idle for queue in worker.queues}
        rung = due_for_seats(idle, ring_seconds=settings.ring_seconds, session=session)
        rung += due_doorbells(queues, ring_seconds=settings.ring_seconds, session=session)
        rung += due_for_some(idle, ring_seconds=settings.ring_seconds, session=session)
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
    unheard = and_(_long_ago(ring_seconds), Job.queue.in_(idle_queues), _looked_through())
    due = or_(Job.last_rung_at.is_(None), unheard)
    rows = _queued(~CHOOSY, due, limit=_MOST_RUNG, session=session)
    _count_as_announced([row.id for row in rows], session=session)
    return [Doorbell(row.id, row.queue, row.priority) for row in rows]


def due_for_some(idle: Iterable[Worker], *, ring_seconds: float, session: Session) -> list[Doorbell]:
    """The same for jobs that not every worker may take: at the bells of idle workers that may, one for each at most.

    A message in the job's queue might wake only workers that have to leave it. Where none that may take it is idle,
    nobody is woken.
    """
    free = list(idle)
    kinds = {(tuple(worker.queues), Gpus.of(worker)) for worker in free}
    for_them = or_(false(), *(and_(Job.queue.in_(queues), within(*gpus)) for queues, gpus in kinds))
    due = or_(Job.last_rung_at.is_(None), _long_ago(ring_seconds))
    rung: dict[str, list[Doorbell]] = {}
    for job in _queued(CHOOSY, due, for_them, _looked_through(), session=session):
        if not free:
            break
        fit = [one for one in free if job.queue in one.queues and Gpus.wanted(job).fit(Gpus.of(one))][: job.nodes]
        free = [one for one in free if one not in fit]
        if fit:
            rung[job.id] = [Doorbell(job.id, workers.bell(one.id), job.priority) for one in fit]
    _count_as_announced(rung, session=session)
    return [bell for bells in rung.values() for bell in bells]


def due_for_seats(idle: Sequence[Worker], *, ring_seconds: float, session: Session) -> list[Doorbell]:
    """Seats beside the owner of a job that nobody has taken: a bell for each, of an idle worker that may take it."""
    due = [seat for seat in seats.waiting(ring_seconds=ring_seconds, session=session) if seat.is_due]
    if not due:
        return []
    occupied = seats.occupied(session=session)
    free = [worker for worker in idle if worker.id not in occupied]
    rung: dict[seats.OpenSeat, Worker] = {}
    for seat in due:
        gpus = Gpus(seat.gpus_wanted, seat.min_gpu_memory_mib)
        fit = next((one for one in free if seat.queue in one.queues and gpus.fit(Gpus.of(one))), None)
        if fit is not None:
            free.remove(fit)
            rung[seat] = fit
    seats.count_as_announced(rung, session=session)
    return [Doorbell(seat.job_id, workers.bell(worker.id), seat.priority) for seat, worker in rung.items()]


def _queued(*which: ColumnElement[bool], session: Session, limit: int | None = None) -> list[Any]:
    """Of queued jobs what a worker is found for them by, in queue order."""
    wanted = (Job.id, Job.priority, Job.queue, Job.nodes, Job.gpus_wanted, Job.min_gpu_memory_mib)
    statement = select(*wanted).where(Job.state == State.QUEUED, *which).order_by(*ORDER).limit(limit)
    return list(session.execute(statement))


def _count_as_announced(ids: Collection[str], *, session: Session) -> None:
    session.execute(
        update(Job).where(Job.id.in_(ids), Job.state == State.QUEUED).values(last_rung_at=db_now()),
        execution_options={"synchronize_session": False},
    )


def _looked_through() -> ColumnElement[bool]:
    return Job.dataset_id.in_(select(Dataset.id).where(Dataset.state.in_(LOOKED_THROUGH)))


def _long_ago(ring_seconds: float) -> ColumnElement[bool]:
    return or_(Job.last_rung_at <= db_now(-ring_seconds), Job.last_rung_at > db_now(ring_seconds))  # the clock!


def _shorten_leases(lease_seconds: float, *, session: Session) -> None:
    """Leases that end in a far future were written before the clock was set back: who is alive writes another."""
    far = db_now(leases.FAR * lease_seconds)
    of_jobs = update(Job).where(Job.lease_token.is_not(None), Job.lease_expires_at > far)
    of_seats = update(Seat).where(Seat.token.is_not(None), Seat.lease_expires_at > far)
    for endless in (of_jobs, of_seats):
        session.execute(
            endless.values(lease_expires_at=db_now(lease_seconds)), execution_options={"synchronize_session": False}
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
