"""Decoupled features: objects and background."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.distillers.defeat import DefeatDistiller
from tid_core.methods import DefeatSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Points at x = 0, 8, 16, 24, the last of them padding; the first two lie in the ground truth.

    With phi still the identity, one of two channels differs by 1, 3 | 2: means over points and channels (1 + 9) / 4 and
    4 / 2. The teacher's valid features are half 0 and half 4: variance 4. Weight 2 x .5 and 2 x 3: raw 2.5 and 12.
    """
    same = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    away = torch.tensor([[[[1.0, 0.0, 2.0, 70.0]], [[0.0, 3.0, 0.0, 70.0]]]])
    rest = {"grid": [(1, 4)], "strides": [8], "valid": [torch.tensor([[[True, True, True, False]]])]}
    rest |= {"logits_NLK": torch.zeros(1, 4, 2), "boxes_NL4": torch.zeros(1, 4, 4)}
    teacher = make_outputs(**rest, features=[same])
    student = make_outputs(**rest, features=[same + away])
    targets = [{"boxes": torch.tensor([[-4.0, -4, 12, 4]]), "labels": torch.tensor([0])}]
    info = replace(TINY, strides=(8,), channels=2)
    for distance, factor in (("mse", 1.0), ("normalised_mse", 0.25)):
        spec = DefeatSpec(weight=2.0, foreground_weight=0.5, background_weight=3.0, distance=distance)
        result = DefeatDistiller(spec, student=info, teacher=info)(student, teacher, targets)
        expected = {"distill/foreground": 2.5 * factor, "distill/background": 12 * factor}
        assert {name: float(term.detach()) for name, term in result.terms.items()} == pytest.approx(expected)
        assert float(result.metrics["distill/foreground/p3"]) == pytest.approx(2.5 * factor)


def _inside(target: dict[str, Tensor], x: float, y: float) -> bool:
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"])))
    boxes = [b.tolist() for b, c in zip(target["boxes"], crowd, strict=True) if not c]
    return any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in boxes)


def test_against_loops(make_scene: Callable[..., Any]) -> None:
    """Each region of each level by its own count, point by point, with an ordinary 3x3 convolution in between."""
    scene = make_scene(seed=1, grid=GRID, channels=(3, 4))
    student_info, teacher_info = replace(TINY, channels=3), replace(TINY, channels=4)
    spec = DefeatSpec(weight=1.0, foreground_weight=1.0, background_weight=1.0, distance="mse")
    distiller = DefeatDistiller(spec, student=student_info, teacher=teacher_info)
    expected = {"foreground": 0.0, "background": 0.0}
    for level, stride in enumerate(scene.student.strides):
        valid = scene.student.valid[level]
        images, height, width = valid.shape
        adapted = distiller.adapters[level](scene.student.features[level] * valid[:, None])
        errors = ((adapted - scene.teacher.features[level]) ** 2).mean(dim=1)
        found: dict[str, list[float]] = {"foreground": [], "background": []}
        for n, y, x in torch.cartesian_prod(torch.arange(images), torch.arange(height), torch.arange(width)).tolist():
            if valid[n, y, x]:
                inside = _inside(scene.targets[n], x * stride, y * stride)
                found["foreground" if inside else "background"].append(float(errors[n, y, x].detach()))
        for name, values in found.items():
            expected[name] += sum(values) / max(len(values), 1)
    result = distiller(scene.student, scene.teacher, scene.targets)
    terms = {name.removeprefix("distill/"): float(term.detach()) for name, term in result.terms.items()}
    assert terms == pytest.approx(expected, rel=1e-4)


def test_three_by_three_that_starts_as_nothing() -> None:
    """Where the channels agree; anything else would disturb a student that was taken from its teacher."""
    image = torch.rand(1, 8, 5, 5)
    same = DefeatDistiller(DefeatSpec(), student=replace(TINY, channels=8), teacher=replace(TINY, channels=8))
    assert all(torch.equal(adapter(image), image) for adapter in same.adapters)
    other = DefeatDistiller(DefeatSpec(), student=replace(TINY, channels=8), teacher=replace(TINY, channels=6))
    assert [tuple(p.shape) for p in other.adapters.parameters()] == [(6, 8, 3, 3), (6,)] * 3
