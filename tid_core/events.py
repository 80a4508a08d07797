"""What a training run says while it works: typed events, written as JSON lines. Free of torch.

A `Reporter` is anything that takes them: the worker's pipe, a console, a list in a test.
"""

from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Started(_Event):
    """First event of an attempt. Everything after `resumed_from_step` of earlier attempts is superseded."""

    type: Literal["started"] = "started"
    resumed_from_step: int
    total_steps: int
    steps_per_epoch: int
    epochs: int
    device: str
    precision: str
    processes: int = Field(1, description="Of the run: one on each of its GPUs, or those that share the CPU.")
    student_parameters: int
    teacher_parameters: int | None


class Progress(_Event):
    """Where the run is; `step` counts optimiser steps done, `done` of `total` counts the phase's own units."""

    type: Literal["progress"] = "progress"
    phase: Literal["setup", "teacher_evaluation", "training", "evaluation", "export"]
    step: int
    epoch: int
    done: int
    total: int
    images_per_second: float | None = None
    eta_seconds: float | None = Field(None, description="Seconds to the end of the whole run.")


class Metrics(_Event):
    """Scalars at an optimiser step: `loss/...`, `distill/...`, `lr`, `val/AP`, `val/class/<name>/AP`, `teacher/AP`."""

    type: Literal["metrics"] = "metrics"
    step: int
    epoch: int
    values: dict[str, float]


class Checkpoint(_Event):
    """A student written in full: best, last or epoch-N, each as .safetensors and .pt beside a model card."""

    type: Literal["checkpoint"] = "checkpoint"
    name: str
    step: int
    epoch: int
    ap: float | None
    files: dict[str, Path] = Field(description="Format (safetensors, pt, card) to path.")
    sha256: dict[str, str]


class ResumeState(_Event):
    """A complete state to continue from; `path` is a folder with state.pt and manifest.json."""

    type: Literal["resume_state"] = "resume_state"
    step: int
    epoch: int
    path: Path


class Artifact(_Event):
    """A file worth keeping: a picture of the areas (`map`), or the detections on the validation split."""

    type: Literal["artifact"] = "artifact"
    kind: Literal["map", "detections", "report"]
    name: str
    path: Path


class Warned(_Event):
    """Something the user should know, that does not stop the run."""

    type: Literal["warning"] = "warning"
    code: str
    detail: str


class Finished(_Event):
    """Last event of an attempt. `stopped`: asked to stop, state saved, to be continued."""

    type: Literal["finished"] = "finished"
    outcome: Literal["succeeded", "failed", "stopped"]
    reason: str | None = Field(None, description="Code of a failure, e.g. non_finite_loss.")
    detail: str | None = None


Event = Annotated[
    Started | Progress | Metrics | Checkpoint | ResumeState | Artifact | Warned | Finished, Field(discriminator="type")
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Reporter(Protocol):
    def __call__(self, event: Event, /) -> None: ...


class TrainingFailure(Exception):
    """A run that cannot go on, with the code that the job will carry."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
