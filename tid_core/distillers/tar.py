"""Task adaptive regularization: features around objects, classes and boxes only where the teacher's are better.

Source: Sun, Tang, Zhang, Xiong, Tian, "Distilling Object Detectors with Task Adaptive Regularization", arXiv
2006.13108. Its abstract alone is available to this project: knowledge is borrowed only where the student does worse
than its teacher, at three levels, the features and both heads; the two share their proposals; and the weight of it all
decays over the run, lest it hold the student back in the end. Papers that compare with it (DeFeat) tell of a Gaussian
mask around the objects on the features. The paper's detector is Faster R-CNN; what follows is a reconstruction for
dense heads, whose anchors are the shared proposals. [ours]

    features = mean of the feature distance by G, a Gaussian in each ground truth (see `masks.bells`)
    classes  = mean of the binary cross entropy towards the teacher's probabilities, summed over the classes, over the
               anchors at points inside ground truths where p_T > p_S, p of the class of the smallest box there
    boxes    = mean of the distance of the student's box from the teacher's, over the anchors where
               IoU_T >= iou_from and IoU_T > IoU_S, with the ground truth that the teacher's box overlaps most

The cross entropy counts from the teacher's own entropy on. All is over the valid points of all levels and the batch.

N images, L anchors over all levels, B anchors with boxes to learn, P locations over all levels, V levels.
"""

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torchvision.ops import generalized_box_iou_loss

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.answers import level_sums, valid_anchors
from tid_core.distillers.base import Distiller, DistillResult, check_anchors, check_outputs
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.divergence import binary_divergences
from tid_core.distillers.masks import bells, inside_boxes, smallest_box
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import TarSpec
from tid_core.ranks import mean_count
from tid_core.spec import JobSpec
from tid_core.truth import Targets, Truth, match, pad_truth, pairwise


class TarDistiller(Distiller):
    """The three terms, each with its weight, times a factor that moves with `progress`.

    Args:
        decode: the student's `DenseDetector.decode`.

    Raises:
        ValueError: the two do not have as many anchors per location.
    """

    def __init__(
        self,
        tar: TarSpec,
        *,
        student: DetectorInfo,
        teacher: DetectorInfo,
        decode: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        check_anchors("tar", student, teacher)
        super().__init__(student, teacher)
        self.tar = tar
        self.decode = decode

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/features`, `distill/classes`, `distill/boxes`; metrics: their parts of each level, and
        `distill/decay`, the factor of all."""
        check_outputs(student, teacher, classes=True)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            truth = pad_truth(targets)
            bell_NP = bells(student, truth, width=self.tar.bell_width)
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.tar.distance)
            features_V = scale_V * weighted_means(distances, student.split(bell_NP), together=True)
            factor = self.tar.weight * self.decay()
            parts = {
                "features": factor * self.tar.feature_weight * features_V,
                "classes": factor * self.tar.class_weight * self._classes(student, teacher, truth),
                "boxes": factor * self.tar.box_weight * self._boxes(student, teacher, truth),
            }
            result = level_result(parts, student.strides)
            return DistillResult(result.terms, {**result.metrics, "distill/decay": scale_V.new_tensor(self.decay())})

    def decay(self) -> float:
        """The factor of all terms, from 1 at the beginning of the run to `decay_to` at `decay_end` of it."""
        done = min(self.progress / self.tar.decay_end, 1.0)
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[self.tar.decay]
        return self.tar.decay_to + (1 - self.tar.decay_to) * left

    def _classes(self, student: DenseOutputs, teacher: DenseOutputs, truth: Truth) -> Tensor:
        """(V,), the levels' parts in the mean."""
        index_NP, some_NP = smallest_box(inside_boxes(student, truth), truth)
        label_NP = truth.labels_NM.gather(1, index_NP)
        label_NL, chosen_NL = (m_NP.repeat_interleave(student.num_anchors, dim=1) for m_NP in (label_NP, some_NP))
        if self.tar.adaptive:
            own_NL, taught_NL = (
                side.logits_NLK.detach().gather(2, label_NL[..., None]).squeeze(2) for side in (student, teacher)
            )
            chosen_NL = chosen_NL & (taught_NL > own_NL)
        divergence_NL = binary_divergences(student.logits_NLK, teacher.logits_NLK)
        return level_sums(divergence_NL * chosen_NL, student) / mean_count(chosen_NL.sum().float())

    def _boxes(self, student: DenseOutputs, teacher: DenseOutputs, truth: Truth) -> Tensor:
        """(V,), the levels' parts in the mean."""
        image_B, anchor_B = self._better_boxes(student, teacher, truth).nonzero(as_tuple=True)
        codes_1BD = student.head_outputs["bbox_regression"][image_B, anchor_B][None]
        boxes_B4 = self.decode(codes_1BD, student.anchors_L4[anchor_B])[0]
        losses_B = self._box_losses(boxes_B4, teacher.boxes_NL4.detach()[image_B, anchor_B], student, anchor_B)
        losses_NL = torch.zeros_like(teacher.boxes_NL4[..., 0]).index_put((image_B, anchor_B), losses_B)
        count = mean_count(losses_B.new_tensor(len(image_B)))
        return level_sums(losses_NL, student) / count

    @torch.no_grad()
    def _better_boxes(self, student: DenseOutputs, teacher: DenseOutputs, truth: Truth) -> Tensor:
        """Which anchors' boxes the student takes over, (N, L) bool."""
        found = match(teacher.boxes_NL4, truth, "iou")
        chosen_NL = valid_anchors(student) & found.touches_NL & (found.value_NL >= self.tar.iou_from)
        if self.tar.adaptive:
            goals_NL4 = truth.boxes_NM4.gather(1, found.index_NL[..., None].expand(-1, -1, 4))
            own_NL, _ = pairwise(student.boxes_NL4, goals_NL4)
            chosen_NL &= found.value_NL > own_NL
        return chosen_NL

    def _box_losses(self, boxes_B4: Tensor, goals_B4: Tensor, outputs: DenseOutputs, anchor_B: Tensor) -> Tensor:
        if self.tar.box_distance == "giou":
            losses_B: Tensor = generalized_box_iou_loss(boxes_B4, goals_B4, reduction="none")
            return losses_B
        strides_V = torch.tensor(outputs.strides, dtype=boxes_B4.dtype, device=boxes_B4.device)
        stride_B1 = strides_V[outputs.levels][anchor_B // outputs.num_anchors][:, None]
        return smooth_l1_loss(boxes_B4 / stride_B1, goals_B4 / stride_B1, reduction="none").mean(dim=1)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> TarDistiller:
    return TarDistiller(spec.tar or TarSpec(), student=student.info, teacher=teacher.info, decode=student.decode)
