"""Rows of the store as answers of the API."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.deps import Parts
from api.schemas import Cost, Dataset, Job, JobSummary, JobWarning, Progress
from store import datasets, models, waiting
from store.cost import costs
from tid_core.data.options import IndexOptions

_SAME = tuple(name for name in JobSummary.model_fields if hasattr(models.Job, name))
"""Fields that are columns."""


def job_summaries(rows: Sequence[models.Job], parts: Parts, *, session: Session) -> list[JobSummary]:
    spent = costs([row.id for row in rows], session=session)
    waits = waiting.of_jobs(rows, heartbeat_seconds=parts.settings.heartbeat_seconds, session=session)
    read = [{**_summary(row), "cost": spent[row.id], "waiting": waits.get(row.id)} for row in rows]
    return [JobSummary.model_validate(one) for one in read]


def job_full(row: models.Job, parts: Parts, *, session: Session) -> Job:
    (summary,) = job_summaries([row], parts, session=session)
    return Job(**dict(summary), warnings=job_warnings(row), spec=row.spec)


def job_cost(job_id: str, *, session: Session) -> Cost:
    return Cost.model_validate(costs([job_id], session=session)[job_id])


def job_warnings(row: models.Job) -> list[JobWarning]:
    return [JobWarning(code=w["code"], field=w.get("field"), detail=w["detail"]) for w in row.warnings]


def progress_of(row: models.Job) -> Progress:
    told = row.progress or {}
    return Progress(
        phase=told.get("phase"),
        step=row.step,
        total_steps=row.total_steps,
        epoch=row.epoch,
        epochs=row.epochs,
        done=told.get("done"),
        total=told.get("total"),
        images_per_second=told.get("images_per_second"),
        eta_seconds=row.eta_seconds,
    )


def dataset_full(row: models.Dataset) -> Dataset:
    same = {name: getattr(row, name) for name in Dataset.model_fields if hasattr(row, name)}
    options = IndexOptions.model_validate(row.options).model_dump()
    root = None if datasets.stored_archive(row) else row.root
    return Dataset.model_validate({**same, "root": root, "options": options, "splits": _splits(row)})


def _splits(row: models.Dataset) -> dict[str, Any]:
    """What is told of each split, train first, the classes in label order: PostgreSQL sorts the keys of an object."""
    told: dict[str, dict[str, Any]] = row.facts["splits"] if row.facts else {}
    return {
        split: {**told[split], "per_class": {name: told[split]["per_class"][name] for name in row.classes}}
        for split in sorted(told, key=lambda name: name != "train")
    }


def _summary(row: models.Job) -> dict[str, Any]:
    same = {name: getattr(row, name) for name in _SAME}
    spec = row.spec
    return {
        **same,
        "state": row.state.value,
        "student_detector": spec["student"]["detector"],
        "teacher_detector": (spec["teacher"] or {}).get("detector"),
        "dataset": spec["dataset"],
        "progress": progress_of(row),
    }
