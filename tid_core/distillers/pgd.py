"""Prediction-guided distillation: near each object, the points where the teacher predicts it best.

Source: Yang, Ochal, Storkey, Crowley, "Prediction-Guided Distillation for Dense Object Detection", ECCV 2022, arXiv
2203.05469. Inside of a ground truth, over all levels, the quality of the teacher's prediction for it is

    q = p^(1 - a) IoU^a;

to the places of the K best a Gaussian is fitted (their mean and covariance), and I, the weight of each of these points,
is its height relative to the peak, 0 elsewhere; of several objects the largest. With attention of the teacher over an
image's points, A (sum = count), over the channels of each point, B (sum = count), and d = phi(F_S) - F_T,

    foreground = mean of A B d^2 by I        background = mean of A B d^2 over the points outside of all boxes
    attention  = mean of |B_T - B_S| + mean of |A_T - A_S|

where A = count * softmax over the points of (mean over channels |F|) / T, and B = count * softmax over the channels of
|F| / T. Published weights: background half of foreground, which is .04 (ATSS: .08), attention .0008, for sums over
channels, T = .8, and for each level by itself.

[ours] The paper distils the ends of both towers of the head, with masks of their own; here it is what both towers read,
the pyramid, with the mask of the class tower. Each term is one mean over the points of all levels and over channels,
d^2 divided by the variance of the teacher's level. A prediction that misses its object is not among the K.

N images, M ground truths of the fullest image, L anchors over all levels, P locations over all levels, k those chosen
for a ground truth, C channels, H and W a level's grid.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import inverse_variance
from tid_core.distillers.masks import best_at_location, inside_boxes, slices
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import PgdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets, Truth, pad_truth, pairwise

TOPK, TOPK_ATSS = 30, 9
# Pixels squared, added to the variances: what the published code's noise of +-.05 pixels amounts to. Points on a line,
# and one alone, have a Gaussian then.
JITTER = 0.1**2 / 12
# In place of the padding's features in a softmax. Finite: an image may have no other points on a level.
NOWHERE = -1e9


class PgdDistiller(Distiller):
    """The three terms, each with its weight."""

    def __init__(self, pgd: PgdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.pgd = pgd
        self.topk = pgd.topk or (TOPK_ATSS if teacher.family == "atss" else TOPK)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/foreground`, `distill/background`, `distill/attention`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=True)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            truth = pad_truth(targets)
            inside_NMP = inside_boxes(student, truth)
            weights_NP = key_weights(teacher, truth, inside_NMP, alpha=self.pgd.alpha, topk=self.topk)
            empty_NP = student.all_valid & ~inside_NMP.any(dim=1)
            taught = [t_NCHW.detach().float() for t_NCHW in teacher.features]
            levels = list(zip([s_NCHW.float() for s_NCHW in adapted], taught, student.valid, strict=True))
            compared = [_compare(s, t, v, temperature=self.pgd.temperature) for s, t, v in levels]
            errors, gaps = [error for error, _ in compared], [gap for _, gap in compared]
            scale_V = inverse_variance(taught, student.valid) if self.pgd.distance == "normalised_mse" else 1.0
            means = {
                "foreground": scale_V * weighted_means(errors, student.split(weights_NP), together=True),
                "background": scale_V * weighted_means(errors, student.split(empty_NP), together=True),
                "attention": weighted_means(gaps, student.valid, together=True),
            }
            factors = self._factors()
            return level_result({name: factors[name] * mean_V for name, mean_V in means.items()}, student.strides)

    def _factors(self) -> dict[str, float]:
        pgd = self.pgd
        weights = (pgd.foreground_weight, pgd.background_weight, pgd.attention_weight)
        names = ("foreground", "background", "attention")
        return {name: pgd.weight * weight for name, weight in zip(names, weights, strict=True)}


@torch.no_grad()
def key_weights(teacher: DenseOutputs, truth: Truth, inside_NMP: Tensor, *, alpha: float, topk: int) -> Tensor:
    """The weight of each location, (N, P): 0 but for the `topk` best of each ground truth.

    Args:
        inside_NMP: the locations among which each ground truth chooses.
    """
    quality_NMP = _quality(teacher, truth, alpha).masked_fill(~inside_NMP, 0.0)
    best = quality_NMP.topk(min(topk, quality_NMP.shape[2]), dim=2)
    weight_NMk = gaussian_weights(teacher.centres[best.indices], best.values > 0)
    weights_NP = weight_NMk.new_zeros(len(weight_NMk), quality_NMP.shape[2])
    return weights_NP.scatter_reduce(1, best.indices.flatten(1), weight_NMk.flatten(1), "amax")


def _quality(teacher: DenseOutputs, truth: Truth, alpha: float) -> Tensor:
    """Of the best prediction for each ground truth at each location, (N, M, P); 0 where it misses it."""
    parts = []
    for some in slices(teacher, truth):
        overlap_NMl, _ = pairwise(teacher.boxes_NL4[:, None, some], truth.boxes_NM4[:, :, None])
        logits_NlK = teacher.logits_NLK[:, some].float()
        labels_NlM = truth.labels_NM[:, None].expand(-1, logits_NlK.shape[1], -1)
        probability_NMl = logits_NlK.gather(2, labels_NlM).sigmoid().transpose(1, 2)
        quality_NMl = probability_NMl.pow(1 - alpha) * overlap_NMl.pow(alpha) * (overlap_NMl > 0)
        parts.append(best_at_location(quality_NMl, teacher))
    return torch.cat(parts, dim=2)


def gaussian_weights(points_NMk2: Tensor, chosen_NMk: Tensor) -> Tensor:
    """How high the Gaussian that is fitted to the chosen points of each ground truth is at them, its peak being 1.

    The fit is that of maximum likelihood: mean and covariance of the points. (N, M, k) fp32, 0 where not chosen.
    """
    # In double: the determinant of points on a slanted line is a difference of large numbers.
    points_NMk2, chosen_NMk1 = points_NMk2.double(), chosen_NMk[..., None].double()
    count_NM11 = chosen_NMk1.sum(dim=2, keepdim=True).clamp(min=1)
    mean_NM12 = (points_NMk2 * chosen_NMk1).sum(dim=2, keepdim=True) / count_NM11
    away_NMk2 = (points_NMk2 - mean_NM12) * chosen_NMk1
    x_NMk, y_NMk = away_NMk2.unbind(dim=3)
    count_NM1 = count_NM11.squeeze(3)
    xx_NM1 = x_NMk.square().sum(dim=2, keepdim=True) / count_NM1 + JITTER
    yy_NM1 = y_NMk.square().sum(dim=2, keepdim=True) / count_NM1 + JITTER
    xy_NM1 = (x_NMk * y_NMk).sum(dim=2, keepdim=True) / count_NM1
    away_NMk = yy_NM1 * x_NMk.square() - 2 * xy_NM1 * x_NMk * y_NMk + xx_NM1 * y_NMk.square()
    weight_NMk = torch.exp(-0.5 * away_NMk / (xx_NM1 * yy_NM1 - xy_NM1.square()))
    return (weight_NMk * chosen_NMk).float()


def _compare(
    student_NCHW: Tensor, teacher_NCHW: Tensor, valid_NHW: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """The difference of the features as the teacher's attention weighs it, and that of the attentions, (N, H, W)."""
    points_NHW, channels_NCHW = _attention(teacher_NCHW, valid_NHW, temperature)
    own_points_NHW, own_channels_NCHW = _attention(student_NCHW, valid_NHW, temperature)
    error_NHW = points_NHW * ((student_NCHW - teacher_NCHW).square() * channels_NCHW).mean(dim=1)
    gap_NHW = (channels_NCHW - own_channels_NCHW).abs().mean(dim=1) + (points_NHW - own_points_NHW).abs()
    return error_NHW, gap_NHW


def _attention(feat_NCHW: Tensor, valid_NHW: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Over the valid points of each image, (N, H, W), and over the channels of each point, (N, C, H, W); mean 1."""
    size_NCHW = feat_NCHW.abs() / temperature
    channels_NCHW = feat_NCHW.shape[1] * size_NCHW.softmax(dim=1)
    size_NHW = size_NCHW.mean(dim=1).masked_fill(~valid_NHW, NOWHERE)
    count_N11 = valid_NHW.sum(dim=(1, 2), keepdim=True)
    return count_N11 * size_NHW.flatten(1).softmax(dim=1).view_as(size_NHW), channels_NCHW


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> PgdDistiller:
    return PgdDistiller(spec.pgd or PgdSpec(), student=student.info, teacher=teacher.info)
