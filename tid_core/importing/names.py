"""mmdetection's names of the tensors that a detector here needs."""

import re
from collections.abc import Callable

from tid_core.catalogue import DetectorInfo, Family

OUTPUTS: dict[Family, tuple[str, str, str]] = {
    "retinanet": ("retina_cls", "retina_reg", ""),
    "fcos": ("conv_cls", "conv_reg", "conv_centerness"),
    "gfl": ("gfl_cls", "gfl_reg", ""),
    "atss": ("atss_cls", "atss_reg", "atss_centerness"),
}
"""Last convolutions of a head: classes, boxes, centerness."""

OLD_OUTPUTS = {"fcos_cls": "conv_cls", "fcos_reg": "conv_reg", "fcos_centerness": "conv_centerness"}
"""FCOS before mmdetection 2.3."""

_TOWERS = {"classification": "cls_convs", "regression": "reg_convs"}
_COARSE = {"p6": 3, "p7": 4}

_SHARED: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"backbone\.body\.(.+)", lambda m: f"backbone.{m[1]}"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.(\w+)", lambda m: f"neck.lateral_convs.{m[1]}.conv.{m[2]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.(\w+)", lambda m: f"neck.fpn_convs.{m[1]}.conv.{m[2]}"),
    (r"backbone\.fpn\.extra_blocks\.(p[67])\.(\w+)", lambda m: f"neck.fpn_convs.{_COARSE[m[1]]}.conv.{m[2]}"),
    (r"head\.(?:regression_head\.)?scales\.(\d)\.scale", lambda m: f"bbox_head.scales.{m[1]}.scale"),
)


def public_name(info: DetectorInfo, key: str) -> str:
    """The name in an mmdetection state_dict of what is called `key` in the detector's model.

    Raises:
        KeyError: the detector has a part that mmdetection's lacks.
    """
    for pattern, name in _SHARED:
        if match := re.fullmatch(pattern, key):
            return name(match)
    classes, boxes, centerness = OUTPUTS[info.family]
    parts = {"cls_logits": classes, "bbox_reg": boxes, "bbox_ctrness": centerness}
    if match := re.fullmatch(r"head\.\w+_head\.(cls_logits|bbox_reg|bbox_ctrness)\.(\w+)", key):
        return f"bbox_head.{parts[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"head\.(\w+)_head\.conv\.(\d+)\.(?:(\d)\.)?(\w+)", key):
        return f"bbox_head.{_TOWERS[match[1]]}.{_tower_part(match[2], match[3])}.{match[4]}"
    raise KeyError(key)


def _tower_part(first: str, second: str | None) -> str:
    """`layer.part` for blocks of (convolution, norm, ReLU), which torchvision's FCOS numbers through."""
    layer, part = divmod(int(first), 3) if second is None else (int(first), int(second))
    return f"{layer}.{('conv', 'gn')[part]}"
