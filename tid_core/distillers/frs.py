"""Feature richness: where the teacher sees any class at all, inside of boxes or not.

Source: Du, Zhang, Chang, Zhang, Liu, Chen, Chen, "Distilling Object Detectors with Feature Richness", NeurIPS 2021,
arXiv 2111.00674. With S = max over classes (and anchors of the location) of the teacher's probability, for each level

    L_features = sum over p of S (phi(F_S) - F_T)^2 / sum of S
    L_classes  = sum over p and classes of S BCE(p_S, p_T) / sum of S

as the public code has it, with weights .005 and .02 and a warm-up of 500 steps (`loss.schedule: warmup`).

[ours] The squared difference is a mean over channels, divided by the variance of the teacher's level: for features of
variance s over C channels the published weight w is w * C * s here. The cross entropy is a mean over the anchors of a
location, and counts from the teacher's own entropy on, which changes no gradient. phi is a 1x1 convolution, and nothing
where the channels agree, instead of 3x3. Sums of S are over the batch.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_anchors, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.divergence import binary_divergences, mean_at_location
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import FrsSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets


class FrsDistiller(Distiller):
    """Sum over levels of the means, by how much the teacher sees, of feature distance and class divergence.

    Raises:
        ValueError: the two do not have as many anchors per location.
    """

    def __init__(self, frs: FrsSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        check_anchors("frs", student, teacher)
        super().__init__(student, teacher)
        self.frs = frs

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:  # noqa: ARG002
        """Terms `distill/features` and `distill/classes`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=True)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            richness = student.split(_richness(teacher) * student.all_valid)
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.frs.distance)
            divergence_NL = binary_divergences(student.logits_NLK, teacher.logits_NLK)
            divergences = student.split(mean_at_location(divergence_NL, student))
            features_V = self.frs.feature_weight * scale_V * weighted_means(distances, richness)
            classes_V = self.frs.class_weight * weighted_means(divergences, richness)
            parts = {"features": self.frs.weight * features_V, "classes": self.frs.weight * classes_V}
            return level_result(parts, student.strides)


def _richness(teacher: DenseOutputs) -> Tensor:
    """The largest probability of any class at each location, (N, P)."""
    top_NL = teacher.logits_NLK.detach().float().amax(dim=2)
    return top_NL.view(len(top_NL), -1, teacher.num_anchors).amax(dim=2).sigmoid()


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> FrsDistiller:
    return FrsDistiller(spec.frs or FrsSpec(), student=student.info, teacher=teacher.info)
