"""`tid workers`: who does the work, and who is to stop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

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
    is_wide = out().width >= 120
    host = ("host",) if is_wide else ()  # most ids begin with it
    table = plain_table("id", "state", *host, "queues", "job", "device", "heard of")
    for one in rows:
        state = f"[{_STYLES.get(one.state, 'white')}]{one.state}[/]"
        place = (escaped(", ".join(one.queues)), one.current_job or "-", escaped(_device(one)))
        on = (escaped(one.hostname),) if is_wide else ()
        table.add_row(escaped(one.id), state, *on, *place, ago(one.heartbeat_at))
    problems = {(one.id, gpu["problem"]) for one in rows for gpu in _gpus(one) if gpu.get("problem")}
    out().print(table if rows else "no worker has signed on yet; `tid up` starts one, or `python -m worker` elsewhere")
    for worker_id, problem in sorted(problems):
        out().print(f"[yellow]{escaped(worker_id)} cannot use a GPU: {escaped(problem)}[/]", soft_wrap=True)


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


def _gpus(worker: Worker) -> list[dict[str, Any]]:
    return worker.device.get("gpus") or []


def _device(worker: Worker) -> str:
    """Such as `2 x NVIDIA L4 (22.4 GiB), driver 580.95.05`."""
    alike = Counter((str(gpu.get("name")), gpu.get("memory_total_mib")) for gpu in _gpus(worker))
    if not alike:
        return f"{worker.device.get('cpus', '?')} CPUs"
    parts = [f"{number} x {_memory(*kind)}" if number > 1 else _memory(*kind) for kind, number in alike.items()]
    driver = worker.device.get("driver")
    return ", ".join([*parts, *([f"driver {driver}"] if driver else [])])


def _memory(name: str, mebibytes: int | None) -> str:
    return name if mebibytes is None else f"{name} ({mebibytes * 10 // 1024 / 10:g} GiB)"


def _tell(worker: Worker) -> None:
    job = f", job {worker.current_job}" if worker.current_job else ""
    say(f"{worker.id}  {worker.state}{job}")
