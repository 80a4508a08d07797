"""Following the jobs of a sweep until all have ended, by asking now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from client.console import FAILED, STATE_STYLES, ap, complain, out, say, span

if TYPE_CHECKING:
    from api.sweeps.schemas import Sweep, SweepJob
    from client.client import Client

POLL_SECONDS = 2.0
_SHOWN = 12
_WIDTH = 40
ENDED = ("succeeded", "failed", "cancelled")


def follow_sweep(client: Client, sweep_id: str) -> int:
    """Show the sweep until its last job has ended; the exit code that says how."""
    console = out()
    told: dict[str, int] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (sweep := client.sweep(sweep_id)).state not in ENDED:
            if console.is_terminal:
                live.update(board(sweep), refresh=True)
            elif sweep.counts != told:
                told = _tell(console, sweep)
            time.sleep(POLL_SECONDS)
    return _tell_end(sweep)


def board(sweep: Sweep) -> Group:
    """One bar for the sweep, and a line for each job that is at work."""
    at_work = [job for job in sweep.jobs if job.state not in (*ENDED, "queued")]
    head = Table.grid(padding=(0, 1))
    share = (sweep.done + sum(fraction(job) for job in at_work)) / sweep.total
    head.add_row(escape(sweep.name), ProgressBar(total=1.0, completed=share, width=_WIDTH), counted(sweep))
    lines = Table.grid(padding=(0, 2))
    for job in at_work[:_SHOWN]:
        progress = job.progress
        lines.add_row(
            f"  {escape(job.name)}",
            f"[{STATE_STYLES[job.state]}]{job.state}[/]",
            f"epoch {progress.epoch}/{progress.epochs or '?'}",
            f"AP {ap(job.best_ap)}",
            f"ETA {span(progress.eta_seconds)}",
        )
    return Group(head, lines)


def fraction(job: SweepJob) -> float:
    """How much of a job at work is done, 0..1."""
    progress = job.progress
    return min(1.0, progress.step / progress.total_steps) if progress.total_steps else 0.0


def counted(sweep: Sweep) -> str:
    """`3/8 done, 1 running, 4 queued`."""
    rest = [f"{number} {state}" for state, number in sweep.counts.items() if state != "succeeded"]
    return ", ".join([f"{sweep.done}/{sweep.total} done", *rest])


def _tell(console: Console, sweep: Sweep) -> dict[str, int]:
    console.print(f"{time.strftime('%H:%M:%S')}  {sweep.name}  {counted(sweep)}", markup=False, soft_wrap=True)
    return sweep.counts


def _tell_end(sweep: Sweep) -> int:
    if sweep.state == "succeeded":
        say(f"all {sweep.total} jobs have succeeded; next: tid sweep report {sweep.id}")
        return 0
    lines = [f"  {job.id}  {job.name}  {job.state}: {job.status_reason}" for job in sweep.jobs if _is_lost(job)]
    more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    complain(
        f"{sweep.name} {sweep.state}: {len(lines)} of {sweep.total} jobs have no result\n"
        + "\n".join(lines[:_SHOWN])
        + f"{more}\ntid logs JOB has what a training said, tid sweep report {sweep.id} compares the rest"
    )
    return FAILED


def _is_lost(job: SweepJob) -> bool:
    return job.state in ("failed", "cancelled")
