"""`tid explain`: pictures and a table that say why a run ended as it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.console import JobName, Url, ap, connect, escaped, out, plain_table, say, signed_ap

if TYPE_CHECKING:
    from api.schemas import Report
    from client.explain import Explained

SHOWN_CLASSES = 3


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    job: JobName,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: JOB-explained, here.")] = None,
    url: Url = None,
) -> None:
    """Write pictures that explain a run, and sum it up.

    curves.png, classes.png, errors.png and maps/; what a running job does not have yet is said. docs/explain.md tells
    how to read them.
    """
    from client.commands.jobs import print_report
    from client.explain import explain as write

    with connect(url) as client:
        found = client.find(job)
        folder = to or Path(f"{found.id}-explained")
        told = write(client, found.id, folder)
    print_report(told.report)
    _print_errors(told.report)
    _print_classes(told.report)
    _print_files(told, folder)


def _print_errors(report: Report) -> None:
    from tid_core.error_kinds import ERROR_KINDS

    roles = [role for role in ("teacher", "baseline", "student") if getattr(report, role).errors]
    if not roles:
        return
    columns = [heading for role in roles for heading in (f"{role} dAP50", "count")]
    table = plain_table("AP50 lost to", *columns, right=tuple(columns))
    for kind in ERROR_KINDS:
        found = [getattr(report, role).errors.get(kind) for role in roles]
        cells = [cell for one in found for cell in ((ap(one.dap50), f"{one.count:,}") if one else ("-", "-"))]
        table.add_row(kind, *cells)
    out().print(table)


def _print_classes(report: Report) -> None:
    """The classes that distillation helped and harmed most."""
    known = sorted((row for row in report.per_class if row.gain is not None), key=lambda row: -(row.gain or 0))
    better = [row for row in known if (row.gain or 0) > 0][:SHOWN_CLASSES]
    worse = [row for row in reversed(known) if (row.gain or 0) < 0][:SHOWN_CLASSES]
    for word, rows in (("gained most", better), ("lost most", worse)):
        if rows:
            told = ", ".join(f"{escaped(row.name)} {signed_ap(row.gain)}" for row in rows)
            out().print(f"{word}: {told}", soft_wrap=True)


def _print_files(told: Explained, folder: Path) -> None:
    pictures = [path for path in told.written if path.parent == folder]
    maps = len(told.written) - len(pictures)
    names = [path.name for path in pictures] + ([f"maps/ ({maps})"] if maps else [])
    if names:
        say(f"in {folder}: {', '.join(names)}")
    for one in told.missing:
        out().print(f"[dim]no {one.name}: {escaped(one.reason)}[/]", soft_wrap=True)
    if not told.ended:
        say(f"the job is {told.job.state}; the same command again brings the pictures up to date")
    if told.job.twin_of:
        say(f"this is a baseline; tid explain {told.job.twin_of} compares it with the student that was taught")
