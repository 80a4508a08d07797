"""mmdetection's detectors in plain functions on its own names: what an import is measured against.

Written from the public definitions, using none of this project's code and none of torchvision's models.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

torch.set_num_threads(1)

State = dict[str, Tensor]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (8, 16, 32, 64, 128)
OUTPUTS = {
    "retinanet": ("retina_cls", "retina_reg", None),
    "fcos": ("conv_cls", "conv_reg", "conv_centerness"),
    "gfl": ("gfl_cls", "gfl_reg", None),
    "atss": ("atss_cls", "atss_reg", "atss_centerness"),
}


@dataclass
class Answer:
    features: list[Tensor]
    logits_NLK: Tensor
    regression_NLD: Tensor
    boxes_NL4: Tensor
    centerness_NL: Tensor | None


@dataclass
class Public:
    """One detector of mmdetection.

    Attributes:
        caffe: stride in the first 1x1 convolution; BGR, 0..255 minus `mean`.
        exponential: FCOS without norm_on_bbox and centerness_on_reg.
        conv_bias: whether FCOS's towers have biases.
    """

    family: str
    depth: int
    caffe: bool = False
    num_classes: int = 5
    exponential: bool = False
    conv_bias: bool = True
    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    @property
    def anchors(self) -> int:
        return 9 if self.family == "retinanet" else 1

    # ---- weights

    def _conv(
        self, state: State, name: str, outputs: int, inputs: int, kernel: int, *, bias: bool, gain: float = 2
    ) -> None:
        shape = (outputs, inputs, kernel, kernel)
        std = math.sqrt(gain / (inputs * kernel**2))
        state[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * std
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs, generator=self.generator) * 0.1

    def _norm(self, state: State, name: str, channels: int, *, batch: bool) -> None:
        state[f"{name}.weight"] = torch.rand(channels, generator=self.generator) * 0.5 + 0.5
        state[f"{name}.bias"] = torch.randn(channels, generator=self.generator) * 0.2
        if batch:
            state[f"{name}.running_mean"] = torch.randn(channels, generator=self.generator) * 0.2
            state[f"{name}.running_var"] = torch.rand(channels, generator=self.generator) + 0.5
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def state(self) -> State:
        """Random weights under mmdetection's names. The tensors are shared: replace them, do not write into them."""
        return dict(_random_state(self.family, self.depth, self.caffe, self.num_classes, self.conv_bias))

    def random_state(self) -> State:
        state: State = {}
        self._conv(state, "backbone.conv1", 64, 3, 7, bias=False)
        if self.caffe:
            state["backbone.conv1.weight"] /= 60  # its inputs are that much larger
        self._norm(state, "backbone.bn1", 64, batch=True)
        channels = self._trunk(state)
        self._neck(state, channels)
        self._head(state)
        return state

    def _trunk(self, state: State) -> list[int]:
        """Returns the channels of C3, C4, C5."""
        inputs, found = 64, []
        expansion = 4 if self.depth >= 50 else 1
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            width = 64 * 2**stage
            for block in range(blocks):
                name = f"backbone.layer{stage + 1}.{block}"
                sizes = [(inputs, 1), (width, 3), (width, 1)] if expansion == 4 else [(inputs, 3), (width, 3)]
                for i, (channels, kernel) in enumerate(sizes, 1):
                    outputs = width * expansion if i == len(sizes) else width
                    self._conv(state, f"{name}.conv{i}", outputs, channels, kernel, bias=False, gain=1)
                    self._norm(state, f"{name}.bn{i}", outputs, batch=True)
                if block == 0 and (stage > 0 or expansion == 4):
                    self._conv(state, f"{name}.downsample.0", width * expansion, inputs, 1, bias=False, gain=1)
                    self._norm(state, f"{name}.downsample.1", width * expansion, batch=True)
                inputs = width * expansion
            found.append(inputs)
        return found[1:]

    def _neck(self, state: State, channels: list[int]) -> None:
        for i, inputs in enumerate(channels):
            self._conv(state, f"neck.lateral_convs.{i}.conv", 256, inputs, 1, bias=True, gain=1)
            self._conv(state, f"neck.fpn_convs.{i}.conv", 256, 256, 3, bias=True, gain=1)
        source = channels[-1] if self.family == "retinanet" else 256
        self._conv(state, "neck.fpn_convs.3.conv", 256, source, 3, bias=True, gain=1)
        self._conv(state, "neck.fpn_convs.4.conv", 256, 256, 3, bias=True, gain=1)

    def _head(self, state: State) -> None:
        grouped = self.family != "retinanet"
        bias = self.family == "retinanet" or (self.family == "fcos" and self.conv_bias)
        for tower in ("cls_convs", "reg_convs"):
            for i in range(4):
                self._conv(state, f"bbox_head.{tower}.{i}.conv", 256, 256, 3, bias=bias)
                if grouped:
                    self._norm(state, f"bbox_head.{tower}.{i}.gn", 256, batch=False)
        classes, boxes, centerness = OUTPUTS[self.family]
        coded = 4 * 17 if self.family == "gfl" else 4
        self._conv(state, f"bbox_head.{classes}", self.num_classes * self.anchors, 256, 3, bias=True)
        # Small, so that exponentials of it give boxes of an ordinary size.
        self._conv(state, f"bbox_head.{boxes}", coded * self.anchors, 256, 3, bias=True, gain=0.05)
        if centerness:
            self._conv(state, f"bbox_head.{centerness}", 1, 256, 3, bias=True)
        if grouped:
            for level in range(5):
                state[f"bbox_head.scales.{level}.scale"] = torch.tensor(0.8 + 0.15 * level)
        if self.family == "gfl":
            state["bbox_head.integral.project"] = torch.linspace(0, 16, 17)

    # ---- forward

    def normalised(self, image_N3HW: Tensor) -> Tensor:
        """The network's input from RGB in 0..1."""
        pixels = image_N3HW * 255
        if self.caffe:
            return pixels.flip(1) - torch.tensor(self.mean).view(3, 1, 1)
        mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    def stem(self, state: State, x: Tensor) -> Tensor:
        return fn.relu(
            batch_norm(state, "backbone.bn1", fn.conv2d(x, state["backbone.conv1.weight"], stride=2, padding=3))
        )

    def forward(self, state: State, image_N3HW: Tensor) -> Answer:
        features = self._pyramid(state, self._stages(state, self.stem(state, self.normalised(image_N3HW))))
        classes, boxes, centerness = OUTPUTS[self.family]
        logits, raw, decoded, centre = [], [], [], []
        for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
            cls_tower, reg_tower = (self._tower(state, name, feature) for name in ("cls_convs", "reg_convs"))
            logits.append(flat(conv(state, f"bbox_head.{classes}", cls_tower), self.num_classes))
            coded = flat(conv(state, f"bbox_head.{boxes}", reg_tower), 68 if self.family == "gfl" else 4)
            if self.family != "retinanet":
                coded = coded * state[f"bbox_head.scales.{level}.scale"]
            raw.append(coded)
            decoded.append(self._decode(coded, feature.shape[-2:], stride))
            if centerness:
                tower = cls_tower if self.exponential else reg_tower
                centre.append(flat(conv(state, f"bbox_head.{centerness}", tower), 1)[..., 0])
        joined = [torch.cat(parts, dim=1) for parts in (logits, raw, decoded)]
        return Answer(features, *joined, torch.cat(centre, dim=1) if centre else None)

    def _stages(self, state: State, x: Tensor) -> list[Tensor]:
        x = fn.max_pool2d(x, 3, stride=2, padding=1)
        outputs = []
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = self._block(state, f"backbone.layer{stage + 1}.{block}", x, stride)
            outputs.append(x)
        return outputs[1:]

    def _block(self, state: State, name: str, x: Tensor, stride: int) -> Tensor:
        if self.depth < 50:
            steps = [(stride, 1), (1, 1)]
        else:
            steps = [(stride, 0), (1, 1), (1, 0)] if self.caffe else [(1, 0), (stride, 1), (1, 0)]
        out = x
        for i, (step, padding) in enumerate(steps, 1):
            out = fn.conv2d(out, state[f"{name}.conv{i}.weight"], stride=step, padding=padding)
            out = batch_norm(state, f"{name}.bn{i}", out)
            out = fn.relu(out) if i < len(steps) else out
        if f"{name}.downsample.0.weight" in state:
            x = fn.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
            x = batch_norm(state, f"{name}.downsample.1", x)
        return fn.relu(out + x)

    def _pyramid(self, state: State, stages: list[Tensor]) -> list[Tensor]:
        laterals = [conv(state, f"neck.lateral_convs.{i}.conv", c, padding=0) for i, c in enumerate(stages)]
        for i in (1, 0):
            laterals[i] = laterals[i] + fn.interpolate(laterals[i + 1], size=laterals[i].shape[-2:], mode="nearest")
        levels = [conv(state, f"neck.fpn_convs.{i}.conv", lateral) for i, lateral in enumerate(laterals)]
        source = stages[-1] if self.family == "retinanet" else levels[-1]
        levels.append(conv(state, "neck.fpn_convs.3.conv", source, stride=2))
        p6 = fn.relu(levels[-1]) if self.family == "fcos" else levels[-1]
        return [*levels, conv(state, "neck.fpn_convs.4.conv", p6, stride=2)]

    def _tower(self, state: State, tower: str, x: Tensor) -> Tensor:
        for i in range(4):
            name = f"bbox_head.{tower}.{i}"
            x = fn.conv2d(x, state[f"{name}.conv.weight"], state.get(f"{name}.conv.bias"), padding=1)
            if f"{name}.gn.weight" in state:
                x = fn.group_norm(x, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"])
            x = fn.relu(x)
        return x

    def _decode(self, coded: Tensor, grid: tuple[int, ...], stride: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        corners = torch.stack([columns.flatten(), rows.flatten()], dim=1) * float(stride)
        if self.family == "fcos":
            distance = coded.exp() if self.exponential else fn.relu(coded) * stride
            points = corners + stride / 2
        elif self.family == "gfl":
            chance = coded.unflatten(-1, (4, 17)).softmax(-1)
            distance = (chance * torch.arange(17.0)).sum(-1) * stride
            points = corners
        else:
            return self._from_deltas(coded, corners, stride)
        return torch.cat([points - distance[..., :2], points + distance[..., 2:]], dim=-1)

    def _from_deltas(self, coded: Tensor, corners: Tensor, stride: int) -> Tensor:
        if self.family == "atss":
            sides = torch.tensor([[8.0 * stride, 8.0 * stride]])
            coded = coded * torch.tensor([0.1, 0.1, 0.2, 0.2])
        else:
            scales = [4 * 2 ** (octave / 3) * stride for octave in range(3)]
            sides = torch.tensor([[s / math.sqrt(r), s * math.sqrt(r)] for r in (0.5, 1.0, 2.0) for s in scales])
        centres, sides = corners.repeat_interleave(len(sides), 0), sides.repeat(len(corners), 1)
        limit = abs(math.log(16 / 1000))
        middle = centres + coded[..., :2] * sides
        half = sides * coded[..., 2:].clamp(-limit, limit).exp() / 2
        return torch.cat([middle - half, middle + half], dim=-1)

    # ---- as files

    def meta(self) -> dict[str, Any]:
        """What mmdetection 2.x keeps beside the weights, with the lines of its config that matter."""
        style = "caffe" if self.caffe else "pytorch"
        norm = f"mean={list(self.mean)}, std=[1.0, 1.0, 1.0], to_rgb=False"
        if not self.caffe:
            norm = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True"
        head = {"fcos": "relu_before_extra_convs=True"}.get(self.family, "")
        if self.family == "fcos" and not self.exponential:
            head += ", norm_on_bbox=True, centerness_on_reg=True"
        config = (
            f"model = dict(backbone=dict(type='ResNet', style='{style}', init_cfg=dict(std=0.01)), {head})\n"
            f"img_norm_cfg = dict({norm})\ntrain_pipeline = [dict(type='Normalize', {norm})]\n"
        )
        return {"config": config, "CLASSES": tuple(f"class {i}" for i in range(self.num_classes)), "epoch": 12}

    def save(self, path: Path, state: State | None = None, meta: dict[str, Any] | None = None) -> Path:
        torch.save({"meta": self.meta() if meta is None else meta, "state_dict": state or self.state()}, path)
        return path


@lru_cache(maxsize=3)
def _random_state(family: str, depth: int, caffe: bool, num_classes: int, conv_bias: bool) -> State:
    return Public(family, depth, caffe, num_classes, conv_bias=conv_bias).random_state()


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return fn.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def conv(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
    return fn.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)


def flat(map_NCHW: Tensor, last: int) -> Tensor:
    """(N, A * D, H, W) to (N, H * W * A, D)."""
    return map_NCHW.permute(0, 2, 3, 1).reshape(len(map_NCHW), -1, last)


@pytest.fixture(scope="session")
def public() -> type[Public]:
    return Public
