"""PKD: one less the correlation of each channel with the teacher's."""

from collections.abc import Callable
from dataclasses import replace
from statistics import correlation
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.distillers.pkd import PkdDistiller
from tid_core.methods import PkdSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))


def distiller(weight: float = 6.0) -> PkdDistiller:
    return PkdDistiller(PkdSpec(weight=weight), student=TINY, teacher=TINY)


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Four valid points of two channels, the fifth is padding.

    Teacher 1, 1, -1, -1 in both. Student 7, 7, 3, 3 in the first: the same up to scale and offset, r = 1; and
    2, 0, 2, 0 in the second: it varies where the teacher does not, r = 0. The mean of 1 - r is 1/2, with weight 6: 3.
    """
    valid = torch.tensor([[[True, True, True, True, False]]])
    taught = torch.tensor([1.0, 1, -1, -1, 50])
    own = torch.tensor([[7.0, 7, 3, 3, -80], [2, 0, 2, 0, 90]]).view(1, 2, 1, 5)
    rest = {"grid": [(1, 5)], "strides": [8], "logits_NLK": torch.zeros(1, 5, 2), "boxes_NL4": torch.zeros(1, 5, 4)}
    teacher = make_outputs(**rest, features=[taught.expand(1, 2, 1, 5)], valid=[valid])
    student = make_outputs(**rest, features=[own], valid=[valid])
    one_level = replace(TINY, strides=(8,))
    result = PkdDistiller(PkdSpec(), student=one_level, teacher=one_level)(student, teacher, [])
    assert float(result.terms["distill/features"]) == pytest.approx(3.0, rel=1e-5)
    assert float(result.metrics["distill/features/p3"]) == pytest.approx(3.0, rel=1e-5)


def test_it_is_one_less_the_correlation(make_scene: Callable[..., Any]) -> None:
    """Against the standard library's, channel by channel over the valid points of all images."""
    scene = make_scene(seed=4, grid=GRID)
    result = distiller(weight=1.0)(scene.student, scene.teacher, scene.targets)
    for level in range(3):
        valid = scene.student.valid[level]
        sides = [side.features[level].movedim(1, 0)[:, valid].tolist() for side in (scene.student, scene.teacher)]
        found = [1 - correlation(own, taught) for own, taught in zip(*sides, strict=True)]
        expected = sum(found) / len(found)
        assert float(result.metrics[f"distill/features/p{level + 3}"]) == pytest.approx(expected, rel=1e-4)


def test_scale_and_offset_do_not_count(make_scene: Callable[..., Any]) -> None:
    """Each channel may have its own, in either."""
    scene = make_scene(grid=GRID)
    factor = torch.tensor([0.5, 3.0, 20.0, 1.0]).view(4, 1, 1)
    moved = replace(scene.student, features=[factor * f + 10 * factor for f in scene.student.features])
    apart = distiller()(moved, scene.teacher, scene.targets).total
    torch.testing.assert_close(apart, distiller()(scene.student, scene.teacher, scene.targets).total, rtol=1e-4, atol=0)
    torch.testing.assert_close(distiller()(moved, scene.student, scene.targets).total, torch.tensor(0.0))


def test_the_opposite_is_worst(make_scene: Callable[..., Any]) -> None:
    """1 - r is 2 for r = -1, on each of three levels."""
    scene = make_scene(grid=GRID)
    opposite = replace(scene.teacher, features=[-f for f in scene.teacher.features])
    assert float(distiller(1.0)(opposite, scene.teacher, scene.targets).total) == pytest.approx(6.0, rel=1e-4)
