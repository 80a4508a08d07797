"""What the training process is handed: the resolved spec, and where things lie on this machine. Free of torch."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tid_core.spec import JobSpec


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitPaths(_Plan):
    images: Path
    annotations: Path


class TeacherPlan(_Plan):
    """A teacher whose weights are a torchvision name or a local file."""

    detector: str
    weights: str | None = None
    file: Path | None = None
    classes: list[str] | None = None


class NodePlan(_Plan):
    """The place of this machine among those that train a job together, each with a plan of its own."""

    number: int
    """0 hosts the store in which all meet, has the first rank, and so speaks and writes for all."""
    count: int
    host: str
    """IP address of node 0, at which all reach the store."""
    port: int
    address: str
    """IP address of this node, at which the others reach its ranks."""
    listen_fd: int | None = None
    """Node 0: a socket bound to `host` and `port`, so that the port is nobody else's by then."""


class RunPlan(_Plan):
    """One attempt. The process reads `resume_dir`'s newest complete state, if any, and writes only under `out_dir`.

    `out_dir` holds checkpoints/, maps/, resume/ and detections.json; see tid_core.training.
    """

    spec: JobSpec
    train: SplitPaths
    val: SplitPaths
    classes: list[str] | None = None
    """What the dataset's classes were when it was registered; jobs that build on this one rely on their order."""
    teacher: TeacherPlan | None = None
    student_file: Path | None = None
    out_dir: Path
    resume_from: Path | None = None
    provenance: dict[str, str] = {}
    gpus_required: int = 0
    """GPUs without which it may not begin, since its job waited for them; `tid train` does with less."""
    room_seconds: float = 0.0
    """How long a full disk is waited for."""
    node: NodePlan | None = None
    """Where several machines train the job."""
