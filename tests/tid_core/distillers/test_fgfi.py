"""Fine-grained feature imitation: the points near objects."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.distillers.fgfi import FgfiDistiller
from tid_core.distillers.masks import near_anchors
from tid_core.methods import FgfiSpec
from tid_core.truth import pad_truth

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Points at x = 0, 8 ... 56 have squares of 64 for anchors; of them five are near a ground truth around x = 16.

    Squared differences 1 ... 8 in the first of two channels: over the five points (1 + ... + 5) / 5 / 2 = 1.5. Half of
    the teacher's features are 0 and half are 4: variance 4. Weight 3: 4.5 raw, 4.5 / 4 normalised. A second level, of
    one point at the same place with a square of 128 (IoU .25, too little), counts for nothing.
    """
    features = [torch.tensor([0.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 8), torch.ones(1, 2, 1, 1)]
    away = torch.zeros(1, 2, 1, 8)
    away[:, 0] = torch.arange(1.0, 9).sqrt()
    rest = {"grid": [(1, 8), (1, 1)], "strides": [8, 16]}
    rest |= {"logits_NLK": torch.zeros(1, 9, 2), "boxes_NL4": torch.zeros(1, 9, 4)}
    teacher = make_outputs(**rest, features=features)
    student = make_outputs(**rest, features=[features[0] + away, features[1] + 5])
    targets = [{"boxes": torch.tensor([[-16.0, -32, 48, 32]]), "labels": torch.tensor([0])}]
    info = replace(TINY, strides=(8, 16))
    for distance, expected in (("mse", 4.5), ("normalised_mse", 4.5 / 4)):
        distiller = FgfiDistiller(FgfiSpec(weight=3.0, distance=distance), student=info, teacher=info)
        result = distiller(student, teacher, targets)
        assert {name: float(term) for name, term in result.terms.items()} == pytest.approx(
            {"distill/features": expected}
        )
        metrics = {name: float(metric) for name, metric in result.metrics.items()}
        assert metrics == pytest.approx({"distill/features/p3": expected, "distill/features/p4": 0.0})


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_against_a_plain_mean(make_scene: Callable[..., Any], ratio: float) -> None:
    """Point by point over all levels, with the mask as `near_anchors` has it (which has tests of its own)."""
    scene = make_scene(seed=3, grid=GRID)
    near = scene.student.split(
        near_anchors(scene.teacher, pad_truth(scene.targets), scene.student.all_valid, ratio=ratio)
    )
    total, count = 0.0, 0
    for level, mask in enumerate(near):
        s, t = scene.student.features[level], scene.teacher.features[level]
        variance = t.permute(1, 0, 2, 3)[:, scene.student.valid[level]].var(correction=0)
        total += float(((s - t) ** 2 / variance).mean(dim=1)[mask].sum())
        count += int(mask.sum())
    assert count > 0
    distiller = FgfiDistiller(FgfiSpec(weight=1.0, ratio=ratio), student=TINY, teacher=TINY)
    result = distiller(scene.student, scene.teacher, scene.targets)
    assert float(result.total) == pytest.approx(total / count, rel=1e-4)


def test_the_anchors_are_the_teachers(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(seed=3, grid=GRID, anchors=(1, 1))
    batch = (scene.student, scene.teacher, scene.targets)
    distiller = FgfiDistiller(FgfiSpec(), student=TINY, teacher=TINY)
    wide = scene.teacher.anchors_L4 + torch.tensor([-9.0, -20.0, 9.0, 20.0])
    others = [replace(side, anchors_L4=wide) for side in batch[:2]]
    assert float(distiller(others[0], *batch[1:]).total) == float(distiller(*batch).total)
    assert float(distiller(scene.student, others[1], scene.targets).total) != float(distiller(*batch).total)
