"""Revision 0003 on a database that is in use: nothing of it is lost, up and down again."""

from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from store.db import Database, make_engine
from store.upgrade import current_revision, upgrade

JOB: dict[str, Any] = {
    "name": "n", "state": "succeeded", "spec": {"b": 1, "a": 2}, "method": "tid", "queue": "default", "priority": 5,
    "attempt": 1, "max_attempts": 3, "created_at": 1, "updated_at": 2, "step": 3, "epoch": 1, "epochs": 2,
    "best_ap": 0.1 + 0.2, "warnings": [{"code": "c", "detail": "d"}], "dataset_id": "d" * 12,
}  # fmt: skip
DATASET: dict[str, Any] = {
    "id": "d" * 12, "name": "digits", "root": "/d", "facts": {}, "classes": ["a"], "state": "ready", "created_at": 1,
    "source": "folder", "options": {}, "report": [], "index_prefix": "i",
}  # fmt: skip
METRIC = {"job_id": "a" * 12, "name": "val/AP", "step": 1, "value": 0.5, "epoch": 1, "attempt": 1, "at": 1}
ATTEMPT = {"job_id": "a" * 12, "number": 1, "worker_id": "w", "lease_token": "t", "started_at": 1}


def fill(connection: Connection) -> None:
    tables = MetaData()
    tables.reflect(connection)
    rows = [
        ("datasets", DATASET),
        ("jobs", {**JOB, "id": "a" * 12, "idempotency_key": "k"}),
        ("jobs", {**JOB, "id": "b" * 12, "twin_of": "a" * 12, "teacher_job_id": "a" * 12}),
        ("metrics", {**METRIC, "superseded": False}),
        ("attempts", ATTEMPT),
    ]
    for table, values in rows:
        connection.execute(insert(tables.tables[table]).values(**values))
    connection.execute(text(f"UPDATE jobs SET baseline_job_id = '{'b' * 12}' WHERE id = '{'a' * 12}'"))


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row that revision 0002 knows, without what 0003 adds."""
    engine = make_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        found = {
            name: [dict(row._mapping) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for name, table in tables.tables.items()
            if name not in ("alembic_version", "sweeps")
        }
    engine.dispose()
    for row in found["jobs"]:
        for column in ("sweep_id", "sweep_role", "sweep_label", "sweep_point"):
            assert row.pop(column, None) is None
    return found


def indices(url: str) -> set[str]:
    engine = make_engine(url)
    names = {str(index["name"]) for index in inspect(engine).get_indexes("jobs")}
    engine.dispose()
    return names


def test_up_with_data_and_down_again(empty_database_url: str, monkeypatch, pytestconfig) -> None:
    url = empty_database_url
    upgrade(url, "0002")
    engine = make_engine(url)
    with engine.begin() as connection:
        fill(connection)
    engine.dispose()
    before, indexed = everything(url), indices(url)
    upgrade(url, "0003")
    assert everything(url) == before
    assert len(before["jobs"]) == 2
    assert indices(url) == indexed | {"ix_jobs_sweep_id"}
    check_references(url)
    monkeypatch.setenv("TID_DATABASE_URL", url)
    command.downgrade(Config(str(pytestconfig.rootpath / "alembic.ini")), "0002")
    assert current_revision(url) == "0002"
    assert everything(url)["datasets"] == before["datasets"]
    left = {**before["jobs"][1], "twin_of": None, "teacher_job_id": None}
    assert everything(url)["jobs"] == [left], "job a was deleted, so that b is nobody's twin"
    assert indices(url) == indexed


def check_references(url: str) -> None:
    """The rebuilt table is still the one that others refer to, and refers to itself and to sweeps."""
    database = Database(url)
    with database.write() as session:
        session.execute(
            text("INSERT INTO sweeps (id, name, spec, created_at) VALUES (:id, 's', '{}', 1)"), {"id": "c" * 12}
        )
        session.execute(text("UPDATE jobs SET sweep_id = :id, sweep_role = 'point'"), {"id": "c" * 12})
    for wrong in ("sweep_id = 'nobody'", "sweep_role = 'other'", "twin_of = 'nobody'", "state = 'other'"):
        with pytest.raises(IntegrityError), database.write() as session:
            session.execute(text(f"UPDATE jobs SET {wrong}"))
    with database.write() as session:
        session.execute(text("DELETE FROM sweeps"))
        assert set(session.scalars(text("SELECT sweep_id FROM jobs"))) == {None}
        session.execute(text("UPDATE jobs SET sweep_role = NULL, twin_of = NULL, teacher_job_id = NULL"))
    with database.write() as session:
        session.execute(text(f"DELETE FROM jobs WHERE id = '{'a' * 12}'"))
        assert session.scalar(text("SELECT count(*) FROM metrics")) == 0
        assert session.scalar(text("SELECT count(*) FROM attempts")) == 0
    database.close()
