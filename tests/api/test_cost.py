"""What a job has cost, as the API tells it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import update

from store import metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.models import Attempt

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
NOTHING = {"gpu_seconds": 0.0, "images_per_second": None, "teacher_share": None, "peak_memory_bytes": None}


def test_jobs_lists_and_reports_tell_the_cost(
    client: TestClient,
    database: Database,
    submit: Callable[..., dict[str, Any]],
    start: Callable[..., Claim],
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    assert job["cost"] == NOTHING
    claim = start(job["id"])
    told = {"throughput/images_per_second": 31.5, "time/teacher_share": 0.25, "memory/peak_bytes": 2.0**30}
    with database.write() as session:
        metrics.record(claim, [Point(name, step, 1, value) for step in (10, 20) for name, value in told.items()],
                       session=session)  # fmt: skip
        ended = {"started_at": BEGAN, "ended_at": BEGAN + timedelta(seconds=90)}
        session.execute(update(Attempt).where(Attempt.job_id == job["id"]).values(**ended))
    expected = {"gpu_seconds": 90.0, "images_per_second": 31.5, "teacher_share": 0.25, "peak_memory_bytes": 2.0**30}
    assert client.get(f"/jobs/{job['id']}").json()["cost"] == expected
    listed = {row["id"]: row["cost"] for row in client.get("/jobs").json()["data"]}
    assert listed == {job["id"]: expected, job["baseline_job_id"]: NOTHING}
    report = client.get(f"/jobs/{job['id']}/report").json()
    assert [report[name]["cost"] for name in ("student", "baseline", "teacher")] == [expected, NOTHING, None]
