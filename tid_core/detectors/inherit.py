"""A student that starts with its teacher's neck or head (as in Kang et al., Instance-Conditional KD, NeurIPS 2021)."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.weights import CLASS_OUTPUTS
from tid_core.events import TrainingFailure

PREFIXES = {"neck": "backbone.fpn.", "head": "head."}

Modules = dict[str, dict[str, Tensor]]


@torch.no_grad()
def inherit_parts(
    student: DenseDetector, teacher: DenseDetector, parts: Iterable[str], class_index_K: Tensor | None = None
) -> list[str]:
    """Copy parts of the teacher into the student; the names of the modules copied.

    The neck gives every module whose shapes agree (its first convolutions depend on the trunk). The head is copied
    whole or not at all: a tower is of no use to outputs that were trained on another.

    Args:
        parts: `neck`, `head`.
        class_index_K: the student's classes among the teacher's outputs; None = the same classes.

    Raises:
        TrainingFailure: `inherit_unfit`: nothing of a part fits.
    """
    copied: list[str] = []
    for part in parts:
        wanted = _modules(student, PREFIXES[part])
        given = _modules(teacher, PREFIXES[part])
        if part == "head" and class_index_K is not None:
            _select_outputs(given, teacher, class_index_K)
        fitting = [name for name, tensors in wanted.items() if _fits(tensors, given.get(name, {}))]
        if not fitting or (part == "head" and len(fitting) < len(wanted)):
            detail = f"the {part} of {teacher.info.name} does not fit {student.info.name}"
            raise TrainingFailure("inherit_unfit", f"{detail}; leave {part!r} out of student.inherit")
        for name in fitting:
            for key, tensor in wanted[name].items():
                tensor.copy_(given[name][key])
        copied += fitting
    return copied


def _modules(detector: DenseDetector, prefix: str) -> Modules:
    """Tensors by module, then by name, of the modules that hold any."""
    found: Modules = defaultdict(dict)
    for key, tensor in detector.model.state_dict().items():
        if key.startswith(prefix):
            module, _, name = key.rpartition(".")
            found[module][name] = tensor
    return found


def _select_outputs(modules: Modules, teacher: DenseDetector, class_index_K: Tensor) -> None:
    anchors = teacher.info.anchors_per_location
    for key in CLASS_OUTPUTS:
        module, _, name = key.rpartition(".")
        rows = modules[module][name]
        by_class = rows.view(anchors, -1, *rows.shape[1:])[:, class_index_K.to(rows.device)]
        modules[module][name] = by_class.reshape(-1, *rows.shape[1:])


def _fits(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> bool:
    return wanted.keys() == given.keys() and all(given[name].shape == tensor.shape for name, tensor in wanted.items())
