"""Another normalisation of the image, folded into the first convolution and its batch normalisation.

This project feeds (x - m) / s with ImageNet's m and s, x in 0..255 and RGB. A network trained on (x - M) / S sees
y * s / S + (m - M) / S of that y: the factor goes into the weights; the constant, through the convolution, into the
mean that batch normalisation subtracts. Without a constant that is exact; with one the padding around the image, which
should then not be zero, is off by it.
"""

import torch
from torch import Tensor

from tid_core.importing.config_text import STYLES, Normalisation

OURS = STYLES["pytorch"]
"""What the transform of every detector here does."""


def fold_normalisation(
    weight_OCHW: Tensor, mean_O: Tensor, normalisation: Normalisation
) -> tuple[Tensor, Tensor, float]:
    """First weights and running mean for this project's images, and the largest constant in grey levels.

    Args:
        weight_OCHW: of the first convolution, C in the order of `normalisation`.
        mean_O: running mean of the batch normalisation behind it.
    """
    if normalisation == OURS:
        return weight_OCHW, mean_O, 0.0
    to_rgb = slice(None) if normalisation.rgb else slice(None, None, -1)
    mean_C, std_C = (torch.tensor(v[to_rgb], dtype=torch.float64) for v in (normalisation.mean, normalisation.std))
    our_mean_C, our_std_C = (torch.tensor(v, dtype=torch.float64) for v in (OURS.mean, OURS.std))
    weight = weight_OCHW.double() if normalisation.rgb else weight_OCHW.double().flip(1)
    constant_O = torch.einsum("ochw,c->o", weight, (our_mean_C - mean_C) / std_C)
    folded = weight * (our_std_C / std_C)[:, None, None]
    levels = float((our_mean_C - mean_C).abs().max())
    return folded.to(weight_OCHW), (mean_O.double() - constant_O).to(mean_O), levels
