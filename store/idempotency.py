"""Idempotency keys: of the requests with one key, one at a time may write (decision 014)."""

import hashlib

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store.errors import IdempotencyInFlight


def hold(kind: str, key: str, *, session: Session) -> None:
    """Hold a key until this write transaction ends, in whichever process the other requests with it are.

    On SQLite nothing is to be done: there is one write transaction at a time, and who comes second finds what the
    first one stored.

    Raises:
        IdempotencyInFlight: another transaction holds it.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    digest = hashlib.sha256(f"{kind}:{key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise IdempotencyInFlight(kind)
