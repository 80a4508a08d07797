"""The settings of the methods that look at what the heads say. Free of torch."""

from pydantic import Field

from tid_core.fields import Model, NonNegative


class PgdSpec(Model):
    """Prediction-guided distillation: features near each object where the teacher predicts it best."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class LdSpec(Model):
    """Localisation distillation: the distribution of each side of a box (GFL's heads only)."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class CrosskdSpec(Model):
    """Cross-head distillation: the student's head features through the rest of the teacher's head."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class BckdSpec(Model):
    """Binary class and box distillation: what the heads answer, where the two disagree."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class TbdSpec(Model):
    """Task-balanced distillation. Fields marked [ours] reconstruct what is not available."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")


class TarSpec(Model):
    """Task adaptive regularization. Fields marked [ours] reconstruct what is not available."""

    weight: NonNegative = Field(1.0, description="Weight of the terms.")
