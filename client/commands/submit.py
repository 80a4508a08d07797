"""Commands that hand in a job: check, submit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from client.console import FAILED, Url, complain, connect, escaped, out, say

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The job, as YAML or JSON.")]


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command()(submit)


def check(
    spec: SpecFile,
    url: Url = None,
    local: Annotated[bool, typer.Option("--local", help="Without a server, even if one is up.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Then take a few of its steps on this machine.")] = False,
    dataset: Annotated[
        Path | None, typer.Option(help="With --measure: the dataset's folder, instead of the spec's `dataset`.")
    ] = None,
    dataset_options: Annotated[
        str | None, typer.Option(help="With --measure: how to read it, as JSON, as `tid train` takes it.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="With --measure: steps of each run.")] = 6,
    json: Annotated[bool, typer.Option("--json", help="With --measure: what was found, as JSON alone.")] = False,
) -> None:
    """Say whether a job would be accepted; with --measure also what it would cost.

    The server is asked if one answers; without one, the spec, the pair and a dataset that is a folder here are checked.
    """
    if not measure and (dataset or dataset_options or json):
        raise typer.BadParameter("--dataset, --dataset-options and --json go with --measure")
    _check(spec, url, local=local, quiet=json)
    if measure:
        _measure(spec, dataset, dataset_options, steps, json=json)


def _measure(path: Path, dataset: Path | None, options: str | None, steps: int, *, json: bool) -> None:
    from client.measuring import measure, print_measurement
    from client.specs import parse, read_document

    found = measure(path, parse(path, read_document(path)), dataset=dataset, options=options, steps=steps)
    if json:
        say(found.model_dump_json(indent=2))
    else:
        print_measurement(found)


def _check(spec: Path, url: str | None, *, local: bool, quiet: bool) -> None:
    from client.specs import parse, preflight, read_document

    document = read_document(spec)
    found = None if local else _ask(document, url)
    judge = "by the server"
    if found is None:
        found = preflight(parse(spec, document))
        judge = "here, without a server: no dataset name and no teacher job was looked up"
    errors = [text for severity, text in found if severity == "error"]
    for text in (text for severity, text in found if severity != "error" and not quiet):
        out().print(f"[yellow]warning:[/] {escaped(text)}", soft_wrap=True)
    if errors:
        lines = "\n".join(f"  - {text}" for text in errors)
        complain(f"{spec} has {len(errors)} problem{'s' if len(errors) > 1 else ''} (checked {judge})\n{lines}")
        raise typer.Exit(FAILED)
    if not quiet:
        say(f"{spec} is fine (checked {judge})")


def _ask(document: dict[str, Any], url: str | None) -> list[tuple[str, str]] | None:
    """What the server finds, as (severity, text); None if there is no server and none was named."""
    from client.client import Client
    from client.errors import ApiError, ServerUnreachable, describe_error

    with Client(url, retries=2 if url else 0) as client:
        try:
            problems = client.dry_run(document).problems
        except ServerUnreachable:
            if url is not None:
                raise
            return None
        except ApiError as error:
            if not error.errors:
                raise
            return [("error", describe_error(one)) for one in error.errors]
    return [(one.severity, describe_error(one.model_dump())) for one in problems]


def submit(
    spec: SpecFile,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show the job's progress.")] = False,
    name: Annotated[str | None, typer.Option(help="Another name than the spec's.")] = None,
    url: Url = None,
) -> None:
    """Hand in a job."""
    from client.specs import read_document

    document = read_document(spec)
    if name is not None:
        document["name"] = name
    with connect(url) as client:
        job = client.submit(document)
        say(f"{job.id}  {job.name}  {job.state}")
        if job.baseline_job_id:
            say(f"{job.baseline_job_id}  {job.name} (baseline): the same student without distillation")
        for warning in job.warnings:
            out().print(f"[yellow]warning:[/] {escaped(warning.detail)}", soft_wrap=True)
        if watch:
            from client.watching import follow

            raise typer.Exit(follow(client, job.id))
    say(f"next: tid watch {job.id}")
