"""What `tid check --measure` finds out: the cost of a job, from a few of its steps. Free of torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ANSWER = "measurement.json"
"""In the folder that the measuring process works in: a Measurement or a Refusal."""


class _Found(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunCost(_Found):
    """One run of the job: the student's, or that of its twin without distillation."""

    run: Literal["student", "baseline"]
    step_seconds: float = Field(description="Median of the measured steps, waiting for their images included.")
    first_step_seconds: float = Field(description="Allocates and warms up; not in the median.")
    cached_step_seconds: float | None = Field(description="With teacher.cache: of steps whose images come again.")
    images_per_second: float
    teacher_share: float | None = Field(description="Part of a step that the teacher's forward takes, 0..1.")
    peak_memory_bytes: int | None = Field(
        description="Of a GPU: as PyTorch allocates it. On the CPU: of the process; null for the second run in it."
    )
    total_steps: int
    training_seconds: float = Field(description="Estimate, for all steps.")
    evaluation_seconds: float = Field(
        description="Estimate, for all evaluations, the teacher's included; from one batch, without the metric itself."
    )
    resume_state_bytes: int = Field(description="One state to continue from.")
    checkpoint_bytes: int = Field(description="One student in all its formats.")
    disk_bytes: int = Field(description="Of the run at its end: the states and checkpoints that it keeps.")
    cache_bytes: int | None = Field(description="With teacher.cache: about what it takes while the run goes on.")

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.evaluation_seconds


class Measurement(_Found):
    ok: Literal[True] = True
    device: str
    precision: str
    processes: int = Field(description="Of the whole job. More than one: measured on one, with its share of a batch.")
    steps: int = Field(description="Measured, the first one included.")
    runs: list[RunCost]
    seconds: float = Field(description="Estimate, for all runs one after the other.")
    warnings: list[str]


class Refusal(_Found):
    """Why nothing could be measured."""

    ok: Literal[False] = False
    reason: str = Field(description="Code, e.g. out_of_memory.")
    detail: str
