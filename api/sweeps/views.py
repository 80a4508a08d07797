"""Sweeps of the store as answers of the API."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.schemas import JobWarning
from api.sweeps.schemas import Sweep, SweepJob, SweepSummary
from api.views import job_warnings, progress_of
from store import models, sweeps
from store.states import ENDED, State


def summaries(rows: Sequence[models.Sweep], *, session: Session) -> list[SweepSummary]:
    counted = sweeps.counts([row.id for row in rows], session=session)
    return [SweepSummary.model_validate(_summary(row, counted[row.id])) for row in rows]


def sweep_full(row: models.Sweep, *, session: Session) -> Sweep:
    jobs = sweeps.jobs_of(row.id, session=session)
    states = Counter(job.state for job in jobs)
    told = {"jobs": [_job(job) for job in jobs], "warnings": _warnings(jobs), "spec": row.spec}
    return Sweep.model_validate({**_summary(row, states), **told})


def _summary(row: models.Sweep, states: Counter[State]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "state": sweeps.state_of(states),
        "counts": {state.value: states[state] for state in State if states[state]},
        "done": sum(number for state, number in states.items() if state in ENDED),
        "total": states.total(),
        "created_by": row.created_by,
        "created_at": row.created_at,
    }


def _job(job: models.Job) -> SweepJob:
    return SweepJob(
        id=job.id,
        name=job.name,
        role=job.sweep_role or "point",
        label=job.sweep_label or "",
        point=job.sweep_point or {},
        seed=job.spec["training"]["seed"],
        method=job.method,
        state=job.state.value,
        status_reason=job.status_reason,
        best_ap=job.best_ap,
        baseline_job_id=job.baseline_job_id,
        progress=progress_of(job),
    )


def _warnings(jobs: Sequence[models.Job]) -> list[JobWarning]:
    """Of the preflight, each once; what a training warned of is its job's to tell."""
    told = [warning for job in jobs for warning in job_warnings(job) if warning.field is not None]
    return list({warning.model_dump_json(): warning for warning in told}.values())
