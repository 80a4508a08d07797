"""Commands that work on this machine: the service, the demo, demo data, a training without the service."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.console import INTERRUPTED, say
from client.service_code import run_store


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(demo)
    app.command("demo-data")(demo_data)
    app.command()(train)


def up(
    home: Annotated[Path, typer.Option(envvar="TID_HOME", help="Folder for the database, artifacts and logs.")] = Path(
        "~/.tid"
    ),
    host: Annotated[str, typer.Option(envvar="TID_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TID_PORT", min=0, max=65535, help="0 = any free port.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Default: one a GPU, or one for the CPU; 1 = one with all GPUs.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A folder that datasets may lie under; may be given several times.")
    ] = None,
) -> None:
    """Start the whole service on this machine.

    Ctrl-C stops it: trainings save their state, and go on the next time. A second Ctrl-C waits for nothing.
    """
    from client.embedded import Embedded

    if any(name.startswith("TID_") for name in os.environ):
        run_store("misspelt", [], None)  # the parts say it too, in their logs
    if os.environ.get("TID_GPUS", "all").strip() not in ("", "all"):
        unused = "warning: `tid up` does not read TID_GPUS; CUDA_VISIBLE_DEVICES and --workers say which GPUs it uses"
        typer.echo(unused, err=True)
    environment = {"TID_DATA_ROOTS": _roots(data)} if data else {}
    embedded = Embedded(home, host=host, port=port, workers=workers, environment=environment)
    if not embedded.run_forever(_welcome, _part):
        say("stopped without waiting; jobs that were running go on from their newest saved state")
        raise typer.Exit(INTERRUPTED)
    say("stopped; jobs that were running go on with the next `tid up`")


def _roots(folders: list[Path]) -> str:
    return os.pathsep.join(str(folder.expanduser().resolve()) for folder in folders)


def _welcome(embedded: object) -> None:
    url, home = getattr(embedded, "url", ""), getattr(embedded, "home", "")
    say(f"tid is up at {url} (API: /docs; files and logs: {home})")
    say("next: tid datasets add, then tid submit --watch; Ctrl-C stops everything")


def _part(_embedded: object) -> None:
    say("stopping: trainings save their state; Ctrl-C again waits for nothing")


def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("tid-demo"),
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Pairs of student and baseline to train.")] = 1,
    images: Annotated[int | None, typer.Option(min=20, help="Training images (default 1,000).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One minute: does it all work? AP means nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the results of an earlier demo.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="At the server that TID_URL or --url names, which gets the images.")
    ] = False,
) -> None:
    """Go from nothing to a distilled detector.

    Starts the service (or uses one that runs, with --remote), writes a dataset of handwritten digits, trains a
    teacher, a student taught by it and the same student alone, and compares them. Ten minutes on two cores.
    """
    from client.demo import run_demo

    raise typer.Exit(run_demo(out, seeds=seeds, images=images, quick=quick, force=force, remote=remote))


def demo_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; COCO JSON and images.")],
    images: Annotated[int, typer.Option(min=1, help="Training images; validation gets 3 for every 10 of them.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same files.")] = 0,
) -> None:
    """Write the dataset of the demo alone.

    Scenes of handwritten digits on photographs, as COCO JSON and PNG.
    """
    from client.demo_data import write

    write(folder, images=images, seed=seed)
    say(f"wrote {folder}: train.json, train/, val.json, val/")


def train(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The job, as YAML or JSON; `dataset` is a folder.")],
    out: Annotated[Path, typer.Option(help="Where checkpoints, maps and detections go.")],
    dataset: Annotated[Path | None, typer.Option(help="The dataset's folder, instead of the spec's `dataset`.")] = None,
    dataset_options: Annotated[
        str | None, typer.Option(help='How to read it, as JSON: {"splits": {"train": "train", "val": "test"}}.')
    ] = None,
) -> None:
    """Train here and now, without the service.

    Run it again to go on where it was interrupted.
    """
    from importlib.util import find_spec

    from client.errors import ClientError
    from client.specs import parse, read_document

    parse(spec, read_document(spec))
    if find_spec("torch") is None:
        raise ClientError('training needs torch: pip install "tid-service[worker]"')
    command = [sys.executable, "-P", "-m", "tid_core.run", str(spec), "--out", str(out)]
    command += ["--dataset", str(dataset)] if dataset is not None else []
    command += ["--dataset-options", dataset_options] if dataset_options is not None else []
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - signals reach the training itself
