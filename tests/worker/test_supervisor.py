"""Attempts at jobs: the real training as the child, and faults thrown in from outside.

The fixtures `lite` (SQLite) and `remote` (PostgreSQL) are a service without API and broker; see conftest.
"""

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from store import control, logs, outputs, resume_states
from store.artifacts import open_artifacts
from store.control import request_pause
from store.db import db_now
from store.ids import new_id
from store.models import Dataset, Job
from store.reaper import expire_leases
from store.states import Outcome, State
from tid_core.events import TrainingFailure
from worker.planning import prepare
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag
from worker.supervisor import work
from worker.uploads import Storage

STEPS = 24
Undisturbed = tuple[dict[str, str], dict[tuple[str, int], float]]


def test_with_a_bucket_a_job_goes_on_in_a_worker_that_has_an_empty_disk(
    lite: Any, undisturbed: Undisturbed, s3_server: Any, tmp_path: Path
) -> None:
    """Killed on one machine, continued on another, which shares nothing with it but the database and the bucket; and
    the student can teach there.
    """
    place = s3_server.settings(tmp_path / "home", f"worker-{new_id()}")
    names = ("artifacts", "s3_endpoint", "s3_access_key_id", "s3_secret_access_key")
    lite.settings = lite.settings.model_copy(update={name: getattr(place, name) for name in names})
    index, artifacts = lite.settings.home / "artifacts" / "datasets" / "digits", open_artifacts(lite.settings)
    for file in index.iterdir():
        artifacts.put(f"datasets/digits/{file.name}", file)
    job_id = lite.submit()
    thread = lite.start(job_id)
    os.kill(lite.freeze(job_id, step=5), signal.SIGKILL)
    thread.join()
    assert lite.job(job_id).state is State.QUEUED
    with lite.database.read() as session:
        saved = resume_states.keys(job_id, session=session)
    assert all(artifacts.size(f"{key}/manifest.json") for key in saved)

    shutil.rmtree(lite.settings.home / "work")
    shutil.rmtree(lite.settings.home / "artifacts")
    lite.settings = lite.settings.model_copy(update={"home": tmp_path / "another", "worker_id": "worker-2"})
    assert lite.run(job_id).state is State.SUCCEEDED
    assert lite.attempts(job_id)[1].resumed_from_step >= 4
    assert (lite.weights(job_id), lite.curves(job_id)) == undisturbed
    assert {path.name for path in (tmp_path / "another").rglob("*") if path.is_file()} == set()
    assert [one.name for one in artifacts.listing() if "/resume/" in one.name] == []

    claim = lite.claim(lite.submit(teacher={"weights": {"job": job_id}}, method="none", baseline=False), "worker-2")
    storage = Storage(lite.settings, claim)
    plan = prepare(claim, lite.database, lite.settings, storage, tmp_path / "scratch" / "attempt-1")
    assert hashlib.sha256(plan.teacher.file.read_bytes()).hexdigest() == lite.weights(job_id)["best"]
    assert plan.teacher.file.is_relative_to(tmp_path / "scratch" / "attempt-1")
    artifacts.delete(f"jobs/{job_id}")
    with pytest.raises(TrainingFailure, match=r"best\.safetensors is not in the artifact store"):
        prepare(claim, lite.database, lite.settings, storage, tmp_path / "scratch" / "attempt-1")
    storage.close()


def test_no_job_is_begun_whose_files_nobody_would_keep(lite: Any, caplog: pytest.LogCaptureFixture) -> None:
    job_id = lite.submit()
    away = {"artifacts": "s3://artifacts/x", "s3_endpoint": "http://127.0.0.1:1"}
    keys = {"s3_access_key_id": "key", "s3_secret_access_key": "secret"}
    same = {name: getattr(lite.settings, name) for name in ("home", "database_url", "data_roots", "worker_id")}
    work(WorkerSettings(**same, **keys, **away), StopFlag())
    assert (lite.job(job_id).state, lite.attempts(job_id)) == (State.QUEUED, [])
    assert (
        "no job is taken while the artifact store takes no files: s3://artifacts/x: http://127.0.0.1:1" in caplog.text
    )


def test_a_job_is_run_once_and_recorded_whole(remote: Any, undisturbed: Undisturbed) -> None:
    """On PostgreSQL what it is on SQLite, bit for bit."""
    job_id = remote.submit()
    job = remote.run(job_id)
    assert (job.state, job.status_reason, job.step, job.total_steps) == (State.SUCCEEDED, None, STEPS, STEPS)
    assert job.run_facts["device"] == "cpu"
    curves = remote.curves(job_id)
    assert [step for name, step in sorted(curves) if name == "loss/total"] == list(range(1, STEPS + 1))
    assert job.best_ap == max(value for (name, _), value in curves.items() if name == "val/AP")
    assert (remote.weights(job_id), curves) == undisturbed
    with remote.database.read() as session:
        assert resume_states.keys(job_id, session=session) == []
        assert [file.kind for file in outputs.of_job(job_id, session=session)] == ["detections"]
    assert not (remote.settings.home / "work" / job_id / "attempt-1").exists()
    assert list(remote.settings.artifacts.rglob("state.pt")) == []

    remote.run(job_id)  # the same message again
    assert len(remote.attempts(job_id)) == 1


def test_attempts_go_on_where_the_last_state_was_saved(lite: Any, undisturbed: Undisturbed) -> None:
    """The training is killed, then paused and resumed, then its worker stops; the last attempt ends it as if nothing
    had been.
    """
    job_id = lite.submit()
    thread = lite.start(job_id)
    os.kill(lite.freeze(job_id, step=5), signal.SIGKILL)
    thread.join()
    assert lite.job(job_id).state is State.QUEUED

    thread = lite.start(job_id)
    child = lite.freeze(job_id, step=9, attempt=2)
    with lite.database.write() as session:
        assert control.request_pause(job_id, session=session).state is State.PAUSING
    os.kill(child, signal.SIGCONT)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    job = lite.run(job_id)  # nobody gets it
    assert (job.state, job.status_reason) == (State.PAUSED, "user")
    with lite.database.write() as session:
        assert [one.id for one in control.request_resume(job_id, session=session).queued] == [job_id]

    thread = lite.start(job_id)
    child = lite.freeze(job_id, step=15, attempt=3)
    lite.stop.set()
    os.kill(child, signal.SIGCONT)
    thread.join()
    job = lite.job(job_id)
    assert (job.state, job.status_reason) == (State.QUEUED, "worker_stopped")
    assert lite.run(job_id).state is State.QUEUED  # a stopping worker claims nothing

    lite.stop = StopFlag()
    assert lite.run(job_id).state is State.SUCCEEDED
    killed, paused, handed_back, last = lite.attempts(job_id)
    assert (killed.outcome, killed.reason) == (Outcome.CRASHED, "child_killed")
    assert paused.resumed_from_step >= 4  # the state at 5 may have been written and not yet announced
    assert (paused.outcome, paused.reason) == (Outcome.HANDED_BACK, "paused")
    assert "saved its state and ended" in paused.detail
    assert handed_back.resumed_from_step == paused.last_step >= 9
    assert (handed_back.outcome, handed_back.reason) == (Outcome.HANDED_BACK, "worker_stopped")
    assert last.resumed_from_step == handed_back.last_step
    assert (lite.weights(job_id), lite.curves(job_id)) == undisturbed


def test_an_owner_that_lost_its_job_writes_nothing_more(lite: Any) -> None:
    """As after a long freeze of the worker: the job has gone to another while this training still runs."""
    job_id = lite.submit()
    thread = lite.start(job_id)
    child = lite.freeze(job_id, step=3)
    with lite.database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=db_now(-1.0)))
        assert len(expire_leases(session=session)) == 1
    lite.claim(job_id, "worker-2")
    before = lite.curves(job_id)
    os.kill(child, signal.SIGCONT)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    job = lite.job(job_id)
    assert (job.state, job.worker_id, job.attempt) == (State.STARTING, "worker-2", 2)
    assert lite.curves(job_id) == before
    assert [attempt.outcome for attempt in lite.attempts(job_id)] == [Outcome.LOST, None]


def test_a_cancelled_training_that_does_not_stop_is_killed(lite: Any) -> None:
    lite.settings = lite.settings.model_copy(update={"cancel_grace_seconds": 0.2})
    job_id = lite.submit()
    thread = lite.start(job_id)
    child = lite.freeze(job_id, step=2)  # frozen, it cannot hear SIGTERM
    lite.cancel(job_id)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    job = lite.job(job_id)
    assert (job.state, job.status_reason) == (State.CANCELLED, "user")
    (attempt,) = lite.attempts(job_id)
    assert (attempt.outcome, attempt.reason, attempt.detail) == (Outcome.CANCELLED, "user", job.detail)
    assert "was killed (SIGKILL)" in job.detail


def test_a_training_outlives_an_absence_of_the_database(
    remote: Any, undisturbed: Undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says meanwhile is kept and written afterwards, without holes."""
    job_id = remote.submit()
    thread = remote.start(job_id)
    child = remote.freeze(job_id, step=2)
    with remote.database_away():
        os.kill(child, signal.SIGCONT)
        remote.wait_for(lambda: "training goes on" in caplog.text)
        remote.freeze(job_id, step=10)
        os.kill(child, signal.SIGCONT)
    thread.join()
    assert remote.job(job_id).state is State.SUCCEEDED
    assert len(remote.attempts(job_id)) == 1
    assert (remote.weights(job_id), remote.curves(job_id)) == undisturbed


def test_an_owner_without_a_database_gives_up_in_the_end(remote: Any) -> None:
    remote.settings = remote.settings.model_copy(
        update={"lease_seconds": 0.4, "heartbeat_seconds": 0.1, "offline_seconds": 1.2}
    )
    job_id = remote.submit()
    thread = remote.start(job_id)
    child = remote.freeze(job_id, step=1)
    with remote.database_away():
        thread.join()
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_dataset_that_is_gone_fails_the_job_for_good(lite: Any, digits: Path, tmp_path: Path) -> None:
    job_id = lite.submit()
    moved = digits.rename(tmp_path / "moved")
    try:
        job = lite.run(job_id)
    finally:
        moved.rename(digits)
    assert (job.state, job.status_reason) == (State.FAILED, "dataset_invalid")
    assert str(digits) in job.detail


def test_annotations_are_those_that_were_looked_through(lite: Any, digits: Path) -> None:
    """Another order of classes would go unnoticed, and be wrong, in every student that this job teaches."""
    job_id, annotations = lite.submit(), digits / "train.json"
    before = annotations.read_text()
    annotations.write_text("what somebody wrote since")
    try:
        job = lite.run(job_id)
    finally:
        annotations.write_text(before)
    assert job.state is State.SUCCEEDED, job.detail


def test_a_job_waits_for_its_dataset_and_fails_where_that_is_invalid(lite: Any, digits: Path) -> None:
    job_id = lite.submit()
    with lite.database.write() as session:
        session.execute(update(Dataset).values(state="validating"))
    assert lite.run(job_id).state is State.QUEUED
    report = [{"code": "classes_changed", "detail": "they were others"}]
    with lite.database.write() as session:
        session.execute(update(Dataset).values(state="invalid", report=report))
    job = lite.run(job_id)
    assert (job.state, job.status_reason) == (State.FAILED, "dataset_invalid")
    assert "they were others" in job.detail


def test_an_index_that_is_gone_fails_the_job_with_its_place(lite: Any) -> None:
    job_id = lite.submit()
    shutil.rmtree(lite.settings.artifacts / "datasets")
    job = lite.run(job_id)
    assert (job.state, job.status_reason) == (State.FAILED, "dataset_invalid")
    assert str(lite.settings.artifacts) in job.detail


def test_a_teacher_that_never_succeeded_fails_the_job(lite: Any) -> None:
    teacher = lite.submit()
    job_id = lite.submit(teacher={"weights": {"job": teacher}}, method="none", baseline=False)
    job = lite.run(job_id)
    assert (job.state, job.status_reason) == (State.FAILED, "teacher_not_ready")
    assert f"job {teacher} is queued" in job.detail


def test_a_store_that_takes_no_files_costs_the_attempt_not_the_job(lite: Any) -> None:
    """The attempt ran well, but its students could not be kept: another one follows."""
    lite.settings = lite.settings.model_copy(update={"storage_seconds": 0.01})
    (lite.settings.artifacts / "jobs").write_text("a file where a folder should be")
    job_id = lite.submit(training={"epochs": 1})
    job = lite.run(job_id)
    assert (job.state, job.status_reason) == (State.QUEUED, "storage_failed")
    assert "does not take" in job.detail
    assert "storage_failed" in {warning["code"] for warning in job.warnings}
    with lite.database.read() as session:
        assert resume_states.keys(job_id, session=session) == []


def test_a_pause_does_not_wait_for_the_store_and_costs_no_attempt(lite: Any) -> None:
    """The training has ended; what could not be stored is trained again, from what could."""
    lite.settings = lite.settings.model_copy(update={"storage_seconds": 3600.0, "heartbeat_seconds": 0.2})
    (lite.settings.artifacts / "jobs").write_text("a file where a folder should be")
    job_id = lite.submit(training={"epochs": 1})
    thread = lite.start(job_id)
    training = lite.freeze(job_id, step=1)
    os.kill(training, signal.SIGCONT)
    lite.wait_for(lambda: not Path(f"/proc/{training}").exists())
    with lite.database.write() as session:
        request_pause(job_id, session=session)
    thread.join()
    job = lite.job(job_id)
    assert job.state is State.PAUSED
    assert "does not take" in job.detail
    assert [(one.outcome, one.reason) for one in lite.attempts(job_id)] == [(Outcome.HANDED_BACK, "paused")]


def test_a_failure_of_the_training_is_final_and_its_last_words_are_kept(lite: Any) -> None:
    job_id = lite.submit(training={"lr": 1e30})
    job = lite.run(job_id)
    assert (job.state, job.status_reason) == (State.FAILED, "non_finite_loss")
    with lite.database.read() as session:
        assert "failed: non_finite_loss" in logs.tail(job_id, session=session)
