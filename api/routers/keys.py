"""API keys: make, list, revoke; and the audit log. For administrators."""

from typing import Annotated

from fastapi import Query, Response

from api import paging
from api.deps import PartsDep, ReadSession
from api.gate.schemas import AuditEntry, Key, KeyIn, NewKey
from api.routing import Router
from api.schemas import Page
from store import audit, keys
from store.jobs import Cursor

router = Router()

CursorText = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200)]


@router.post("/keys", tags=["keys"], name="create", status_code=201)
def create(body: KeyIn, parts: PartsDep, response: Response) -> NewKey:
    """Make a key. The answer is the only place where it is ever shown.

    From the first key on, the service answers to keys alone.
    """
    with parts.database.write() as session:
        issued = keys.create(
            body.name,
            body.scope,
            valid_for=body.valid_for,
            rate_per_minute=body.rate_per_minute,
            quota=(body.max_jobs, body.max_gpus),
            session=session,
        )
    parts.keys.forget()
    response.headers["Cache-Control"] = "no-store"
    return NewKey.model_validate({**Key.model_validate(issued.row).model_dump(), "key": issued.key})


@router.get("/keys", tags=["keys"], name="list")
def list_keys(session: ReadSession, limit: Limit = 50, cursor: CursorText = None) -> Page[Key]:
    """Keys, newest first, revoked ones as well."""
    of = paging.listing("keys")
    rows = keys.page(session=session, limit=limit + 1, after=paging.decode(cursor, of) if cursor else None)
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(Cursor(shown[-1].created_at, shown[-1].id), of) if has_more else None
    return Page(data=[Key.model_validate(row) for row in shown], has_more=has_more, next_cursor=following)


@router.delete("/keys/{key_id}", tags=["keys"], name="revoke")
def revoke(key_id: str, parts: PartsDep) -> Key:
    """Revoke a key, at once in this process and within seconds in others. Its row stays. Twice is no error.

    When the last one goes, the service stays closed: `tid keys create` on the server's machine makes another.
    """
    with parts.database.write() as session:
        row = keys.revoke(key_id, session=session)
    parts.keys.forget()
    return Key.model_validate(row)


@router.get("/audit", tags=["audit"], name="list")
def list_entries(
    session: ReadSession,
    key: Annotated[
        str | None, Query(max_length=40, pattern=r"^\w*$", description="Only of the key with this id.")
    ] = None,
    refused: Annotated[bool | None, Query(description="Only what was refused, or only what was done.")] = None,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> Page[AuditEntry]:
    """What was written and by whom, newest first, and what was refused. Entries hold no bodies and no keys."""
    of = paging.listing("audit", key=key, refused=refused)
    after = paging.decode(cursor, of) if cursor else None
    rows = audit.page(session=session, limit=limit + 1, after=after, key_id=key, refused=refused)
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(Cursor(shown[-1].at, shown[-1].id), of) if has_more else None
    return Page(data=[AuditEntry.model_validate(row) for row in shown], has_more=has_more, next_cursor=following)
