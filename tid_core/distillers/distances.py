"""How far the student's features are from the teacher's, per location. To be called in fp32, outside autocast.

N images, C channels, H and W a level's grid, V levels.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

from tid_core.ranks import sum_over_ranks

Distance = Literal["normalised_mse", "mse", "l1", "smooth_l1", "standardised_mse"]

# A level that varies less than this is constant: there is nothing in it to imitate.
CONSTANT = 1e-12
# Added to the variance of a channel, so that a dead channel of the student is not blown up.
DEAD_CHANNEL = 1e-6


def feature_distances(
    student: list[Tensor], teacher: list[Tensor], valid: list[Tensor], distance: Distance
) -> tuple[list[Tensor], Tensor]:
    """Mean over the channels of the distance, per level (N, H, W), and a factor for each level, (V,).

    `normalised_mse` divides the squared error by the variance of the teacher's level over its valid points and all
    channels, so that its size does not depend on the teacher's scale; a constant level gives zero. This is the factor,
    1 for the other distances. `standardised_mse` compares features whose channels have mean 0 and variance 1 over the
    valid points of the level. Both statistics are of the batch, over all ranks. No gradient reaches the teacher.

    Args:
        student, teacher: per level (N, C, H, W).
        valid: per level (N, H, W) bool, what enters the statistics.
    """
    student = [s_NCHW.float() for s_NCHW in student]
    teacher = [t_NCHW.detach().float() for t_NCHW in teacher]
    if distance == "standardised_mse":
        student = [standardise(s_NCHW, v_NHW) for s_NCHW, v_NHW in zip(student, valid, strict=True)]
        teacher = [standardise(t_NCHW, v_NHW) for t_NCHW, v_NHW in zip(teacher, valid, strict=True)]
    error = {"l1": l1_loss, "smooth_l1": smooth_l1_loss}.get(distance, mse_loss)
    errors = [error(s, t, reduction="none").mean(dim=1) for s, t in zip(student, teacher, strict=True)]
    if distance == "normalised_mse":
        return errors, inverse_variance(teacher, valid)
    return errors, errors[0].new_ones(len(errors))


def inverse_variance(features: list[Tensor], valid: list[Tensor]) -> Tensor:
    """One over the variance of each level over valid points and channels, (V,); 0 for a constant level."""
    rows = []
    for feat_NCHW, valid_NHW in zip(features, valid, strict=True):
        moments = torch.stack([feat_NCHW.mean(dim=1), feat_NCHW.square().mean(dim=1), torch.ones_like(feat_NCHW[:, 0])])
        # In double, where the difference of the moments loses nothing.
        rows.append((moments.double() * valid_NHW).sum(dim=(1, 2, 3)))
    sum_V, square_V, count_V = sum_over_ranks(torch.stack(rows, dim=1))
    count_V = count_V.clamp(min=1)
    variance_V = square_V / count_V - (sum_V / count_V).square()
    return torch.where(variance_V > CONSTANT, 1 / variance_V.clamp(min=CONSTANT), 0.0).float()


def standardise(feat_NCHW: Tensor, valid_NHW: Tensor) -> Tensor:
    """Give every channel mean 0 and variance 1 over the valid points of the batch, over all ranks."""
    valid_N1HW = valid_NHW[:, None].float()
    count = sum_over_ranks(valid_N1HW.sum()).clamp(min=1)
    mean_C11 = (sum_over_ranks((feat_NCHW * valid_N1HW).sum(dim=(0, 2, 3))) / count)[:, None, None]
    centred_NCHW = feat_NCHW - mean_C11
    variance_C = sum_over_ranks((centred_NCHW.square() * valid_N1HW).sum(dim=(0, 2, 3))) / count
    return centred_NCHW * (variance_C + DEAD_CHANNEL).rsqrt()[:, None, None]
