"""Whether the dataset can be trained and evaluated on."""

from collections.abc import Iterator
from typing import Literal

from tid_core.data.problems import UNUSABLE_BOXES, UNUSABLE_IMAGES, DataProblem
from tid_core.facts import DatasetFacts, SplitFacts
from tid_core.preflight.problem import Problem, some
from tid_core.spec import JobSpec

MAX_STEPS = 2**31 - 1
"""Of one job: what a column of the database counts to."""


def check_dataset(spec: JobSpec, dataset: DatasetFacts) -> Iterator[Problem]:
    for name in ("train", "val"):
        if name not in dataset.splits:
            yield Problem(
                code="split_missing",
                field="/dataset",
                detail=f"the dataset {dataset.name} has no `{name}` split",
                expected=f"a dataset with a `{name}` split, found by its layout, named or carved when it is registered",
            )
            continue
        split = dataset.splits[name]
        if split.boxes == 0:
            yield Problem(
                code="no_boxes",
                field="/dataset",
                detail=f"no box of the `{name}` split ({split.images} images) can be used",
                expected="at least one box of positive size inside its image",
            )
        yield from _split_problems(spec, name, split)
    if (train := dataset.splits.get("train")) is not None:
        yield from _training_split(spec, train)


def _split_problems(spec: JobSpec, name: str, split: SplitFacts) -> Iterator[Problem]:
    for problem in split.problems:
        if problem.code in UNUSABLE_IMAGES:
            expected = "images that are present, whole, of the stated size, and with annotations that can be read"
            yield _data_problem(name, problem, expected, "error")
        elif problem.code in UNUSABLE_BOXES and spec.data.invalid_boxes == "refuse":
            yield _data_problem(name, problem, "repair them, or data.invalid_boxes: drop", "error")
        elif problem.code in UNUSABLE_BOXES:
            yield _data_problem(name, problem, "nothing to do; data.invalid_boxes: refuse would stop here", "warning")
        elif problem.code == "leaked_image" and name == "val":
            yield _data_problem(name, problem, "no image in both `train` and `val`", "warning")


def _data_problem(split: str, problem: DataProblem, expected: str, severity: Literal["error", "warning"]) -> Problem:
    return Problem(
        code=problem.code, field="/dataset", detail=f"{split}: {problem}", expected=expected, severity=severity
    )


def _training_split(spec: JobSpec, train: SplitFacts) -> Iterator[Problem]:
    usable = train.images - (train.empty_images if spec.data.drop_empty else 0)
    shared = spec.resources.gpus > 1 or spec.resources.nodes > 1
    if spec.training.batch_size > usable:
        yield Problem(
            code="batch_exceeds_dataset",
            field="/training/batch_size",
            detail=f"a batch of {spec.training.batch_size} is larger than the training split ({usable} images); "
            + ("GPUs could not share it evenly" if shared else "every step would see all of it"),
            expected=f"at most {usable}",
            severity="error" if shared else "warning",
        )
    steps = spec.training.epochs * (usable // spec.training.batch_size)
    if steps > MAX_STEPS:
        yield Problem(
            code="too_many_steps",
            field="/training/epochs",
            detail=f"{spec.training.epochs} epochs of {usable} images are {steps:,} steps",
            expected=f"at most {MAX_STEPS:,} steps",
            severity="error",
        )
    untrained = [name for name, boxes in train.per_class.items() if boxes == 0]
    if untrained and train.boxes:
        yield Problem(
            code="classes_without_boxes",
            field="/dataset",
            detail=f"no training box of {some(untrained)}",
            expected="at least one box of each class, or fewer categories",
            severity="warning",
        )
