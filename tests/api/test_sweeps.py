"""POST /sweeps: what is accepted, what is refused and where, and what is left behind."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from store.db import Database
from store.fencing import Claim
from store.models import Job, Sweep
from store.states import State

TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
BASE: dict[str, Any] = {"teacher": TEACHER, "student": {"detector": "fcos_resnet18_fpn"}, "dataset": "pets"}
AXES: dict[str, Any] = {"method": ["fitnet", "tid"], "training.seed": [0, 1]}

pytestmark = pytest.mark.usefixtures("pets")


def post(client: TestClient, axes: Any = AXES, *, query: str = "", headers: Any = None, **base: Any) -> Any:
    body = {"name": "s", "base": {**BASE, **base}, "axes": axes}
    return client.post(f"/sweeps{query}", json=body, headers=headers)


def problems(response: Any) -> set[tuple[str, str]]:
    assert response.headers["content-type"] == "application/problem+json"
    return {(error["code"], error["field"]) for error in response.json()["errors"]}


def rows(database: Database) -> tuple[int, int]:
    with database.read() as session:
        return tuple(session.scalar(select(func.count()).select_from(table)) or 0 for table in (Sweep, Job))  # type: ignore[return-value]


def test_a_sweep_is_queued_whole(client: TestClient) -> None:
    response = post(client)
    assert response.status_code == 201, response.text
    sweep = response.json()
    assert response.headers["Location"] == f"/sweeps/{sweep['id']}"
    assert (sweep["name"], sweep["state"], sweep["done"], sweep["total"]) == ("s", "queued", 0, 6)
    assert sweep["counts"] == {"queued": 6}
    assert [job["name"] for job in sweep["jobs"]][:3] == ["s baseline seed=0", "s fitnet seed=0", "s tid seed=0"]
    baseline, fitnet, *_ = sweep["jobs"]
    assert (fitnet["role"], fitnet["label"], fitnet["seed"]) == ("point", "fitnet", 0)
    assert (fitnet["point"], fitnet["baseline_job_id"]) == ({"method": "fitnet", "training.seed": 0}, baseline["id"])
    assert sweep["spec"] == {"name": "s", "base": BASE, "axes": AXES}
    assert client.get(f"/sweeps/{sweep['id']}").json() == sweep
    job = client.get(f"/jobs/{fitnet['id']}").json()
    assert (job["sweep_id"], job["baseline_job_id"], job["twin_of"]) == (sweep["id"], baseline["id"], None)
    assert job["spec"]["training"]["seed"] == 0
    shared = client.get(f"/jobs/{baseline['id']}/report").json()
    assert shared["baseline"]["reason"] == f"the job is itself a baseline of sweep {sweep['id']}"


def test_jobs_are_filtered_by_their_sweep(client: TestClient, submit: Callable[..., dict[str, Any]]) -> None:
    submit()
    sweep = post(client).json()
    found = client.get("/jobs", params={"sweep": sweep["id"], "method": "tid"}).json()["data"]
    assert {job["id"] for job in found} == {job["id"] for job in sweep["jobs"] if job["method"] == "tid"}
    assert client.get("/jobs", params={"sweep": "0" * 12}).json()["data"] == []
    assert client.get("/jobs?sweep=%00").status_code == 422


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(client: TestClient, database: Database) -> None:
    good = post(client, query="?dry_run=true")
    assert good.status_code == 200
    answer = good.json()
    assert answer["ok"]
    assert [(job["name"], job["baseline"]) for job in answer["jobs"]][:2] == [
        ("s baseline seed=0", None),
        ("s fitnet seed=0", "s baseline seed=0"),
    ]
    assert answer["jobs"][1]["spec"]["fitnet"]["weight"] == 2.0
    bad = post(client, query="?dry_run=true", dataset="cars").json()
    assert not bad["ok"]
    assert [(one["code"], one["field"]) for one in bad["problems"]] == [("dataset_unknown", "/base/dataset")]
    assert len(bad["jobs"]) == 6
    assert post(client, {"training.sed": [0]}, query="?dry_run=true").status_code == 422
    assert rows(database) == (0, 0)


def test_one_bad_point_and_nothing_is_stored(client: TestClient, database: Database) -> None:
    axes = {"training.seed": [0, 1], "student.detector": ["fcos_resnet18_fpn", "fcos_resnet18_smal"]}
    response = post(client, axes)
    assert response.status_code == 422
    assert problems(response) == {("unknown_detector", "/axes/student.detector/1")}
    (error,) = response.json()["errors"]
    assert "in 2 of 4 points: detector=fcos_resnet18_smal seed=0, detector=fcos_resnet18_smal seed=1" in error["detail"]
    assert "fcos_resnet18_small" in error["expected"]
    assert rows(database) == (0, 0)


def test_every_problem_comes_at_once_and_says_where(client: TestClient) -> None:
    axes = {"method": ["tid", "teleport"], "training": [{"epochs": 0}, {"epoch": 1}], "training.seed": [0]}
    overlapping = post(client, axes, datset="x")
    assert problems(overlapping) == {("axes_overlap", "/axes/training")}
    del axes["training.seed"]
    response = post(client, axes, datset="x")
    assert problems(response) == {
        ("union", "/axes/method/1"),
        ("greater_than_equal", "/axes/training/0/epochs"),
        ("extra_forbidden", "/axes/training/1/epoch"),
        ("extra_forbidden", "/base/datset"),
    }
    detail = {error["field"]: error["detail"] for error in response.json()["errors"]}
    assert "points" not in detail["/base/datset"]
    assert "in 2 of 4 points" in detail["/axes/method/1"]


def test_a_problem_of_two_fields_is_told_at_the_one_that_asks_for_the_other(client: TestClient) -> None:
    response = post(client, {"method": ["none", "tid"], "training.seed": [0]}, teacher=None, baseline=False)
    assert problems(response) == {("value_error", "/axes/method/1")}
    everywhere = post(client, {"training.seed": [0, 1], "data.flip": [0, 1]}, teacher=None, method="tid")
    assert problems(everywhere) == {("value_error", "/base/method")}


def test_a_teacher_that_is_not_ready_is_a_conflict(
    client: TestClient, submit: Callable[..., dict[str, Any]], database: Database
) -> None:
    weights = {"weights": {"job": submit()["id"]}}
    response = post(client, teacher=weights)
    assert (response.status_code, response.json()["code"]) == (409, "teacher_not_ready")
    unknown = post(client, {"teacher.weights": [weights["weights"], {"job": "0" * 12}]})
    assert unknown.status_code == 409
    assert problems(unknown) == {
        ("teacher_not_ready", "/axes/teacher.weights/0"),
        ("job_not_found", "/axes/teacher.weights/1/job"),
    }
    assert rows(database) == (0, 1)


def test_warnings_of_the_preflight_are_told_once(client: TestClient) -> None:
    sweep = post(client, {"training.lr": [0.01, 5.0], "training.seed": [0, 1]}).json()
    assert [warning["code"] for warning in sweep["warnings"]].count("lr_high") == 1


def patient(client: TestClient, key: dict[str, str]) -> Any:
    """The answer once no other request with the key is at work."""
    while (answer := post(client, headers=key)).status_code == 409:
        time.sleep(0.05)
    return answer


def test_one_key_makes_one_sweep(client: TestClient, database: Database) -> None:
    key = {"Idempotency-Key": "k-1"}

    def ask(_: int) -> httpx.Response:
        while (answer := post(client, headers=key)).status_code == 409:
            assert answer.json()["code"] == "idempotency_in_flight"
        return answer

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 5
    assert rows(database) == (1, 6)
    other = post(client, {"training.seed": [0]}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert client.post("/jobs", json=BASE, headers=key).status_code == 201, "jobs have keys of their own"


def test_pages_of_sweeps(client: TestClient) -> None:
    created = [post(client, {"training.seed": [0]}).json()["id"] for _ in range(3)]
    first = client.get("/sweeps", params={"limit": 2}).json()
    post(client, {"training.seed": [0]})
    second = client.get("/sweeps", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [sweep["id"] for page in (first, second) for sweep in page["data"]] == created[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert first["data"][0]["counts"] == {"queued": 2}
    assert len(client.get("/sweeps", params={"search": "S"}).json()["data"]) == 4
    for query in ("cursor=abc", "limit=0", "search=%00"):
        assert client.get(f"/sweeps?{query}").status_code == 422


def test_cancelling(client: TestClient, database: Database, start: Callable[[str], Claim]) -> None:
    sweep = post(client).json()
    ids = [job["id"] for job in sweep["jobs"]]
    with database.write() as session:
        session.get_one(Job, ids[0]).state = State.SUCCEEDED
    start(ids[1])
    client.post(f"/jobs/{ids[2]}/cancel")
    for _ in range(2):
        response = client.post(f"/sweeps/{sweep['id']}/cancel")
        assert response.status_code == 202
        assert response.json()["counts"] == {"cancelling": 1, "cancelled": 4, "succeeded": 1}
    assert response.json()["state"] == "running"


@pytest.mark.parametrize("path", ["", "/report"])
def test_a_sweep_that_is_not_there(client: TestClient, path: str) -> None:
    response = client.get(f"/sweeps/000000000000{path}")
    assert (response.status_code, response.json()["code"]) == (404, "sweep_not_found")
    assert client.get(f"/sweeps/%00{path}").status_code in (404, 422)
    assert client.post("/sweeps/000000000000/cancel").status_code == 404


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


STRANGE: list[Any] = [
    None, 1, "x", [], {}, [["training.seed", [0]]],
    {"training.seed": None}, {"training.seed": "01"}, {"training.seed": {"0": 1}}, {"training.seed": []},
    {"training.seed": [None]}, {"training.seed": [[0]]}, {"training.seed": [{"a": 0}]}, {"training.seed": ["x"]},
    {"training.seed": [True, 10**30]}, {"training.seed": [1e308]}, {"training.seed": [-1, 0.5]},
    {"training.seed": list(range(50_000))}, {"training.seed": [[0] * 50_000]},
    {"": [1]}, {".": [1]}, {"training.": [1]}, {".training": [1]}, {"a" * 5000: [1]}, {".".join("a" * 3000): [1]},
    {"__init__": [1]}, {"model_fields": [1]}, {"loss/high": [1]}, {"~": [1]},
    {"method": [deep(8)]}, {"method": [deep(200)]}, {"method": [[]]}, {"method": [["tid"] * 4]},
    {"method": ["a\u0000b"]}, {"meth\u0000od": ["a"]}, {"method": ["\u001b[31m"]},
    {"teacher": [None, 1, "x", [], {}]}, {"loss": [None]}, {"loss": [1, "x"]}, {"loss": [{"high": {}}]},
    {"student": [{}, {"detector": None}]}, {"student.weights": [{"file": "/etc/passwd"}, {"file": "x" * 5000}]},
    {"student.weights": [{"file": "/a\u0000"}]}, {"dataset": ["", "x" * 5000, "\u202e"]}, {"recipe": ["no", None]},
    {f"training.x{index}": [1] for index in range(200)},
    {"training.lr": [10**400]},
]  # fmt: skip


def test_strange_axes_are_problems_and_never_failures(client: TestClient, database: Database) -> None:
    for axes in STRANGE:
        response = post(client, axes)
        assert response.status_code in (400, 409, 422), (str(axes)[:200], response.text[:500])
        assert len(response.content) < 100_000
        assert response.json()["detail"]
    assert rows(database) == (0, 0)


NO_SWEEPS = [
    b"", b"[]", b"null", b"{", b'{"name": "s"}', b'{"name": 1, "base": 2, "axes": 3}',
    b'{"name": "s", "base": {"\\ud800": 1}, "axes": {"training.seed": [0]}}',
    b'{"name": "s", "base": {"dataset": "\\ud800"}, "axes": {"training.seed": [0]}}',
    b'{"name": "s", "base": {}, "axes": {"\\ud800": [0]}}',
    b'{"name": "s", "base": {}, "axes": {"dataset": ["\\ud800"]}}',
    b'{"name": "\\ud800", "base": {}, "axes": {"dataset": ["a"]}}',
    b'{"name": "s", "base": {}, "axes": {"training.lr": [NaN, Infinity, -Infinity, 1e999]}}',
    b'{"name": "s", "base": {}, "axes": {"method": ' + b"[" * 3000 + b"]" * 3000 + b"}}",
    b'{"name": "s", "base": {}, "axes": {"training.seed": [1' + b"0" * 5000 + b"]}}",
    b'{"name": "s", "base": {"a": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b'}, "axes": {"training.seed": [0]}}',
]  # fmt: skip


def test_bodies_that_are_no_sweep(client: TestClient) -> None:
    for body in NO_SWEEPS:
        response = client.post("/sweeps", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), (body[:200], response.text)
        assert response.json()["code"] in ("bad_request", "request_invalid", "sweep_invalid")


def test_a_base_without_end_is_answered_with_the_first_problems(client: TestClient) -> None:
    strange = {f"x{index}": index for index in range(20_000)}
    response = post(client, {"training.seed": list(range(100))}, **strange)
    assert response.status_code == 422
    assert len(response.json()["errors"]) == 100
    assert "more than 100 problems" in response.json()["detail"]


def test_values_survive_as_they_are(client: TestClient) -> None:
    values = [{"high": 0.1 + 0.2, "low": 1e-300}, {"high": 3, "medium": 0}]
    sweep = post(client, {"loss": values, "training.seed": [2**32 - 1]}).json()
    points = [job["point"] for job in sweep["jobs"] if job["role"] == "point"]
    assert json.dumps([point["loss"] for point in points]) == json.dumps(values)
    assert {job["seed"] for job in sweep["jobs"]} == {2**32 - 1}
