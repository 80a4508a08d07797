"""Trunk and feature pyramid: torchvision's own, cut at strides 8, 16 and 32."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import gcd
from typing import Literal, cast

from torch import nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tid_core.catalogue import CONV_TRUNKS, DetectorInfo, TrunkInfo
from tid_core.detectors.mmdet import stride_in_first_convolution
from tid_core.detectors.one_anchor import PlainP6P7

Norm = Literal["batch", "frozen", "group"]
NormLayer = Callable[[int], nn.Module]


def build_backbone(info: DetectorInfo, norm: Norm) -> BackboneWithFPN:
    """The detector's backbone with random weights; every parameter trainable."""
    trunk = info.trunk
    backbone = BackboneWithFPN(
        _trunk(trunk, norm),
        {layer: str(level) for level, layer in enumerate(trunk.layers)},
        list(trunk.channels),
        info.channels,
        extra_blocks=_coarse_levels(info),
    )
    if info.size == "small":
        # BackboneWithFPN adds a pooled level where none is asked for; the pyramid itself can do without.
        backbone.fpn.extra_blocks = None
    return backbone


def _coarse_levels(info: DetectorInfo) -> LastLevelP6P7 | None:
    """P6 and P7, as far as there are any."""
    if info.p6_from is None:
        return None
    source = info.trunk.channels[-1] if info.p6_from == "c5" else info.channels
    return (LastLevelP6P7 if info.p7_relu else PlainP6P7)(source, info.channels)


def _trunk(trunk: TrunkInfo, norm: Norm) -> nn.Module:
    layer = norm_layer(trunk, norm)
    if trunk.builder in CONV_TRUNKS:
        return conv_trunk(*CONV_TRUNKS[trunk.builder], layer)
    network = cast(nn.Module, get_model(trunk.builder, weights=None, norm_layer=layer))
    if trunk.caffe:
        stride_in_first_convolution(network)
    return cast(nn.Module, network.features) if trunk.sequential else network


def conv_trunk(widths: Sequence[int], depth: int, layer: NormLayer) -> nn.Sequential:
    """Stages of `depth` 3x3 convolutions, the first of each with stride 2: the plainest trunk there is."""
    convs: list[nn.Module] = []
    for inputs, outputs in pairwise((3, *widths)):
        convs.append(Conv2dNormActivation(inputs, outputs, stride=2, norm_layer=layer))
        convs += [Conv2dNormActivation(outputs, outputs, norm_layer=layer) for _ in range(depth - 1)]
    return nn.Sequential(*convs)


def norm_layer(trunk: TrunkInfo, norm: Norm) -> NormLayer:
    """The trunk's normalisation, given the number of channels."""
    if norm == "group":
        return _group_norm
    if norm == "frozen":
        return partial(FrozenBatchNorm2d, eps=trunk.eps)
    if trunk.builder == "mobilenet_v3_large":
        return partial(nn.BatchNorm2d, eps=trunk.eps, momentum=0.01)  # as torchvision's mobilenetv3.py
    return nn.BatchNorm2d


def _group_norm(channels: int) -> nn.Module:
    # The narrow layers of a MobileNet do not divide by the usual 32 groups.
    return nn.GroupNorm(gcd(32, channels), channels)


def freeze_stages(backbone: BackboneWithFPN, trunk: TrunkInfo, trainable_layers: int) -> None:
    """Freeze all but the last `trainable_layers` stages of the trunk.

    Raises:
        ValueError: the trunk has fewer stages.
    """
    if trainable_layers > len(trunk.stages):
        raise ValueError(f"trainable_layers is {trainable_layers}, but {trunk.builder} has {len(trunk.stages)} stages")
    trainable = {name for stage in trunk.stages[:trainable_layers] for name in stage}
    for name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trainable)
