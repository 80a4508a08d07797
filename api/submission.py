"""From a spec to a queued job: what it names is looked up, the preflight runs, and only then is it stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from api.deps import Parts
from api.problems import ProblemError
from api.schemas import DryRun, FieldProblem, Job, SpecProblem
from api.views import job_full
from store import datasets, idempotency, jobs
from store.errors import NotFound, OutsideRoots, TeacherNotReady
from store.models import Dataset, Json
from store.monitoring import tracing
from store.placement import Gpus
from store.waiting import nobody_fits, too_few
from tid_core.facts import DatasetFacts
from tid_core.preflight import TeacherFacts, check
from tid_core.spec import FileWeights, JobSpec, JobWeights

# Problems with the state of other things, not with the payload: 409.
_STATE_CODES = frozenset({"job_not_found", "teacher_not_ready", "dataset_not_ready"})
_MAX_NAMES = 20
_Part = Literal["teacher", "student"]


class Submitted(NamedTuple):
    job: Job
    replayed: bool


@dataclass
class Review:
    """A spec with what was found out about it."""

    spec: JobSpec
    dataset: Dataset | None = None
    teacher: TeacherFacts | None = None
    problems: list[SpecProblem] = field(default_factory=list)

    def refuse(self, code: str, where: str, detail: str, expected: str) -> None:
        self.problems.append(SpecProblem(code=code, field=where, detail=detail, expected=expected, severity="error"))

    @property
    def errors(self) -> list[SpecProblem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Json]:
        """As a job keeps them."""
        found = [problem for problem in self.problems if problem.severity == "warning"]
        return [{"code": one.code, "field": one.field, "detail": one.detail} for one in found]


def dry_run(spec: JobSpec, parts: Parts) -> DryRun:
    with parts.database.read() as session:
        review = review_spec(spec, parts, session=session)
    return DryRun(ok=not review.errors, problems=review.problems, spec=review.spec.model_dump(mode="json"))


@tracing.span("submit")
def submit(spec: JobSpec, parts: Parts, *, idempotency_key: str | None) -> Submitted:
    """Store the job in one transaction; after the commit, ring for it (and its twin).

    Raises:
        ProblemError: 422 with every problem of the spec; 409 where only the state of other things is in the way.
        IdempotencyConflict: the key was used with another request.
        IdempotencyInFlight: another request with the key is at work.
    """
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    with parts.in_flight.only("job", idempotency_key), parts.database.write() as session:
        if idempotency_key:
            idempotency.hold("job", idempotency_key, session=session)
            if known := jobs.by_key(idempotency_key, digest, session=session):
                return Submitted(job_full(known, parts, session=session), replayed=True)
        review = review_spec(spec, parts, session=session)
        if review.errors or review.dataset is None:
            raise refusal(review.errors)
        datasets.pin(review.dataset, session=session)
        created = jobs.create(
            review.spec,
            dataset_id=review.dataset.id,
            session=session,
            idempotency_key=idempotency_key,
            request_hash=digest,
            warnings=review.warnings,
        )
        session.refresh(created.job)
        job = job_full(created.job, parts, session=session)
    if not created.replayed:
        for job_id in filter(None, (job.id, job.baseline_job_id)):
            parts.doorbell.ring(job_id, job.queue)
    return Submitted(job, created.replayed)


def refusal(found: Sequence[SpecProblem], *, what: str = "job") -> ProblemError:
    """The errors of a spec as the answer to its request: 409 where only the state of other things is in the way."""
    errors = [FieldProblem.model_validate(problem.model_dump()) for problem in found]
    if all(problem.code in _STATE_CODES for problem in errors):
        return ProblemError(409, errors[0].code, errors[0].detail, errors=errors)
    code = errors[0].code if len(errors) == 1 else "spec_invalid"
    count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    return ProblemError(422, code, f"the {what} has {count}: {errors[0].detail}", errors=errors)


@tracing.span("preflight")
def review_spec(spec: JobSpec, parts: Parts, *, session: Session) -> Review:
    """Look up what a spec names, and run the preflight."""
    review = Review(spec)
    review.dataset = _find_dataset(review, session=session)
    _check_weights(review, "teacher", parts, session=session)
    _check_weights(review, "student", parts, session=session)
    if spec.teacher is not None and isinstance(spec.teacher.weights, JobWeights):
        review.teacher = _teacher_facts(spec.teacher.weights, review.dataset, session=session)
        _name_teacher(review)
    facts = _usable_facts(review, review.dataset) if review.dataset else None
    found = check(review.spec, dataset=facts, teacher=review.teacher)
    review.problems += [SpecProblem.model_validate(problem) for problem in found]
    _look_for_a_worker(review, parts, session=session)
    review.problems.sort(key=lambda problem: problem.severity)
    return review


def _look_for_a_worker(review: Review, parts: Parts, *, session: Session) -> None:
    """A job that no worker could take now, or too few for it, is accepted, and waits: more may come."""
    resources, told = review.spec.resources, None
    wanted = Gpus(review.spec.gpus_needed, resources.min_gpu_memory_mib)
    heartbeat = parts.settings.heartbeat_seconds
    field, expected = "/resources", "GPUs that a worker has; until a worker with these comes, the job waits"
    if wanted.number:
        told = nobody_fits(wanted, resources.queue, heartbeat_seconds=heartbeat, session=session)
    if told is None and resources.nodes > 1:
        told = too_few(resources.nodes, wanted, resources.queue, heartbeat_seconds=heartbeat, session=session)
        field, expected = "/resources/nodes", "no more than there are workers; until enough have come, the job waits"
    if told is not None:
        named = {"code": "no_fitting_worker", "field": field, "detail": f"when it was submitted, {told}"}
        review.problems.append(SpecProblem(**named, expected=expected, severity="warning"))


def _find_dataset(review: Review, *, session: Session) -> Dataset | None:
    try:
        return datasets.get(review.spec.dataset, session=session)
    except NotFound as error:
        names = [row.name for row in datasets.page(session=session, limit=_MAX_NAMES, state="ready")]
        expected = f"one of: {', '.join(names)}" if names else "a dataset registered with POST /datasets; none is ready"
        review.refuse("dataset_unknown", "/dataset", str(error), expected)
        return None


def _usable_facts(review: Review, dataset: Dataset) -> DatasetFacts | None:
    """What is known of the dataset; None, and a problem of the job, while it cannot be trained on."""
    if dataset.state == "ready":
        return DatasetFacts.model_validate(dataset.facts)
    name = dataset.name
    if dataset.state == "invalid":
        for reason in dataset.report:
            detail = f"the dataset {name} is invalid: {reason['code']}: {reason['detail']}"
            review.refuse(
                "dataset_invalid", "/dataset", detail, "a dataset that is ready; repair it, register it again"
            )
        return None
    doing = dataset.progress or {}
    how_far = f" ({doing['phase']}: {doing['done']:,} of {doing['total'] or 'all'})" if doing else ""
    detail = f"the dataset {name} is {dataset.state}{how_far}"
    review.refuse("dataset_not_ready", "/dataset", detail, f"a dataset that is ready; GET /datasets/{name} says when")
    return None


def _check_weights(review: Review, part: _Part, parts: Parts, *, session: Session) -> None:
    """Weights that are a job's must exist now; a file must lie under an allowed root."""
    owner = getattr(review.spec, part)
    weights = owner.weights if owner is not None else None
    if isinstance(weights, JobWeights):
        try:
            jobs.teacher_checkpoint(weights.job, weights.checkpoint, session=session)
        except NotFound as error:
            review.refuse("job_not_found", f"/{part}/weights/job", str(error), "the id of a job that succeeded")
        except TeacherNotReady as error:
            review.refuse("teacher_not_ready", f"/{part}/weights", str(error), "a checkpoint of a job that succeeded")
    elif isinstance(weights, FileWeights):
        _check_file(review, part, weights, parts.settings.data_roots)


def _check_file(review: Review, part: _Part, weights: FileWeights, roots: tuple[Path, ...]) -> None:
    where = f"/{part}/weights/file"
    try:
        real = datasets.allowed_path(weights.file, roots)
    except OutsideRoots as error:
        review.refuse("outside_roots", where, str(error), "the absolute path of a file under an allowed root")
        return
    if not real.is_file():
        review.refuse("file_not_found", where, f"there is no file {weights.file}", "a checkpoint file")
        return
    # Stored as the real, absolute path: the worker has another working directory.
    owner = getattr(review.spec, part)
    owner = owner.model_copy(update={"weights": weights.model_copy(update={"file": real})})
    review.spec = review.spec.model_copy(update={part: owner})


def _name_teacher(review: Review) -> None:
    """The resolved spec says which detector teaches, also where the teacher's job alone was named."""
    teacher = review.spec.teacher
    if teacher is not None and teacher.detector is None and review.teacher is not None:
        named = teacher.model_copy(update={"detector": review.teacher.detector})
        review.spec = review.spec.model_copy(update={"teacher": named})


def _teacher_facts(weights: JobWeights, dataset: Dataset | None, *, session: Session) -> TeacherFacts | None:
    """What the teacher's job knows; None where there is no such job (told elsewhere)."""
    try:
        job = jobs.get(weights.job, session=session)
        checkpoint = jobs.teacher_checkpoint(weights.job, weights.checkpoint, session=session)
    except (NotFound, TeacherNotReady):
        return None
    taught = session.get_one(Dataset, job.dataset_id)
    same_split = dataset is not None and dataset.id == taught.id
    return TeacherFacts(
        detector=job.spec["student"]["detector"],
        classes=taught.classes,
        ap=checkpoint.ap if same_split else None,
        student_ap=None,
    )
