"""API keys: `tid_<id>_<secret>`, of which only a hash is kept; and how much each may have queued."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from store.db import db_now
from store.errors import KeyUnfit, NotFound, QuotaExceeded
from store.ids import new_id
from store.jobs import Cursor
from store.models import ApiKey, Job, KeyScope
from store.states import ENDED

SCOPES: Final[tuple[KeyScope, ...]] = ("read", "write", "admin")
"""Each includes those before it."""
FORMAT: Final = re.compile(r"tid_([0-9a-f]{12})_[0-9a-f]{64}")
"""The beginning is for scanners that look for secrets in what gets published."""
_SECRET_BYTES: Final = 32
_USED_EVERY: Final = 60.0
_NOBODY: Final = hashlib.sha256(b"").hexdigest()


class Issued(NamedTuple):
    row: ApiKey
    key: str
    """The key itself: shown once, and nowhere kept."""


class Quota(NamedTuple):
    """What the jobs of one key that have not ended may come to; 0 = no limit."""

    jobs: int
    gpus: int


def create(
    name: str,
    scope: KeyScope,
    *,
    valid_for: timedelta | None = None,
    rate_per_minute: int | None = None,
    quota: tuple[int | None, int | None] = (None, None),
    session: Session,
) -> Issued:
    """A new key. What is None is as the settings say."""
    key_id = new_id()
    key = f"tid_{key_id}_{secrets.token_hex(_SECRET_BYTES)}"
    row = ApiKey(id=key_id, name=name, scope=scope, hash=digest(key), rate_per_minute=rate_per_minute)
    row.max_jobs, row.max_gpus = quota
    row.expires_at = db_now(valid_for.total_seconds()) if valid_for else None
    session.add(row)
    session.flush()
    session.refresh(row)
    return Issued(row, key)


def adopt(key: str, name: str, scope: KeyScope, *, session: Session) -> tuple[ApiKey, bool]:
    """A key that was made elsewhere, as a secret file of a deployment is: from now on it is one of this database.

    Doing it again changes nothing, so that every start may; a key that was revoked stays so.

    Returns:
        Its row, and whether that is new.

    Raises:
        KeyUnfit: it does not look like a key, or another secret has its id.
    """
    key_id = id_of(key)
    if key_id is None:
        raise KeyUnfit("not an API key: one is tid_, 12 hex digits, _, and 64 random hex digits")
    row = session.get(ApiKey, key_id)
    if row is not None:
        if not fits(key, row.hash):
            raise KeyUnfit(f"the id {key_id} belongs to a key with another secret; make a new key, with a new id")
        return row, False
    row = ApiKey(id=key_id, name=name, scope=scope, hash=digest(key))
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, True


def digest(key: str) -> str:
    """A plain SHA-256: slow hashes are for what people think of. 256 random bits cannot be guessed from their hash,
    and a slow one would be paid for with every request."""
    return hashlib.sha256(key.encode()).hexdigest()


def id_of(key: str) -> str | None:
    """The id in a text that looks like a key."""
    match = FORMAT.fullmatch(key)
    return match[1] if match else None


def fits(key: str, known: str | None) -> bool:
    """Whether `known` is the hash of the key; takes the same time whether or not there is one."""
    return hmac.compare_digest(digest(key), known or _NOBODY) and known is not None


def page(*, session: Session, limit: int = 50, after: Cursor | None = None) -> list[ApiKey]:
    """Keys, newest first, revoked ones as well."""
    statement = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(after.older(ApiKey.created_at, ApiKey.id))
    return list(session.scalars(statement))


def usable(*, session: Session) -> list[ApiKey]:
    """Keys that are neither revoked nor expired, by the database's clock."""
    lasting = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now())
    return list(session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None), lasting)))


def exist(*, session: Session) -> bool:
    """Whether a key was ever made: from then on the service answers to keys alone, also when all are revoked."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def revoke(key_id: str, *, session: Session) -> ApiKey:
    """End a key; its row stays. Revoking twice is no error.

    Raises:
        NotFound: there is no such key.
    """
    ended = update(ApiKey).where(ApiKey.id == key_id).values(revoked_at=func.coalesce(ApiKey.revoked_at, db_now()))
    row: ApiKey | None = session.scalar(ended.returning(ApiKey), execution_options={"populate_existing": True})
    if row is None:
        raise NotFound("key", key_id)
    return row


def note_used(key_ids: Collection[str], *, session: Session) -> None:
    """These keys were used just now; written at most once a minute."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < db_now(-_USED_EVERY))
    statement = update(ApiKey).where(ApiKey.id.in_(key_ids), stale).values(last_used_at=db_now())
    session.execute(statement, execution_options={"synchronize_session": False})


def check_quota(key_id: str, default: Quota, *, session: Session) -> None:
    """To be called last in the transaction that adds jobs: those are counted as well, and a second transaction of the
    same key waits here until this one has ended.

    Raises:
        QuotaExceeded: the jobs of the key that have not ended are more than it may have, or ask for more GPUs.
    """
    row = session.get(ApiKey, key_id)
    if row is None or not any(_quota(row, default)):
        return
    # On SQLite the write transaction itself is the lock.
    locked = select(ApiKey).where(ApiKey.id == key_id).with_for_update(key_share=True)
    quota = _quota(session.scalars(locked, execution_options={"populate_existing": True}).one(), default)
    gpus = func.coalesce(func.sum(Job.spec["resources"]["gpus"].as_integer() * Job.nodes), 0)
    going_on = select(func.count(), gpus).where(Job.created_by == key_id, Job.state.not_in(ENDED))
    has = Quota(*session.execute(going_on).one())
    for what, number, limit in (("jobs that have not ended", has.jobs, quota.jobs), ("GPUs", has.gpus, quota.gpus)):
        if limit and number > limit:
            raise QuotaExceeded(row.name, what, number, limit)


def _quota(row: ApiKey, default: Quota) -> Quota:
    return Quota(
        default.jobs if row.max_jobs is None else row.max_jobs,
        default.gpus if row.max_gpus is None else row.max_gpus,
    )
