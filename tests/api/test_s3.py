"""The API with its artifacts in a bucket: what is redirected and what is not, and a server that is away."""

import hashlib
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.__main__ import main as run_server
from api.app import create_app
from client.client import Client
from store import keys
from store.artifacts import open_artifacts
from store.db import Database, db_now
from store.ids import new_id
from store.models import Artifact, Checkpoint, Dataset, Job
from store.monitoring import log_lines
from store.s3 import S3Artifacts
from store.settings import Settings
from tests.s3 import BUCKET, SECRET, S3Server
from tests.wire import Wire, wire_to

SIZE = 1_000_000


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Files come from a bucket: one kind of database will do."""
    return sqlite_url


@pytest.fixture
def wire(s3_server: S3Server) -> Iterator[Wire]:
    """By which clients reach the bucket; its first two connections break."""
    with wire_to(int(s3_server.endpoint.rsplit(":", 1)[1]), (300_000, 400_000)) as wire:
        yield wire


@pytest.fixture
def settings(settings: Settings, s3_server: S3Server, wire: Wire) -> Settings:
    same = {name: getattr(settings, name) for name in ("database_url", "broker_url", "reaper_seconds")}
    redirect = {"s3_redirect": True, "s3_public_endpoint": wire.url}
    return s3_server.settings(settings.home, f"api-{new_id()}", **same, **redirect)


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture
def job_id(
    submit: Callable[..., dict[str, Any]], database: Database, settings: Settings, content: bytes, tmp_path: Path
) -> str:
    """A job with a checkpoint and a map in the bucket."""
    job_id: str = submit()["id"]
    (tmp_path / "content").write_bytes(content)
    for name in ("best.safetensors", "17.png"):
        open_artifacts(settings).put(f"jobs/{job_id}/attempt-1/{name}", tmp_path / "content")
    same = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": SIZE, "attempt": 1, "job_id": job_id}
    at = f"jobs/{job_id}/attempt-1"
    with database.write() as session:
        row = {"name": "best", "format": "safetensors", "step": 5, "epoch": 1, "ap": 0.5}
        session.add(Checkpoint(key=f"{at}/best.safetensors", **row, **same))
        session.add(Artifact(kind="map", name="17.png", key=f"{at}/17.png", **same))
    return job_id


def test_a_download_is_redirected_resumed_and_checked_and_the_key_stays_here(
    server: httpx.Client, database: Database, job_id: str, content: bytes, wire: Wire, tmp_path: Path
) -> None:
    with database.write() as session:
        key = keys.create("reader", "read", session=session).key
    with Client(str(server.base_url), api_key=key, backoff=0.01) as client:
        sha256 = client.download(job_id, path=tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == content
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert wire.connections >= 3
    assert wire.answered < SIZE * 1.05, "every byte came once, headers aside"
    asked = bytes(wire.asked).decode().lower()
    assert "range: bytes=" in asked
    assert "authorization" not in asked
    assert key.lower() not in asked


def test_what_is_saved_is_redirected_and_what_is_shown_or_asked_about_is_not(
    server: httpx.Client, job_id: str, content: bytes, wire: Wire
) -> None:
    url, sha256 = f"/jobs/{job_id}/checkpoints/best", hashlib.sha256(content).hexdigest()
    sent_on = server.get(url)
    assert (sent_on.status_code, sent_on.headers["X-Checksum-SHA256"]) == (307, sha256)
    assert sent_on.headers["Location"].startswith(f"{wire.url}/{BUCKET}/")
    assert sent_on.headers["Cache-Control"] == "no-store"
    head = server.head(url)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(SIZE))
    assert server.get(url, headers={"Range": f"bytes={SIZE}-"}).status_code == 416
    assert server.get(url, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304
    picture = server.get(f"/jobs/{job_id}/maps/17.png")
    assert (picture.status_code, picture.content) == (200, content)


def test_a_job_that_is_deleted_leaves_nothing_in_the_bucket(
    client: TestClient, database: Database, job_id: str, settings: Settings
) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state="succeeded", ended_at=db_now()))
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert list(open_artifacts(settings).listing("jobs")) == []


def test_nobody_waits_to_write_while_the_bucket_is_asked_about_a_deletion(
    client: TestClient, database: Database, job_id: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_meanwhile(_store: S3Artifacts, key: str) -> None:
        asked.append(key)
        with closing(sqlite3.connect(str(database.engine.url.database), timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")

    asked: list[str] = []
    monkeypatch.setattr(S3Artifacts, "condemn", write_meanwhile)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state="succeeded", ended_at=db_now()))
        dataset_id = session.get_one(Job, job_id).dataset_id
    assert client.delete(f"/datasets/{dataset_id}").status_code == 409
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert asked == [f"jobs/{job_id}", f"datasets/{dataset_id}"]


def test_no_connection_to_the_database_waits_for_the_bucket(
    client: TestClient, database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_store: S3Artifacts, key: str, *_part: int) -> Any:
        deadline = time.monotonic() + 3  # threads beside this request have one for moments
        while (held := database.engine.pool.checkedout()) and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)
        connections.append(held)
        raise FileNotFoundError(key)

    connections: list[int] = []
    with database.write() as session:
        dataset = session.get_one(Dataset, session.get_one(Job, job_id).dataset_id)
        session.add(Artifact(kind="report", name="r", key="r", sha256="0" * 64, bytes=1, attempt=1, job_id=job_id))
    monkeypatch.setattr(S3Artifacts, "size", answer)
    monkeypatch.setattr(S3Artifacts, "stream", answer)
    job = f"/jobs/{job_id}"
    for url in (
        f"{job}/checkpoints/best",
        f"{job}/maps/17.png",
        f"{job}/artifacts/r",
        f"/datasets/{dataset.id}/sample",
    ):
        assert client.get(url).json()["code"] in ("file_gone", "artifacts_unavailable")
    assert set(connections) == {0}


AWAY = {"s3_endpoint": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("wrong", "detail", "remedy"),
    [(AWAY, "does not answer", "TID_S3_ENDPOINT"), ({"s3_access_key_id": "x"}, "InvalidAccessKeyId", "ACCESS_KEY_ID")],
)
def test_a_server_whose_bucket_is_away_or_refuses_starts_and_says_so(
    settings: Settings, job_id: str, wrong: dict[str, str], detail: str, remedy: str
) -> None:
    with TestClient(create_app(settings.model_copy(update=wrong)), base_url="http://127.0.0.1") as client:
        found = {one["name"]: one for one in client.get("/readyz").json()["dependencies"]}["artifacts"]
        assert (found["ok"], found["required"]) == (False, True)
        assert detail in found["detail"]
        assert remedy in found["remedy"]
        answer = client.get(f"/jobs/{job_id}/checkpoints/best")
        assert (answer.status_code, answer.json()["code"]) == (503, "artifacts_unavailable")
        assert client.get(f"/jobs/{job_id}").status_code == 200


def test_a_bucket_that_answers_is_well(client: TestClient) -> None:
    found = {one["name"]: one for one in client.get("/readyz").json()["dependencies"]}
    assert found["artifacts"]["ok"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"TID_S3_SECRET_ACCESS_KEY": "wr0ng"}, "403 SignatureDoesNotMatch .* must be the secret of"),
        ({"TID_ARTIFACTS": "s3://no-such-bucket/x"}, "404 NoSuchBucket .* make the bucket no-such-bucket"),
    ],
)
def test_a_server_that_the_bucket_refuses_does_not_start_and_says_why_in_one_line(
    s3_server: S3Server,
    sqlite_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, str],
    says: str,
) -> None:
    place = {"TID_HOME": str(tmp_path), "TID_DATABASE_URL": sqlite_url, "TID_PORT": "0"}
    for name, value in {**s3_server.environment("start"), **place, **wrong}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(log_lines, "configure", lambda _settings: None)  # the log belongs to pytest
    assert run_server() == 3
    told = capsys.readouterr().err
    assert re.fullmatch(rf"the server cannot start: s3://.* answers {says}.*\n", told)
    assert not [secret for secret in ("wr0ng", SECRET) if secret in told]
