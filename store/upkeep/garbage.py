"""What nobody needs any more: found, told and deleted, one thing at a time, so that an interruption loses nothing.

Rows go before their files: what an interruption leaves are files that no row names, which the next round takes.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Delete, Select, delete, func, select

from store.artifacts import open_artifacts
from store.db import Database, db_now
from store.models import Job, Metric, ResumeState, Worker
from store.settings import Settings
from store.states import ENDED
from store.upkeep import files

LEASE: Final = "gc"
_DAY: Final = 86_400.0


class Kind(StrEnum):
    STATES = "resume states of jobs that ended without a result"
    METRICS = "superseded points of curves"
    WORKERS = "workers that are long gone"
    ORPHANS = "artifacts that no row names"
    SCRATCH = "working folders of attempts that are over"
    STRANGERS = "files of jobs and datasets that this database does not know"


class Waste(NamedTuple):
    """One thing that may go."""

    kind: Kind
    name: str
    number: int
    """Of files or rows."""
    num_bytes: int
    delete: Callable[[], None]


def find(database: Database, settings: Settings) -> Iterator[Waste]:
    """All of it; nothing is changed before `delete` of what was found is called.

    Strangers are among it: whoever calls decides whether this database is the only one that has files there.
    """
    yield from _states(database, settings)
    yield from _points(database, settings)
    yield from _workers(database, settings)
    named = {"artifact": Kind.ORPHANS, "scratch": Kind.SCRATCH, "stranger": Kind.STRANGERS}
    for found in files.unclaimed(database, settings):
        yield Waste(named[found.what], found.name, found.number, found.num_bytes, found.delete)


def _states(database: Database, settings: Settings) -> Iterator[Waste]:
    """They wait for a retry, for a while."""
    days, artifacts = settings.gc_resume_days, open_artifacts(settings)
    for job_id in _long_ended(database, select(ResumeState.job_id), days):
        with database.read() as session:
            keys = list(session.scalars(select(ResumeState.key).where(ResumeState.job_id == job_id)))
        size = sum(file.num_bytes for key in keys for file in artifacts.listing(key))
        rows = delete(ResumeState).where(ResumeState.job_id == job_id, ResumeState.key.in_(keys))
        remove = partial(_delete, database, job_id, days, rows, [partial(artifacts.delete, key) for key in keys])
        yield Waste(Kind.STATES, f"job {job_id}", len(keys), size, remove)


def _points(database: Database, settings: Settings) -> Iterator[Waste]:
    """Only a job with several attempts has any."""
    days = settings.gc_metrics_days
    for job_id in _long_ended(database, select(Job.id).where(Job.attempt > 1), days):
        these = (Metric.job_id == job_id, Metric.superseded)
        with database.read() as session:
            number = session.scalars(select(func.count()).select_from(Metric).where(*these)).one()
        if number:
            remove = partial(_delete, database, job_id, days, delete(Metric).where(*these))
            yield Waste(Kind.METRICS, f"job {job_id}", number, 0, remove)


def _workers(database: Database, settings: Settings) -> Iterator[Waste]:
    """One that drains is remembered, so that it takes no jobs when it comes back."""
    owners = select(Job.worker_id).where(Job.lease_token.is_not(None), Job.worker_id.is_not(None))
    silent = Worker.heartbeat_at < db_now(-_DAY * settings.gc_worker_days)
    gone = silent & Worker.draining.is_(None) & Worker.id.not_in(owners)
    with database.read() as session:
        ids = list(session.scalars(select(Worker.id).where(gone).order_by(Worker.id)))
    for worker_id in ids:
        statement = delete(Worker).where(gone, Worker.id == worker_id)
        yield Waste(Kind.WORKERS, worker_id, 1, 0, partial(_execute, database, statement))


def _long_ended(database: Database, ids: Select[str], days: float) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Job.id).where(Job.id.in_(ids), _ended_before(days)).order_by(Job.id)))


def _ended_before(days: float) -> ColumnElement[bool]:
    return Job.state.in_(ENDED) & (Job.ended_at < db_now(-_DAY * days))


def _delete(
    database: Database, job_id: str, days: float, rows: Delete, follow_up: Sequence[Callable[[], None]] = ()
) -> None:
    """Delete rows of a job unless it was retried meanwhile, which this transaction keeps it from; then the rest."""
    with database.write() as session:
        locked = select(Job.id).where(Job.id == job_id, _ended_before(days)).with_for_update()
        if session.scalar(locked) is None:
            return
        session.execute(rows, execution_options={"synchronize_session": False})
    for action in follow_up:
        action()


def _execute(database: Database, statement: Delete) -> None:
    with database.write() as session:
        session.execute(statement, execution_options={"synchronize_session": False})
