"""FCOS (Tian et al., arXiv 2006.09214) from torchvision's parts."""

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector, Target
from tid_core.detectors.outputs import DenseOutputs


class FcosDetector(DenseDetector):
    def _decode(self, regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
        return cast(Tensor, self.model.box_coder.decode(regression_NL4, anchors_L4[None]))

    def _losses(self, outputs: DenseOutputs, targets: list[Target]) -> dict[str, Tensor]:
        anchors = [outputs.anchors_L4] * len(targets)
        per_level = self._anchors_per_level(outputs)
        return cast(dict[str, Tensor], self.model.compute_loss(targets, outputs.head_outputs, anchors, per_level))


def build_fcos(backbone: nn.Module, info: DetectorInfo, *, num_classes: int, **options: Any) -> FCOS:
    """A plain torchvision FCOS; `options` go to its constructor."""
    anchors = AnchorGenerator(info.anchor_sizes, ((1.0,),) * len(info.strides))
    head = FCOSHead(info.channels, info.anchors_per_location, num_classes, info.tower_convs)
    return FCOS(backbone, num_classes, anchor_generator=anchors, head=head, **options)
