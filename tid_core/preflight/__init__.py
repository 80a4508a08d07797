"""Whether a job can work, before anything is trained: the pair, the weights, the dataset. Free of torch."""

from tid_core.catalogue import DETECTORS, DetectorInfo
from tid_core.facts import DatasetFacts
from tid_core.preflight.dataset import check_dataset
from tid_core.preflight.names import check_names, check_student
from tid_core.preflight.pair import check_classes, check_inherit, check_pair, check_strength
from tid_core.preflight.problem import Problem, TeacherFacts
from tid_core.preflight.settings import check_settings
from tid_core.spec import JobSpec

__all__ = ["Problem", "TeacherFacts", "check"]


def check(spec: JobSpec, *, dataset: DatasetFacts | None, teacher: TeacherFacts | None) -> list[Problem]:
    """Everything wrong with a job, errors first. A job with an error must not be started.

    Args:
        dataset: None = not looked at.
        teacher: of a teacher that is a job; None = what the spec itself says.
    """
    problems = [*check_names(spec, teacher), *check_student(spec)]
    student_info, teacher_info = DETECTORS.get(spec.student.detector), _teacher_info(spec, teacher)
    if student_info is not None and teacher_info is not None:
        problems += [*check_pair(spec, student_info, teacher_info), *check_inherit(spec, student_info, teacher_info)]
    if dataset is not None:
        problems += [*check_dataset(spec, dataset), *check_classes(spec, dataset, teacher)]
    problems += [*check_settings(spec), *check_strength(teacher)]
    return sorted(problems, key=lambda problem: problem.severity)


def _teacher_info(spec: JobSpec, teacher: TeacherFacts | None) -> DetectorInfo | None:
    if spec.teacher is None:
        return None
    return DETECTORS.get((teacher.detector if teacher else spec.teacher.detector) or "")
