"""The settings of the methods that imitate features alone. Free of torch."""

from typing import Literal

from pydantic import Field

from tid_core.fields import Model, NonNegative, Positive


class FitnetSpec(Model):
    """FitNets-style imitation: every valid point weighs the same."""

    weight: NonNegative = Field(2.0, description="Weight of the mean squared feature difference.")
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`.")


class FgfiSpec(Model):
    """Fine-grained feature imitation: near objects alone."""

    weight: NonNegative = Field(
        4.0, description="Weight of the mean feature difference near objects. [ours: the published one is of a sum]"
    )
    ratio: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="A point counts if the IoU of one of its anchors with a ground truth is above this share of the "
        "best that any anchor has with it. [paper]",
    )
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class DefeatSpec(Model):
    """Decoupled features: objects and background, each by its own size."""

    weight: NonNegative = Field(1.0, description="Weight of both terms.")
    foreground_weight: NonNegative = Field(
        0.5, description="Weight of the mean over the points inside ground truths. [ours: the published ratio is kept]"
    )
    background_weight: NonNegative = Field(
        2.0, description="Weight of the mean over the other points, four times the objects' as in the public code."
    )
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class FgdSpec(Model):
    """Focal and global distillation: attention over points and channels, and the relation of all points."""

    weight: NonNegative = Field(1.0, description="Weight of all four terms together.")
    foreground_weight: NonNegative = Field(
        0.4, description="alpha: of the difference in each object, a mean over its points. [ours: of no sum]"
    )
    background_weight: NonNegative = Field(
        0.2, description="beta: of the mean difference outside of objects. [ours: of no sum]"
    )
    attention_weight: NonNegative = Field(
        0.8, description="gamma: of the mean difference of the attention to points and to channels. [ours: of no sum]"
    )
    relation_weight: NonNegative = Field(
        2.0, description="lambda: of the mean difference with global context. [ours: of no sum]"
    )
    temperature: Positive = Field(0.5, description="T: divides mean sizes before the softmax of attention. [paper]")
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class MgdSpec(Model):
    """Masked generative distillation: the teacher's features out of a part of the student's."""

    weight: NonNegative = Field(
        10.0, description="Weight of the mean difference of each level. [ours: the published 2e-5 is of a sum]"
    )
    hidden: float = Field(
        0.65, ge=0.0, lt=1.0, description="Share of the student's locations hidden from the generator. [paper]"
    )
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")


class CwdSpec(Model):
    """Channel-wise distillation: where in the picture each channel looks."""

    weight: NonNegative = Field(
        10.0, description="Weight of the divergence, a mean over images and channels, of each level. [paper]"
    )
    temperature: Positive = Field(
        1.0, description="tau: features are divided by it before the softmax over the points. [paper]"
    )
    standardise: bool = Field(
        False,
        description="Give each channel mean 0 and variance 1 before, so that their scale does not matter. [ours]",
    )


class PkdSpec(Model):
    """Pearson correlation of the features, channel by channel."""

    weight: NonNegative = Field(6.0, description="Weight of 1 - correlation, a mean over channels, of each level.")


class FrsSpec(Model):
    """Feature richness: where the teacher sees any class at all."""

    weight: NonNegative = Field(1.0, description="Weight of both terms.")
    feature_weight: NonNegative = Field(
        1.0, description="Weight of the mean feature difference. [ours: the published one is of a sum]"
    )
    class_weight: NonNegative = Field(
        0.02, description="Weight of the binary cross entropy towards the teacher, summed over the classes."
    )
    distance: Literal["normalised_mse", "mse"] = Field("normalised_mse", description="As `tid.distance`. [ours]")
