"""Files on their way into the artifact store."""

import hashlib
from pathlib import Path

import pytest

from store.fencing import Claim
from tid_core.events import Checkpoint, ResumeState
from worker.settings import WorkerSettings
from worker.uploads import Storage


@pytest.fixture
def patient(tmp_path: Path) -> Storage:
    claim = Claim(job_id="0123456789ab", attempt=1, token="t", worker_id="w")
    return Storage(WorkerSettings(home=tmp_path / "home", storage_seconds=3600.0), claim)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    claim = Claim(job_id="0123456789ab", attempt=1, token="t", worker_id="w")
    return Storage(WorkerSettings(home=tmp_path / "home", storage_seconds=0.01), claim)


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home" / "artifacts").rglob("*") if path.is_file())


def test_a_state_that_was_replaced_while_it_was_stored_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    event = ResumeState(step=10, epoch=1, path=tmp_path / "step-00000010")
    (tmp_path / "half").write_bytes(b"stored before the training deleted the rest")
    storage._store.put(f"{storage.state_key(event)}/state.pt", tmp_path / "half")
    storage.upload(event)
    while storage.busy:
        pass
    assert storage.collect() == []
    storage.close()
    assert stored(tmp_path) == []


def test_a_checkpoint_that_was_replaced_while_it_was_stored_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    file.write_bytes(b"of a later step")
    event = Checkpoint(name="best", step=10, epoch=1, ap=0.5, files={"pt": file}, sha256={"pt": "0" * 64})
    storage.upload(event)
    while storage.busy:
        pass
    (upload,) = storage.collect()
    assert upload.failure is not None
    assert upload.failure.reason == "checkpoint_changed"
    storage.close()
    assert stored(tmp_path) == []


def checkpoint(tmp_path: Path, *, step: int) -> Checkpoint:
    file = tmp_path / f"{step}" / "last.pt"
    file.parent.mkdir()
    file.write_bytes(b"x" * step)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Checkpoint(name="last", step=step, epoch=step, ap=None, files={"pt": file}, sha256={"pt": digest})


def test_of_checkpoints_that_wait_for_the_store_the_newest_is_kept(patient: Storage, tmp_path: Path) -> None:
    blocker = tmp_path / "home" / "artifacts" / "jobs"
    blocker.write_text("a file where a folder should be")
    for step in (1, 2, 3):
        patient.upload(checkpoint(tmp_path, step=step))
    while patient.trouble is None:
        pass
    blocker.unlink()
    while patient.busy:
        pass
    (upload,) = patient.collect()
    assert (upload.event.step, upload.failure, patient.trouble) == (3, None, None)
    patient.close()
    assert stored(tmp_path) == ["last.pt"]


def test_what_waits_is_given_up_at_once_when_the_worker_stops(patient: Storage, tmp_path: Path) -> None:
    (tmp_path / "home" / "artifacts" / "jobs").write_text("a file where a folder should be")
    patient.upload(checkpoint(tmp_path, step=1))
    while patient.trouble is None:
        pass
    patient.give_up()
    while patient.busy:
        pass
    (upload,) = patient.collect()
    assert upload.failure is not None
    assert upload.failure.reason == "storage_failed"
    patient.close()


def test_what_is_to_be_deleted_is_deleted_before_the_end(storage: Storage, tmp_path: Path) -> None:
    keys = []
    for number in range(20):
        (tmp_path / "file").write_bytes(b"x" * number)
        keys.append(storage._store.put(f"jobs/a/{number}", tmp_path / "file").key)
    for key in keys:
        storage.discard([key])
    storage.close()
    assert stored(tmp_path) == []
