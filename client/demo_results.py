"""What `tid demo` leaves behind: the report, the pictures, the student's files, and a table at the end."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from api.schemas import ArtifactOut, Job, Report
from client import pictures, scenes
from client.client import Client
from client.console import ap, count, out, plain_table, say, signed_ap, span

SHOWN_IMAGES, SHOWN_SCORE = 5, 0.3
STUDENT_FILES = {"safetensors": "student.safetensors", "pt": "student.pt", "card": "model_card.json"}


@dataclass(frozen=True)
class Pair:
    """The ids of a student's job and of its twin without distillation."""

    seed: int
    student: str
    baseline: str


def write_results(client: Client, folder: Path, teacher: Job, pairs: list[Pair]) -> list[Report]:
    """Fetch everything worth keeping; files and pictures are those of the first seed."""
    reports = [client.report(pair.student) for pair in pairs]
    first = {"teacher": teacher.id, "baseline": pairs[0].baseline, "student": pairs[0].student}
    rows = [{"seed": pair.seed, **report.model_dump(mode="json")} for pair, report in zip(pairs, reports, strict=True)]
    _write_json(folder / "report.json", {"summary": summary(reports), "teacher_job": teacher.id, "seeds": rows})
    for format_, name in STUDENT_FILES.items():
        client.download(pairs[0].student, "best", format_, path=folder / name)
    for picture in client.maps(pairs[0].student):
        client.fetch(picture, folder / "maps" / Path(picture.name).name)
    runs = [curves_of(client, role, job_id) for role, job_id in first.items()]
    note = "thin: logged steps, bold: mean of each epoch; one seed" if len(pairs) == 1 else "seed 0; thin: logged steps"
    title = "A student taught by TID, the same student alone, and their teacher"
    pictures.draw_curves(runs, folder / "curves.png", title=title, note=note)
    _draw_detections(client, folder, first, reports[0])
    return reports


def summary(reports: list[Report]) -> dict[str, Any]:
    """Means over the seeds, and the range of the gain."""
    gains = [report.gain for report in reports if report.gain is not None]
    recoveries = [report.recovery for report in reports if report.recovery is not None]
    roles = ("teacher", "baseline", "student")
    return {
        "seeds": len(reports),
        "ap": {role: _mean([getattr(report, role).ap for report in reports]) for role in roles},
        "gain": _mean(gains),
        "gain_range": [min(gains), max(gains)] if gains else None,
        "recovery": _mean(recoveries),
    }


def curves_of(client: Client, name: str, job_id: str) -> pictures.Curves:
    """The job's loss terms and mAP against epochs, read over HTTP."""
    job, answer = client.job(job_id), client.metrics(job_id)
    steps = (job.progress.total_steps or 1) / (job.progress.epochs or 1)
    series = {one.name: [(point.step / steps, point.value) for point in one.points] for one in answer.series}
    terms = {term: points for term, points in series.items() if is_term(term)}
    return pictures.Curves(name=name, losses=terms, ap=series.get("val/AP", []))


def is_term(name: str) -> bool:
    """A part of the loss, rather than a sum of parts or a count."""
    part_of_task = name.startswith("loss/") and name not in ("loss/total", "loss/task", "loss/distill")
    return part_of_task or (name.startswith("distill/") and name.count("/") == 1)


def _draw_detections(client: Client, folder: Path, jobs: dict[str, str], report: Report) -> None:
    found = {role: _detections(client, job_id, folder) for role, job_id in jobs.items()}
    titles = {role: f"{role}, AP {ap(getattr(report, role).ap)}" for role in jobs}
    data = scenes.Annotated.read(folder / "data" / "val.json", folder / "data" / "val")
    chosen = data.scenes(
        {titles[role]: boxes for role, boxes in found.items()}, count=SHOWN_IMAGES, min_score=SHOWN_SCORE
    )
    note = (
        f"{len(chosen)} of {len(data.images)} validation images, evenly spaced and so not chosen by result; "
        f"detections that score at least {SHOWN_SCORE}"
    )
    pictures.draw_detections(chosen, folder / "detections.png", title="What each detector finds", note=note)


def _detections(client: Client, job_id: str, folder: Path) -> list[dict[str, Any]]:
    """The job's detections on the validation images, as a COCO results file holds them."""
    kept = next(one for one in client.artifacts(job_id) if one.kind == "detections")
    return _read_results(client, kept, folder / f".{job_id}.json")


def _read_results(client: Client, kept: ArtifactOut, path: Path) -> list[dict[str, Any]]:
    try:
        client.fetch(kept, path)
        results: list[dict[str, Any]] = json.loads(path.read_text())["results"]
        return results
    finally:
        path.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _mean(values: list[float | None] | list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def print_summary(reports: list[Report], folder: Path, *, seconds: float, quick: bool, remote: bool) -> None:
    """The table, what it says, and what to look at."""
    out().print()
    out().print(_table(reports))
    for line in conclusions(reports, quick=quick):
        say(line)
    say(f"\n{span(seconds)} in all. In {folder}:")
    for name, meaning in (
        ("detections.png", "ground truth, teacher, baseline and student side by side"),
        ("curves.png", "mAP and every loss term over the epochs"),
        ("maps/", "where the student was taught: key, weak, high, medium and low areas"),
        ("report.json", "the comparison, with AP per class"),
        ("student.safetensors", "the student; student.pt is the same as a plain torchvision state_dict"),
        ("model_card.json", "classes, AP, provenance, sha256, and how to load it with torchvision alone"),
    ):
        say(f"  {name:<20} {meaning}")
    if remote:
        say("next, at the same server:")
    else:
        say(f"next: tid up --home {folder / 'service'} serves these jobs again; with it running,")
    say("  tid datasets add NAME FOLDER and tid submit SPEC --watch train on your own images")


def _table(reports: list[Report]) -> Any:
    table = plain_table("", "detector", "AP", "AP50", "parameters", right=("AP", "AP50", "parameters"))
    names = {"teacher": "teacher", "baseline": "baseline (student alone)", "student": "student (taught by TID)"}
    for role, name in names.items():
        figures = [getattr(report, role) for report in reports]
        shown = figures[:1] if role == "teacher" else figures
        style = "bold" if role == "student" else None
        for seed, one in enumerate(shown):
            label = name if len(shown) == 1 else f"{name}, seed {seed}"
            table.add_row(label, one.detector, ap(one.ap), ap(one.ap50), count(one.parameters), style=style)
    return table


def conclusions(reports: list[Report], *, quick: bool) -> list[str]:
    """What the figures say, and what they do not."""
    told = summary(reports)
    if told["gain"] is None:
        return [f"no gain can be told: {reports[0].reason or 'an AP is missing'}"]
    has_gain = told["recovery"] is not None and told["gain"] > 0
    recovered = f"; {told['recovery']:.0%} of the way from baseline to teacher" if has_gain else ""
    lines = [f"gain of distillation: {signed_ap(told['gain'])} AP{recovered}"]
    if len(reports) > 1:
        low, high = told["gain_range"]
        lines.append(f"over {len(reports)} seeds the gain lies between {signed_ap(low)} and {signed_ap(high)}")
    else:
        lines.append("one seed: a few points either way are chance; --seeds 3 shows how much")
    if quick:
        lines.append("--quick trains far too little for these numbers to mean anything")
    return lines
