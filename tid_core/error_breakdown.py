"""What keeps a detector from a better AP50: each error given one kind, and what mending all of a kind would gain.

Source: Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
arXiv 2008.08115: its thresholds, its kinds in the order in which the authors' code tries them, and its oracles.

A detection that is no true positive at IoU .5, as COCO matches them, is an error of
  localisation    its best IoU with a box of its class is at least .1, but below .5
  classification  it lies on a box of another class, with an IoU of at least .5
  duplicate       it lies on a box of its class that a detection with a higher score has found
  background      its IoU with every box is below .1
  both            what is left: beside a box of another class
and a box that was neither found nor is the best of an error of localisation or classification is
  missed
Crowds are no boxes here: what lies on one of its class is neither right nor wrong.

To mend a kind: of the errors of localisation or classification that mean the same box, the one with the highest score
becomes right unless the box was found already, and the rest goes away; duplicates, background and both go away; missed
boxes are not asked for, and a class with nothing else to find counts as 1 if nothing was detected as it, else as 0.

Shape suffixes: D detections, sorted by image and falling score; B ground-truth boxes; P pairs of both that overlap;
K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tid_core.error_kinds import ERROR_KINDS
from tid_core.evaluation import GroundTruth, detection_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KINDS = tuple(ERROR_KINDS)
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(5)
NO_ERROR = -1
FOUND, TOUCHED = 0.5, 0.1
"""IoU from which a detection finds a box, and from which it has to do with it."""
PAIRS_AT_ONCE = 2**20
"""Compared in one go, which bounds memory."""
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ErrorKind:
    """All errors of one kind."""

    count: int
    dap50: float | None
    """AP50 with them mended, minus AP50; 0..1. None where nothing in the ground truth could have been found."""


@dataclass(frozen=True)
class _Pairs:
    """Detections and boxes of one image with an IoU of at least TOUCHED; by detection."""

    det_P: Ints
    box_P: Ints
    iou_P: Floats
    own_P: Bools
    """Whether the box is of the detection's class."""

    def only(self, wanted_P: Bools) -> "_Pairs":
        return _Pairs(self.det_P[wanted_P], self.box_P[wanted_P], self.iou_P[wanted_P], self.own_P[wanted_P])

    def best(self, num_detections: int) -> tuple[Floats, Ints]:
        """Each detection's largest IoU and the box it has it with; 0 and -1 without one."""
        iou_D, box_D = np.zeros(num_detections), np.full(num_detections, -1)
        order_P = np.lexsort((-self.iou_P, self.det_P))
        found, first = np.unique(self.det_P[order_P], return_index=True)
        iou_D[found], box_D[found] = self.iou_P[order_P][first], self.box_P[order_P][first]
        return iou_D, box_D


@dataclass(frozen=True)
class _Verdicts:
    label_D: Ints
    score_D: Floats
    right_D: Bools
    counted_D: Bools
    """False on a crowd."""
    kind_D: Ints
    target_D: Ints
    """The box that an error of classification or localisation means, -1 for others."""
    found_B: Bools
    missed_B: Bools


def error_breakdown(
    detections: Sequence[Mapping[str, Tensor]], truth: GroundTruth, max_detections: int
) -> dict[str, ErrorKind]:
    """Kind to its errors, in the order of KINDS.

    Args:
        detections: as of `tid_core.evaluation.evaluate`; of each image the `max_detections` best scores count.
    """
    verdicts = _judge(detections, truth, max_detections)
    wanted_K = np.bincount(truth.label_B[truth.crowd_B == 0], minlength=len(truth.classes))
    before = _ap50(verdicts, wanted_K)
    kinds = {}
    for number, name in enumerate(KINDS):
        errors = verdicts.missed_B if name == "missed" else verdicts.kind_D == number
        after = _ap50_without(number, verdicts, truth, wanted_K)
        # Both are means of floats: what is no gain may come out as -1e-17.
        gain = None if before is None or after is None else max(after - before, 0.0)
        kinds[name] = ErrorKind(int(errors.sum()), gain)
    return kinds


def _judge(detections: Sequence[Mapping[str, Tensor]], truth: GroundTruth, max_detections: int) -> _Verdicts:
    rows_D7 = detection_rows(detections, max_detections)
    rows_D7 = rows_D7[np.lexsort((-rows_D7[:, 5], rows_D7[:, 0]))]
    pairs = _overlaps(rows_D7, truth)
    is_crowd_P = truth.crowd_B[pairs.box_P] > 0
    on_crowd = pairs.det_P[is_crowd_P & pairs.own_P & (pairs.iou_P >= FOUND)]
    pairs = pairs.only(~is_crowd_P)
    right_D, found_B = _matched(pairs.only(pairs.own_P & (pairs.iou_P >= FOUND)), len(rows_D7), len(truth.label_B))
    counted_D = np.ones(len(rows_D7), dtype=bool)
    counted_D[on_crowd] = False
    counted_D |= right_D
    kind_D, target_D = _kinds(pairs, counted_D & ~right_D)
    missed_B = (truth.crowd_B == 0) & ~found_B
    missed_B[target_D[target_D >= 0]] = False
    label_D = rows_D7[:, 6].astype(np.int64)
    return _Verdicts(label_D, rows_D7[:, 5], right_D, counted_D, kind_D, target_D, found_B, missed_B)


def _kinds(pairs: _Pairs, wrong_D: Bools) -> tuple[Ints, Ints]:
    own_iou_D, own_box_D = pairs.only(pairs.own_P).best(len(wrong_D))
    other_iou_D, other_box_D = pairs.only(~pairs.own_P).best(len(wrong_D))
    conditions = {
        NO_ERROR: ~wrong_D,
        LOCALISATION: (own_iou_D >= TOUCHED) & (own_iou_D < FOUND),
        CLASSIFICATION: other_iou_D >= FOUND,
        DUPLICATE: own_iou_D >= FOUND,
        BACKGROUND: np.maximum(own_iou_D, other_iou_D) < TOUCHED,
    }
    kind_D = np.select(list(conditions.values()), list(conditions), default=BOTH).astype(np.int64)
    targets = [own_box_D, other_box_D]
    target_D = np.select([kind_D == LOCALISATION, kind_D == CLASSIFICATION], targets, default=-1).astype(np.int64)
    return kind_D, target_D


def _overlaps(rows_D7: Floats, truth: GroundTruth) -> _Pairs:
    order_B = np.argsort(truth.image_B, kind="stable")
    first_D, last_D = (np.searchsorted(truth.image_B[order_B], rows_D7[:, 0], side) for side in ("left", "right"))
    count_D = last_D - first_D
    ends_D = np.cumsum(count_D)
    parts, start = [_pairs_of(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), rows_D7, truth)], 0
    while start < len(rows_D7):
        limit = (ends_D[start - 1] if start else 0) + PAIRS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(ends_D, limit, "right")))
        det_P = np.repeat(np.arange(start, stop), count_D[start:stop])
        begins_D = ends_D[start:stop] - count_D[start:stop]
        offset_P = np.arange(begins_D[0], ends_D[stop - 1]) - np.repeat(begins_D, count_D[start:stop])
        parts.append(_pairs_of(det_P, order_B[first_D[det_P] + offset_P], rows_D7, truth))
        start = stop
    columns = ("det_P", "box_P", "iou_P", "own_P")
    return _Pairs(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def _pairs_of(det_P: Ints, box_P: Ints, rows_D7: Floats, truth: GroundTruth) -> _Pairs:
    """Those of these pairs that overlap. With a crowd, what counts is the part of the detection that lies on it."""
    a_P4, b_P4 = rows_D7[det_P, 1:5], truth.xywh_B4[box_P]
    low_P2 = np.maximum(a_P4[:, :2], b_P4[:, :2])
    high_P2 = np.minimum(a_P4[:, :2] + a_P4[:, 2:], b_P4[:, :2] + b_P4[:, 2:])
    shared_P = np.clip(high_P2 - low_P2, 0, None).prod(1)
    area_P = a_P4[:, 2:].prod(1)
    union_P = np.where(truth.crowd_B[box_P] > 0, area_P, area_P + b_P4[:, 2:].prod(1) - shared_P)
    iou_P = np.divide(shared_P, union_P, out=np.zeros_like(shared_P), where=union_P > 0)
    own_P = rows_D7[det_P, 6] == truth.label_B[box_P]
    return _Pairs(det_P, box_P, iou_P, own_P).only(iou_P >= TOUCHED)


def _matched(pairs: _Pairs, num_detections: int, num_boxes: int) -> tuple[Bools, Bools]:
    """COCO's matching: by falling score, each detection takes the best of the boxes that are left; the later of
    equals. Which detections are right, and which boxes found."""
    right_D, found_B = [False] * num_detections, [False] * num_boxes
    order_P = np.lexsort((-pairs.box_P, -pairs.iou_P, pairs.det_P))
    for det, box in zip(pairs.det_P[order_P].tolist(), pairs.box_P[order_P].tolist(), strict=True):
        if not right_D[det] and not found_B[box]:
            right_D[det] = found_B[box] = True
    return np.array(right_D, dtype=bool), np.array(found_B, dtype=bool)


def _ap50_without(kind: int, verdicts: _Verdicts, truth: GroundTruth, wanted_K: Ints) -> float | None:
    """AP50 with the errors of `kind` mended."""
    if KINDS[kind] == "missed":
        missed_K = np.bincount(truth.label_B[verdicts.missed_B], minlength=len(wanted_K))
        return _ap50(verdicts, wanted_K, missed_K)
    errors = np.flatnonzero(verdicts.kind_D == kind)
    label_D, right_D, counted_D = verdicts.label_D.copy(), verdicts.right_D.copy(), verdicts.counted_D.copy()
    counted_D[errors] = False
    if kind in (CLASSIFICATION, LOCALISATION):
        errors = errors[~verdicts.found_B[verdicts.target_D[errors]]]
        # The first of those that mean a box has the highest score: they are of one image.
        boxes, first = np.unique(verdicts.target_D[errors], return_index=True)
        winners = errors[first]
        counted_D[winners] = right_D[winners] = True
        label_D[winners] = truth.label_B[boxes]
    return _ap50(replace(verdicts, label_D=label_D, right_D=right_D, counted_D=counted_D), wanted_K)


def _ap50(verdicts: _Verdicts, wanted_K: Ints, forgiven_K: Ints | None = None) -> float | None:
    """COCO's AP at IoU .5 over the classes that have boxes; `forgiven_K` of them are not asked for."""
    left_K = wanted_K if forgiven_K is None else wanted_K - forgiven_K
    order_D = np.lexsort((-verdicts.score_D, verdicts.label_D))
    order_D = order_D[verdicts.counted_D[order_D]]
    bounds_K = np.searchsorted(verdicts.label_D[order_D], np.arange(len(wanted_K) + 1))
    right_D = verdicts.right_D[order_D]
    values = [_ap_of_class(right_D[bounds_K[k] : bounds_K[k + 1]], left_K[k]) for k in np.flatnonzero(wanted_K)]
    return sum(values) / len(values) if values else None


def _ap_of_class(right_N: Bools, left: int) -> float:
    """Mean precision over 101 recalls of detections by falling score, where `left` boxes are to be found."""
    if left == 0:
        return float(len(right_N) == 0)
    found_N = np.cumsum(right_N)
    precision_N = found_N / np.arange(1, len(right_N) + 1)
    falling_N = np.append(np.maximum.accumulate(precision_N[::-1])[::-1], 0.0)
    return float(falling_N[np.searchsorted(found_N / left, RECALLS, "left")].mean())
