"""The ranks of a run: processes that train one student together, each on its share of every batch.

A rank that is alone needs no process group: everything here then gives back what it was given. Losses are made so that
their *mean over the ranks* is the loss of the whole batch, because gradients are averaged over the ranks.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for one that lives but does not answer. A dead one is noticed at once. The longest ordinary
wait is for the first rank, which alone computes metrics, writes checkpoints and draws maps."""


@contextmanager
def joined(device: torch.device, store: Path | None) -> Iterator[None]:
    """Be one of the ranks that torchrun's environment variables RANK and WORLD_SIZE number.

    On one machine they find each other by the file `store`: a TCP store, as torchrun would have it, is open to the
    network. On several machines (None) it is torchrun's.
    Tensors on a GPU are exchanged by NCCL, those on the CPU by gloo: what the ranks agree on at every step is tiny and
    on the CPU, and so does not wait for the GPU.
    """
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whatever its host name resolves to
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        init_method="env://" if store is None else f"file://{store}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PATIENCE,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def num_local_ranks() -> int:
    """Those of this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if num_ranks() > 1 else 1


def rank() -> int:
    return dist.get_rank() if num_ranks() > 1 else 0


def is_first() -> bool:
    """Whether this rank speaks and writes files for all."""
    return rank() == 0


def sum_over_ranks(local: Tensor) -> Tensor:
    """The sum of `local` over all ranks, on every rank; gradients flow back to every rank's share."""
    return _SumOverRanks.apply(local) if num_ranks() > 1 else local


def mean_over_ranks(local: Tensor) -> Tensor:
    """The mean of `local` over all ranks, on every rank, without gradient."""
    return sum_over_ranks(local.detach()) / num_ranks() if num_ranks() > 1 else local.detach()


def mean_count(count: Tensor) -> Tensor:
    """What a rank divides a sum by that is to be a mean over the `count` positives (or weights) of the whole batch.

    That is max(1, count of all ranks) / ranks, so that the mean over the ranks of `sum / mean_count(count)` is the sum
    over the whole batch by its count, as a rank that is alone would compute it.
    """
    return sum_over_ranks(count.detach()).clamp(min=1) / num_ranks()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on at least one rank: the same answer on all of them."""
    if num_ranks() == 1:
        return flag
    total = torch.tensor(int(flag))
    dist.all_reduce(total, dist.ReduceOp.MAX)
    return bool(total.item())


def from_first(value: Value) -> Value:
    """The first rank's `value`, on all of them."""
    if num_ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(items: Sequence[Value]) -> list[Value]:
    """On the first rank the items of all ranks, by rank; on the others nothing."""
    if num_ranks() == 1:
        return list(items)
    shares: list[Any] | None = [None] * num_ranks() if is_first() else None
    dist.gather_object(list(items), shares, dst=0)
    return [item for share in shares or () for item in share]


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
