"""What is exported must work where this project is not installed."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.export import export_student
from tid_core.spec import DataSpec, EvaluationSpec

torch.set_num_threads(1)

CLASSES = ["cat", "dog", "bird"]


def trained(name: str, norm: Any = "auto") -> DenseDetector:
    """With statistics and outputs as training would leave them: many detections."""
    torch.manual_seed(0)
    detector = build_detector(
        name,
        num_classes=3,
        norm=norm,
        data=DataSpec(min_size=[80], max_size=120),
        evaluation=EvaluationSpec(score_threshold=0.005, nms_threshold=0.4, max_detections=20),
    )
    for key, value in detector.model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand_like(value) * 0.1 + 0.5)
    return detector.eval()


def detections(detector: DenseDetector, images: list[Tensor]) -> list[dict[str, Tensor]]:
    image_list, _ = detector.transform(images)
    with torch.no_grad():
        return detector.detections(detector.dense_forward(image_list), image_list, [i.shape[-2:] for i in images])


def same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> bool:
    assert sum(len(one["boxes"]) for one in expected) > 5
    return all(torch.equal(one[key], other[key]) for one, other in zip(found, expected, strict=True) for key in other)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("fcos_conv5_tiny", "batch"),
        ("retinanet_conv10_small", "group"),
        ("fcos_mobilenet_v3_large_fpn", "frozen"),
        ("retinanet_resnet18_fpn_v2", "batch"),
        ("gfl_conv5_tiny", "group"),
        ("gfl_resnet18_fpn", "frozen"),
        ("atss_conv5_tiny", "batch"),
        ("atss_mobilenet_v2_fpn", "batch"),
        ("retinanet_resnet18_fpn_mm", "frozen"),
        ("fcos_resnet50_caffe_fpn_mm_exp", "frozen"),
    ],
)
def test_the_snippet_gives_identical_detections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, norm: str
) -> None:
    detector = trained(name, norm)
    paths = export_student(detector, tmp_path, "best", {"classes": CLASSES, "ap": 0.25})
    card = json.loads(paths["card"].read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(card["torchvision"], names)  # the text that users are told to run
    images = [torch.rand(3, 90, 70), torch.rand(3, 64, 100)]
    with torch.no_grad():
        assert same(names["model"](images), detections(detector, images))
        names["model"].load_state_dict(load_file(paths["safetensors"]))
        assert same(names["model"](images), detections(detector, images))


@pytest.mark.parametrize("name", ["fcos_conv5_tiny", "gfl_conv5_tiny"])
def test_the_snippet_needs_torchvision_alone(tmp_path: Path, name: str) -> None:
    detector = trained(name)
    card = json.loads(export_student(detector, tmp_path, "best", {"classes": CLASSES})["card"].read_text())
    images = [torch.rand(3, 90, 70)]
    torch.save(images, tmp_path / "images.pt")
    code = card["torchvision"] + (
        "import sys\n"
        "assert not any(name.startswith('tid_core') for name in sys.modules)\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad():\n"
        "    torch.save(model(torch.load('images.pt')), 'detections.pt')\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, timeout=200)
    assert same(torch.load(tmp_path / "detections.pt"), detections(detector, images))


def test_the_card(tmp_path: Path) -> None:
    paths = export_student(trained("fcos_conv5_tiny"), tmp_path, "last", {"classes": CLASSES, "ap": 0.25, "spec": {}})
    card = json.loads(paths["card"].read_text())
    assert (card["classes"], card["ap"], card["detector"]) == (CLASSES, 0.25, "fcos_conv5_tiny")
    for suffix in ("pt", "safetensors"):
        assert card["files"][suffix]["sha256"] == hashlib.sha256(paths[suffix].read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.card.json", "last.pt", "last.safetensors"]


def test_exported_student_is_a_teacher_again(tmp_path: Path) -> None:
    detector = trained("fcos_conv5_tiny").to(memory_format=torch.channels_last)
    path = export_student(detector, tmp_path, "best", {"classes": CLASSES})["safetensors"]
    again = build_detector("fcos_conv5_tiny", num_classes=3, classes=CLASSES, weights=path).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in detector.model.state_dict().items())


def test_epsilon_of_zero_is_folded(tmp_path: Path) -> None:
    """torchvision runs one of its COCO models without epsilon; the file must not depend on knowing that."""
    detector = trained("fcos_conv5_tiny", "frozen")
    overwrite_eps(detector.model, 0.0)
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.mul_(1e-3)  # small variances, where an epsilon shows
    path = export_student(detector, tmp_path, "best", {"classes": CLASSES})["pt"]
    again = build_detector("fcos_conv5_tiny", num_classes=3, weights=path, norm="frozen").eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = detector.model.backbone.body(x), again.model.backbone.body(x)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)
