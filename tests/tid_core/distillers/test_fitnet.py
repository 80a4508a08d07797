"""FitNet: every valid point the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.distillers.fitnet import FitnetDistiller
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import FitnetSpec, TidSpec
from tid_core.spec import LossSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Valid points differ by 1 and by 3 in one channel of two: mean d^2 = (1 + 9) / 4 = 2.5; the third is padding.

    The teacher's valid features are 0, 4, 0, 4: variance 4. With weight 2: 5 raw and 5 / 4 normalised.
    """
    valid = torch.tensor([[[True, True, False]]])
    same = torch.tensor([[[[0.0, 0.0, 90.0]], [[4.0, 4.0, -90.0]]]])
    away = torch.tensor([[[[1.0, 0.0, 50.0]], [[0.0, 3.0, 50.0]]]])
    rest = {"grid": [(1, 3)], "strides": [8], "logits_NLK": torch.zeros(1, 3, 2), "boxes_NL4": torch.zeros(1, 3, 4)}
    teacher = make_outputs(**rest, features=[same], valid=[valid])
    student = make_outputs(**rest, features=[same + away], valid=[valid])
    one_level = replace(TINY, strides=(8,))
    for distance, expected in (("mse", 5.0), ("normalised_mse", 1.25)):
        distiller = FitnetDistiller(FitnetSpec(distance=distance), student=one_level, teacher=one_level)
        result = distiller(student, teacher, [])
        assert {name: float(term) for name, term in result.terms.items()} == pytest.approx(
            {"distill/features": expected}
        )
        assert float(result.metrics["distill/features/p3"]) == pytest.approx(expected)


def test_it_is_tid_without_regions(make_scene: Callable[..., Any]) -> None:
    """With one weight for all regions and the mean over the level, TID sees every point alike, too."""
    scene = make_scene(grid=GRID)
    batch = (scene.student, scene.teacher, scene.targets)
    same = LossSpec(high=0.7, medium=0.7, low=0.7)
    tid = TidDistiller(TidSpec(norm="global_mean"), same, student=TINY, teacher=TINY)(*batch)
    fitnet = FitnetDistiller(FitnetSpec(weight=0.7), student=TINY, teacher=TINY)(*batch)
    torch.testing.assert_close(tid.total, fitnet.total)


def test_the_classes_do_not_matter(make_scene: Callable[..., Any]) -> None:
    scene, other = make_scene(grid=GRID), make_scene(grid=GRID, classes=7)
    result = FitnetDistiller(FitnetSpec(), student=TINY, teacher=TINY)(scene.student, other.teacher, scene.targets)
    assert result.total > 0
