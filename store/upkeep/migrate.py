"""`tid migrate`: the tables as this version needs them. `python -m store.upkeep.migrate`."""

import os
import sys
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from store.errors import DatabaseUnfit
from store.settings import SettingsError, load_settings
from store.upgrade import current_revision, newest_revision, revisions, upgrade
from store.upkeep.misspelt import misspelt
from store.upkeep.starting import await_database, told


def migrate(url: str) -> tuple[str | None, str | None]:
    """Bring the database to the newest tables, all steps or none.

    Returns:
        The revisions before (None = it had no tables) and now.

    Raises:
        DatabaseUnfit: its tables are those of a newer version.
    """
    before = None if _is_to_come(url) else current_revision(url)
    if before is not None and before not in revisions():
        raise DatabaseUnfit(
            f"the tables are at revision {before}, unknown to this version: a newer one made them; install that one"
        )
    upgrade(url)
    return before, newest_revision()


def _is_to_come(url: str) -> bool:
    """A file that `upgrade` will make, and the folder for it, which looking at its revision would ask for."""
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and bool(parsed.database) and not Path(str(parsed.database)).exists()


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"tid migrate: {error}\n")
        return 2
    for line in misspelt(os.environ):
        sys.stderr.write(f"tid migrate: warning: {line}\n")
    try:
        await_database(settings)
        before, now = migrate(settings.database_url)
    except (DatabaseUnfit, SQLAlchemyError, OSError) as error:
        sys.stderr.write(f"tid migrate: {told(error, settings)}\n")
        return 1
    done = f"were at revision {now} already" if before == now else f"went from {before or 'none'} to revision {now}"
    sys.stdout.write(f"the tables {done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
