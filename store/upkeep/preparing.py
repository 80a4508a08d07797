"""The database as this version of the service needs it, before anything else is done with it."""

from sqlalchemy import make_url

from store.settings import Settings


class NotMigrated(RuntimeError):
    """The tables are not those that this server was written for."""


def prepare_database(settings: Settings) -> None:
    """SQLite, which belongs to this machine, is migrated; a shared PostgreSQL is only looked at.

    Raises:
        NotMigrated: PostgreSQL is at another revision.
        DatabaseUnfit: SQLite is at a revision of a newer version.
    """
    from store.upgrade import current_revision, newest_revision
    from store.upkeep.migrate import migrate

    if make_url(settings.database_url).get_backend_name() == "sqlite":
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        migrate(settings.database_url)
        return
    current, newest = current_revision(settings.database_url), newest_revision()
    if current != newest:
        raise NotMigrated(
            f"the database is at revision {current or 'none'}, this server needs {newest}; "
            "run `tid migrate` with the same TID_DATABASE_URL, then start again"
        )
