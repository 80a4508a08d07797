"""What the commands share: where they print, and how values read."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from client.client import Client

Url = Annotated[
    str | None, typer.Option("--url", envvar="TID_URL", help="The server.", show_default="http://127.0.0.1:8000")
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Id, beginning of an id, or name of a job.")]

FAILED, NO_SERVER, INTERRUPTED = 1, 3, 130
"""Exit codes beside 0 and click's 2 for a wrong command line."""

STATE_STYLES = {
    "queued": "cyan", "starting": "cyan", "running": "bold blue", "pausing": "yellow", "paused": "yellow",
    "cancelling": "yellow", "cancelled": "yellow", "succeeded": "green", "failed": "bold red",
}  # fmt: skip


@cache
def out() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@cache
def err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def complain(text: str) -> None:
    """The first line in red, what follows as it is."""
    from rich.text import Text

    first, _, rest = text.partition("\n")
    err().print(Text.assemble(("error: ", "bold red"), (first, "red")), soft_wrap=True)
    if rest:
        err().print(Text(rest), soft_wrap=True)


def say(text: str) -> None:
    """A line as it is: nothing in it is markup."""
    out().print(text, markup=False, soft_wrap=True)


def connect(url: str | None) -> Client:
    from client.client import Client

    return Client(url)


def escaped(text: str) -> str:
    """Text in which nothing is taken for markup."""
    from rich.markup import escape

    return escape(text)


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column == "id")  # ids are copied
    return table


def styled_state(state: str) -> str:
    return f"[{STATE_STYLES.get(state, 'white')}]{state}[/]"


def ap(value: float | None) -> str:
    """COCO AP as papers print it: in percent."""
    return "-" if value is None else f"{100 * value:.1f}"


def signed_ap(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def count(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.2f} M" if value >= 100_000 else f"{value:,}"


def size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def span(seconds: float | None) -> str:
    """1:05 or 2:03:04."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ago(time: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - time).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
