"""FCOS (Tian et al., arXiv 2006.09214) from torchvision's parts."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector, Target
from tid_core.detectors.mmdet import GridAnchors, ScaledFCOSHead
from tid_core.detectors.outputs import DenseOutputs
from tid_core.ranks import mean_count, num_ranks


class FcosDetector(DenseDetector):
    def decode(self, regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
        return cast(Tensor, self.model.box_coder.decode(regression_NL4, anchors_L4[None]))

    def _losses(self, outputs: DenseOutputs, targets: list[Target]) -> dict[str, Tensor]:
        anchors = [outputs.anchors_L4] * len(targets)
        per_level = self._anchors_per_level(outputs)
        return cast(dict[str, Tensor], self.model.compute_loss(targets, outputs.head_outputs, anchors, per_level))


class SharedFcosHead(FCOSHead):  # type: ignore[misc]
    """torchvision's head, whose losses are means over the positives of all ranks instead of its own.

    Alone, the losses are torchvision's to the last bit; the state_dict is the same in any case.
    """

    def compute_loss(
        self,
        targets: list[Target],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if num_ranks() == 1:
            return losses
        positives = torch.stack([(match_L >= 0).sum() for match_L in matched_idxs]).sum()
        factor = positives.clamp(min=1) / mean_count(positives)
        return {name: value * factor for name, value in losses.items()}


class SharedScaledHead(SharedFcosHead, ScaledFCOSHead):
    """mmdetection's head, with the same losses."""


def build_fcos(backbone: nn.Module, info: DetectorInfo, *, num_classes: int, **options: Any) -> FCOS:
    """A plain torchvision FCOS, of another flavour with that one's head and points; `options` go to its constructor."""
    if info.flavour == "torchvision":
        anchors = AnchorGenerator(info.anchor_sizes, ((1.0,),) * len(info.strides))
        head = SharedFcosHead(info.channels, info.anchors_per_location, num_classes, info.tower_convs)
    else:
        anchors = GridAnchors(info.anchor_sizes, (1.0,), info.strides, offset=0.5)
        exponential = info.flavour == "mm_exp"
        head = SharedScaledHead(info.channels, num_classes, info.tower_convs, info.strides, exponential=exponential)
    return FCOS(backbone, num_classes, anchor_generator=anchors, head=head, **options)
