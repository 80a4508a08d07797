"""A real server process on a real database, and a wire that can be cut."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import httpx
import pytest

from client import console
from client.cli import main
from client.client import Client
from client.machine import free_port
from store.db import Database


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


@dataclass
class Wire:
    """A TCP proxy that cuts connections.

    `cuts` holds, for each connection in turn, the bytes of the answer to let through; beyond the list, all of them.
    `sends` is the same for the request.
    """

    target: int
    cuts: list[int] = field(default_factory=list)
    sends: list[int] = field(default_factory=list)
    port: int = 0
    answered: int = 0
    """Bytes of answers that went through."""
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index, self.connections = self.connections, self.connections + 1
        left = self.cuts[index] if index < len(self.cuts) else None
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        asking = asyncio.ensure_future(_pump(reader, up_writer, self.sends[index] if index < len(self.sends) else None))
        while data := await up_reader.read(4096):
            data = data if left is None else data[:left]
            left = None if left is None else left - len(data)
            self.answered += len(data)
            writer.write(data)
            await writer.drain()
            if left == 0:
                break
        asking.cancel()
        for one in (writer, up_writer):
            one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
    while data := await reader.read(4096):
        writer.write(data if left is None else data[:left])
        await writer.drain()
        left = None if left is None else left - len(data)
        if left is not None and left <= 0:
            writer.close()


@pytest.fixture
def cut_wire(server: Server) -> Callable[..., AbstractContextManager[Wire]]:
    """`with cut_wire(1000, 2000) as wire`: to the server; its first two connections break after so many bytes."""
    return lambda *cuts, sends=(): _wire(server.port, cuts, sends)


@contextmanager
def _wire(target: int, cuts: tuple[int, ...], sends: tuple[int, ...]) -> Iterator[Wire]:
    wire = Wire(target, list(cuts), list(sends))
    ready, shared = threading.Event(), SimpleNamespace()

    async def run() -> None:
        shared.loop, shared.stop = asyncio.get_running_loop(), asyncio.Event()
        await wire.serve(ready, shared.stop)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield wire
    finally:
        shared.loop.call_soon_threadsafe(shared.stop.set)
        thread.join()


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
