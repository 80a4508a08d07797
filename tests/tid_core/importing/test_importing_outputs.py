"""An imported detector computes what mmdetection's did: features, logits, raw outputs and boxes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.importing.mmdetection import import_mmdetection

torch.set_num_threads(1)

SIZE = (96, 160)
"""Not whole in strides of 64 and 128: there, torchvision's own anchors lie elsewhere."""


def pixels() -> Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def batch(detector: DenseDetector, image_N3HW: Tensor) -> ImageList:
    """Normalised as the detector's own transform does it, at the size given."""
    normalised = torch.stack([detector.model.transform.normalize(image) for image in image_N3HW])
    return ImageList(normalised, [SIZE] * len(normalised))


def same(found: Tensor, expected: Tensor, atol: float = 1e-4) -> bool:
    assert found.shape == expected.shape
    assert expected.std() > 0.1, "nothing to compare"
    return torch.allclose(found, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"family": "gfl", "depth": 18}, "gfl_resnet18_fpn"),
        ({"family": "atss", "depth": 50}, "atss_resnet50_fpn"),
        ({"family": "retinanet", "depth": 34}, "retinanet_resnet34_fpn_mm"),
        ({"family": "retinanet", "depth": 50, "caffe": True}, "retinanet_resnet50_caffe_fpn_mm"),
        ({"family": "fcos", "depth": 18}, "fcos_resnet18_fpn_mm"),
        ({"family": "fcos", "depth": 50, "caffe": True}, "fcos_resnet50_caffe_fpn_mm"),
        (
            {"family": "fcos", "depth": 50, "caffe": True, "exponential": True, "conv_bias": False},
            "fcos_resnet50_caffe_fpn_mm_exp",
        ),
    ],
)
def test_outputs_agree(tmp_path: Path, public: Any, options: dict[str, Any], name: str) -> None:
    source = public(**options)
    state = source.state()
    imported = import_mmdetection(source.save(tmp_path / "public.pth", state))
    detector = imported.detector
    assert detector.info.name == name
    assert imported.classes == [f"class {i}" for i in range(5)]
    assert imported.notes == []
    with torch.no_grad():
        expected = source.forward(state, pixels())
        outputs = detector.dense_forward(batch(detector, pixels()))
    assert len(outputs.features) == 5
    assert all(same(one, other) for one, other in zip(outputs.features, expected.features, strict=True))
    assert same(outputs.logits_NLK, expected.logits_NLK)
    assert same(outputs.boxes_NL4, expected.boxes_NL4, atol=1e-3)  # pixels
    if expected.centerness_NL is not None:
        assert same(outputs.head_outputs["bbox_ctrness"][..., 0], expected.centerness_NL)
    if source.family != "fcos":  # whose raw outputs leave the head as distances
        assert same(outputs.head_outputs["bbox_regression"], expected.regression_NLD)


def test_another_mean_colour_is_folded_in(tmp_path: Path, public: Any) -> None:
    """FCOS of Detectron's days. Around the image, where this project pads with its own mean, it cannot be exact."""
    source = public("fcos", 50, caffe=True, exponential=True, conv_bias=False, mean=(102.9801, 115.9465, 122.7717))
    state = source.state()
    imported = import_mmdetection(source.save(tmp_path / "public.pth", state))
    assert any("0.90 of 255" in note for note in imported.notes)
    body = imported.detector.model.backbone.body
    with torch.no_grad():
        expected = source.stem(state, source.normalised(pixels()))
        found = body.relu(body.bn1(body.conv1(batch(imported.detector, pixels()).tensors)))
    assert same(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
    assert 0 < (found - expected).abs().max() < 0.05


def test_the_style_matters(tmp_path: Path, public: Any) -> None:
    """A stride in the wrong place, or colours in the wrong order, is far beyond the tolerance."""
    source = public("retinanet", 50, caffe=True)
    state = source.state()
    path = source.save(tmp_path / "public.pth", state, {})
    with torch.no_grad():
        expected = source.forward(state, pixels()).features
        for style in ("caffe", "pytorch"):
            detector = import_mmdetection(path, style=style, classes=list("abcde")).detector
            found = detector.dense_forward(batch(detector, pixels())).features
            assert same(found[0], expected[0]) is (style == "caffe")


def test_torchvisions_own_pyramid_and_anchors_differ(tmp_path: Path, public: Any) -> None:
    """Why a plain torchvision RetinaNet cannot hold these weights."""
    source = public("retinanet", 18)
    state = source.state()
    detector = import_mmdetection(source.save(tmp_path / "public.pth", state)).detector
    with torch.no_grad():
        expected = source.forward(state, pixels())
        detector.model.backbone.fpn.extra_blocks.__class__ = LastLevelP6P7
        assert not same(detector.dense_forward(batch(detector, pixels())).features[4], expected.features[4])
    plain = build_detector("retinanet_resnet18_fpn", num_classes=5).model.anchor_generator
    ours = detector.model.anchor_generator
    given = batch(detector, pixels()), expected.features
    assert (plain(*given)[0] - ours(*given)[0]).abs().max() > 1
