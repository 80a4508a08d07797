"""From a sweep to its queued jobs: expanded, every job checked as POST /jobs checks one, then all stored or none."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy.orm import Session

from api.deps import Parts
from api.problems import ProblemError
from api.schemas import FieldProblem, SpecProblem
from api.submission import Review, refusal, review_spec
from api.sweeps.schemas import PlannedJob, Sweep, SweepDryRun
from api.sweeps.views import sweep_full
from api.validation import field_problems
from store import datasets, idempotency, sweeps
from tid_core.sweep import InvalidPoint, SweepInvalid, SweepJob, SweepSpec, expand, in_points, locate

MAX_PROBLEMS = 100
"""Of one answer, and of one point."""
Problem = TypeVar("Problem", bound=FieldProblem)
_Choice = tuple[int, ...]


class SubmittedSweep(NamedTuple):
    sweep: Sweep
    replayed: bool


def dry_run(sweep: SweepSpec, parts: Parts) -> SweepDryRun:
    """
    Raises:
        ProblemError: 422, the sweep cannot be expanded.
    """
    planned = _expanded(sweep)
    with parts.database.read() as session:
        reviews = _reviews(planned, parts, session=session)
    problems = _problems(sweep, planned, reviews)
    answers = [_planned_job(job, review, planned) for job, review in zip(planned, reviews, strict=True)]
    return SweepDryRun(ok=not _errors(problems), problems=problems, jobs=answers)


def submit(sweep: SweepSpec, parts: Parts, *, idempotency_key: str | None) -> SubmittedSweep:
    """Store all jobs in one transaction; after the commit, ring for each.

    Raises:
        ProblemError: 422 with every problem of every job, or with those of the axes; 409 where only the state of other
            things is in the way.
        IdempotencyConflict: the key was used with another request.
        IdempotencyInFlight: another request with the key is at work.
    """
    digest = hashlib.sha256(sweep.model_dump_json().encode()).hexdigest()
    planned = _expanded(sweep)
    with parts.in_flight.only("sweep", idempotency_key), parts.database.write() as session:
        if idempotency_key:
            idempotency.hold("sweep", idempotency_key, session=session)
            if known := sweeps.by_key(idempotency_key, digest, session=session):
                return SubmittedSweep(sweep_full(known, session=session), replayed=True)
        reviews = _reviews(planned, parts, session=session)
        if errors := _errors(_problems(sweep, planned, reviews)):
            raise refusal(errors, what="sweep")
        created = sweeps.create(
            sweep.name,
            sweep.model_dump(mode="json"),
            _rows(planned, reviews, session=session),
            session=session,
            idempotency_key=idempotency_key,
            request_hash=digest,
        )
        answer = sweep_full(created.sweep, session=session)
        queued = sweeps.jobs_of(created.sweep.id, session=session)
    if not created.replayed:
        for job in queued:
            parts.doorbell.ring(job.id, job.queue)
    return SubmittedSweep(answer, created.replayed)


def _expanded(sweep: SweepSpec) -> list[SweepJob]:
    try:
        return expand(sweep)
    except SweepInvalid as error:
        problems = [FieldProblem.model_validate(problem.model_dump()) for problem in error.problems]
        problems += _of_points(sweep, error.points, error.num_points)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        if len(problems) > MAX_PROBLEMS:
            count = f"more than {MAX_PROBLEMS} problems"
        code = problems[0].code if error.problems and len(problems) == 1 else "sweep_invalid"
        detail = f"the sweep has {count}: {problems[0].field}: {problems[0].detail}"
        raise ProblemError(422, code, detail, errors=problems[:MAX_PROBLEMS]) from error


def _of_points(sweep: SweepSpec, points: Iterable[InvalidPoint], num_points: int) -> list[FieldProblem]:
    found = []
    for point in points:
        errors = point.error.errors(include_url=False, include_input=False)[: MAX_PROBLEMS + 1]
        located = [{**one, "loc": ("body", *one["loc"])} for one in errors]
        found += [(problem, point.choice) for problem in field_problems(located, point.document)]
    return _merged(sweep, found, num_points)


def _reviews(planned: Sequence[SweepJob], parts: Parts, *, session: Session) -> list[Review]:
    return [review_spec(job.spec, parts, session=session) for job in planned]


def _problems(sweep: SweepSpec, planned: Sequence[SweepJob], reviews: Sequence[Review]) -> list[SpecProblem]:
    """What the preflight says of all jobs, errors first."""
    checked = zip(planned, reviews, strict=True)
    found = [(problem, job.choice) for job, review in checked for problem in review.problems]
    problems = _merged(sweep, found, len({job.choice for job in planned}))
    return sorted(problems, key=lambda problem: problem.severity)


def _errors(problems: Iterable[SpecProblem]) -> list[SpecProblem]:
    return [problem for problem in problems if problem.severity == "error"]


def _merged(sweep: SweepSpec, found: Iterable[tuple[Problem, _Choice]], num_points: int) -> list[Problem]:
    """Each problem once, placed in the sweep, with the points that have it if not all do."""
    choices: dict[str, dict[_Choice, tuple[Problem, str]]] = {}
    for problem, choice in found:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in problem.field.split("/")[1:]]
        placed = problem.model_copy(update={"field": locate(sweep, choice, parts)})
        choices.setdefault(placed.model_dump_json(), {})[choice] = placed, problem.field
    merged = []
    for of_choices in choices.values():
        placed, field = next(iter(of_choices.values()))
        if len(of_choices) < num_points:
            where = in_points(sweep, list(of_choices), num_points)
            update = {"detail": f"{placed.detail} ({where})"}
        else:  # what all points have in common is the base's, unless an axis of a single value says it
            update = {"field": f"/base{field}" if placed.field == "/axes" else placed.field}
        merged.append(placed.model_copy(update=update))
    return merged


def _rows(planned: Sequence[SweepJob], reviews: Sequence[Review], *, session: Session) -> list[sweeps.Planned]:
    """
    Raises:
        NotFound: a dataset was deleted meanwhile.
    """
    used = {review.dataset.id: review.dataset for review in reviews if review.dataset is not None}
    for dataset in used.values():
        datasets.pin(dataset, session=session)
    return [
        sweeps.Planned(
            spec=review.spec,
            role=job.role,
            label=job.label,
            point=job.values,
            baseline=job.baseline,
            dataset_id=review.dataset.id,
            warnings=review.warnings,
        )
        for job, review in zip(planned, reviews, strict=True)
        if review.dataset is not None
    ]


def _planned_job(job: SweepJob, review: Review, planned: Sequence[SweepJob]) -> PlannedJob:
    return PlannedJob(
        name=job.spec.name,
        role=job.role,
        label=job.label,
        point=job.values,
        baseline=planned[job.baseline].spec.name if job.baseline is not None else None,
        spec=review.spec.model_dump(mode="json"),
    )
