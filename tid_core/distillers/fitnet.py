"""FitNet's feature imitation: every valid point counts the same.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, on the levels of a feature pyramid.
"""

import torch

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import FitnetSpec
from tid_core.truth import Targets


class FitnetDistiller(Distiller):
    """Sum over levels of weight * mean over valid points and channels of the squared feature difference."""

    def __init__(self, fitnet: FitnetSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.fitnet = fitnet

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:  # noqa: ARG002
        """One term, `distill/features`; metrics: its part of each level (`distill/features/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.fitnet.distance)
            means_V = weighted_means(distances, student.valid)
            return level_result({"features": self.fitnet.weight * scale_V * means_V}, student.strides)
