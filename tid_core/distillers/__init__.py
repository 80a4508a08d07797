"""Methods that make a student imitate its teacher."""

from collections.abc import Callable

from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.distillers import bckd, crosskd, cwd, defeat, fgd, fgfi, frs, ld, mgd, pgd, pkd, tar, tbd
from tid_core.distillers.base import CombinedDistiller, Distiller, DistillResult
from tid_core.distillers.fitnet import FitnetDistiller
from tid_core.distillers.schedule import schedule_weight
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import FitnetSpec
from tid_core.spec import JobSpec

__all__ = ["BUILDERS", "CombinedDistiller", "DistillResult", "Distiller", "build_distiller", "schedule_weight"]


def _tid(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> Distiller:
    return TidDistiller(
        spec.tid,
        spec.loss,
        student=student.info,
        teacher=teacher.info,
        student_matcher=student.matcher_thresholds,
        teacher_matcher=teacher.matcher_thresholds,
    )


def _fitnet(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> Distiller:
    return FitnetDistiller(spec.fitnet or FitnetSpec(), student=student.info, teacher=teacher.info)


BUILDERS: dict[str, Callable[[JobSpec, DenseDetector, DenseDetector], Distiller]] = {
    "tid": _tid,
    "fitnet": _fitnet,
    "fgfi": fgfi.build,
    "defeat": defeat.build,
    "fgd": fgd.build,
    "mgd": mgd.build,
    "cwd": cwd.build,
    "pkd": pkd.build,
    "frs": frs.build,
    "pgd": pgd.build,
    "ld": ld.build,
    "crosskd": crosskd.build,
    "bckd": bckd.build,
    "tbd": tbd.build,
    "tar": tar.build,
}


def build_distiller(
    spec: JobSpec, student: DenseDetector, teacher: DenseDetector, class_index_K: Tensor | None = None
) -> Distiller | CombinedDistiller | None:
    """The loss of `spec.method`; None for `none`. Where it looks into the heads, both are set to keep what is there.

    Args:
        class_index_K: the student's classes among the teacher's outputs; None = the same classes.

    Raises:
        ValueError: the pair does not fit.
    """
    parts: dict[str, Distiller] = {name: BUILDERS[name](spec, student, teacher) for name in spec.methods}
    for part in parts.values():
        part.class_index_K = class_index_K
        if part.tap is not None:
            student.tap = teacher.tap = part.tap
    if len(parts) > 1:
        return CombinedDistiller(parts)
    return next(iter(parts.values()), None)
