"""`tid logs` and what is behind it: a log that is followed over a wire that breaks."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from client.client import Client
from store import claims, logs
from store.db import Database
from store.fencing import Claim
from store.states import Outcome

LINES = [f"schöne Zeile {number} ß\n" for number in range(50)]


@pytest.fixture
def claim(client: Client, database: Database, spec: dict[str, Any]) -> Claim:
    """A job at work."""
    job = client.submit(spec)
    with database.write() as session:
        claim = claims.claim(job.id, "worker-1", lease_seconds=600, session=session)
        assert claim is not None
        claims.mark_started(claim, resumed_from_step=0, total_steps=1, epochs=1, session=session)
    return claim


def write(database: Database, claim: Claim, *lines: str, end: bool = False) -> None:
    with database.write() as session:
        logs.append(claim, "".join(lines), cap_bytes=1 << 20, session=session)
        if end:
            claims.finish(claim, Outcome.SUCCEEDED, session=session)


def test_a_log_is_followed_over_a_wire_that_breaks_within_a_character(
    cut_wire: Callable[..., AbstractContextManager[Any]], database: Database, claim: Claim
) -> None:
    write(database, claim, *LINES, end=True)
    size = len("".join(LINES).encode())
    # Of each try: the state of the job on one connection, the log on another, cut at odd places.
    with cut_wire(10_000, 600, 10_000, 613, 10_000, 700) as wire, Client(wire.url, backoff=0.01) as client:
        pieces = list(client.follow_logs(claim.job_id))
        assert wire.answered < 3 * size + 20_000
    assert "".join(pieces) == "".join(LINES)


def test_tid_logs_follow_stays_until_the_job_ends(tid: Callable[..., Any], database: Database, claim: Claim) -> None:
    write(database, claim, *LINES[:20])
    rest = threading.Timer(0.3, lambda: write(database, claim, *LINES[20:], end=True))
    rest.start()
    assert tid("logs", claim.job_id, "--follow").out == "".join(LINES)
    rest.join()
    assert tid("logs", claim.job_id, "--follow", "--attempt", 1).out == "".join(LINES)
