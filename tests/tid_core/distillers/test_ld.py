"""Localisation distillation: by hand, and against plain loops on the outputs of a real pair."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tid_core.distillers.real_batch import Batch, build_batch, build_method, build_pair
from tests.tid_core.distillers.test_tid_reference import _atss, _overlap
from tid_core.catalogue import DETECTORS
from tid_core.detectors.atss_matcher import assign
from tid_core.detectors.one_anchor import BINS
from tid_core.distillers.ld import LdDistiller
from tid_core.methods import LdSpec
from tid_core.truth import pad_truth

TINY = replace(DETECTORS["gfl_conv5_tiny"], strides=(8,))
WHOLE = torch.tensor([[-32.0, -32.0, 32.0, 32.0]])


def by_hand(make_outputs: Callable[..., Any], width: int) -> dict[str, float]:
    """A row of anchors of 64 pixels, the first of which is the object itself; there the two heads differ."""
    sides = []
    for is_teacher in (False, True):
        codes, logits = torch.zeros(1, width, 4 * BINS), torch.zeros(1, width, 2)
        if is_teacher:
            codes[0, 0, 0] = 10 * math.log(16)
            logits[0, 0, 0] = 2 * math.log(3)
        rest = {"features": [torch.zeros(1, 1, 1, width)], "boxes_NL4": torch.zeros(1, width, 4)}
        outputs = make_outputs(grid=[(1, width)], strides=[8], logits_NLK=logits, **rest)
        centre = (outputs.anchors_L4[:, :2] + outputs.anchors_L4[:, 2:]) / 2
        anchors = torch.cat([centre - 32, centre + 32], dim=1)
        sides.append(replace(outputs, anchors_L4=anchors, head_outputs={"bbox_regression": codes}))
    distiller = LdDistiller(LdSpec(), student=TINY, teacher=TINY)
    result = distiller(sides[0], sides[1], [{"boxes": WHOLE, "labels": torch.tensor([1])}])
    return {name: float(term) for name, term in result.terms.items()}


def test_a_positive_by_hand(make_outputs: Callable[..., Any]) -> None:
    """One location: its IoU is 1, the mean is 1 and there is no deviation, so it is positive.

    Of the left side the teacher says, at temperature 10, 16/32 for the first of 17 bins and 1/32 for each other, the
    student 1/17: KL = log 17 - log(2) / 2 - log(32) / 2 = log(17/8); the other three sides agree. Times 10^2 / 4 * .25.
    Of class 0 the teacher says, at temperature 2, 3/4, the student 1/2: KL = 3/4 log(3/2) + 1/4 log(1/2); of the
    other class they agree. Times 2^2 * .125.
    """
    expected = {
        "distill/box": 6.25 * math.log(17 / 8),
        "distill/valuable": 0.0,
        "distill/class": 0.5 * (0.75 * math.log(1.5) - 0.25 * math.log(2)),
    }
    assert by_hand(make_outputs, 1) == pytest.approx(expected, rel=1e-5)


def test_the_valuable_region_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Two locations with IoUs of 1 and 56 / 72 = 7/9: mean 8/9 and deviation sqrt(2) / 9 make a threshold above 1.

    So neither is positive, and both lie in the valuable region, where the first weighs 1 of 1 + 7/9 = 16/9.
    """
    expected = {"distill/box": 0.0, "distill/valuable": 6.25 * math.log(17 / 8) * 9 / 16, "distill/class": 0.0}
    assert by_hand(make_outputs, 2) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def pair() -> Any:
    return build_pair()


@pytest.fixture(scope="module")
def batch(pair: Any) -> Batch:
    return build_batch(pair)


def divergence(goal: list[float], found: list[float], temperature: float) -> float:
    """KL of two distributions given by logits."""
    parts = [[math.exp(z / temperature) for z in logits] for logits in (goal, found)]
    p, q = ([e / sum(part) for e in part] for part in parts)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def valuable_iou(batch: Batch, image: int, place: int, lowest: float) -> float:
    target, best = batch.targets[image], 0.0
    anchor = batch.student.anchors_L4[place].tolist()
    for index, box in enumerate(target["boxes"].tolist()):
        if "iscrowd" in target and target["iscrowd"][index]:
            continue
        threshold = _atss(batch.student, image, box, 9)
        if lowest * threshold <= _overlap(anchor, box, "diou")[1] < threshold:
            best = max(best, _overlap(anchor, box, "iou")[0])
    return best


def slow_terms(batch: Batch, ld: LdSpec) -> dict[str, float]:
    """Sums over one location at a time."""
    student, teacher = batch.student, batch.teacher
    truth = pad_truth(batch.targets)
    positive = assign(student.centres, student.valid, truth, strides=student.strides) >= 0
    sums, weights = dict.fromkeys(("box", "valuable", "class"), 0.0), dict.fromkeys(("box", "valuable", "class"), 0.0)
    for image, place in student.all_valid.nonzero().tolist():
        codes = [side.head_outputs["bbox_regression"][image, place].view(4, BINS) for side in (teacher, student)]
        logits = [side.logits_NLK[image, place].tolist() for side in (teacher, student)]
        sides = sum(divergence(*(c[s].tolist() for c in codes), ld.temperature) for s in range(4)) / 4
        if not positive[image, place]:
            weight = valuable_iou(batch, image, place, ld.valuable_from)
            sums["valuable"] += weight * sides
            weights["valuable"] += weight
            continue
        judge = logits[0 if ld.quality == "teacher" else 1]
        weight = 1 / (1 + math.exp(-max(judge)))
        sums["box"] += weight * sides
        weights["box"] += weight
        if ld.class_form == "softmax":
            classes = divergence(*logits, ld.class_temperature)
        else:
            classes = sum(divergence([t, 0.0], [s, 0.0], ld.class_temperature) for t, s in zip(*logits, strict=True))
        sums["class"] += classes
        weights["class"] += 1
    factors = {"box": ld.box_weight, "valuable": ld.valuable_weight, "class": ld.class_weight}
    return {f"distill/{name}": ld.weight * factors[name] * sums[name] / weights[name] for name in sums}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quality": "student", "temperature": 3.0, "box_weight": 1.0, "weight": 2.0},
        {"class_form": "softmax", "class_temperature": 1.0, "class_weight": 1.0},
        {"valuable_from": 0.5, "valuable_weight": 1.0, "class_temperature": 4.0},
    ],
    ids=str,
)
def test_one_location_at_a_time(pair: Any, batch: Batch, settings: dict[str, Any]) -> None:
    result = build_method(pair, "ld", **settings)(batch.student, batch.teacher, batch.targets)
    expected = slow_terms(batch, LdSpec(**settings))
    assert {name: float(term) for name, term in result.terms.items()} == pytest.approx(expected, rel=2e-4)
    assert all(value > 0.01 for value in expected.values())
    for name, term in result.terms.items():
        assert float(sum(result.metrics[f"{name}/p{level}"] for level in (3, 4, 5))) == pytest.approx(float(term))


def test_without_the_valuable_region(pair: Any, batch: Batch) -> None:
    result = build_method(pair, "ld", valuable_weight=0.0)(batch.student, batch.teacher, batch.targets)
    assert set(result.terms) == {"distill/box", "distill/class"}


def test_heads_without_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match="which fcos_conv5_tiny does not predict; choose two detectors of the family"):
        LdDistiller(LdSpec(), student=DETECTORS["fcos_conv5_tiny"], teacher=DETECTORS["gfl_conv5_tiny"])
