"""What may go goes, and nothing that anybody needs or is about to name."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from store import checkpoints, claims, control, deletion, metrics, resume_states, workers
from store.artifacts import FolderArtifacts, attempt_key
from store.fencing import Claim
from store.ids import new_id
from store.metrics import Point
from store.models import Dataset, Job, Metric, ResumeState, Worker
from store.settings import Settings
from store.states import Outcome
from store.upkeep.garbage import Kind, find
from store.upkeep.gc import Total, collect, main
from store.uploads.archives import archive_key

LONG_AGO = datetime.now(UTC) - timedelta(days=100)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(home=tmp_path, database_url=database_url)


@pytest.fixture
def old(settings: Settings) -> Settings:
    """Every file is old enough: nobody can set the change of an inode back."""
    return settings.model_copy(update={"gc_grace_hours": -1.0})


def put(settings: Settings, key: str, content: bytes = b"1234") -> Path:
    source = settings.home / new_id()
    source.write_bytes(content)
    FolderArtifacts(settings.artifacts).put(key, source)
    source.unlink()
    return settings.artifacts / key


def save(world: Any, settings: Settings, claim: Claim, step: int) -> Path:
    key = f"{attempt_key(claim.job_id, claim.attempt)}/resume/step-{step}"
    state = put(settings, f"{key}/state.pt")
    with world.database.write() as session:
        resume_states.record(claim, step=step, epoch=0, key=key, session=session)
    return state


def end(world: Any, claim: Claim, outcome: Outcome = Outcome.FAILED, *, at: datetime = LONG_AGO) -> None:
    with world.database.write() as session:
        claims.finish(claim, outcome, session=session)
        session.execute(update(Job).where(Job.id == claim.job_id).values(ended_at=at))


def test_states_of_a_failure_go_when_nobody_has_retried_it_for_long(world: Any, settings: Settings) -> None:
    kept, gone = world.start(world.submit().id), world.start(world.submit().id)
    states = {claim.job_id: save(world, settings, claim, 3) for claim in (kept, gone)}
    end(world, kept, at=datetime.now(UTC))
    end(world, gone)
    told = list(find(world.database, settings))
    assert [(one.kind, one.name, one.number, one.num_bytes) for one in told] == [
        (Kind.STATES, f"job {gone.job_id}", 1, 4)
    ]
    assert collect(world.database, settings, dry_run=True)[Kind.STATES] == Total(1, 4)
    assert states[gone.job_id].exists()
    assert collect(world.database, settings)[Kind.STATES] == Total(1, 4)
    assert not states[gone.job_id].exists()
    assert states[kept.job_id].exists()
    with world.database.read() as session:
        assert session.scalars(select(ResumeState.job_id)).all() == [kept.job_id]
    assert collect(world.database, settings)[Kind.STATES] == Total()


def test_a_job_that_is_retried_just_before_keeps_its_states(world: Any, settings: Settings) -> None:
    claim = world.start(world.submit().id)
    state = save(world, settings, claim, 3)
    end(world, claim)
    (found,) = find(world.database, settings)
    with world.database.write() as session:
        control.request_retry(claim.job_id, fresh=False, session=session)
    found.delete()
    assert state.exists()
    with world.database.read() as session:
        assert session.scalars(select(func.count()).select_from(ResumeState)).one() == 1


def test_an_artifact_without_a_row_goes_and_one_with_a_row_stays(world: Any, settings: Settings, old: Settings) -> None:
    claim = world.start(world.submit().id)
    prefix = attempt_key(claim.job_id, claim.attempt)
    named, state = put(settings, f"{prefix}/best.pt"), save(world, settings, claim, 3)
    with world.database.write() as session:
        place = {"key": f"{prefix}/best.pt", "sha256": "0" * 64, "num_bytes": 4}
        checkpoints.record(
            claim, name="best", file_format="safetensors", step=1, epoch=0, ap=None, session=session, **place
        )
    end(world, claim, at=datetime.now(UTC))
    orphan, torn = put(settings, f"{prefix}/old/last.pt"), settings.artifacts / prefix / ".tmp-0123"
    torn.write_bytes(b"12")
    assert collect(world.database, old)[Kind.ORPHANS] == Total(2, 6)
    assert named.exists()
    assert state.exists()
    assert not orphan.parent.exists(), "nor is its empty folder left"
    assert not torn.exists()


def test_a_file_that_is_young_is_left_alone(world: Any, settings: Settings) -> None:
    """Its row may be about to be committed; that it was written long before it was put tells nothing."""
    claim = world.start(world.submit().id)
    key = f"{attempt_key(claim.job_id, claim.attempt)}/best.pt"
    end(world, claim, at=datetime.now(UTC))
    source = settings.home / "written-long-ago"
    source.write_bytes(b"1234")
    os.utime(source, (1, 1))
    FolderArtifacts(settings.artifacts).put(key, source)
    assert list(find(world.database, settings)) == []


def test_what_a_running_attempt_has_stored_is_its_own_and_its_predecessor_s_is_not(
    world: Any, settings: Settings, old: Settings
) -> None:
    job_id = world.submit().id
    first = world.start(job_id)
    world.expire(job_id)
    second = world.start(job_id)
    orphan = put(settings, f"{attempt_key(job_id, first.attempt)}/best.pt")
    own = put(settings, f"{attempt_key(job_id, second.attempt)}/best.pt")
    names = (f"attempt-{first.attempt}", f"attempt-{second.attempt}", f"attempt-{second.attempt}-node-1")
    scratch = [settings.home / "work" / job_id / name for name in names]
    for folder in scratch:
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "file").write_bytes(b"123")
    totals = collect(world.database, old)
    assert (totals[Kind.ORPHANS], totals[Kind.SCRATCH]) == (Total(1, 4), Total(1, 3))
    assert not orphan.exists()
    assert own.exists()
    assert [folder.exists() for folder in scratch] == [False, True, True]


def test_of_several_archives_of_a_dataset_the_one_that_counts_stays(
    world: Any, settings: Settings, old: Settings
) -> None:
    """Two senders at once, or one of a process that was killed before it could say what it has."""
    with world.database.write() as session:
        sent = Dataset(id=new_id(), name="sent", source="archive", state="ready", facts={}, index_prefix="datasets/i")
        sent.root = archive_key(sent.id, "1" * 64)
        session.add(sent)
    kept, gone = (put(settings, archive_key(sent.id, digit * 64)) for digit in "12")
    assert collect(world.database, old)[Kind.ORPHANS].number == 1
    assert (kept.exists(), gone.exists()) == (True, False)


def test_strangers_stay_unless_they_are_named(world: Any, settings: Settings, old: Settings) -> None:
    """A wrong TID_DATABASE_URL must not cost the files of another service."""
    theirs = [put(settings, f"jobs/{new_id()}/attempt-1/best.pt"), put(settings, f"datasets/{new_id()}/x/train.json")]
    upload = settings.uploads / new_id()
    upload.mkdir(parents=True)
    (upload / "archive").write_bytes(b"12345")
    assert collect(world.database, old)[Kind.STRANGERS] == Total(3, 13)
    assert all(path.exists() for path in (*theirs, upload))
    collect(world.database, old, strangers=True)
    assert not any(path.exists() for path in (*theirs, upload))
    assert settings.uploads.exists()


def test_what_a_deletion_that_was_killed_left_is_no_stranger(world: Any, settings: Settings, old: Settings) -> None:
    claim = world.start(world.submit().id)
    file = put(settings, f"{attempt_key(claim.job_id, claim.attempt)}/best.pt")
    end(world, claim)
    store = FolderArtifacts(settings.artifacts)
    with world.database.write() as session:
        store.condemn(deletion.delete(claim.job_id, session=session))
    totals = collect(world.database, old)
    assert (totals[Kind.ORPHANS], totals[Kind.STRANGERS]) == (Total(2, 4), Total())
    assert not file.exists()
    assert not (settings.artifacts / "jobs" / claim.job_id).exists()


def test_superseded_points_go_and_the_curve_stays(world: Any, settings: Settings) -> None:
    job_id = world.submit().id
    first = world.start(job_id)
    with world.database.write() as session:
        metrics.record(first, [Point("loss", step, 0, 1.0) for step in range(6)], session=session)
    world.expire(job_id)
    second = world.start(job_id, resumed_from_step=2)
    with world.database.write() as session:
        metrics.record(second, [Point("loss", 3, 0, 2.0)], session=session)
    end(world, second)
    assert collect(world.database, settings)[Kind.METRICS] == Total(2, 0)
    with world.database.read() as session:
        assert session.scalars(select(Metric.step).order_by(Metric.step)).all() == [0, 1, 2, 3]


def test_workers_that_are_long_gone_are_forgotten(world: Any, settings: Settings) -> None:
    owner = "owner"
    world.start(world.submit().id, worker_id=owner)
    with world.database.write() as session:
        for name in ("gone", "here", "drained", owner):
            workers.register(name, hostname="host", pid=1, queues=["default"], device={}, session=session)
        workers.drain("drained", "now", session=session)
        session.execute(update(Worker).where(Worker.id != "here").values(heartbeat_at=LONG_AGO))
    assert collect(world.database, settings)[Kind.WORKERS] == Total(1, 0)
    with world.database.read() as session:
        assert set(session.scalars(select(Worker.id))) == {"here", "drained", owner}


def test_the_command_says_what_it_would_do(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tid.db").write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("TID_HOME", str(tmp_path))
    assert main(["--dry-run"]) == 0
    assert capsys.readouterr().out == "would free 0 B (0 bytes) of 0 things\n"
    monkeypatch.setenv("TID_HOME", str(tmp_path / "x"))
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("tid gc: there is no database")
    assert not (tmp_path / "x").exists()
