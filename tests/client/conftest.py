"""A real server process on a real database, and a wire that can be cut."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from client import console
from client.cli import main
from client.client import Client
from client.machine import free_port
from store.db import Database
from tests.wire import Wire, wire_to


@dataclass(frozen=True)
class Server:
    url: str
    home: Path
    data: Path
    """The demo dataset, registered as `digits`."""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tid_core.data.synthetic import write_demo_data

    home = tmp_path_factory.mktemp("home")
    data = home / "data" / "digits"
    write_demo_data(data, images=10, seed=0)
    port = free_port("127.0.0.1", 0)
    # No broker: a doorbell that nobody hears costs latency, and nothing here waits for a worker.
    broker = f"redis+socket://{home}/nobody.sock"
    environment = {**os.environ, "TID_HOME": str(home), "TID_PORT": str(port), "TID_BROKER_URL": broker}
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stdout=log, stderr=log)
    try:
        running = Server(f"http://127.0.0.1:{port}", home, data)
        _wait_until_up(running, process)
        with Client(running.url) as client:
            client.add_dataset("digits", data)
        yield running
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_up(server: Server, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, (server.home / "api.log").read_text()
        try:
            if httpx.get(f"{server.url}/healthz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError((server.home / "api.log").read_text())


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, backoff=0.01) as client:
        yield client


@pytest.fixture
def spec() -> dict[str, object]:
    """A small job that the server accepts."""
    return {"name": "small", "student": {"detector": "fcos_conv5_tiny"}, "dataset": "digits"}


@pytest.fixture
def cut_wire(server: Server) -> Callable[..., AbstractContextManager[Wire]]:
    """`with cut_wire(1000, 2000) as wire`: to the server; its first two connections break after so many bytes."""
    return lambda *cuts, sends=(): wire_to(server.port, cuts, sends)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def tid(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command against the server."""
    monkeypatch.setenv("TID_URL", server.url)
    monkeypatch.setenv("COLUMNS", "160")
    for make in (console.out, console.err):  # a console reads its width once, and another test may have made it
        make.cache_clear()

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["tid", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """The server's own database: what a worker would write, written here."""
    database = Database(f"sqlite:///{server.home}/tid.db")
    yield database
    database.close()
