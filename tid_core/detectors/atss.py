"""ATSS: RetinaNet with one anchor per location, positives chosen by the statistics of each object, and centerness.

Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
Selection", CVPR 2020, arXiv 1912.02424, as the public configurations set it.

Shape suffixes: N images, L locations over all levels, K classes, P positive locations.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.assigned import Positives, TrainableModel, class_targets, normalisers, sum_valid, weighted_giou
from tid_core.detectors.one_anchor import OneAnchorHead


class Atss(TrainableModel):
    def _terms(self, outputs: dict[str, Tensor], positives: Positives, valid_NL: Tensor) -> dict[str, Tensor]:
        """`classification` (focal), `bbox_regression` (GIoU), `bbox_ctrness` (BCE)."""
        logits_NLK = outputs["cls_logits"]
        boxes_P4 = self.decode(positives.of(outputs["bbox_regression"]), positives.anchors_P4)
        centerness_P = centerness(positives)
        count, weight = normalisers(positives, centerness_P)
        focal_NLK = sigmoid_focal_loss(logits_NLK, class_targets(logits_NLK, positives), alpha=0.25, gamma=2.0)
        centre_P = positives.of(outputs["bbox_ctrness"]).squeeze(-1)
        return {
            "classification": sum_valid(focal_NLK, valid_NL) / count,
            "bbox_regression": weighted_giou(boxes_P4, positives, centerness_P, weight),
            "bbox_ctrness": binary_cross_entropy_with_logits(centre_P, centerness_P, reduction="sum") / count,
        }


def centerness(positives: Positives) -> Tensor:
    """How central each anchor lies in its ground truth, (P,): 1 in the middle, towards 0 at the sides.

    The matcher has seen to it that the centres lie inside.
    """
    centres_P2 = (positives.anchors_P4[:, :2] + positives.anchors_P4[:, 2:]) / 2
    before_P2, behind_P2 = centres_P2 - positives.boxes_P4[:, :2], positives.boxes_P4[:, 2:] - centres_P2
    ratio_P2 = torch.minimum(before_P2, behind_P2) / torch.maximum(before_P2, behind_P2)
    return ratio_P2.prod(dim=-1).sqrt()


def build_atss(backbone: nn.Module, info: DetectorInfo, *, num_classes: int, **options: Any) -> Atss:
    """A model with random weights; `options` as of `OneAnchorModel`."""
    head = OneAnchorHead(info.channels, num_classes, info.tower_convs, len(info.strides), bins=None)
    return Atss(backbone, head, info.strides, **options)
