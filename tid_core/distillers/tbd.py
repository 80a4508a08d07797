"""Task-balanced distillation: where the teacher's class score and box agree, and each task by points of its own.

Source: Tang et al., "Task-Balanced Distillation for Object Detection", arXiv 2208.03006. Its abstract alone is
available to this project: a Harmony Score tells how well the qualities of classification and of regression agree, and
is prior knowledge for harmonious predictions of the student; features are distilled for the two tasks apart, their
contributions balanced. What follows is a reconstruction. [ours]

For an anchor of the teacher let u be the IoU of its box with the ground truth that it overlaps most, and p its
probability of that one's class; both 0 where it touches none. Its harmony is

    h = sqrt(p u) (1 - |p - u|)^s,

and a location has, each the best among its anchors, the weights h, c = p if p >= tau_c else 0, and l = u if u >= tau_l
else 0. With d the distance of the features and KL that of all classes' yes or no, of each class's best anchor there,

    harmony = mean of KL by h        classification = mean of d by c        localisation = mean of d by l

over the locations of all levels.

N images, L anchors over all levels, P locations over all levels, K classes.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.divergence import binary_divergences
from tid_core.distillers.masks import best_at_location
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import TbdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets, match, pad_truth


class TbdDistiller(Distiller):
    """The three terms, each with its weight."""

    def __init__(self, tbd: TbdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.tbd = tbd

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/harmony`, `distill/classification`, `distill/localisation`; metrics: their parts of each
        level."""
        check_outputs(student, teacher, classes=True)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            harmony, classes, boxes = (
                student.split(m_NP * student.all_valid) for m_NP in self._masks(teacher, targets)
            )
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.tbd.distance)
            divergence_NP = binary_divergences(_best_logits(student), _best_logits(teacher))
            means = {
                "harmony": weighted_means(student.split(divergence_NP), harmony, together=True),
                "classification": scale_V * weighted_means(distances, classes, together=True),
                "localisation": scale_V * weighted_means(distances, boxes, together=True),
            }
            factors = self._factors()
            return level_result({name: factors[name] * mean_V for name, mean_V in means.items()}, student.strides)

    def _factors(self) -> dict[str, float]:
        tbd = self.tbd
        weights = (tbd.harmony_weight, tbd.classification_weight, tbd.localisation_weight)
        names = ("harmony", "classification", "localisation")
        return {name: tbd.weight * weight for name, weight in zip(names, weights, strict=True)}

    @torch.no_grad()
    def _masks(self, teacher: DenseOutputs, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """The weights h, c and l of each location, (N, P)."""
        truth = pad_truth(targets)
        found = match(teacher.boxes_NL4, truth, "iou")
        label_NL1 = truth.labels_NM.gather(1, found.index_NL)[..., None]
        score_NL = teacher.logits_NLK.float().gather(2, label_NL1).squeeze(2).sigmoid() * found.touches_NL
        overlap_NL = found.value_NL * found.touches_NL
        agreement_NL = 1 - (score_NL - overlap_NL).abs()
        harmony_NL = (score_NL * overlap_NL).sqrt() * agreement_NL.pow(self.tbd.strictness)
        classes_NP, boxes_NP = best_at_location(score_NL, teacher), best_at_location(overlap_NL, teacher)
        return (
            best_at_location(harmony_NL, teacher),
            classes_NP * (classes_NP >= self.tbd.score_from),
            boxes_NP * (boxes_NP >= self.tbd.iou_from),
        )


def _best_logits(outputs: DenseOutputs) -> Tensor:
    """The largest logit of each class among the anchors of a location, (N, P, K): detectors with other anchors meet."""
    num_images, _, num_classes = outputs.logits_NLK.shape
    return outputs.logits_NLK.view(num_images, -1, outputs.num_anchors, num_classes).amax(dim=2)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> TbdDistiller:
    return TbdDistiller(spec.tbd or TbdSpec(), student=student.info, teacher=teacher.info)
