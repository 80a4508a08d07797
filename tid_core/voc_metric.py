"""PASCAL VOC's average precision at IoU 0.5, by the rules of its devkit.

Per class, the detections of all images are taken by falling score. Each looks for the box of its image and class with
the largest IoU, found before or not; at 0.5 or more it is right the first time that box is found, wrong after that, and
not counted at all where the box is difficult (here: a crowd). Below 0.5 it is wrong. Difficult boxes are never missed.

The devkit's corners are whole pixels that belong to the box, so its widths are xmax - xmin + 1. Read as (xmin - 1,
ymin - 1, xmax, ymax), as tid_core.data.formats.voc does, the same widths are plain differences, and so are ours here.

Shape suffixes: D detections, B ground-truth boxes, P pairs of a detection and a box of its image and class.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_IOU = 0.5


@dataclass(frozen=True)
class VocPrecision:
    """Per class, in 0..1; None for a class without a box that is not difficult."""

    eleven_points: list[float | None]
    """VOC2007: mean of the best precision at recall 0, .1, ... 1 or above."""
    area: list[float | None]
    """From VOC2010 on: area under the precision that is made to fall with recall."""


def voc_precision(
    rows_D7: Floats, *, image_B: Ints, label_B: Ints, xywh_B4: Floats, difficult_B: Ints, num_classes: int
) -> VocPrecision:
    """
    Args:
        rows_D7: image, x, y, width, height, score, label; of equal scores the earlier row comes first.
    """
    rows_D7 = rows_D7[np.lexsort((-rows_D7[:, 5], rows_D7[:, 6]))]
    found_D = _found_boxes(rows_D7, image_B, label_B, xywh_B4, num_classes)
    hidden_B = difficult_B.astype(bool)
    counted_D = ~((found_D >= 0) & hidden_B[found_D]) if len(hidden_B) else np.ones(len(found_D), dtype=bool)
    right_D = _first_of_each(found_D)[counted_D]
    label_D = rows_D7[counted_D, 6]
    eleven: list[float | None] = []
    area: list[float | None] = []
    for label in range(num_classes):
        wanted = int(((label_B == label) & ~hidden_B).sum())
        own = slice(*np.searchsorted(label_D, (label, label + 1)))
        eleven.append(_eleven_points(right_D[own], wanted) if wanted else None)
        area.append(_area(right_D[own], wanted) if wanted else None)
    return VocPrecision(eleven, area)


def _found_boxes(rows_D7: Floats, image_B: Ints, label_B: Ints, xywh_B4: Floats, num_classes: int) -> Ints:
    """(D,) the box that each detection is judged by, -1 where no IoU reaches 0.5."""
    found_D = np.full(len(rows_D7), -1)
    key_B = image_B * num_classes + label_B
    key_D = (rows_D7[:, 0] * num_classes + rows_D7[:, 6]).astype(np.int64)
    order_B = np.argsort(key_B, kind="stable")
    first_D = np.searchsorted(key_B[order_B], key_D, "left")
    count_D = np.searchsorted(key_B[order_B], key_D, "right") - first_D
    paired = np.flatnonzero(count_D)
    if not len(paired):
        return found_D
    counts, starts = count_D[paired], np.cumsum(count_D[paired]) - count_D[paired]
    place_P = np.arange(counts.sum())
    box_P = order_B[place_P + np.repeat(first_D[paired] - starts, counts)]
    iou_P = _iou(rows_D7[np.repeat(paired, counts), 1:5], xywh_B4[box_P])
    best = np.maximum.reduceat(iou_P, starts)
    # Of boxes with the same IoU, the devkit takes the first.
    best_place = np.minimum.reduceat(np.where(iou_P == np.repeat(best, counts), place_P, len(place_P)), starts)
    found_D[paired] = np.where(best >= MIN_IOU, box_P[best_place], -1)
    return found_D


def _iou(a_P4: Floats, b_P4: Floats) -> Floats:
    """(P,) of boxes x, y, width, height; the second ones have a size."""
    low_P2 = np.maximum(a_P4[:, :2], b_P4[:, :2])
    high_P2 = np.minimum(a_P4[:, :2] + a_P4[:, 2:], b_P4[:, :2] + b_P4[:, 2:])
    shared_P = np.clip(high_P2 - low_P2, 0, None).prod(1)
    iou_P: Floats = shared_P / (a_P4[:, 2:].prod(1) + b_P4[:, 2:].prod(1) - shared_P)
    return iou_P


def _first_of_each(found_D: Ints) -> Bools:
    """(D,) whether a detection is the first that found its box."""
    first_D = np.zeros(len(found_D), dtype=bool)
    boxes, places = np.unique(found_D, return_index=True)
    first_D[places[boxes >= 0]] = True
    return first_D


def _falling_precision(right_N: Bools) -> Floats:
    """(N,) the best precision at each rank or any later one."""
    precision_N = np.cumsum(right_N) / np.arange(1, len(right_N) + 1)
    falling_N: Floats = np.maximum.accumulate(precision_N[::-1])[::-1]
    return falling_N


def _eleven_points(right_N: Bools, wanted: int) -> float:
    # Recall >= t / 10 in whole numbers, so that 3 of 10 is .3 whatever the rounding of floats.
    rank_11 = np.searchsorted(np.cumsum(right_N) * 10, np.arange(11) * wanted, "left")
    precision = np.append(_falling_precision(right_N), 0.0)
    return float(precision[rank_11].mean())


def _area(right_N: Bools, wanted: int) -> float:
    return float(_falling_precision(right_N)[right_N].sum() / wanted)
