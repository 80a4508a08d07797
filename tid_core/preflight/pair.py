"""Whether student and teacher fit each other."""

from collections.abc import Iterator
from typing import Literal

from tid_core.catalogue import COCO_CATEGORIES, DETECTORS, METHODS, DetectorInfo
from tid_core.facts import DatasetFacts
from tid_core.preflight.problem import Problem, TeacherFacts, some
from tid_core.spec import FileWeights, JobSpec


def check_pair(spec: JobSpec, student: DetectorInfo, teacher: DetectorInfo) -> Iterator[Problem]:
    """What a method needs to agree between the pyramids."""
    if spec.method == "none" or "strides" not in METHODS[spec.method].needs:
        return
    if len(student.strides) != len(teacher.strides):
        yield Problem(
            code="levels_differ",
            field="/student/detector",
            detail=f"{student.name} has {len(student.strides)} pyramid levels, {teacher.name} {len(teacher.strides)}; "
            "each level imitates the teacher's of the same stride",
            expected=_fitting(student, teacher),
        )
    elif student.strides != teacher.strides:
        yield Problem(
            code="strides_differ",
            field="/student/detector",
            detail=f"{student.name} has strides {student.strides}, {teacher.name} {teacher.strides}; "
            "each level imitates the teacher's of the same stride",
            expected=_fitting(student, teacher),
        )
    elif student.channels != teacher.channels:
        yield Problem(
            code="adapter_needed",
            field="/student/detector",
            detail=f"{student.channels} channels meet {teacher.channels}: a 1x1 convolution is trained in between",
            expected=f"nothing to do; a student of {teacher.channels} channels would need none",
            severity="warning",
        )


def _fitting(student: DetectorInfo, teacher: DetectorInfo) -> str:
    """Students on the teacher's levels, those most like the one asked for first."""
    fitting = [info for info in DETECTORS.values() if info.strides == teacher.strides and info.name != teacher.name]
    fitting.sort(key=lambda info: (info.family != student.family, info.backbone != student.backbone))
    return f"one of: {some([info.name for info in fitting])}"


def check_inherit(spec: JobSpec, student: DetectorInfo, teacher: DetectorInfo) -> Iterator[Problem]:
    if "head" in spec.student.inherit and _head(student) != _head(teacher):
        yield _unfit(spec, "head", f"the heads of {teacher.name} and {student.name} are built differently")
    if "neck" in spec.student.inherit and student.channels != teacher.channels:
        yield _unfit(spec, "neck", f"the pyramids have {teacher.channels} and {student.channels} channels")


def _head(info: DetectorInfo) -> tuple[str | int, ...]:
    """What makes two heads interchangeable, but for the classes. GFL and ATSS have a scale for every level."""
    levels = len(info.strides) if info.family in ("gfl", "atss") else 0
    kind = (info.family, info.version, info.flavour)
    return *kind, info.channels, info.tower_convs, info.anchors_per_location, levels


def _unfit(spec: JobSpec, part: Literal["neck", "head"], detail: str) -> Problem:
    field = f"/student/inherit/{spec.student.inherit.index(part)}"
    return Problem(code="inherit_unfit", field=field, detail=detail, expected=f"student.inherit without {part!r}")


def check_classes(spec: JobSpec, dataset: DatasetFacts, teacher: TeacherFacts | None) -> Iterator[Problem]:
    """The teacher must know every class of the dataset, by name."""
    if spec.teacher is None or spec.method == "none":
        return
    known = _teacher_classes(spec, teacher)
    missing = [] if known is None else [name for name in dataset.classes if name not in known]
    if known is None or not missing:
        return
    yield Problem(
        code="classes_missing",
        field="/teacher/weights",
        detail=f"the teacher has no output for {some(missing)} of the dataset {dataset.name}",
        expected="a teacher trained on these classes (`teacher: null` trains one); "
        f"this one knows {some([name for name in known if name not in ('__background__', 'N/A')])}",
    )


def _teacher_classes(spec: JobSpec, teacher: TeacherFacts | None) -> list[str] | None:
    if teacher is not None:
        return teacher.classes
    weights = spec.teacher.weights if spec.teacher else None
    if isinstance(weights, FileWeights):
        return weights.classes
    return list(COCO_CATEGORIES) if isinstance(weights, str) else None


def check_strength(teacher: TeacherFacts | None) -> Iterator[Problem]:
    if teacher is None or teacher.ap is None or teacher.student_ap is None:
        return
    if teacher.ap < teacher.student_ap + 0.02:
        yield Problem(
            code="teacher_not_better",
            field="/teacher",
            detail=f"the teacher's AP {teacher.ap:.3f} is hardly above the student's own {teacher.student_ap:.3f}",
            expected="a teacher that is clearly better",
            severity="warning",
        )
