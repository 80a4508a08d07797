"""Commands that bring numbers and files here: metrics, download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.console import JobName, Url, connect, out, plain_table, say, size

if TYPE_CHECKING:
    from api.schemas import Metrics
    from client.client import Client

BLOCKS = "▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    app.command()(metrics)
    app.command()(download)


def metrics(
    job: JobName,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="e.g. val/AP loss/total.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Every point, as CSV.")] = False,
    since_step: Annotated[int | None, typer.Option(min=0, help="Only points after this step.")] = None,
    url: Url = None,
) -> None:
    """Show a job's metrics, or print them as CSV.

    For each series the last value, the range and a small curve; only those named, if any are.
    """
    with connect(url) as client:
        found = client.find(job)
        if csv:
            typer.echo(client.metrics_csv(found.id, *names or [], since_step=since_step), nl=False)
            return
        answer = client.metrics(found.id, *names or [], since_step=since_step, max_points=40)
    out().print(_table(answer) if answer.series else "no metrics yet")


def _table(answer: Metrics) -> Any:
    numbers = ("points", "last", "lowest", "highest")
    table = plain_table("metric", *numbers, "", right=numbers)
    for series in answer.series:
        values = [point.value for point in series.points]
        if values:
            cells = (f"{value:.4g}" for value in (values[-1], min(values), max(values)))
            table.add_row(series.name, str(series.total_points), *cells, sparkline(values))
    return table


def sparkline(values: list[float]) -> str:
    """One block a value, from the lowest to the highest of the series."""
    low, high = min(values), max(values)
    if high == low:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in values)


def download(
    job: JobName,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="best, last or epoch-N.")] = "best",
    format: Annotated[str, typer.Option("--format", "-f", help="safetensors, pt or card.")] = "safetensors",  # noqa: A002
    to: Annotated[Path | None, typer.Option("--out", "-o", help="File or folder; default: here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    url: Url = None,
) -> None:
    """Download a student.

    A broken download is continued, and the sha256 is verified.
    """
    from client.errors import ClientError

    with connect(url) as client:
        found = client.find(job)
        target = _target(found.id, name, format, to)
        if target.exists() and not force:
            raise ClientError(f"{target} exists; --force replaces it, --out names another file")
        sha256 = _with_bar(client, found.id, name, format, target)
    say(f"{target}  {size(target.stat().st_size)}  sha256 {sha256}")


def _target(job_id: str, name: str, format: str, to: Path | None) -> Path:  # noqa: A002
    file = f"{job_id}-{name}.json" if format == "card" else f"{job_id}-{name}.{format}"
    if to is None:
        return Path(file)
    return to / file if to.is_dir() else to


def _with_bar(client: Client, job_id: str, name: str, format: str, target: Path) -> str:  # noqa: A002
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=out(), transient=True, disable=not out().is_terminal) as bars:
        bar = bars.add_task(target.name, total=None)

        def on_bytes(have: int, total: int | None) -> None:
            bars.update(bar, completed=have, total=total)

        return client.download(job_id, name, format, path=target, on_bytes=on_bytes)
