"""`tid sweep`: many jobs at once, compared fairly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from client.console import (
    FAILED,
    Url,
    ago,
    ap,
    complain,
    connect,
    escaped,
    out,
    plain_table,
    say,
    signed_ap,
    styled_state,
)

if TYPE_CHECKING:
    from api.sweeps.schemas import Sweep, SweepDryRun, SweepReport, SweepRow
    from client.client import Client


class _FileFirst(TyperGroup):
    """`tid sweep FILE` is `tid sweep submit FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["submit", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileFirst,
    help="Many jobs at once, each beside the baseline of its seed: `tid sweep FILE` hands them in, `report` compares.",
    no_args_is_help=True,
)
_COLUMNS = ("runs", "AP", "AP50", "gain", "95 % interval", "wins", "GPU-s", "GPU-s/point")
_LESSER = ("AP50", "wins", "GPU-s", "GPU-s/point")
_WIDE = 110

SweepName = Annotated[str, typer.Argument(metavar="SWEEP", help="Id, beginning of an id, or name of a sweep.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, as YAML or JSON: name, base, axes.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until all jobs have ended.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the jobs, and what is wrong with them.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Another name than the file's.")] = None,
    url: Url = None,
) -> None:
    """Hand in a sweep; also `tid sweep FILE`. All of its jobs are queued, or none."""
    from client.errors import ClientError
    from client.specs import read_document
    from tid_core.sweep import SweepSpec

    if not file.suffix and not file.exists():
        raise ClientError(f"{file} is neither a file nor a command of `tid sweep`; its help lists them: tid sweep -h")
    document = read_document(file, SweepSpec)
    if name is not None:
        document["name"] = name
    with connect(url) as client:
        if dry_run:
            raise typer.Exit(_tell_dry_run(file, client.dry_run_sweep(document)))
        sweep = client.submit_sweep(document)
        _tell_submitted(sweep)
        if watch:
            from client.sweep_watching import follow_sweep

            raise typer.Exit(follow_sweep(client, sweep.id))
    say(f"next: tid sweep show {sweep.id}, tid sweep report {sweep.id}")


def _tell_submitted(sweep: Sweep) -> None:
    baselines = sum(job.role == "baseline" for job in sweep.jobs)
    with_them = f", {baselines} of them baselines" if baselines else ""
    say(f"{sweep.id}  {sweep.name}  {sweep.state}: {sweep.total} jobs{with_them}")
    for warning in sweep.warnings:
        out().print(f"[yellow]warning:[/] {escaped(warning.detail)}", soft_wrap=True)


def _tell_dry_run(file: Path, found: SweepDryRun) -> int:
    from client.errors import describe_error

    table = plain_table("job", "compared with")
    for job in found.jobs:
        table.add_row(escaped(job.name), escaped(job.baseline or ""))
    out().print(table)
    told = [(one.severity, describe_error(one.model_dump())) for one in found.problems]
    for text in (text for severity, text in told if severity != "error"):
        out().print(f"[yellow]warning:[/] {escaped(text)}", soft_wrap=True)
    errors = [text for severity, text in told if severity == "error"]
    if errors:
        lines = "\n".join(f"  - {text}" for text in errors)
        complain(f"{file} has {len(errors)} problem{'s' if len(errors) > 1 else ''}\n{lines}")
        return FAILED
    say(f"{file} is fine: {len(found.jobs)} jobs")
    return 0


@app.command("list")
def list_sweeps(
    search: Annotated[str | None, typer.Option(help="Only sweeps with this in their name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    url: Url = None,
) -> None:
    """List sweeps, newest first."""
    table = plain_table("id", "name", "state", "jobs done", "failed", "created", right=("jobs done", "failed"))
    with connect(url) as client:
        rows = list(client.sweeps(search=search, limit=limit))
    for sweep in rows:
        failed = str(sweep.counts.get("failed", "")) or "-"
        done = f"{sweep.done}/{sweep.total}"
        table.add_row(sweep.id, escaped(sweep.name), styled_state(sweep.state), done, failed, ago(sweep.created_at))
    none = "no sweep fits" if search else "no sweeps yet; `tid sweep FILE` makes one"
    out().print(table if rows else none)


@app.command()
def show(sweep: SweepName, url: Url = None) -> None:
    """Show a sweep's jobs."""
    with connect(url) as client:
        found = client.sweep(client.find_sweep(sweep).id)
    counted = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    say(f"{found.id}  {found.name}  {found.state}: {found.done}/{found.total} jobs done ({counted})")
    table = plain_table("id", "setting", "seed", "state", "epoch", "AP", right=("seed", "epoch", "AP"))
    for job in found.jobs:
        state = styled_state(job.state) + (f" ({job.status_reason})" if job.state == "failed" else "")
        epoch = f"{job.progress.epoch}/{job.progress.epochs or '-'}"
        table.add_row(job.id, escaped(job.label), str(job.seed), state, epoch, ap(job.best_ap))
    out().print(table)


@app.command()
def cancel(sweep: SweepName, url: Url = None) -> None:
    """Stop every job of a sweep that has not ended.

    What the others have reached stays, and is still compared.
    """
    with connect(url) as client:
        found = client.cancel_sweep(client.find_sweep(sweep).id)
    counted = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    say(f"{found.id}  {found.name}  {counted}")


@app.command()
def report(
    sweep: SweepName,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the files; default: here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Only print the report as the API gives it.")] = False,
    url: Url = None,
) -> None:
    """Compare the settings of a sweep: a table here, and files of it as PNG and CSV."""
    with connect(url) as client:
        found = client.sweep_report(client.find_sweep(sweep).id)
        if json:
            say(found.model_dump_json(indent=2))
            return
        print_report(found)
        _write_files(client, found, to or Path())


def print_report(report: SweepReport) -> None:
    """Where there is little room without the columns in `_LESSER`, which the CSV has as well."""
    is_narrow = out().width < _WIDE
    shown = [name for name in _COLUMNS if not (is_narrow and name in _LESSER)]
    table = plain_table("setting", *shown, "", right=tuple(shown))
    for column in table.columns[1:-1]:
        column.no_wrap = True
    for row in report.rows:
        cells = dict(zip(_COLUMNS, _cells(row), strict=True))
        table.add_row(escaped(row.label), *(cells[name] for name in shown), escaped(_remarks(row)))
    out().print(table)
    if is_narrow:
        say(f"left out here, and in the CSV: {', '.join(_LESSER)}")
    if report.teacher_ap is not None:
        say(f"teacher: AP {ap(report.teacher_ap)}")
    if any(row.remark == "no difference shown" for row in report.rows):
        say("no difference shown: the interval includes zero; more seeds would narrow it")
    if not report.complete:
        out().print(f"[yellow]not complete:[/] {report.done} of {report.total} jobs have ended", soft_wrap=True)
    lost = sum(run.state in ("failed", "cancelled") for row in report.rows for run in row.runs)
    if lost:
        out().print(f"[yellow]failed or cancelled:[/] {lost} of {report.total} jobs; they do not count", soft_wrap=True)


def _cells(row: SweepRow) -> list[str]:
    """In the order of `_COLUMNS`."""
    several = "" if row.ap_sd is None else f" ± {100 * row.ap_sd:.1f}"
    known = row.gain_low is not None and row.gain_high is not None
    return [
        f"{row.runs_done}/{row.runs_total}",
        f"{ap(row.ap_mean)}{several}",
        ap(row.ap50_mean),
        signed_ap(row.gain_mean),
        f"{signed_ap(row.gain_low)} .. {signed_ap(row.gain_high)}" if known else "-",
        f"{row.wins}/{row.pairs}" if row.pairs else "-",
        "-" if row.gpu_seconds is None else f"{row.gpu_seconds:,.0f}",
        "-" if row.extra_gpu_seconds_per_point is None else f"{row.extra_gpu_seconds_per_point:,.0f}",
    ]


def _remarks(row: SweepRow) -> str:
    unknown = row.gain_mean is None and row.role != "baseline"
    against = "" if row.baseline in (None, "baseline") else f"against {row.baseline}"
    remarks = [(row.gain_reason if unknown else row.remark) or "", against]
    return ", ".join(remark for remark in remarks if remark)


def _write_files(client: Client, report: SweepReport, folder: Path) -> None:
    from client.sweep_pictures import draw_sweep

    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", report.name).strip("-.")
    stem = f"{slug}-{report.sweep_id}" if slug else report.sweep_id
    table = folder / f"{stem}.csv"
    table.write_text(client.sweep_report_csv(report.sweep_id), newline="")
    say(f"wrote {table}")
    try:
        say(f"wrote {draw_sweep(report, folder / f'{stem}.png')}")
    except ModuleNotFoundError as error:
        complain(f"no picture: {error.name} is not installed; `pip install matplotlib` adds it")
