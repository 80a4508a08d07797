"""States that a training can continue from."""

from typing import Final

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.fencing import Claim, guard
from store.models import ResumeState

KEPT: Final = 2
"""The newest may turn out to be damaged; the one before it is the spare."""


def record(claim: Claim, *, step: int, epoch: int, key: str, session: Session) -> list[str]:
    """Note a complete state in the artifact store; `key` names it as a whole.

    Returns:
        Keys of states that are no longer wanted, to be deleted after the commit.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    guard(claim, session=session)
    before = set(keys(claim.job_id, session=session))
    row = {"epoch": epoch, "key": key, "attempt": claim.attempt}
    insert = upsert(session, ResumeState).values(job_id=claim.job_id, step=step, created_at=db_now(), **row)
    replaced = {name: insert.excluded[name] for name in ("epoch", "key", "attempt", "created_at")}
    session.execute(insert.on_conflict_do_update(index_elements=["job_id", "step"], set_=replaced))
    newest = _newest(claim.job_id, session=session)[:KEPT]
    stale = tuple_(ResumeState.job_id, ResumeState.step).not_in([(state.job_id, state.step) for state in newest])
    session.execute(delete(ResumeState).where(ResumeState.job_id == claim.job_id, stale))
    return sorted(before - {state.key for state in newest})


def forget(claim: Claim, *, session: Session) -> list[str]:
    """A job that has its result continues from nothing, and its states are its largest files.

    Returns:
        Keys of the states, to be deleted after the commit.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    guard(claim, session=session)
    outdated = keys(claim.job_id, session=session)
    session.execute(delete(ResumeState).where(ResumeState.job_id == claim.job_id))
    return outdated


def keys(job_id: str, *, session: Session) -> list[str]:
    """Keys of the states to continue from, the first choice first."""
    return [state.key for state in _newest(job_id, session=session)]


def _newest(job_id: str, *, session: Session) -> list[ResumeState]:
    # The latest attempt first: where it began before an older state, that state could not be used.
    order = (ResumeState.attempt.desc(), ResumeState.step.desc())
    statement = select(ResumeState).where(ResumeState.job_id == job_id).order_by(*order)
    return list(session.scalars(statement, execution_options={"populate_existing": True}))
