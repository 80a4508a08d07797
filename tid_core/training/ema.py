"""An exponential moving average of the student, evaluated and exported in its place."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


class Ema(Generic[Net]):
    """`average` is a copy of `model` whose floating tensors follow it: a <- d a + (1 - d) m.

    The decay d starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is forgotten even
    in a short run. Counters (batches seen by a BatchNorm) are copied.
    """

    def __init__(self, model: Net, decay: float) -> None:
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Net) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        floats: list[Tensor] = []
        values: list[Tensor] = []
        source = model.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                floats.append(value)
                values.append(source[name].detach())
            else:
                value.copy_(source[name])
        torch._foreach_lerp_(floats, values, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = state["updates"]
