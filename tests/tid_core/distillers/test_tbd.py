"""Task-balanced distillation: harmony, and points for each task."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tid_core.catalogue import DETECTORS
from tid_core.distillers.tbd import TbdDistiller
from tid_core.methods import TbdSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))
ALL = {"harmony_weight": 1.0, "classification_weight": 1.0, "localisation_weight": 1.0, "distance": "mse"}


def terms(result: Any) -> dict[str, float]:
    return {name.removeprefix("distill/"): float(term.detach()) for name, term in result.terms.items()}


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Four points, a ground truth of class 1; the teacher's p and u there: (.8, .5), (.4, .4), (.04, 1), (.9, misses).

    Harmony: sqrt(.4) * .7, .4, sqrt(.04) * .04 = .008 and 0. Classification: .8, .4, 0 (below .05), 0. Localisation:
    .5, 0 (below .5), 1, 0. Squared differences 1, 2, 3, 4 in one of two channels: classification (.4 + .4) / 1.2,
    localisation (.25 + 1.5) / 1.5. The student gives class 1 a probability of .2 at the second point instead of .4, and
    is otherwise the teacher.
    """
    truth, half, less, miss = [0.0, 0, 10, 10], [0.0, 0, 5, 10], [0.0, 0, 4, 10], [90.0, 90, 99, 99]
    taught = torch.tensor([[[0.3, 0.8], [0.3, 0.4], [0.3, 0.04], [0.3, 0.9]]])
    said = taught.clone()
    said[0, 1, 1] = 0.2
    rest = {"grid": [(1, 4)], "strides": [8], "boxes_NL4": torch.tensor([[half, less, truth, miss]])}
    same, away = torch.rand(1, 2, 1, 4), torch.zeros(1, 2, 1, 4)
    away[0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).sqrt()
    info = replace(TINY, strides=(8,), channels=2)
    result = TbdDistiller(TbdSpec(**ALL), student=info, teacher=info)(
        make_outputs(**rest, features=[same + away], logits_NLK=said.logit()),
        make_outputs(**rest, features=[same], logits_NLK=taught.logit()),
        [{"boxes": torch.tensor([truth]), "labels": torch.tensor([1])}],
    )
    divergence = 0.4 * math.log(0.4 / 0.2) + 0.6 * math.log(0.6 / 0.8)
    harmony = [math.sqrt(0.4) * 0.7, 0.4, 0.008, 0.0]
    expected = {
        "harmony": 0.4 * divergence / sum(harmony),
        "classification": 0.8 / 1.2,
        "localisation": 1.75 / 1.5,
    }
    assert terms(result) == pytest.approx(expected, rel=1e-4)


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _divergence(student: list[float], teacher: list[float]) -> float:
    pairs = [(_sigmoid(s), _sigmoid(t)) for s, t in zip(student, teacher, strict=True)]
    return sum(t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for s, t in pairs)


def _best(outputs: Any, image: int, location: int) -> list[float]:
    step = outputs.num_anchors
    return outputs.logits_NLK[image, location * step : (location + 1) * step].amax(dim=0).tolist()


def _location(scene: Any, image: int, location: int, spec: TbdSpec) -> dict[str, float]:
    """The weights of one location."""
    target, teacher = scene.targets[image], scene.teacher
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).tolist()
    real = [i for i in range(len(crowd)) if not crowd[i]]
    harmony, score, overlap = 0.0, 0.0, 0.0
    for anchor in range(location * teacher.num_anchors, (location + 1) * teacher.num_anchors):
        ious = [_iou(teacher.boxes_NL4[image, anchor].tolist(), target["boxes"][i].tolist()) for i in real]
        if not ious or max(ious) <= 1e-6:
            continue
        u = max(ious)
        p = _sigmoid(float(teacher.logits_NLK[image, anchor, target["labels"][real[ious.index(u)]]]))
        harmony = max(harmony, math.sqrt(p * u) * (1 - abs(p - u)) ** spec.strictness)
        score, overlap = max(score, p), max(overlap, u)
    return {
        "harmony": harmony,
        "classification": score if score >= spec.score_from else 0.0,
        "localisation": overlap if overlap >= spec.iou_from else 0.0,
    }


@pytest.mark.parametrize(
    ("anchors", "settings"),
    [
        ((1, 3), {}),
        ((2, 1), {"strictness": 0.0, "score_from": 0.6}),
        ((1, 1), {"strictness": 3.0, "iou_from": 0.2}),
    ],
)
def test_against_loops(make_scene: Callable[..., Any], anchors: tuple[int, int], settings: dict[str, float]) -> None:
    """Also where the two have not as many anchors."""
    scene = make_scene(seed=7, grid=GRID, anchors=anchors)
    spec = TbdSpec(**ALL, **settings)
    pairs = zip(scene.student.features, scene.teacher.features, strict=True)
    error_NP = torch.cat([((s - t) ** 2).mean(dim=1).flatten(1) for s, t in pairs], dim=1)
    names = ("harmony", "classification", "localisation")
    sums, totals = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for image, location in scene.student.all_valid.nonzero().tolist():
        weights = _location(scene, image, location, spec)
        divergence = _divergence(_best(scene.student, image, location), _best(scene.teacher, image, location))
        for name, weight in weights.items():
            totals[name] += weight
            sums[name] += weight * (divergence if name == "harmony" else float(error_NP[image, location]))
    assert all(total > 0 for total in totals.values())
    result = TbdDistiller(spec, student=TINY, teacher=TINY)(scene.student, scene.teacher, scene.targets)
    assert terms(result) == pytest.approx({name: sums[name] / totals[name] for name in names}, rel=1e-4)
