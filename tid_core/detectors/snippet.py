"""The lines that load an exported student with torchvision alone.

A few for the detectors that torchvision has; for the others the model itself, or its parts, come with them.
"""

import inspect
import re
from types import ModuleType
from typing import Any

from tid_core.catalogue import CONV_TRUNKS, DetectorInfo
from tid_core.detectors import mmdet, one_anchor
from tid_core.detectors.backbones import Norm

_NORMS: dict[Norm, str] = {
    "batch": "nn.BatchNorm2d",
    "frozen": "FrozenBatchNorm2d",
    "group": "lambda channels: nn.GroupNorm(gcd(32, channels), channels)",
}


def torchvision_snippet(info: DetectorInfo, *, norm: Norm, num_classes: int, options: dict[str, Any], file: str) -> str:
    """Python source that defines `model`: the detector in eval mode, with the weights of `file` beside it.

    Args:
        options: keyword arguments of the model, the same for all families.
    """
    lines = [*_backbone(info, norm), *_head(info, num_classes), *_model(info, num_classes)]
    lines += [f"    {key}={value!r}," for key, value in options.items()]
    lines += [")", f'model.load_state_dict(torch.load("{file}", weights_only=True))', "model.eval()"]
    before, among = _sources(info)
    text = "\n".join([*_imports(" ".join([among, *lines])), "", *([among] if among else []), *lines]) + "\n"
    return f"{before}\n\n{text}" if before else text


def _sources(info: DetectorInfo) -> tuple[str, str]:
    """What torchvision lacks of the model: a whole module for the beginning, and a class that needs imports first."""
    if info.family in ONE_ANCHOR:
        return _source(one_anchor), ""
    if info.flavour == "torchvision":
        return "", ""
    return _source(mmdet), "" if info.p7_relu else f"\n{_source(one_anchor.PlainP6P7)}\n"


def _source(thing: ModuleType | type) -> str:
    return re.sub(r" +# type: ignore.*", "", inspect.getsource(thing))


ONE_ANCHOR = ("gfl", "atss")
_IMPORTS = {
    "functools": ("partial",),
    "math": ("gcd",),
    "torch": ("Tensor", "nn"),
    "torchvision.models": ("get_model",),
    "torchvision.models.detection.anchor_utils": ("AnchorGenerator",),
    "torchvision.models.detection.backbone_utils": ("BackboneWithFPN",),
    "torchvision.models.detection.fcos": ("FCOS", "FCOSHead"),
    "torchvision.models.detection.retinanet": ("RetinaNet", "RetinaNetHead"),
    "torchvision.ops": ("Conv2dNormActivation", "FrozenBatchNorm2d"),
    "torchvision.ops.feature_pyramid_network": ("LastLevelP6P7",),
}


def _imports(body: str) -> list[str]:
    """Imports of just the names that `body` uses."""
    words = set(re.findall(r"\w+", body))
    used = {module: [name for name in names if name in words] for module, names in _IMPORTS.items()}
    return ["import torch", *(f"from {module} import {', '.join(names)}" for module, names in used.items() if names)]


def _backbone(info: DetectorInfo, norm: Norm) -> list[str]:
    trunk = info.trunk
    layer = _NORMS[norm]
    if norm != "group" and trunk.eps != 1e-5:
        layer = f"partial({layer}, eps={trunk.eps})"
    lines = [f"norm = {layer}"]
    if trunk.builder in CONV_TRUNKS:
        widths, depth = CONV_TRUNKS[trunk.builder]
        lines += [
            "convs, inputs = [], 3",
            f"for width in {widths}:",
            f"    for stride in {[2, *[1] * (depth - 1)]}:",
            "        convs += [Conv2dNormActivation(inputs, width, stride=stride, norm_layer=norm)]",
            "        inputs = width",
            "trunk = nn.Sequential(*convs)",
        ]
    else:
        features = ".features" if trunk.sequential else ""
        lines += [f'trunk = get_model("{trunk.builder}", weights=None, norm_layer=norm){features}']
        lines += ["stride_in_first_convolution(trunk)"] if trunk.caffe else []
    layers = {layer: str(level) for level, layer in enumerate(trunk.layers)}
    source = trunk.channels[-1] if info.p6_from == "c5" else info.channels
    block = "LastLevelP6P7" if info.p7_relu else "PlainP6P7"
    coarse = f", {block}({source}, {info.channels})" if info.p6_from else ""
    lines += [f"backbone = BackboneWithFPN(trunk, {layers}, {list(trunk.channels)}, {info.channels}{coarse})"]
    return [*lines, *([] if coarse else ["backbone.fpn.extra_blocks = None"])]


def _model(info: DetectorInfo, num_classes: int) -> list[str]:
    if info.family in ONE_ANCHOR:
        return ["model = OneAnchorModel(", f"    backbone, head, {info.strides},"]
    name = "RetinaNet" if info.family == "retinanet" else "FCOS"
    return [f"model = {name}(", f"    backbone, {num_classes}, anchor_generator=anchors, head=head,"]


def _head(info: DetectorInfo, num_classes: int) -> list[str]:
    if info.family in ONE_ANCHOR:
        bins = one_anchor.BINS if info.family == "gfl" else None
        levels = len(info.strides)
        return [f"head = OneAnchorHead({info.channels}, {num_classes}, {info.tower_convs}, {levels}, bins={bins})"]
    sizes = f"{info.channels}, {info.anchors_per_location}, {num_classes}"
    ratios = "(0.5, 1.0, 2.0)" if info.family == "retinanet" else "(1.0,)"
    lines = [f"anchors = AnchorGenerator({info.anchor_sizes}, ({ratios},) * {len(info.strides)})"]
    if info.flavour != "torchvision":
        offset = 0.5 if info.family == "fcos" else 0.0
        lines = [f"anchors = GridAnchors({info.anchor_sizes}, {ratios}, {info.strides}, {offset})"]
    if info.family == "fcos" and info.flavour != "torchvision":
        sizes = f"{info.channels}, {num_classes}, {info.tower_convs}, {info.strides}"
        return [*lines, f"head = ScaledFCOSHead({sizes}, exponential={info.flavour == 'mm_exp'})"]
    if info.family == "fcos":
        return [*lines, f"head = FCOSHead({sizes}, {info.tower_convs})"]
    norm = ", norm_layer=partial(nn.GroupNorm, 32)" if info.version == "v2" else ""
    lines += [f"head = RetinaNetHead({sizes}{norm})"]
    if info.size == "small":
        lines += [
            "for tower in (head.classification_head, head.regression_head):",
            f"    tower.conv = tower.conv[:{info.tower_convs}]",
        ]
    return lines
