"""Pause, resume, retry, priority, delete and drain over HTTP; attempts, and why a job waits."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import checkpoints, claims, resume_states, workers
from store.artifacts import FolderArtifacts
from store.db import Database
from store.fencing import Claim
from store.settings import Settings
from store.states import Outcome

Submit = Callable[..., dict[str, Any]]
Start = Callable[..., Claim]
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}


def ask(client: TestClient, job_id: str, what: str, status: int = 202, **body: Any) -> dict[str, Any]:
    response = client.post(f"/jobs/{job_id}/{what}", **({"json": body} if body else {}))
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def end(database: Database, claim: Claim, outcome: Outcome = Outcome.FAILED, **how: str) -> None:
    with database.write() as session:
        claims.finish(claim, outcome, session=session, **how)


@pytest.fixture
def keep(database: Database, settings: Settings, tmp_path: Any) -> Callable[[Claim], None]:
    """A state and a checkpoint, in the store and on the disk."""
    store = FolderArtifacts(settings.artifacts)

    def keep(claim: Claim) -> None:
        source = tmp_path / "file"
        source.write_bytes(b"weights")
        folder = f"jobs/{claim.job_id}/attempt-{claim.attempt}"
        stored = store.put(f"{folder}/best.safetensors", source)
        store.put(f"{folder}/resume/step-00000010/state.pt", source)
        with database.write() as session:
            checkpoints.record(
                claim, name="best", file_format="safetensors", key=stored.key, sha256=stored.sha256, step=10, epoch=1,
                num_bytes=stored.num_bytes, ap=0.5, session=session,
            )  # fmt: skip
            resume_states.record(claim, step=10, epoch=1, key=f"{folder}/resume/step-00000010", session=session)

    return keep


def test_a_job_and_its_twin_rest_and_wait_again(client: TestClient, submit: Submit) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    paused = ask(client, job["id"], "pause")
    assert (paused["state"], paused["status_reason"]) == ("paused", "user")
    assert paused["waiting"] == {"reason": "paused", "detail": "paused, until it is resumed", "position": None}
    assert client.get(f"/jobs/{job['baseline_job_id']}").json()["state"] == "paused"
    assert ask(client, job["id"], "pause") == paused, "twice is no error"
    resumed = ask(client, job["id"], "resume")
    assert (resumed["state"], resumed["status_reason"], resumed["waiting"]["position"]) == ("queued", "resumed", 1)
    assert client.get(f"/jobs/{job['baseline_job_id']}").json()["waiting"]["position"] == 2
    ask(client, job["id"], "cancel")
    problem = ask(client, job["id"], "resume", 409)
    assert problem["code"] == "illegal_transition"
    assert "possible: retry, delete" in problem["detail"]


def test_why_jobs_wait_is_told_in_lists_and_changes_with_the_workers(
    client: TestClient, database: Database, submit: Submit
) -> None:
    first, second = submit()["id"], submit(resources={"priority": 2})["id"]

    def told() -> dict[str, tuple[str, int]]:
        listed = client.get("/jobs").json()["data"]
        return {job["id"]: (job["waiting"]["reason"], job["waiting"]["position"]) for job in listed}

    assert told() == {first: ("no_worker", 2), second: ("no_worker", 1)}
    with database.write() as session:
        workers.register("w", hostname="h", pid=1, queues=["default"], device={}, session=session)
    assert told() == {first: ("busy", 2), second: ("starting_soon", 1)}
    changed = client.patch(f"/jobs/{first}", json={"priority": 0})
    assert (changed.status_code, changed.json()["priority"]) == (200, 0)
    assert changed.json()["spec"]["resources"]["priority"] == 5, "as submitted"
    assert told() == {first: ("starting_soon", 1), second: ("busy", 2)}
    assert client.patch(f"/jobs/{first}", json={"priority": 10}).status_code == 422


def test_a_drained_worker_says_so_and_jobs_say_that_they_wait_for_it(
    client: TestClient, database: Database, submit: Submit
) -> None:
    job_id = submit()["id"]
    with database.write() as session:
        workers.register("w", hostname="h", pid=1, queues=["default"], device={}, session=session)
        workers.heartbeat("w", current_job="0123456789ab", session=session)
    answer = client.post("/workers/w/drain", json={"wait": True})
    assert (answer.status_code, answer.json()["state"], answer.json()["draining"]) == (202, "draining", "wait")
    with database.write() as session:
        workers.heartbeat("w", current_job=None, session=session)
    assert client.post("/workers/w/drain").json()["draining"] == "now"
    assert client.get("/workers").json()["data"][0]["state"] == "drained"
    assert client.get(f"/jobs/{job_id}").json()["waiting"]["reason"] == "all_drained"
    back = client.post("/workers/w/undrain")
    assert (back.status_code, back.json()["state"], back.json()["draining"]) == (200, "idle", None)
    missing = client.post("/workers/nobody/drain")
    assert (missing.status_code, missing.json()["code"]) == (404, "worker_not_found")


def test_a_retry_keeps_what_it_continues_from_and_a_fresh_one_keeps_nothing(
    client: TestClient, database: Database, settings: Settings, submit: Submit, start: Start, keep: Callable[..., None]
) -> None:
    job_id = submit()["id"]
    files = settings.artifacts / "jobs" / job_id
    assert "possible: pause, cancel" in ask(client, job_id, "retry", 409)["detail"]
    claim = start(job_id)
    keep(claim)
    end(database, claim, reason="out_of_memory", detail="of the GPU")
    again = ask(client, job_id, "retry")
    assert (again["state"], again["status_reason"], again["ended_at"]) == ("queued", "retried", None)
    assert [one["name"] for one in client.get(f"/jobs/{job_id}/checkpoints").json()["data"]] == ["best"]
    ask(client, job_id, "cancel")
    fresh = ask(client, job_id, "retry", **{"from": "fresh"})
    assert (fresh["state"], fresh["best_ap"], fresh["progress"]["step"]) == ("queued", None, 0)
    assert client.get(f"/jobs/{job_id}/checkpoints").json()["data"] == []
    assert client.get(f"/jobs/{job_id}/checkpoints/best").status_code == 404
    assert not (files / "attempt-1").exists()
    assert client.post(f"/jobs/{job_id}/retry", json={"from": "nowhere"}).status_code == 422


def test_attempts_tell_the_lease_while_they_run_and_the_steps_that_they_did(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job_id = submit()["id"]

    def attempts() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = client.get(f"/jobs/{job_id}/attempts").json()["data"]
        return listed

    claim = start(job_id)
    with database.write() as session:
        claims.record_progress(claim, step=30, epoch=1, eta_seconds=1.0, progress={}, session=session)
    (running,) = attempts()
    assert (running["worker_id"], running["steps"], running["outcome"]) == ("worker-1", 30, None)
    assert running["lease_expires_at"] > running["started_at"]
    assert running["seconds"] >= 0
    with database.write() as session:
        claims.hand_back(claim, reason="worker_drained", detail="saved 1.2 s after SIGTERM", session=session)
    with database.write() as session:
        second = claims.claim(job_id, "worker-2", lease_seconds=60, session=session)
        assert second is not None
        claims.mark_started(second, resumed_from_step=30, total_steps=100, epochs=2, session=session)
        claims.record_progress(second, step=35, epoch=1, eta_seconds=1.0, progress={}, session=session)
    ended, running = attempts()
    assert (ended["steps"], ended["last_step"], ended["lease_expires_at"]) == (30, 30, None)
    assert (ended["reason"], ended["detail"]) == ("worker_drained", "saved 1.2 s after SIGTERM")
    assert (running["resumed_from_step"], running["steps"], running["last_step"]) == (30, 5, None)


def test_a_deleted_job_is_gone_with_its_files_and_its_twin_and_report_cope(
    client: TestClient, database: Database, settings: Settings, submit: Submit, start: Start, keep: Callable[..., None]
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    job_id, twin_id = job["id"], job["baseline_job_id"]
    claim = start(job_id)
    keep(claim)
    refused = client.delete(f"/jobs/{job_id}")
    assert refused.status_code == 409
    assert "cancel it first" in refused.json()["detail"]
    end(database, claim, Outcome.SUCCEEDED)
    small = {"detector": "fcos_resnet18_fpn"}
    learner = submit(teacher={"weights": {"job": job_id}}, student=small, baseline=False)["id"]
    in_use = client.delete(f"/jobs/{job_id}")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "job_in_use")
    assert learner in in_use.json()["detail"]
    ask(client, learner, "cancel")

    ask(client, twin_id, "cancel")
    assert client.delete(f"/jobs/{twin_id}").status_code == 204
    report = client.get(f"/jobs/{job_id}/report").json()
    assert (report["baseline"]["reason"], report["complete"]) == ("its baseline was deleted", True)

    gone = client.delete(f"/jobs/{job_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert not (settings.artifacts / "jobs" / job_id).exists()
    for where in ("", "/attempts", "/report", "/checkpoints/best", "/events"):
        assert client.get(f"/jobs/{job_id}{where}").status_code == 404
    assert client.delete(f"/jobs/{job_id}").status_code == 404
    assert client.get(f"/jobs/{learner}").json()["teacher_job_id"] is None
    assert client.get(f"/jobs/{learner}/report").status_code == 200
    assert ask(client, learner, "retry", 409)["code"] == "teacher_not_ready"
