"""Localisation distillation: the student's distribution of each side of a box follows the teacher's.

Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, arXiv 2102.12252.

For an anchor, with the sides' distributions softmax(z / T), LD = T^2 KL(teacher || student), mean over the four sides:

    box      = .25 sum over the positives of w LD / sum of w           w: the anchor's top class score
    valuable = .25 sum over the valuable region of IoU LD / sum of IoU
    class    = .125 mean over the positives of the sum over the classes of T^2 KL, T = 2

Positives are ATSS's. The valuable region are the other anchors whose DIoU with some object lies between a quarter of
that object's threshold and the threshold itself; IoU is with that object. The published code takes sums over the
positives of one GPU, with means over the bins and over the classes instead of the divergences themselves (there `class`
weighs 10, over 80 classes), weighs the positives by the student's scores, and has a softmax over the classes. Here all
are means of the whole batch [ours], by the teacher's scores [ours], and since the heads have a sigmoid for each class,
its binary divergence [ours]; settings bring back the latter two.

N images, L anchors over all levels (one for each location), M objects of the fullest image, P anchors chosen, K
classes, D numbers that code a box, V levels.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.atss_matcher import find_candidates, iou_thresholds
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.one_anchor import BINS
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.answers import AnswerDistiller, find_positives, side_divergences, top_scores
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.divergence import binary_divergences
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import LdSpec
from tid_core.spec import JobSpec
from tid_core.truth import PAIRS_AT_ONCE, Targets, Truth, pad_truth, pairwise


class LdDistiller(AnswerDistiller):
    """
    Raises:
        ValueError: one of the two is no GFL.
    """

    def __init__(self, ld: LdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        plain = [info.name for info in (student, teacher) if info.family != "gfl"]
        if plain:
            told = f"ld compares distributions of sides, which {' and '.join(plain)} does not predict"
            raise ValueError(f"{told}; choose two detectors of the family gfl")
        super().__init__(student, teacher)
        self.ld = ld

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/box`, `distill/valuable`, `distill/class`; metrics: their parts of each level."""
        check_outputs(student, teacher, classes=True)
        with torch.autocast(student.features[0].device.type, enabled=False):
            truth = pad_truth(targets)
            positive_NL = find_positives(student, truth)
            judge = teacher if self.ld.quality == "teacher" else student
            quality_NL = top_scores(judge.logits_NLK) * positive_NL
            parts = {"box": self.ld.box_weight * self._of_sides(student, teacher, quality_NL)}
            if self.ld.valuable_weight > 0:
                iou_NL = valuable_region(student, truth, lowest=self.ld.valuable_from) * ~positive_NL
                parts["valuable"] = self.ld.valuable_weight * self._of_sides(student, teacher, iou_NL)
            parts["class"] = self.ld.class_weight * self._of_classes(student, teacher, positive_NL)
            return level_result({name: self.ld.weight * parts_V for name, parts_V in parts.items()}, student.strides)

    def _of_sides(self, student: DenseOutputs, teacher: DenseOutputs, weight_NL: Tensor) -> Tensor:
        """Weighted mean of the sides' divergence over the batch, by level, (V,)."""
        chosen = weight_NL.nonzero(as_tuple=True)
        codes_PD, teacher_PD = (side.head_outputs["bbox_regression"][chosen] for side in (student, teacher))
        losses_P = side_divergences(codes_PD, teacher_PD, bins=BINS, temperature=self.ld.temperature)
        return _mean(losses_P, chosen, weight_NL, student)

    def _of_classes(self, student: DenseOutputs, teacher: DenseOutputs, positive_NL: Tensor) -> Tensor:
        """Mean of the classes' divergence over the positives of the batch, by level, (V,)."""
        chosen = positive_NL.nonzero(as_tuple=True)
        divergences = binary_divergences if self.ld.class_form == "binary" else softmax_divergences
        losses_P = divergences(student.logits_NLK[chosen], teacher.logits_NLK[chosen], self.ld.class_temperature)
        return _mean(losses_P, chosen, positive_NL.float(), student)


def _mean(losses_P: Tensor, chosen_P: tuple[Tensor, ...], weight_NL: Tensor, outputs: DenseOutputs) -> Tensor:
    losses_NL = torch.zeros_like(weight_NL).index_put(chosen_P, losses_P)
    return weighted_means(outputs.split(losses_NL), outputs.split(weight_NL), together=True)


def softmax_divergences(logits_PK: Tensor, teacher_PK: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of the softmax over the classes, (P,)."""
    log_PK = (logits_PK / temperature).log_softmax(dim=-1)
    goal_PK = (teacher_PK.detach() / temperature).log_softmax(dim=-1)
    return (goal_PK.exp() * (goal_PK - log_PK)).sum(dim=-1) * temperature**2


@torch.no_grad()
def valuable_region(outputs: DenseOutputs, truth: Truth, *, lowest: float) -> Tensor:
    """Each anchor's IoU with the object in whose valuable region it lies, the highest of several, (N, L); else 0.

    Args:
        lowest: DIoU from which on an anchor is valuable, as a fraction of the object's ATSS threshold.
    """
    found = find_candidates(outputs.centres, outputs.valid, truth, strides=outputs.strides)
    threshold_N1M = iou_thresholds(found)[:, None]
    parts = []
    step = max(1, PAIRS_AT_ONCE[outputs.anchors_L4.device.type] // truth.real_NM.numel())
    for anchors_l4 in torch.split(outputs.anchors_L4, step):
        iou_NlM, penalty_NlM = pairwise(anchors_l4[None, :, None], truth.boxes_NM4[:, None], "diou")
        diou_NlM = iou_NlM if penalty_NlM is None else iou_NlM - penalty_NlM
        near_NlM = (diou_NlM >= lowest * threshold_N1M) & (diou_NlM < threshold_N1M) & truth.real_NM[:, None]
        parts.append((iou_NlM * near_NlM).amax(dim=2))
    return torch.cat(parts, dim=1) * outputs.all_valid


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> Distiller:
    return LdDistiller(spec.ld or LdSpec(), student=student.info, teacher=teacher.info)
