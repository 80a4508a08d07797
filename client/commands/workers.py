"""`tid workers`: who does the work, and who is to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from client.console import Url, ago, connect, escaped, out, plain_table, say

if TYPE_CHECKING:
    from api.schemas import Worker

app = typer.Typer(name="workers", help="List the workers; drain one before its host goes down.")
WorkerName = Annotated[str, typer.Argument(metavar="WORKER", help="Id of a worker.")]
_STYLES = {"idle": "green", "busy": "bold blue", "draining": "yellow", "drained": "yellow", "lost": "bold red"}


@app.callback(invoke_without_command=True)
def list_workers(context: typer.Context, url: Url = None) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect(url) as client:
        rows = client.workers()
    table = plain_table("id", "state", "queues", "job", "device", "heard of")
    for one in rows:
        state = f"[{_STYLES.get(one.state, 'white')}]{one.state}[/]"
        place = (escaped(", ".join(one.queues)), one.current_job or "-", escaped(_device(one)))
        table.add_row(escaped(one.id), state, *place, ago(one.heartbeat_at))
    out().print(table if rows else "no worker has signed on yet; `tid up` starts one, or `python -m worker` elsewhere")


@app.command()
def drain(
    worker: WorkerName,
    wait: Annotated[bool, typer.Option("--wait", help="Finish its present job first.")] = False,
    url: Url = None,
) -> None:
    """Let a worker take no more jobs, also after a new start, until it is undrained.

    Its present job goes back to the queue with its state saved.
    """
    with connect(url) as client:
        _tell(client.drain(worker, wait=wait))


@app.command()
def undrain(worker: WorkerName, url: Url = None) -> None:
    """Let a worker take jobs again."""
    with connect(url) as client:
        _tell(client.undrain(worker))


def _device(worker: Worker) -> str:
    gpus = [str(gpu.get("name")) for gpu in worker.device.get("gpus") or ()]
    return ", ".join(gpus) or f"{worker.device.get('cpus', '?')} CPUs"


def _tell(worker: Worker) -> None:
    job = f", job {worker.current_job}" if worker.current_job else ""
    say(f"{worker.id}  {worker.state}{job}")
