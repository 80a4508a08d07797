"""Where the student should listen to its teacher: scores (DIEM), key and weak points (LDAM), three regions (SFDM).

Source: Su, Jian, Yu, "Task Integration Distillation for Object Detectors", arXiv 2404.01699; the settings marked
[ours] in `TidSpec` reconstruct what the paper's summaries leave open.

Shape suffixes: N images, M ground truths, K classes, L anchors over all levels, A anchors per location, P locations
over all levels (level by level, row by row), R regions (high, medium, low).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tid_core.detectors.outputs import DenseOutputs, split_levels
from tid_core.distillers.atss import atss_thresholds
from tid_core.methods import TidSpec
from tid_core.truth import Match, Targets, Truth, match, pad_truth

REGIONS = ("high", "medium", "low")
Thresholds = tuple[float, float]
"""IoU from which a box counts as localised, and IoU up to which it counts as background."""


@dataclass(frozen=True)
class Areas:
    """Scores and masks of one batch, all levels in one tensor; `split` gives them back level by level."""

    score_teacher_NP: Tensor
    score_student_NP: Tensor
    key_NP: Tensor
    weak_NP: Tensor
    regions_RNP: Tensor
    """Disjoint masks in the order of `REGIONS`, that together cover `valid_NP`."""
    valid_NP: Tensor
    grid: list[tuple[int, int]]
    strides: list[int]

    def split(self, maps_P: Tensor) -> list[Tensor]:
        """Cut maps of shape (..., P) into one (..., H, W) per level, without a copy."""
        return split_levels(maps_P, self.grid)


@torch.no_grad()
def find_areas(
    student: DenseOutputs,
    teacher: DenseOutputs,
    targets: Targets,
    tid: TidSpec,
    *,
    student_matcher: Thresholds | None = None,
    teacher_matcher: Thresholds | None = None,
) -> Areas:
    """Score every location for teacher and student, and part the feature maps by what that says.

    Args:
        student, teacher: outputs on one grid, with the classes in one order; anchors per location may differ.
        targets: per image `boxes` (M, 4) in pixels of the padded batch, `labels` (M,) and optionally `iscrowd` (M,).
        tid: every choice there is; see `TidSpec`.
        student_matcher, teacher_matcher: the detectors' own IoU thresholds, used where `tid.thresholds` is `matcher`.
    """
    truth = pad_truth(targets)
    atss_NM = atss_thresholds(student, truth, topk=tid.atss_topk) if tid.thresholds == "atss" else None
    score_teacher_NP = combined_score(teacher, truth, tid, matcher=teacher_matcher, atss_NM=atss_NM)
    score_student_NP = combined_score(student, truth, tid, matcher=student_matcher, atss_NM=atss_NM)
    valid_NP = student.all_valid
    key_NP, weak_NP = key_and_weak(score_teacher_NP, score_student_NP, tid)
    key_NP, weak_NP = key_NP & valid_NP, weak_NP & valid_NP
    return Areas(
        score_teacher_NP=score_teacher_NP,
        score_student_NP=score_student_NP,
        key_NP=key_NP,
        weak_NP=weak_NP,
        regions_RNP=partition(key_NP, weak_NP, score_teacher_NP, valid_NP, tid),
        valid_NP=valid_NP,
        grid=student.grid,
        strides=student.strides,
    )


def combined_score(
    outputs: DenseOutputs,
    truth: Truth,
    tid: TidSpec,
    *,
    matcher: Thresholds | None = None,
    atss_NM: Tensor | None = None,
) -> Tensor:
    """DIEM (eq. 3): score_c * score_r of each anchor, the best anchor of each location, (N, P)."""
    found = match(outputs.boxes_NL4, truth, tid.iou)
    positive: Tensor | float
    negative: Tensor | float
    positive, negative = matcher if matcher and tid.thresholds == "matcher" else (tid.t_pos, tid.t_neg)
    if atss_NM is not None:
        positive = atss_NM.gather(1, found.index_NL)
        negative = positive / 2
    if tid.tasks == "cls":
        score_NL = _class_score(outputs.logits_NLK, found, truth, tid)
    else:
        score_NL = _box_score(found.value_NL, positive, negative, tid)
        if tid.tasks == "both":
            score_NL = score_NL * _class_score(outputs.logits_NLK, found, truth, tid)
    return score_NL.view(len(score_NL), -1, outputs.num_anchors).amax(dim=2)


def _box_score(overlap_NL: Tensor, positive: Tensor | float, negative: Tensor | float, tid: TidSpec) -> Tensor:
    below_NL = torch.where(overlap_NL > negative, tid.score_mid, tid.score_neg)
    return torch.where(overlap_NL >= positive, tid.score_pos, below_NL)


def _class_score(logits_NLK: Tensor, found: Match, truth: Truth, tid: TidSpec) -> Tensor:
    """How well the class of the best ground truth is met; as bad as can be where no ground truth is touched."""
    label_NL = truth.labels_NM.gather(1, found.index_NL)
    if tid.cls_score == "prob":
        logit_NL = logits_NLK.gather(2, label_NL[..., None]).squeeze(2).float()
        return logit_NL.sigmoid() * found.touches_NL
    # The sigmoid is monotonic: the largest logit is the largest probability, and p >= 0.5 is logit >= 0.
    right_NL = (logits_NLK.argmax(dim=2) == label_NL) & found.touches_NL
    if tid.cls_score == "two_level":
        return torch.where(right_NL, tid.cls_right, tid.cls_wrong)
    sure_NL = logits_NLK.gather(2, label_NL[..., None]).squeeze(2) >= 0
    return torch.where(right_NL, torch.where(sure_NL, tid.cls_right, tid.cls_unsure), tid.cls_wrong)


def key_and_weak(score_teacher_NP: Tensor, score_student_NP: Tensor, tid: TidSpec) -> tuple[Tensor, Tensor]:
    """LDAM: the points that matter, and (eq. 5) those where the student lags behind."""
    score_NP = {
        "teacher": score_teacher_NP,
        "student": score_student_NP,
        "either": torch.maximum(score_teacher_NP, score_student_NP),
    }[tid.key_source]
    lag_NP = score_teacher_NP - score_student_NP
    return score_NP > tid.tau_key, (lag_NP if tid.weak_signed else lag_NP.abs()) > tid.tau_weak


def partition(key_NP: Tensor, weak_NP: Tensor, score_NP: Tensor, valid_NP: Tensor, tid: TidSpec) -> Tensor:
    """SFDM: part the valid points into high, medium and low value, (3, N, P) bool.

    With `areas: key` (or `weak`) that mask alone decides: what it holds is high, the rest low. `score_bands` looks at
    the teacher's score only.
    """
    if tid.areas == "key":
        weak_NP = key_NP
    elif tid.areas == "weak":
        key_NP = weak_NP
    if tid.partition == "intersection":
        high_NP, medium_NP = key_NP & weak_NP, key_NP ^ weak_NP
    elif tid.partition == "weak_first":
        high_NP, medium_NP = weak_NP, key_NP & ~weak_NP
    elif tid.partition == "key_first":
        high_NP, medium_NP = key_NP, weak_NP & ~key_NP
    else:
        high_NP = (score_NP > tid.tau_key) & valid_NP
        medium_NP = (score_NP > tid.score_neg) & valid_NP & ~high_NP
    return torch.stack([high_NP, medium_NP, valid_NP & ~(high_NP | medium_NP)])
