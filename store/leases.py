"""Named leases: of many processes that could do a thing, one does it."""

from sqlalchemy import delete, or_
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.models import Lease


def acquire(name: str, token: str, *, seconds: float, session: Session) -> bool:
    """Take the lease, or extend it where `token` holds it already.

    Returns:
        Whether `token` holds it now.
    """
    insert = upsert(session, Lease).values(name=name, token=token, expires_at=db_now(seconds))
    free = or_(Lease.token == token, Lease.expires_at <= db_now())
    replaced = {column: insert.excluded[column] for column in ("token", "expires_at")}
    statement = insert.on_conflict_do_update(index_elements=["name"], set_=replaced, where=free)
    return session.scalar(statement.returning(Lease.name)) is not None


def release(name: str, token: str, *, session: Session) -> None:
    """Give the lease up, so that another need not wait for its end."""
    session.execute(delete(Lease).where(Lease.name == name, Lease.token == token))
