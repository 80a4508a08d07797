"""Means by weight over the batch on all ranks, and the parts that the levels have in them.

N images, H and W a level's grid, V levels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tid_core.distillers.base import DistillResult, level_names
from tid_core.ranks import num_ranks, sum_over_ranks

# A sum of weights below this counts as no weight at all. Weights are probabilities and bells: a level with one point
# that hardly counts is still a mean over that point.
NO_WEIGHT = 1e-6


def weighted_means(values: Sequence[Tensor], weights: Sequence[Tensor], *, together: bool = False) -> Tensor:
    """The mean of each level's values by weight, (V,); 0 where there is no weight.

    The mean over the ranks of what each of them gets is that of the whole batch, and so are the gradients.

    Args:
        values, weights: per level, of one shape, (N, H, W); weights may be bool.
        together: give the level's part in one mean over all levels, in which each unit of weight counts the same.
    """
    sums_V = torch.stack([(value * weight).sum() for value, weight in zip(values, weights, strict=True)])
    totals_V = sum_over_ranks(torch.stack([weight.detach().float().sum() for weight in weights]))
    total_V = totals_V.sum() if together else totals_V
    return num_ranks() * sums_V / total_V.clamp(min=NO_WEIGHT)


def level_result(parts: Mapping[str, Tensor], strides: list[int]) -> DistillResult:
    """A term `distill/NAME` for each (V,) of parts, their sum, and as metrics the parts: `distill/NAME/p3` ..."""
    metrics = {
        f"distill/{name}/{level}": part
        for name, parts_V in parts.items()
        for level, part in zip(level_names(strides), parts_V.detach().unbind(), strict=True)
    }
    return DistillResult({f"distill/{name}": parts_V.sum() for name, parts_V in parts.items()}, metrics)
