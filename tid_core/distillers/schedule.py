"""How much the distillation term counts, over the run."""

from math import cos, pi

from tid_core.spec import LossSpec


def schedule_weight(loss: LossSpec, step: int, total_steps: int) -> float:
    """The factor of the distillation term at optimiser step `step` (0-based): `loss.distill` as its schedule moves it.

    `warmup` rises linearly over `warmup_steps` and is never zero; the decays start at the full weight and would reach
    zero at `total_steps`.
    """
    done = min(step / max(total_steps, 1), 1.0)
    factor = {
        "constant": 1.0,
        "warmup": min((step + 1) / max(loss.warmup_steps, 1), 1.0),
        "linear_decay": 1 - done,
        "cosine_decay": (1 + cos(pi * done)) / 2,
    }[loss.schedule]
    return loss.distill * factor
