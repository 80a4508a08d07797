"""A log that is read while it is written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from api.schemas import LogChunk
from api.streams import hub, log_feed
from api.streams.hub import Hub
from store import claims, logs
from store.db import Database
from store.fencing import Claim
from store.states import Outcome

Submit = Callable[..., dict[str, Any]]
Start = Callable[[str], Claim]
CAP = 1 << 20


def append(database: Database, claim: Claim, text: str, cap: int = CAP) -> None:
    with database.write() as session:
        logs.append(claim, text, cap_bytes=cap, session=session)


def finish(database: Database, claim: Claim) -> None:
    with database.write() as session:
        claims.finish(claim, Outcome.SUCCEEDED, session=session)


def test_a_log_is_followed_to_the_end_and_gone_on_with(
    server: httpx.Client, database: Database, submit: Submit, start: Start
) -> None:
    claim = start(submit()["id"])
    append(database, claim, "grüße\n")
    with server.stream("GET", f"/jobs/{claim.job_id}/logs", params={"follow": "true", "offset": 2}) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["X-Accel-Buffering"] == "no"
        text, pieces = "", response.iter_text()
        while text != "üße\n":
            text += next(pieces)
        append(database, claim, "more ß\n")
        while text != "üße\nmore ß\n":
            text += next(pieces)
        append(database, claim, "last\n")
        finish(database, claim)
        text += "".join(pieces)
        assert text == "üße\nmore ß\nlast\n"
        reached = int(response.headers["X-Log-Offset"]) + len(text.encode())
    again = server.get(f"/jobs/{claim.job_id}/logs", params={"follow": "true", "offset": reached - 5})
    assert (again.text, again.headers["X-Log-Offset"]) == ("last\n", str(reached - 5))
    from_the_end = server.get(f"/jobs/{claim.job_id}/logs", params={"follow": "true", "offset": -5})
    assert (from_the_end.text, from_the_end.headers["X-Log-Offset"]) == ("last\n", str(reached - 5))


def test_what_cannot_be_followed_is_refused(client: TestClient, submit: Submit) -> None:
    where = f"/jobs/{submit()['id']}/logs"
    for query in ({"attempt": 1}, {"format": "json"}):
        refused = client.get(where, params={"follow": "true", **query})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, next(iter(query)))
    assert client.get("/jobs/000000000000/logs", params={"follow": "true"}).status_code == 404


@pytest.fixture
def follow(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Read along with a hub that looks often; `what` is given the pieces of the log."""
    monkeypatch.setattr(hub, "LOOK_SECONDS", 0.01)

    def follow(job_id: str, what: Callable[[AsyncIterator[bytes], Hub], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            own = Hub(database)
            begin = LogChunk(text="", offset=0, next_offset=0, truncated=False)
            try:
                return await what(log_feed.follow(own, job_id, begin), own)
            finally:
                await own.stop()

        return asyncio.run(inside())

    return follow


@pytest.mark.parametrize("kept", [1 << 18, 8])
def test_a_reader_who_stalls_misses_nothing(
    follow: Callable[..., Any], database: Database, submit: Submit, start: Start, monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:  # fmt: skip
    """From what is kept for all, and (where that is too little) from the database."""
    monkeypatch.setattr(log_feed, "_KEPT", kept)
    claim = start(submit()["id"])
    append(database, claim, "begin\n")
    lines = [f"line {number} ü\n" for number in range(40)]

    async def read(pieces: AsyncIterator[bytes], own: Hub) -> bytes:
        text = await anext(pieces) + await anext(pieces)
        assert text == b"begin\n"
        for line in lines:
            await asyncio.to_thread(append, database, claim, line)
        await asyncio.to_thread(finish, database, claim)
        return b"".join([piece async for piece in pieces])

    assert follow(claim.job_id, read).decode() == "".join(lines)


def test_a_stream_ends_before_a_hole(
    follow: Callable[..., Any], database: Database, submit: Submit, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest bytes were dropped before they were read: who comes back is told where the log begins now."""
    monkeypatch.setattr(log_feed, "_KEPT", 8)
    claim = start(submit()["id"])
    append(database, claim, "begin\n")

    async def read(pieces: AsyncIterator[bytes], own: Hub) -> list[bytes]:
        assert [await anext(pieces), await anext(pieces)] == [b"", b"begin\n"]
        for _ in range(4):
            await asyncio.to_thread(append, database, claim, "x" * 20_000, cap=30_000)
        return [piece async for piece in pieces]

    assert follow(claim.job_id, read) == []
