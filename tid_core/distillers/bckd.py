"""Binary classification and box distillation: what the heads answer, most where the two disagree.

Source: Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV
2023, arXiv 2308.14286.

Over the valid anchors of the batch, with p the class probabilities:

    class = sum over anchors and classes of |p_T - p_S| BCE(p_S, p_T) / positives
    box   = 4 sum over anchors of w (1 - GIoU(box_S, box_T)) / positives        w = max over the classes of |p_T - p_S|

As published: gradient flows through the first factor of `class` too, w has none, and the positives are those of ATSS,
at least 1. The published count has every image's at 1 or more; here it is the whole batch's [ours].

N images, L anchors over all levels, K classes, V levels.
"""

import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.answers import (
    AnswerDistiller,
    binary_losses,
    box_losses,
    count_answers,
    level_sums,
    top_scores,
    valid_anchors,
)
from tid_core.distillers.base import Distiller, DistillResult, check_anchors, check_outputs
from tid_core.distillers.means import level_result
from tid_core.methods import BckdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets


class BckdDistiller(AnswerDistiller):
    """
    Raises:
        ValueError: the two do not have as many anchors per location.
    """

    def __init__(self, bckd: BckdSpec, *, student: DenseDetector, teacher: DenseDetector) -> None:
        check_anchors("bckd", student.info, teacher.info)
        super().__init__(student.info, teacher.info)
        self.bckd = bckd
        self.decode = student.decode

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/class`, `distill/box`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=True)
        with torch.autocast(student.features[0].device.type, enabled=False):
            boxes_NL4 = self.decode(student.head_outputs["bbox_regression"], student.anchors_L4)
            losses = {
                "class": self.bckd.class_weight
                * binary_losses(
                    student.logits_NLK,
                    teacher.logits_NLK,
                    beta=self.bckd.beta,
                    through=self.bckd.through_weight,
                ),
                "box": self.bckd.box_weight
                * self._weights(student, teacher)
                * box_losses(boxes_NL4, teacher.boxes_NL4),
            }
            factor = self.bckd.weight / count_answers(teacher, targets, self.bckd.divisor)
            valid_NL = valid_anchors(student)
            parts = {name: factor * level_sums(loss_NL * valid_NL, student) for name, loss_NL in losses.items()}
            return level_result(parts, student.strides)

    def _weights(self, student: DenseOutputs, teacher: DenseOutputs) -> Tensor:
        """How much the box of each anchor counts, (N, L)."""
        if self.bckd.box_points == "teacher":
            return top_scores(teacher.logits_NLK)
        difference_NLK = teacher.logits_NLK.detach().sigmoid() - student.logits_NLK.detach().sigmoid()
        return difference_NLK.abs().amax(dim=-1)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> Distiller:
    return BckdDistiller(spec.bckd or BckdSpec(), student=student, teacher=teacher)
