"""Fine-grained feature imitation: where an anchor lies near an object.

Source: Wang, Yuan, Zhang, Feng, "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019, arXiv
1906.03609:

    L = 1 / (2 N_p) * sum over p in the mask of (phi(F_S) - F_T)^2,

where a location is in the mask if the IoU of one of its anchors with a ground truth is above psi = 0.5 times the best
IoU that any anchor has with it, and N_p counts the mask.

[ours] The mean runs over channels too, and the distance is divided by the variance of the teacher's level, so that
the weight does not depend on the number of channels or the scale of the features: for features of variance s over C
channels the published weight w is weight = w * C * s / 2 here. The best IoU is that over all levels; phi is a 1x1
convolution, and nothing where the channels agree, instead of 3x3.
"""

import torch

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.masks import near_anchors
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import FgfiSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets, pad_truth


class FgfiDistiller(Distiller):
    """weight * mean over the points near objects, of all levels, and over channels of the feature distance."""

    def __init__(self, fgfi: FgfiSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.fgfi = fgfi

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """One term, `distill/features`; metrics: its part of each level (`distill/features/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            near_NP = near_anchors(teacher, pad_truth(targets), student.all_valid, ratio=self.fgfi.ratio)
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.fgfi.distance)
            means_V = weighted_means(distances, student.split(near_NP), together=True)
            return level_result({"features": self.fgfi.weight * scale_V * means_V}, student.strides)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> FgfiDistiller:
    return FgfiDistiller(spec.fgfi or FgfiSpec(), student=student.info, teacher=teacher.info)
