"""What the API says: response models. Pure pydantic, so that the client shares them.

Output models carry no defaults: a field is always present, and null where nothing is known.
Times are RFC 3339 in UTC.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tid_core.data.options import IndexOptions
from tid_core.facts import SplitFacts
from tid_core.fields import Whole

Row = TypeVar("Row")

JobStateName = Literal[
    "queued", "starting", "running", "pausing", "paused", "cancelling", "cancelled", "succeeded", "failed"
]
TERMINAL_STATES = frozenset({"cancelled", "succeeded", "failed"})


class Out(BaseModel):
    """Base of every answer; reads ORM rows and named tuples by attribute."""

    model_config = ConfigDict(from_attributes=True, extra="ignore")


class FieldProblem(Out):
    code: str = Field(description="Machine-readable code of this one problem.")
    field: str = Field(description="JSON pointer into the request body, or the name of a parameter.")
    detail: str = Field(description="What is wrong.")
    expected: str = Field(description="What would be right; empty where `detail` says it.")


class ProblemDetails(Out):
    """An error as RFC 9457 problem details (application/problem+json)."""

    type: str = Field(description="Identifies the kind of problem: `urn:tid:problem:<code>`.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable code, e.g. `spec_invalid`.")
    errors: list[FieldProblem]
    request_id: str = Field(description="Also in the X-Request-ID header and in the server's log.")


class Page(Out, Generic[Row]):
    """One page of a list; pass `next_cursor` as `cursor` for the next one."""

    data: Sequence[Row]
    has_more: bool
    next_cursor: str | None


class SpecProblem(FieldProblem):
    """One finding of the preflight."""

    severity: Literal["error", "warning"]


class DryRun(Out):
    """What POST /jobs would say, without creating anything."""

    ok: bool = Field(description="Whether the job would be accepted.")
    problems: list[SpecProblem]
    spec: dict[str, Any] = Field(description="The resolved spec, every default filled in.")


class Progress(Out):
    phase: str | None = Field(description="setup, teacher_evaluation, training, evaluation or export.")
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    done: int | None = Field(description="Units of the phase done, of `total`.")
    total: int | None
    images_per_second: float | None
    eta_seconds: float | None = Field(description="Seconds to the end of the run.")


class Cost(Out):
    """What a job has used of the machines; null where nothing has been measured (yet)."""

    gpu_seconds: float = Field(
        description="Wall seconds of all attempts times the processes of the run, by the database's clock; a running "
        "attempt counts up to now. There is one process on each GPU; on the CPU these are process seconds."
    )
    images_per_second: float | None = Field(description="Of the training, over all GPUs, as last measured.")
    teacher_share: float | None = Field(description="Part of a step that the teacher's forward takes, 0..1.")
    peak_memory_bytes: float | None = Field(
        description="Of one GPU, as PyTorch allocates it; on the CPU: of the training process."
    )


class JobWarning(Out):
    code: str
    field: str | None = Field(description="JSON pointer into the spec, for findings of the preflight.")
    detail: str


class Waiting(Out):
    """What a job waits for."""

    reason: Literal[
        "dataset", "no_worker", "no_fitting_worker", "all_drained", "starting_soon", "busy", "nodes", "paused"
    ]
    detail: str = Field(description="The same for people.")
    position: int | None = Field(
        description="Place among the waiting jobs of its queue that a worker there may take, 1 = next: by priority, "
        "then age. Null while paused, and where no worker of the queue has what it asks for."
    )


class JobSummary(Out):
    """A job in a list."""

    id: str
    name: str
    state: JobStateName
    status_reason: str | None = Field(description="Why it is in this state, as a code.")
    detail: str | None = Field(description="The same for people.")
    method: str
    queue: str
    priority: int = Field(description="0 first .. 9: of the jobs that wait in its queue.")
    waiting: Waiting | None = Field(description="Why it waits; null where it does not.")
    student_detector: str
    teacher_detector: str | None
    dataset: str = Field(description="As the spec names it.")
    dataset_id: str
    attempt: int = Field(description="Attempts begun so far.")
    max_attempts: int
    worker_id: str | None
    progress: Progress
    best_ap: float | None = Field(description="Best COCO AP on the validation split, 0..1.")
    baseline_job_id: str | None = Field(description="The same student without distillation, run for comparison.")
    twin_of: str | None = Field(
        description="The distillation job that this baseline belongs to; null where the jobs of a sweep share it."
    )
    sweep_id: str | None = Field(description="The sweep that the job was submitted with.")
    teacher_job_id: str | None
    cost: Cost
    created_by: str | None = Field(description="Id of the API key that asked for it; null before there were keys.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime


class Job(JobSummary):
    """A job in full."""

    warnings: list[JobWarning]
    spec: dict[str, Any] = Field(description="The resolved spec; its schema is at GET /schemas/job.")


class RetryIn(BaseModel):
    """Where another attempt begins."""

    model_config = ConfigDict(extra="forbid", strict=True)

    from_: Literal["checkpoint", "fresh"] = Field(
        "checkpoint",
        alias="from",
        description="checkpoint: the newest state that was kept; fresh: the first step, earlier results are forgotten.",
    )


class JobPatch(BaseModel):
    """What can be changed of a job."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Whole = Field(ge=0, le=9, description="0 first .. 9.")


class Attempt(Out):
    number: int
    worker_id: str | None
    other_workers: list[str] = Field(description="Of a job with `resources.nodes` > 1: those of its further nodes.")
    started_at: datetime
    ended_at: datetime | None
    lease_expires_at: datetime | None = Field(description="When the worker loses the job unless it is heard of.")
    seconds: float = Field(description="To its end or, while it runs, to now; by the database's clock.")
    outcome: str | None = Field(description="Null while it runs.")
    reason: str | None = Field(description="Why it ended, as a code; docs/status-reasons.md has them all.")
    detail: str | None = Field(description="The same for people, with how its training was stopped, if it was.")
    resumed_from_step: int | None = Field(description="0: from the beginning; null: its training did not begin.")
    last_step: int | None
    steps: int | None = Field(description="Optimiser steps that it has done.")


class MetricPoint(Out):
    step: int
    epoch: int
    value: float


class MetricSeries(Out):
    name: str
    points: list[MetricPoint]
    total_points: int = Field(description="Points of the series from `since_step` on, before down-sampling.")


class LatestMetric(Out):
    step: int
    epoch: int
    value: float


class BestEvaluation(Out):
    ap: float
    step: int
    epoch: int


class MetricsSummary(Out):
    latest: dict[str, LatestMetric] = Field(description="Last value of every metric of the job.")
    best: BestEvaluation | None = Field(description="Best validation AP so far.")


class Metrics(Out):
    series: list[MetricSeries]
    summary: MetricsSummary


class StateEvent(Out):
    """Event `state`: sent first, and whenever one of these changes."""

    state: JobStateName
    status_reason: str | None
    detail: str | None
    attempt: int
    worker_id: str | None
    best_ap: float | None
    warnings: list[JobWarning]


class MetricsEvent(Out):
    """Event `metrics`: the values of one step. A later event for the same step replaces its values."""

    step: int
    epoch: int
    attempt: int
    values: dict[str, float]


class GapEvent(Out):
    """Event `gap`: more was measured since the last id than is sent again; GET /jobs/{id}/metrics has all of it."""

    points: int = Field(description="The newest so many values follow.")


class EndEvent(Out):
    """Event `end`: the last one. `time`, `shutdown` (of this server): connect again, with the last id, to hear on."""

    reason: Literal["ended", "deleted", "time", "shutdown"]


class LogChunk(Out):
    """A piece of a log, addressed by bytes of UTF-8."""

    text: str
    offset: int = Field(description="Where the text begins; beyond what was asked for if older bytes were dropped.")
    next_offset: int = Field(description="Pass as `offset` to read on.")
    truncated: bool = Field(description="Whether there is more to read now.")


class ErrorFigures(Out):
    """Errors of one kind, as TIDE tells them apart (arXiv 2008.08115)."""

    count: int
    dap50: float | None = Field(description="AP50 with all of them mended, minus AP50.")


class Figures(Out):
    """One column of the comparison."""

    job_id: str | None
    detector: str | None
    parameters: int | None
    ap: float | None
    ap50: float | None
    stats: dict[str, float] | None = Field(
        description="The twelve COCO numbers of the best evaluation, and VOC's if asked for."
    )
    per_class: dict[str, float] | None
    errors: dict[str, ErrorFigures] | None = Field(
        description="What AP50 was lost to: classification, localisation, both, duplicate, background, missed. Of the "
        "best student known when its job ends, of the teacher when it has been evaluated."
    )
    cost: Cost | None = Field(description="Of the job that trained it; null where no job of this service did.")
    reason: str | None = Field(description="Why the figures are not known (yet); null where they are.")


class ClassGain(Out):
    name: str
    student: float | None
    baseline: float | None
    teacher: float | None
    gain: float | None


class Report(Out):
    """Student against its no-distillation twin and its teacher, on the same validation split."""

    job_id: str
    state: JobStateName
    complete: bool = Field(description="True when nothing in the report can change any more.")
    student: Figures
    baseline: Figures
    teacher: Figures
    gain: float | None = Field(description="Student AP - baseline AP.")
    recovery: float | None = Field(description="gain / (teacher AP - baseline AP).")
    reason: str | None = Field(description="Why gain or recovery is null.")
    per_class: list[ClassGain]


class CheckpointFile(Out):
    format: str
    bytes: int
    sha256: str
    url: str


class CheckpointOut(Out):
    name: str
    step: int
    epoch: int
    ap: float | None
    attempt: int
    created_at: datetime
    files: list[CheckpointFile]


class ArtifactOut(Out):
    kind: str
    name: str
    bytes: int
    sha256: str
    url: str


class Items(Out, Generic[Row]):
    """A short list, whole."""

    data: Sequence[Row]


class DatasetIn(BaseModel):
    """Register a folder that the server (and its workers) can read, or a dataset whose archive is sent afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$", description="Unique; what jobs call the dataset.")
    root: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        pattern=r"^[^\x00]+$",
        description="Absolute path of the folder, under an allowed root. Null: send an archive with "
        "PUT /datasets/{id}/archive.",
    )
    options: IndexOptions = Field(IndexOptions(), description="How the folder is to be read.")


class DatasetOptions(Out):
    """As registered."""

    format: str
    splits: dict[str, str] | None
    val_fraction: float | None
    val_seed: int


class DatasetProgress(Out):
    phase: Literal["uploading", "fetching", "unpacking", "checking"]
    done: int = Field(description="Bytes of the archive or, when checking, images.")
    total: int | None


class DatasetProblem(Out):
    """A reason why the dataset is invalid."""

    code: str
    detail: str


class Dataset(Out):
    id: str
    name: str
    state: Literal["uploading", "validating", "ready", "invalid"]
    source: Literal["folder", "archive"]
    root: str | None = Field(
        description="Its folder on the server; null where it is not unpacked (yet), and with artifacts in S3."
    )
    bytes: int | None = Field(description="Size of the archive.")
    options: DatasetOptions
    progress: DatasetProgress | None = Field(description="How far the present state is; null where nothing is done.")
    report: list[DatasetProblem] = Field(description="Why it is invalid; empty in all other states.")
    format: str | None = Field(description="coco, voc or yolo; null until it is ready, as all that follows.")
    sha256: str | None = Field(description="Of its whole content: images, boxes, classes and splits.")
    classes: list[str] = Field(description="In label order.")
    splits: dict[str, SplitFacts]
    created_by: str | None = Field(description="Id of the API key that asked for it; null before there were keys.")
    created_at: datetime


class DetectorOut(Out):
    name: str
    family: str
    version: str
    size: str
    backbone: str
    strides: list[int]
    channels: int = Field(description="Of every pyramid level.")
    anchors_per_location: int
    tower_convs: int
    parameters: int = Field(description="With the 91 outputs of COCO.")
    coco_map: float | None = Field(description="Box mAP (percent) of the COCO_V1 weights, as torchvision publishes it.")
    weights: list[str] = Field(description="Weights of the whole detector.")
    has_imagenet: bool = Field(description="Whether `imagenet` weights exist for the backbone.")
    flavour: str = Field(
        description="torchvision, or as mmdetection defines RetinaNet and FCOS, for its checkpoints: mm, mm_exp."
    )


class MethodOut(Out):
    name: str
    title: str
    source: str
    needs: list[str] = Field(description="What must agree between student and teacher.")
    published: str = Field(description="A figure published elsewhere; empty where there is none.")


class RecipeOut(Out):
    name: str
    title: str
    settings: dict[str, Any] = Field(
        description="The sections of a job that it fills in, every default written out, as for a student with ImageNet "
        "weights and the recipe's own batch."
    )


class DrainIn(BaseModel):
    """How a worker drains."""

    model_config = ConfigDict(extra="forbid", strict=True)

    wait: bool = Field(False, description="Finish the present job first, instead of handing it back.")


class Worker(Out):
    id: str
    hostname: str
    pid: int
    queues: list[str]
    device: dict[str, Any] = Field(
        description="What it computes on: cores, memory, GPUs, versions of the driver and of CUDA. A GPU with a "
        "`problem` is one that trainings cannot use."
    )
    gpus: int = Field(description="GPUs that trainings can use.")
    gpu_memory_mib: int = Field(description="The least memory among them; 0 where there is none, or it is not known.")
    telemetry: dict[str, Any] | None = Field(description="Utilisation and memory, as last told.")
    state: Literal["idle", "busy", "draining", "drained", "stopped", "lost"] = Field(
        description="lost: silent without having signed off. draining: still with its last job; drained: takes none."
    )
    draining: Literal["now", "wait"] | None = Field(
        description="Takes no jobs, also after a new start: `now` hands its present job back, `wait` finishes it."
    )
    alive: bool = Field(description="Whether its heartbeat is recent, by the database's clock.")
    current_job: str | None
    started_at: datetime
    heartbeat_at: datetime


class Health(Out):
    status: Literal["ok"]
    version: str


DependencyName = Literal["database", "migrations", "broker", "artifacts", "uploads", "reaper", "workers"]


class Dependency(Out):
    name: DependencyName
    ok: bool
    required: bool = Field(description="Whether the service is not ready without it.")
    detail: str = Field(description="What is wrong, or `ok`.")
    remedy: str | None = Field(description="How to mend it; null where it is well.")


class Readiness(Out):
    ready: bool
    dependencies: list[Dependency]
