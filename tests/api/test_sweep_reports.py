"""The report of a sweep: figures worked out by hand, what is not known and why, and its CSV."""

import csv
import io
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import checkpoints, claims, metrics
from store.db import Database
from store.metrics import Point
from store.models import Attempt, Job
from store.states import Outcome

TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
BASE: dict[str, Any] = {"teacher": TEACHER, "student": {"detector": "fcos_resnet18_fpn"}, "dataset": "pets"}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
APS = {
    "baseline": {0: 0.40, 1: 0.42, 2: 0.44},
    "fitnet": {0: 0.41, 1: 0.44, 2: 0.47},
    "tid": {0: 0.45, 1: 0.41, 2: 0.46},
}
"""Gains in points: fitnet 1, 2, 3; tid 5, -1, 2."""
SECONDS = {"baseline": 100.0, "fitnet": 150.0, "tid": 130.0}

pytestmark = pytest.mark.usefixtures("pets")


@pytest.fixture
def sweep(client: TestClient) -> Callable[..., dict[str, Any]]:
    def sweep(axes: Any = None, **base: Any) -> dict[str, Any]:
        axes = axes or {"method": ["fitnet", "tid"], "training.seed": [0, 1, 2]}
        response = client.post("/sweeps", json={"name": "s", "base": {**BASE, **base}, "axes": axes})
        assert response.status_code == 201, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return sweep


def attempt(
    database: Database, job_id: str, *, ap: float | None = None, seconds: float, processes: int = 1,
    outcome: Outcome = Outcome.SUCCEEDED, teacher_ap: float | None = None,
) -> None:  # fmt: skip
    """One attempt of so many seconds, and what a worker writes of it."""
    with database.write() as session:
        claim = claims.claim(job_id, "w", lease_seconds=60, session=session)
        assert claim is not None
        facts = {"processes": processes}
        claims.mark_started(claim, resumed_from_step=0, total_steps=20, epochs=2, run_facts=facts, session=session)
        values = {"val/AP": ap, "val/AP50": None if ap is None else ap + 0.2, "teacher/AP": teacher_ap}
        points = [Point(name, 10, 1, value) for name, value in values.items() if value is not None]
        # A later and worse evaluation, which is not that of the best checkpoint.
        points += [Point(name, 20, 2, 0.01) for name in ("val/AP", "val/AP50") if ap is not None]
        metrics.record(claim, points, session=session)
        if ap is not None:
            checkpoints.record(
                claim, name="best", file_format="safetensors", key=job_id, sha256="0" * 64, num_bytes=1, step=10,
                epoch=1, ap=ap, session=session,
            )  # fmt: skip
        if outcome is Outcome.HANDED_BACK:
            claims.hand_back(claim, session=session)
        else:
            claims.finish(claim, outcome, session=session)
    with database.write() as session:
        row = session.get_one(Attempt, (job_id, claim.attempt))
        row.started_at, row.ended_at = BEGAN, BEGAN + timedelta(seconds=seconds)


def run_all(database: Database, sweep: dict[str, Any], *, but: Callable[[Any], bool] = lambda job: False) -> None:
    for job in sweep["jobs"]:
        if not but(job):
            teacher_ap = None if job["role"] == "baseline" else 0.5
            label = job["label"]
            attempt(database, job["id"], ap=APS[label][job["seed"]], seconds=SECONDS[label], teacher_ap=teacher_ap)


def report_of(client: TestClient, sweep: dict[str, Any]) -> dict[str, Any]:
    response = client.get(f"/sweeps/{sweep['id']}/report")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def rows_of(client: TestClient, sweep: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in report_of(client, sweep)["rows"]}


def test_a_complete_report_by_hand(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep()
    run_all(database, made)
    report = report_of(client, made)
    assert (report["complete"], report["state"], report["done"], report["total"]) == (True, "succeeded", 9, 9)
    assert (report["teacher_ap"], report["teacher_reason"]) == (0.5, None)
    assert report["gpu_seconds_total"] == pytest.approx(3 * (100 + 150 + 130))
    assert [row["label"] for row in report["rows"]] == ["baseline", "fitnet", "tid"]
    baseline, fitnet, tid = report["rows"]

    assert (baseline["role"], baseline["baseline"], baseline["gain_mean"]) == ("baseline", None, None)
    assert baseline["gain_reason"] == "this is the baseline"
    assert baseline["ap_mean"] == pytest.approx(0.42)
    assert baseline["ap_sd"] == pytest.approx(0.02)
    assert baseline["teacher_ap"] is None

    assert (fitnet["baseline"], fitnet["runs_done"], fitnet["runs_total"], fitnet["pairs"]) == ("baseline", 3, 3, 3)
    assert fitnet["point"] == {"method": "fitnet"}
    assert fitnet["ap_mean"] == pytest.approx(0.44)
    assert fitnet["ap50_mean"] == pytest.approx(0.64)
    assert fitnet["gain_mean"] == pytest.approx(0.02)
    half = 4.303 * 0.01 / math.sqrt(3)  # gains 1, 2, 3 points: a deviation of one
    assert fitnet["gain_low"] == pytest.approx(0.02 - half)
    assert fitnet["gain_high"] == pytest.approx(0.02 + half)
    assert (fitnet["wins"], fitnet["remark"], fitnet["gain_reason"]) == (3, "no difference shown", None)
    assert fitnet["gpu_seconds"] == pytest.approx(150)
    assert fitnet["extra_gpu_seconds_per_point"] == pytest.approx(50 / 2)
    assert [run["gain"] for run in fitnet["runs"]] == pytest.approx([0.01, 0.02, 0.03])
    assert [run["seed"] for run in fitnet["runs"]] == [0, 1, 2]

    assert tid["wins"] == 2
    assert tid["gain_mean"] == pytest.approx(0.02)
    assert tid["extra_gpu_seconds_per_point"] == pytest.approx(30 / 2)


def test_an_interval_beside_zero_is_told(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep({"method": ["fitnet", "tid"], "training.seed": [0, 1]})
    aps = {"baseline": (0.40, 0.50), "fitnet": (0.45, 0.5501), "tid": (0.35, 0.4499)}
    for job in made["jobs"]:
        attempt(database, job["id"], ap=aps[job["label"]][job["seed"]], seconds=1)
    rows = rows_of(client, made)
    assert (rows["fitnet"]["remark"], rows["tid"]["remark"]) == ("better", "worse")
    assert rows["tid"]["extra_gpu_seconds_per_point"] is None
    assert rows["tid"]["extra_reason"] == "the mean gain is not positive"


def test_one_seed_has_a_gain_and_no_interval(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep({"method": ["tid"]})
    for job, ap in zip(made["jobs"], (0.4, 0.45), strict=True):
        attempt(database, job["id"], ap=ap, seconds=10)
    row = rows_of(client, made)["tid"]
    assert row["gain_mean"] == pytest.approx(0.05)
    assert (row["gain_low"], row["gain_high"], row["ap_sd"], row["remark"]) == (None, None, None, None)
    assert row["gain_reason"] == "an interval needs at least two seeds; there is one"


def test_only_what_has_succeeded_counts(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep()
    jobs = {(job["label"], job["seed"]): job for job in made["jobs"]}
    lost = {jobs["baseline", 0]["id"], jobs["tid", 1]["id"], jobs["tid", 2]["id"]}
    run_all(database, made, but=lambda job: job["id"] in lost)
    before = rows_of(client, made)
    assert (before["fitnet"]["runs_done"], before["fitnet"]["pairs"], before["fitnet"]["wins"]) == (3, 2, 2)
    assert before["fitnet"]["gain_mean"] == pytest.approx(0.025)
    assert (before["tid"]["runs_done"], before["tid"]["runs_total"], before["tid"]["pairs"]) == (1, 3, 0)
    assert before["tid"]["gain_reason"] == "no seed has succeeded both here and in the baseline"
    assert not report_of(client, made)["complete"]

    attempt(database, jobs["tid", 1]["id"], ap=0.99, seconds=5, outcome=Outcome.FAILED)
    client.post(f"/jobs/{jobs['tid', 2]['id']}/cancel")
    attempt(database, jobs["baseline", 0]["id"], ap=0.40, seconds=100)
    report = report_of(client, made)
    assert (report["complete"], report["state"]) == (True, "failed")
    tid = rows_of(client, made)["tid"]
    assert (tid["runs_done"], tid["ap_mean"], tid["pairs"]) == (1, pytest.approx(0.45), 1)
    assert [run["state"] for run in tid["runs"]] == ["succeeded", "failed", "cancelled"]
    assert [run["ap"] for run in tid["runs"]] == [0.45, None, None]


def test_cost_is_that_of_all_attempts_and_processes(
    client: TestClient, database: Database, sweep: Callable[..., Any]
) -> None:
    made = sweep({"method": ["tid"]})
    baseline, tid = made["jobs"]
    attempt(database, baseline["id"], ap=0.4, seconds=10, processes=2)
    attempt(database, tid["id"], seconds=7, processes=2, outcome=Outcome.HANDED_BACK)
    attempt(database, tid["id"], ap=0.41, seconds=8, processes=2)
    rows = rows_of(client, made)
    assert rows["baseline"]["gpu_seconds"] == pytest.approx(20)
    assert rows["tid"]["gpu_seconds"] == pytest.approx(30)
    assert rows["tid"]["extra_gpu_seconds_per_point"] == pytest.approx(10)


def test_rows_of_a_recipe_name_their_own_baseline(
    client: TestClient, database: Database, sweep: Callable[..., Any]
) -> None:
    made = sweep({"training.lr": [0.01, 0.02], "method": ["tid", "none"], "training.seed": [0, 1]})
    aps = {"baseline lr=0.01": 0.4, "baseline lr=0.02": 0.5, "tid lr=0.01": 0.45, "tid lr=0.02": 0.51}
    for job in made["jobs"]:
        attempt(database, job["id"], ap=aps[job["label"]] + 0.01 * job["seed"], seconds=1)
    report = report_of(client, made)
    assert [(row["label"], row["baseline"]) for row in report["rows"]] == [
        ("baseline lr=0.01", None),
        ("baseline lr=0.02", None),
        ("tid lr=0.01", "baseline lr=0.01"),
        ("tid lr=0.02", "baseline lr=0.02"),
    ]
    assert [row["gain_mean"] for row in report["rows"][2:]] == pytest.approx([0.05, 0.01])


def test_without_baselines_there_is_no_gain(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep({"method": ["tid", "fitnet"]}, baseline=False)
    attempt(database, made["jobs"][0]["id"], ap=0.4, seconds=1)
    row = rows_of(client, made)["tid"]
    assert (row["ap_mean"], row["gain_mean"]) == (0.4, None)
    assert row["gain_reason"] == "there is no baseline to compare with"


@pytest.mark.parametrize(
    ("axes", "base", "reason"),
    [
        ({"training.seed": [0]}, {}, "no job has evaluated the teacher yet"),
        ({"training.seed": [0]}, {"evaluation": {"teacher": False}}, "`evaluation.teacher: false`"),
        ({"training.seed": [0]}, {"teacher": None}, "no job of the sweep has a teacher"),
        ({"teacher.detector": ["fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2"]}, {}, "several teachers"),
    ],
)
def test_a_teacher_that_is_not_known_says_why(
    client: TestClient, sweep: Callable[..., Any], axes: Any, base: Any, reason: str
) -> None:
    report = report_of(client, sweep(axes, **base))
    assert report["teacher_ap"] is None
    assert reason in report["teacher_reason"]


def test_the_csv_has_the_rows_of_the_report(client: TestClient, database: Database, sweep: Callable[..., Any]) -> None:
    made = sweep()
    run_all(database, made, but=lambda job: job["label"] == "tid" and job["seed"] > 0)
    where = f"/sweeps/{made['id']}/report"
    by_query, by_accept = client.get(f"{where}?format=csv"), client.get(where, headers={"Accept": "text/csv"})
    assert by_query.text == by_accept.text
    assert by_query.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(by_query.text)))
    for line, row in zip(lines, report_of(client, made)["rows"], strict=True):
        assert line.keys() == row.keys() - {"runs", "point"}
        for name, value in line.items():
            assert value == ("" if row[name] is None else str(row[name])), name
    assert client.get(f"{where}?format=xml").status_code == 422


def test_a_job_without_a_recorded_checkpoint_still_has_its_best_ap(
    client: TestClient, database: Database, sweep: Callable[..., Any]
) -> None:
    made = sweep({"method": ["tid"]})
    job_id = made["jobs"][1]["id"]
    attempt(database, job_id, seconds=1)
    with database.write() as session:
        session.get_one(Job, job_id).best_ap = 0.3
    row = rows_of(client, made)["tid"]
    assert (row["ap_mean"], row["ap50_mean"]) == (0.3, None)
