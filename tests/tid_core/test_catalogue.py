"""The catalogue holds facts: each is read off the detector that it describes."""

from typing import get_args

import pytest
import torch
from torch import nn
from torchvision.models import list_models
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from tid_core.catalogue import COCO_CATEGORIES, DETECTORS
from tid_core.detectors.build import build_detector
from tid_core.detectors.weights import DETECTOR_WEIGHTS
from tid_core.distillers import BUILDERS
from tid_core.methods import METHODS, Method
from tid_core.spec import JobSpec

torch.set_num_threads(1)


@pytest.mark.parametrize("name", DETECTORS)
def test_facts_of(name: str) -> None:
    info = DETECTORS[name]
    with torch.device("meta"):
        detector = build_detector(name, num_classes=91)
    assert sum(p.numel() for p in detector.parameters()) == info.parameters

    levels = list(detector.model.backbone(torch.empty(1, 3, 512, 256, device="meta")).values())
    assert [(512 // s, 256 // s) for s in info.strides] == [tuple(f.shape[-2:]) for f in levels]
    assert {f.shape[1] for f in levels} == {info.channels}

    assert detector.model.anchor_generator.num_anchors_per_location() == [info.anchors_per_location] * len(levels)
    tower = detector.model.head.classification_head.conv
    assert sum(isinstance(m, nn.Conv2d) for m in tower.modules()) == info.tower_convs
    staged = {module for stage in info.trunk.stages for module in stage}
    with_parameters = {n for n, m in detector.model.backbone.body.named_children() if any(True for _ in m.parameters())}
    assert staged == with_parameters


def test_weights_are_torchvisions() -> None:
    assert {name for name, info in DETECTORS.items() if info.weights} == set(DETECTOR_WEIGHTS)
    for name, weights in DETECTOR_WEIGHTS.items():
        metrics = weights["COCO_V1"].meta["_metrics"]["COCO-val2017"]
        assert DETECTORS[name].coco_map == metrics["box_map"]
        assert name in list_models()
    assert tuple(FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]) == COCO_CATEGORIES


def test_methods_of_the_spec() -> None:
    assert set(METHODS) == {*BUILDERS, "none"} == set(get_args(Method))


@pytest.mark.parametrize("name", BUILDERS)
def test_settings_of_a_method_are_written_out_where_it_is_used(name: str) -> None:
    teacher = {"detector": "fcos_conv10_small", "weights": {"file": "t.pt"}}
    job = {"student": {"detector": "fcos_conv5_tiny"}, "dataset": "d", "teacher": teacher, "method": name}
    spec = JobSpec.model_validate(job)
    assert getattr(spec, name).weight > 0
    others = set(METHODS) - {name, "none", "tid"}
    assert all(getattr(spec, other) is None for other in others)
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
