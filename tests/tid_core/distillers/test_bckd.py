"""Binary class and box distillation: by hand, and against plain loops on the outputs of real pairs of each family."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tid_core.distillers.real_batch import DATA, Batch, build_batch, build_method, build_pair, leaves
from tests.tid_core.distillers.test_tid_reference import _overlap
from tid_core.detectors.atss_matcher import assign
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.one_anchor import BINS
from tid_core.distillers.answers import MIN_SIDE
from tid_core.distillers.bckd import BckdDistiller
from tid_core.methods import BckdSpec
from tid_core.truth import pad_truth

WHOLE = [-32.0, -32.0, 32.0, 32.0]


@pytest.fixture(scope="module")
def pair() -> Any:
    return build_pair()


@pytest.mark.parametrize(
    ("settings", "box"),
    [({}, 4 * 0.25 * 0.75), ({"box_points": "teacher"}, 4 * 0.75 * 0.75), ({"divisor": "teacher"}, 4 * 0.25 * 0.75)],
    ids=str,
)
def test_by_hand(
    pair: tuple[DenseDetector, DenseDetector], make_outputs: Callable[..., Any], settings: dict[str, Any], box: float
) -> None:
    """One location, which is the one positive; the sum of the teacher's top scores, .75, is raised to 1 as well.

    Of the two classes the teacher says .75 and .5, the student .5 and .5: |p_T - p_S| BCE = .25 log 2, and 0. Even
    distributions over 0, 1, .. 16 strides reach 8 strides, 64 pixels: a box of 128 pixels around the teacher's of 64,
    whose IoU and GIoU are 1/4. It weighs .25, or by the teacher's score .75.
    """
    rest = {"grid": [(1, 1)], "strides": [8], "features": [torch.zeros(1, 1, 1, 1)]}
    box_114 = torch.tensor([[WHOLE]])
    sides = []
    for logit in (0.0, math.log(3)):
        outputs = make_outputs(**rest, logits_NLK=torch.tensor([[[logit, 0.0]]]), boxes_NL4=box_114)
        codes = {"bbox_regression": torch.zeros(1, 1, 4 * BINS)}
        sides.append(replace(outputs, anchors_L4=box_114[0], head_outputs=codes))
    target = {"boxes": box_114[0], "labels": torch.tensor([1])}
    terms = build_method(pair, "bckd", **settings)(sides[0], sides[1], [target]).terms
    expected = {"distill/class": 0.25 * math.log(2), "distill/box": box}
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def pair_of(family: str) -> tuple[DenseDetector, DenseDetector]:
    torch.manual_seed(0)
    student = build_detector(f"{family}_conv5_tiny", num_classes=3, data=DATA).train()
    return student, build_detector(f"{family}_conv10_small", num_classes=3, data=DATA).eval().requires_grad_(False)


def slow_terms(batch: Batch, student: DenseDetector, bckd: BckdSpec) -> dict[str, float]:
    """Sums over one anchor at a time."""
    outputs = batch.student
    truth = pad_truth(batch.targets)
    positives = int((assign(outputs.centres, outputs.valid, truth, strides=outputs.strides) >= 0).sum())
    boxes = student.decode(outputs.head_outputs["bbox_regression"], outputs.anchors_L4).double()
    classes = boxes_sum = scores = 0.0
    valid = outputs.all_valid.repeat_interleave(outputs.num_anchors, dim=1)
    for image, place in valid.nonzero().tolist():
        goal, found = (side.logits_NLK[image, place].double().sigmoid().tolist() for side in (batch.teacher, outputs))
        apart = [abs(t - s) for t, s in zip(goal, found, strict=True)]
        for a, t, s in zip(apart, goal, found, strict=True):
            classes += a**bckd.beta * -(t * math.log(s) + (1 - t) * math.log(1 - s))
        boxes_here = boxes[image, place].tolist(), batch.teacher.boxes_NL4[image, place].tolist()
        weight = max(apart) if bckd.box_points == "difference" else max(goal)
        if min(boxes_here[1][2] - boxes_here[1][0], boxes_here[1][3] - boxes_here[1][1]) > MIN_SIDE:
            boxes_sum += weight * (1 - _overlap(*boxes_here, "giou")[1])
        scores += max(goal)
    count = positives if bckd.divisor == "positives" else scores
    assert positives > 1
    return {
        "distill/class": bckd.weight * bckd.class_weight * classes / count,
        "distill/box": bckd.weight * bckd.box_weight * boxes_sum / count,
    }


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gfl", {}),
        ("fcos", {"divisor": "teacher", "beta": 2.0, "weight": 0.5}),
        ("retinanet", {"box_points": "teacher", "box_weight": 1.0}),
        ("atss", {"class_weight": 3.0}),
    ],
)
def test_one_anchor_at_a_time(family: str, settings: dict[str, Any]) -> None:
    pair = pair_of(family)
    batch = build_batch(pair)
    result = build_method(pair, "bckd", **settings)(batch.student, batch.teacher, batch.targets)
    expected = slow_terms(batch, pair[0], BckdSpec(**settings))
    assert {name: float(term) for name, term in result.terms.items()} == pytest.approx(expected, rel=1e-4)
    for name, term in result.terms.items():
        assert float(sum(result.metrics[f"{name}/p{level}"] for level in (3, 4, 5))) == pytest.approx(float(term))


def test_which_gradient_flows(pair: Any) -> None:
    """The classes train the class logits, the boxes the sides: what weighs a box is not trained by it.

    Through |p_T - p_S| a class is pulled to the teacher's probability, also where its cross entropy is flat.
    """
    batch, found = build_batch(pair), {}
    for through in (True, False):
        student = leaves(batch.student)
        result = build_method(pair, "bckd", through_weight=through)(student, batch.teacher, batch.targets)
        heads = list(student.head_outputs.values())
        names = list(student.head_outputs)
        for term in ("distill/class", "distill/box"):
            grads = torch.autograd.grad(result.terms[term], heads, allow_unused=True, retain_graph=True)
            reached = {n for n, g in zip(names, grads, strict=True) if g is not None and bool(g.any())}
            assert reached == {{"distill/class": "cls_logits", "distill/box": "bbox_regression"}[term]}
        found[through] = torch.autograd.grad(result.terms["distill/class"], student.logits_NLK)[0]
    goal, score = batch.teacher.logits_NLK.sigmoid(), batch.student.logits_NLK.sigmoid()
    same_sign = found[True] * (score - goal) >= 0
    assert bool(same_sign.all())
    assert float(found[True].abs().sum()) > 1.2 * float(found[False].abs().sum())


def test_other_anchors_are_refused() -> None:
    student = build_detector("fcos_conv5_tiny", num_classes=3, data=DATA)
    teacher = build_detector("retinanet_conv5_tiny", num_classes=3, data=DATA)
    with pytest.raises(ValueError, match="fcos_conv5_tiny has 1 at each location and retinanet_conv5_tiny 9"):
        BckdDistiller(BckdSpec(), student=student, teacher=teacher)
