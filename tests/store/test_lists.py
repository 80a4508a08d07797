"""Lists read the rows that they show, and no others: told by the plans of both databases."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from store import datasets, jobs, sweeps
from store.cost import costs
from store.db import Database
from store.ids import new_id
from store.jobs import Cursor
from store.models import Attempt, Dataset, Job, MetricLatest, Sweep
from store.states import State

AFTER = Cursor(datetime(2999, 1, 1, tzinfo=UTC), "0")
FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "after a cursor": {"after": AFTER},
    "state": {"states": [State.FAILED], "after": AFTER},
    "method": {"methods": ["tid", "ld"]},
    "queue": {"queue": "gpu"},
    "sweep": {"sweep_id": "0" * 12},
    "name": {"search": "50%"},
    "everything": {"states": [State.FAILED], "methods": ["tid"], "queue": "gpu", "search": "x", "after": AFTER},
}


@pytest.fixture
def filled(world) -> Database:
    """Enough jobs that no database takes the shortest way for the best."""
    row = {"spec": world.spec().model_dump(mode="json"), "method": "none", "queue": "default", "max_attempts": 3}
    many = [{**row, "id": new_id(), "name": "x", "epochs": 1, "dataset_id": world.dataset_id} for _ in range(1000)]
    with world.database.write() as session:
        session.execute(insert(Job), many)
        session.execute(
            insert(Attempt), [{"job_id": one["id"], "number": 1, "worker_id": "w", "lease_token": "t"} for one in many]
        )
        point = {"step": 1, "epoch": 1, "value": 0.5}
        session.execute(insert(MetricLatest), [{"job_id": one["id"], "name": "loss", **point} for one in many])
        folders = [{"name": f"d{i}", "source": "folder", "state": "validating", "root": "/d"} for i in range(200)]
        session.execute(insert(Dataset), folders)
        session.execute(insert(Sweep), [{"name": f"s{i}", "spec": {}} for i in range(200)])
        session.execute(text("ANALYZE"))
    return world.database


def plans(database: Database, ask: Callable[..., Any]) -> list[str]:
    """How the database goes about each statement of `ask`."""
    said: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        said.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", listen)
    with database.read() as session:
        ask(session=session)
    event.remove(database.engine, "before_cursor_execute", listen)
    told = []
    with database.engine.connect() as connection:
        is_postgres = database.engine.dialect.name == "postgresql"
        if is_postgres:  # or it reads small tables whole, however well they are indexed
            connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in said:
            if statement.startswith(("SELECT", "WITH")):
                explain = "EXPLAIN " if is_postgres else "EXPLAIN QUERY PLAN "
                rows = connection.exec_driver_sql(explain + statement, parameters)
                told.append("\n".join(str(row[-1]) for row in rows))
    assert told
    return told


def reads_whole_tables(plan: str) -> bool:
    """SQLite says `SCAN jobs` for a table, and `SCAN jobs USING COVERING INDEX` where it looks into the index alone."""
    scans = [line for line in plan.splitlines() if "SCAN" in line and "COVERING INDEX" not in line]
    return any("SCAN jobs" in line or "SCAN metric" in line or "SCAN attempts" in line for line in scans) or (
        "Seq Scan" in plan
    )


@pytest.mark.parametrize("name", FILTERS)
def test_a_page_of_jobs_is_found_in_the_index(filled, name):
    (plan,) = plans(filled, lambda session: jobs.page(session=session, limit=51, **FILTERS[name]))
    assert "ix_jobs_list" in plan or "ix_jobs_sweep_id" in plan or "ix_jobs_waiting" in plan
    assert not reads_whole_tables(plan)


def test_what_a_list_shows_of_its_jobs_is_found_by_their_ids(filled):
    with filled.read() as session:
        ids = [job.id for job in jobs.page(session=session, limit=50)]
    for plan in plans(filled, lambda session: costs(ids, session=session)):
        assert not reads_whole_tables(plan)
    (plan,) = plans(filled, lambda session: sweeps.counts(ids, session=session))
    assert "ix_jobs_sweep_id" in plan


def test_pages_of_datasets_and_sweeps_are_found_in_an_index(filled):
    (plan,) = plans(filled, lambda session: datasets.page(session=session, after=AFTER))
    assert "ix_datasets_list" in plan
    (plan,) = plans(filled, lambda session: sweeps.page(session=session, after=AFTER, search="x"))
    assert "ix_sweeps_created_at_id" in plan
    with filled.read() as session:
        assert jobs.page(session=session, limit=1)[0].name == "x"
