"""API processes on hosts that share a database and a bucket: what one received is looked through by another."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.app import create_app
from api.ingest.index_run import IndexRun
from api.ingest.indexing import Indexer
from store import datasets
from store.artifacts import ArtifactStore, open_artifacts
from store.db import Database, db_now
from store.ids import new_id
from store.models import Dataset, Lease
from store.settings import Settings
from store.uploads.archives import folder_key
from tests.s3 import READER, S3Server

Host = Callable[..., Settings]
Settled = Callable[..., dict[str, Any]]


@pytest.fixture
def host(s3_server: S3Server, sqlite_url: str, tmp_path: Path) -> Host:
    """Settings of an API process with a disk of its own."""
    prefix = f"hosts-{new_id()}"
    same = {"database_url": sqlite_url, "broker_url": "redis://127.0.0.1:1/0", "reaper_seconds": 0.1}
    return lambda name: s3_server.settings(tmp_path / name, prefix, **same)


@pytest.fixture
def archive(make_dataset: Callable[..., Path], tmp_path: Path) -> bytes:
    root, buffer = make_dataset(tmp_path / "pets", images=4), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        packed.add(root, "pets")
    return buffer.getvalue()


@contextmanager
def running(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def received(host: Host, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """By host `a`, which ended before it could look through it; the id of the dataset."""
    with monkeypatch.context() as patched:
        patched.setattr(Indexer, "_run", lambda _self: None)
        with running(host("a")) as a:
            identity = str(a.post("/datasets", json={"name": "pets"}).json()["id"])
            sent = a.put("/datasets/pets/archive", content=archive)
            assert (sent.status_code, sent.json()["state"], sent.json()["root"]) == (200, "validating", None)
    return identity


def names(artifacts: ArtifactStore, identity: str) -> set[str]:
    return {one.name.removeprefix(f"{folder_key(identity)}/") for one in artifacts.listing(folder_key(identity))}


def row_of(identity: str, settings: Settings) -> Dataset:
    database = Database(settings.database_url)
    with database.read() as session:
        row = session.get_one(Dataset, identity)
    database.close()
    return row


def left(settings: Settings) -> list[Path]:
    return [path for path in settings.uploads.rglob("*") if path.is_file()]


def test_another_host_looks_through_it_and_neither_keeps_anything(
    host: Host, received: str, archive: bytes, settled: Settled
) -> None:
    artifacts = open_artifacts(host("a"))
    (stored,) = names(artifacts, received)
    assert b"".join(artifacts.stream(f"{folder_key(received)}/{stored}")) == archive
    artifacts.put(f"{folder_key(received)}/of-a-killed-process/facts.json", left(host("a"))[0])
    with running(host("b")) as b:
        dataset = settled(b, "pets")
        assert (dataset["state"], dataset["root"], dataset["classes"]) == ("ready", None, ["cat", "dog"])
        assert row_of(received, host("b")).root == f"{folder_key(received)}/{stored}"
        while left(host("b")):  # the folder of the index goes once the row is written
            pass
        assert "of-a-killed-process/facts.json" not in names(artifacts, received)
        assert b.get("/datasets/pets/sample").status_code == 200
        with running(host("a")):  # sweeps when it starts
            while left(host("a")):
                pass
        assert b.delete("/datasets/pets").status_code == 204
    assert names(artifacts, received) == set()


def test_an_archive_that_is_gone_or_damaged_in_the_bucket_makes_the_dataset_invalid(
    host: Host, received: str, settled: Settled, tmp_path: Path
) -> None:
    artifacts = open_artifacts(host("b"))
    (stored,) = names(artifacts, received)
    (tmp_path / "other").write_bytes(b"other")
    artifacts.put(f"{folder_key(received)}/{stored}", tmp_path / "other")
    with running(host("b")) as b:
        dataset = settled(b, "pets")
    assert (dataset["state"], dataset["report"][0]["code"]) == ("invalid", "archive_gone")
    assert "not in the artifact store as it was put" in dataset["report"][0]["detail"]
    assert (names(artifacts, received), row_of(received, host("b")).root) == (set(), None)


def test_an_archive_that_the_bucket_does_not_take_can_be_sent_again(host: Host, archive: bytes) -> None:
    refused = host("a").model_copy(update={"s3_access_key_id": READER})
    with running(refused) as a:
        identity = a.post("/datasets", json={"name": "pets"}).json()["id"]
        sent = a.put("/datasets/pets/archive", content=archive)
        assert (sent.status_code, sent.json()["code"]) == (503, "artifacts_unavailable")
        assert a.get("/datasets/pets").json()["state"] == "uploading"
        assert left(refused) == []
    with running(host("b")) as b:
        assert b.put(f"/datasets/{identity}/archive", content=archive).status_code == 200


def test_a_host_that_lost_its_hold_while_it_stored_takes_nothing_from_its_successor(
    host: Host, received: str, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Indexer, "_run", lambda _self: None)
        a = create_app(host("a"))
        with TestClient(a):
            parts = a.state.parts
            with parts.database.write() as session:
                hold = datasets.hold(received, "validating", seconds=60, session=session)
                assert hold is not None
            listing = parts.artifacts.listing

            def slowly(key: str) -> Any:
                """Before it looks for what others left, the lease runs out, and another host does it all."""
                patched.undo()
                with parts.database.write() as session:
                    session.execute(update(Lease).values(expires_at=db_now(-1)))
                with running(host("b")) as b:
                    assert settled(b, "pets")["state"] == "ready"
                return listing(key)

            patched.setattr(parts.artifacts, "listing", slowly)
            IndexRun(hold, parts, Event()).run()
    row = row_of(received, host("a"))
    assert row.state == "ready"
    index = str(row.index_prefix).removeprefix(f"{folder_key(received)}/")
    left_there = names(open_artifacts(host("a")), received)
    stored = str(row.root).removeprefix(f"{folder_key(received)}/")
    assert {name.partition("/")[0] for name in left_there} == {index, stored}
    assert {f"{index}/facts.json", f"{index}/train.json", f"{index}/val.json"} <= left_there
