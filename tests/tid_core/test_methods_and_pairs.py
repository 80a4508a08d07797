"""Methods and pairs: what preflight lets through trains, and what it refuses could not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.detectors.base import teacher_class_index
from tid_core.detectors.build import build_detector
from tid_core.distillers import BUILDERS, build_distiller
from tid_core.methods import HEADS_ALONE
from tid_core.preflight import Problem, check
from tid_core.spec import DataSpec, JobSpec
from tid_core.training.precision import Precision
from tid_core.training.step import StepLosses, Teacher, TrainingStep

torch.set_num_threads(1)

CLASSES, TEACHER_CLASSES = ["cat", "dog", "bird"], ["bird", "fish", "cat", "dog"]
PAIRS = {
    "two GFL heads": ("gfl_conv10_small", "gfl_conv5_tiny"),
    "one family": ("fcos_conv10_small", "fcos_conv5_tiny"),
    "nine anchors teach one": ("retinanet_conv10_small", "atss_conv5_tiny"),
    "more channels": ("gfl_conv10_small", "gfl_narrow_tiny"),
    "other levels": ("gfl_resnet18_fpn", "gfl_conv5_tiny"),
}
REFUSED = {
    "two GFL heads": {},
    "one family": {"ld": "no_distribution"},
    "nine anchors teach one": dict.fromkeys(("frs", "ld", "bckd", "tar"), "anchors_differ"),
    "more channels": {"crosskd": "channels_differ"},
    "other levels": dict.fromkeys(BUILDERS, "levels_differ"),
}


@pytest.fixture(autouse=True)
def _a_narrow_student(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = replace(DETECTORS["gfl_conv5_tiny"], name="gfl_narrow_tiny", channels=64)
    monkeypatch.setitem(DETECTORS, "gfl_narrow_tiny", narrow)


def job(method: Any, pair: str, **more: Any) -> JobSpec:
    teacher, student = PAIRS[pair]
    return JobSpec.model_validate(
        {
            "teacher": {"detector": teacher, "weights": {"file": "teacher.pt", "classes": TEACHER_CLASSES}},
            "student": {"detector": student},
            "dataset": "pets",
            "method": method,
            **more,
        }
    )


def found(spec: JobSpec) -> dict[str, Problem]:
    return {problem.code: problem for problem in check(spec, dataset=None, teacher=None)}


def take_step(spec: JobSpec) -> StepLosses:
    torch.manual_seed(0)
    data = DataSpec(min_size=[64], max_size=64)
    assert spec.teacher is not None
    student = build_detector(spec.student.detector, num_classes=len(CLASSES), data=data).train()
    teacher = build_detector(spec.teacher.detector or "", num_classes=len(TEACHER_CLASSES), data=data)
    precision, index_K = Precision(torch.device("cpu"), "fp32"), teacher_class_index(TEACHER_CLASSES, CLASSES)
    step = TrainingStep(student, build_distiller(spec, student, teacher, index_K), spec.loss, precision)
    target = {"boxes": torch.tensor([[4.0, 6, 40, 50]]), "labels": torch.tensor([1])}
    images, targets = student.transform([torch.rand(3, 64, 64)], [target])
    losses: StepLosses = step(images, targets, Teacher(teacher, index_K, precision)(images), 1.0)
    losses.total.backward()
    return losses


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", BUILDERS)
def test_preflight_and_training_agree(method: str, pair: str) -> None:
    spec = job(method, pair)
    errors = {code for code, problem in found(spec).items() if problem.severity == "error"}
    expected = REFUSED[pair].get(method)
    if expected is None:
        assert not errors
        assert take_step(spec).total.isfinite()
        return
    assert expected in errors
    assert method in found(spec)[expected].detail or expected == "levels_differ"
    with pytest.raises(ValueError, match=f"{method}|levels|channels"):
        take_step(spec)


def test_only_what_has_adapters_speaks_of_them() -> None:
    warned = {method for method in BUILDERS if "adapter_needed" in found(job(method, "more channels"))}
    assert warned == set(BUILDERS) - HEADS_ALONE
    assert "adapter_needed" in found(job(["ld", "pkd"], "more channels"))


def test_several_methods_are_added() -> None:
    """The sum of what each gives alone: the same student, teacher and image."""
    alone = {name: take_step(job(name, "two GFL heads")) for name in ("tid", "bckd")}
    both = take_step(job(["tid", "bckd"], "two GFL heads", bckd={"weight": 0.5}))
    assert {name for name in both.terms if name.startswith("distill/")} == {
        "distill/tid/high", "distill/tid/medium", "distill/tid/low", "distill/bckd/class", "distill/bckd/box",
    }  # fmt: skip
    assert alone["tid"].distill is not None
    assert alone["bckd"].distill is not None
    assert both.distill is not None
    torch.testing.assert_close(both.distill, alone["tid"].distill + 0.5 * alone["bckd"].distill)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["tid", "tid"], "twice"),
        ([], "at least 1"),
        (["tid", "none"], "none"),
        (["tid", "pkd", "cwd", "fgd"], "at most 3"),
    ],
)
def test_lists_that_make_no_sense(method: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job(method, "two GFL heads")


def test_a_method_without_weight_is_refused() -> None:
    problem = found(job(["tid", "pkd"], "two GFL heads", pkd={"weight": 0}))["distillation_off"]
    assert (problem.field, problem.severity) == ("/pkd/weight", "error")
