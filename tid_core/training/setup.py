"""From a plan to the parts of a run: data, student, teacher, loss."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tid_core.data.coco import CocoDetection
from tid_core.data.sampler import num_batches
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector, build_teacher
from tid_core.detectors.inherit import inherit_parts
from tid_core.distillers import build_distiller
from tid_core.events import Reporter, TrainingFailure, Warned
from tid_core.plan import RunPlan
from tid_core.ranks import num_ranks
from tid_core.spec import JobSpec
from tid_core.training.precision import Precision
from tid_core.training.randomness import seed_all
from tid_core.training.step import Teacher, TrainingStep


@dataclass(frozen=True)
class Parts:
    train: CocoDetection
    val: CocoDetection
    student: DenseDetector
    teacher: Teacher | None
    module: TrainingStep
    """Student and adapters: all that is trained."""
    steps_per_epoch: int
    total_steps: int

    @property
    def classes(self) -> list[str]:
        return self.train.classes


def build_parts(plan: RunPlan, precision: Precision, report: Reporter) -> Parts:
    """Read the data, build the networks on the device.

    Raises:
        TrainingFailure: `dataset_invalid`, `classes_missing`, `checkpoint_invalid`, `weights_unavailable`,
            `inherit_unfit` `pair_unfit` or `batch_exceeds_dataset`.
    """
    spec = plan.spec
    train, val = _data(plan, report)
    _check_shares(len(train), spec)
    student = _student(plan, train.classes)
    teacher = _teacher(plan, train.classes, student, precision)
    if teacher is None and spec.student.inherit:
        report(Warned(code="inherit_ignored", detail="student.inherit needs a teacher; this run has none"))
    seed_all(spec.training.seed, "adapters")
    try:
        distiller = build_distiller(spec, student, teacher.detector, teacher.index_K) if teacher is not None else None
    except ValueError as error:
        raise TrainingFailure("pair_unfit", str(error)) from error
    module = TrainingStep(student, distiller, spec.loss, precision)
    for network in (module, teacher.detector if teacher else None):
        if network is not None:
            network.to(precision.device)
            if spec.training.channels_last:
                network.to(memory_format=torch.channels_last)
    steps = num_batches(len(train), spec.training.batch_size)
    return Parts(train, val, student, teacher, module, steps, steps * spec.training.epochs)


def _check_shares(images: int, spec: JobSpec) -> None:
    """Every rank must get as many images as the others: losses are averaged over the ranks."""
    if num_ranks() > 1 and images < spec.training.batch_size:
        told = f"{images} training images are less than one batch of {spec.training.batch_size}"
        raise TrainingFailure("batch_exceeds_dataset", f"{told}, which {num_ranks()} GPUs are to share evenly")


def _data(plan: RunPlan, report: Reporter) -> tuple[CocoDetection, CocoDetection]:
    spec = plan.spec
    train = CocoDetection(plan.train, None, spec.data, train=True, seed=spec.training.seed)
    if plan.classes not in (None, train.classes):
        detail = f"{plan.train.annotations} now has the classes {train.classes}; when it was registered: {plan.classes}"
        raise TrainingFailure("dataset_invalid", f"{detail}. Register it anew, under another name")
    val = CocoDetection(plan.val, train.classes, spec.data, train=False)
    for split, dataset in (("train", train), ("val", val)):
        for problem in dataset.problems:
            report(Warned(code="dataset_problem", detail=f"{split}: {problem}"))
    return train, val


def _student(plan: RunPlan, classes: list[str]) -> DenseDetector:
    spec = plan.spec.student
    given = getattr(spec.weights, "classes", None)
    seed_all(plan.spec.training.seed, "student")
    try:
        return build_detector(
            spec.detector,
            num_classes=len(classes),
            weights=_student_weights(plan),
            classes=classes,
            weights_classes=given,
            norm=spec.norm,
            trainable_layers=spec.trainable_layers,
            data=plan.spec.data,
            evaluation=plan.spec.evaluation,
        )
    except ValueError as error:
        raise TrainingFailure("checkpoint_invalid", f"student: {error}") from error


def _student_weights(plan: RunPlan) -> str | Path | None:
    weights = plan.spec.student.weights
    if weights is None or isinstance(weights, str):
        return weights
    if plan.student_file is None:
        raise TrainingFailure("checkpoint_invalid", "student.weights names a file or a job, but the plan has no file")
    return plan.student_file


def _teacher(plan: RunPlan, classes: list[str], student: DenseDetector, precision: Precision) -> Teacher | None:
    if plan.teacher is None:
        if plan.spec.teacher is not None:
            raise TrainingFailure("checkpoint_invalid", "the spec has a teacher, but the plan says not where it is")
        return None
    try:
        detector, index_K = build_teacher(plan.teacher, classes, data=plan.spec.data, evaluation=plan.spec.evaluation)
    except ValueError as error:
        raise TrainingFailure("checkpoint_invalid", f"teacher: {error}") from error
    inherit_parts(student, detector, plan.spec.student.inherit, index_K)
    return Teacher(detector, index_K, precision)


def check_same_job(spec: JobSpec, saved: JobSpec) -> None:
    """Refuse to go on with a state of another job.

    What only says where and how often (threads, logging, saving, loader processes, resources, name) may differ.

    Raises:
        TrainingFailure: `checkpoint_invalid`, naming the fields that differ.
    """
    differing = [
        f"{part}.{name} was {old}, is {new}"
        for part in ("student", "teacher", "loss", *spec.methods, "data", "training", "evaluation")
        for name, old, new in _differences(saved, spec, part)
        if f"{part}.{name}" not in _MAY_DIFFER
    ]
    if spec.method != saved.method:
        differing.append(f"method was {saved.method_name}, is {spec.method_name}")
    if differing:
        told = f"the state to continue from belongs to another job: {'; '.join(differing)}"
        raise TrainingFailure("checkpoint_invalid", f"{told}. Use a new folder, or the old spec")


_MAY_DIFFER = {
    "teacher.cache",
    "training.lr_scaling",
    "training.threads",
    "training.device",
    "training.save_every_steps",
    "training.log_every_steps",
    "training.keep_epochs",
    "data.workers",
    "evaluation.batch_size",
    "evaluation.backend",
    "evaluation.teacher",
    "evaluation.maps",
    "evaluation.map_epochs",
}


def _differences(saved: JobSpec, spec: JobSpec, part: str) -> list[tuple[str, object, object]]:
    old, new = (each.model_dump()[part] or {} for each in (saved, spec))
    return [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]
