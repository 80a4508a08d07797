"""What the methods share that compare the answers of two heads: where, by how much they differ, over what.

N images, L anchors over all levels, P locations over all levels, K classes, V levels.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import generalized_box_iou_loss

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.atss_matcher import assign
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller
from tid_core.ranks import mean_count
from tid_core.truth import Targets, Truth, pad_truth

MIN_SIDE = 0.01
"""Pixels that a box of the teacher must be wide and high to be imitated: FCOS has boxes without area, of which the IoU
with themselves is 0."""


class AnswerDistiller(Distiller):
    """A method that imitates no features, and so has no adapters."""

    def __init__(self, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.adapters = nn.ModuleList()


def valid_anchors(outputs: DenseOutputs) -> Tensor:
    """(N, L) bool: whether an anchor's location lies inside its image."""
    return outputs.all_valid.repeat_interleave(outputs.num_anchors, dim=1)


def top_scores(logits_NLK: Tensor) -> Tensor:
    """The probability of each anchor's likeliest class, (N, L), without gradient."""
    return logits_NLK.detach().amax(dim=-1).sigmoid()


def find_positives(outputs: DenseOutputs, truth: Truth) -> Tensor:
    """(N, P) bool: locations to which ATSS assigns an object, whatever the detector's own rule is."""
    return assign(outputs.centres, outputs.valid, truth, strides=outputs.strides) >= 0


def count_answers(teacher: DenseOutputs, targets: Targets, by: Literal["positives", "teacher"]) -> Tensor:
    """What sums over the anchors are divided by, for the whole batch (see `mean_count`): the number of positives, or
    the sum of the teacher's top scores."""
    if by == "positives":
        return mean_count(find_positives(teacher, pad_truth(targets)).sum().float())
    return mean_count((top_scores(teacher.logits_NLK) * valid_anchors(teacher)).sum())


def binary_losses(logits_NLK: Tensor, teacher_NLK: Tensor, *, beta: float, through: bool) -> Tensor:
    """|p_T - p|^beta times the cross entropy of p with p_T, summed over the classes, (N, L).

    Args:
        teacher_NLK: logits.
        through: whether gradient flows through the first factor too.
    """
    goal_NLK = teacher_NLK.detach().sigmoid()
    probability_NLK = logits_NLK.sigmoid() if through else logits_NLK.detach().sigmoid()
    entropy_NLK = binary_cross_entropy_with_logits(logits_NLK, goal_NLK, reduction="none")
    return ((goal_NLK - probability_NLK).abs().pow(beta) * entropy_NLK).sum(dim=-1)


def box_losses(boxes_NL4: Tensor, teacher_NL4: Tensor) -> Tensor:
    """1 - GIoU, (N, L); 0 where the teacher's box has no area."""
    teacher_NL4 = teacher_NL4.detach()
    has_area_NL = (teacher_NL4[..., 2:] - teacher_NL4[..., :2]).amin(dim=-1) > MIN_SIDE
    losses_NL: Tensor = generalized_box_iou_loss(boxes_NL4, teacher_NL4, reduction="none")
    return losses_NL * has_area_NL


def side_divergences(codes_PD: Tensor, teacher_PD: Tensor, *, bins: int, temperature: float) -> Tensor:
    """T^2 times the Kullback-Leibler divergence of the teacher's distributions, mean over the four sides, (P,).

    Args:
        codes_PD: logits, D = 4 * bins; any number of dimensions may come first.
    """
    shape = (*codes_PD.shape[:-1], 4, bins)
    log_P4B = (codes_PD.view(shape) / temperature).log_softmax(dim=-1)
    goal_P4B = (teacher_PD.detach().view(shape) / temperature).log_softmax(dim=-1)
    return (goal_P4B.exp() * (goal_P4B - log_P4B)).sum(dim=-1).mean(dim=-1) * temperature**2


def level_sums(values_NL: Tensor, outputs: DenseOutputs) -> Tensor:
    """Sums over the images and each level's anchors, (V,)."""
    sizes = [height * width * outputs.num_anchors for height, width in outputs.grid]
    return torch.stack([level.sum() for level in torch.split(values_NL.sum(dim=0), sizes)])
