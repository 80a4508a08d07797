"""Prediction-guided distillation: by hand, and against plain loops over the points."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.distillers.masks import inside_boxes
from tid_core.distillers.pgd import JITTER, PgdDistiller, gaussian_weights, key_weights
from tid_core.methods import PgdSpec
from tid_core.truth import pad_truth

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))
ALL = {"foreground_weight": 1.0, "background_weight": 1.0, "attention_weight": 1.0}


def test_gaussian_by_hand() -> None:
    """A square of side 2: variances 1, no covariance, every corner sqrt(2) deviations away: exp(-1).

    The third ground truth has three points on a line, 4 apart: variance 32 / 3, the outer ones exp(-16 / 2 / (32 / 3)).
    The second chose one point alone, which is its own peak; the fourth none.
    """
    square = [[0.0, 0], [2.0, 0], [0.0, 2], [2.0, 2]]
    line = [[4.0, 7], [0.0, 7], [8.0, 7], [500.0, 90]]
    chosen = [[True] * 4, [True] + [False] * 3, [True, True, True, False], [False] * 4]
    found = gaussian_weights(torch.tensor([[square, square, line, line]]), torch.tensor([chosen]))
    corner, outer = math.exp(-1), math.exp(-0.75)
    expected = [[corner] * 4, [1.0, 0, 0, 0], [1.0, outer, outer, 0], [0.0] * 4]
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=2e-3, atol=0)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, 2.0])
def test_gaussian_of_points_on_any_line(angle: float) -> None:
    """Far from the origin and wherever it points, a line's Gaussian is that of its places along it."""
    places = torch.tensor([0.0, 8, 24, 40, 160])
    points = 1200 + torch.stack([math.cos(angle) * places, math.sin(angle) * places], dim=1)
    weights = gaussian_weights(points[None, None], torch.ones(1, 1, 5, dtype=torch.bool))
    deviations = (places - places.mean()) / places.std(correction=0)
    torch.testing.assert_close(weights[0, 0], torch.exp(-deviations.square() / 2), rtol=1e-3, atol=0)


def test_key_weights_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Points at x = 0, 8 ... 40 with two anchors each; the ground truth, of class 1, holds the first five of them.

    With alpha .5 the qualities of the better anchors, as sqrt(p IoU) of class 1, are: sqrt(.9 * .5), 0 (misses it),
    sqrt(.5 * 1), sqrt(.2 * .5), sqrt(.1 * .25); the sixth is the best but lies outside. The three best are at 0, 16 and
    24: mean 40 / 3, variance (0 + 256 + 576) / 3 - 1600 / 9 = 896 / 9.
    """
    truth = [0.0, 0.0, 48.0, 8.0]
    whole, half, quarter, miss = truth, [0.0, 0, 24, 8], [0.0, 0, 12, 8], [90.0, 90, 99, 99]
    boxes = [half, quarter, miss, miss, quarter, whole, half, miss, quarter, miss, whole, whole]
    right = [0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.2, 0.9, 0.1, 0.9, 0.99, 0.99]
    probabilities = torch.tensor([[[0.95, p] for p in right]])
    teacher = make_outputs(
        grid=[(1, 6)],
        strides=[8],
        features=[torch.zeros(1, 1, 1, 6)],
        logits_NLK=probabilities.logit(),
        boxes_NL4=torch.tensor([boxes]),
        num_anchors=2,
    )
    around = pad_truth([{"boxes": torch.tensor([[-4.0, -4, 36, 4]]), "labels": torch.tensor([1])}])
    inside = inside_boxes(teacher, around)
    assert inside[0, 0].tolist() == [True] * 5 + [False]
    found = key_weights(teacher, replace(around, boxes_NM4=torch.tensor([[truth]])), inside, alpha=0.5, topk=3)
    variance = 896 / 9
    expected = [math.exp(-((x - 40 / 3) ** 2) / 2 / variance) if x in (0, 16, 24) else 0.0 for x in range(0, 48, 8)]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)
    wide = key_weights(teacher, replace(around, boxes_NM4=torch.tensor([[truth]])), inside, alpha=0.5, topk=30)
    assert (wide[0] > 0).tolist() == [True, False, True, True, True, False]


def test_terms_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Two points of two channels, the left one in the box and hit by the teacher: the only one chosen, weight 1.

    Teacher (ln 3, 0) and (0, 0), T = 1: the attention over channels is 2 * (3, 1) / 4 = (1.5, .5) and (1, 1); that over
    points, of the means ln(3) / 2 and 0, is 2 * (r, 1) / (r + 1) with r = sqrt 3. The student is 1 more in the first
    channel on the left, and 2 more on the right: foreground = 2 r / (r + 1) * 1.5 * 1 / 2, background = 2 / (r + 1) *
    1 * 4 / 2.
    """
    taught = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])
    said = taught + torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]])
    rest = {"grid": [(1, 2)], "strides": [8], "logits_NLK": torch.zeros(1, 2, 1)}
    rest["boxes_NL4"] = torch.tensor([[[-4.0, -4, 4, 4]] * 2])
    info = replace(TINY, strides=(8,), channels=2)
    spec = PgdSpec(temperature=1.0, distance="mse", **ALL)
    result = PgdDistiller(spec, student=info, teacher=info)(
        make_outputs(**rest, features=[said]),
        make_outputs(**rest, features=[taught]),
        [{"boxes": torch.tensor([[-4.0, -4, 4, 4]]), "labels": torch.tensor([0])}],
    )
    root = math.sqrt(3)
    left, right = 2 * root / (root + 1), 2 / (root + 1)
    # The student's, over channels: 2 * (3e, 1) / (3e + 1) and 2 * (e^2, 1) / (e^2 + 1); points: (1 + ln 3) / 2 and 1.
    e, top = math.e, math.exp((1 + math.log(3)) / 2)
    own = [2 * 3 * e / (3 * e + 1), 2 * e**2 / (e**2 + 1)]
    gaps = [abs(1.5 - own[0]) + abs(left - 2 * top / (top + e)), abs(1 - own[1]) + abs(right - 2 * e / (top + e))]
    expected = {"foreground": left * 0.75, "background": right * 2, "attention": sum(gaps) / 2}
    terms = {name.removeprefix("distill/"): float(term) for name, term in result.terms.items()}
    assert terms == pytest.approx(expected, rel=1e-5)


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _places(outputs: Any) -> list[tuple[float, float]]:
    grids = zip(outputs.grid, outputs.strides, strict=True)
    return [(x * s, y * s) for (rows, columns), s in grids for y in range(rows) for x in range(columns)]


def _holds(box: list[float], place: tuple[float, float]) -> bool:
    return box[0] < place[0] < box[2] and box[1] < place[1] < box[3]


def _weights(scene: Any, image: int, alpha: float, topk: int) -> tuple[list[float], list[bool]]:
    """Of each location, and whether it lies outside of all boxes."""
    teacher, target, places = scene.teacher, scene.targets[image], _places(scene.teacher)
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"])))
    weights, empty = [0.0] * len(places), [True] * len(places)
    valid = scene.student.all_valid[image].tolist()
    for box, label, is_crowd in zip(target["boxes"].tolist(), target["labels"].tolist(), crowd.tolist(), strict=True):
        if is_crowd:
            continue
        found: list[tuple[float, int]] = []
        for index, place in enumerate(places):
            if not (valid[index] and _holds(box, place)):
                continue
            empty[index] = False
            anchors = range(index * teacher.num_anchors, (index + 1) * teacher.num_anchors)
            probabilities = teacher.logits_NLK[image, :, label].sigmoid().tolist()
            quality = max(
                probabilities[a] ** (1 - alpha) * _iou(teacher.boxes_NL4[image, a].tolist(), box) ** alpha
                for a in anchors
            )
            if quality > 0:
                found.append((quality, index))
        best = [index for _, index in sorted(found, reverse=True)[:topk]]
        if best:
            points = torch.tensor([places[i] for i in best], dtype=torch.float64)
            away = points - points.mean(dim=0)
            covariance = away.T @ away / len(best) + JITTER * torch.eye(2, dtype=torch.float64)
            heights = torch.exp(-0.5 * ((away @ covariance.inverse()) * away).sum(dim=1)).tolist()
            for index, height in zip(best, heights, strict=True):
                weights[index] = max(weights[index], height)
    return weights, [e and v for e, v in zip(empty, valid, strict=True)]


def _attention(feature: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of one image: over its valid points, and over channels."""
    size = feature.abs() / temperature
    points = torch.zeros(valid.shape)
    points[valid] = size.mean(dim=0)[valid].softmax(dim=0) * int(valid.sum())
    return points, size.softmax(dim=0) * len(feature)


@pytest.mark.parametrize(("seed", "alpha", "topk"), [(1, 0.8, 30), (2, 0.8, 4), (5, 0.3, 9), (8, 1.0, 1)])
def test_against_loops(make_scene: Callable[..., Any], seed: int, alpha: float, topk: int) -> None:
    scene = make_scene(seed=seed, grid=GRID, anchors=(1, 3))
    sums, totals = {"foreground": 0.0, "background": 0.0, "attention": 0.0}, {"foreground": 0.0, "background": 0.0}
    totals["attention"] = float(scene.student.all_valid.sum())
    for image in range(3):
        weights, empty = (scene.student.split(torch.tensor(row)[None]) for row in _weights(scene, image, alpha, topk))
        totals["foreground"] += sum(float(w.sum()) for w in weights)
        totals["background"] += sum(float(e.sum()) for e in empty)
        for level, valid in enumerate(v[image] for v in scene.student.valid):
            s, t = scene.student.features[level][image], scene.teacher.features[level][image]
            points, channels = _attention(t, valid, 0.8)
            own_points, own_channels = _attention(s, valid, 0.8)
            error = points * (channels * (s - t) ** 2).mean(dim=0)
            sums["foreground"] += float((error * weights[level][0]).sum())
            sums["background"] += float((error * empty[level][0]).sum())
            gap = (channels - own_channels).abs().mean(dim=0) + (points - own_points).abs()
            sums["attention"] += float(gap[valid].sum())
    assert totals["foreground"] > 0
    spec = PgdSpec(alpha=alpha, topk=topk, distance="mse", **ALL)
    result = PgdDistiller(spec, student=TINY, teacher=TINY)(scene.student, scene.teacher, scene.targets)
    terms = {name.removeprefix("distill/"): float(term) for name, term in result.terms.items()}
    assert terms == pytest.approx({name: value / totals[name] for name, value in sums.items()}, rel=1e-4)


def test_how_many_points_follow_the_teacher() -> None:
    atss = DETECTORS["atss_conv5_tiny"]
    counts = [PgdDistiller(PgdSpec(), student=TINY, teacher=teacher).topk for teacher in (TINY, atss)]
    assert counts == [30, 9]
    assert PgdDistiller(PgdSpec(topk=5), student=TINY, teacher=atss).topk == 5
