"""Forgetting a job: its rows in one transaction, its files after the commit."""

from typing import Final

from sqlalchemy import delete as sql_delete
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from store.artifacts import job_key
from store.errors import JobInUse
from store.fencing import locked
from store.models import Job
from store.states import ACTIONS, ENDED, Action, NotPossible

_USERS_NAMED: Final = 5


def delete(job_id: str, *, session: Session) -> str:
    """Forget a job that has ended. Its baseline twin, students that it taught and its sweep stay, without it.

    Returns:
        The key of the folder of its artifacts, to be deleted after the commit.

    Raises:
        NotFound: no such job.
        NotPossible: it has not ended.
        JobInUse: a job that has not ended learns from it, or begins with its weights.
    """
    folder = check(locked(job_id, session=session), session=session)
    session.execute(sql_delete(Job).where(Job.id == job_id))  # everything that belongs to it goes with it
    return folder


def check(job: Job, *, session: Session) -> str:
    """Whether it could be deleted now.

    Returns, raises:
        As `delete`.
    """
    if job.state not in ACTIONS[Action.DELETE]:
        raise NotPossible(Action.DELETE, job.id, job.state)
    if users := _users(job.id, session=session):
        raise JobInUse(job.id, users)
    return job_key(job.id)


def _users(job_id: str, *, session: Session) -> list[str]:
    begins_with = Job.spec["student"]["weights"]["job"].as_string() == job_id
    needs = or_(Job.teacher_job_id == job_id, begins_with)
    statement = select(Job.id).where(Job.state.not_in(ENDED), needs).order_by(Job.created_at, Job.id)
    return list(session.scalars(statement.limit(_USERS_NAMED)))
