"""A worker whose artifacts lie in a bucket that is away, refuses, or comes back."""

from pathlib import Path

import pytest

from store.artifacts import ArtifactDamaged, open_artifacts
from store.fencing import Claim
from store.ids import new_id
from tests.s3 import KEY_ID, SECRET, S3Server
from tests.wire import wire_to
from worker import preflight
from worker.settings import WorkerSettings
from worker.uploads import Storage, StorageFailed

CLAIM = Claim(job_id="0123456789ab", attempt=1, token="t", worker_id="w")


def settings(server: S3Server, home: Path, **changes: object) -> WorkerSettings:
    keys = {"s3_access_key_id": KEY_ID, "s3_secret_access_key": SECRET}
    place = {"home": home, "artifacts": server.place(f"worker-{new_id()}"), "s3_endpoint": server.endpoint}
    return WorkerSettings(**{**keys, **place, **changes})


def test_what_an_attempt_needs_is_waited_for_while_the_bucket_is_away(s3_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"teacher")
    with wire_to(int(s3_server.endpoint.rpartition(":")[2]), (0, 0, 0, 0, 0, 0)) as wire:
        through = settings(s3_server, tmp_path / "home", s3_endpoint=wire.url, storage_seconds=60.0)
        stored = open_artifacts(through.model_copy(update={"s3_endpoint": s3_server.endpoint})).put(
            "jobs/a/best.pt", tmp_path / "teacher.pt"
        )
        storage = Storage(through, CLAIM)
        found = storage.submit(lambda: storage.fetch(stored.key, tmp_path / "here.pt", sha256=stored.sha256)).result()
        assert found.read_bytes() == b"teacher"
        assert wire.connections > 6, "more than the library tries by itself"
        with pytest.raises(ArtifactDamaged):
            storage.fetch(stored.key, tmp_path / "other.pt", sha256="0" * 64)
        with pytest.raises(FileNotFoundError):
            storage.fetch("jobs/b/best.pt", tmp_path / "other.pt")
        storage.close()


def test_a_bucket_that_stays_away_is_the_reason_that_is_told(s3_server: S3Server, tmp_path: Path) -> None:
    away = settings(s3_server, tmp_path / "home", s3_endpoint="http://127.0.0.1:1", storage_seconds=0.01)
    storage = Storage(away, CLAIM)
    with pytest.raises(StorageFailed, match="the artifact store does not give s3://artifacts/") as failed:
        storage.fetch("jobs/a/best.pt", tmp_path / "here.pt")
    assert failed.value.ending.reason == "storage_failed"
    storage.close()


def test_a_worker_that_the_bucket_refuses_does_not_start_and_one_that_waits_for_it_does(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3_server.environment("start"), "TID_S3_ACCESS_KEY_ID": "nobody"}.items():
        monkeypatch.setenv(name, value)
    refusal = preflight._of_artifacts(WorkerSettings(home=tmp_path))
    assert refusal is not None
    assert "answers 403 InvalidAccessKeyId" in refusal
    assert "TID_S3_ACCESS_KEY_ID must be a key that the server knows" in refusal
    monkeypatch.setenv("TID_S3_ENDPOINT", "http://127.0.0.1:1")
    assert preflight._of_artifacts(WorkerSettings(home=tmp_path)) is None
