"""A job without the service: a spec and a folder in, checkpoints and a comparison out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tid_core.data.formats import read_source
from tid_core.data.index import IndexOptions, write_index
from tid_core.data.problems import DatasetError
from tid_core.data.scan import present
from tid_core.events import Event, Finished, Metrics, Progress, TrainingFailure
from tid_core.facts import DatasetFacts, facts_of
from tid_core.plan import RunPlan, SplitPaths, TeacherPlan
from tid_core.preflight import check
from tid_core.spec import FileWeights, JobSpec, JobWeights, load_spec
from tid_core.training.files import replace_file
from tid_core.training.launcher import run

Outcome = Literal["succeeded", "failed", "stopped"]


INDEX = "dataset"
"""Folder within the output: the dataset's annotations as training reads them."""
SHOWN = ("loss/", "val/AP", "val/VOC", "teacher/AP", "teacher/VOC")


class Console:
    """Tells the events that a person wants to read."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._eta: float | None = None

    def __call__(self, event: Event) -> None:
        text = self._text(event)
        if text:
            sys.stdout.write(f"[{self._title}] {text}\n")
            sys.stdout.flush()

    def _text(self, event: Event) -> str | None:
        match event.type:
            case "started":
                place = f"from step {event.resumed_from_step} " if event.resumed_from_step else ""
                return f"training {place}on {event.device} ({event.precision}): {event.total_steps} steps"
            case "metrics":
                return self._metrics(event)
            case "progress":
                return self._progress(event)
            case "checkpoint":
                return f"checkpoint {event.name}: {event.files['safetensors']}"
            case "warning":
                return f"warning ({event.code}): {event.detail}"
            case "finished":
                return event.outcome + (f" ({event.reason}): {event.detail}" if event.reason else "")
            case _:
                return None

    def _metrics(self, event: Metrics) -> str | None:
        values = {name: value for name, value in event.values.items() if "/class/" not in name}
        shown = [name for name in values if name.startswith(SHOWN) or name == "lr"]
        if not shown:
            return None
        left = f", {_duration(self._eta)} left" if self._eta is not None else ""
        return f"epoch {event.epoch} step {event.step}: {' '.join(f'{n} {values[n]:.4g}' for n in shown)}{left}"

    def _progress(self, event: Progress) -> str | None:
        self._eta = event.eta_seconds
        if event.phase in ("teacher_evaluation", "evaluation") and event.done == event.total:
            return f"{event.phase.replace('_', ' ')}: {event.total} images"
        return None


def run_spec(
    path: Path,
    out: Path,
    dataset: Path | None,
    should_stop: Callable[[], bool],
    options: IndexOptions | None = None,
) -> Outcome:
    """Train the spec's student and, with `baseline: true`, its twin, each in a folder of its own under `out`.

    `options` say how to read the dataset. A run that finds its own resume states in its folder goes on from there.
    """
    try:
        plans = prepare(path, out, dataset, options)
    except PREPARATION_ERRORS as error:
        sys.stderr.write(f"{readable(error)}\n")
        return "failed"
    for name, plan in plans.items():
        finished: Finished = run(plan, Console(name), should_stop)
        if finished.outcome != "succeeded":
            return finished.outcome
    _report(plans, out)
    return "succeeded"


PREPARATION_ERRORS = (OSError, ValueError, DatasetError, TrainingFailure)


def prepare(path: Path, out: Path, dataset: Path | None, options: IndexOptions | None = None) -> dict[str, RunPlan]:
    """The runs of a spec, `student` and perhaps `baseline`; the dataset's index is written to `out`.

    Raises:
        PREPARATION_ERRORS: `readable` makes text of them. What the preflight finds is told on stderr before.
    """
    spec = load_spec(path)
    root = (dataset or Path(spec.dataset)).expanduser().resolve()
    source = read_source(root, options or IndexOptions())
    present(root, source)
    facts = facts_of(source, root.name, "present")
    _check(spec, facts)
    folder = out.expanduser().resolve()
    plans = _plans(spec, root, folder)
    write_index(source, facts, folder / INDEX)
    return plans


def _check(spec: JobSpec, facts: DatasetFacts) -> None:
    problems = check(spec, dataset=facts, teacher=None)
    for problem in problems:
        sys.stderr.write(f"{problem.severity}: {problem.field}: {problem.detail}; {problem.expected}\n")
    if any(problem.severity == "error" for problem in problems):
        raise ValueError("the job cannot work as it is; nothing was started")


def _plans(spec: JobSpec, root: Path, out: Path) -> dict[str, RunPlan]:
    jobs = {"student": spec, "baseline": spec.baseline_twin()} if spec.baseline else {"student": spec}
    splits = {name: SplitPaths(images=root, annotations=out / INDEX / f"{name}.json") for name in ("train", "val")}
    plans = {}
    for name, job in jobs.items():
        folder = out / name if spec.baseline else out
        plans[name] = RunPlan(
            spec=job,
            train=splits["train"],
            val=splits["val"],
            teacher=_teacher(job),
            student_file=_file(job.student.weights, "student"),
            out_dir=folder,
            resume_from=folder / "resume",
            provenance={"dataset": str(root)},
        )
    return plans


def _teacher(spec: JobSpec) -> TeacherPlan | None:
    if spec.teacher is None:
        return None
    weights = spec.teacher.weights
    file = _file(weights, "teacher")
    return TeacherPlan(
        detector=spec.teacher.detector or "",
        weights=weights if isinstance(weights, str) else None,
        file=file,
        classes=weights.classes if isinstance(weights, FileWeights) else None,
    )


def _file(weights: FileWeights | JobWeights | str | None, whose: str) -> Path | None:
    if isinstance(weights, JobWeights):
        raise ValueError(f"{whose}.weights names a job, which only the service knows; give {{file: path}} instead")
    return weights.file.expanduser().resolve() if isinstance(weights, FileWeights) else None


def _report(plans: dict[str, RunPlan], out: Path) -> None:
    cards = {
        name: json.loads((plan.out_dir / "checkpoints/best.card.json").read_text()) for name, plan in plans.items()
    }
    report = {name: card["evaluation"].get("val/AP") for name, card in cards.items()}
    report["teacher"] = cards["student"]["teacher_ap"]
    if report.get("baseline") is not None and report["student"] is not None:
        report["gain"] = report["student"] - report["baseline"]
    replace_file(out / "report.json", json.dumps(report, indent=2).encode())
    told = ", ".join(f"{name} {value:.4f}" for name, value in report.items() if value is not None)
    sys.stdout.write(f"AP of the best checkpoints: {told}\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def readable(error: Exception) -> str:
    if isinstance(error, ValidationError):
        lines = [f"{'/'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        return "the spec is not valid:\n  " + "\n  ".join(lines)
    return str(error)
