"""Scalars of the steps since the last log, kept on their device until somebody needs to know them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tid_core.events import TrainingFailure
from tid_core.ranks import mean_over_ranks

Row = dict[str, float]


class Window:
    """A ring of per-step terms. Reading it costs one device synchronisation however many steps it holds.

    So a non-finite loss may be noticed some steps late on a GPU, and the step it came from is still named. Of several
    ranks it holds the means, so that all of them notice; they must read at the same steps.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, tuple[str, ...], int, Tensor]] = []
        self._rows: list[tuple[int, Row]] = []

    def append(self, step: int, terms: Mapping[str, Tensor], measures: Mapping[str, Tensor]) -> None:
        """Note the scalars of optimiser step `step`; `terms` must be finite, `measures` need not be."""
        values = torch.stack([value.detach().float() for value in (*terms.values(), *measures.values())])
        self._unread.append((step, (*terms, *measures), len(terms), values))

    def check(self) -> None:
        """Read what has not been read.

        Raises:
            TrainingFailure: `non_finite_loss`, naming the first term and step that is NaN or infinite.
        """
        if not self._unread:
            return
        values = iter(mean_over_ranks(torch.cat([row[3] for row in self._unread])).tolist())
        for step, names, num_terms, _ in self._unread:
            row = {name: next(values) for name in names}
            _refuse_non_finite(step, row, names[:num_terms])
            self._rows.append((step, row))
        self._unread.clear()

    def drain(self) -> Row:
        """The mean of every name over the steps that have it and where it is finite; the window is empty afterwards."""
        self.check()
        collected: dict[str, list[float]] = {}
        for _, row in self._rows:
            for name, value in row.items():
                if math.isfinite(value):
                    collected.setdefault(name, []).append(value)
        self._rows.clear()
        return {name: sum(values) / len(values) for name, values in collected.items()}

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return {"rows": [(step, dict(row)) for step, row in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = [(step, dict(row)) for step, row in state["rows"]]


def _refuse_non_finite(step: int, row: Row, names: tuple[str, ...]) -> None:
    for name in names:
        if not math.isfinite(row[name]):
            raise TrainingFailure(
                "non_finite_loss",
                f"{name} is {row[name]} at step {step}; a lower training.lr, a longer warm-up (training.warmup_steps), "
                "training.clip_grad_norm or precision: fp32 usually helps",
            )
