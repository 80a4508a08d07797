"""What the API says about sweeps: response models, which the client shares."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from api.schemas import JobStateName, JobWarning, Out, Progress, SpecProblem

SweepStateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]
RoleName = Literal["baseline", "point"]
Remark = Literal["better", "worse", "no difference shown"]


class PlannedJob(Out):
    """A job that a sweep would make."""

    name: str
    role: RoleName
    label: str = Field(description="What it is called in the report; the same for every seed.")
    point: dict[str, Any] = Field(description="Axis to value, without axes that make no difference to this job.")
    baseline: str | None = Field(description="Name of the job that it would be compared with.")
    spec: dict[str, Any] = Field(description="The resolved spec, every default filled in.")


class SweepDryRun(Out):
    """What POST /sweeps would say, without creating anything."""

    ok: bool = Field(description="Whether the sweep would be accepted.")
    problems: Sequence[SpecProblem]
    jobs: Sequence[PlannedJob] = Field(description="In the order in which they would be queued.")


class SweepJob(Out):
    """A job as its sweep sees it."""

    id: str
    name: str
    role: RoleName
    label: str = Field(description="What it is called in the report; the same for every seed.")
    point: dict[str, Any] = Field(description="Axis to value, without axes that make no difference to this job.")
    seed: int
    method: str
    state: JobStateName
    status_reason: str | None
    best_ap: float | None = Field(description="Best COCO AP on the validation split, 0..1.")
    baseline_job_id: str | None
    progress: Progress


class SweepSummary(Out):
    """A sweep in a list."""

    id: str
    name: str
    state: SweepStateName = Field(
        description="queued: no job has begun; running: some have not ended; then failed where one has failed, else "
        "cancelled where one was cancelled, else succeeded."
    )
    counts: dict[str, int] = Field(description="Jobs in each state that has any.")
    done: int = Field(description="Jobs that have ended, however.")
    total: int
    created_by: str | None = Field(description="Id of the API key that asked for it; null before there were keys.")
    created_at: datetime


class Sweep(SweepSummary):
    """A sweep in full."""

    jobs: Sequence[SweepJob] = Field(description="In the order in which they were queued.")
    warnings: list[JobWarning] = Field(description="Of the preflight, each once.")
    spec: dict[str, Any] = Field(description="As submitted.")


class SweepRun(Out):
    """One seed of a row."""

    seed: int
    job_id: str
    state: JobStateName
    ap: float | None = Field(description="Of the best checkpoint, once the job has succeeded.")
    ap50: float | None
    baseline_job_id: str | None
    gain: float | None = Field(description="AP - AP of the baseline of the same seed; null until both are known.")
    gpu_seconds: float = Field(description="Wall seconds of all its attempts x processes; see the row.")


class SweepRow(Out):
    """One setting, over all its seeds. APs are fractions, 0..1."""

    label: str
    role: RoleName
    point: dict[str, Any] = Field(description="Axis to value, without the seed.")
    method: str
    baseline: str | None = Field(description="Label of the row that it is compared with.")
    teacher_ap: float | None = Field(description="AP of its teacher on the same validation split.")
    runs_done: int = Field(description="Runs that have succeeded; only they count in what follows.")
    runs_total: int
    ap_mean: float | None
    ap_sd: float | None = Field(description="Standard deviation over the seeds (n - 1); null for fewer than two.")
    ap50_mean: float | None
    pairs: int = Field(description="Seeds of which both the run and its baseline have succeeded.")
    gain_mean: float | None = Field(description="Mean over the pairs of AP - AP of the baseline.")
    gain_low: float | None = Field(description="Lower end of the 95 % confidence interval of the mean gain.")
    gain_high: float | None = Field(description="Upper end of it (Student's t with pairs - 1 degrees of freedom).")
    gain_reason: str | None = Field(description="Why the gain, or its interval, is null.")
    wins: int = Field(description="Pairs of which the run is better than its baseline.")
    remark: Remark | None = Field(description="Whether the interval excludes zero; null where there is none.")
    gpu_seconds: float | None = Field(
        description="Mean over the runs that have succeeded: wall seconds of all attempts x processes. There is one "
        "process on each GPU; on a CPU the same number counts process-seconds."
    )
    extra_gpu_seconds_per_point: float | None = Field(
        description="Mean extra GPU-seconds over the baseline for each point (0.01) of AP gained; negative where the "
        "runs took less than their baselines."
    )
    extra_reason: str | None = Field(description="Why it is null.")
    runs: Sequence[SweepRun]


class SweepReport(Out):
    """The settings of a sweep against their baselines, paired by seed."""

    sweep_id: str
    name: str
    state: SweepStateName
    complete: bool = Field(description="True when all jobs have ended, so that nothing can change any more.")
    done: int
    total: int
    teacher_ap: float | None = Field(description="Where all rows have the same teacher.")
    teacher_reason: str | None = Field(description="Why it is null.")
    gpu_seconds_total: float = Field(description="Of all jobs of the sweep, those that failed included.")
    rows: Sequence[SweepRow] = Field(description="Baselines first, then the settings in the order of the axes.")
