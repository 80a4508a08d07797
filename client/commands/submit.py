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
) -> None:
    """Say whether a job would be accepted.

    The server is asked if one answers; without one, the spec, the pair and a dataset that is a folder here are checked.
    """
    from client.specs import parse, preflight, read_document

    document = read_document(spec)
    found = None if local else _ask(document, url)
    judge = "by the server"
    if found is None:
        found = preflight(parse(spec, document))
        judge = "here, without a server: no dataset name and no teacher job was looked up"
    errors = [text for severity, text in found if severity == "error"]
    for text in (text for severity, text in found if severity != "error"):
        out().print(f"[yellow]warning:[/] {escaped(text)}", soft_wrap=True)
    if errors:
        lines = "\n".join(f"  - {text}" for text in errors)
        complain(f"{spec} has {len(errors)} problem{'s' if len(errors) > 1 else ''} (checked {judge})\n{lines}")
        raise typer.Exit(FAILED)
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
