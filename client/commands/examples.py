"""`tid examples`: the files of `examples/`, for those who have no clone of the repository."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from client.console import say

_PLACES = (Path(__file__).parents[1] / "examples", Path(__file__).parents[2] / "examples")
"""In an installed package, and in a clone."""


def register(app: typer.Typer) -> None:
    app.command()(examples)


def examples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; made if missing.")],
) -> None:
    """Write the example jobs, sweeps and alerts; a file that is there already stays as it is."""
    source = next(place for place in _PLACES if place.is_dir())
    written = 0
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = folder / path.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            written += 1
    say(f"wrote {written} files to {folder}" if written else f"{folder} has all of them already")
