"""Sums over all ranks of a distributed run, so that statistics do not depend on how the batch is split."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(local: Tensor) -> Tensor:
    """The sum of `local` over all ranks, on every rank; gradients flow back to every rank's share."""
    return _SumOverRanks.apply(local) if num_ranks() > 1 else local


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, local: Tensor) -> Tensor:
        total = local.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        # Each rank's loss depends on the shared sum, so its gradient is the sum of theirs.
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad
