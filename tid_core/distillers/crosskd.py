"""Cross-head distillation: the student's features half-way through its head, through the rest of the teacher's head.

Source: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Dense Object Detection", CVPR 2024, arXiv
2306.11369.

What comes out are cross-head predictions, in the teacher's own format, and these follow the teacher's: the student's
own outputs are left to the ground truth. Over the valid anchors of the teacher, with p the class probabilities and
w = max over the classes of p_T:

    class = sum over anchors and classes of |p_T - p| BCE(p, p_T) / positives
    box   = 4 sum of w KL(sides_T || sides) / sum of w        where the teacher is a GFL, mean over the four sides
          =   sum of w (1 - GIoU(box, box_T)) / sum of w      else

The features are taken before the ReLU of the third convolution (in towers of three or fewer, the last but one, so that
a convolution and the output layer of the teacher follow), and each channel gets the mean and deviation that the
teacher's has there, over the valid points of the level in the batch. Positives are ATSS's for every family [ours]; the
batch is that of all ranks [ours]. In the padding stand the teacher's own features, so that what the student makes of
the padding takes part in nothing [ours]. Gradient flows through the teacher's layers, which stay as they are.

N images, C channels, H and W a level's grid, L anchors over all levels, K classes, V levels.
"""

import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.one_anchor import BINS
from tid_core.detectors.outputs import DenseOutputs, Towers
from tid_core.distillers.answers import (
    AnswerDistiller,
    binary_losses,
    box_losses,
    count_answers,
    level_sums,
    side_divergences,
    top_scores,
    valid_anchors,
)
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.means import NO_WEIGHT, level_result
from tid_core.methods import CrosskdSpec
from tid_core.ranks import num_ranks, sum_over_ranks
from tid_core.spec import JobSpec
from tid_core.truth import Targets

# Added to the variance of a channel, so that a dead one is not blown up.
DEAD_CHANNEL = 1e-6


class CrosskdDistiller(AnswerDistiller):
    """Keeps the teacher, frozen, without owning it: it is neither trained, saved nor moved with the distiller.

    Student and teacher must keep their features in the outputs: see `tap`.

    Raises:
        ValueError: the two do not have as many channels.
    """

    def __init__(self, crosskd: CrosskdSpec, *, student: DenseDetector, teacher: DenseDetector) -> None:
        wide = [(detector.info.name, detector.info.channels) for detector in (student, teacher)]
        if wide[0][1] != wide[1][1]:
            raise ValueError(
                "crosskd runs the student's head features through the teacher's head, but "
                f"{' and '.join(f'{name} has {channels} channels' for name, channels in wide)}; "
                "choose two detectors with as many"
            )
        super().__init__(student.info, teacher.info)
        self.crosskd = crosskd
        self.tap = min(crosskd.convs, student.info.tower_convs - 1, teacher.info.tower_convs - 1)
        teacher.requires_grad_(False)
        # In a tuple, where torch does not look for parts of this module.
        self._teacher = (teacher,)

    @property
    def teacher(self) -> DenseDetector:
        return self._teacher[0]

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/class`, `distill/box`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=True)
        cross = self._cross_head(student, teacher)
        with torch.autocast(student.features[0].device.type, enabled=False):
            valid_NL = valid_anchors(teacher)
            score_NL = top_scores(teacher.logits_NLK) * valid_NL
            class_NL = binary_losses(
                self._select(cross["cls_logits"]), teacher.logits_NLK, beta=self.crosskd.beta, through=True
            )
            count = count_answers(teacher, targets, self.crosskd.divisor)
            total = sum_over_ranks(score_NL.sum()).clamp(min=NO_WEIGHT) / num_ranks()
            box_NL = self._box_losses(cross["bbox_regression"], teacher)
            parts = {
                "class": self.crosskd.class_weight / count * level_sums(class_NL * valid_NL, teacher),
                "box": level_sums(box_NL * score_NL, teacher) / total,
            }
            return level_result({name: self.crosskd.weight * part_V for name, part_V in parts.items()}, teacher.strides)

    def _cross_head(self, student: DenseOutputs, teacher: DenseOutputs) -> dict[str, Tensor]:
        """The raw outputs of the teacher's head for the student's features."""
        given, own = student.towers, teacher.towers
        if given is None or own is None or not given.convs == own.convs == self.tap:
            raise ValueError(f"crosskd needs the features inside both heads; set the `tap` of both to {self.tap}")
        both = zip(given.classification + given.regression, own.classification + own.regression, strict=True)
        valid = [*student.valid, *student.valid]
        pairs = [(s_NCHW, t_NCHW.detach()) for s_NCHW, t_NCHW in both]
        with torch.autocast(student.features[0].device.type, enabled=False):
            entering = _align(pairs, valid) if self.crosskd.align else [s_NCHW for s_NCHW, _ in pairs]
            entering = [
                torch.where(v_NHW[:, None], feat_NCHW.to(t_NCHW.dtype), t_NCHW)
                for feat_NCHW, (_, t_NCHW), v_NHW in zip(entering, pairs, valid, strict=True)
            ]
        num_levels = len(student.valid)
        return self.teacher.finish(Towers(self.tap, entering[:num_levels], entering[num_levels:]))

    def _select(self, logits_NLK: Tensor) -> Tensor:
        """The student's classes among the teacher's."""
        index_K = self.class_index_K
        return logits_NLK if index_K is None else logits_NLK[..., index_K.to(logits_NLK.device)]

    def _box_losses(self, regression_NLD: Tensor, teacher: DenseOutputs) -> Tensor:
        """Weighted, (N, L)."""
        if self.teacher.info.family == "gfl":
            goal_NLD = teacher.head_outputs["bbox_regression"]
            temperature = self.crosskd.temperature
            losses_NL = side_divergences(regression_NLD, goal_NLD, bins=BINS, temperature=temperature)
            return self.crosskd.sides_weight * losses_NL
        boxes_NL4 = self.teacher.decode(regression_NLD, teacher.anchors_L4)
        return self.crosskd.box_weight * box_losses(boxes_NL4, teacher.boxes_NL4)


def _align(pairs: list[tuple[Tensor, Tensor]], valid: list[Tensor]) -> list[Tensor]:
    """The student's features (N, C, H, W) with the statistics of the teacher's, each channel of each level."""
    student, teacher = ([feat_NCHW.float() for feat_NCHW in side] for side in zip(*pairs, strict=True))
    (mean_VC, deviation_VC), (goal_VC, spread_VC) = _statistics(student, valid), _statistics(teacher, valid)
    gain_VC = spread_VC / deviation_VC
    shift_VC = goal_VC - mean_VC * gain_VC
    return [
        feat_NCHW * gain_C[:, None, None] + shift_C[:, None, None]
        for feat_NCHW, gain_C, shift_C in zip(student, gain_VC, shift_VC, strict=True)
    ]


def _statistics(features: list[Tensor], valid: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every level's channels over the valid points of the batch, (V, C) each."""
    inside = [v_NHW[:, None] for v_NHW in valid]
    count_V1 = sum_over_ranks(torch.stack([v_N1HW.sum() for v_N1HW in inside])).clamp(min=1)[:, None]
    sums = [(feat_NCHW * v_N1HW).sum(dim=(0, 2, 3)) for feat_NCHW, v_N1HW in zip(features, inside, strict=True)]
    mean_VC = sum_over_ranks(torch.stack(sums)) / count_V1
    squares = [
        ((feat_NCHW - mean_C[:, None, None]).square() * v_N1HW).sum(dim=(0, 2, 3))
        for feat_NCHW, mean_C, v_N1HW in zip(features, mean_VC, inside, strict=True)
    ]
    return mean_VC, (sum_over_ranks(torch.stack(squares)) / count_V1 + DEAD_CHANNEL).sqrt()


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> Distiller:
    return CrosskdDistiller(spec.crosskd or CrosskdSpec(), student=student, teacher=teacher)
