"""Commands about jobs: list, show, cancel, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from client.console import (
    JobName,
    Url,
    ago,
    ap,
    connect,
    count,
    escaped,
    out,
    plain_table,
    say,
    signed_ap,
    size,
    span,
    styled_state,
)

if TYPE_CHECKING:
    from api.schemas import Job, JobSummary, Report

_WIDE = 100
"""Columns of a terminal from which on a list of jobs has room for the method and the student."""
_LONGEST_STATE = len("cancelling")


def register(app: typer.Typer) -> None:
    app.command("jobs")(list_jobs)
    app.command()(show)
    app.command()(cancel)
    app.command()(report)


def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state, e.g. running.")] = None,
    search: Annotated[str | None, typer.Option(help="Only jobs with this in their name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    url: Url = None,
) -> None:
    """List jobs, newest first."""
    is_wide = out().width >= _WIDE
    details = ("method", "student") if is_wide else ()
    table = plain_table("id", "name", "state", *details, "epoch", "AP", "ETA", "created", right=("epoch", "AP", "ETA"))
    table.columns[2].min_width, table.collapse_padding = _LONGEST_STATE, not is_wide
    with connect(url) as client:
        rows = list(client.jobs(state=state, search=search, limit=limit))
    for job in rows:
        epoch = f"{job.progress.epoch}/{job.progress.epochs or '-'}"
        eta = span(job.progress.eta_seconds) if job.state == "running" else "-"
        state_text = styled_state(job.state) + _why(job)
        told = (job.method, job.student_detector) if is_wide else ()
        table.add_row(job.id, escaped(job.name), state_text, *told, epoch, ap(job.best_ap), eta, ago(job.created_at))
    none = "no job fits" if state or search else "no jobs yet; `tid submit SPEC` makes one"
    out().print(table if rows else none)


def _why(job: JobSummary) -> str:
    """What a list says beside the state: why it failed, or why it waits and at which place of its queue."""
    if job.waiting is not None and job.waiting.reason != "paused":
        place = f", #{job.waiting.position}" if job.waiting.position is not None else ""
        return f" ({job.waiting.reason}{place})"
    return f" ({job.status_reason})" if job.state == "failed" else ""


def show(
    job: JobName,
    spec: Annotated[bool, typer.Option("--spec", help="Print the spec as YAML, every default filled in.")] = False,
    url: Url = None,
) -> None:
    """Show one job: state, attempts, files."""
    with connect(url) as client:
        found = client.job(client.find(job).id)
        if spec:
            import yaml

            say(yaml.safe_dump(found.spec, sort_keys=False).rstrip())
            return
        attempts = client.attempts(found.id)
        checkpoints = client.checkpoints(found.id)
    _print_facts(found)
    if len(attempts) > 1 or any(attempt.reason for attempt in attempts):
        table = plain_table("attempt", "outcome", "reason", "steps", "time", right=("steps", "time"))
        for one in attempts:
            first = one.resumed_from_step or 0
            steps = f"{first} to {one.last_step if one.last_step is not None else first + (one.steps or 0)}"
            table.add_row(str(one.number), one.outcome or "running", one.reason or "", steps, span(one.seconds))
        out().print(table)
    if checkpoints:
        table = plain_table("checkpoint", "epoch", "AP", "formats", right=("epoch", "AP"))
        for kept in checkpoints:
            table.add_row(kept.name, str(kept.epoch), ap(kept.ap), ", ".join(file.format for file in kept.files))
        out().print(table)


def _print_facts(job: Job) -> None:
    progress = job.progress
    done = f"epoch {progress.epoch}/{progress.epochs or '-'}, step {progress.step}/{progress.total_steps or '-'}"
    facts: list[tuple[str, str]] = [
        ("job", f"{job.id}  {escaped(job.name)}"),
        ("state", styled_state(job.state) + (f" ({job.status_reason})" if job.status_reason else "")),
        ("", escaped(job.detail or "")),
        ("waits", _waits(job)),
        ("method", f"{job.method}, student {job.student_detector}, teacher {job.teacher_detector or 'none'}"),
        ("dataset", escaped(job.dataset)),
        ("progress", done),
        ("best AP", ap(job.best_ap)),
        ("attempt", f"{job.attempt}; failures allowed: {job.max_attempts - 1}" if job.attempt else ""),
        ("cost", _cost(job)),
        ("baseline", job.baseline_job_id or ""),
        ("baseline of", job.twin_of or ""),
        ("sweep", job.sweep_id or ""),
        ("created", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    facts += [("warning", f"[yellow]{escaped(warning.detail)}[/]") for warning in job.warnings]
    for name, value in facts:
        if value:
            out().print(f"[dim]{name:>12}[/]  {value}", soft_wrap=True)


def _waits(job: Job) -> str:
    waiting = job.waiting
    if waiting is None or waiting.reason == "paused":
        return "until `tid resume`" if waiting is not None else ""
    place = f"; place {waiting.position} of {job.queue}" if waiting.position is not None else ""
    return f"{waiting.reason}: {escaped(waiting.detail)}{place} (priority {job.priority})"


def _cost(job: Job) -> str:
    """What is known of it; nothing before the first attempt."""
    cost = job.cost
    if not job.attempt:
        return ""
    told = [f"{span(cost.gpu_seconds)} on its GPUs, or as processes of the CPU"]
    if cost.images_per_second is not None:
        told.append(f"{cost.images_per_second:.1f} images/s")
    if cost.teacher_share is not None:
        told.append(f"teacher {cost.teacher_share:.0%} of a step")
    if cost.peak_memory_bytes is not None:
        told.append(f"peak memory {size(cost.peak_memory_bytes)}")
    return ", ".join(told)


def cancel(job: JobName, url: Url = None) -> None:
    """Stop a job, and its baseline.

    What it has learned so far can still be downloaded.
    """
    with connect(url) as client:
        found = client.cancel(client.find(job).id)
    say(f"{found.id}  {found.name}  {found.state}")


def report(
    job: JobName,
    json: Annotated[bool, typer.Option("--json", help="The report as the API gives it.")] = False,
    url: Url = None,
) -> None:
    """Compare student, baseline and teacher."""
    with connect(url) as client:
        found = client.report(client.find(job).id)
    if json:
        say(found.model_dump_json(indent=2))
        return
    print_report(found)


def print_report(report: Report) -> None:
    table = plain_table("", "detector", "AP", "AP50", "parameters", right=("AP", "AP50", "parameters"))
    for name in ("teacher", "baseline", "student"):
        figures = getattr(report, name)
        known = figures.ap is not None
        remark = "" if known else f"[dim] {escaped(figures.reason or '')}[/]"
        table.add_row(
            f"{name}{remark}", figures.detector or "-", ap(figures.ap), ap(figures.ap50), count(figures.parameters)
        )
    out().print(table)
    if report.gain is not None:
        has_gain = report.recovery is not None and report.gain > 0
        recovered = f", {report.recovery:.0%} of the way to the teacher" if has_gain else ""
        out().print(f"gain {signed_ap(report.gain)} AP{recovered}")
    elif report.reason:
        out().print(f"[dim]no gain: {escaped(report.reason)}[/]", soft_wrap=True)
