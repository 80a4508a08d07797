"""Archives on their way in, over a real server: streamed, checked, and gone without a trace where they fail."""

import hashlib
import io
import json
import random
import socket
import threading
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from store import datasets
from store.db import Database
from store.settings import Settings

Make = Callable[..., Path]
Settled = Callable[..., dict[str, Any]]
LIMIT = 3 << 20


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    (tmp_path / "data").mkdir()
    times = {"lease_seconds": 4.0, "heartbeat_seconds": 0.1, "reaper_seconds": 0.1}
    return Settings(
        home=tmp_path, database_url=database_url, broker_url="redis://127.0.0.1:1/0", upload_bytes=LIMIT, **times
    )


@pytest.fixture
def served(settings: Settings) -> FastAPI:
    return create_app(settings.model_copy(update={"max_body_bytes": 2048}))


@pytest.fixture
def archive(make_dataset: Make, tmp_path: Path) -> bytes:
    """A dataset as a .zip, with all in one folder."""
    root = make_dataset(tmp_path / "packed" / "pets", images=4)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in sorted(root.rglob("*")):
            packed.write(path, path.relative_to(root.parent))
        packed.writestr("pets/noise.bin", random.Random(0).randbytes(100_000))
    return buffer.getvalue()


def create(server: httpx.Client, name: str = "pets", **options: Any) -> str:
    response = server.post("/datasets", json={"name": name, "options": options})
    assert (response.status_code, response.json()["state"]) == (201, "uploading"), response.text
    return str(response.json()["id"])


def left(settings: Settings) -> list[str]:
    return [str(path.relative_to(settings.uploads)) for path in settings.uploads.rglob("*") if path.is_file()]


def begin(server: httpx.Client, name: str, content: bytes, *, declared: int) -> socket.socket:
    """A PUT of which only the beginning is sent."""
    url = httpx.URL(str(server.base_url))
    wire = socket.create_connection((url.host, url.port or 80))
    head = f"PUT /datasets/{name}/archive HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {declared}\r\n\r\n"
    wire.sendall(head.encode() + content)
    return wire


def until(look: Callable[[], Any]) -> Any:
    while not (found := look()):
        time.sleep(0.01)
    return found


def digest(content: bytes, algorithm: str = "sha-256") -> str:
    value = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{b64encode(value).decode()}:"


def test_an_archive_becomes_a_dataset(
    server: httpx.Client, archive: bytes, settings: Settings, settled: Settled, tmp_path: Path
) -> None:
    identity = create(server)
    headers = {"Content-Digest": f"unixsum=:AAAA:, {digest(archive)}, {digest(archive, 'sha-512')}"}
    sent = server.put(f"/datasets/{identity}/archive", content=archive, headers=headers)
    assert (sent.status_code, sent.json()["bytes"]) == (200, len(archive))
    assert sent.json()["state"] in ("validating", "ready")
    dataset = settled(server, "pets")
    assert (dataset["state"], dataset["source"], dataset["classes"]) == ("ready", "archive", ["cat", "dog"])
    assert dataset["root"] == str(settings.uploads / identity / "data")
    assert sorted(left(settings))[0] == f"{identity}/data/noise.bin", "the archive itself is gone"
    again = server.put("/datasets/pets/archive", content=archive)
    assert (again.status_code, again.json()["code"]) == (409, "dataset_not_uploading")
    (settings.data_roots[0] / "pets").symlink_to(tmp_path / "packed")
    server.post("/datasets", json={"name": "same", "root": str(settings.data_roots[0])})
    assert server.delete("/datasets/pets").status_code == 204
    assert left(settings) == []
    assert not (settings.uploads / identity).exists()


def test_a_chunked_body_of_unknown_length_is_taken(server: httpx.Client, archive: bytes, settled: Settled) -> None:
    create(server)
    parts = (archive[i : i + 1000] for i in range(0, len(archive), 1000))
    assert server.put("/datasets/pets/archive", content=parts).status_code == 200
    assert settled(server, "pets")["state"] == "ready"


@pytest.mark.parametrize("is_declared", [True, False])
def test_more_than_the_limit_is_refused(server: httpx.Client, settings: Settings, is_declared: bool) -> None:
    create(server)
    body = b"PK\x03\x04" + bytes(LIMIT)
    content: Any = body if is_declared else iter([body[:1000], body[1000:]])
    response = server.put("/datasets/pets/archive", content=content)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert (left(settings), server.get("/datasets/pets").json()["state"]) == ([], "uploading")
    assert server.post("/datasets", content=b"x" * 3000).status_code == 413, "other bodies keep their own limit"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 422, "archive_unknown"),
        (b"no archive" * 1000, {}, 422, "archive_unknown"),
        (None, {"Content-Digest": digest(b"other")}, 422, "digest_mismatch"),
        (None, {"Content-Digest": "sha-256=abc"}, 422, "digest_malformed"),
        (None, {"Content-Digest": "sha-256=:abc:"}, 422, "digest_malformed"),
        (None, {"Content-Encoding": "gzip"}, 415, "content_encoded"),
    ],
)
def test_what_cannot_be_taken_leaves_nothing(
    server: httpx.Client, archive: bytes, settings: Settings, body: bytes | None, headers: Any, status: int, code: str
) -> None:
    create(server)
    response = server.put("/datasets/pets/archive", content=archive if body is None else body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert left(settings) == []
    dataset = server.get("/datasets/pets").json()
    assert (dataset["state"], dataset["progress"]) == ("uploading", None)
    assert server.put("/datasets/pets/archive", content=archive).status_code == 200


def test_a_sender_who_goes_away_can_send_again(
    server: httpx.Client, archive: bytes, settings: Settings, settled: Settled
) -> None:
    identity = create(server)
    with begin(server, "pets", archive[:60_000], declared=len(archive)):
        progress = until(lambda: server.get("/datasets/pets").json()["progress"])
        assert (progress["phase"], progress["total"]) == ("uploading", len(archive))
        assert [Path(name).suffix for name in left(settings)] == [".part"]
    until(lambda: not left(settings))
    until(lambda: server.get("/datasets/pets").json()["progress"] is None)
    assert server.get("/datasets/pets").json()["state"] == "uploading"
    assert server.put(f"/datasets/{identity}/archive", content=archive).status_code == 200
    assert settled(server, "pets")["state"] == "ready"


def test_of_two_senders_one_is_refused(
    server: httpx.Client, archive: bytes, settings: Settings, settled: Settled
) -> None:
    create(server)
    with begin(server, "pets", archive[:50_000], declared=len(archive)) as first:
        until(lambda: left(settings))
        second = server.put("/datasets/pets/archive", content=archive)
        assert (second.status_code, second.json()["code"]) == (409, "upload_in_progress")
        time.sleep(2 * settings.lease_seconds)  # however long it takes
        second = server.put("/datasets/pets/archive", content=archive)
        assert (second.status_code, second.json()["code"]) == (409, "upload_in_progress")
        first.sendall(archive[50_000:])
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
    assert settled(server, "pets")["state"] == "ready"


def test_a_dataset_that_is_deleted_while_its_archive_comes_in(
    server: httpx.Client, archive: bytes, settings: Settings
) -> None:
    create(server)
    with begin(server, "pets", archive[:50_000], declared=len(archive)) as wire:
        until(lambda: left(settings))
        assert server.delete("/datasets/pets").status_code == 204
        wire.sendall(archive[50_000:])
        assert wire.recv(1000).startswith(b"HTTP/1.1 409")
    until(lambda: not left(settings))


def test_an_archive_is_not_held_in_memory(server: httpx.Client, settings: Settings, served: FastAPI) -> None:
    """Most of it lies on the disk before the last byte is sent."""
    create(server)
    size = LIMIT - (64 << 10)
    content = b"PK\x03\x04" + random.Random(1).randbytes(size - 4)
    with begin(server, "pets", content[:-1], declared=size):
        part = until(lambda: list(settings.uploads.rglob("*.part")))[0]
        until(lambda: part.stat().st_size >= size - (2 << 20))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["a.jpg", "A.jpg"], "archive_duplicate"),
        (["../../evil.jpg"], "archive_path"),
        (["pets/train.json"], "split_missing"),
    ],
)
def test_an_archive_that_is_refused_leaves_its_report_alone(
    server: httpx.Client, settings: Settings, settled: Settled, names: list[str], code: str
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in names:
            packed.writestr(name, json.dumps({}))
    create(server)
    server.put("/datasets/pets/archive", content=buffer.getvalue())
    dataset = settled(server, "pets")
    assert (dataset["state"], dataset["root"]) == ("invalid", None)
    assert [problem["code"] for problem in dataset["report"]] == [code]
    assert str(settings.uploads) not in dataset["report"][0]["detail"]
    until(lambda: not left(settings))
    assert server.delete("/datasets/pets").status_code == 204
    create(server)


def test_a_full_disk_is_told_before_anything_is_sent(
    server: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.ingest.receiving.RESERVE", 1 << 60)
    create(server)
    response = server.put("/datasets/pets/archive", content=b"PK\x03\x04" + bytes(1000))
    assert (response.status_code, response.json()["code"]) == (507, "no_space")
    assert left(settings) == []


@pytest.fixture
def leftovers(settings: Settings, sqlite_url: str) -> Iterator[list[Path]]:
    """What a killed process leaves: of an upload, and of a dataset that it was deleting."""
    database = Database(sqlite_url)
    with database.write() as session:
        row = datasets.register(name="stuck", root=None, options={}, roots=[], session=session)
        assert datasets.hold(row.id, "uploading", seconds=0.3, session=session)
    files = [settings.uploads / row.id / "0a.part", settings.uploads / f"{'f' * 12}.deleted" / "data" / "1.jpg"]
    files += [settings.artifacts / "datasets" / ("f" * 12) / "i" / "train.json"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    (settings.uploads / ("e" * 12) / "data").mkdir(parents=True)
    (settings.uploads / "notes.txt").write_text("not ours")
    yield files
    database.close()


def test_what_a_killed_process_left_goes_once_its_lease_is_over(
    leftovers: list[Path], server: httpx.Client, settings: Settings
) -> None:
    until(lambda: not any(file.exists() for file in leftovers))
    assert (settings.uploads / "notes.txt").exists()
    assert (settings.uploads / ("e" * 12) / "data").is_dir(), "another database may know it"
    until(lambda: not list(settings.uploads.glob("*.deleted")))
    assert server.get("/datasets/stuck").json()["state"] == "uploading"


def test_many_small_pieces_do_not_slow_the_others_down(
    server: httpx.Client, archive: bytes, settings: Settings, settled: Settled
) -> None:
    """Uploads of several datasets at once, each whole."""
    names = [f"pets-{i}" for i in range(4)]
    for name in names:
        create(server, name)

    def send(name: str) -> None:
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            pieces = (archive[i : i + 997] for i in range(0, len(archive), 997))
            assert client.put(f"/datasets/{name}/archive", content=pieces).status_code == 200

    threads = [threading.Thread(target=send, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {settled(server, name)["state"] for name in names} == {"ready"}
    assert len({settled(server, name)["sha256"] for name in names}) == 1
