"""Commands that ask something of a job: pause, resume, retry, priority, delete, attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from client.console import JobName, Url, connect, escaped, out, plain_table, say, span

if TYPE_CHECKING:
    from api.schemas import Attempt, Job


def register(app: typer.Typer) -> None:
    for command in (pause, resume, retry, priority, delete, attempts):
        app.command()(command)


def pause(job: JobName, url: Url = None) -> None:
    """Let a job rest, and its baseline.

    Its state is saved and its GPU is free until `tid resume`.
    """
    with connect(url) as client:
        _tell(client.pause(client.find(job).id))


def resume(job: JobName, url: Url = None) -> None:
    """Go on with a paused job, and its baseline."""
    with connect(url) as client:
        _tell(client.resume(client.find(job).id))


def retry(
    job: JobName,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin at the first step; earlier results are forgotten.")
    ] = False,
    url: Url = None,
) -> None:
    """Try a failed or cancelled job again, from its newest state.

    Failures so far no longer count against its attempts.
    """
    with connect(url) as client:
        _tell(client.retry(client.find(job).id, start="fresh" if fresh else "checkpoint"))


def priority(
    job: JobName,
    number: Annotated[int, typer.Argument(min=0, max=9, help="0 goes first.")],
    url: Url = None,
) -> None:
    """Change the place of a job in its queue."""
    with connect(url) as client:
        _tell(client.set_priority(client.find(job).id, number))


def delete(job: JobName, url: Url = None) -> None:
    """Forget a job that has ended, with everything it wrote."""
    with connect(url) as client:
        found = client.find(job)
        client.delete(found.id)
    say(f"{found.id}  {found.name}  deleted")
    if found.baseline_job_id is not None and found.sweep_id is None:
        say(f"its baseline {found.baseline_job_id} stays; `tid delete {found.baseline_job_id}` deletes that too")


def attempts(job: JobName, url: Url = None) -> None:
    """Show every start of a job: where, for how long, from which step, and how it ended."""
    with connect(url) as client:
        rows = client.attempts(client.find(job).id)
    if not rows:
        say("no worker has had it yet")
        return
    right = ("from", "steps", "time")
    table = plain_table("no.", "worker", "outcome", "reason", *right, right=right)
    table.collapse_padding = True  # a worker and a reason fit side by side into 80 columns
    for one in rows:
        first = "-" if one.resumed_from_step is None else str(one.resumed_from_step)
        steps = "-" if one.steps is None else str(one.steps)
        told = (escaped(one.worker_id or "-"), one.outcome or "running", one.reason or "")
        table.add_row(str(one.number), *told, first, steps, span(one.seconds))
    out().print(table)
    for one in rows:
        if detail := _detail(one):
            say(f"{one.number}: {detail}")


def _detail(attempt: Attempt) -> str:
    lease = attempt.lease_expires_at
    told = f"its lease runs until {lease:%H:%M:%S} UTC" if lease is not None else attempt.detail or ""
    beside = f"with {', '.join(attempt.other_workers)}" if attempt.other_workers else ""
    return "; ".join(filter(None, (beside, told)))


def _tell(job: Job) -> None:
    waits = f" ({job.waiting.detail})" if job.waiting is not None and job.state == "queued" else ""
    say(f"{job.id}  {job.name}  {job.state}{waits}")
