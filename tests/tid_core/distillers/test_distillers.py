"""From a job to its distiller: adapters, checks of the pair, the schedule of the weight, real detectors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tid_core.catalogue import DETECTORS
from tid_core.detectors.build import build_detector
from tid_core.distillers import BUILDERS, Distiller, build_distiller, schedule_weight
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import METHODS, TidSpec
from tid_core.spec import DataSpec, JobSpec, LossSpec

DATA = DataSpec(min_size=[64], max_size=96)
# Methods that do not ask for the same anchors or heads; see test_every_method for all of them.
ANY_PAIR = {name for name in BUILDERS if not {"anchors", "distribution"} & set(METHODS[name].needs)}
WIDE, TINY = DETECTORS["fcos_resnet18_fpn"], DETECTORS["fcos_conv5_tiny"]


def job(method: str, **more: Any) -> JobSpec:
    teacher = {"detector": "retinanet_resnet50_fpn", "weights": "COCO_V1"}
    return JobSpec.model_validate(
        {"student": {"detector": "x"}, "dataset": "d", "teacher": teacher, "method": method, **more}
    )


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    student = build_detector("fcos_conv5_tiny", num_classes=3, data=DATA).train()
    teacher = build_detector("retinanet_conv5_tiny", num_classes=3, data=DATA).eval().requires_grad_(False)
    return student, teacher


@pytest.mark.parametrize("method", sorted(ANY_PAIR))
def test_teaches_a_student_of_another_family(pair: tuple[Any, Any], method: str) -> None:
    """One training step's worth: finite terms, and gradient in the student's first layer, under autocast too."""
    student, teacher = pair
    distiller = build_distiller(job(method), student, teacher)
    assert distiller is not None
    sample = [{"boxes": torch.tensor([[10.0, 10.0, 50.0, 40.0]]), "labels": torch.tensor([2])}] * 2
    images, targets = student.transform([torch.rand(3, 64, 64), torch.rand(3, 64, 80)], sample)
    for enabled in (False, True):
        student.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            with torch.no_grad():
                taught = teacher.dense_forward(images)
            result = distiller(student.dense_forward(images, targets), taught, targets)
        result.total.backward()
        assert result.total.isfinite()
        assert result.total > 0
        first = next(p for p in student.model.backbone.parameters() if p.requires_grad)
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
        assert not any(metric.requires_grad for metric in result.metrics.values())


def test_tid_takes_each_detectors_own_thresholds(pair: tuple[Any, Any]) -> None:
    distiller = build_distiller(job("tid"), *pair)
    assert isinstance(distiller, TidDistiller)
    assert distiller.matchers == (None, (0.5, 0.4))


def test_none_has_no_distiller(pair: tuple[Any, Any]) -> None:
    assert build_distiller(job("none"), *pair) is None


def test_an_adapter_per_level_where_channels_differ(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(grid=((6, 5), (3, 3), (2, 2)), channels=(2, 4))
    student = replace(TINY, channels=2)
    distiller = TidDistiller(TidSpec(), LossSpec(), student=student, teacher=replace(TINY, channels=4))
    shapes = [tuple(p.shape) for p in distiller.parameters()]
    assert shapes == [(4, 2, 1, 1), (4,)] * 3
    distiller(scene.student, scene.teacher, scene.targets).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    assert set(distiller.state_dict()) == {f"adapters.{i}.{p}" for i in range(3) for p in ("weight", "bias")}


def test_no_parameters_where_channels_agree() -> None:
    distiller = TidDistiller(TidSpec(), LossSpec(), student=TINY, teacher=TINY)
    assert all(isinstance(adapter, nn.Identity) for adapter in distiller.adapters)
    assert not distiller.state_dict()


def test_a_pair_that_does_not_fit_is_refused(make_scene: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match=r"fcos_conv5_tiny has levels of strides \[8, 16, 32\].*\[8, 16, 32, 64, 128\]"
    ):
        TidDistiller(TidSpec(), LossSpec(), student=TINY, teacher=WIDE)
    distiller: Distiller = TidDistiller(TidSpec(), LossSpec(), student=TINY, teacher=TINY)
    scene, other = make_scene(), make_scene(classes=5)
    with pytest.raises(ValueError, match="has 3 classes, the teacher's logits 5"):
        distiller(scene.student, other.teacher, scene.targets)
    larger = make_scene(grid=((8, 8), (4, 4)))
    with pytest.raises(ValueError, match="must be given the same images"):
        distiller(scene.student, larger.teacher, scene.targets)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("constant", {0: 4.0, 50: 4.0, 99: 4.0}),
        ("warmup", {0: 0.4, 4: 2.0, 9: 4.0, 99: 4.0}),
        ("linear_decay", {0: 4.0, 25: 3.0, 50: 2.0, 100: 0.0}),
        ("cosine_decay", {0: 4.0, 50: 2.0, 100: 0.0}),
    ],
)
def test_schedules(schedule: Any, weights: dict[int, float]) -> None:
    loss = LossSpec(distill=4.0, schedule=schedule, warmup_steps=10)
    assert {step: schedule_weight(loss, step, 100) for step in weights} == pytest.approx(weights)


def test_warmup_of_no_steps_is_none() -> None:
    assert schedule_weight(LossSpec(schedule="warmup", warmup_steps=0), 0, 100) == 1
