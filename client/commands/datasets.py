"""`tid datasets`: what jobs can train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.console import Url, connect, out, plain_table, say, size

if TYPE_CHECKING:
    from api.schemas import Dataset
    from tid_core.data.options import IndexOptions

app = typer.Typer(help="Datasets the server knows.", no_args_is_help=True)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name or id.")]
_BAR = 32
_CLASSES = 40


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What jobs will call it.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|ARCHIVE",
            help="A folder of the server, under one of its data roots; or a .zip, .tar, .tar.gz or .tar.zst file here, "
            "which is sent.",
        ),
    ],
    format: Annotated[str, typer.Option("--format", help="auto, coco, voc or yolo.")] = "auto",  # noqa: A002
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="OURS=THEIRS, e.g. train=VOC2007/trainval+VOC2012/trainval; once for each split."),
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option("--val-fraction", help="Part of train that becomes val, e.g. 0.1.")
    ] = None,
    val_seed: Annotated[int, typer.Option("--val-seed", min=0, help="Another seed draws another val.")] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the server has looked at every image.")] = True,
    url: Url = None,
) -> None:
    """Add a folder of the server, or send an archive: COCO, VOC or YOLO, told by the files.

    The server looks at every image; `tid datasets show NAME` tells how far it is.
    """
    options = _options(format=format, splits=_splits(split or []), val_fraction=val_fraction, val_seed=val_seed)
    is_archive = _is_archive(source)
    with connect(url) as client, _progress() as (on_bytes, on_progress):
        dataset = client.add_dataset(
            name,
            folder=None if is_archive else source.expanduser().resolve(),
            archive=source if is_archive else None,
            **dict(options),
            wait=wait,
            on_bytes=on_bytes,
            on_progress=on_progress,
        )
    _print(dataset)


@app.command()
def show(name: NameOrId, url: Url = None) -> None:
    """Show a dataset: counts, classes, sizes of boxes, problems."""
    with connect(url) as client:
        _print(client.dataset(name))


@app.command()
def delete(name: NameOrId, url: Url = None) -> None:
    """Forget a dataset that no job names, with what was uploaded; a folder of the server stays as it is."""
    with connect(url) as client:
        client.delete_dataset(name)
    say(f"{name} is deleted")


@app.command()
def sample(
    name: NameOrId,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: NAME.jpg here.")] = None,
    url: Url = None,
) -> None:
    """Get a picture of some training images with their boxes."""
    target = to or Path(f"{name}.jpg")
    with connect(url) as client:
        picture = client.dataset_sample(name)
    target.write_bytes(picture)
    say(f"{target}  {size(len(picture))}")


@app.command("list")
def list_datasets(url: Url = None) -> None:
    """List the datasets."""
    table = plain_table("id", "name", "state", "format", "classes", "images", "root", right=("classes", "images"))
    with connect(url) as client:
        rows = client.datasets()
    for one in rows:
        images = " + ".join(f"{facts.images:,} {split}" for split, facts in one.splits.items())
        classes = str(len(one.classes)) if one.classes else "-"
        table.add_row(one.id, one.name, one.state, one.format or "-", classes, images or "-", one.root or "uploaded")
    out().print(table if rows else "no datasets yet; `tid datasets add NAME FOLDER` registers one")


def _splits(given: list[str]) -> dict[str, str] | None:
    pairs = [one.partition("=") for one in given]
    for ours, equals, theirs in pairs:
        if not equals or not theirs or ours not in ("train", "val", "test"):
            raise typer.BadParameter("write train=..., val=... or test=...", param_hint="--split")
    if len({ours for ours, _, _ in pairs}) != len(pairs):
        raise typer.BadParameter("each of train, val and test once; join several with +", param_hint="--split")
    return {ours: theirs for ours, _, theirs in pairs} or None


def _options(**given: Any) -> IndexOptions:
    from pydantic import ValidationError

    from tid_core.data.options import IndexOptions

    try:
        return IndexOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "split"
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=f"--{name}") from None


def _is_archive(source: Path) -> bool:
    """A file here, or what is meant to be one; anything else is a folder of the server."""
    return source.is_file() or source.name.lower().endswith(ARCHIVES)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int | None], None], Callable[[Dataset], None]]]:
    """Bars on a terminal; elsewhere a line whenever something else begins."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    terminal = out().is_terminal
    with Progress(*columns, console=out(), transient=True, disable=not terminal) as bars:
        task = bars.add_task("", total=None, visible=False)
        begun = ""

        def tell(phase: str, done: int, total: int | None) -> None:
            nonlocal begun
            if phase != begun:
                begun = phase
                bars.reset(task, description=phase, total=total, visible=True)
                if not terminal:
                    say(phase)
            bars.update(task, completed=done, total=total)

        def on_bytes(done: int, total: int | None) -> None:
            tell("sending", done, total)

        def on_progress(dataset: Dataset) -> None:
            if dataset.state == "validating":
                doing = dataset.progress
                tell(doing.phase, doing.done, doing.total) if doing else tell("waiting for the server", 0, None)

        yield on_bytes, on_progress


def _print(dataset: Dataset) -> None:
    form = f"  {dataset.format}" if dataset.format else ""
    say(f"{dataset.id}  {dataset.name}  {dataset.state}{form}  {dataset.root or dataset.source}")
    if dataset.state == "uploading":
        say(f"no archive has come: `tid datasets add {dataset.name} ARCHIVE` with the same options sends it")
    if dataset.sha256:
        say(f"sha256 {dataset.sha256}")
    if dataset.progress:
        total = f" of {dataset.progress.total:,}" if dataset.progress.total else ""
        say(f"{dataset.progress.phase}: {dataset.progress.done:,}{total}")
    for reason in dataset.report:
        say(f"  {reason.code}: {reason.detail}")
    for split, facts in dataset.splits.items():
        say(f"\n{split}: {facts.images:,} images, {facts.boxes:,} boxes, {facts.empty_images:,} images without a box")
        for problem in facts.problems:
            say(f"  {problem.count:,} x {problem.code}: {problem.detail}")
            say(f"    {'; '.join(problem.examples)}")
        say("  boxes of each class")
        _bars([(name, count) for name, count in facts.per_class.items()])
        say("  boxes by side (square root of the area), in pixels")
        _bars([(f"{one.low} to {one.high}", one.boxes) for one in facts.box_side_histogram])


def _bars(rows: list[tuple[str, int]]) -> None:
    """Counts as bars; of many, the first and how many more there are."""
    shown = rows[:_CLASSES]
    widest = max((len(name) for name, _ in shown), default=0)
    most = max((count for _, count in rows), default=0) or 1
    for name, count in shown:
        filled = -(-_BAR * count // most)
        say(f"    {name:<{widest}}  {'█' * filled:<{_BAR}}  {count:,}".rstrip())
    if len(rows) > len(shown):
        say(f"    and {len(rows) - len(shown)} more")
