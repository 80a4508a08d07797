"""Where a run is, and how that is saved and brought back."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.spec import JobSpec
from tid_core.training.ema import Ema
from tid_core.training.setup import check_same_job
from tid_core.training.step import TrainingStep
from tid_core.training.window import Window


@dataclass
class Best:
    """The best student so far, whole, so that another machine can go on without its files."""

    step: int
    epoch: int
    values: dict[str, float]
    weights: dict[str, Tensor]

    @property
    def ap(self) -> float | None:
        return self.values.get("val/AP")


@dataclass
class Position:
    """Counters. They are the sampler's place too: what comes next is batch `step % steps_per_epoch` of its epoch."""

    step: int = 0
    """Optimiser steps done."""
    finished_epochs: int = 0
    """Epochs whose evaluation and checkpoints, where due, are done too."""
    teacher_ap: float | None = None
    teacher_done: bool = False
    best: Best | None = field(default=None)


@dataclass
class Live:
    """Everything that changes while a run goes on."""

    module: TrainingStep
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema[DenseDetector] | None
    window: Window
    position: Position

    def capture(self, spec: JobSpec) -> dict[str, Any]:
        """Tensors and plain values, for `resume.save_state`.

        Raises:
            TrainingFailure: `non_finite_loss`: a broken run is not worth continuing from.
        """
        position, best = self.position, self.position.best
        return {
            "spec": spec.model_dump_json(),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "window": self.window.state_dict(),
            "step": position.step,
            "finished_epochs": position.finished_epochs,
            "teacher_ap": position.teacher_ap,
            "teacher_done": position.teacher_done,
            "best": vars(best) if best else None,
        }

    def restore(self, content: dict[str, Any], spec: JobSpec) -> None:
        """
        Raises:
            TrainingFailure: `checkpoint_invalid`: the state belongs to another job.
        """
        check_same_job(spec, JobSpec.model_validate_json(content["spec"]))
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty where the precision needs none
            self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
        self.window.load_state_dict(content["window"])
        names = ("step", "finished_epochs", "teacher_ap", "teacher_done")
        for name in names:
            setattr(self.position, name, content[name])
        self.position.best = Best(**content["best"]) if content["best"] else None
