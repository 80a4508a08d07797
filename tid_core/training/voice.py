"""What a run says about itself while it works."""

import math
import time
from collections.abc import Mapping
from typing import Literal

from tid_core.events import Metrics, Progress, Reporter, Warned
from tid_core.spec import JobSpec
from tid_core.training.pace import Pace
from tid_core.training.state import Position

Phase = Literal["setup", "teacher_evaluation", "training", "evaluation", "export"]

PROGRESS_SECONDS = 1.0
HIGH_RATIO = 10.0


class Voice:
    """Metrics, warnings and progress with the time left, sent to `report`."""

    def __init__(self, report: Reporter, spec: JobSpec, position: Position, pace: Pace, total_steps: int) -> None:
        self.report = report
        self.pace = pace
        self._position = position
        self._total_steps = total_steps
        self._epochs = spec.training.epochs
        self._every_epochs = spec.evaluation.every_epochs
        self._warned: set[str] = set()
        self._last_progress = -math.inf

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Values at the present step; those that are not finite cannot be told in JSON and are left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.report(Metrics(step=self._position.step, epoch=epoch, values=finite))

    def warn(self, code: str, detail: str) -> None:
        self.report(Warned(code=code, detail=detail))

    def judge_ratio(self, ratio: float) -> None:
        """Warn, once, when distillation drowns the task."""
        if ratio <= HIGH_RATIO or "distill_ratio" in self._warned:
            return
        self._warned.add("distill_ratio")
        detail = f"distillation pulls {ratio:.1f} times as hard as the task at step {self._position.step}"
        self.warn("distill_ratio", f"{detail}; beyond {HIGH_RATIO:.0f} it may harm: lower loss.distill")

    def progress(self, phase: Phase, done: int, total: int, *, force: bool = False) -> None:
        """At most one a second, except at the end of a phase and where forced."""
        now = time.monotonic()
        if not force and done < total and now - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = now
        position = self._position
        evaluations = math.ceil(self._epochs / self._every_epochs) - position.finished_epochs // self._every_epochs
        self.report(
            Progress(
                phase=phase,
                step=position.step,
                epoch=min(position.finished_epochs + 1, self._epochs),
                done=done,
                total=total,
                images_per_second=self.pace.speed,
                eta_seconds=self.pace.seconds_left(steps=self._total_steps - position.step, evaluations=evaluations),
            )
        )
