"""PKD: the student's channels rise and fall where the teacher's do, whatever their scale and offset.

Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
NeurIPS 2022, arXiv 2207.02039. With every channel of a level at mean 0 and variance 1, s' of the student and t' of the
teacher, the loss of the level is

    1/2 mean (s' - t')^2  =  1 - r,

one less the Pearson correlation r, averaged over the channels. Loss and weight are the published ones; statistics and
mean are over the valid points of the batch on all ranks instead of one GPU's whole maps. [ours]
"""

import torch

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import PkdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets


class PkdDistiller(Distiller):
    """Sum over levels of weight * (1 - correlation with the teacher), 0..2 each."""

    def __init__(self, pkd: PkdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.pkd = pkd

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:  # noqa: ARG002
        """One term, `distill/features`; metrics: its part of each level (`distill/features/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            distances, _ = feature_distances(adapted, teacher.features, student.valid, "standardised_mse")
            means_V = weighted_means(distances, student.valid)
            return level_result({"features": self.pkd.weight / 2 * means_V}, student.strides)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> PkdDistiller:
    return PkdDistiller(spec.pkd or PkdSpec(), student=student.info, teacher=teacher.info)
