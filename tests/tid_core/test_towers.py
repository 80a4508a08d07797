"""A head cut in two answers as the whole head does, to the last bit, and its towers' features stay as they were."""

from typing import Any

import pytest
import torch

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.spec import DataSpec

torch.set_num_threads(1)

# RetinaNet without and with norm in its towers, FCOS, both as mmdetection defines them, GFL and ATSS; long and short.
DETECTORS = [
    "retinanet_resnet18_fpn",
    "retinanet_resnet18_fpn_v2",
    "fcos_resnet18_fpn",
    "retinanet_resnet18_fpn_mm",
    "fcos_resnet18_fpn_mm",
    "fcos_resnet50_caffe_fpn_mm_exp",
    "gfl_resnet18_fpn",
    "atss_resnet18_fpn",
    "fcos_conv5_tiny",
    "retinanet_conv5_tiny",
    "gfl_conv5_tiny",
    "atss_conv5_tiny",
]


def build(name: str) -> DenseDetector:
    """With layers of an ordinary size: those of a fresh head are so small that most of it would be lost in rounding."""
    torch.manual_seed(0)
    detector = build_detector(name, num_classes=3, norm="group", data=DataSpec(min_size=[64], max_size=96))
    for name_, parameter in detector.model.head.named_parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
        elif "scale" in name_:
            torch.nn.init.uniform_(parameter, 0.05, 0.1)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return detector


def batch(detector: DenseDetector) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator), torch.rand(3, 64, 90, generator=generator)]
    boxes = torch.tensor([[4.0, 6, 40, 50], [30, 20, 60, 62]])
    return detector.transform(images, [{"boxes": boxes, "labels": torch.tensor([1, 2])}] * 2)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_two_parts_are_the_head(name: str) -> None:
    """Outputs, losses and gradients; at the end of a tower its last ReLU is what is left."""
    detector = build(name).train()
    images, targets = batch(detector)
    found = []
    for tap in (None, 0, 1, detector.info.tower_convs):
        detector.tap = tap
        detector.zero_grad()
        outputs = detector.dense_forward(images, targets)
        sum(outputs.losses.values()).backward()  # type: ignore[union-attr]
        values = {**outputs.head_outputs, **outputs.losses, "boxes": outputs.boxes_NL4}
        values |= {key: p.grad for key, p in detector.model.head.named_parameters()}
        found.append({key: value.detach().clone() for key, value in values.items()})
        assert (outputs.towers is None) == (tap is None)
    for part in found[1:]:
        assert part.keys() == found[0].keys()
        assert [key for key, value in part.items() if not torch.equal(value, found[0][key])] == []


@pytest.mark.parametrize("name", ["retinanet_conv5_tiny", "fcos_conv5_tiny", "gfl_conv5_tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_before_the_relu_finish_as_the_head_says(name: str, precision: str) -> None:
    """They hold negative numbers, so nothing has written over them; another run from them gives the same again."""
    detector = build(name).eval()
    images, _ = batch(detector)
    detector.tap = 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = detector.dense_forward(images)
        assert outputs.towers is not None
        again = detector.finish(outputs.towers)
        plain = detector.model.head(outputs.features)
    for feat_NCHW in (*outputs.towers.classification, *outputs.towers.regression):
        assert (feat_NCHW < 0).float().mean() > 0.05
    assert [feature.shape for feature in outputs.towers.regression] == [f.shape for f in outputs.features]
    for key, value in outputs.head_outputs.items():
        assert again[key].dtype == torch.float32
        assert torch.equal(again[key], value)
        assert torch.equal(plain[key].float(), value)


def test_a_cut_beyond_the_tower_is_refused() -> None:
    detector = build("fcos_conv5_tiny")
    detector.tap = 3
    with pytest.raises(ValueError, match="a tower of 2 convolutions cannot be cut after 3"):
        detector.dense_forward(batch(detector)[0])
