"""Where the objects are, on the grid of the features: boxes, bells in boxes, anchors that fit.

Crowds and padding are in no mask. Locations of all levels stand in one dimension; `DenseOutputs.split` cuts it up.

N images, M ground truths of the fullest image, L anchors over all levels, l some of them, A anchors per location, P
locations over all levels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tid_core.detectors.one_anchor import ANCHOR_STRIDES
from tid_core.detectors.outputs import DenseOutputs
from tid_core.truth import PAIRS_AT_ONCE, TINY, Truth, pairwise


@torch.no_grad()
def inside_boxes(outputs: DenseOutputs, truth: Truth) -> Tensor:
    """Which locations have their centre inside which ground truth, (N, M, P) bool."""
    x_P, y_P = outputs.centres.unbind(dim=1)
    x1_NM1, y1_NM1, x2_NM1, y2_NM1 = truth.boxes_NM4[:, :, None].unbind(dim=3)
    inside_NMP = (x_P > x1_NM1) & (x_P < x2_NM1) & (y_P > y1_NM1) & (y_P < y2_NM1)
    return inside_NMP & truth.real_NM[..., None] & outputs.all_valid[:, None]


@torch.no_grad()
def smallest_box(inside_NMP: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """The smallest ground truth around each location, (N, P), the first of equals, and whether there is one at all.

    Args:
        inside_NMP: of `inside_boxes`.
    """
    sides_NM2 = truth.boxes_NM4[..., 2:] - truth.boxes_NM4[..., :2]
    area_NMP = sides_NM2.prod(dim=2)[..., None].expand(inside_NMP.shape).masked_fill(~inside_NMP, torch.inf)
    area_NP, index_NP = area_NMP.min(dim=1)
    return index_NP, area_NP.isfinite()


@torch.no_grad()
def bells(outputs: DenseOutputs, truth: Truth, *, width: float) -> Tensor:
    """A Gaussian in each ground truth, the largest at each location, (N, P), 0 outside of all.

    It is 1 in the middle, and exp(-1 / width^2) in the middle of a side.
    """
    middle_NM12 = (truth.boxes_NM4[:, :, None, :2] + truth.boxes_NM4[:, :, None, 2:]) / 2
    half_NM12 = (truth.boxes_NM4[:, :, None, 2:] - truth.boxes_NM4[:, :, None, :2]) / 2
    away_NMP = ((outputs.centres - middle_NM12) / half_NM12.clamp(min=TINY)).square().sum(dim=3)
    bell_NMP = torch.exp(-away_NMP / width**2).masked_fill(~inside_boxes(outputs, truth), 0.0)
    return bell_NMP.amax(dim=1)


@torch.no_grad()
def near_anchors(outputs: DenseOutputs, truth: Truth, valid_NP: Tensor, *, ratio: float) -> Tensor:
    """Locations with an anchor whose IoU with a ground truth is above `ratio` times that one's best, (N, P) bool.

    Anchors that are points (FCOS) stand for squares of eight strides, as in ATSS.
    """
    anchors_L4 = _grown(outputs)
    parts = [
        best_at_location(pairwise(anchors_L4[some], truth.boxes_NM4[:, :, None])[0], outputs)
        for some in slices(outputs, truth)
    ]
    overlap_NMP = torch.cat(parts, dim=2).masked_fill(~(truth.real_NM[..., None] & valid_NP[:, None]), 0.0)
    return (overlap_NMP > ratio * overlap_NMP.amax(dim=2, keepdim=True)).any(dim=1)


def slices(outputs: DenseOutputs, truth: Truth) -> Iterator[slice]:
    """Anchors of some locations at a time: as many as may be compared with all ground truths at once."""
    pairs = truth.real_NM.numel() * outputs.num_anchors
    step = max(1, PAIRS_AT_ONCE[outputs.anchors_L4.device.type] // pairs) * outputs.num_anchors
    for start in range(0, len(outputs.anchors_L4), step):
        yield slice(start, start + step)


def best_at_location(values_NMl: Tensor, outputs: DenseOutputs) -> Tensor:
    """The largest value among the anchors of each location."""
    return values_NMl.view(*values_NMl.shape[:-1], -1, outputs.num_anchors).amax(dim=-1)


def _grown(outputs: DenseOutputs) -> Tensor:
    """The anchors (L, 4); one that is no larger than its cell becomes a square of eight strides around its centre."""
    strides_V = torch.tensor(outputs.strides, dtype=torch.float32, device=outputs.anchors_L4.device)
    stride_L1 = strides_V[outputs.levels].repeat_interleave(outputs.num_anchors)[:, None]
    corner_L2, other_L2 = torch.split(outputs.anchors_L4, 2, dim=1)
    centre_L2 = (corner_L2 + other_L2) / 2
    half_L1 = stride_L1 * ANCHOR_STRIDES / 2
    is_point_L1 = (other_L2 - corner_L2).amax(dim=1, keepdim=True) <= stride_L1
    square_L4 = torch.cat([centre_L2 - half_L1, centre_L2 + half_L1], dim=1)
    return torch.where(is_point_L1, square_L4, outputs.anchors_L4)
