"""Feature richness: where the teacher sees something."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.distillers.divergence import binary_divergences, mean_at_location
from tid_core.distillers.frs import FrsDistiller
from tid_core.methods import FrsSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_divergence_by_hand() -> None:
    """p_T = .5 and p_S = .2: .5 ln(.5 / .2) + .5 ln(.5 / .8) = ln 1.25; alike: 0. Two classes add up."""
    teacher = torch.tensor([[[0.0, 1.3], [0.0, 0.0]]])
    student = torch.tensor([[[logit(0.2), 1.3], [logit(0.2), logit(0.8)]]])
    assert binary_divergences(student, teacher)[0].tolist() == pytest.approx([math.log(1.25), 2 * math.log(1.25)])


def test_divergence_is_the_cross_entropy_to_gradients() -> None:
    """d / d logit of the cross entropy is p_S - p_T."""
    student = torch.tensor([[[0.3, -2.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.5]]], requires_grad=True)
    binary_divergences(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.detach().sigmoid() - teacher.detach().sigmoid())


def test_means_at_locations(make_outputs: Callable[..., Any]) -> None:
    outputs = make_outputs(
        grid=[(1, 2)],
        strides=[8],
        features=[torch.zeros(1, 1, 1, 2)],
        logits_NLK=torch.zeros(1, 6, 1),
        boxes_NL4=torch.zeros(1, 6, 4),
        num_anchors=3,
    )
    assert mean_at_location(torch.tensor([[1.0, 2, 6, 0, 0, 3]]), outputs).tolist() == [[3.0, 1.0]]


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Three points, the last of them padding; the teacher's best classes there have probability .5, .2 and .9.

    Features: squared differences 1 and 3 in one of two channels, so (.5 * .5 + .2 * 1.5) / .7; the teacher's valid ones
    are half 0, half 4: variance 4. Classes: the student says .2 to the first class, otherwise as the teacher says; the
    divergence is ln 1.25 at the first point and nothing at the second: .5 ln 1.25 / .7. Weights 2 * 3 and 2 * 7.
    """
    same = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    away = torch.zeros(1, 2, 1, 3)
    away[0, 0, 0] = torch.tensor([1.0, math.sqrt(3), 50.0])
    taught = torch.tensor([[[0.5, 0.5], [0.1, 0.2], [0.9, 0.1]]])
    said = torch.tensor([[[0.2, 0.5], [0.1, 0.2], [0.2, 0.2]]])
    rest = {"grid": [(1, 3)], "strides": [8], "boxes_NL4": torch.zeros(1, 3, 4)}
    rest["valid"] = [torch.tensor([[[True, True, False]]])]
    teacher = make_outputs(**rest, features=[same], logits_NLK=taught.logit())
    student = make_outputs(**rest, features=[same + away], logits_NLK=said.logit())
    info = replace(TINY, strides=(8,), channels=2)
    spec = FrsSpec(weight=2.0, feature_weight=3.0, class_weight=7.0)
    result = FrsDistiller(spec, student=info, teacher=info)(student, teacher, [])
    assert {name: float(term) for name, term in result.terms.items()} == pytest.approx(
        {"distill/features": 6 * 0.55 / 0.7 / 4, "distill/classes": 14 * 0.5 * math.log(1.25) / 0.7}, rel=1e-5
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _divergence(student: list[float], teacher: list[float]) -> float:
    pairs = [(_sigmoid(s), _sigmoid(t)) for s, t in zip(student, teacher, strict=True)]
    return sum(t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for s, t in pairs)


def test_against_loops(make_scene: Callable[..., Any]) -> None:
    """Two anchors at each location: the mask is the best class of the better one, the divergence the mean of both."""
    scene = make_scene(seed=6, grid=GRID, anchors=(2, 2))
    expected, start = {"features": 0.0, "classes": 0.0}, 0
    for level, (height, width) in enumerate(scene.student.grid):
        sums, total = {"features": 0.0, "classes": 0.0}, 0.0
        errors: Tensor = ((scene.student.features[level] - scene.teacher.features[level]) ** 2).mean(dim=1)
        for n, valid_HW in enumerate(scene.student.valid[level]):
            for place in valid_HW.flatten().nonzero().flatten().tolist():
                rows = [start + 2 * place, start + 2 * place + 1]
                taught, said = scene.teacher.logits_NLK[n, rows].tolist(), scene.student.logits_NLK[n, rows].tolist()
                weight = max(_sigmoid(x) for row in taught for x in row)
                total += weight
                sums["features"] += weight * float(errors[n].flatten()[place])
                sums["classes"] += weight * sum(_divergence(s, t) for s, t in zip(said, taught, strict=True)) / 2
        start += 2 * height * width
        expected = {name: expected[name] + value / total for name, value in sums.items()}
    info = replace(TINY, anchors_per_location=2)
    spec = FrsSpec(weight=1.0, feature_weight=1.0, class_weight=1.0, distance="mse")
    result = FrsDistiller(spec, student=info, teacher=info)(scene.student, scene.teacher, scene.targets)
    terms = {name.removeprefix("distill/"): float(term) for name, term in result.terms.items()}
    assert terms == pytest.approx(expected, rel=1e-4)


def test_other_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frs compares anchor with anchor, but fcos_conv5_tiny has 1 .* other 9"):
        FrsDistiller(FrsSpec(), student=TINY, teacher=replace(TINY, name="other", anchors_per_location=9))
