"""A detector's head in two parts: its towers up to a convolution, and the rest.

Every head has one tower of convolutions for the classes and one for the boxes, each convolution followed by its norm,
where it has one, and a ReLU. The cut lies before the ReLU of its convolution, so that the features are those of
"CrossKD" (Wang et al., CVPR 2024, arXiv 2306.11369), which scales them there. The two parts together are the head, to
the last bit.

N images, C channels, H and W a level's grid, L anchors over all levels, A anchors per location, K classes, D numbers
of an anchor.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead

from tid_core.detectors.mmdet import ScaledFCOSHead
from tid_core.detectors.one_anchor import OneAnchorHead
from tid_core.detectors.outputs import Towers

TOWERS = ("classification_head", "regression_head")


def start_head(head: Any, features: list[Tensor], convs: int) -> Towers:
    """What the pyramid's features become in `convs` convolutions of either tower; with none, they are it themselves."""
    parts = [[_run(layers[:cut], f) for f in features] for layers, cut in _cut(head, convs)]
    return Towers(convs, *parts)


def finish_head(head: Any, towers: Towers) -> dict[str, Tensor]:
    """What `head` gives for features that are `towers` on the way; their dtypes are those of the head itself.

    Gradient flows through to the features.
    """
    ends = []
    tasks = (towers.classification, towers.regression)
    for (layers, cut), features in zip(_cut(head, towers.convs), tasks, strict=True):
        if towers.convs == 0:
            ends.append([_run(layers, f) for f in features])
        else:  # not by the layer's own ReLU, which may write over the features
            ends.append([_run(layers[cut + 1 :], f.relu()) for f in features])
    return _answers(head, *ends)


def _cut(head: Any, convs: int) -> list[tuple[list[nn.Module], int]]:
    """The layers of either tower, and how many of them come before the cut.

    torchvision's towers are sequences of such sequences, and FCOS's one sequence of layers.
    """
    cuts = []
    for name in TOWERS:
        modules = head.get_submodule(f"{name}.conv").modules()
        layers = [layer for layer in modules if not isinstance(layer, nn.Sequential)]
        num_convs = sum(isinstance(layer, nn.Conv2d) for layer in layers)
        if not 0 <= convs <= num_convs:
            raise ValueError(f"a tower of {num_convs} convolutions cannot be cut after {convs}")
        cuts.append((layers, max(0, convs * (len(layers) // num_convs) - 1)))
    return cuts


def _run(layers: list[nn.Module], feat_NCHW: Tensor) -> Tensor:
    for layer in layers:
        feat_NCHW = layer(feat_NCHW)
    return feat_NCHW


def _answers(head: Any, class_ends: list[Tensor], box_ends: list[Tensor]) -> dict[str, Tensor]:
    """The head's output layers on the ends of its towers, laid out as its own forward does it."""
    classes, boxes = head.classification_head, head.regression_head
    num_anchors = getattr(classes, "num_anchors", 1)
    maps = {
        "cls_logits": [classes.cls_logits(end) for end in class_ends],
        "bbox_regression": _box_maps(head, [boxes.bbox_reg(end) for end in box_ends]),
    }
    if hasattr(boxes, "bbox_ctrness"):
        with_classes = isinstance(head, ScaledFCOSHead) and head.exponential
        maps["bbox_ctrness"] = [boxes.bbox_ctrness(end) for end in (class_ends if with_classes else box_ends)]
    return {name: _join(levels, num_anchors) for name, levels in maps.items()}


def _box_maps(head: Any, raw: list[Tensor]) -> list[Tensor]:
    """What the family makes of its box layer's output on each level."""
    if isinstance(head, OneAnchorHead):
        return [scale(level) for scale, level in zip(head.regression_head.scales, raw, strict=True)]
    if isinstance(head, ScaledFCOSHead):
        scales: Any = head.scales
        scaled = [level.float() * each.scale for each, level in zip(scales, raw, strict=True)]
        if head.exponential:
            return [level.exp() / stride for level, stride in zip(scaled, head.strides, strict=True)]
        return [level.relu() for level in scaled]
    return [level.relu() for level in raw] if isinstance(head, FCOSHead) else raw


def _join(maps: list[Tensor], num_anchors: int) -> Tensor:
    """(N, A * D, H, W) of each level to (N, L, D)."""
    split = [map_NCHW.view(len(map_NCHW), num_anchors, -1, *map_NCHW.shape[-2:]) for map_NCHW in maps]
    return torch.cat([map_NADHW.permute(0, 3, 4, 1, 2).flatten(1, 3) for map_NADHW in split], dim=1)
