"""From a claimed job to a `RunPlan`: names become paths on this machine."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from store import datasets, jobs, resume_states
from store.artifacts import ArtifactDamaged
from store.db import Database
from store.errors import NotFound, OutsideRoots, TeacherNotReady
from store.fencing import Claim
from store.models import Dataset, Job
from store.seats import Seated
from tid_core.data.index import index_splits
from tid_core.events import TrainingFailure
from tid_core.plan import RunPlan, SplitPaths, TeacherPlan
from tid_core.spec import FileWeights, JobSpec, JobWeights
from worker import leftovers
from worker.dataset_copies import Uploaded
from worker.settings import WorkerSettings
from worker.uploads import Storage


@dataclass(frozen=True)
class _JobCheckpoint:
    """A checkpoint of an earlier job: what it is, and its file among the artifacts."""

    detector: str
    classes: list[str]
    key: str
    sha256: str

    def fetch(self, storage: Storage, folder: Path) -> Path:
        try:
            return storage.fetch(self.key, folder / Path(self.key).name, sha256=self.sha256)
        except (FileNotFoundError, ArtifactDamaged) as error:
            detail = f"{error.filename} is not in the artifact store as it was put: {error.strerror}"
            raise TrainingFailure("checkpoint_invalid", detail) from error


@dataclass(frozen=True)
class _Records:
    """What the database knows about a run."""

    spec: JobSpec
    dataset: Dataset
    teacher: _JobCheckpoint | None
    student: _JobCheckpoint | None
    resume_keys: list[str]
    provenance: dict[str, str]


def prepare(
    claim: Claim | Seated,
    database: Database,
    settings: WorkerSettings,
    storage: Storage,
    scratch: Path,
    *,
    resumes: bool = True,
) -> RunPlan:
    """Gather everything the training needs under `scratch`, a folder of this attempt alone.

    `resumes`: with the states to go on from; further nodes get what they need of them from the first one.

    Raises:
        TrainingFailure: the dataset, the teacher or a weights file cannot be used.
        StorageFailed: the artifact store does not answer.
    """
    with database.read() as session:
        records = _read(claim, session)
    _clear(scratch, claim.attempt)
    spec = with_threads(records.spec, settings.threads)
    splits = _splits(records.dataset, settings.data_roots, storage, scratch / "index")
    return RunPlan(
        spec=spec,
        train=splits["train"],
        val=splits["val"],
        classes=list(records.dataset.classes),
        teacher=_teacher(spec, records.teacher, settings.data_roots, storage, scratch / "teacher"),
        student_file=_student_file(spec, records.student, settings.data_roots, storage, scratch / "student"),
        out_dir=scratch / "out",
        resume_from=_gather_states(records.resume_keys if resumes else [], storage, scratch / "resume-from"),
        provenance=records.provenance,
        gpus_required=spec.gpus_needed,
        room_seconds=settings.full_seconds,
    )


def with_threads(spec: JobSpec, threads: int) -> JobSpec:
    """The spec with this worker's share of the cores where it asks for no number of its own."""
    if spec.training.threads or not threads:
        return spec
    training = spec.training.model_copy(update={"threads": threads})
    return spec.model_copy(update={"training": training})


def _read(claim: Claim | Seated, session: Session) -> _Records:
    job = jobs.get(claim.job_id, session=session)
    spec = JobSpec.model_validate(job.spec)
    dataset = session.get_one(Dataset, job.dataset_id)
    provenance = {"job": job.id, "attempt": str(claim.attempt), "worker": claim.worker_id, "dataset": dataset.name}
    if dataset.sha256 is not None:
        provenance["dataset_sha256"] = dataset.sha256
    weights = spec.teacher.weights if spec.teacher else None
    if isinstance(weights, JobWeights):
        provenance["teacher_job"] = weights.job
    return _Records(
        spec=spec,
        dataset=dataset,
        teacher=_job_checkpoint(weights, session) if isinstance(weights, JobWeights) else None,
        student=_job_checkpoint(spec.student.weights, session)
        if isinstance(spec.student.weights, JobWeights)
        else None,
        resume_keys=resume_states.keys(job.id, session=session),
        provenance=provenance,
    )


def _splits(dataset: Dataset, roots: Sequence[Path], storage: Storage, folder: Path) -> dict[str, SplitPaths]:
    """The dataset's images where they lie, and its annotations as they were when it was looked through."""
    if dataset.state != "ready" or dataset.root is None or dataset.index_prefix is None:
        why = "; ".join(f"{reason['code']}: {reason['detail']}" for reason in dataset.report) or "it was not looked at"
        raise TrainingFailure("dataset_invalid", f"the dataset {dataset.name} is {dataset.state}: {why}")
    root = _root(dataset, dataset.root, roots, storage)
    try:
        splits = index_splits(root, storage.fetch(dataset.index_prefix, folder))
    except (FileNotFoundError, ArtifactDamaged) as error:
        detail = f"the index of dataset {dataset.name} is not at {error.filename} as it was put: {error.strerror}"
        raise TrainingFailure("dataset_invalid", detail) from error
    if not {"train", "val"} <= splits.keys():
        raise TrainingFailure("dataset_invalid", f"the index of dataset {dataset.name} has no splits to train from")
    return splits


def _root(dataset: Dataset, root: str, roots: Sequence[Path], storage: Storage) -> Path:
    key = datasets.stored_archive(dataset)
    if key is not None:
        try:
            return storage.content(Uploaded(dataset.id, dataset.name, key, dataset.bytes or 0))
        except (FileNotFoundError, ArtifactDamaged) as error:
            detail = f"the archive of dataset {dataset.name} is not at {error.filename} as it was put: {error.strerror}"
            raise TrainingFailure("dataset_invalid", detail) from error
    if not Path(root).is_dir():
        why = "it was moved or deleted, or this host does not see it, as every host of workers has to, at this path"
        detail = f"{root}, the folder of dataset {dataset.name}, does not exist on this worker: {why}"
        raise TrainingFailure("dataset_invalid", detail)
    if dataset.source == "folder":
        _check_place(Path(root), roots, "dataset_invalid")
    return Path(root)


def _job_checkpoint(weights: JobWeights, session: Session) -> _JobCheckpoint:
    try:
        row = jobs.teacher_checkpoint(weights.job, weights.checkpoint, session=session)
    except (NotFound, TeacherNotReady) as error:
        raise TrainingFailure("teacher_not_ready", str(error)) from error
    job = session.get_one(Job, weights.job)
    classes = list(session.get_one(Dataset, job.dataset_id).classes)
    return _JobCheckpoint(JobSpec.model_validate(job.spec).student.detector, classes, row.key, row.sha256)


def _teacher(
    spec: JobSpec, found: _JobCheckpoint | None, roots: Sequence[Path], storage: Storage, folder: Path
) -> TeacherPlan | None:
    if spec.teacher is None:
        return None
    if found is not None:
        file = found.fetch(storage, folder)
        return TeacherPlan(detector=spec.teacher.detector or found.detector, file=file, classes=found.classes)
    detector, weights = spec.teacher.detector, spec.teacher.weights
    assert detector is not None  # noqa: S101 (the spec asks for it unless a job is named)
    if isinstance(weights, FileWeights):
        return TeacherPlan(detector=detector, file=_local(weights.file, roots), classes=weights.classes)
    return TeacherPlan(detector=detector, weights=str(weights))


def _student_file(
    spec: JobSpec, found: _JobCheckpoint | None, roots: Sequence[Path], storage: Storage, folder: Path
) -> Path | None:
    if found is not None:
        return found.fetch(storage, folder)
    weights = spec.student.weights
    return _local(weights.file, roots) if isinstance(weights, FileWeights) else None


def _gather_states(keys: list[str], storage: Storage, folder: Path) -> Path | None:
    """The states side by side, so that the training finds the older one where the newest is damaged."""
    folder.mkdir()
    for key in keys:
        state = folder / Path(key).name
        if not state.exists():
            _bring_state(key, state, storage)
    return folder / Path(keys[0]).name if keys else None


def _bring_state(key: str, state: Path, storage: Storage) -> None:
    try:
        found = storage.fetch(key, state)
    except (FileNotFoundError, ArtifactDamaged):
        state.mkdir()  # which is no state, as the training will tell
        return
    if found != state:
        state.symlink_to(found, target_is_directory=True)


def _local(file: Path, roots: Sequence[Path]) -> Path:
    if not file.is_file():
        raise TrainingFailure(
            "checkpoint_invalid", f"{file} does not exist on this worker; it must lie under a data root"
        )
    _check_place(file, roots, "checkpoint_invalid")
    return file


def _check_place(path: Path, roots: Sequence[Path], code: str) -> None:
    """What was a real path when it was named may be a link by now, which may lead under a data root alone.

    Raises:
        TrainingFailure: it leads elsewhere.
    """
    try:
        if path.resolve() != path:
            datasets.allowed_path(path, roots)
    except (OutsideRoots, OSError, RuntimeError) as error:
        detail = f"{path} was a real path when it was named and is a link now, which leads out of the data roots"
        raise TrainingFailure(code, detail) from error


def _clear(scratch: Path, attempt: int) -> None:
    """An empty folder; what earlier attempts at this job left on this machine goes.

    Later ones keep theirs: a worker that was frozen may come here when another has long taken its job.
    """
    for number, folder in leftovers.attempts(scratch.parent):
        if number < attempt or folder == scratch:  # one of another node may be at work beside this
            shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)
