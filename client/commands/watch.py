"""Commands that look on while a job works: watch, logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from client.console import JobName, Url, connect

if TYPE_CHECKING:
    from client.client import Client

LOG_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    app.command()(watch)
    app.command()(logs)


def watch(job: JobName, url: Url = None) -> None:
    """Show a job at work until it ends.

    Leaving with Ctrl-C does not stop the job.
    """
    from client.watching import follow

    with connect(url) as client:
        raise typer.Exit(follow(client, client.find(job).id))


def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt.")] = None,
    url: Url = None,
) -> None:
    """Print what a job's training said."""
    with connect(url) as client:
        job_id = client.find(job).id
        if follow and attempt is None:
            for text in client.follow_logs(job_id):
                typer.echo(text, nl=False)
            return
        offset = _print_logs(client, job_id, 0, attempt)
        while follow and not _ended(client, job_id):
            time.sleep(LOG_SECONDS)
            offset = _print_logs(client, job_id, offset, attempt)
        if follow:
            _print_logs(client, job_id, offset, attempt)


def _print_logs(client: Client, job_id: str, offset: int, attempt: int | None) -> int:
    more = True
    while more:
        chunk = client.logs(job_id, offset=offset, attempt=attempt)
        typer.echo(chunk.text, nl=False)
        offset, more = chunk.next_offset, chunk.truncated
    return offset


def _ended(client: Client, job_id: str) -> bool:
    from api.schemas import TERMINAL_STATES

    return client.job(job_id).state in TERMINAL_STATES
