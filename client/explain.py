"""`tid explain`: why a run ended as it did, in pictures. What is not there yet is said, never made up.

Everything comes over HTTP: the report, the series of the job and of its twin, the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api.schemas import TERMINAL_STATES, Job, Report
from client.client import Client
from client.console import ap
from client.errors import ClientError
from client.explain_bars import ROLES, draw_classes, draw_errors
from client.explain_curves import Run, Section, draw_run

SERIES = ("loss/*", "distill/*", "grad/*", "areas/*", "val/AP")
SUMS = ("loss/task", "loss/distill", "loss/total")
AREAS = {"key": "key", "weak": "weak", "high": "high: key and weak", "medium": "medium: one of them"}


@dataclass(frozen=True)
class Missing:
    """Something that could not be written, and why."""

    name: str
    reason: str


@dataclass
class Explained:
    """What was written where, beside the figures it was made of."""

    job: Job
    report: Report
    written: list[Path] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.job.state in TERMINAL_STATES


def explain(client: Client, job_id: str, folder: Path) -> Explained:
    """Write curves.png, classes.png, errors.png and maps/ for the job into `folder`.

    Pictures of an earlier call are replaced, or removed where there is nothing to draw.

    Raises:
        ClientError: matplotlib is not installed.
    """
    _require_matplotlib()
    job, report = client.job(job_id), client.report(job_id)
    told = Explained(job, report)
    folder.mkdir(parents=True, exist_ok=True)
    student = read_run(client, job, "student")
    twin = report.baseline.job_id
    baseline = read_run(client, client.job(twin), "baseline") if twin is not None else None
    _write(told, folder / "curves.png", _no_curves(told, student), lambda path: _curves(told, student, baseline, path))
    _write(told, folder / "classes.png", _no_classes(told), lambda path: _classes(told, path))
    _write(told, folder / "errors.png", _no_errors(told), lambda path: _errors(told, path))
    _fetch_maps(client, told, folder / "maps")
    return told


def read_run(client: Client, job: Job, role: str) -> Run:
    """The series of a job that are drawn."""
    series = {one.name: one.points for one in client.metrics(job.id, *SERIES).series}
    progress = job.progress
    return Run(
        role=role,
        steps={name: [(point.step, point.value) for point in points] for name, points in series.items()},
        ap=[(point.epoch, point.value) for point in series.get("val/AP", [])],
        epoch_steps=progress.total_steps / progress.epochs if progress.total_steps and progress.epochs else None,
    )


def sections(run: Run, methods: Sequence[str]) -> list[Section]:
    """The panels of a run: losses of the task, of distillation, shares of the areas."""
    of_task = sorted(name for name in run.steps if name.startswith("loss/") and name not in SUMS)
    terms = sorted(name for name in run.steps if _is_term(name, methods))
    whole = ["loss/task"] if "loss/task" in run.steps else []
    distilled = ["loss/distill"] if len(terms) > 1 else []
    return [
        Section("losses of the task", [(_title(name), name) for name in whole + of_task]),
        Section("distillation", [(_title(name), name) for name in distilled + _in_order(terms)]),
        Section("share of points in TID's areas, percent", _area_panels(run)),
    ]


def _is_term(name: str, methods: Sequence[str]) -> bool:
    """Not what a method measures beside its terms, such as distill/features/p3."""
    parts = name.split("/")
    return parts[0] == "distill" and len(parts) == (3 if len(methods) > 1 and parts[1] in methods else 2)


def _in_order(terms: list[str]) -> list[str]:
    regions = ("high", "medium", "low")
    return sorted(terms, key=lambda name: regions.index(last) if (last := name.split("/")[-1]) in regions else 3)


def _title(name: str) -> str:
    return {"loss/task": "task, sum", "loss/distill": "distillation, sum"}.get(name, name.partition("/")[2])


def _area_panels(run: Run) -> list[tuple[str, str]]:
    prefixes = [(title, f"areas/{area}") for area, title in AREAS.items()]
    return [(title, prefix) for title, prefix in prefixes if any(name.startswith(f"{prefix}/") for name in run.steps)]


def _write(told: Explained, path: Path, reason: str | None, draw: Callable[[Path], Path]) -> None:
    if reason is None:
        told.written.append(draw(path))
        return
    path.unlink(missing_ok=True)
    told.missing.append(Missing(path.name, reason))


def _curves(told: Explained, student: Run, baseline: Run | None, path: Path) -> Path:
    job, methods = told.job, told.job.method.split("+")
    title = f"{job.name}: {job.student_detector}, {_taught(job)}"
    return draw_run(student, baseline, told.report.teacher.ap, sections(student, methods), path, title=title)


def _classes(told: Explained, path: Path) -> Path:
    return draw_classes(told.report.per_class, path, title=f"{told.job.name}: what {told.job.method} changed, by class")


def _errors(told: Explained, path: Path) -> Path:
    figures = {role: getattr(told.report, role) for role in ROLES}
    errors = {role: one.errors for role, one in figures.items() if one.errors}
    reached = ", ".join(f"{role} {ap(figures[role].ap50)}" for role in errors)
    note = f"AP50: {reached}; every detection that is not right has one kind (TIDE, arXiv 2008.08115)"
    return draw_errors(errors, path, title=f"{told.job.name}: what AP50 is lost to", note=note)


def _taught(job: Job) -> str:
    return "no distillation" if job.method == "none" else f"distilled by {job.method}"


def _no_curves(told: Explained, student: Run) -> str | None:
    return None if student.steps else f"no metric yet; {_state(told)}"


def _no_classes(told: Explained) -> str | None:
    if any(row.gain is not None for row in told.report.per_class):
        return None
    baseline = told.report.baseline
    return told.report.student.reason or baseline.reason or f"no class has an AP in both runs yet; {_state(told)}"


def _no_errors(told: Explained) -> str | None:
    if any(getattr(told.report, role).errors for role in ROLES):
        return None
    if told.job.state == "succeeded":
        return "the job ran before errors were told apart; a new run of it has them"
    return f"errors are told when the best student is known; {_state(told)}"


def _state(told: Explained) -> str:
    return f"the job {'ended as' if told.ended else 'is'} {told.job.state}"


def _fetch_maps(client: Client, told: Explained, folder: Path) -> None:
    maps = client.maps(told.job.id)
    for picture in maps:
        path = folder / Path(picture.name).name
        client.fetch(picture, path)
        told.written.append(path)
    if not maps:
        told.missing.append(Missing("maps/", _no_maps(told)))


def _no_maps(told: Explained) -> str:
    evaluation = told.job.spec["evaluation"]
    if told.job.spec.get("teacher") is None:
        return "without a teacher there are no areas"
    if evaluation["maps"] == 0:
        return "the job was submitted with `evaluation.maps: 0`"
    return f"areas are drawn at the end, and after the epochs of `evaluation.map_epochs`; {_state(told)}"


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ClientError('pictures need matplotlib: pip install "tid-service[worker]"')
