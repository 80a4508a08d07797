"""POST /jobs: what is accepted, what is refused, and what is left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import workers
from store.db import Database
from store.fencing import Claim
from store.models import Checkpoint, Job
from store.settings import Settings
from store.states import State

Spec = Callable[..., dict[str, Any]]
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}


def codes(response: Any) -> set[tuple[str, str]]:
    return {(error["code"], error["field"]) for error in response.json()["errors"]}


@pytest.mark.usefixtures("pets")
def test_a_job_is_queued_with_its_twin_and_every_default(client: TestClient, spec: Spec) -> None:
    student = {"detector": "fcos_resnet18_fpn"}
    response = client.post("/jobs", json=spec(teacher=TEACHER, student=student, name="first"))
    assert response.status_code == 201, response.text
    job = response.json()
    assert response.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["state"], job["attempt"], job["created_at"][-1]) == ("queued", 0, "Z")
    assert job["spec"]["tid"]["score_pos"] == 2.0
    assert client.get(f"/jobs/{job['id']}").json() == job
    twin = client.get(f"/jobs/{job['baseline_job_id']}").json()
    assert (twin["twin_of"], twin["method"], twin["teacher_detector"]) == (job["id"], "none", None)


@pytest.mark.usefixtures("pets")
def test_a_dry_run_tells_everything_and_leaves_nothing(client: TestClient, spec: Spec) -> None:
    good = client.post("/jobs?dry_run=true", json=spec()).json()
    assert good["ok"]
    assert good["spec"]["training"]["optimizer"] == "sgd"
    bad = client.post("/jobs?dry_run=true", json=spec(student={"detector": "fcos_resnet18_smal"}, dataset="cars"))
    assert bad.status_code == 200
    assert not bad.json()["ok"]
    assert {"unknown_detector", "dataset_unknown"} <= {problem["code"] for problem in bad.json()["problems"]}
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.usefixtures("pets")
def test_a_job_that_no_worker_could_take_now_is_warned_of_and_waits(
    client: TestClient, spec: Spec, database: Database
) -> None:
    wide = spec(resources={"gpus": 2, "min_gpu_memory_gib": 40}, training={"batch_size": 16})
    big = [{"name": "NVIDIA L4", "memory_total_mib": 23034, "problem": None}]
    device = {"gpus": big, "driver": "580.65.06", "cuda": "13.0"}
    told = "no worker of the queue 'default' has 2 GPUs with 40 GiB"

    def warnings(body: dict[str, Any]) -> list[str]:
        answer = client.post("/jobs?dry_run=true", json=body).json()
        assert answer["ok"]
        return [one["detail"] for one in answer["problems"] if one["code"] == "no_fitting_worker"]

    assert warnings(wide) == [f"when it was submitted, {told}: none is online"]
    with database.write() as session:
        workers.register("w", hostname="h", pid=1, queues=["default"], device=device, session=session)
    row = client.get("/workers").json()["data"][0]
    assert (row["gpus"], row["gpu_memory_mib"], row["device"]) == (1, 23034, device)
    job = client.post("/jobs", json=wide).json()
    (warning,) = (one for one in job["warnings"] if one["code"] == "no_fitting_worker")
    said = "; the largest has 1 with 22.4 GiB: ask for less, or start a worker that has more"
    assert warning["detail"].endswith(said)
    assert job["waiting"]["reason"] == "no_fitting_worker"
    assert warning["detail"] == f"when it was submitted, {job['waiting']['detail']}"
    assert job["waiting"]["position"] is None
    assert warnings(spec()) == []
    with database.write() as session:
        workers.register("x", hostname="h", pid=1, queues=["default"], device={"gpus": [*big, *big]}, session=session)
        workers.heartbeat("x", current_job="0123456789ab", session=session)
    assert warnings(spec(resources={"gpus": 2})) == [], "it is busy, and will take it"
    several = {"training": {"batch_size": 12}}
    assert warnings(spec(resources={"nodes": 2}, **several)) == []
    (few,) = warnings(spec(resources={"nodes": 3}, **several))
    assert few.endswith("needs 3 workers of the queue 'default' at once, 2 are online: ask for fewer, or start more")
    (few,) = warnings(spec(resources={"nodes": 2, "gpus": 2}, **several))
    assert few.endswith("workers of the queue 'default' with 2 GPUs at once, 1 is online: ask for fewer, or start more")


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resources": {"min_gpu_memory_gib": 8}, "training": {"device": "cpu"}}, "training.device is cpu"),
        ({"resources": {"min_gpu_memory_gib": 8, "gpus": 0}}, "resources.gpus is 0"),
        ({"resources": {"min_gpu_memory_gib": 0}}, "greater than 0"),
        ({"resources": {"nodes": 17}}, "less than or equal to 16"),
    ],
)
def test_resources_that_contradict_are_refused(
    client: TestClient, spec: Spec, changes: dict[str, Any], words: str
) -> None:
    refused = client.post("/jobs", json=spec(**changes))
    assert refused.status_code == 422
    assert words in refused.text


@pytest.mark.usefixtures("pets")
def test_an_unknown_dataset_is_answered_with_those_that_can_be_trained_on(client: TestClient, spec: Spec) -> None:
    assert client.post("/datasets", json={"name": "waiting"}).json()["state"] == "uploading"
    (problem,) = client.post("/jobs?dry_run=true", json=spec(dataset="cars")).json()["problems"]
    assert (problem["code"], problem["expected"]) == ("dataset_unknown", "one of: pets")


@pytest.mark.usefixtures("pets")
def test_all_problems_come_at_once_and_say_what_would_be_right(client: TestClient, spec: Spec) -> None:
    response = client.post("/jobs", json=spec(student={"detector": "fcos_resnet18_smal"}, dataset="cars"))
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert codes(response) == {("unknown_detector", "/student/detector"), ("dataset_unknown", "/dataset")}
    expected = " ".join(error["expected"] for error in response.json()["errors"])
    assert "fcos_resnet18_small" in expected
    assert "pets" in expected
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.usefixtures("pets")
def test_a_teacher_that_lacks_the_classes_or_does_not_fit_is_refused(
    client: TestClient, spec: Spec, make_dataset: Callable[..., Path], settings: Settings, settled: Callable[..., Any]
) -> None:
    root = make_dataset(settings.data_roots[0] / "cells", classes=("red", "white"))
    assert client.post("/datasets", json={"name": "cells", "root": str(root)}).status_code == 201
    assert settled(client, "cells")["state"] == "ready"
    response = client.post("/jobs", json=spec(teacher=TEACHER, dataset="cells"))
    assert codes(response) == {("levels_differ", "/student/detector"), ("classes_missing", "/teacher/weights")}


def test_unknown_teacher_jobs_and_unfinished_ones_are_conflicts(
    client: TestClient, spec: Spec, submit: Callable[..., dict[str, Any]]
) -> None:
    unknown = client.post("/jobs", json=spec(teacher={"weights": {"job": "0" * 12}}))
    assert (unknown.status_code, unknown.json()["code"]) == (409, "job_not_found")
    queued = submit()
    early = client.post("/jobs", json=spec(teacher={"weights": {"job": queued["id"]}}))
    assert (early.status_code, early.json()["code"]) == (409, "teacher_not_ready")


def test_a_teacher_job_that_succeeded_is_accepted_and_its_facts_are_used(
    client: TestClient, database: Database, spec: Spec, submit: Callable[..., dict[str, Any]]
) -> None:
    teacher = submit()
    with database.write() as session:
        session.get_one(Job, teacher["id"]).state = State.SUCCEEDED
        row = {"key": "k", "sha256": "0" * 64, "bytes": 1, "step": 1, "epoch": 1, "ap": 0.5, "attempt": 1}
        session.add(Checkpoint(job_id=teacher["id"], name="best", format="safetensors", **row))
    weights = {"weights": {"job": teacher["id"]}}
    response = client.post("/jobs", json=spec(teacher=weights))
    assert response.status_code == 201, response.text
    assert response.json()["teacher_job_id"] == teacher["id"]
    assert response.json()["teacher_detector"] == teacher["student_detector"]
    wrong = client.post("/jobs", json=spec(teacher={**weights, "detector": "fcos_resnet50_fpn"}))
    assert ("teacher_differs", "/teacher/detector") in codes(wrong)


@pytest.mark.usefixtures("pets")
def test_weight_files_must_lie_under_a_root_by_real_path(
    client: TestClient, spec: Spec, settings: Settings, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.pt"
    outside.write_bytes(b"x")
    root = settings.data_roots[0]
    (root / "link.pt").symlink_to(outside)
    (root / "own.pt").write_bytes(b"x")

    def post(file: Path) -> Any:
        return client.post(
            "/jobs", json=spec(student={"detector": "fcos_resnet18_small", "weights": {"file": str(file)}})
        )

    for file in (outside, root / "link.pt", root / ".." / "secret.pt"):
        assert codes(post(file)) == {("outside_roots", "/student/weights/file")}
    assert codes(post(root / "none.pt")) == {("file_not_found", "/student/weights/file")}
    accepted = post(root / "own.pt")
    assert accepted.json()["spec"]["student"]["weights"]["file"] == str((root / "own.pt").resolve())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "json_invalid"),
        (b"[]", "model_attributes_type"),
        (b'{"student": {"detector": "fcos_resnet18_small"}, "dataset": "pets", "epochs": 3}', "extra_forbidden"),
        (b'{"student": {"detector": "fcos_resnet18_small"}, "dataset": "a\\u0000b"}', "text_invalid"),
        (b'{"student": {"detector": "fcos_resnet18_small"}, "dataset": "pets", "name": "\\ud800"}', "string_unicode"),
        (b'{"student": {"detector": "a"}, "dataset": "p", "name": "\\u001b[31m"}', "text_invalid"),
        (b'{"student": {"detector": "a", "weights": "\\ud800"}, "dataset": "p"}', "union"),
        (b'{"student": {"detector": "a", "weights": {"file": "/\\ud800.pt"}}, "dataset": "p"}', "text_invalid"),
        (
            b'{"student": {"detector": "a", "weights": {"file": "/' + b"x" * 300 + b'.pt"}}, "dataset": "p"}',
            "text_invalid",
        ),
        (
            b'{"student": {"detector": "a", "weights": {"file": "/a.pt", "classes": ["\\ud800"]}}, "dataset": "p"}',
            "text_invalid",
        ),
        (b'{"student": {"detector": "fcos_resnet18_small"}, "dataset": "p", "loss": {"task": NaN}}', "finite_number"),
        (
            b'{"student": {"detector": "a"}, "dataset": "p", "training": {"epochs": 1' + b"0" * 30 + b"}}",
            "less_than_equal",
        ),
    ],
)
def test_malformed_bodies_are_problems(client: TestClient, body: bytes, code: str) -> None:
    response = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert code in {error["code"] for error in response.json()["errors"]}


@pytest.mark.parametrize(
    ("body", "media_type", "status", "words"),
    [
        (b'{"name": x}', "application/json", 422, "Expecting value (character 9)"),
        (b'{"name": "\xff"}', "application/json", 400, "not UTF-8"),
        (b"{}", "application/x-www-form-urlencoded", 422, "Content-Type: application/json"),
    ],
)
def test_a_body_that_is_not_json_is_told_why(
    client: TestClient, body: bytes, media_type: str, status: int, words: str
) -> None:
    response = client.post("/jobs", content=body, headers={"Content-Type": media_type})
    assert response.status_code == status
    assert words in response.text


def test_a_body_too_large_is_refused_declared_or_not(client: TestClient, settings: Settings) -> None:
    body = b" " * (settings.max_body_bytes + 1)
    declared = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    chunked = client.post("/jobs", content=iter([body]), headers={"Content-Type": "application/json"})
    for response in (declared, chunked):
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_cancelling_waits_for_a_running_job_and_not_for_a_queued_one(
    client: TestClient, submit: Callable[..., dict[str, Any]], start: Callable[[str], Claim]
) -> None:
    queued, running = submit(), submit()
    start(running["id"])
    assert client.post(f"/jobs/{queued['id']}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/jobs/{running['id']}/cancel").json()["state"] == "cancelling"
    assert client.post(f"/jobs/{running['id']}/cancel").status_code == 202
    assert client.post("/jobs/000000000000/cancel").json()["code"] == "job_not_found"


def test_an_ended_job_cannot_be_cancelled(
    client: TestClient, database: Database, submit: Callable[..., dict[str, Any]]
) -> None:
    job = submit()
    with database.write() as session:
        session.get_one(Job, job["id"]).state = State.FAILED
    response = client.post(f"/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "illegal_transition")
