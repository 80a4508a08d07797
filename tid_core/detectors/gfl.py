"""GFL: the score of a class is also how good the box is, and each side of a box is a distribution.

Source: Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object
Detection", NeurIPS 2020, arXiv 2006.04388, as the public configurations set it.

Shape suffixes: N images, L locations over all levels, K classes, P positive locations, B bins.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.assigned import Positives, TrainableModel, class_targets, normalisers, sum_valid, weighted_giou
from tid_core.detectors.one_anchor import ANCHOR_STRIDES, BINS, OneAnchorHead
from tid_core.truth import pairwise

BETA = 2.0
"""Power of the difference of score and quality in the Quality Focal Loss."""
DISTRIBUTION_WEIGHT = 0.25


class Gfl(TrainableModel):
    def _terms(self, outputs: dict[str, Tensor], positives: Positives, valid_NL: Tensor) -> dict[str, Tensor]:
        """`classification` (QFL), `bbox_regression` (GIoU), `bbox_distribution` (DFL)."""
        logits_NLK = outputs["cls_logits"]
        codes_PD = positives.of(outputs["bbox_regression"])
        boxes_P4 = self.decode(codes_PD, positives.anchors_P4)
        quality_P, _ = pairwise(boxes_P4.detach(), positives.boxes_P4)
        weights_P = positives.of(logits_NLK.detach()).sigmoid().amax(dim=-1)
        count, weight = normalisers(positives, weights_P)
        targets_NLK = class_targets(logits_NLK, positives, quality_P)
        sides_P4 = distribution_focal_loss(codes_PD.view(-1, 4, BINS), side_distances(positives))
        return {
            "classification": sum_valid(quality_focal_loss(logits_NLK, targets_NLK), valid_NL) / count,
            "bbox_regression": weighted_giou(boxes_P4, positives, weights_P, weight),
            "bbox_distribution": DISTRIBUTION_WEIGHT * (sides_P4.mean(dim=-1) * weights_P).sum() / weight,
        }


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """|quality - p|^2 times the cross entropy of p with `quality`, element by element; quality 0 is background."""
    entropy = binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).abs().pow(BETA) * entropy


def side_distances(positives: Positives) -> Tensor:
    """Strides from the anchor's centre to the ground truth's left, top, right and bottom, (P, 4), kept to the bins."""
    anchors_P4, boxes_P4 = positives.anchors_P4, positives.boxes_P4
    strides_P1 = (anchors_P4[:, 2:3] - anchors_P4[:, :1]) / ANCHOR_STRIDES
    centres_P2 = (anchors_P4[:, :2] + anchors_P4[:, 2:]) / 2
    pixels_P4 = torch.cat([centres_P2 - boxes_P4[:, :2], boxes_P4[:, 2:] - centres_P2], dim=-1)
    return (pixels_P4 / strides_P1).clamp(min=0, max=BINS - 1 - 0.1)  # so that there is a bin on either side


def distribution_focal_loss(logits_P4B: Tensor, distances_P4: Tensor) -> Tensor:
    """Cross entropy with the two bins around each distance, the nearer one weighing more, (P, 4).

    Args:
        distances_P4: in bins, at least 0 and less than B - 1.
    """
    lower_P4 = distances_P4.long()
    above_P4 = distances_P4 - lower_P4
    return _entropy(logits_P4B, lower_P4) * (1 - above_P4) + _entropy(logits_P4B, lower_P4 + 1) * above_P4


def _entropy(logits_P4B: Tensor, bins_P4: Tensor) -> Tensor:
    # In rows: over further dimensions a GPU has no deterministic version.
    return cross_entropy(logits_P4B.flatten(0, 1), bins_P4.flatten(), reduction="none").view_as(bins_P4)


def build_gfl(backbone: nn.Module, info: DetectorInfo, *, num_classes: int, **options: Any) -> Gfl:
    """A model with random weights; `options` as of `OneAnchorModel`."""
    head = OneAnchorHead(info.channels, num_classes, info.tower_convs, len(info.strides), bins=BINS)
    return Gfl(backbone, head, info.strides, **options)
