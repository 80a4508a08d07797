"""A wire that can be cut, and that remembers what was asked."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace


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
    asked: bytearray = field(default_factory=bytearray)
    """Bytes of requests that went through."""

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
        asking = asyncio.ensure_future(
            self._pump(reader, up_writer, self.sends[index] if index < len(self.sends) else None)
        )
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

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        while data := await reader.read(4096):
            data = data if left is None else data[:left]
            self.asked += data
            writer.write(data)
            await writer.drain()
            left = None if left is None else left - len(data)
            if left is not None and left <= 0:
                writer.close()


@contextmanager
def wire_to(target: int, cuts: tuple[int, ...] = (), sends: tuple[int, ...] = ()) -> Iterator[Wire]:
    """A `Wire` to a port of this machine."""
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
