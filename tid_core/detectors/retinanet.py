"""RetinaNet (Lin et al., arXiv 1708.02002) from torchvision's parts, v1 and v2."""

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector, Target
from tid_core.detectors.mmdet import GridAnchors
from tid_core.detectors.outputs import DenseOutputs

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""


class RetinaNetDetector(DenseDetector):
    @property
    def matcher_thresholds(self) -> tuple[float, float]:
        matcher = self.model.proposal_matcher
        return cast(float, matcher.high_threshold), cast(float, matcher.low_threshold)

    def decode(self, regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
        anchors = anchors_L4.repeat(len(regression_NL4), 1)
        boxes = self.model.box_coder.decode_single(regression_NL4.flatten(0, 1), anchors)
        return cast(Tensor, boxes).view_as(regression_NL4)

    def _losses(self, outputs: DenseOutputs, targets: list[Target]) -> dict[str, Tensor]:
        anchors = [outputs.anchors_L4] * len(targets)
        return cast(dict[str, Tensor], self.model.compute_loss(targets, outputs.head_outputs, anchors))


def build_retinanet(backbone: nn.Module, info: DetectorInfo, *, num_classes: int, **options: Any) -> RetinaNet:
    """A plain torchvision RetinaNet; `options` go to its constructor.

    v2 is torchvision's `retinanet_resnet50_fpn_v2`: GroupNorm in the head and the GIoU loss.
    """
    if info.flavour == "torchvision":
        anchors = AnchorGenerator(info.anchor_sizes, (RATIOS,) * len(info.strides))
    else:
        anchors = GridAnchors(info.anchor_sizes, RATIOS, info.strides, offset=0.0)
    norm = partial(nn.GroupNorm, 32) if info.version == "v2" else None
    head = RetinaNetHead(info.channels, info.anchors_per_location, num_classes, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        tower.conv = tower.conv[: info.tower_convs]
    if info.version == "v2":
        head.regression_head._loss_type = "giou"
    return RetinaNet(backbone, num_classes, anchor_generator=anchors, head=head, **options)
