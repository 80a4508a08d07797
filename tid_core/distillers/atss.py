"""Localisation thresholds as ATSS chooses them: mean + std of each ground truth's candidate IoUs.

Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv 1912.02424, algorithm 1.
The candidates are ATSS's own anchors, one square of side 8 strides per location, whatever the detector's anchors are:
teacher and student then share one threshold, and detectors whose anchors are points have a sensible one.
"""

import torch
from torch import Tensor

from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.truth import Truth, pairwise

ANCHOR_STRIDES = 8
# A shift of the ground truths, in strides, that decides between locations equally far away: otherwise their order in
# memory, and with it the padding of the batch, would.
TIE_BREAK = (1e-3, 2e-3)


def atss_thresholds(outputs: DenseOutputs, truth: Truth, *, topk: int) -> Tensor:
    """The IoU, (N, M), from which a box counts as localised on that ground truth."""
    locations_P4 = outputs.anchors_L4[:: outputs.num_anchors]
    centres_P2 = (locations_P4[:, :2] + locations_P4[:, 2:]) / 2
    ious, found = [], []
    sizes = [h * w for h, w in outputs.grid]
    for centres_p2, valid, stride in zip(torch.split(centres_P2, sizes), outputs.valid, outputs.strides, strict=True):
        iou_NMk, found_NMk = _candidates(centres_p2, valid.flatten(1), truth, stride=stride, topk=topk)
        ious.append(iou_NMk)
        found.append(found_NMk)
    iou_NMK, found_NMK = torch.cat(ious, dim=2), torch.cat(found, dim=2)
    count_NM = found_NMK.sum(2).clamp(min=1)
    mean_NM = (iou_NMK * found_NMK).sum(2) / count_NM
    spread_NM = ((iou_NMK - mean_NM[..., None]).square() * found_NMK).sum(2)
    return mean_NM + (spread_NM / (count_NM - 1).clamp(min=1)).sqrt()


def _candidates(centres_p2: Tensor, valid_Np: Tensor, truth: Truth, *, stride: int, topk: int) -> tuple[Tensor, Tensor]:
    """IoUs of the `topk` nearest anchors of one level with each ground truth, and which of them exist."""
    nudge_2 = centres_p2.new_tensor(TIE_BREAK) * stride
    middle_NM2 = (truth.boxes_NM4[..., :2] + truth.boxes_NM4[..., 2:]) / 2 - nudge_2
    away_NMp = (middle_NM2[:, :, None] - centres_p2).square().sum(-1)
    away_NMp = away_NMp.masked_fill(~valid_Np[:, None], torch.inf)
    nearest = away_NMp.topk(min(topk, away_NMp.shape[2]), dim=2, largest=False)
    half = ANCHOR_STRIDES * stride / 2
    centres_NMk2 = centres_p2[nearest.indices]
    anchors_NMk4 = torch.cat([centres_NMk2 - half, centres_NMk2 + half], dim=-1)
    iou_NMk, _ = pairwise(anchors_NMk4, truth.boxes_NM4[:, :, None])
    return iou_NMk, nearest.values.isfinite()
