"""Detectors and weights by name, and the options that go with them."""

from collections.abc import Iterator

from tid_core.catalogue import DETECTORS, close_names
from tid_core.preflight.problem import Problem, TeacherFacts
from tid_core.spec import FileWeights, JobSpec, JobWeights

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")


def check_names(spec: JobSpec, teacher: TeacherFacts | None) -> Iterator[Problem]:
    """Detectors and weights that do not exist."""
    yield from _detector(spec.student.detector, "/student/detector")
    yield from _weights(spec.student.detector, spec.student.weights, "/student/weights", backbone=True)
    if spec.teacher is None:
        return
    name = spec.teacher.detector or (teacher.detector if teacher else None)
    if name is not None:
        yield from _detector(name, "/teacher/detector")
        yield from _weights(name, spec.teacher.weights, "/teacher/weights", backbone=False)
    if teacher is not None and spec.teacher.detector not in (None, teacher.detector):
        detail = f"the teacher job trained {teacher.detector}, not {spec.teacher.detector}"
        yield Problem(
            code="teacher_differs", field="/teacher/detector", detail=detail, expected=f"{teacher.detector}, or null"
        )


def _detector(name: str, field: str) -> Iterator[Problem]:
    if name not in DETECTORS:
        close = ", ".join(close_names(name))
        yield Problem(
            code="unknown_detector",
            field=field,
            detail=f"there is no detector {name!r}",
            expected=f"one of: {close}" if close else "a name of GET /detectors",
        )


def _weights(
    name: str, weights: FileWeights | JobWeights | str | None, field: str, *, backbone: bool
) -> Iterator[Problem]:
    info = DETECTORS.get(name)
    if isinstance(weights, FileWeights) and weights.file.suffix not in CHECKPOINT_SUFFIXES:
        detail = f"{weights.file.name} is not named like a checkpoint"
        expected = f"a file ending in {', '.join(CHECKPOINT_SUFFIXES)}"
        yield Problem(code="unknown_weights", field=f"{field}/file", detail=detail, expected=expected)
    if info is None or not isinstance(weights, str):
        return
    of_backbone = ("imagenet", *info.trunk.weights) if info.has_imagenet else ()
    known = (*info.weights, *of_backbone) if backbone else info.weights
    if weights not in known:
        detail = f"{name} has no weights {weights!r}"
        if weights in of_backbone:
            detail = f"{weights!r} are weights of the backbone alone; such a teacher would know nothing to teach"
        expected = ", ".join((*known, "{file: ...}", "{job: ...}"))
        yield Problem(code="unknown_weights", field=field, detail=detail, expected=f"one of: {expected}")


def check_student(spec: JobSpec) -> Iterator[Problem]:
    """Options of the backbone that contradict its weights."""
    student, info = spec.student, DETECTORS.get(spec.student.detector)
    if student.norm == "group" and isinstance(student.weights, str):
        yield Problem(
            code="norm_unfit",
            field="/student/norm",
            detail=f"the weights {student.weights!r} were trained with batch normalisation; group would undo them",
            expected="auto, frozen or batch; or weights: null",
        )
    if student.norm == "frozen" and student.weights is None:
        yield Problem(
            code="norm_frozen_at_random",
            field="/student/norm",
            detail="frozen batch normalisation without weights normalises nothing",
            expected="batch or group",
            severity="warning",
        )
    if student.trainable_layers is None or info is None:
        return
    if student.trainable_layers > len(info.trunk.stages):
        yield Problem(
            code="trainable_layers_out_of_range",
            field="/student/trainable_layers",
            detail=f"{info.backbone} has {len(info.trunk.stages)} stages, not {student.trainable_layers}",
            expected=f"0 to {len(info.trunk.stages)}",
        )
    elif student.weights is None:
        yield Problem(
            code="trainable_layers_ignored",
            field="/student/trainable_layers",
            detail="without weights all stages are trained",
            expected="null, or weights",
            severity="warning",
        )
