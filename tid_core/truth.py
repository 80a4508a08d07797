"""Ground truth as one padded tensor, and the overlap of every predicted box with it.

Shape suffixes: N images, M ground truths of the fullest image, L anchors over all levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Overlap = Literal["iou", "giou", "diou"]
Targets = Sequence[Mapping[str, Tensor]]

# An IoU up to this is no overlap at all: argmax over such values would pick a ground truth at random.
NO_OVERLAP = 1e-6
# Pairs of box and ground truth compared at once, which bounds memory. 4 MiB a tensor stays in a CPU's cache; a GPU
# wants few large kernels.
PAIRS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
TINY = 1e-9


@dataclass(frozen=True)
class Truth:
    boxes_NM4: Tensor
    labels_NM: Tensor
    real_NM: Tensor
    """False for padding and for crowd regions, which take part in nothing."""


@dataclass(frozen=True)
class Match:
    """Each predicted box's best ground truth."""

    value_NL: Tensor
    """The overlap with it; -1 or less where the image has no ground truth."""
    index_NL: Tensor
    touches_NL: Tensor
    """Whether their IoU is more than zero."""


def pad_truth(targets: Targets) -> Truth:
    """Stack the targets of a batch; `iscrowd_M`, where present, takes ground truths out."""
    boxes = [t["boxes"].float().reshape(-1, 4) for t in targets]
    labels = [t["labels"] for t in targets]
    real = [~t["iscrowd"].bool() if "iscrowd" in t else torch.ones_like(t["labels"], dtype=torch.bool) for t in targets]
    if max(len(b) for b in boxes) == 0:  # one padded column, so that no reduction is over nothing
        boxes[0], labels[0], real[0] = boxes[0].new_zeros(1, 4), labels[0].new_zeros(1), real[0].new_zeros(1)
    return Truth(*(pad_sequence(parts, batch_first=True) for parts in (boxes, labels, real)))


def match(boxes_NL4: Tensor, truth: Truth, overlap: Overlap) -> Match:
    """Best ground truth of each box by `overlap`; the first of equals."""
    step = max(1, PAIRS_AT_ONCE[boxes_NL4.device.type] // truth.real_NM.numel())
    parts = [_match_some(boxes_Nl4, truth, overlap) for boxes_Nl4 in torch.split(boxes_NL4, step, dim=1)]
    value, index, touches = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return Match(value, index, touches)


def _match_some(boxes_Nl4: Tensor, truth: Truth, overlap: Overlap) -> tuple[Tensor, Tensor, Tensor]:
    iou_NlM, penalty_NlM = pairwise(boxes_Nl4[:, :, None], truth.boxes_NM4[:, None], overlap)
    iou_NlM = iou_NlM.masked_fill(~truth.real_NM[:, None], -1.0)
    value_NlM = iou_NlM if penalty_NlM is None else iou_NlM - penalty_NlM
    value_Nl, index_Nl = value_NlM.max(dim=2)
    best_iou_Nl = value_Nl if penalty_NlM is None else iou_NlM.gather(2, index_Nl[..., None]).squeeze(2)
    return value_Nl, index_Nl, best_iou_Nl > NO_OVERLAP


def pairwise(a_4: Tensor, b_4: Tensor, overlap: Overlap = "iou") -> tuple[Tensor, Tensor | None]:
    """IoU of two broadcastable sets of xyxy boxes, and what `overlap` takes off it (None for plain IoU)."""
    ax1, ay1, ax2, ay2 = a_4.unbind(-1)
    bx1, by1, bx2, by2 = b_4.unbind(-1)
    inner = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    inner = inner * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inner
    iou = inner / union.clamp(min=TINY)
    if overlap == "iou":
        return iou, None
    hull_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    if overlap == "giou":
        hull = hull_w * hull_h
        return iou, (hull - union) / hull.clamp(min=TINY)
    apart = (ax1 + ax2 - bx1 - bx2).square() + (ay1 + ay2 - by1 - by2).square()
    return iou, apart / (4 * (hull_w.square() + hull_h.square())).clamp(min=TINY)
