"""MGD: out of a part of the student's features, a generator makes all of the teacher's.

Source: Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529. For each level

    L = sum over channels and points of (F_T - G(phi(F_S) * M))^2,   G = conv 3x3, ReLU, conv 3x3,

where M hides a share of the locations at random, another one for each image at each step, and phi is a 1x1 convolution
where the channels differ. The published weight is 2e-5 of that sum per image. Here each level is the mean over valid
points and channels instead, divided by the variance of the teacher's level: for features of variance s over C channels
and P points the published weight w is weight = w * C * P * s, so fine levels led there, and all count the same here.
[ours]

The mask is drawn from torch's global generator, which the training seeds at every step.

N images, C channels, H and W a level's grid.
"""

import torch
from torch import Tensor, nn

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import MgdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets


class Generator(nn.Module):
    """Makes a level's features from what is left of them. Padding is as the outside of the map: nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.leave = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, feat_NCHW: Tensor, shown_NHW: Tensor, valid_NHW: Tensor) -> Tensor:
        """
        Args:
            shown_NHW: bool, the locations that are not hidden.
            valid_NHW: bool, those that are not padding.
        """
        # masked_fill, unlike a product, keeps whatever stands in the padding out of the backward pass too.
        hidden_NCHW = self.enter(feat_NCHW.masked_fill(~(shown_NHW & valid_NHW)[:, None], 0.0))
        made_NCHW: Tensor = self.leave(hidden_NCHW.relu().masked_fill(~valid_NHW[:, None], 0.0))
        return made_NCHW


class MgdDistiller(Distiller):
    """Sum over levels of weight * mean over valid points and channels of the distance of what is generated."""

    def __init__(self, mgd: MgdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.mgd = mgd
        self.generators = nn.ModuleList(Generator(teacher.channels) for _ in teacher.strides)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:  # noqa: ARG002
        """One term, `distill/features`; metrics: its part of each level (`distill/features/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        levels = zip(self.generators, self.adapt(student.features), student.valid, strict=True)
        made = [generate(feat_NCHW, self._shown(v_NHW), v_NHW) for generate, feat_NCHW, v_NHW in levels]
        with torch.autocast(student.features[0].device.type, enabled=False):
            distances, scale_V = feature_distances(made, teacher.features, student.valid, self.mgd.distance)
            means_V = weighted_means(distances, student.valid)
            return level_result({"features": self.mgd.weight * scale_V * means_V}, student.strides)

    def _shown(self, valid_NHW: Tensor) -> Tensor:
        return torch.rand(valid_NHW.shape, device=valid_NHW.device) >= self.mgd.hidden


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> MgdDistiller:
    return MgdDistiller(spec.mgd or MgdSpec(), student=student.info, teacher=teacher.info)
