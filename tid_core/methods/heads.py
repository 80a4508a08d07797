"""The settings of the methods that look at what the heads say. Free of torch."""

from typing import Annotated, Literal

from pydantic import Field

from tid_core.fields import Count, Fraction, Model, NonNegative, Positive

Temperature = Annotated[float, Field(ge=0.1, le=100.0)]
"""What logits are divided by: below 1 distributions get sharper, above it flatter."""
Beta = Annotated[float, Field(ge=1.0, le=8.0)]
Divisor = Literal["positives", "teacher"]
DIVISOR = (
    "What the sums over the anchors of the batch are divided by. positives: how many of its locations ATSS assigns an "
    "object; teacher: the sum of the teacher's top class scores. [ours]"
)


class PgdSpec(Model):
    """Prediction-guided distillation: features near each object where the teacher predicts it best."""

    weight: NonNegative = Field(1.0, description="Weight of the three terms.")
    foreground_weight: NonNegative = Field(
        2.0, description="Weight of the feature difference at the best points. [ours: the published one is of a sum]"
    )
    background_weight: NonNegative = Field(
        1.0, description="Weight of the feature difference outside of all boxes; published: half the foreground's."
    )
    attention_weight: NonNegative = Field(0.1, description="Weight of the difference of the attentions. [ours]")
    alpha: Fraction = Field(0.8, description="Quality of a prediction = p^(1 - alpha) * IoU^alpha. [paper]")
    topk: Count | None = Field(
        None,
        description="Points that each ground truth chooses over all levels. null: 30, of an ATSS teacher 9. [paper]",
    )
    temperature: Temperature = Field(0.8, description="Of the attentions over points and over channels. [paper]")
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class LdSpec(Model):
    """Localisation distillation: the distribution of each side of a box (GFL's heads only)."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")
    box_weight: NonNegative = Field(0.25, description="Weight of the divergence of the sides at the positives.")
    temperature: Temperature = Field(10.0, description="Of the distributions of the sides.")
    quality: Literal["teacher", "student"] = Field(
        "teacher", description="Whose top class score weighs a positive; the published code has the student's. [ours]"
    )
    valuable_weight: NonNegative = Field(
        0.25, description="Weight of the same divergence in the valuable localisation region; 0 = not there."
    )
    valuable_from: Fraction = Field(
        0.25, description="DIoU from which on an anchor is valuable, as a fraction of the object's ATSS threshold."
    )
    class_weight: NonNegative = Field(
        0.125,
        description="Weight of the divergence of the classes, summed over them, at the positives; as published 10 for "
        "their mean, with the 80 classes of COCO. [ours]",
    )
    class_temperature: Temperature = Field(2.0, description="Of the classes.")
    class_form: Literal["binary", "softmax"] = Field(
        "binary",
        description="binary: each class by itself, as the head has it [ours]; softmax: over the classes, as published "
        "(nothing where there is one class).",
    )


class CrosskdSpec(Model):
    """Cross-head distillation: the student's head features through the rest of the teacher's head."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")
    convs: Annotated[int, Field(ge=0, le=8)] = Field(
        3,
        description="Convolutions of the student's towers before its features go over, at most one less than the "
        "towers have; 0 = the pyramid's features.",
    )
    align: bool = Field(True, description="Give the features the mean and deviation of the teacher's, by channel.")
    class_weight: NonNegative = Field(1.0, description="Weight of the binary cross entropy towards the teacher.")
    beta: Beta = Field(1.0, description="Power of |p_T - p| before the cross entropy of each class.")
    divisor: Divisor = Field("positives", description=DIVISOR)
    sides_weight: NonNegative = Field(4.0, description="GFL: weight of the divergence of the sides.")
    temperature: Temperature = Field(1.0, description="GFL: of the distributions of the sides.")
    box_weight: NonNegative = Field(1.0, description="Others: weight of 1 - GIoU of the boxes.")


class BckdSpec(Model):
    """Binary class and box distillation: what the heads answer, where the two disagree."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")
    class_weight: NonNegative = Field(1.0, description="Weight of the binary cross entropy towards the teacher.")
    beta: Beta = Field(1.0, description="Power of |p_T - p_S| before the cross entropy of each class.")
    through_weight: bool = Field(
        True, description="Whether gradient flows through |p_T - p_S| too, as in the published code; false: a weight."
    )
    box_weight: NonNegative = Field(4.0, description="Weight of 1 - GIoU of the boxes of the two.")
    box_points: Literal["difference", "teacher"] = Field(
        "difference",
        description="What a box counts by. difference: how far the class scores are apart, as published; teacher: the "
        "teacher's top class score. [ours]",
    )
    divisor: Divisor = Field("positives", description=DIVISOR)


class TbdSpec(Model):
    """Task-balanced distillation. Fields marked [ours] reconstruct what is not available."""

    weight: NonNegative = Field(1.0, description="Weight of the three terms.")
    harmony_weight: NonNegative = Field(
        1.0, description="Weight of the class distance where the teacher's class score and box agree. [ours]"
    )
    classification_weight: NonNegative = Field(
        2.0, description="Weight of the feature difference by the teacher's class score. [ours]"
    )
    localisation_weight: NonNegative = Field(
        2.0, description="Weight of the feature difference by the IoU of the teacher's box. [ours]"
    )
    strictness: NonNegative = Field(
        1.0,
        description="Harmony = sqrt(p * IoU) * (1 - |p - IoU|)^strictness, p of the ground truth's class; "
        "0: that both are high is enough. [ours]",
    )
    score_from: Fraction = Field(0.05, description="Class score from which a point counts for classification. [ours]")
    iou_from: Fraction = Field(0.5, description="IoU from which a point counts for localisation. [ours]")
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class TarSpec(Model):
    """Task adaptive regularization. Fields marked [ours] reconstruct what is not available."""

    weight: NonNegative = Field(1.0, description="Weight of the three terms at the beginning of the run.")
    feature_weight: NonNegative = Field(4.0, description="Weight of the feature difference around objects. [ours]")
    class_weight: NonNegative = Field(
        0.5, description="Weight of the class distance from the teacher inside ground truths. [ours]"
    )
    box_weight: NonNegative = Field(1.0, description="Weight of the distance of the boxes from the teacher's. [ours]")
    bell_width: Positive = Field(
        2.0,
        description="Of the Gaussian in each ground truth, in half sides: it is exp(-1 / width^2) in the middle of a "
        "side. [ours]",
    )
    adaptive: bool = Field(
        True, description="Classes and boxes only where the teacher's are better; false: wherever there are objects."
    )
    iou_from: Fraction = Field(
        0.5, description="IoU with a ground truth that the teacher's box must have to be learnt. [ours]"
    )
    box_distance: Literal["giou", "smooth_l1"] = Field(
        "giou", description="giou: 1 - GIoU of the two boxes; smooth_l1: of their corners, in strides. [ours]"
    )
    decay: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the weight of all terms falls over the run. [ours]"
    )
    decay_end: float = Field(1.0, gt=0.0, le=1.0, description="Share of the run after which it falls no more. [ours]")
    decay_to: Fraction = Field(0.0, description="What is left of the weight then. [ours]")
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")
