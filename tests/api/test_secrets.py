"""Nothing that comes out of the service holds a secret that went into it: answers, logs, tables, processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.machine import free_port
from store import keys
from store.db import Database
from store.upgrade import upgrade

ROOT = Path(__file__).resolve().parents[2]
DATABASE_PASSWORD, BROKER_PASSWORD = "hunter2-of-the-database", "hunter2-of-the-broker"
ROLE = "tid_secret"


class Service:
    """A real API and a real worker, on a PostgreSQL that can be made to go away, with a broker that is not there."""

    def __init__(self, home: Path, postgres: Any, database: str) -> None:
        self.home, self.postgres, self.database = home, postgres, database
        self.port = free_port("127.0.0.1", 0)
        url = f"postgresql://{ROLE}:{DATABASE_PASSWORD}@/{database}?host={postgres.socket_folder}"
        self.environment = {
            **os.environ,
            "TID_HOME": str(home),
            "TID_PORT": str(self.port),
            "TID_DATABASE_URL": url,
            "TID_BROKER_URL": f"redis://somebody:{BROKER_PASSWORD}@127.0.0.1:1/0",
            "TID_REAPER_SECONDS": "0.2",
            "TID_HEARTBEAT_SECONDS": "0.2",
            "TID_LEASE_SECONDS": "1",
            "TID_LOG_LEVEL": "debug",
        }
        self.processes = [self._start(module) for module in ("api", "worker")]
        self.out = b""
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def _start(self, module: str) -> "subprocess.Popen[bytes]":
        with (self.home / f"{module}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        response = self.http.request(method, path, **how)
        self.out += f"{response.headers}".encode() + response.content
        return response

    def wait_until_up(self) -> None:
        while True:
            assert self.processes[0].poll() is None, (self.home / "api.log").read_text()
            try:
                self.ask("GET", "/healthz")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def wait_for_log(self, module: str, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in (self.home / f"{module}.log").read_text():
            assert time.monotonic() < deadline, (self.home / f"{module}.log").read_text()
            time.sleep(0.05)

    def let_in(self, yes: bool) -> None:
        self.postgres.run(f"ALTER DATABASE {self.database} ALLOW_CONNECTIONS {yes}")
        if not yes:
            self.postgres.run(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.database}'"
            )

    def arguments(self) -> bytes:
        return b"".join(Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in self.processes)

    def everything(self) -> dict[str, bytes]:
        """All that came out, and all that was written."""
        found = {"answers": self.out}
        found.update({str(path): path.read_bytes() for path in self.home.rglob("*") if path.is_file()})
        return found

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(30)
        self.http.close()


@pytest.fixture
def service(tmp_path: Path, postgres_server: Any, postgres_template: str) -> Iterator[Service]:
    database = f"secret_{os.getpid()}"
    postgres_server.run(f"CREATE ROLE {ROLE} SUPERUSER LOGIN PASSWORD '{DATABASE_PASSWORD}'")
    postgres_server.run(f"CREATE DATABASE {database} TEMPLATE {postgres_template}")
    upgrade(postgres_server.url(database))
    (tmp_path / "home").mkdir()
    service = Service(tmp_path / "home", postgres_server, database)
    try:
        service.wait_until_up()
        yield service
    finally:
        service.stop()
        postgres_server.run(f"DROP DATABASE {database} WITH (FORCE)")
        postgres_server.run(f"DROP ROLE {ROLE}")


def test_no_secret_comes_out_whatever_goes_wrong(service: Service) -> None:
    made = service.ask("POST", "/keys", json={"name": "boss", "scope": "admin"})
    key = made.json()["key"]
    service.out = b""  # the one place where the key may be
    has = {"Authorization": f"Bearer {key}"}
    wrong = f"Bearer {key[:-1]}x"
    secrets = [DATABASE_PASSWORD, BROKER_PASSWORD, key, keys.digest(key), key.rpartition("_")[2]]

    def bad_requests() -> None:
        service.ask("GET", "/readyz", headers=has)
        service.ask("GET", "/workers", headers=has)
        service.ask("GET", "/metrics", headers=has)
        service.ask("GET", "/jobs", headers={"Authorization": wrong})
        service.ask("GET", f"/jobs/{key}", headers=has)  # into the wrong place, by mistake
        service.ask("POST", "/jobs", headers=has, json={"name": 1, "dataset": "pets", "student": {"detector": "x"}})
        service.ask("POST", "/jobs", headers=has, content=b"{")
        service.ask("POST", "/datasets", headers=has, json={"name": "x", "root": "/proc/self/environ"})
        service.ask("GET", "/keys", headers=has)
        service.ask("GET", "/audit", headers=has)
        service.ask("GET", "/openapi.json")

    bad_requests()
    service.wait_for_log("worker", "127.0.0.1:1")
    service.let_in(False)
    bad_requests()
    assert service.ask("GET", "/jobs", headers=has).status_code == 503
    service.wait_for_log("api", "database")
    service.let_in(True)
    service.ask("POST", "/datasets", headers=has, json={"name": "later"})
    bad_requests()
    arguments = service.arguments()
    service.stop()
    found = service.everything()
    assert {Path(name).name for name in found} >= {"answers", "api.log", "worker.log"}
    for secret in secrets:
        places = [name for name, content in {**found, "arguments": arguments}.items() if secret.encode() in content]
        assert not places, secret
    assert _tables(service, [key, key.rpartition("_")[2], DATABASE_PASSWORD, BROKER_PASSWORD]) == []


def _tables(service: Service, secrets: list[str]) -> list[str]:
    """Rows of any table that hold one of these; the hash of a key is where it belongs."""
    from sqlalchemy import select

    from store.models import Base

    database = Database(service.postgres.url(service.database))
    rows = []
    with database.read() as session:
        for table in Base.metadata.sorted_tables:
            rows += [f"{table.name}: {row}" for row in session.execute(select(table))]
    database.close()
    assert any("api_keys" in row for row in rows)
    return [row for row in rows if any(secret in row for secret in secrets)]
