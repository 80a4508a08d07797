"""Named leases: of many processes that could do a thing, one does it."""

from typing import Final

from sqlalchemy import delete, or_
from sqlalchemy.orm import Session

from store.db import db_now, upsert
from store.models import Lease

FAR: Final = 10
"""Times its length that a lease may be away from its end before nobody can have taken it so."""


def acquire(name: str, token: str, *, seconds: float, session: Session) -> bool:
    """Take the lease, or extend it where `token` holds it already.

    One that ends in a far future was taken before the clock was set back, and is free.

    Returns:
        Whether `token` holds it now.
    """
    insert = upsert(session, Lease).values(name=name, token=token, expires_at=db_now(seconds))
    too_long = Lease.expires_at > db_now(FAR * seconds)
    free = or_(Lease.token == token, Lease.expires_at <= db_now(), too_long)
    replaced = {column: insert.excluded[column] for column in ("token", "expires_at")}
    statement = insert.on_conflict_do_update(index_elements=["name"], set_=replaced, where=free)
    return session.scalar(statement.returning(Lease.name)) is not None


def release(name: str, token: str, *, session: Session) -> None:
    """Give the lease up, so that another need not wait for its end."""
    session.execute(delete(Lease).where(Lease.name == name, Lease.token == token))
