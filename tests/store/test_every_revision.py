"""From each revision that was ever released, with data in every table, to the newest and back. New ones join by
themselves."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import Connection, select, text

from api.app import create_app
from store import claims, datasets, jobs, keys
from store.db import Database, make_engine
from store.models import Base
from store.settings import Settings
from store.states import State
from store.upgrade import current_revision, newest_revision, upgrade
from tests.store.rows import DATASET, DONE, POOR, RUNS, SWEEP, SWEPT, TWIN, Rows, everything, fill, in_both, tables

ROOT = Path(__file__).resolve().parents[2]
ALEMBIC = Config(str(ROOT / "alembic.ini"))
REVISIONS = [one.revision for one in ScriptDirectory.from_config(ALEMBIC).walk_revisions()][::-1]
UPGRADE = "import sys; from store.upgrade import upgrade; upgrade(sys.argv[1])"


def within(url: str, do: Callable[[Connection], Any]) -> Any:
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            return do(connection)
    finally:
        engine.dispose()


def expected(before: Rows, revision: str) -> Rows:
    """What the newest revision makes of these rows, where it is not just what they are."""
    after = {name: [dict(row) for row in rows] for name, rows in before.items()}
    if revision < "0002":  # all datasets are looked through anew
        for row in after["datasets"]:
            row |= {"state": "validating", "facts": None}
    return after


@pytest.fixture(params=REVISIONS)
def filled(request: pytest.FixtureRequest, empty_database_url: str) -> tuple[str, str]:
    """A database of one of the revisions, in use; and which one."""
    upgrade(empty_database_url, request.param)
    within(empty_database_url, fill)
    return empty_database_url, request.param


def test_nothing_is_lost_on_the_way_up_and_down(filled: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, revision = filled
    before = within(url, everything)
    assert set(before) == {table.name for table in within(url, lambda connection: list(tables(connection)))}
    assert all(before.values()), "no table is empty"
    upgrade(url)
    after = within(url, everything)
    assert in_both(after, before) == expected(before, revision)
    wanted = {row["id"]: (row["gpus_wanted"], row["min_gpu_memory_mib"], row["nodes"]) for row in after["jobs"]}
    assert wanted == {job: (2 if job == POOR else 0, 0, 1) for job in (RUNS, DONE, TWIN, SWEPT, POOR)}
    monkeypatch.setenv("TID_DATABASE_URL", url)
    command.check(ALEMBIC)
    command.downgrade(ALEMBIC, revision)
    assert current_revision(url) == revision
    down = within(url, everything)
    if revision < "0002":  # facts are found anew, and what is not ready was called invalid
        for rows in (down, before):
            for row in rows["datasets"]:
                del row["facts"], row["state"]
    assert down == before


def test_todays_code_reads_it_and_goes_on_with_it(filled: tuple[str, str], tmp_path: Path) -> None:
    url, revision = filled
    upgrade(url)
    database = Database(url)
    with database.read() as session:
        for mapper in Base.registry.mappers:
            session.scalars(select(mapper.class_)).all()
    settings = Settings(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0", reaper_seconds=3600)
    with database.write() as session:
        own = {"Authorization": f"Bearer {keys.create('reader', 'admin', session=session).key}"}
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=own) as client:
        read(client, revision)
    if revision < "0002":
        with database.write() as session:
            session.execute(text("UPDATE datasets SET state = 'ready', facts = '{}', index_prefix = 'i'"))
    with database.write() as session:
        claim = claims.claim(TWIN, "new", lease_seconds=60, session=session)
        assert claim is not None
        claims.mark_started(claim, resumed_from_step=0, total_steps=9, epochs=2, session=session)
    with database.read() as session:
        assert jobs.get(TWIN, session=session).state is State.RUNNING
        assert datasets.get("digits", session=session).id == DATASET
    database.close()


def read(client: TestClient, revision: str) -> None:
    """Every page of the API that shows rows."""
    of_job = ("", "/attempts", "/metrics", "/logs", "/report", "/checkpoints", "/maps", "/artifacts")
    paths = [f"/jobs/{job}{part}" for job in (RUNS, DONE, TWIN, SWEPT) for part in of_job]
    paths += ["/jobs", "/datasets", "/datasets/digits", "/datasets/poor", "/workers", "/sweeps", "/keys", "/audit"]
    paths += [f"/sweeps/{SWEEP}", f"/sweeps/{SWEEP}/report"] if revision >= "0003" else []
    for path in paths:
        response = client.get(path)
        assert response.status_code == 200, (path, response.text)
    curves = client.get(f"/jobs/{RUNS}/metrics").json()["series"]
    assert [point["step"] for point in curves[0]["points"]] == [1, 2, 2**40]
    assert client.get(f"/jobs/{RUNS}/logs").json()["text"] == "loss 0.1 → ok\n" * 2
    assert client.get(f"/jobs/{DONE}").json()["best_ap"] == 0.1 + 0.2


@pytest.mark.parametrize("filled", REVISIONS[:1], indirect=True)
def test_two_processes_at_once(filled: tuple[str, str]) -> None:
    url, revision = filled
    before = within(url, everything)
    processes = [subprocess.Popen([sys.executable, "-c", UPGRADE, url]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert current_revision(url) == newest_revision()
    assert in_both(within(url, everything), before) == expected(before, revision)


IT = {"job": RUNS, "token": "7" * 32}
WHILE_IT_TRAINS = """
UPDATE jobs SET lease_expires_at = lease_expires_at + 1 WHERE id = :job AND lease_token = :token;
UPDATE jobs SET step = :n, epoch = 1, eta_seconds = 0.5 WHERE id = :job AND lease_token = :token;
UPDATE workers SET heartbeat_at = :n, current_job = :job WHERE id = 'w';
INSERT INTO metrics (job_id, name, step, value, epoch, attempt, at, superseded)
    VALUES (:job, 'val/AP', 100 + :n, 0.5, 1, 1, 1, FALSE)
    ON CONFLICT (job_id, name, step) DO UPDATE SET value = excluded.value;
INSERT INTO metric_latest (job_id, name, step, value, epoch, at) VALUES (:job, 'val/AP', :n, 0.5, 1, 1)
    ON CONFLICT (job_id, name) DO UPDATE SET step = excluded.step;
INSERT INTO log_chunks (job_id, seq, attempt, "offset", bytes, text, at)
    VALUES (:job, 100 + :n, 1, 1000 + :n, 1, 'x', 1);
INSERT INTO resume_states (job_id, step, epoch, key, attempt, created_at) VALUES (:job, 100 + :n, 1, 'k', 1, 1);
INSERT INTO checkpoints (job_id, name, format, key, sha256, bytes, step, epoch, attempt, created_at)
    VALUES (:job, 'epoch-' || CAST(:n AS TEXT), 'pt', 'k', 's', 1, 1, 1, 1, 1);
INSERT INTO artifacts (job_id, kind, name, key, sha256, bytes, attempt, created_at)
    VALUES (:job, 'map', CAST(:n AS TEXT), 'k', 's', 1, 1, 1)
"""
WHEN_IT_HAS_TRAINED = """
UPDATE attempts SET ended_at = 2, outcome = 'succeeded', last_step = 9 WHERE job_id = :job AND number = 1;
UPDATE jobs SET state = 'succeeded', lease_token = NULL, lease_expires_at = NULL, ended_at = 2 WHERE id = :job;
UPDATE jobs SET state = 'starting', attempt = attempt + 1, worker_id = 'w', lease_token = 't', lease_expires_at = 3
    WHERE id = :twin AND state = 'queued';
INSERT INTO attempts (job_id, number, worker_id, lease_token, started_at) VALUES (:twin, 1, 'w', 't', 1);
INSERT INTO workers (id, hostname, pid, queues, device, started_at, heartbeat_at) VALUES ('v', 'h', 1, '[]', '{}', 1, 1)
"""
"""What a worker of revision 0003 writes, to the end of its job and the beginning of the next one."""


def test_an_old_worker_writes_on_while_the_tables_change(empty_database_url: str) -> None:
    """No revision may take away, or ask for, what the workers of the version before do (not) write."""
    url = empty_database_url
    upgrade(url, "0003")
    within(url, fill)
    database, is_over, rounds = Database(url), threading.Event(), 0

    def work() -> None:
        nonlocal rounds
        while not is_over.is_set() or rounds < 3:
            with database.write() as session:
                for statement in WHILE_IT_TRAINS.split(";"):
                    session.execute(text(statement), {**IT, "n": rounds})
            rounds += 1

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not rounds and not working.done():
            time.sleep(0.01)
        upgrade(url)
        is_over.set()
        working.result()
    with database.write() as session:
        for statement in WHEN_IT_HAS_TRAINED.split(";"):
            session.execute(text(statement), {**IT, "twin": TWIN})
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM metrics WHERE step >= 100 AND step < 1000000")) == rounds
        assert jobs.get(RUNS, session=session).state is State.SUCCEEDED
        assert jobs.get(TWIN, session=session).state is State.STARTING
    database.close()
