"""What training GFL and training ATSS share: one anchor per location, assigned by `atss_matcher`.

Shape suffixes: N images, L locations over all levels, K classes, P positive locations of the batch, D numbers that
code a box.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from tid_core.detectors.atss_matcher import assign
from tid_core.detectors.base import DenseDetector, Target
from tid_core.detectors.one_anchor import OneAnchorModel
from tid_core.detectors.outputs import DenseOutputs
from tid_core.ranks import mean_count
from tid_core.truth import pad_truth

BOX_WEIGHT = 2.0
"""Of the GIoU loss beside the others."""


@dataclass(frozen=True)
class Positives:
    """The locations of a batch that have a ground truth to learn, and what that is."""

    image_P: Tensor
    location_P: Tensor
    anchors_P4: Tensor
    boxes_P4: Tensor
    labels_P: Tensor

    def of(self, values_NLD: Tensor) -> Tensor:
        """The rows of the positive locations, (P, D)."""
        return values_NLD[self.image_P, self.location_P]


class TrainableModel(OneAnchorModel, ABC):
    """The model with its losses."""

    def compute_loss(
        self, targets: list[Target], head_outputs: dict[str, Tensor], anchors_L4: Tensor, valid: list[Tensor]
    ) -> dict[str, Tensor]:
        """The loss terms of a batch. Locations in the padding take no part.

        In a run over several ranks the mean of the ranks' losses is that of the whole batch.

        Args:
            targets: per image `boxes` (M, 4) in pixels of the padded batch and `labels` (M,).
            head_outputs: of `head`, fp32.
            valid: per level, (N, H, W) bool: locations inside their image.
        """
        positives = self._positives(targets, anchors_L4, valid)
        valid_NL = torch.cat([v_NHW.flatten(1) for v_NHW in valid], dim=1)
        return self._terms(head_outputs, positives, valid_NL)

    def _positives(self, targets: list[Target], anchors_L4: Tensor, valid: list[Tensor]) -> Positives:
        truth = pad_truth(targets)
        centres_L2 = (anchors_L4[:, :2] + anchors_L4[:, 2:]) / 2
        truth_NL = assign(centres_L2, valid, truth, strides=self.anchor_generator.strides)
        image_P, location_P = (truth_NL >= 0).nonzero(as_tuple=True)
        truth_P = truth_NL[image_P, location_P]
        boxes_P4, labels_P = truth.boxes_NM4[image_P, truth_P], truth.labels_NM[image_P, truth_P]
        return Positives(image_P, location_P, anchors_L4[location_P], boxes_P4, labels_P)

    @abstractmethod
    def _terms(self, outputs: dict[str, Tensor], positives: Positives, valid_NL: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms."""


def normalisers(positives: Positives, weights_P: Tensor) -> tuple[Tensor, Tensor]:
    """What to divide sums over the positives by, and weighted sums: their number and the sum of their weights."""
    local_2 = torch.stack([weights_P.new_tensor(len(positives.image_P)), weights_P.sum()])
    count, weight = mean_count(local_2).unbind()
    return count, weight


def class_targets(logits_NLK: Tensor, positives: Positives, quality_P: Tensor | float = 1.0) -> Tensor:
    """(N, L, K): zero, but `quality_P` for the class of each positive location."""
    targets_NLK = torch.zeros_like(logits_NLK)
    quality_P = torch.as_tensor(quality_P, dtype=targets_NLK.dtype, device=targets_NLK.device)
    targets_NLK[positives.image_P, positives.location_P, positives.labels_P] = quality_P
    return targets_NLK


def sum_valid(losses_NLK: Tensor, valid_NL: Tensor) -> Tensor:
    return (losses_NLK.sum(dim=-1) * valid_NL).sum()


def weighted_giou(boxes_P4: Tensor, positives: Positives, weights_P: Tensor, normaliser: Tensor) -> Tensor:
    losses_P: Tensor = generalized_box_iou_loss(boxes_P4, positives.boxes_P4, reduction="none")
    return BOX_WEIGHT * (losses_P * weights_P).sum() / normaliser


class OneAnchorDetector(DenseDetector):
    model: TrainableModel

    def decode(self, regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
        return self.model.decode(regression_NL4, anchors_L4)

    def _losses(self, outputs: DenseOutputs, targets: list[Target]) -> dict[str, Tensor]:
        return self.model.compute_loss(targets, outputs.head_outputs, outputs.anchors_L4, outputs.valid)

    def _centres(self, cells: int, pixels: int, stride: int, device: torch.device) -> Tensor:  # noqa: ARG002
        """Those of the anchors themselves, which do not move with the padding."""
        return torch.arange(cells, device=device) * stride
