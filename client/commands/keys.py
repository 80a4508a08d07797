"""`tid keys`, on the server's own database; and `tid audit`, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.console import Url, connect, escaped, out, plain_table

app = typer.Typer(help="API keys of the server on this machine, in its database.", no_args_is_help=True)

Home = Annotated[
    Path | None, typer.Option("--home", help="As of `tid up`; also TID_HOME, and TID_DATABASE_URL beside it.")
]


def register(root: typer.Typer) -> None:
    root.command()(audit)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose it is.")],
    scope: Annotated[str, typer.Option(help="read, write (includes read) or admin (includes write).")],
    expires: Annotated[str | None, typer.Option(help="How long it is good for, e.g. 90d; default: no end.")] = None,
    rate: Annotated[int | None, typer.Option(min=0, help="Requests a minute; 0 = no limit.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Jobs that have not ended; 0 = no limit.")] = None,
    max_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that those ask for together; 0 = no limit.")] = None,
    home: Home = None,
) -> None:
    """Make a key. It is printed once, to stdout, and kept nowhere.

    From the first key on the server answers to keys alone. What has no limit here has that of the server's settings.
    """
    options = {"--expires": expires, "--rate": rate, "--max-queued": max_queued, "--max-gpus": max_gpus}
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    _run(["create", f"--name={name}", f"--scope={scope}", *given], home)


@app.command()
def adopt(
    name: Annotated[str, typer.Option(help="Whose it is.")],
    scope: Annotated[str, typer.Option(help="read, write (includes read) or admin (includes write).")],
    file: Annotated[str, typer.Option(help="File that holds the key; - = standard input.")],
    home: Home = None,
) -> None:
    """Take a key that was made elsewhere: a secret of a deployment, from which clients read it as well.

    It must look like those that `create` makes. Doing it again changes nothing; a key that was revoked stays so.
    """
    _run(["adopt", f"--name={name}", f"--scope={scope}", f"--file={file}"], home)


@app.command("list")
def list_keys(home: Home = None) -> None:
    """List the keys, revoked ones as well."""
    _run(["list"], home)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a key; not the key.")], home: Home = None
) -> None:
    """End a key. A server that runs learns of it within seconds."""
    _run(["revoke", "--", key_id], home)


def audit(
    key: Annotated[str | None, typer.Option(help="Only what the key with this id did.")] = None,
    refused: Annotated[
        bool | None, typer.Option("--refused/--done", help="Only what was refused, or only what was done.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 50,
    url: Url = None,
) -> None:
    """Show who wrote what, and what was refused; needs a key with the scope admin."""
    table = plain_table("at", "key", "from", "request", "made", "status", "code", right=("status",))
    with connect(url) as client:
        rows = list(client.audit(key=key, refused=refused, limit=limit))
    for one in rows:
        often = f" x {one.count}" if one.count > 1 else ""
        request = escaped(f"{one.method} {one.path}{often}")
        at = f"{one.at:%Y-%m-%d %H:%M:%S}Z"
        table.add_row(
            at, one.key_id or "-", one.peer or "-", request, one.target or "", str(one.status), one.code or ""
        )
    out().print(table if rows else "nothing yet")


def _run(arguments: list[str], home: Path | None) -> None:
    """In a process of its own: the database is the server's matter, and nothing of it is loaded here."""
    place = {"TID_HOME": str(home.expanduser().resolve())} if home is not None else {}
    command = [sys.executable, "-P", "-m", "api.gate.keys", *arguments]
    sys.stdout.flush()
    raise typer.Exit(subprocess.run(command, env={**os.environ, **place}, check=False).returncode)
