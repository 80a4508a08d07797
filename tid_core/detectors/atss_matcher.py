"""Which anchors learn which ground truth, as ATSS decides it: from the IoUs of the nearest anchors.

Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv 1912.02424, algorithm 1.

Shape suffixes: N images, M ground truths of the fullest image, L locations over all levels, p those of one level, T
candidates of one ground truth over all levels, k those of one level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tid_core.detectors.one_anchor import ANCHOR_STRIDES
from tid_core.truth import Truth, pairwise

TOPK = 9
# A shift of the ground truths, in strides, that decides between locations equally far away: otherwise their order in
# memory, and with it the padding of the batch, would.
TIE_BREAK = (1e-3, 2e-3)
# Pixels that an anchor's centre must be away from every side of the ground truth, as in the public definition.
INSIDE = 0.01


@dataclass(frozen=True)
class Candidates:
    """The anchors nearest to each ground truth, `topk` of each level: squares of eight strides, one per location."""

    iou_NMT: Tensor
    exists_NMT: Tensor
    """False where a level has fewer valid locations than `topk`."""
    location_NMT: Tensor
    """Index among the L locations."""


def find_candidates(
    centres_L2: Tensor, valid: Sequence[Tensor], truth: Truth, *, strides: Sequence[int], topk: int = TOPK
) -> Candidates:
    """
    Args:
        centres_L2: of the locations, level by level, in pixels.
        valid: per level, (N, H, W) bool: locations that may be candidates.
    """
    sizes = [v_NHW[0].numel() for v_NHW in valid]
    parts, start = [], 0
    for centres_p2, v_NHW, stride in zip(torch.split(centres_L2, sizes), valid, strides, strict=True):
        iou_NMk, exists_NMk, place_NMk = _of_level(centres_p2, v_NHW.flatten(1), truth, stride=stride, topk=topk)
        parts.append((iou_NMk, exists_NMk, place_NMk + start))
        start += len(centres_p2)
    return Candidates(*(torch.cat(column, dim=2) for column in zip(*parts, strict=True)))


def _of_level(
    centres_p2: Tensor, valid_Np: Tensor, truth: Truth, *, stride: int, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    nudge_2 = centres_p2.new_tensor(TIE_BREAK) * stride
    middle_NM2 = (truth.boxes_NM4[..., :2] + truth.boxes_NM4[..., 2:]) / 2 - nudge_2
    away_NMp = (middle_NM2[..., :1] - centres_p2[:, 0]).square() + (middle_NM2[..., 1:] - centres_p2[:, 1]).square()
    away_NMp = away_NMp.masked_fill(~valid_Np[:, None], torch.inf)
    nearest = away_NMp.topk(min(topk, away_NMp.shape[2]), dim=2, largest=False)
    half = ANCHOR_STRIDES * stride / 2
    centres_NMk2 = centres_p2[nearest.indices]
    anchors_NMk4 = torch.cat([centres_NMk2 - half, centres_NMk2 + half], dim=-1)
    iou_NMk, _ = pairwise(anchors_NMk4, truth.boxes_NM4[:, :, None])
    return iou_NMk, nearest.values.isfinite(), nearest.indices


def iou_thresholds(candidates: Candidates) -> Tensor:
    """Mean + standard deviation of each ground truth's candidate IoUs, (N, M)."""
    iou_NMT, exists_NMT = candidates.iou_NMT, candidates.exists_NMT
    count_NM = exists_NMT.sum(2).clamp(min=1)
    mean_NM = (iou_NMT * exists_NMT).sum(2) / count_NM
    spread_NM = ((iou_NMT - mean_NM[..., None]).square() * exists_NMT).sum(2)
    return mean_NM + (spread_NM / (count_NM - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def assign(
    centres_L2: Tensor, valid: Sequence[Tensor], truth: Truth, *, strides: Sequence[int], topk: int = TOPK
) -> Tensor:
    """The ground truth that each location learns, (N, L); -1 = none.

    A candidate learns a ground truth whose threshold its IoU reaches and inside of which its centre lies; of several
    that with the highest IoU, the first of equals. Arguments as in `find_candidates`.
    """
    found = find_candidates(centres_L2, valid, truth, strides=strides, topk=topk)
    centres_NMT2 = centres_L2[found.location_NMT]
    corners_NM14 = truth.boxes_NM4[:, :, None]
    margins_NMT4 = torch.cat([centres_NMT2 - corners_NM14[..., :2], corners_NM14[..., 2:] - centres_NMT2], dim=-1)
    positive_NMT = (found.iou_NMT >= iou_thresholds(found)[..., None]) & (margins_NMT4.amin(dim=-1) > INSIDE)
    positive_NMT &= found.exists_NMT & truth.real_NM[..., None]
    return _best_truth(found, positive_NMT, num_locations=len(centres_L2))


def _best_truth(found: Candidates, positive_NMT: Tensor, *, num_locations: int) -> Tensor:
    """Let each location choose, among the ground truths that chose it, by the IoU, then by their order."""
    num_images, num_truths, _ = positive_NMT.shape
    location_NX = found.location_NMT.flatten(1)
    iou_NX = found.iou_NMT.masked_fill(~positive_NMT, -1.0).flatten(1)
    best_NL = iou_NX.new_full((num_images, num_locations), -1.0)
    best_NL = best_NL.scatter_reduce(1, location_NX, iou_NX, "amax")
    wins_NX = positive_NMT.flatten(1) & (iou_NX == best_NL.gather(1, location_NX))
    order_M1 = torch.arange(num_truths, device=location_NX.device)[:, None]
    order_NX = order_M1.expand_as(positive_NMT).flatten(1).masked_fill(~wins_NX, num_truths)
    first_NL = order_NX.new_full((num_images, num_locations), num_truths)
    first_NL = first_NL.scatter_reduce(1, location_NX, order_NX, "amin")
    return first_NL.masked_fill(first_NL == num_truths, -1)
