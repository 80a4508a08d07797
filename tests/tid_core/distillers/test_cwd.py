"""CWD: the divergence of where each channel looks."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.distillers.cwd import CwdDistiller
from tid_core.methods import CwdSpec

TINY = DETECTORS["fcos_conv5_tiny"]
ONE_LEVEL = replace(TINY, strides=(8,))
GRID = ((6, 5), (3, 3), (2, 2))


def distiller(**settings: Any) -> CwdDistiller:
    return CwdDistiller(CwdSpec(**settings), student=TINY, teacher=TINY)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_by_hand(make_outputs: Callable[..., Any], tau: float) -> None:
    """Two valid points of two channels, the third is padding.

    In the first channel the teacher has 0 and tau ln 3, which is 1/4 and 3/4 of its look; the student looks everywhere
    alike: KL = 1/4 ln(1/2) + 3/4 ln(3/2) = ln 3 * 3/4 - ln 2. In the second the student is the teacher plus 5, which
    is no difference. So tau^2 times half of that, with weight 10. The gradient is 10 tau / 2 times the difference of
    the two looks, 1/2 - 1/4 and 1/2 - 3/4.
    """
    valid = torch.tensor([[[True, True, False]]])
    taught = torch.tensor([[0.0, tau * math.log(3), 60.0], [1.0, 2.0, -60.0]]).view(1, 2, 1, 3)
    own = torch.tensor([[0.5, 0.5, -40.0], [6.0, 7.0, 40.0]]).view(1, 2, 1, 3).requires_grad_()
    rest = {"grid": [(1, 3)], "strides": [8], "logits_NLK": torch.zeros(1, 3, 2), "boxes_NL4": torch.zeros(1, 3, 4)}
    teacher = make_outputs(**rest, features=[taught], valid=[valid])
    student = make_outputs(**rest, features=[own], valid=[valid])
    method = CwdDistiller(CwdSpec(temperature=tau), student=ONE_LEVEL, teacher=ONE_LEVEL)
    result = method(student, teacher, [])
    expected = 10 * tau**2 * (0.75 * math.log(3) - math.log(2)) / 2
    assert {name: term.item() for name, term in result.terms.items()} == pytest.approx({"distill/features": expected})
    assert float(result.metrics["distill/features/p3"]) == pytest.approx(expected)
    result.total.backward()
    assert own.grad is not None
    assert own.grad[0, 0, 0].tolist() == pytest.approx([1.25 * tau, -1.25 * tau, 0.0])
    assert own.grad[0, 1, 0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def _looks(feature: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in feature]
    return [power / sum(powers) for power in powers]


def test_against_plain_loops(make_scene: Callable[..., Any]) -> None:
    """One distribution for each image and channel; the images of a level count the same, however small they are."""
    scene = make_scene(seed=6, grid=GRID)
    result = distiller(weight=1.0, temperature=1.5)(scene.student, scene.teacher, scene.targets)
    for level in range(3):
        found = []
        for image, valid in enumerate(scene.student.valid[level]):
            sides = [side.features[level][image][:, valid].tolist() for side in (scene.student, scene.teacher)]
            for own, taught in zip(*sides, strict=True):
                pairs = zip(_looks(taught, 1.5), _looks(own, 1.5), strict=True)
                found.append(1.5**2 * sum(t * math.log(t / s) for t, s in pairs))
        expected = sum(found) / len(found)
        assert float(result.metrics[f"distill/features/p{level + 3}"]) == pytest.approx(expected, rel=1e-4)


def test_an_image_without_points_on_a_level_is_not_counted(make_scene: Callable[..., Any]) -> None:
    """The second image is so small that no centre of the coarsest level lies in it."""
    scene = make_scene(images=2, grid=GRID)
    valid = [v.clone() for v in scene.student.valid]
    valid[2][1] = False
    whole = distiller()(replace(scene.student, valid=valid), replace(scene.teacher, valid=valid), scene.targets)
    alone = [
        replace(side, features=[f[:1] for f in side.features], valid=[v[:1] for v in valid])
        for side in (scene.student, scene.teacher)
    ]
    first = distiller()(alone[0], alone[1], scene.targets[:1])
    name = "distill/features/p5"
    torch.testing.assert_close(whole.metrics[name], first.metrics[name])
    assert whole.metrics["distill/features/p3"] != first.metrics["distill/features/p3"]


def test_scale_counts_unless_standardised(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(grid=GRID)

    def total(factor: float, *, standardise: bool) -> float:
        moved = replace(scene.student, features=[factor * f + 3 for f in scene.student.features])
        return float(distiller(standardise=standardise)(moved, scene.teacher, scene.targets).total)

    assert total(2.0, standardise=True) == pytest.approx(total(1.0, standardise=True), rel=1e-4)
    assert total(2.0, standardise=False) > 1.2 * total(1.0, standardise=False)
