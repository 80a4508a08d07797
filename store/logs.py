"""The log of a job: what its training printed, addressed by bytes of UTF-8 from the very beginning."""

from typing import Final, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.fencing import Claim, guard
from store.models import LogChunk
from store.text import storable

_CHUNK: Final = 16_384
"""Characters per row: small enough that the cap is kept closely and a page reads few rows."""


class LogPage(NamedTuple):
    """A piece of a log. `start` lies beyond the offset asked for where the oldest bytes have been dropped."""

    text: str
    start: int
    end: int
    size: int
    """Bytes written so far; a page that ends here is the last for now."""


def append(claim: Claim, text: str, *, cap_bytes: int, session: Session) -> None:
    """Add to the log. Beyond the cap the oldest chunks go: the end says why a training failed.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    guard(claim, session=session)
    seq, end = _last(claim.job_id, session=session)
    text = storable(text)
    for number, first in enumerate(range(0, len(text), _CHUNK), start=seq + 1):
        piece = text[first : first + _CHUNK]
        size = len(piece.encode())
        chunk = {"offset": end, "bytes": size, "text": piece}
        session.add(LogChunk(job_id=claim.job_id, seq=number, attempt=claim.attempt, **chunk))
        end += size
    session.flush()
    too_old = LogChunk.offset + LogChunk.bytes <= end - cap_bytes
    statement = delete(LogChunk).where(LogChunk.job_id == claim.job_id, too_old)
    session.execute(statement, execution_options={"synchronize_session": False})


def read(job_id: str, *, offset: int = 0, limit_bytes: int = 1 << 20, session: Session) -> LogPage:
    """At most `limit_bytes` from `offset` on; a negative offset counts from the end. Characters are never split."""
    size = _last(job_id, session=session)[1]
    wanted = max(size + offset, 0) if offset < 0 else offset
    beyond = LogChunk.offset + LogChunk.bytes > wanted
    before = LogChunk.offset < wanted + limit_bytes + _CHUNK * 4
    statement = select(LogChunk.offset, LogChunk.text).where(LogChunk.job_id == job_id, beyond, before)
    rows = session.execute(statement.order_by(LogChunk.seq)).all()
    if not rows:
        return LogPage("", size, size, size)
    base = rows[0].offset
    data = b"".join(row.text.encode() for row in rows)
    start = _whole(data, max(wanted - base, 0), step=1)
    end = _whole(data, min(start + limit_bytes, len(data)), step=-1)
    return LogPage(data[start:end].decode(), base + start, base + end, size)


def tail(job_id: str, *, num_lines: int = 20, session: Session) -> str:
    """The last lines, for a failure's detail."""
    page = read(job_id, offset=-_CHUNK, session=session)
    return "\n".join(page.text.splitlines()[-num_lines:])


def size(job_id: str, *, session: Session) -> int:
    """Bytes written so far, with those that were dropped."""
    return _last(job_id, session=session)[1]


def _last(job_id: str, *, session: Session) -> tuple[int, int]:
    """Number of the newest chunk, and the bytes written so far."""
    statement = select(LogChunk.seq, LogChunk.offset + LogChunk.bytes).where(LogChunk.job_id == job_id)
    newest = session.execute(statement.order_by(LogChunk.seq.desc()).limit(1)).first()
    return (0, 0) if newest is None else (newest[0], newest[1])


def _whole(data: bytes, position: int, *, step: int) -> int:
    """The nearest position in the direction of `step` that does not split a character."""
    while 0 < position < len(data) and data[position] & 0xC0 == 0x80:
        position += step
    return position
