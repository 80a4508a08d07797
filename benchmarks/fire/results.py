"""What a job has left, whole, and what is wrong with it beside a job that nothing happened to."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from benchmarks.fire.tiny import tiny
from store import checkpoints, jobs, resume_states
from store.db import Database
from store.models import Attempt, Metric
from store.states import ENDED, Outcome, State

EPOCHS = 4
STEPS = 3 * EPOCHS
SPEC = {**tiny(EPOCHS), "resources": {"max_attempts": 100}}
_BY_CHANCE = ("throughput/", "time/", "memory/")


class Result(NamedTuple):
    weights: dict[str, str]
    """Digest of each student's safetensors, by the name of the checkpoint."""
    curves: dict[tuple[str, int], float]
    """Every point of every series, but for the speed, which no two runs share."""


def read_result(job_id: str, database: Database, artifacts: Path) -> Result:
    """
    Raises:
        ValueError: a file is not what its row says.
    """
    with database.read() as session:
        files = checkpoints.of_job(job_id, session=session)
        valid = select(Metric.name, Metric.step, Metric.value).where(Metric.job_id == job_id, ~Metric.superseded)
        points = session.execute(valid).all()
    for file in files:
        if hashlib.sha256((artifacts / file.key).read_bytes()).hexdigest() != file.sha256:
            raise ValueError(f"{file.key} is not the file that was recorded")
    curves = {(name, step): value for name, step, value in points if not name.startswith(_BY_CHANCE)}
    return Result({file.name: file.sha256 for file in files if file.format == "safetensors"}, curves)


def complaints(job_id: str, database: Database, artifacts: Path, reference: Result, *, cancelled: bool) -> list[str]:
    """What is wrong with a job of SPEC: it has to have succeeded, once, with the results of the reference.

    Args:
        cancelled: it was asked to cancel, and may have.
    """
    with database.read() as session:
        job = jobs.get(job_id, session=session)
        attempts = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
        left = resume_states.keys(job_id, session=session)
    if job.state not in ENDED:
        return [f"has not ended: it is {job.state}"]
    wrong = [f"attempt {attempt.number} has no end" for attempt in attempts if attempt.ended_at is None]
    if cancelled and job.state is State.CANCELLED:
        return wrong
    if job.state is not State.SUCCEEDED:
        return [*wrong, f"is {job.state}: {job.status_reason}: {job.detail}"]
    succeeded = [attempt.number for attempt in attempts if attempt.outcome is Outcome.SUCCEEDED]
    if succeeded != [job.attempt] or len(attempts) != job.attempt:
        wrong.append(f"attempts {succeeded} of {len(attempts)} succeeded, the job is at {job.attempt}")
    if left:
        wrong.append(f"states are left: {left}")
    try:
        found = read_result(job_id, database, artifacts)
    except (OSError, ValueError) as error:
        return [*wrong, f"its files: {error}"]
    return wrong + _differences(found, reference)


def _differences(found: Result, reference: Result) -> list[str]:
    wrong = []
    if found.weights != reference.weights:
        wrong.append(f"its weights differ: {found.weights}")
    if missing := sorted(reference.curves.keys() - found.curves.keys()):
        wrong.append(f"holes in its curves: {missing}")
    if extra := sorted(found.curves.keys() - reference.curves.keys()):
        wrong.append(f"points that no run has: {extra}")
    differing = [key for key, value in found.curves.items() if reference.curves.get(key, value) != value]
    return [*wrong, f"other values at {sorted(differing)}"] if differing else wrong
