"""FGD: attention, objects and background by their sizes, the relation of all points."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.distillers.fgd import TERMS, FgdDistiller, object_scales
from tid_core.methods import FgdSpec
from tid_core.truth import pad_truth

NARROW = replace(DETECTORS["fcos_conv5_tiny"], channels=4)
GRID = ((6, 5), (3, 3), (2, 2))


def distiller(**settings: Any) -> FgdDistiller:
    torch.manual_seed(0)
    return FgdDistiller(FgdSpec(**settings), student=NARROW, teacher=NARROW)


@pytest.mark.parametrize("distance", ["mse", "normalised_mse"])
def test_by_hand(make_outputs: Callable[..., Any], distance: Any) -> None:
    """Two valid points of two channels, an object in the second, padding in the third.

    With l = ln(3) / 2 the teacher's only feature that is not 0 is 2 l, of the second point in the second channel: mean
    sizes 0 and l of points and of channels alike, over T = 1/2 that is 0 and ln 3, attention 2/4 and 6/4. The student
    is off by 1 in the first point and channel, by 2 in the second: object 6/4 * (6/4 * 4) / 2 = 4.5, background
    2/4 * (2/4 * 1) / 2 = 1/8, relation (without a context yet) (1 + 4) / 4. The student's mean sizes are 1/2 and l + 1,
    its attention 2 a and 2 - 2 a with a = e / (e + 3 e^2): attention 1/2 - 2 a for the points, the same for channels.
    Weights are 0.4, 0.2, 0.8, 2. The teacher's variance is (2 l)^2 / 4 - (l / 2)^2 = 3 l^2 / 4.
    """
    l = math.log(3) / 2  # noqa: E741
    valid = torch.tensor([[[True, True, False]]])
    taught = torch.tensor([[0.0, 0.0, 50.0], [0.0, 2 * l, -50.0]]).view(1, 2, 1, 3)
    own = taught + torch.tensor([[1.0, 0.0, 9.0], [0.0, 2.0, 9.0]]).view(1, 2, 1, 3)
    rest = {"grid": [(1, 3)], "strides": [8], "logits_NLK": torch.zeros(1, 3, 2), "boxes_NL4": torch.zeros(1, 3, 4)}
    student = make_outputs(**rest, features=[own], valid=[valid])
    teacher = make_outputs(**rest, features=[taught], valid=[valid])
    one = replace(NARROW, strides=(8,), channels=2)
    targets = [{"boxes": torch.tensor([[9.0, 1.0, 15.0, 7.0]]), "labels": torch.tensor([0])}]
    result = FgdDistiller(FgdSpec(distance=distance), student=one, teacher=one)(student, teacher, targets)
    a = math.e / (math.e + 3 * math.e**2)
    scale = 1 if distance == "mse" else 1 / (0.75 * l**2)
    expected = [0.4 * 4.5 * scale, 0.2 / 8 * scale, 0.8 * 2 * (0.5 - 2 * a), 2 * 1.25 * scale]
    assert list(result.terms) == [f"distill/{term}" for term in TERMS]
    assert [term.item() for term in result.terms.values()] == pytest.approx(expected, rel=1e-5)
    assert [result.metrics[f"distill/{term}/p3"].item() for term in TERMS] == pytest.approx(expected, rel=1e-5)


def test_what_points_count() -> None:
    """On 4 x 4 cells of 8 pixels, the last column of padding.

    The large box touches the 3 x 2 cells that are in the image, 1/6 each, but two of its cells belong to a smaller one:
    1/2 each. A box within one cell is that cell, a box that ends where a cell begins does not touch it; a crowd is
    nothing. What is left of the 12 cells is background: 12 - 6 - 1.
    """
    boxes = [[1.0, 1.0, 30.0, 15.0], [9.0, 8.0, 20.0, 16.0], [1.0, 25.0, 3.0, 27.0], [0.0, 0.0, 32.0, 32.0]]
    crowd = torch.tensor([False, False, False, True])
    truth = pad_truth([{"boxes": torch.tensor(boxes), "labels": torch.zeros(4, dtype=torch.long), "iscrowd": crowd}])
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[..., 3] = False
    objects, background = object_scales(truth, valid, 8)
    sixth, fifth = 1 / 6, 1 / 5
    expected = [[sixth, sixth, sixth, 0], [sixth, 0.5, 0.5, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    torch.testing.assert_close(objects[0], torch.tensor(expected))
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [fifth, fifth, fifth, 0], [0, fifth, fifth, 0]]
    torch.testing.assert_close(background[0], torch.tensor(expected))


def test_an_object_counts_once_whatever_its_size(make_scene: Callable[..., Any]) -> None:
    """With the same features everywhere attention is 1, and errors of 3 everywhere weigh 9 for each object and level;
    the background alone weighs 9 too."""
    scene = make_scene(images=1, grid=((8, 8), (4, 4), (2, 2)))
    flat = replace(scene.teacher, features=[torch.ones_like(f) for f in scene.teacher.features])
    off = replace(scene.student, features=[4 * torch.ones_like(f) for f in scene.student.features])
    method = distiller(distance="mse", foreground_weight=1.0, background_weight=1.0, relation_weight=0.0)
    for boxes in ([[2.0, 2, 6, 6]], [[2.0, 2, 50, 30]], [[2.0, 2, 6, 6], [33.0, 33, 62, 62]]):
        targets = [{"boxes": torch.tensor(boxes), "labels": torch.zeros(len(boxes), dtype=torch.long)}]
        result = method(off, flat, targets)
        for level in ("p3", "p4"):
            assert result.metrics[f"distill/foreground/{level}"].item() == pytest.approx(9 * len(boxes))
            assert result.metrics[f"distill/background/{level}"].item() == pytest.approx(9)


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def _attention(feature: list[list[float]], temperature: float) -> tuple[list[float], list[float]]:
    """Of points and of channels; `feature` by channel and valid point."""
    channels, points = len(feature), len(feature[0])
    by_point = [sum(abs(feature[c][p]) for c in range(channels)) / channels / temperature for p in range(points)]
    by_channel = [sum(abs(value) for value in row) / points / temperature for row in feature]
    return [points * share for share in _softmax(by_point)], [channels * share for share in _softmax(by_channel)]


def _in_context(feature: list[list[float]], block: Any) -> Tensor:
    """R(F), channel by point, with the layers as plain matrices."""
    feat_CP = torch.tensor(feature, dtype=torch.float64)
    look_P = [
        sum(w * x for w, x in zip(block.look.weight[0].tolist(), column, strict=True)) for column in feat_CP.T.tolist()
    ]
    context_C = feat_CP @ torch.tensor(_softmax(look_P), dtype=torch.float64)
    inner = block.enter.weight.double() @ context_C + block.enter.bias.double()
    inner = (inner - inner.mean()) / (inner.var(unbiased=False) + block.norm.eps).sqrt()
    inner = (inner * block.norm.weight.double() + block.norm.bias.double()).clamp(min=0)
    return feat_CP + (block.leave.weight.double() @ inner + block.leave.bias.double())[:, None]


def _object_share(boxes: list[list[float]], place: tuple[int, int], valid: Tensor, stride: int) -> float:
    """1 over the points of the smallest box that touches the cell at `place`, 0 if none does."""
    rows, columns = valid.shape

    def touches(box: list[float], y: int, x: int) -> bool:
        over_x = min(box[2], (x + 1) * stride) - max(box[0], x * stride)
        over_y = min(box[3], (y + 1) * stride) - max(box[1], y * stride)
        return over_x > 0 and over_y > 0

    sizes = [
        sum(touches(box, y, x) for y in range(rows) for x in range(columns) if valid[y, x])
        for box in boxes
        if touches(box, *place)
    ]
    return 1 / min(sizes) if sizes else 0.0


@torch.no_grad()
def _reference(scene: Any, method: FgdDistiller, level: int) -> list[float]:
    """Object, background, attention and relation of one level, without weights, over the variance."""
    terms = [0.0, 0.0, 0.0, 0.0]
    fgd, stride = method.fgd, scene.student.strides[level]
    everything = scene.teacher.features[level].movedim(1, 0)[:, scene.student.valid[level]].double()
    variance = float(everything.var(unbiased=False))
    for image, target in enumerate(scene.targets):
        valid = scene.student.valid[level][image]
        own, taught = (side.features[level][image][:, valid].tolist() for side in (scene.student, scene.teacher))
        places = [(int(y), int(x)) for y, x in valid.nonzero()]
        kept = ~target["iscrowd"] if "iscrowd" in target else torch.ones(len(target["labels"]), dtype=torch.bool)
        shares = [_object_share(target["boxes"][kept].tolist(), place, valid, stride) for place in places]
        points, channels = _attention(taught, fgd.temperature)
        own_points, own_channels = _attention(own, fgd.temperature)
        background = shares.count(0.0)
        for p, share in enumerate(shares):
            errors = [channels[c] * (own[c][p] - taught[c][p]) ** 2 for c in range(4)]
            focal = points[p] * sum(errors) / 4 / variance
            terms[0] += share * focal
            terms[1] += focal / background if share == 0 else 0
        missed = sum(abs(a - b) for a, b in zip(points, own_points, strict=True)) / len(places)
        terms[2] += missed + sum(abs(a - b) for a, b in zip(channels, own_channels, strict=True)) / 4
        related = _in_context(own, method.student_context[level]) - _in_context(taught, method.teacher_context[level])
        terms[3] += float(related.square().mean()) / variance
    return [term / len(scene.targets) for term in terms]


@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops(make_scene: Callable[..., Any], seed: int) -> None:
    """With contexts that do add something; with crowds, an image without objects, one with padding."""
    scene = make_scene(seed=seed, grid=GRID)
    method = distiller(
        weight=2.0,
        foreground_weight=0.5,
        background_weight=3.0,
        attention_weight=0.25,
        relation_weight=1.5,
        temperature=0.8,
    )
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    result = method(scene.student, scene.teacher, scene.targets)
    for level, name in enumerate(("p3", "p4", "p5")):
        weights = (1.0, 6.0, 0.5, 3.0)
        expected = [w * term for w, term in zip(weights, _reference(scene, method, level), strict=True)]
        found = [result.metrics[f"distill/{term}/{name}"].item() for term in TERMS]
        assert found == pytest.approx(expected, rel=1e-4)


def test_what_a_box_touches_is_more_than_centres(make_scene: Callable[..., Any]) -> None:
    """An object smaller than a cell of the coarsest level still has a point there."""
    scene = make_scene(images=1, grid=GRID)
    targets = [{"boxes": torch.tensor([[1.0, 1.0, 4.0, 4.0]]), "labels": torch.tensor([0])}]
    result = distiller()(scene.student, scene.teacher, targets)
    assert all(result.metrics[f"distill/foreground/{level}"] > 0 for level in ("p3", "p4", "p5"))
