"""Garbage, backups and what comes back, with the artifacts in a bucket."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from store import checkpoints, claims, deletion, resume_states
from store.artifacts import CONDEMNED, ArtifactStore, attempt_key, open_artifacts
from store.db import Database
from store.errors import BackupError
from store.fencing import Claim
from store.ids import new_id
from store.models import Job
from store.settings import Settings
from store.states import Outcome
from store.upkeep.backup import MANIFEST, back_up
from store.upkeep.garbage import Kind
from store.upkeep.gc import Total, collect
from store.upkeep.restore import restore
from tests.s3 import S3Server

Put = Callable[..., str]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """What is special here is not the database."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tid.db").write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{tmp_path}/home/tid.db"


@pytest.fixture
def settings(tmp_path: Path, s3_server: S3Server, database_url: str) -> Settings:
    return s3_server.settings(tmp_path / "home", f"upkeep-{new_id()}")


@pytest.fixture
def artifacts(settings: Settings) -> ArtifactStore:
    return open_artifacts(settings)


@pytest.fixture
def put(artifacts: ArtifactStore, tmp_path: Path) -> Put:
    def put(key: str, content: bytes = b"1234") -> str:
        (tmp_path / "source").write_bytes(content)
        return artifacts.put(key, tmp_path / "source").sha256

    return put


@pytest.fixture
def claim(world: Any, put: Put) -> Claim:
    """A job with a checkpoint and a state."""
    claim: Claim = world.start(world.submit().id)
    prefix = attempt_key(claim.job_id, 1)
    place = {"key": f"{prefix}/best.pt", "sha256": put(f"{prefix}/best.pt", b"best"), "num_bytes": 4}
    manifest = {"files": {"state.pt": {"sha256": put(f"{prefix}/resume/step-2/state.pt", b"state")}}}
    put(f"{prefix}/resume/step-2/manifest.json", json.dumps(manifest).encode())
    with world.database.write() as session:
        row = {"name": "best", "file_format": "safetensors", "step": 2, "epoch": 0, "ap": None}
        checkpoints.record(claim, **row, **place, session=session)
        resume_states.record(claim, step=2, epoch=0, key=f"{prefix}/resume/step-2", session=session)
    return claim


def names(artifacts: ArtifactStore) -> set[str]:
    return {one.name for one in artifacts.listing()}


def fail_long_ago(world: Any, claim: Claim) -> None:
    with world.database.write() as session:
        claims.finish(claim, Outcome.FAILED, session=session)
        session.execute(update(Job).where(Job.id == claim.job_id).values(ended_at=datetime(2020, 1, 1, tzinfo=UTC)))


def test_garbage_goes_and_what_rows_name_or_is_young_stays(
    world: Any, settings: Settings, artifacts: ArtifactStore, put: Put, claim: Claim
) -> None:
    prefix, stranger = attempt_key(claim.job_id, 1), f"jobs/{new_id()}/attempt-1/best.pt"
    put(f"{prefix}/orphan.pt")
    put(stranger, b"12345")
    assert collect(world.database, settings)[Kind.ORPHANS] == Total(), "all of it is young"
    old = settings.model_copy(update={"gc_grace_hours": -1.0})
    assert collect(world.database, old)[Kind.ORPHANS] == Total(), "the attempt has an owner"
    fail_long_ago(world, claim)
    totals = collect(world.database, old)
    assert [totals[kind].number for kind in (Kind.STATES, Kind.ORPHANS, Kind.STRANGERS)] == [1, 1, 1]
    assert names(artifacts) == {f"{prefix}/best.pt", stranger}
    collect(world.database, old, strangers=True)
    assert names(artifacts) == {f"{prefix}/best.pt"}


def test_what_a_deletion_that_was_killed_left_is_no_stranger(
    world: Any, settings: Settings, artifacts: ArtifactStore, claim: Claim
) -> None:
    fail_long_ago(world, claim)
    with world.database.write() as session:
        artifacts.condemn(deletion.delete(claim.job_id, session=session))
    assert f"jobs/{claim.job_id}/{CONDEMNED}" in names(artifacts)
    totals = collect(world.database, settings.model_copy(update={"gc_grace_hours": -1.0}))
    assert (totals[Kind.ORPHANS].number, totals[Kind.STRANGERS]) == (4, Total())
    assert names(artifacts) == set()


def test_a_backup_of_a_bucket_comes_back_into_a_bucket_or_a_folder(
    settings: Settings, artifacts: ArtifactStore, put: Put, claim: Claim, s3_server: S3Server, tmp_path: Path
) -> None:
    put("jobs/of-another-database/best.pt")
    before = {name for name in names(artifacts) if claim.job_id in name}
    made = back_up(settings, tmp_path / "copy")
    manifest = json.loads((made / MANIFEST).read_text())
    assert {name for name in manifest["files"] if name != "tid.db"} == {f"artifacts/{name}" for name in before}
    bucket = s3_server.settings(tmp_path / "bucket", f"restored-{new_id()}")
    for elsewhere in (bucket, Settings(home=tmp_path / "folder")):
        restore(elsewhere, made)
        found = open_artifacts(elsewhere)
        assert names(found) == before
        for name in before:
            content = b"".join(found.stream(name))
            assert hashlib.sha256(content).hexdigest() == manifest["files"][f"artifacts/{name}"]["sha256"]
        database = Database(elsewhere.database_url)
        with database.read() as session:
            assert len(resume_states.keys(claim.job_id, session=session)) == 1
        database.close()
    with pytest.raises(BackupError, match="something already in s3://"):
        restore(bucket.model_copy(update={"home": tmp_path / "third"}), made)


def test_rot_and_loss_in_a_bucket_are_told_by_the_backup(
    settings: Settings, artifacts: ArtifactStore, put: Put, claim: Claim, tmp_path: Path
) -> None:
    prefix = attempt_key(claim.job_id, 1)
    put(f"{prefix}/best.pt", b"rot")
    artifacts.delete(f"{prefix}/resume/step-2/state.pt")
    manifest = json.loads((back_up(settings, tmp_path / "copy") / MANIFEST).read_text())
    assert manifest["damaged"] == [f"artifacts/{prefix}/best.pt"]
    assert manifest["missing"] == [f"artifacts/{prefix}/resume/step-2/state.pt"]


def test_a_backup_of_a_bucket_that_is_away_is_none(settings: Settings, claim: Claim, tmp_path: Path) -> None:
    away = settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    with pytest.raises(OSError, match="does not answer"):
        back_up(away, tmp_path / "copies" / "monday")
    assert list((tmp_path / "copies").iterdir()) == []
