"""The settings of the methods that look at what the heads say. Free of torch."""

from typing import Annotated, Literal

from pydantic import Field

from tid_core.fields import Fraction, Model, NonNegative

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

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


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
    class_weight: NonNegative = Field(10.0, description="Weight of the divergence of the classes at the positives.")
    class_temperature: Temperature = Field(2.0, description="Of the classes.")
    class_form: Literal["binary", "softmax"] = Field(
        "binary",
        description="binary: each class by itself, as the head has it [ours]; softmax: over the classes, as published "
        "(nothing where there is one class).",
    )


class CrosskdSpec(Model):
    """Cross-head distillation: the student's head features through the rest of the teacher's head."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


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

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class TarSpec(Model):
    """Task adaptive regularization. Fields marked [ours] reconstruct what is not available."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")
