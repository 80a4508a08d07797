"""How hard distillation pulls on the student, beside its own task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tid_core.ranks import mean_over_ranks


def probe_parameters(student: nn.Module) -> list[nn.Parameter]:
    """The weights that make the pyramid's outputs: few, near the features, and used by every loss.

    Falls back to the last trainable matrices of the backbone, then of the student, for one without such a pyramid.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad and p.ndim > 1]
    outputs = [p for name, p in named if "fpn.layer_blocks" in name]
    backbone = [p for name, p in named if "backbone" in name]
    return outputs or backbone[-4:] or [p for _, p in named][-4:]


def gradient_norm_of(loss: Tensor, probes: Sequence[nn.Parameter]) -> Tensor:
    """L2 norm of d loss / d probes, a scalar without gradient; zero where the loss does not reach them.

    Over several ranks, `loss` is its mean: the same number on each. The graph is kept and `.grad` is left alone.
    """
    if not loss.requires_grad:
        return loss.detach().new_zeros(())
    found = torch.autograd.grad(loss, probes, retain_graph=True, allow_unused=True, materialize_grads=True)
    return nn.utils.get_total_norm([mean_over_ranks(grad) for grad in found])
