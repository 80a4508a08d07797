"""Rows as a service that is in use has them, for the tables of any revision: what a revision lacks is left out."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import JSON, Boolean, Connection, Float, Integer, MetaData, Table, insert, select
from sqlalchemy.types import TypeEngine

from tid_core.spec import JobSpec

T0 = 1_700_000_000_000_000
"""Microseconds since 1970."""
RUNS, DONE, TWIN, SWEPT = "a" * 12, "b" * 12, "c" * 12, "e" * 12
POOR, DATASET, UPLOAD, SWEEP, KEY = "f" * 12, "d" * 12, "1" * 12, "5" * 12, "2" * 12
PLAIN = {"student": {"detector": "fcos_resnet18_small"}, "dataset": "digits"}
TEACHER = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
SPEC = JobSpec.model_validate({**PLAIN, "teacher": TEACHER}).model_dump(mode="json")
SPEC["resources"].pop("priority", None)  # as it was before a job had one
ON_TWO = {**SPEC, "resources": {**SPEC["resources"], "gpus": 2}}
SIDES = {"smallest": 4.0, "mean": 9.5, "largest": 15.0}
SPLIT = {
    "images": 2, "boxes": 3, "empty_images": 0, "per_class": {"zero": 2, "eins ✓": 1}, "images_checked": "present",
    "problems": [], "box_side": SIDES, "box_side_histogram": [{"low": 4, "high": 16, "boxes": 3}],
    "image_short_side": SIDES, "image_long_side": SIDES,
}  # fmt: skip
FACTS = {"name": "digits", "classes": ["zero", "eins ✓"], "splits": {"train": SPLIT, "val": SPLIT}}
TEXT = "loss 0.1 → ok\n"
JOB: dict[str, Any] = {
    "name": "r18 from r50 Ω", "spec": SPEC, "method": "tid", "queue": "default", "priority": 5, "attempt": 1,
    "max_attempts": 3, "created_at": T0, "started_at": T0 + 1, "updated_at": T0 + 9, "step": 7, "total_steps": 9,
    "epoch": 1, "epochs": 2, "best_ap": 0.1 + 0.2, "warnings": [{"code": "lr_high", "field": "/t", "detail": "d"}],
    "dataset_id": DATASET, "run_facts": {"processes": 1, "student_parameters": 3}, "traceparent": None,
}  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "datasets": [
        {
            "id": DATASET, "name": "digits", "root": "/data/digits", "facts": FACTS, "classes": FACTS["classes"],
            "state": "ready", "created_at": T0, "source": "folder", "options": {"format": "coco"}, "report": [],
            "format": "coco", "sha256": "0" * 64, "index_prefix": f"datasets/{DATASET}", "created_by": KEY,
        },
        {
            "id": UPLOAD, "name": "poor", "root": "/data/poor", "facts": {"name": "poor", "classes": [], "splits": {}},
            "classes": [], "state": "invalid", "created_at": T0 + 1, "source": "folder", "options": {}, "report": [
                {"code": "no_images", "detail": "there are none"}], "bytes": 2**40,
        },
    ],
    "sweeps": [
        {"id": SWEEP, "name": "lr", "spec": {"base": PLAIN, "axes": {"z": [2], "a": [1]}, "name": "lr"},
         "created_at": T0, "idempotency_key": "s", "request_hash": "1" * 64, "created_by": KEY},
    ],
    "api_keys": [
        {"id": KEY, "name": "ci", "scope": "read", "hash": "3" * 64, "created_at": T0, "revoked_at": T0 + 5},
    ],
    "audit": [
        {"id": KEY, "at": T0, "method": "POST", "path": "/jobs", "status": 201, "request_id": "r", "count": 1},
    ],
    "jobs": [
        {**JOB, "id": RUNS, "state": "running", "worker_id": "w", "lease_token": "7" * 32, "progress": {
            "phase": "training"}, "lease_expires_at": T0 * 2, "idempotency_key": "k", "request_hash": "2" * 64},
        {**JOB, "id": DONE, "state": "succeeded", "ended_at": T0 + 8, "created_at": T0 + 1},
        {**JOB, "id": TWIN, "state": "queued", "twin_of": RUNS, "attempt": 0, "created_at": T0 + 2, "best_ap": None},
        {**JOB, "id": SWEPT, "state": "failed", "status_reason": "max_attempts", "detail": "2 of 2", "ended_at": T0 + 8,
         "teacher_job_id": DONE, "sweep_id": SWEEP, "sweep_role": "point", "sweep_label": "lr 1", "sweep_point": {
            "lr": 1}, "created_at": T0 + 3, "created_by": KEY},
        {**JOB, "id": POOR, "state": "paused", "dataset_id": UPLOAD, "created_at": T0 + 4, "spec": ON_TWO,
         "gpus_wanted": 2, "nodes": 1},
    ],
    "attempts": [
        {"job_id": RUNS, "number": 1, "worker_id": "w", "lease_token": "7" * 32, "started_at": T0 + 1},
        {"job_id": DONE, "number": 1, "worker_id": "w", "lease_token": "8" * 32, "started_at": T0 + 1,
         "ended_at": T0 + 8, "outcome": "succeeded", "resumed_from_step": 0, "last_step": 9},
    ],
    "seats": [
        {"job_id": RUNS, "attempt": 1, "node": 1, "host": "10.0.0.1", "port": 29500, "worker_id": "v",
         "token": "9" * 32, "lease_expires_at": T0 * 2, "last_rung_at": T0},
    ],
    "metrics": [
        {"job_id": RUNS, "name": name, "step": step, "value": step / 3, "epoch": 1, "attempt": 1, "at": T0 + step,
         "superseded": step == 3}
        for name in ("val/AP", "loss/total") for step in (1, 2, 3, 2**40)
    ],
    "metric_latest": [
        {"job_id": RUNS, "name": name, "step": 2**40, "value": 2**40 / 3, "epoch": 1, "at": T0 + 2**40}
        for name in ("val/AP", "loss/total")
    ],
    "log_chunks": [
        {"job_id": RUNS, "seq": seq, "attempt": 1, "offset": (seq - 1) * len(TEXT.encode()),
         "bytes": len(TEXT.encode()), "text": TEXT, "at": T0} for seq in (1, 2)
    ],
    "checkpoints": [
        {"job_id": DONE, "name": "best", "format": kind, "key": f"jobs/{DONE}/best.{kind}", "sha256": "4" * 64,
         "bytes": 2**40, "step": 9, "epoch": 2, "ap": 0.5, "attempt": 1, "created_at": T0} for kind in ("pt", "card")
    ],
    "resume_states": [
        {"job_id": RUNS, "step": 7, "epoch": 1, "key": f"jobs/{RUNS}/a1/7", "attempt": 1, "created_at": T0},
    ],
    "artifacts": [
        {"job_id": DONE, "kind": "map", "name": "0001.png", "key": f"jobs/{DONE}/m.png", "sha256": "5" * 64,
         "bytes": 9, "attempt": 1, "created_at": T0},
    ],
    "workers": [
        {"id": "w", "hostname": "h", "pid": 1, "queues": ["default"], "device": {"kind": "cpu"}, "started_at": T0,
         "telemetry": {"load": 1.5}, "current_job": RUNS, "heartbeat_at": T0, "gpus": 1, "gpu_memory_mib": 24564},
    ],
    "leases": [{"name": "reaper", "token": "6" * 32, "expires_at": T0}],
}  # fmt: skip
"""By table. A table that a later revision adds, and a column that must not be null, are filled by their types."""
Rows = dict[str, list[dict[str, Any]]]


def fill(connection: Connection) -> None:
    """Every table of the database, whatever its revision."""
    # `twin_of` names a row of the same table: its rows are in an order in which that is there.
    for table in tables(connection):
        for row in ROWS.get(table.name, [{}]):
            connection.execute(insert(table).values({**_required(table, row), **_known(table, row)}))


def everything(connection: Connection) -> Rows:
    found = {}
    for table in tables(connection):
        rows = connection.execute(select(table).order_by(*table.primary_key.columns))
        found[table.name] = [dict(row._mapping) for row in rows]
    return found


def in_both(rows: Rows, other: Rows) -> Rows:
    """`rows` without the tables and columns that `other` does not have."""
    return {
        name: [{column: row[column] for column in row if column in other[name][0]} for row in of_table]
        for name, of_table in rows.items()
        if other.get(name)
    }


def tables(connection: Connection) -> Iterator[Table]:
    reflected = MetaData()
    reflected.reflect(connection)
    return (table for table in reflected.sorted_tables if table.name != "alembic_version")


def _known(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in table.columns}


_BY_TYPE: tuple[tuple[type[TypeEngine[Any]], Callable[[], Any]], ...] = (
    (Boolean, lambda: False),
    (Integer, lambda: 1),
    (Float, lambda: 0.5),
    (JSON, dict),
)


def _required(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    missing = [one for one in table.columns if not one.nullable and one.server_default is None and one.name not in row]
    return {one.name: next((make() for kind, make in _BY_TYPE if isinstance(one.type, kind)), "x") for one in missing}
