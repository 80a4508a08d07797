"""The audit log: in the transaction of what it tells of, bounded, and without what was sent."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.gate.trail import Trail
from store import audit, keys
from store.db import Database
from store.models import ApiKey, AuditEntry

Make = Callable[..., dict[str, str]]


@pytest.fixture
def admin(client: TestClient, database: Database) -> dict[str, str]:
    with database.write() as session:
        issued = keys.create("boss", "admin", session=session)
    client.app.state.parts.keys.forget()  # type: ignore[attr-defined]
    return {"Authorization": f"Bearer {issued.key}"}


@pytest.fixture
def trail(client: TestClient) -> Trail:
    trail: Trail = client.app.state.parts.trail  # type: ignore[attr-defined]
    return trail


def entries(database: Database) -> list[tuple[Any, ...]]:
    with database.read() as session:
        rows = reversed(audit.page(session=session, limit=1000))
        return [(row.method, row.path, row.status, row.code, row.target, row.count) for row in rows]


def test_what_is_written_is_noted_with_it_by_whom(
    client: TestClient, pets: str, spec: Callable[..., Any], admin: dict[str, str], database: Database
) -> None:
    job = client.post("/jobs", json=spec(name="hush"), headers={**admin, "X-Request-ID": "mine"}).json()
    client.post(f"/jobs/{job['id']}/cancel", headers=admin)
    client.get(f"/jobs/{job['id']}", headers=admin)
    client.post("/jobs?dry_run=true", json=spec(), headers=admin)
    sweep = client.post(
        "/sweeps", json={"name": "s", "base": spec(), "axes": {"training.lr": [0.1, 0.2]}}, headers=admin
    ).json()
    assert entries(database) == [  # and nothing had to be waited for
        ("POST", "/jobs", 201, None, f"jobs/{job['id']}", 1),
        ("POST", f"/jobs/{job['id']}/cancel", 202, None, None, 1),
        ("POST", "/sweeps", 201, None, f"sweeps/{sweep['id']}", 1),
    ]
    with database.read() as session:
        first = session.scalars(select(AuditEntry).order_by(AuditEntry.at)).first()
        assert first is not None
        assert (first.key_id, first.request_id) == (session.scalars(select(ApiKey.id)).one(), "mine")
        assert "hush" not in str([vars(row) for row in session.scalars(select(AuditEntry))])


def test_a_replayed_answer_wrote_nothing(
    client: TestClient, pets: str, spec: Callable[..., Any], admin: dict[str, str], database: Database
) -> None:
    for _ in range(3):
        client.post("/jobs", json=spec(), headers={**admin, "Idempotency-Key": "k"})
    assert len(entries(database)) == 1


def test_what_is_refused_is_counted_and_written_soon(
    client: TestClient, admin: dict[str, str], database: Database, trail: Trail
) -> None:
    for _ in range(5):
        client.get("/jobs")
    client.post("/jobs", json={"password": "hunter2"}, headers=admin)
    client.get("/jobs/nope", headers=admin)  # a question with a wrong name is no attempt at anything
    trail.flush()
    assert sorted(entries(database)) == [
        ("GET", "/jobs", 401, "key_missing", None, 5),
        ("POST", "/jobs", 422, "request_invalid", None, 1),
    ]
    told = client.get("/audit", headers=admin)
    assert "hunter2" not in told.text
    refused = client.get("/audit?refused=true", headers=admin).json()["data"]  # written in one go: of one instant
    assert sorted(one["status"] for one in refused) == [401, 422]
    assert client.get("/audit?refused=false", headers=admin).json()["data"] == []


def test_an_entry_goes_with_what_was_rolled_back(
    client: TestClient, pets: str, spec: Callable[..., Any], database: Database, trail: Trail
) -> None:
    with database.write() as session:
        issued = keys.create("small", "write", quota=(1, None), session=session)
    client.app.state.parts.keys.forget()  # type: ignore[attr-defined]
    has = {"Authorization": f"Bearer {issued.key}"}
    assert [client.post("/jobs", json=spec(), headers=has).status_code for _ in range(2)] == [201, 403]
    assert [one[2] for one in entries(database)] == [201]
    trail.flush()
    assert [one[2:4] for one in entries(database)] == [(201, None), (403, "quota_exceeded")]


def test_an_upload_that_fails_late_says_so(
    client: TestClient, admin: dict[str, str], database: Database, trail: Trail
) -> None:
    """Its first transaction is noted before it is known how it ends."""
    client.post("/datasets", json={"name": "mine"}, headers=admin)
    answer = client.put("/datasets/mine/archive", content=b"no archive", headers=admin)
    assert answer.status_code == 422
    trail.flush()
    assert [one[:4] for one in entries(database)] == [
        ("POST", "/datasets", 201, None),
        ("PUT", "/datasets/mine/archive", 422, "archive_unknown"),
    ]


def test_whoever_is_refused_cannot_fill_the_disk(
    client: TestClient, admin: dict[str, str], database: Database, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(150):
        client.get(f"/nothing/{number}" + "x" * 500)
    trail.flush()
    found = entries(database)
    assert len(found) == 101
    assert sum(one[-1] for one in found) == 150
    assert all(len(one[1]) <= 200 for one in found)
    monkeypatch.setattr(audit, "MAX_REFUSALS", 10)
    trail.prune()
    assert len(entries(database)) == 10


def test_old_entries_go_and_what_was_done_outlives_refusals(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        "key_id": None,
        "peer": None,
        "method": "POST",
        "path": "/",
        "target": None,
        "code": None,
        "request_id": "r",
    }
    monkeypatch.setattr(audit, "MAX_REFUSALS", 3)
    for status in (201, *[401] * 8, 202):
        with database.write() as session:
            audit.add_all([{**plain, "status": status}], session=session)
    with database.write() as session:
        audit.prune(days=0, session=session)
    assert [one[2] for one in entries(database) if one[2] < 400] == [201, 202]
    assert 1 <= sum(one[2] == 401 for one in entries(database)) <= 3
    with database.write() as session:
        audit.prune(days=1e-9, session=session)
    assert entries(database) == []


def test_pages_of_the_log_are_stable(client: TestClient, admin: dict[str, str], trail: Trail) -> None:
    for number in range(5):
        client.post("/datasets", json={"name": f"d{number}"}, headers=admin)
    seen, cursor = [], None
    while True:
        page = client.get("/audit", params={"limit": 2, **({"cursor": cursor} if cursor else {})}, headers=admin).json()
        seen += [one["id"] for one in page["data"]]
        client.post("/datasets", json={"name": f"later-{len(seen)}"}, headers=admin)
        if not (cursor := page["next_cursor"]):
            break
    assert len(seen) == len(set(seen)) == 5


def test_last_use_is_written_at_most_once_a_minute(
    client: TestClient, admin: dict[str, str], database: Database, trail: Trail
) -> None:
    def last_used() -> Any:
        with database.read() as session:
            return session.scalars(select(ApiKey)).one().last_used_at

    assert last_used() is None
    client.get("/jobs", headers=admin)
    trail.flush()
    first = last_used()
    assert first is not None
    for _ in range(3):
        client.get("/jobs", headers=admin)
    assert not trail.ring.used
    with database.write() as session:
        keys.note_used({session.scalars(select(ApiKey.id)).one()}, session=session)
    assert last_used() == first


def test_what_cannot_be_written_now_is_written_later(
    client: TestClient, admin: dict[str, str], database: Database, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/jobs")

    def away() -> Any:
        raise OSError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(trail.database, "write", away)
        with pytest.raises(OSError, match="away"):
            trail.flush()
    client.get("/jobs")
    trail.flush()
    assert entries(database) == [("GET", "/jobs", 401, "key_missing", None, 2)]
