"""Who is no longer let in does not go on listening."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.gate import guard
from store import keys, metrics
from store.db import Database
from store.metrics import Point


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


def test_a_stream_ends_when_its_key_is_revoked(
    served: FastAPI,
    server: httpx.Client,
    submit: Callable[..., Any],
    start: Callable[..., Any],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(guard, "FRESH_SECONDS", 0.0)  # or it would be looked at every two seconds
    claim = start(submit()["id"])
    with database.write() as session:
        issued = keys.create("reader", "read", session=session)
    served.state.parts.keys.forget()
    has = {"Authorization": f"Bearer {issued.key}"}
    with server.stream("GET", f"/jobs/{claim.job_id}/events", headers=has) as response:
        lines = response.iter_lines()
        assert any(line == "event: state" for line in lines)
        with database.write() as session:
            keys.revoke(issued.row.id, session=session)
        served.state.parts.keys.forget()
        with database.write() as session:
            metrics.record(claim, [Point("loss", 1, 1, 0.5)], session=session)
        rest = "\n".join(lines)  # ends, and by itself
    assert "loss" not in rest
    assert "event: end" not in rest
    assert server.get("/jobs", headers=has).status_code == 401
    assert "failed" not in caplog.text
