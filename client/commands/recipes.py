"""`tid recipes`: schedules that a job can name instead of writing them out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client.console import Url, out, plain_table, say


def register(app: typer.Typer) -> None:
    app.command()(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one in full, as YAML.")] = None,
    url: Url = None,
) -> None:
    """List the recipes, or show all that one fills in.

    The server is asked if one answers; without one, they are those of this version of tid.
    """
    from client.errors import ClientError

    found = _known(url)
    if name is None:
        table = plain_table("recipe", "what it is for")
        for key, (title, _) in found.items():
            table.add_row(key, title)
        out().print(table)
        return
    if name not in found:
        raise ClientError(f"there is no recipe {name!r}; there are {', '.join(found)}")
    import yaml

    say(yaml.safe_dump(found[name][1], sort_keys=False).rstrip())


def _known(url: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Title and settings by name."""
    from client.client import Client
    from client.errors import ServerUnreachable
    from tid_core.recipes import RECIPES
    from tid_core.spec import preset

    try:
        with Client(url, retries=2 if url else 0) as client:
            return {recipe.name: (recipe.title, recipe.settings) for recipe in client.recipes()}
    except ServerUnreachable:
        if url is not None:
            raise
    return {name: (recipe.title, preset(name)) for name, recipe in RECIPES.items()}
