"""Pause, resume, retry, delete, attempts and workers on the command line and in the client."""

import threading

import pytest

from client import watching
from client.errors import ApiError
from store import claims, workers
from store.states import Outcome


@pytest.fixture
def job_id(client, spec) -> str:
    return client.submit({**spec, "resources": {"queue": "quiet"}}).id


def claim(database, job_id):
    with database.write() as session:
        found = claims.claim(job_id, "tester", lease_seconds=600, session=session)
        claims.mark_started(found, resumed_from_step=0, total_steps=20, epochs=2, session=session)
    return found


def test_a_job_rests_waits_and_is_moved_in_its_queue(tid, job_id) -> None:
    assert "paused" in tid("pause", job_id).out
    assert "until `tid resume`" in tid("show", job_id).out
    assert "queued (no worker of the queue 'quiet' is online)" in tid("resume", job_id[:8]).out
    assert "queued" in tid("priority", job_id, 2).out
    shown = tid("show", job_id).out
    assert "no_worker: no worker of the queue 'quiet' is online; place 1 of quiet (priority 2)" in shown
    (line,) = [line for line in tid("jobs").out.splitlines() if job_id in line]
    assert "queued (no_worker, #1)" in line
    assert tid("priority", job_id, 12).code == 2
    assert "cancelled" in tid("cancel", job_id).out
    refused = tid("pause", job_id)
    assert refused.code == 1
    assert "possible: retry, delete" in refused.err


def test_a_failed_job_is_tried_again_or_forgotten(tid, client, job_id, database) -> None:
    assert "no worker has had it" in tid("attempts", job_id).out
    first = claim(database, job_id)
    assert "its lease runs until" in tid("attempts", job_id).out
    with database.write() as session:
        claims.finish(first, Outcome.FAILED, reason="non_finite_loss", detail="loss is nan", session=session)
    told = tid("attempts", job_id).out
    assert all(word in told for word in ("tester", "failed", "non_finite_loss", "loss is nan"))
    assert "queued" in tid("retry", job_id, "--fresh").out
    refused = tid("delete", job_id)
    assert (refused.code, "cancel it first" in refused.err) == (1, True)
    tid("cancel", job_id)
    assert client.retry(job_id).status_reason == "retried"
    client.cancel(job_id)
    assert "deleted" in tid("delete", job_id).out
    with pytest.raises(ApiError, match="job_not_found"):
        client.job(job_id)


def test_watch_goes_on_through_a_pause_and_ends_with_the_job(tid, client, job_id, database, monkeypatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.05)
    ended = {}
    watcher = threading.Thread(target=lambda: ended.update(code=watching.follow(client, job_id)))
    watcher.start()
    running = claim(database, job_id)
    with database.write() as session:
        claims.record_progress(running, step=5, epoch=1, eta_seconds=1.0, progress={}, session=session)
    client.pause(job_id)
    with database.write() as session:
        claims.hand_back(running, reason="paused", session=session)
    assert client.resume(job_id).state == "queued"
    with database.write() as session:
        claims.finish(claim(database, job_id), Outcome.SUCCEEDED, session=session)
    watcher.join()
    assert ended == {"code": 0}


def test_workers_are_listed_drained_and_undrained(tid, client, spec, database) -> None:
    with database.write() as session:
        workers.register("host/gpu 0", hostname="h", pid=1, queues=["quiet"], device={"cpus": 4}, session=session)
    try:
        listed = tid("workers").out
        assert all(word in listed for word in ("host/gpu 0", "idle", "quiet", "4 CPUs"))
        assert "drained" in tid("workers", "drain", "host/gpu 0", "--wait").out
        assert client.workers()[0].draining == "wait"
        assert "idle" in tid("workers", "undrain", "host/gpu 0").out
        problem = "the driver 570.133.20 runs CUDA 12.8"
        gpus = [{"name": "NVIDIA L4", "memory_total_mib": 23034, "problem": problem}] * 2
        device = {"gpus": gpus, "driver": "570.133.20"}
        with database.write() as session:
            workers.register("host/gpu 0", hostname="rack7", pid=1, queues=["quiet"], device=device, session=session)
        listed = tid("workers").out
        assert all(word in listed for word in ("rack7", "2 x NVIDIA L4 (22.4 GiB), driver 570.133.20"))
        assert listed.count(f"host/gpu 0 cannot use a GPU: {problem}") == 1
        wants = {**spec, "resources": {"queue": "quiet", "gpus": 2}, "training": {"batch_size": 2}}
        job = client.submit(wants)
        shown = tid("show", job.id).out
        assert "no_fitting_worker: no worker of the queue 'quiet' has 2 GPUs: none has a GPU that it can use" in shown
        assert "place" not in shown
        (line,) = [line for line in tid("jobs").out.splitlines() if job.id in line]
        assert "queued (no_fitting_worker)" in line
        client.cancel(job.id)
        missing = tid("workers", "drain", "nobody")
        assert (missing.code, "no worker 'nobody'" in missing.err) == (1, True)
    finally:
        with database.write() as session:
            workers.sign_off("host/gpu 0", session=session)
