"""VOC's average precision: against a slow transcription of the rules, and against values worked out by hand."""

from typing import Any

import numpy as np
import pytest

from tid_core.voc_metric import VocPrecision, voc_precision

NO_BOXES: dict[str, Any] = {
    "image_B": np.zeros(0, dtype=np.int64),
    "label_B": np.zeros(0, dtype=np.int64),
    "xywh_B4": np.zeros((0, 4)),
    "difficult_B": np.zeros(0, dtype=np.int64),
}


def slow(rows_D7: Any, truth: dict[str, Any], num_classes: int) -> VocPrecision:
    """The devkit's rules in plain loops, in its own coordinates: corners are pixels that belong to the box."""
    eleven: list[float | None] = []
    area: list[float | None] = []
    for label in range(num_classes):
        boxes = [
            {"image": image, "corners": inclusive(xywh), "difficult": bool(difficult), "found": False}
            for image, own, xywh, difficult in zip(*truth.values(), strict=True)
            if own == label
        ]
        wanted = sum(not box["difficult"] for box in boxes)
        verdicts = []
        for row in sorted((row for row in rows_D7.tolist() if row[6] == label), key=lambda row: -row[5]):
            verdict = judge([box for box in boxes if box["image"] == row[0]], inclusive(row[1:5]))
            if verdict is not None:
                verdicts.append(verdict)
        ranks = range(1, len(verdicts) + 1)
        curve = [(sum(verdicts[:n]) / wanted if wanted else 0.0, sum(verdicts[:n]) / n) for n in ranks]
        eleven.append(by_points(curve) if wanted else None)
        area.append(by_area(curve) if wanted else None)
    return VocPrecision(eleven, area)


def inclusive(xywh: Any) -> tuple[float, float, float, float]:
    x, y, w, h = xywh
    return x + 1, y + 1, x + w, y + h


def judge(boxes: list[dict[str, Any]], corners: tuple[float, float, float, float]) -> bool | None:
    best, most = None, -1.0
    for box in boxes:
        a, b = box["corners"], corners
        width = min(a[2], b[2]) - max(a[0], b[0]) + 1
        height = min(a[3], b[3]) - max(a[1], b[1]) + 1
        if width <= 0 or height <= 0:
            continue
        sizes = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
        iou = width * height / (sizes - width * height)
        if iou > most:
            best, most = box, iou
    if best is None or most < 0.5:
        return False
    if best["difficult"]:
        return None
    if best["found"]:
        return False
    best["found"] = True
    return True


def by_points(curve: list[tuple[float, float]]) -> float:
    levels = [max((p for recall, p in curve if recall >= t / 10 - 1e-12), default=0.0) for t in range(11)]
    return sum(levels) / 11


def by_area(curve: list[tuple[float, float]]) -> float:
    total, before = 0.0, 0.0
    for n, (recall, _) in enumerate(curve):
        total += (recall - before) * max(p for _, p in curve[n:])
        before = recall
    return total


def random_case(seed: int) -> tuple[Any, dict[str, Any], int]:
    """Whole-pixel boxes (so that IoUs of exactly 0.5 and equal ones occur), difficult ones, tied scores, strays."""
    random = np.random.default_rng(seed)
    images, num_classes = 6, 3
    count = int(random.integers(0, 40))
    xywh_B4 = np.hstack([random.integers(0, 12, (count, 2)), random.integers(1, 9, (count, 2))]).astype(float)
    truth = {
        "image_B": random.integers(images, size=count),
        "label_B": random.integers(num_classes, size=count),
        "xywh_B4": xywh_B4,
        "difficult_B": (random.random(count) < 0.3).astype(np.int64),
    }
    own = random.integers(count, size=60) if count else np.zeros(0, dtype=np.int64)
    near = np.column_stack(
        [truth["image_B"][own], xywh_B4[own], random.random(len(own)).round(1), truth["label_B"][own]]
    )
    near[:, 1:5] += random.integers(-1, 2, (len(own), 4))
    near[:, 3:5] = near[:, 3:5].clip(1)
    strays = np.column_stack(
        [random.integers(images, size=9), random.integers(1, 9, (9, 4)), random.random(9), random.integers(3, size=9)]
    )
    return np.vstack([near, strays]), truth, num_classes


@pytest.mark.parametrize("seed", range(40))
def test_it_agrees_with_the_rules_in_plain_loops(seed: int) -> None:
    rows_D7, truth, num_classes = random_case(seed)
    fast, reference = voc_precision(rows_D7, **truth, num_classes=num_classes), slow(rows_D7, truth, num_classes)
    for name in ("eleven_points", "area"):
        for a, b in zip(getattr(fast, name), getattr(reference, name), strict=True):
            assert a == (None if b is None else pytest.approx(b, abs=1e-12)), name


def test_a_case_worked_out_by_hand() -> None:
    """Three boxes; by score: right, wrong place, right again, the first one once more.

    Recall 1/3 at precision 1, 2/3 at 2/3, never 1. Eleven points: 0 to .3 see 1, .4 to .6 see 2/3, the rest 0.
    """
    boxes = np.array([[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]], dtype=float)
    rows = [[0, *boxes[0], 0.9, 0], [0, 60, 0, 10, 10, 0.8, 0], [0, *boxes[1], 0.7, 0], [0, *boxes[0], 0.6, 0]]
    zeros = np.zeros(3, dtype=np.int64)
    found = voc_precision(np.array(rows), image_B=zeros, label_B=zeros, xywh_B4=boxes, difficult_B=zeros, num_classes=1)
    assert found.eleven_points == [pytest.approx((4 * 1 + 3 * 2 / 3) / 11)]
    assert found.area == [pytest.approx(1 / 3 + 2 / 3 / 3)]


def test_a_difficult_box_is_neither_missed_nor_a_mistake_to_find_however_often() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 10, 10]], dtype=float)
    truth = {"image_B": np.array([0, 0]), "label_B": np.array([0, 0]), "xywh_B4": boxes}
    rows = np.array([[0, *boxes[1], 0.9, 0], [0, *boxes[1], 0.8, 0], [0, *boxes[0], 0.7, 0]])
    assert voc_precision(rows, **truth, difficult_B=np.array([0, 1]), num_classes=1).area == [1.0]
    assert voc_precision(rows, **truth, difficult_B=np.array([0, 0]), num_classes=1).area == [
        pytest.approx((1 + 2 / 3) / 2)
    ]
    assert voc_precision(rows, **truth, difficult_B=np.array([1, 1]), num_classes=1).area == [None]


def test_an_iou_of_one_half_is_enough() -> None:
    truth = {**NO_BOXES, "image_B": np.array([0]), "label_B": np.array([0]), "difficult_B": np.array([0])}
    truth["xywh_B4"] = np.array([[0.0, 0, 10, 10]])
    for height, expected in ((5.0, 1.0), (4.99, 0.0)):
        rows = np.array([[0, 0, 0, 10, height, 0.5, 0]])
        assert voc_precision(rows, **truth, num_classes=1).eleven_points == [expected]


def test_nothing_found_is_zero_and_nothing_to_find_is_none() -> None:
    truth = {**NO_BOXES, "image_B": np.array([0]), "label_B": np.array([1]), "difficult_B": np.array([0])}
    truth["xywh_B4"] = np.array([[0.0, 0, 10, 10]])
    assert voc_precision(np.zeros((0, 7)), **truth, num_classes=2) == VocPrecision([None, 0.0], [None, 0.0])
    stray = np.array([[0.0, 0, 0, 5, 5, 0.9, 0]])
    assert voc_precision(stray, **NO_BOXES, num_classes=1) == VocPrecision([None], [None])
