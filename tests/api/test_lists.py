"""Pages of every list: each row once, whatever is added or deleted meanwhile; cursors that are held to their list."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert

from store.db import Database
from store.ids import new_id
from store.models import Dataset, Job, Sweep

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LISTS = ("/jobs", "/sweeps", "/datasets")


@pytest.fixture
def add(database: Database, pets: str) -> Callable[..., list[str]]:
    """Rows of a list that were all made at the same instant; their ids."""
    with database.read() as session:
        dataset_id = session.query(Dataset).one().id
    spec = {"student": {"detector": "x"}, "teacher": None, "dataset": pets, "training": {"seed": 0}}

    def row(path: str) -> dict[str, Any]:
        common = {"id": new_id(), "name": f"row-{new_id()}", "created_at": NOON}
        if path == "/jobs":
            job = {"spec": spec, "method": "none", "queue": "default", "max_attempts": 1, "epochs": 1}
            return {**common, **job, "dataset_id": dataset_id}
        return {**common, "spec": {}} if path == "/sweeps" else {**common, "source": "archive", "state": "uploading"}

    def add(path: str, number: int) -> list[str]:
        rows = [row(path) for _ in range(number)]
        table = {"/jobs": Job, "/sweeps": Sweep, "/datasets": Dataset}[path]
        with database.write() as session:
            session.execute(insert(table), rows)
        return [one["id"] for one in rows]

    return add


@pytest.mark.parametrize("path", LISTS)
def test_each_row_comes_once_while_others_of_its_instant_come_and_go(
    client: TestClient, database: Database, add: Callable[..., list[str]], path: str
) -> None:
    table: Any = {"/jobs": Job, "/sweeps": Sweep, "/datasets": Dataset}[path]
    before = {row["id"] for row in client.get(path).json()["data"]}
    there = set(add(path, 16))
    seen: list[str] = []
    cursor, added, gone = None, set[str](), set[str]()
    for _ in range(100):
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=query).json()
        seen += [row["id"] for row in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
        added |= set(add(path, 3)) if len(added) < 9 else set()
        victims = [seen[-1], max(there - set(seen) - gone, default=seen[-1])]  # the cursor's own row, and one to come
        gone |= set(victims)
        with database.write() as session:
            session.execute(delete(table).where(table.id.in_(victims)))
    assert len(seen) == len(set(seen))
    shown = [row_id for row_id in seen if row_id not in before]
    assert there - gone <= set(shown) <= there | added
    assert shown == sorted(shown, reverse=True)


@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_that_was_changed_is_refused(client: TestClient, add: Callable[..., list[str]], path: str) -> None:
    add(path, 3)
    cursor = client.get(path, params={"limit": 1}).json()["next_cursor"]
    decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    micros, row_id, seal = decoded.split(":")
    forged = (f"{int(micros) + 1}:{row_id}:{seal}", f"{micros}:{'f' * 12}:{seal}", f"{micros}:{row_id}", f" {decoded}")
    changed = [base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") for text in forged]
    for wrong in (*changed, cursor + "!", cursor + "=", cursor[:-2], cursor[1:], "abc", "\0", "9" * 200):
        refused = client.get(path, params={"cursor": wrong})
        assert refused.status_code == 422, wrong
        (error,) = refused.json()["errors"]
        assert error["field"] == "cursor"
    assert client.get(path, params={"cursor": cursor}).status_code == 200


def test_a_cursor_belongs_to_its_list_and_filters(client: TestClient, add: Callable[..., list[str]]) -> None:
    for path in LISTS:
        add(path, 3)
    wanted = [("state", "queued"), ("state", "failed"), ("search", "row"), ("limit", 1)]
    cursor = client.get("/jobs", params=wanted).json()["next_cursor"]  # type: ignore[arg-type]
    again = [("search", "row"), ("state", "failed"), ("state", "queued"), ("limit", 2), ("cursor", cursor)]
    assert client.get("/jobs", params=again).status_code == 200  # type: ignore[arg-type]
    for query in ({}, {"search": "row"}, {"state": "queued", "search": "row"}, {"queue": "default"}):
        refused = client.get("/jobs", params={**query, "cursor": cursor})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "cursor_invalid")
        assert "same filters" in refused.json()["errors"][0]["expected"]
    assert client.get("/sweeps", params={"cursor": cursor}).status_code == 422
