"""`tid migrate`: the tables as this version needs them. `python -m store.upkeep.migrate`."""

import sys

from sqlalchemy.exc import SQLAlchemyError

from store.errors import DatabaseUnfit
from store.settings import SettingsError, load_settings
from store.upgrade import current_revision, newest_revision, revisions, upgrade


def migrate(url: str) -> tuple[str | None, str | None]:
    """Bring the database to the newest tables, all steps or none.

    Returns:
        The revisions before (None = it had no tables) and now.

    Raises:
        DatabaseUnfit: its tables are those of a newer version.
    """
    before = current_revision(url)
    if before is not None and before not in revisions():
        raise DatabaseUnfit(
            f"the tables are at revision {before}, unknown to this version: a newer one made them; install that one"
        )
    upgrade(url)
    return before, newest_revision()


def main() -> int:
    try:
        before, now = migrate(load_settings().database_url)
    except (SettingsError, DatabaseUnfit, SQLAlchemyError, OSError) as error:
        sys.stderr.write(f"tid migrate: {str(error).splitlines()[0]}\n")
        return 1
    done = f"were at revision {now} already" if before == now else f"went from {before or 'none'} to revision {now}"
    sys.stdout.write(f"the tables {done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
