"""Localisation thresholds as ATSS chooses them: mean + std of each ground truth's candidate IoUs.

The candidates are ATSS's own anchors, one square of side 8 strides per location, whatever the detector's anchors are:
teacher and student then share one threshold, and detectors whose anchors are points have a sensible one. For GFL and
ATSS these are the very numbers that their matcher computes.
"""

from torch import Tensor

from tid_core.detectors.atss_matcher import find_candidates, iou_thresholds
from tid_core.detectors.outputs import DenseOutputs
from tid_core.truth import Truth


def atss_thresholds(outputs: DenseOutputs, truth: Truth, *, topk: int) -> Tensor:
    """The IoU, (N, M), from which a box counts as localised on that ground truth."""
    return iou_thresholds(find_candidates(outputs.centres, outputs.valid, truth, strides=outputs.strides, topk=topk))
