"""Reading what a job did: lists, metrics, logs, attempts, the report."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import checkpoints, claims, logs, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.states import Outcome

Submit = Callable[..., dict[str, Any]]
Start = Callable[..., Claim]
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}


def record(database: Database, claim: Claim, step: int, values: dict[str, float], epoch: int = 1) -> None:
    with database.write() as session:
        metrics.record(claim, [Point(name, step, epoch, value) for name, value in values.items()], session=session)


def test_pages_follow_each_other_while_jobs_are_added(client: TestClient, submit: Submit) -> None:
    submitted = [submit(name=f"job {i}")["id"] for i in range(5)]
    first = client.get("/jobs", params={"limit": 2}).json()
    submit(name="later")
    second = client.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = client.get("/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    seen = [job["id"] for page in (first, second, third) for job in page["data"]]
    assert seen == submitted[::-1]
    assert (first["has_more"], third["has_more"], third["next_cursor"]) == (True, False, None)
    assert "spec" not in first["data"][0]


def test_lists_are_filtered(client: TestClient, submit: Submit, start: Start) -> None:
    wanted, other = submit(name="50% Größe"), submit(name="500 things")
    start(other["id"])

    def found(**query: Any) -> set[str]:
        return {job["id"] for job in client.get("/jobs", params=query).json()["data"]}

    assert found(search="50%") == {wanted["id"]}
    assert found(state="queued") == {wanted["id"]}
    assert found(state=["queued", "running"], method="none") == {wanted["id"], other["id"]}
    assert found(method="tid") == found(queue="gpu") == set()


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "state=done", "cursor=abc", "cursor=%00", "search=%00"])
def test_bad_queries_are_problems_that_name_the_parameter(client: TestClient, query: str) -> None:
    response = client.get(f"/jobs?{query}")
    assert response.status_code == 422
    assert [error["field"].split("/")[0] for error in response.json()["errors"]] == [query.split("=")[0]]


def test_metrics_are_selected_thinned_and_summarised(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job_id = submit()["id"]
    claim = start(job_id)
    with database.write() as session:
        values = [Point("loss/total", step, 1, 9.0 if step == 700 else 1.0) for step in range(1, 1001)]
        metrics.record(claim, [*values, Point("lr", 1000, 1, 0.1)], session=session)
    record(database, claim, 500, {"val/AP": 0.3})
    record(database, claim, 1000, {"val/AP": 0.2}, epoch=2)

    def read(**query: Any) -> dict[str, Any]:
        answer: dict[str, Any] = client.get(f"/jobs/{job_id}/metrics", params=query).json()
        return answer

    everything = read(max_points=20)
    assert [series["name"] for series in everything["series"]] == ["loss/total", "lr", "val/AP"]
    loss = everything["series"][0]
    assert (len(loss["points"]) <= 20, loss["total_points"]) == (True, 1000)
    assert {"step": 700, "epoch": 1, "value": 9.0} in loss["points"]
    assert everything["summary"]["best"] == {"ap": 0.3, "step": 500, "epoch": 1}
    assert everything["summary"]["latest"]["val/AP"] == {"step": 1000, "epoch": 2, "value": 0.2}
    assert [series["name"] for series in read(name=["l*", "no"])["series"]] == ["loss/total", "lr"]
    assert [point["step"] for point in read(name="loss/total", since_step=998)["series"][0]["points"]] == [999, 1000]


def test_metrics_as_csv_by_query_or_accept(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job_id = submit()["id"]
    claim = start(job_id)
    for step in (1, 2):
        record(database, claim, step, {'val/class/a "b", c/AP': step / 10})
    by_query = client.get(f"/jobs/{job_id}/metrics", params={"format": "csv"})
    by_accept = client.get(f"/jobs/{job_id}/metrics", headers={"Accept": "text/csv"})
    assert by_query.headers["content-type"].startswith("text/csv")
    assert by_query.text == by_accept.text
    rows = list(csv.reader(io.StringIO(by_query.text)))
    assert rows == [
        ["name", "step", "epoch", "value"],
        ['val/class/a "b", c/AP', "1", "1", "0.1"],
        ['val/class/a "b", c/AP', "2", "1", "0.2"],
    ]


def test_csv_and_json_are_the_same_points_thinned_or_since_a_step(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job_id = submit()["id"]
    claim = start(job_id)
    falling = [Point("loss", step, step // 10, -1.5 if step == 36 else 1 / (step + 1)) for step in range(0, 200, 3)]
    with database.write() as session:
        metrics.record(claim, [*falling, Point("lr", 5, 0, 1e-300), Point("lr", 6, 0, 0.1 + 0.2)], session=session)
    for query in ({"max_points": 7}, {"since_step": 100}, {"since_step": 30, "max_points": 12}, {"since_step": 10**9}):
        series = client.get(f"/jobs/{job_id}/metrics", params=query).json()["series"]
        text = client.get(f"/jobs/{job_id}/metrics", params={**query, "format": "csv"}).text
        rows = [(row["name"], int(row["step"]), float(row["value"])) for row in csv.DictReader(io.StringIO(text))]
        assert rows == [(one["name"], point["step"], point["value"]) for one in series for point in one["points"]]
        since = query.get("since_step", -1)
        assert all(step > since for _, step, _ in rows)
        assert series[0]["total_points"] == sum(point.step > since for point in falling)


def test_logs_are_read_on_and_by_attempt(client: TestClient, database: Database, submit: Submit, start: Start) -> None:
    job_id = submit()["id"]
    first = start(job_id)
    with database.write() as session:
        logs.append(first, "grüße\n", cap_bytes=1 << 20, session=session)
        claims.hand_back(first, session=session)
    second = start(job_id)
    with database.write() as session:
        logs.append(second, "again\n", cap_bytes=1 << 20, session=session)
    where = f"/jobs/{job_id}/logs"
    whole = client.get(where).json()
    assert whole == {"text": "grüße\nagain\n", "offset": 0, "next_offset": 14, "truncated": False}
    assert client.get(where, params={"offset": 14}).json()["text"] == ""
    assert client.get(where, params={"offset": -6}).json()["text"] == "again\n"
    assert client.get(where, params={"attempt": 1}).json()["text"] == "grüße\n"
    assert client.get(where, params={"attempt": 2, "offset": 3}).json()["text"] == "again\n"
    assert client.get(where, params={"attempt": 3}).json()["text"] == ""
    plain = client.get(where, headers={"Accept": "text/plain"})
    assert (plain.text, plain.headers["X-Next-Offset"]) == ("grüße\nagain\n", "14")
    attempts = client.get(f"/jobs/{job_id}/attempts").json()["data"]
    assert [(a["number"], a["outcome"]) for a in attempts] == [(1, "handed_back"), (2, None)]
    assert attempts[0]["seconds"] >= 0


def end(database: Database, claim: Claim, ap: float, per_class: dict[str, float], **teacher: float) -> None:
    """An evaluation, a later and worse one, the best checkpoint, and success."""
    best = {"val/AP": ap, "val/AP50": ap + 0.1}
    record(database, claim, 10, best | {f"val/class/{name}/AP": value for name, value in per_class.items()})
    record(database, claim, 20, {"val/AP": ap / 2, "val/AP50": 0.0} | {"val/class/cat/AP": 0.0})
    record(database, claim, 0, {f"teacher/{name}": value for name, value in teacher.items()})
    with database.write() as session:
        where = {"key": "k", "sha256": "0" * 64, "num_bytes": 1, "file_format": "safetensors"}
        checkpoints.record(claim, name="best", step=10, epoch=1, ap=ap, session=session, **where)  # type: ignore[arg-type]
        claims.finish(claim, Outcome.SUCCEEDED, session=session)


def test_the_report_measures_the_gain_at_the_best_evaluations(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    where = f"/jobs/{job['id']}/report"
    early = client.get(where).json()
    assert (early["gain"], early["complete"], early["student"]["ap"]) == (None, False, None)
    assert "queued" in early["reason"]
    end(database, start(job["id"]), 0.5, {"cat": 0.6, "dog": 0.4}, AP=0.7, AP50=0.9)
    waiting = client.get(where).json()
    assert (waiting["student"]["ap"], waiting["gain"], waiting["complete"]) == (0.5, None, False)
    assert job["baseline_job_id"] in waiting["reason"]
    end(database, start(job["baseline_job_id"], parameters=900), 0.3, {"cat": 0.1, "dog": 0.5})
    report = client.get(where).json()
    assert report["gain"] == pytest.approx(0.2)
    assert report["recovery"] == pytest.approx(0.5)
    assert (report["complete"], report["reason"]) == (True, None)
    assert (report["student"]["ap50"], report["student"]["parameters"]) == (0.6, 1000)
    assert (report["baseline"]["parameters"], report["teacher"]["detector"]) == (900, "fcos_resnet50_fpn")
    assert report["teacher"]["ap"] == 0.7
    by_class = {row["name"]: row for row in report["per_class"]}
    assert by_class["cat"]["gain"] == pytest.approx(0.5)
    assert by_class["dog"] == {
        "name": "dog",
        "student": 0.4,
        "baseline": 0.5,
        "teacher": None,
        "gain": by_class["dog"]["gain"],
    }


def test_no_recovery_is_quoted_where_the_teacher_is_no_better(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    end(database, start(job["id"]), 0.5, {}, AP=0.3)
    end(database, start(job["baseline_job_id"]), 0.4, {})
    report = client.get(f"/jobs/{job['id']}/report").json()
    assert report["gain"] == pytest.approx(0.1)
    assert report["recovery"] is None
    assert "no better" in report["reason"]


def test_a_report_of_plain_training_says_why_there_is_nothing_to_compare(client: TestClient, submit: Submit) -> None:
    report = client.get(f"/jobs/{submit()['id']}/report").json()
    assert report["baseline"]["reason"] == "plain training has no baseline"
    assert report["teacher"]["reason"] == "the job has no teacher"
