"""Jobs as they work: bars on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from api.schemas import JobSummary
from client.console import STATE_STYLES, ap, span

LINE_SECONDS = 15.0
SHOWN = ("val/AP", "loss/total", "loss/task", "loss/distill", "grad/distill_ratio", "lr")


class Board:
    """A row per job. On a terminal it redraws in place; into a file or a pipe it prints a line when something changed.

    Use it in a `with` statement; the last state stays on the screen.
    """

    def __init__(self, console: Console, *, lines_every: float = LINE_SECONDS) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[words]}"))
        self._bars = Progress(*columns, console=console)
        self._rows: dict[str, TaskID] = {}
        self._told: dict[str, tuple[float, tuple[Any, ...]]] = {}
        self._lines_every = lines_every
        self._metrics: dict[str, float] = {}
        self._foot = ""
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._foot = ""
        if self.console.is_terminal:
            self._live.stop()

    def add(self, label: str) -> None:
        """A row for a job that does not exist yet."""
        width = max(len(label), *(len(known) for known in self._rows)) if self._rows else len(label)
        self._rows[label] = self._bars.add_task(escape(label.ljust(width)), total=1.0, words="[dim]waiting[/]")

    def update(self, label: str, job: JobSummary) -> None:
        if label not in self._rows:
            self.add(label)
        self._bars.update(self._rows[label], completed=fraction(job), words=_words(job))
        if not self.console.is_terminal:
            self._tell(label, job)

    def metrics(self, latest: dict[str, float]) -> None:
        """The last values to show under the bars (terminal only)."""
        self._metrics.update(latest)

    def foot(self, text: str) -> None:
        """A line under everything (terminal only)."""
        self._foot = text

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _render(self) -> Group:
        parts: list[Any] = [self._bars]
        if self._metrics:
            parts.append(_metrics_table(self._metrics))
        if self._foot:
            parts.append(f"[dim]{escape(self._foot)}[/]")
        return Group(*parts)

    def _tell(self, label: str, job: JobSummary) -> None:
        now, seen = time.monotonic(), (job.state, job.progress.epoch, job.best_ap, job.waiting)
        last = self._told.get(label)
        if last is not None and last[1] == seen and (job.state != "running" or now - last[0] < self._lines_every):
            return
        self._told[label] = (now, seen)
        self.console.print(f"{time.strftime('%H:%M:%S')}  {escape(label)}  {_words(job)}", soft_wrap=True)


def fraction(job: JobSummary) -> float:
    """How much of the job is done, 0..1."""
    if job.state == "succeeded":
        return 1.0
    progress = job.progress
    return min(1.0, progress.step / progress.total_steps) if progress.total_steps else 0.0


def _words(job: JobSummary) -> str:
    progress = job.progress
    state = f"[{STATE_STYLES[job.state]}]{job.state}[/]"
    if job.waiting is not None and job.state in ("queued", "paused"):
        return f"{state} ({escape(job.waiting.detail)})"
    if job.state != "running":
        why = f" ({job.status_reason})" if job.status_reason and job.state != "succeeded" else ""
        return f"{state}{why}" + (f"  AP {ap(job.best_ap)}" if job.best_ap is not None else "")
    phase = "" if progress.phase in (None, "training") else f"{str(progress.phase).replace('_', ' ')}"
    parts = [
        phase or state,
        f"epoch {progress.epoch}/{progress.epochs or '?'}",
        f"AP {ap(job.best_ap)}" if job.best_ap is not None else "",
        f"{progress.images_per_second:.0f} img/s" if progress.images_per_second else "",
        f"ETA {span(progress.eta_seconds)}" if progress.eta_seconds is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _metrics_table(latest: dict[str, float]) -> Table:
    table = Table.grid(padding=(0, 3))
    names = [name for name in SHOWN if name in latest]
    names += sorted(name for name in latest if name.startswith("distill/"))
    for start in range(0, len(names), 4):
        cells = (f"[dim]{escape(name)}[/] {latest[name]:.4g}" for name in names[start : start + 4])
        table.add_row(*cells)
    return table
