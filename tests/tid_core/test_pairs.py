"""Pairs of detectors: which may distil, and that they do, with real networks and one training step."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.detectors.base import DenseDetector, teacher_class_index
from tid_core.detectors.build import build_detector
from tid_core.detectors.inherit import inherit_parts
from tid_core.distillers import Distiller, build_distiller
from tid_core.events import TrainingFailure
from tid_core.preflight import Problem, check
from tid_core.spec import DataSpec, JobSpec
from tid_core.training.precision import Precision
from tid_core.training.step import Teacher, TrainingStep

torch.set_num_threads(1)

DATA = DataSpec(min_size=[64], max_size=64)
CLASSES, TEACHER_CLASSES = ["cat", "dog", "bird"], ["bird", "fish", "cat", "dog"]
PAIRS = [
    ("retinanet_resnet18_fpn", "fcos_resnet18_fpn"),
    ("fcos_resnet18_fpn", "gfl_resnet18_fpn"),
    ("gfl_resnet34_fpn", "gfl_resnet18_fpn"),
    ("atss_resnet34_fpn", "atss_resnet18_fpn"),
    ("gfl_resnet101_fpn", "gfl_resnet50_fpn"),
    ("atss_resnet50_fpn", "atss_resnet18_fpn"),
    ("gfl_resnet18_fpn", "gfl_mobilenet_v2_fpn"),
    ("atss_resnet18_fpn", "fcos_mobilenet_v3_large_fpn"),
    ("retinanet_conv10_small", "atss_conv5_tiny"),
    ("gfl_resnet18_small", "retinanet_conv5_tiny"),
]


def job(teacher: str, student: str, *, inherit: tuple[str, ...] = (), **more: Any) -> JobSpec:
    document = {
        "teacher": {"detector": teacher, "weights": {"file": "teacher.pt", "classes": TEACHER_CLASSES}},
        "student": {"detector": student, "inherit": inherit},
        "dataset": "pets",
        **more,
    }
    return JobSpec.model_validate(document)


def problems(spec: JobSpec) -> dict[str, Problem]:
    return {problem.code: problem for problem in check(spec, dataset=None, teacher=None)}


def build(name: str, classes: list[str]) -> DenseDetector:
    return build_detector(name, num_classes=len(classes), data=DATA)


def take_step(spec: JobSpec) -> tuple[DenseDetector, DenseDetector, Distiller, dict[str, float]]:
    """Forward and backward of one training step on an image with two boxes."""
    torch.manual_seed(0)
    assert spec.teacher is not None
    student, teacher = build(spec.student.detector, CLASSES), build(spec.teacher.detector or "", TEACHER_CLASSES)
    precision = Precision(torch.device("cpu"), "fp32")
    distiller = build_distiller(spec, student.train(), teacher)
    assert distiller is not None
    step = TrainingStep(student, distiller, spec.loss, precision)
    taught = Teacher(teacher, teacher_class_index(TEACHER_CLASSES, CLASSES), precision)
    boxes = torch.tensor([[4.0, 6, 40, 50], [30, 20, 60, 62]])
    images, targets = student.transform([torch.rand(3, 64, 64)], [{"boxes": boxes, "labels": torch.tensor([0, 2])}])
    outputs = taught(images)
    assert outputs.logits_NLK.shape[-1] == len(CLASSES)
    losses = step(images, targets, outputs, 1.0)
    losses.total.backward()
    terms = {name: value.item() for name, value in losses.terms.items()}
    return student, teacher, distiller, terms


@pytest.mark.parametrize(("teacher_name", "student_name"), PAIRS)
def test_pair_trains(teacher_name: str, student_name: str) -> None:
    spec = job(teacher_name, student_name)
    assert not [problem for problem in problems(spec).values() if problem.severity == "error"]
    student, teacher, distiller, terms = take_step(spec)
    assert terms["loss/distill"] > 0
    assert all(torch.tensor(value).isfinite() for value in terms.values())
    assert terms["loss/total"] == pytest.approx(terms["loss/task"] + terms["loss/distill"], rel=1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)
    assert not list(distiller.parameters()), "both have as many channels"


@pytest.mark.parametrize("method", ["tid", "fitnet"])
def test_the_distillation_alone_reaches_the_student(method: str) -> None:
    """Its backbone and neck, not its head, and not the teacher."""
    spec = job("retinanet_conv5_tiny", "gfl_conv5_tiny", method=method)
    torch.manual_seed(0)
    student, teacher = build("gfl_conv5_tiny", CLASSES).train(), build("retinanet_conv5_tiny", CLASSES).train()
    distiller = build_distiller(spec, student, teacher)
    assert distiller is not None
    targets = [{"boxes": torch.tensor([[4.0, 6, 40, 50]]), "labels": torch.tensor([1])}]
    images, targets = student.transform([torch.rand(3, 64, 64)], targets)
    with torch.no_grad():
        taught = teacher.dense_forward(images)
    distiller(student.dense_forward(images, targets), taught, targets).total.backward()
    for name, parameter in student.model.named_parameters():
        is_reached = parameter.grad is not None and bool(parameter.grad.any())
        assert is_reached == name.startswith("backbone."), name
    assert all(p.grad is None for p in teacher.parameters())


def test_thresholds_of_the_matcher_itself() -> None:
    *_, terms = take_step(job("atss_resnet18_fpn", "gfl_mobilenet_v2_fpn", tid={"thresholds": "atss"}))
    assert terms["loss/distill"] > 0


def test_other_widths_meet_in_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = replace(DETECTORS["gfl_mobilenet_v2_fpn"], name="gfl_narrow_fpn", channels=64)
    monkeypatch.setitem(DETECTORS, "gfl_narrow_fpn", narrow)
    spec = job("gfl_resnet18_fpn", "gfl_narrow_fpn")
    found = problems(spec)
    assert found["adapter_needed"].severity == "warning"
    assert "64 channels meet 256" in found["adapter_needed"].detail
    student, teacher, distiller, terms = take_step(spec)
    assert [tuple(a.weight.shape) for a in distiller.adapters] == [(256, 64, 1, 1)] * 5
    assert all(p.grad is not None and bool(p.grad.any()) for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert terms["loss/distill"] > 0
    assert not any("adapter" in key for key in student.model.state_dict())


def test_other_levels_are_refused_with_the_reason() -> None:
    found = problems(job("gfl_resnet101_fpn", "atss_conv5_tiny"))["levels_differ"]
    assert (found.severity, found.field) == ("error", "/student/detector")
    assert "atss_conv5_tiny has 3 pyramid levels, gfl_resnet101_fpn 5; each level imitates" in found.detail
    assert found.expected.startswith("one of: atss_"), "the family that was asked for comes first"


def test_other_strides_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = replace(DETECTORS["gfl_resnet18_fpn"], name="gfl_fine_fpn", strides=(4, 8, 16, 32, 64))
    monkeypatch.setitem(DETECTORS, "gfl_fine_fpn", fine)
    found = problems(job("atss_resnet50_fpn", "gfl_fine_fpn"))["strides_differ"]
    assert found.severity == "error"
    assert "gfl_fine_fpn has strides (4, 8, 16, 32, 64), atss_resnet50_fpn (8, 16, 32, 64, 128)" in found.detail
    assert "gfl_resnet18_fpn" in found.expected


@pytest.mark.parametrize(
    ("teacher", "student", "unfit"),
    [
        ("gfl_resnet101_fpn", "gfl_resnet50_fpn", False),
        ("atss_resnet50_fpn", "atss_mobilenet_v2_fpn", False),
        ("atss_resnet50_fpn", "gfl_resnet50_fpn", True),
        ("fcos_resnet50_fpn", "atss_resnet50_fpn", True),
        ("gfl_conv10_small", "gfl_conv5_tiny", False),
        ("fcos_resnet50_caffe_fpn_mm", "fcos_resnet18_fpn_mm", False),
        ("fcos_resnet50_fpn_mm", "fcos_resnet50_fpn", True),
        ("fcos_resnet50_caffe_fpn_mm_exp", "fcos_resnet50_caffe_fpn_mm", True),
    ],
)
def test_inheriting_a_head(teacher: str, student: str, unfit: bool) -> None:
    found = problems(job(teacher, student, inherit=("neck", "head")))
    assert ("inherit_unfit" in found) == unfit
    if unfit:
        assert found["inherit_unfit"].field == "/student/inherit/1"
        assert "built differently" in found["inherit_unfit"].detail


@pytest.mark.parametrize("family", ["gfl", "atss"])
def test_inherits_the_whole_head_in_its_own_order_of_classes(family: str) -> None:
    torch.manual_seed(0)
    student = build(f"{family}_conv5_tiny", CLASSES)
    teacher = build(f"{family}_conv10_small", TEACHER_CLASSES)
    for level, scale in enumerate(teacher.model.head.regression_head.scales):
        torch.nn.init.constant_(scale.scale, 1.5 + level)
    index_K = teacher_class_index(TEACHER_CLASSES, CLASSES)
    copied = inherit_parts(student, teacher, ["neck", "head"], index_K)
    assert "backbone.fpn.layer_blocks.0.0" in copied
    given, taken = teacher.model.state_dict(), student.model.state_dict()
    for key in (key for key in taken if key.startswith("head.")):
        rows = given[key][index_K] if "cls_logits" in key else given[key]
        assert torch.equal(taken[key], rows), key
    with pytest.raises(TrainingFailure, match="inherit_unfit"):
        inherit_parts(build("fcos_conv5_tiny", CLASSES), teacher, ["head"], index_K)
