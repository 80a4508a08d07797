"""The settings of Task Integration Distillation. Free of torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tid_core.fields import Count, Fraction, Model, NonNegative, Positive


class TidSpec(Model):
    """Task Integration Distillation. Fields marked [ours] reconstruct what the paper leaves open."""

    weight: NonNegative = Field(1.0, description="Beside other methods; the areas weigh as `loss` says.")
    t_pos: Fraction = Field(0.5, description="IoU from which a point counts as localised. [ours]")
    t_neg: Fraction = Field(0.4, description="IoU up to which a point counts as background. [ours]")
    thresholds: Literal["fixed", "matcher", "atss"] = Field(
        "matcher",
        description="matcher: the detector's own thresholds where it has them, else t_pos/t_neg; "
        "atss: mean + std of each ground truth's candidate IoUs; t_neg = t_pos / 2. [ours]",
    )
    atss_topk: Count = Field(9, description="Candidates per level and ground truth in mode `atss`.")
    score_pos: Positive = Field(2.0, description="score_r where IoU >= t_pos. [paper]")
    score_mid: Positive = Field(1.5, description="score_r between the thresholds. [paper]")
    score_neg: Positive = Field(0.4, description="score_r where IoU <= t_neg. [paper]")
    cls_score: Literal["two_level", "three_level", "prob"] = Field(
        "two_level",
        description="two_level: cls_right where the top class is the ground truth's, else cls_wrong; three_level: "
        "cls_unsure where it is right with p < 0.5; prob: the probability of the ground truth's class. [ours]",
    )
    cls_right: Positive = Field(2.0, description="score_c where the class is right. [ours]")
    cls_unsure: Positive = Field(1.5, description="score_c where it is right with p < 0.5 (three_level). [ours]")
    cls_wrong: Positive = Field(0.4, description="score_c where the class is wrong. [ours]")
    iou: Literal["iou", "giou", "diou"] = Field("iou", description="Overlap measured by score_r.")
    tasks: Literal["both", "cls", "reg"] = Field("both", description="Scores that enter the product (ablation).")
    key_source: Literal["teacher", "student", "either"] = Field(
        "teacher", description="Whose score makes a point key. [ours]"
    )
    tau_key: NonNegative = Field(1.0, description="key(p) = Score > tau_key. [ours]")
    tau_weak: NonNegative = Field(0.0, description="weak(p) = Score_T - Score_S > tau_weak. [ours]")
    weak_signed: bool = Field(True, description="false: weak where |Score_T - Score_S| > tau_weak. [ours]")
    areas: Literal["both", "key", "weak"] = Field("both", description="Masks that enter the partition (ablation).")
    partition: Literal["intersection", "weak_first", "key_first", "score_bands"] = Field(
        "intersection",
        description="intersection: high = key and weak, medium = exactly one. weak_first: high = weak, medium = key "
        "only. key_first: high = key, medium = weak only. score_bands: by Score_T > tau_key, > score_neg. [ours]",
    )
    norm: Literal["weighted_mean", "region_mean", "global_mean", "batch_sum"] = Field(
        "weighted_mean",
        description="weighted_mean: the mean over all valid points of the batch, in which each counts as its area "
        "weighs; region_mean: each area by its own points, however few; global_mean: by all valid points; "
        "batch_sum: a sum over points, divided by the images. [ours]",
    )
    distance: Literal["normalised_mse", "mse", "l1", "smooth_l1", "standardised_mse"] = Field(
        "normalised_mse", description="normalised_mse: squared error over the variance of the teacher's level. [ours]"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.t_neg > self.t_pos:
            raise ValueError(f"tid.t_neg ({self.t_neg}) must not exceed tid.t_pos ({self.t_pos})")
        return self
