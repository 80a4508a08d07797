"""FitNet's feature imitation: every valid point counts the same.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, on the levels of a feature pyramid.
"""

import torch

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs, level_names
from tid_core.distillers.distances import feature_distances
from tid_core.methods import FitnetSpec
from tid_core.ranks import num_ranks, sum_over_ranks
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
            pairs = list(zip(distances, student.valid, strict=True))
            sums_V = torch.stack([(d_NHW * v_NHW).sum() for d_NHW, v_NHW in pairs])
            counts_V = sum_over_ranks(torch.stack([v_NHW.sum() for _, v_NHW in pairs]))
            parts_V = self.fitnet.weight * sums_V * scale_V * num_ranks() / counts_V.clamp(min=1)
            names = [f"distill/features/{level}" for level in level_names(student.strides)]
            metrics = dict(zip(names, parts_V.detach().unbind(), strict=True))
            return DistillResult({"distill/features": parts_V.sum()}, metrics)
