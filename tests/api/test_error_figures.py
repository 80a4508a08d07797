"""Errors by kind in the report of a job."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import checkpoints, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point

Submit = Callable[..., dict[str, Any]]
Start = Callable[..., Claim]
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
KINDS = ["classification", "localisation", "both", "duplicate", "background", "missed"]


def record(database: Database, claim: Claim, step: int, values: dict[str, float]) -> None:
    with database.write() as session:
        metrics.record(claim, [Point(name, step, 1, value) for name, value in values.items()], session=session)


def errors(prefix: str, factor: int) -> dict[str, float]:
    counts = {f"{prefix}/error/{kind}/count": float(factor * i) for i, kind in enumerate(KINDS)}
    return counts | {f"{prefix}/error/{kind}/dAP50": factor * i / 100 for i, kind in enumerate(KINDS) if i}


def finish(database: Database, claim: Claim, factor: int) -> None:
    """Evaluations at steps 10 and 20, the first of them the best, and what is told of it at the end."""
    voc = {"val/VOC07_mAP": 0.6, "val/class/cat/VOC07_AP": 0.6}
    record(database, claim, 10, {"val/AP": 0.5, "val/AP50": 0.7, "val/class/cat/AP": 0.4, **voc})
    record(database, claim, 20, {"val/AP": 0.3, "val/AP50": 0.4})
    with database.write() as session:
        where: dict[str, Any] = {"key": "k", "sha256": "0" * 64, "num_bytes": 1, "file_format": "safetensors"}
        checkpoints.record(claim, name="best", step=10, epoch=1, ap=0.5, session=session, **where)
    record(database, claim, 10, errors("val", factor))


def test_errors_of_student_baseline_and_teacher(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    claim = start(job["id"])
    where = f"/jobs/{job['id']}/report"
    early = client.get(where).json()
    assert [early[role]["errors"] for role in ("student", "baseline", "teacher")] == [None] * 3
    record(database, claim, 0, {"teacher/AP": 0.8, "teacher/AP50": 0.9} | errors("teacher", 1))
    finish(database, claim, 2)
    finish(database, start(job["baseline_job_id"]), 3)
    report = client.get(where).json()
    for role, factor in (("teacher", 1), ("student", 2), ("baseline", 3)):
        found = report[role]["errors"]
        assert list(found) == KINDS
        assert [found[kind]["count"] for kind in KINDS] == [factor * i for i in range(6)]
        assert found["classification"]["dap50"] is None, "undefined is null, not zero"
        assert found["missed"]["dap50"] == pytest.approx(factor * 5 / 100)


def test_numbers_of_the_whole_split_stay_apart_from_errors_and_classes(
    client: TestClient, database: Database, submit: Submit, start: Start
) -> None:
    job = submit(teacher=TEACHER, student={"detector": "fcos_resnet18_fpn"})
    claim = start(job["id"])
    record(database, claim, 0, {"teacher/AP": 0.8, "teacher/class/cat/AP": 0.9} | errors("teacher", 1))
    finish(database, claim, 2)
    report = client.get(f"/jobs/{job['id']}/report").json()
    assert report["student"]["stats"] == {"AP": 0.5, "AP50": 0.7, "VOC07_mAP": 0.6}
    assert report["teacher"]["stats"] == {"AP": 0.8}
    assert report["student"]["per_class"] == {"cat": 0.4}
    assert report["teacher"]["per_class"] == {"cat": 0.9}
