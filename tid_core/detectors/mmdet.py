"""RetinaNet and FCOS where mmdetection's definition is not torchvision's. Needs torch and torchvision alone.

Anchors lie at whole strides and have unrounded sides; FCOS has its points in the middle of the cells, a learnt scale
for each level and, in its first version, exponential distances and the centerness on the classification tower. Public
checkpoints of mmdetection need it so (see `tid_core.importing`). Like `one_anchor` this file goes into model cards.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck


class GridAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors centred at (column + offset, row + offset) times the level's stride.

    Args:
        sizes: sides in pixels, for each level.
        ratios: height / width; the outer of the two loops over a location's anchors.
    """

    def __init__(
        self, sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...], strides: tuple[int, ...], offset: float
    ) -> None:
        self.strides, self.offset = strides, offset
        super().__init__(sizes, (ratios,) * len(sizes))

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """(A, 4) around zero, xyxy, not rounded to pixels."""
        sides_S, roots_R = torch.tensor(scales, dtype=dtype), torch.tensor(aspect_ratios, dtype=dtype).sqrt()
        widths_A = (sides_S / roots_R[:, None]).flatten()
        heights_A = (sides_S * roots_R[:, None]).flatten()
        return (torch.stack([-widths_A, -heights_A, widths_A, heights_A], dim=1) / 2).to(device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same (L, 4) for each image, xyxy in pixels, with the dtype of the feature maps."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [feat_NCHW.shape[-2:] for feat_NCHW in feature_maps]
        levels = self.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        shifted = [level_L4 + self.offset * stride for level_L4, stride in zip(levels, self.strides, strict=True)]
        return [torch.cat(shifted)] * len(image_list.image_sizes)


class LevelScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class ScaledFCOSHead(FCOSHead):  # type: ignore[misc]
    """torchvision's head with a learnt scale per level.

    Args:
        exponential: FCOS as first published: distances are exp(scale * x) pixels, not relu(scale * x) strides, and
            centerness comes from the classification tower.
    """

    def __init__(
        self, channels: int, num_classes: int, num_convs: int, strides: tuple[int, ...], *, exponential: bool
    ) -> None:
        super().__init__(channels, 1, num_classes, num_convs)
        self.scales = nn.ModuleList(LevelScale() for _ in strides)
        self.strides, self.exponential = strides, exponential

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """`cls_logits` (N, L, K), `bbox_regression` (N, L, 4) in strides, `bbox_ctrness` (N, L, 1)."""
        classes, boxes, centerness = [], [], []
        for feat_NCHW, level, stride in zip(x, self.scales, self.strides, strict=True):
            class_tower = self.classification_head.conv(feat_NCHW)
            box_tower = self.regression_head.conv(feat_NCHW)
            raw = self.regression_head.bbox_reg(box_tower).float() * level.scale
            boxes.append(raw.exp() / stride if self.exponential else raw.relu())
            centerness.append(self.regression_head.bbox_ctrness(class_tower if self.exponential else box_tower))
            classes.append(self.classification_head.cls_logits(class_tower))
        outputs = {"cls_logits": classes, "bbox_regression": boxes, "bbox_ctrness": centerness}
        return {name: torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1) for name, maps in outputs.items()}


def stride_in_first_convolution(resnet: nn.Module) -> nn.Module:
    """Caffe's ResNet: a bottleneck halves the grid in its first 1x1 convolution, not in its 3x3."""
    for block in resnet.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return resnet
