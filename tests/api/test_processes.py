"""Two API processes on one database, hundreds of clients at once, and a server that stops."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from store import claims, logs, metrics
from store.db import Database
from store.ids import new_id
from store.metrics import Point
from store.models import Dataset, Job
from store.states import Outcome

LISTENERS = {"postgresql": 500, "sqlite": 100}
"""There are connections to run out of on the one; on the other they are files of the process."""
SPEC = {"student": {"detector": "fcos_resnet18_small"}, "dataset": "pets"}


@dataclass
class Pair:
    urls: tuple[str, str]
    processes: tuple["subprocess.Popen[bytes]", ...]
    database: Database

    def submit(self) -> str:
        return str(httpx.post(f"{self.urls[0]}/jobs", json=SPEC, timeout=60).raise_for_status().json()["id"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            httpx.get(f"{url}/healthz", timeout=60).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server ended while starting")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_of_both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("pair") / "tid.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server, name = request.getfixturevalue("postgres_server"), f"test_{new_id()}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('postgres_template')} STRATEGY file_copy")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def pair(
    database_of_both: str, tmp_path_factory: pytest.TempPathFactory, looked_through: tuple[Path, Path]
) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("home")
    database = Database(database_of_both)
    facts = json.loads((looked_through[1] / "facts.json").read_text())
    with database.write() as session:
        ready = {"source": "folder", "state": "ready", "root": "/d", "index_prefix": "d"}
        session.add(Dataset(name="pets", facts=facts, classes=facts["classes"], **ready))
    common = {"TID_HOME": str(home), "TID_DATABASE_URL": database_of_both, "TID_BROKER_URL": "redis://127.0.0.1:1/0"}
    ports = (free_port(), free_port())
    processes = tuple(
        subprocess.Popen([sys.executable, "-m", "api"], env={**os.environ, **common, "TID_PORT": str(port)})
        for port in ports
    )
    urls = (f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    try:
        for url, process in zip(urls, processes, strict=True):
            wait_until_up(url, process)
        yield Pair(urls, processes, database)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        database.close()


def test_a_hundred_requests_with_one_key_make_one_job(pair: Pair) -> None:
    async def post(client: httpx.AsyncClient, url: str) -> httpx.Response:
        headers = {"Idempotency-Key": "one"}
        while (answer := await client.post(f"{url}/jobs", json=SPEC, headers=headers)).status_code == 409:
            assert answer.json()["code"] == "idempotency_in_flight"
            await asyncio.sleep(0.3)
        return answer

    async def everybody() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            return await asyncio.gather(*(post(client, pair.urls[number % 2]) for number in range(100)))

    answers = asyncio.run(everybody())
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers) == 99
    with pair.database.read() as session:
        assert session.scalars(select(func.count()).where(Job.idempotency_key.is_not(None))).one() == 1


class Stream:
    """A raw connection: hundreds of them cost little."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def open(self, url: str, path: str) -> "Stream":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return self

    async def until(self, text: str) -> bytes:
        return await self.reader.readuntil(text.encode())


async def opened(url: str, path: str, number: int) -> list[Stream]:
    streams = await asyncio.gather(*(Stream().open(url, path) for _ in range(number)))
    await asyncio.gather(*(stream.until("event: progress") for stream in streams))
    return streams


def connections_in_use(pair: Pair) -> int:
    """Connections to PostgreSQL, of both processes, that are not at rest."""
    with pair.database.read() as session:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
        busy: int = session.connection().exec_driver_sql(statement).scalar_one()
        return busy - 1


def test_hundreds_of_listeners_of_one_process_hold_no_connection(pair: Pair) -> None:
    job_id = pair.submit()
    with pair.database.write() as session:
        claim = claims.claim(job_id, "worker-1", lease_seconds=600, session=session)
        assert claim is not None
        claims.mark_started(claim, resumed_from_step=0, total_steps=10, epochs=1, session=session)

    def record(step: int) -> None:
        with pair.database.write() as session:
            metrics.record(claim, [Point("loss", step, 1, 0.5)], session=session)

    def finish() -> None:
        with pair.database.write() as session:
            claims.finish(claim, Outcome.SUCCEEDED, session=session)

    async def listen() -> None:
        kind = pair.database.engine.dialect.name
        streams = await opened(pair.urls[0], f"/jobs/{job_id}/events", LISTENERS[kind])
        for step in (1, 2, 3):
            await asyncio.to_thread(record, step)
            heard = await asyncio.gather(*(stream.until(f'"step":{step},"epoch":1,') for stream in streams))
            assert len(heard) == LISTENERS[kind]
        if kind == "postgresql":
            # All listen, and yet there are moments in which no connection is in use.
            assert any(connections_in_use(pair) == 0 or time.sleep(0.05) for _ in range(100))
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"{pair.urls[0]}/jobs")).status_code == 200
        await asyncio.to_thread(finish)
        await asyncio.gather(*(stream.until('data: {"reason":"ended"}') for stream in streams))
        for stream in streams:
            stream.writer.close()

    asyncio.run(listen())


def test_a_server_that_stops_ends_its_streams_with_a_word(pair: Pair) -> None:
    """The last test of this pair."""
    job_id = pair.submit()
    with pair.database.write() as session:
        claim = claims.claim(job_id, "worker-1", lease_seconds=600, session=session)
        assert claim is not None
        logs.append(claim, "begin\n", cap_bytes=1 << 20, session=session)

    async def listen() -> tuple[bytes, bytes]:
        events = await Stream().open(pair.urls[1], f"/jobs/{job_id}/events")
        await events.until("event: progress")
        log = await Stream().open(pair.urls[1], f"/jobs/{job_id}/logs?follow=true")
        await log.until("begin\n")
        pair.processes[1].send_signal(signal.SIGTERM)
        return await events.reader.read(), await log.reader.read()

    events, log = asyncio.run(listen())
    assert b'event: end\ndata: {"reason":"shutdown"}' in events
    assert events.endswith(b"0\r\n\r\n")
    assert log.endswith(b"0\r\n\r\n")
    assert pair.processes[1].wait(60) == 0
