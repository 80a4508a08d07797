"""Since when the database has been there for everybody: a lease that ran out while it was away is no worker's fault."""

from datetime import timedelta
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db import EPOCH, db_now
from store.models import Lease

_LAST: Final = "rounds-last"
_SINCE: Final = "rounds-since"


def seen_for(*, gap_seconds: float, session: Session) -> timedelta:
    """Note a round of the reaper, and say how long its rounds have followed each other, by the database's clock.

    A pause of more than `gap_seconds` between two begins the count anew: the database was away, or everybody who looks
    for expired leases was, or its clock was set. Owners may have had no chance to renew their leases.
    For ever, where no pause is known of.
    """
    now = session.scalars(select(db_now())).one()
    last, since = _row(_LAST, session), _row(_SINCE, session)
    if last.expires_at != EPOCH and abs(now - last.expires_at) > timedelta(seconds=gap_seconds):
        since.expires_at = now
    last.expires_at = now
    session.flush()
    return now - since.expires_at


def _row(name: str, session: Session) -> Lease:
    """Nobody takes these leases: each holds a time."""
    row = session.get(Lease, name, populate_existing=True)
    if row is None:
        row = Lease(name=name, token="", expires_at=EPOCH)
        session.add(row)
    return row
