"""The optimiser and its learning rate, which is a function of the step alone: nothing to save, nothing to lose."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from tid_core.spec import TrainingSpec


def build_optimizer(module: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of `module` (student and adapters).

    Vectors and scalars, that is biases and normalisation parameters, are not decayed: shrinking them regularises
    nothing and moves the activations' scale.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)


def learning_rate(spec: TrainingSpec, *, step: int, total_steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total_steps`."""
    warmup = 1.0
    if step < spec.warmup_steps:
        warmup = spec.warmup_factor + (1.0 - spec.warmup_factor) * step / spec.warmup_steps
    return spec.lr * warmup * _decay(spec, step, total_steps)


def _decay(spec: TrainingSpec, step: int, total_steps: int) -> float:
    if spec.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
    if spec.schedule == "multistep":
        passed = sum(step >= round(milestone * total_steps) for milestone in spec.milestones)
        return spec.gamma**passed
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[nn.Parameter], *, max_norm: float | None) -> torch.Tensor:
    """L2 norm of all gradients before clipping, a scalar left on its device; clips to `max_norm` when given."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm is not None else math.inf)
