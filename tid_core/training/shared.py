"""What keeps the students of all ranks one student."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tid_core.ranks import mean_over_ranks, num_ranks


def average_gradients(module: nn.Module, device: torch.device) -> nn.Module:
    """`module`, whose backward pass averages the gradients over the ranks; itself where there is one rank.

    Every parameter must take part in every forward. Buffers are left alone: see `running_statistics`.
    """
    if num_ranks() == 1:
        return module
    shared = DistributedDataParallel(module, forward_sync_buffers=False)
    if device.type == "cpu":
        shared.register_comm_hook(None, _one_by_one)
    return shared


def _one_by_one(
    _state: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch looks at the annotation
) -> torch.futures.Future[Tensor]:
    """Average gradients tensor by tensor. In which order ranks are added up depends on a number's place in what is
    summed, and DDP lays out its buckets anew after the first step: a run that was continued would end in other bits."""
    for grad in bucket.gradients():
        dist.all_reduce(grad)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer().div_(num_ranks()))
    return done


def running_statistics(module: nn.Module) -> list[Tensor]:
    """What BatchNorm layers remember of the batches, each rank of its own images."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d) and each.track_running_stats]
    return [buffer for each in norms for buffer in (each.running_mean, each.running_var) if buffer is not None]


@torch.no_grad()
def average(buffers: list[Tensor]) -> None:
    """Give every rank the means over the ranks, so that they all go on with, evaluate and save the same student."""
    if not buffers or num_ranks() == 1:
        return
    mean = mean_over_ranks(torch.cat([buffer.flatten() for buffer in buffers]))
    for buffer, values in zip(buffers, torch.split(mean, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))
