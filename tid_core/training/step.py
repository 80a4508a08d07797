"""The forward of one training step as the forward of one module.

Whatever has parameters and takes part in the loss (student, adapters) runs inside of it, so that it can be wrapped for
several GPUs without searching for unused parameters; the teacher runs outside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from tid_core.detectors.base import DenseDetector, Target, select_classes
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers import CombinedDistiller, Distiller, DistillResult
from tid_core.spec import LossSpec
from tid_core.training.precision import Precision


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one forward."""

    total: Tensor
    """task * L_task + weight * L_distill, fp32: what is differentiated."""
    task: Tensor
    """L_task as it enters the total, with its weight."""
    distill: Tensor | None
    """L_distill before the weight that moves with the schedule."""
    terms: dict[str, Tensor]
    """Everything that must be finite, by metric name; the parts before their sums."""
    measures: dict[str, Tensor]
    """What the distiller measured, without gradient."""


class TrainingStep(nn.Module):
    def __init__(
        self,
        student: DenseDetector,
        distiller: Distiller | CombinedDistiller | None,
        loss: LossSpec,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.task_weight = loss.task
        self.precision = precision

    def forward(
        self, images: ImageList, targets: list[Target], teacher: DenseOutputs | None, distill_weight: float
    ) -> StepLosses:
        """
        Args:
            images, targets: of the student's `transform`.
            teacher: its outputs for the same `images`; None exactly where there is no distiller.
            distill_weight: of the distillation term at this step.
        """
        with self.precision.autocast():
            # Detector and distiller leave autocast by themselves for boxes, scores and losses.
            outputs = self.student(images, targets)
            result = self._distill(outputs, teacher, targets)
        parts = {f"loss/{name}": value.float() for name, value in outputs.losses.items()}
        task = torch.stack(list(parts.values())).sum()
        terms = {**parts, **(result.terms if result else {}), "loss/task": task}
        total = weighted_task = self.task_weight * task
        if result is not None:
            terms["loss/distill"] = result.total
            total = weighted_task + distill_weight * result.total
        terms["loss/total"] = total
        distill = result.total if result else None
        return StepLosses(total, weighted_task, distill, terms, result.metrics if result else {})

    def _distill(
        self, outputs: DenseOutputs, teacher: DenseOutputs | None, targets: list[Target]
    ) -> DistillResult | None:
        if self.distiller is None or teacher is None:
            return None
        result: DistillResult = self.distiller(outputs, teacher, targets)
        return result


class Teacher:
    """A frozen detector whose class outputs are in the student's order."""

    def __init__(self, detector: DenseDetector, index_K: Tensor, precision: Precision) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.index_K = index_K
        self.precision = precision

    @torch.no_grad()
    def __call__(self, images: ImageList) -> DenseOutputs:
        with self.precision.autocast():
            outputs = self.detector.dense_forward(images)
        return select_classes(outputs, self.index_K)
