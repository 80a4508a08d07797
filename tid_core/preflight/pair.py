"""Whether student and teacher fit each other."""

from collections.abc import Iterator
from typing import Literal

from tid_core.catalogue import COCO_CATEGORIES, DETECTORS, DetectorInfo
from tid_core.facts import DatasetFacts
from tid_core.methods import HEADS_ALONE, METHODS, Need
from tid_core.preflight.problem import Problem, TeacherFacts, some
from tid_core.spec import FileWeights, JobSpec


def check_pair(spec: JobSpec, student: DetectorInfo, teacher: DetectorInfo) -> Iterator[Problem]:
    """What the methods need to agree between pyramids and heads."""
    if "strides" in _needs(spec):
        yield from _check_pyramids(spec, student, teacher)
    yield from _check_heads(spec, student, teacher)


def _needs(spec: JobSpec) -> dict[Need, str]:
    """What must agree, and the method that says so."""
    return {need: name for name in spec.methods for need in METHODS[name].needs}


def _check_pyramids(spec: JobSpec, student: DetectorInfo, teacher: DetectorInfo) -> Iterator[Problem]:
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
    elif student.channels != teacher.channels and set(spec.methods) - HEADS_ALONE:
        yield Problem(
            code="adapter_needed",
            field="/student/detector",
            detail=f"{student.channels} channels meet {teacher.channels}: a convolution is trained in between",
            expected=f"nothing to do; a student of {teacher.channels} channels would need none",
            severity="warning",
        )


def _check_heads(spec: JobSpec, student: DetectorInfo, teacher: DetectorInfo) -> Iterator[Problem]:
    """Methods that compare what the heads say, each with the reason why a pair cannot carry it."""
    needs = _needs(spec)
    if "anchors" in needs and student.anchors_per_location != teacher.anchors_per_location:
        yield _refused(
            "anchors_differ",
            f"{needs['anchors']} compares anchor with anchor, but {student.name} has {student.anchors_per_location} "
            f"at each location and {teacher.name} {teacher.anchors_per_location}",
            without=needs["anchors"],
        )
    if "distribution" in needs:
        plain = [info.name for info in (student, teacher) if info.family != "gfl"]
        if plain:
            yield _refused(
                "no_distribution",
                f"{needs['distribution']} compares distributions of the sides of boxes, which only GFL predicts; "
                f"not so {' and '.join(plain)}",
                without=needs["distribution"],
            )
    if "channels" in needs and student.channels != teacher.channels:
        yield _refused(
            "channels_differ",
            f"{needs['channels']} runs the student's head features through the teacher's head, but {student.name} has "
            f"{student.channels} channels and {teacher.name} {teacher.channels}",
            without=needs["channels"],
        )


def _refused(code: str, detail: str, *, without: str) -> Problem:
    expected = f"another pair, or another method than {without}: tid, fitnet and pkd, among others, take this one"
    return Problem(code=code, field="/method", detail=detail, expected=expected)


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
    if spec.teacher is None or "classes" not in _needs(spec):
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
