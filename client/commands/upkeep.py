"""Commands that look after the service's own files and tables, on the machine that has them."""

from pathlib import Path
from typing import Annotated

import typer

from client.service_code import run_store

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the service; also TID_HOME, and the other TID_* settings beside it."),
]


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)
    app.command()(gc)
    app.command()(migrate)


def backup(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; it must not exist.")],
    no_artifacts: Annotated[bool, typer.Option("--no-artifacts", help="The database alone, without files.")] = False,
    home: Home = None,
) -> None:
    """Copy the database and the files that it names, also while the service runs.

    The copy is of one moment, is checked by sha256 when it is restored, and is there in full or not at all. PostgreSQL
    is copied by its own pg_dump, which must be on PATH.
    """
    run_store("backup", [str(destination), *(["--no-artifacts"] if no_artifacts else [])], home)


def restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder that `tid backup` wrote.")],
    home: Home = None,
) -> None:
    """Bring a backup into an empty home, or an empty PostgreSQL database; the service must not run.

    Jobs that were running then wait in the queue, and go on from their newest saved state.
    """
    run_store("restore", [str(source)], home)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go; delete nothing.")] = False,
    strangers: Annotated[
        bool, typer.Option("--strangers", help="Also files of jobs and datasets that the database does not know.")
    ] = False,
    home: Home = None,
) -> None:
    """Delete what nobody needs any more: orphaned files, old resume states, rows of workers that are long gone.

    The service may run meanwhile. TID_GC_* say how old things must be.
    """
    flags = {"--dry-run": dry_run, "--strangers": strangers}
    run_store("gc", [flag for flag, is_set in flags.items() if is_set], home)


def migrate(home: Home = None) -> None:
    """Bring the tables to this version: once for a PostgreSQL database, before servers and workers start.

    All steps are done or none. SQLite needs no asking: its tables are brought up to date when the service starts.
    """
    run_store("migrate", [], home)
