"""Task Integration Distillation: imitate the teacher's features most where they matter and the student lags.

Source: Su, Jian, Yu, "Task Integration Distillation for Object Detectors", arXiv 2404.01699 (see `areas`).

N images, C channels, P locations over all levels, R regions (high, medium, low), X these and key and weak, V levels.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.areas import REGIONS, Areas, Thresholds, find_areas
from tid_core.distillers.base import Distiller, DistillResult, check_outputs, level_names
from tid_core.distillers.distances import feature_distances
from tid_core.distillers.means import NO_WEIGHT
from tid_core.methods import TidSpec
from tid_core.ranks import num_ranks, sum_over_ranks
from tid_core.spec import LossSpec
from tid_core.truth import Targets


class TidDistiller(Distiller):
    """Sum over levels of the mean of the feature distance, a point of region r counting w_r (`norm: weighted_mean`).

    So the size of the loss depends neither on how many points an area has nor on the size of the weights, only on
    their ratios. `region_mean` is the sum over the regions of w_r * the mean over the points of r; where a region has
    few points, these few pull as hard as all others together. `global_mean` divides by all valid points of the level,
    `batch_sum` sums over points and channels and divides by the number of images.
    """

    weights_R: Tensor

    def __init__(
        self,
        tid: TidSpec,
        loss: LossSpec,
        *,
        student: DetectorInfo,
        teacher: DetectorInfo,
        student_matcher: Thresholds | None = None,
        teacher_matcher: Thresholds | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self.tid = tid
        self.matchers = (student_matcher, teacher_matcher)
        weights_R = torch.tensor([loss.high, loss.medium, loss.low])
        self.register_buffer("weights_R", weights_R, persistent=False)

    def areas(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> Areas:
        student_matcher, teacher_matcher = self.matchers
        return find_areas(
            student, teacher, targets, self.tid, student_matcher=student_matcher, teacher_matcher=teacher_matcher
        )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms `distill/high`, `distill/medium`, `distill/low`; metrics: the share of valid points of each level in
        each region and in what the regions are made of (`areas/high/p3`, `areas/key/p3`, `areas/weak/p3` ...), and the
        mean scores (`areas/score/teacher`, `areas/score/student`)."""
        check_outputs(student, teacher, classes=True)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            areas = self.areas(student, teacher, targets)
            distances, scale_V = feature_distances(adapted, teacher.features, student.valid, self.tid.distance)
            distance_NP = torch.cat([d_NHW.flatten(1) for d_NHW in distances], dim=1)
            sums_RV = _sum_levels(areas, areas.regions_RNP * distance_NP) * scale_V
            counts_XV = sum_over_ranks(_sum_levels(areas, _masks(areas).float()))
            counts_RV = counts_XV[: len(REGIONS)]
            terms_R = (
                self.tid.weight * self.weights_R * (sums_RV * self._scale(counts_RV, teacher.features[0])).sum(dim=1)
            )
            terms = {f"distill/{region}": term for region, term in zip(REGIONS, terms_R.unbind(), strict=True)}
            return DistillResult(terms, _metrics(areas, counts_XV))

    def _scale(self, counts_RV: Tensor, feat_NCHW: Tensor) -> Tensor:
        """What the sums over points (already means over channels) are multiplied with, per region and level."""
        if self.tid.norm == "batch_sum":
            images = sum_over_ranks(counts_RV.new_tensor(feat_NCHW.shape[0]))
            return num_ranks() * feat_NCHW.shape[1] / images.expand_as(counts_RV)
        if self.tid.norm == "weighted_mean":
            weight_1V = (self.weights_R[:, None] * counts_RV).sum(dim=0, keepdim=True)
            return num_ranks() / weight_1V.clamp(min=NO_WEIGHT)
        divisor_RV = counts_RV if self.tid.norm == "region_mean" else counts_RV.sum(dim=0, keepdim=True)
        return num_ranks() / divisor_RV.clamp(min=1)


def _sum_levels(areas: Areas, maps_RNP: Tensor) -> Tensor:
    return torch.stack([level_RNHW.sum(dim=(1, 2, 3)) for level_RNHW in areas.split(maps_RNP)], dim=1)


def _masks(areas: Areas) -> Tensor:
    """The regions, then key and weak, (X, N, P) bool."""
    return torch.cat([areas.regions_RNP, torch.stack([areas.key_NP, areas.weak_NP])])


def _metrics(areas: Areas, counts_XV: Tensor) -> dict[str, Tensor]:
    shares_XV = counts_XV / counts_XV[: len(REGIONS)].sum(dim=0).clamp(min=1)
    metrics = {
        f"areas/{mask}/{level}": share
        for mask, row_V in zip((*REGIONS, "key", "weak"), shares_XV.unbind(), strict=True)
        for level, share in zip(level_names(areas.strides), row_V.unbind(), strict=True)
    }
    scores_2NP = torch.stack([areas.score_teacher_NP, areas.score_student_NP]) * areas.valid_NP
    count = sum_over_ranks(areas.valid_NP.sum()).clamp(min=1)
    teacher, student = (sum_over_ranks(scores_2NP.sum(dim=(1, 2))) / count).unbind()
    return {**metrics, "areas/score/teacher": teacher, "areas/score/student": student}
