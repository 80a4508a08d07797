"""FGD: objects and background apart, by what the teacher attends to (focal), and the relation of all points (global).

Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, arXiv 2111.11837. For a level
of H x W points and C channels, with A_s = HW softmax(mean_c |F| / T) and A_c = C softmax(mean_p |F| / T):

    L_focal    = sum over points and channels of (alpha M S + beta (1 - M) S) A_s A_c (F_T - phi(F_S))^2,
    L_att      = gamma (l1(A_s of teacher, of student) + l1(A_c of teacher, of student)),
    L_relation = lambda sum over points and channels of (R(F_T) - R(phi(F_S)))^2,

where A_s, A_c in the first are the teacher's, M is 1 inside ground truths, and S is there 1 over the area of the box in
points, the smallest of several, and elsewhere 1 over the number of points of the background. R adds to each point a
global context (GcBlock), one for the teacher's and one for the student's features, both trained here; phi is a 1x1
convolution where the channels differ.

Published: alpha, beta, gamma, lambda 1e-3, 5e-4, 5e-4, 5e-6 for detectors with anchors, 1.6e-3, 8e-4, 8e-4, 8e-6 for
those without, of sums per image. Here all are means over channels, attention and relation over points too, and squares
are divided by the variance of the teacher's level, so that weights do not depend on sizes. [ours] For features of
variance s over C channels and P points the published ones are alpha C s, beta C s, gamma P (of A_s) and gamma C (of
A_c), lambda C P s here; the defaults are about those without anchors for s = 1, C = 256 and the P of stride 32 at
800 x 1333 pixels. The softmax, areas and means are over valid points. [ours] Objects still count one by one, each on
every level.

N images, M ground truths of the fullest image, C channels, H and W a level's grid, P its points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.context import NOWHERE, ContextBlock
from tid_core.distillers.distances import inverse_variance
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import FgdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets, Truth, pad_truth

TERMS = ("foreground", "background", "attention", "relation")


class FgdDistiller(Distiller):
    """Sum over levels of weight * (foreground + background + attention + relation), means over the images."""

    def __init__(self, fgd: FgdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.fgd = fgd
        self.student_context = torch.nn.ModuleList(ContextBlock(teacher.channels) for _ in teacher.strides)
        self.teacher_context = torch.nn.ModuleList(ContextBlock(teacher.channels) for _ in teacher.strides)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/foreground`, `distill/background`, `distill/attention`, `distill/relation`; metrics: their
        parts of each level (`distill/foreground/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            own = [feat_NCHW.float() for feat_NCHW in adapted]
            taught = [feat_NCHW.detach().float() for feat_NCHW in teacher.features]
            truth = pad_truth(targets)
            scales = [
                object_scales(truth, v_NHW, stride)
                for v_NHW, stride in zip(student.valid, student.strides, strict=True)
            ]
            parts = [self._level(i, own[i], taught[i], student.valid[i], scales[i]) for i in range(len(own))]
            return level_result(self._weighted(parts, taught, student.valid), student.strides)

    def _level(
        self, level: int, own_NCHW: Tensor, taught_NCHW: Tensor, valid_NHW: Tensor, scales: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """The terms of each image, (N,), in the order of `TERMS`, without weights."""
        points_own_NHW, channels_own_NC = attention(own_NCHW, valid_NHW, self.fgd.temperature)
        points_NHW, channels_NC = attention(taught_NCHW, valid_NHW, self.fgd.temperature)
        error_NCHW = (own_NCHW - taught_NCHW).square()
        focal_NHW = points_NHW * torch.einsum("nchw,nc->nhw", error_NCHW, channels_NC) / channels_NC.shape[1]
        missed_N = (channels_own_NC - channels_NC).abs().mean(dim=1)
        related_own_NCHW = self.student_context[level](own_NCHW, valid_NHW)
        related_NCHW = self.teacher_context[level](taught_NCHW, valid_NHW)
        return [
            *((scale_NHW * focal_NHW).sum(dim=(1, 2)) for scale_NHW in scales),
            _image_means((points_own_NHW - points_NHW).abs(), valid_NHW) + missed_N,
            _image_means((related_own_NCHW - related_NCHW).square().mean(dim=1), valid_NHW),
        ]

    def _weighted(
        self, parts: Sequence[Sequence[Tensor]], taught: list[Tensor], valid: list[Tensor]
    ) -> dict[str, Tensor]:
        """The terms by name, (V,): means over the images with valid points on the level."""
        fgd = self.fgd
        scale_V = inverse_variance(taught, valid)
        if fgd.distance == "mse":
            scale_V = torch.ones_like(scale_V)
        factors = (
            fgd.foreground_weight * scale_V,
            fgd.background_weight * scale_V,
            fgd.attention_weight * torch.ones_like(scale_V),
            fgd.relation_weight * scale_V,
        )
        seen = [v_NHW.flatten(1).any(dim=1) for v_NHW in valid]
        by_term = zip(TERMS, factors, zip(*parts, strict=True), strict=True)
        return {name: fgd.weight * factor_V * weighted_means(levels, seen) for name, factor_V, levels in by_term}


def attention(feat_NCHW: Tensor, valid_NHW: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """How much points (N, H, W) and channels (N, C) stand out; 1 on average over the valid points and the channels."""
    size_NCHW = feat_NCHW.abs()
    logits_NHW = (size_NCHW.mean(dim=1) / temperature).masked_fill(~valid_NHW, NOWHERE)
    points_NHW = logits_NHW.flatten(1).softmax(dim=1).view_as(logits_NHW)
    count_N = valid_NHW.sum(dim=(1, 2))
    sums_NC = torch.einsum("nchw,nhw->nc", size_NCHW, valid_NHW.float())
    channels_NC = (sums_NC / count_N.clamp(min=1)[:, None] / temperature).softmax(dim=1)
    return points_NHW * count_N[:, None, None] * valid_NHW, channels_NC * channels_NC.shape[1]


@torch.no_grad()
def object_scales(truth: Truth, valid_NHW: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """What a point counts as a part of an object and of the background, each (N, H, W) and 0 where it is none.

    An object has every point whose cell its box touches, at least one, and each counts 1 over their number; of several
    boxes the smallest one decides. The points of the background of an image count 1 over their number.
    """
    height, width = valid_NHW.shape[1:]
    x1_NM, y1_NM, x2_NM, y2_NM = (truth.boxes_NM4 / stride).unbind(dim=2)
    inside_NMHW = _touched(y1_NM, y2_NM, height)[..., None] & _touched(x1_NM, x2_NM, width)[:, :, None]
    inside_NMHW &= valid_NHW[:, None] & truth.real_NM[:, :, None, None]
    area_NM = inside_NMHW.sum(dim=(2, 3)).clamp(min=1)
    objects_NHW = (inside_NMHW / area_NM[:, :, None, None]).amax(dim=1)
    background_NHW = valid_NHW & (objects_NHW == 0)
    return objects_NHW, background_NHW / background_NHW.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def _touched(low_NM: Tensor, high_NM: Tensor, cells: int) -> Tensor:
    """Which of the cells in one direction lie between the sides of a box, in units of cells, (N, M, cells)."""
    first_NM = low_NM.floor().clamp(0, cells - 1)
    last_NM = torch.maximum(high_NM.ceil() - 1, first_NM)
    cell = torch.arange(cells, device=low_NM.device)
    return (cell >= first_NM[..., None]) & (cell <= last_NM[..., None])


def _image_means(map_NHW: Tensor, valid_NHW: Tensor) -> Tensor:
    return (map_NHW * valid_NHW).sum(dim=(1, 2)) / valid_NHW.sum(dim=(1, 2)).clamp(min=1)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> FgdDistiller:
    return FgdDistiller(spec.fgd or FgdSpec(), student=student.info, teacher=teacher.info)
