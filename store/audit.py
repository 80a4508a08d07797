"""The audit log: what was written by whom, and what was refused."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from store.db import db_now
from store.ids import new_id
from store.jobs import Cursor
from store.models import AuditEntry, Json

MAX_REFUSALS: Final = 10_000
"""The newest that are kept: whoever is refused must not be able to fill the disk."""
REFUSED: Final = 400
"""Statuses from here on are refusals."""
_DAY_SECONDS: Final = 86_400.0


def add_all(entries: Iterable[Json], *, session: Session) -> None:
    rows = [{"id": new_id(), "count": 1, **entry} for entry in entries]
    if rows:
        session.execute(insert(AuditEntry).values(at=db_now()), rows)


def page(
    *,
    session: Session,
    limit: int = 50,
    after: Cursor | None = None,
    key_id: str | None = None,
    refused: bool | None = None,
) -> list[AuditEntry]:
    """Entries, newest first; those of one key, and only refusals or only what was done, where that is asked for."""
    statement = select(AuditEntry).order_by(AuditEntry.at.desc(), AuditEntry.id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(after.older(AuditEntry.at, AuditEntry.id))
    if key_id is not None:
        statement = statement.where(AuditEntry.key_id == key_id)
    if refused is not None:
        statement = statement.where(AuditEntry.status >= REFUSED if refused else AuditEntry.status < REFUSED)
    return list(session.scalars(statement))


def prune(*, days: float, session: Session) -> int:
    """Forget what is older than `days` (0 = nothing is), and refusals beyond the newest MAX_REFUSALS.

    Returns:
        How many entries went.
    """
    refusal = AuditEntry.status >= REFUSED
    newest_first = select(AuditEntry.id).where(refusal).order_by(AuditEntry.at.desc(), AuditEntry.id.desc())
    gone = [delete(AuditEntry).where(AuditEntry.id.in_(newest_first.offset(MAX_REFUSALS)))]
    if days:
        gone.append(delete(AuditEntry).where(AuditEntry.at < db_now(-days * _DAY_SECONDS)))
    number = 0
    for statement in gone:
        done: Any = session.execute(statement, execution_options={"synchronize_session": False})
        number += done.rowcount
    return number
