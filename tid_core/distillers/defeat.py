"""Decoupled features: objects and background apart, each by its own size.

Source: Guo, Han, Wang, Wu, Chen, Xu, Xu, "Distilling Object Detectors via Decoupled Features", CVPR 2021, arXiv
2103.14475: for each level

    L = a_obj / (2 N_obj) * sum over M of (phi(F_S) - F_T)^2 + a_bg / (2 N_bg) * sum over 1 - M of the same,

where M holds the points inside ground truths and N_obj, N_bg count the points of either, times channels; phi is a 3x3
convolution. The authors' public configuration sets the background's weight to four times the objects' and divides by
the number of levels. What the paper does with proposals has no counterpart in dense detectors.

[ours] The distance is divided by the variance of the teacher's level, and the levels are added; an object counts on
every level; phi starts as the identity where the channels agree. For features of variance s the published weights are
w * s / (2 * levels) here.
"""

from typing import cast

import torch
from torch import Tensor, nn

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.masks import inside_boxes
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import DefeatSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets, pad_truth


class DefeatDistiller(Distiller):
    """Sum over levels and both regions of weight * mean over the region's points and channels of the distance."""

    def __init__(self, defeat: DefeatSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.defeat = defeat
        self.adapters = nn.ModuleList(_convolution(student.channels, teacher.channels) for _ in student.strides)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/foreground` and `distill/background`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=False)
        # Nothing from the padding leaks into the image: beyond its border are zeros, as if it were alone.
        inside = [f.masked_fill(~v[:, None], 0.0) for f, v in zip(student.features, student.valid, strict=True)]
        adapted = self.adapt(inside)
        with torch.autocast(student.features[0].device.type, enabled=False):
            objects_NP = inside_boxes(student, pad_truth(targets)).any(dim=1)
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.defeat.distance)
            masks = {"foreground": objects_NP, "background": student.all_valid & ~objects_NP}
            factors = {"foreground": self.defeat.foreground_weight, "background": self.defeat.background_weight}
            parts: dict[str, Tensor] = {
                name: self.defeat.weight * factors[name] * scale_V * weighted_means(distances, student.split(mask_NP))
                for name, mask_NP in masks.items()
            }
            return level_result(parts, student.strides)


def _convolution(channels: int, teacher_channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, teacher_channels, kernel_size=3, padding=1)
    if channels == teacher_channels:
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(cast(Tensor, convolution.bias))
    return convolution


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> DefeatDistiller:
    return DefeatDistiller(spec.defeat or DefeatSpec(), student=student.info, teacher=teacher.info)
