"""`tid datasets`: what jobs can train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.console import Url, connect, out, plain_table, say

app = typer.Typer(help="Datasets the server knows.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What jobs will call it.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="On the server, under one of its data roots.")],
    url: Url = None,
) -> None:
    """Register a folder with COCO annotations: train.json, train/, val.json, val/, or COCO's own layout."""
    with connect(url) as client:
        dataset = client.add_dataset(name, folder.expanduser().resolve())
    say(f"{dataset.id}  {dataset.name}  {dataset.state}  {len(dataset.classes)} classes: {_short(dataset.classes)}")
    for split, facts in dataset.splits.items():
        say(f"  {split}: {facts.images:,} images, {facts.boxes:,} boxes")
        for problem in facts.problems:
            say(f"    {problem.code}: {problem.detail}")


@app.command("list")
def list_datasets(url: Url = None) -> None:
    """List the registered datasets."""
    table = plain_table("id", "name", "state", "classes", "images", "root", right=("classes", "images"))
    with connect(url) as client:
        rows = client.datasets()
    for one in rows:
        images = " + ".join(f"{facts.images:,} {split}" for split, facts in one.splits.items())
        table.add_row(one.id, one.name, one.state, str(len(one.classes)), images, one.root)
    out().print(table if rows else "no datasets yet; `tid datasets add NAME FOLDER` registers one")


def _short(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
