"""Cursors of lists: opaque to the client, a key of the last row to the server."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

from api.problems import ProblemError
from api.schemas import FieldProblem
from store.jobs import Cursor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode(cursor: Cursor) -> str:
    text = f"{(cursor.created_at - _EPOCH) // _MICROSECOND}:{cursor.id}"
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """Raises:
    ProblemError: 422, the text is no cursor.
    """
    try:
        micros, _, job_id = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii").partition(":")
        cursor = Cursor(_EPOCH + int(micros) * _MICROSECOND, job_id)
    except (ValueError, OverflowError):
        cursor = None
    if cursor is None or not cursor.id.isalnum():
        error = FieldProblem(
            code="cursor_invalid", field="cursor", detail="not a cursor of this list", expected="next_cursor of a page"
        )
        raise ProblemError(422, "request_invalid", error.detail, errors=[error])
    return cursor
