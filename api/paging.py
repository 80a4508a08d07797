"""Cursors of lists: opaque to the client, a key of the last row to the server.

A cursor belongs to one list with its filters; a seal holds them together, so that one that was changed, or is used with
other filters, is refused and not answered with rows that do not follow.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from api.problems import ProblemError
from api.schemas import FieldProblem
from store.jobs import Cursor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def listing(name: str, **filters: Collection[str] | str | bool | None) -> str:
    """Names a list with its filters; the order of the values of a filter means nothing."""
    named = {key: value for key, value in filters.items() if value is not None}
    given = {key: value if isinstance(value, str | bool) else sorted(value) for key, value in named.items()}
    return json.dumps([name, given], sort_keys=True)


def encode(cursor: Cursor, of: str = "") -> str:
    """`of` is the list that the cursor belongs to, as `listing` names it."""
    key = f"{(cursor.created_at - _EPOCH) // _MICROSECOND}:{cursor.id}"
    seal = hashlib.sha256(f"{key} {of}".encode()).hexdigest()[:12]
    return urlsafe_b64encode(f"{key}:{seal}".encode()).decode().rstrip("=")


def decode(text: str, of: str = "") -> Cursor:
    """Raises:
    ProblemError: 422, the text is no cursor of this list.
    """
    try:
        micros, row_id, _ = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii").split(":")
        cursor = Cursor(_EPOCH + int(micros) * _MICROSECOND, row_id)
    except (ValueError, OverflowError):
        cursor = None
    if cursor is None or encode(cursor, of) != text:
        detail = "not a cursor of this list with these filters"
        expected = "next_cursor of a page that was asked for with the same filters"
        error = FieldProblem(code="cursor_invalid", field="cursor", detail=detail, expected=expected)
        raise ProblemError(422, "request_invalid", detail, errors=[error])
    return cursor
