"""Bring a database to the newest tables, from Python: `tid up` and the API do so when they start."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url

from store.db import Database, make_engine
from store.errors import DatabaseUnfit

_MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations that are missing, all or none. Several processes may do so at once."""
    file = make_url(url).database
    if make_url(url).get_backend_name() == "sqlite" and file:
        Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # hashes of keys, and who did what
    # Rebuilding a table on SQLite drops the old one, which would take the rows that refer to it along.
    engine = make_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        engine.dispose()


def current_revision(url: str) -> str | None:
    """The revision that the database is at; None = it has no tables yet."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def newest_revision() -> str | None:
    """The revision that this version of the service works with."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def revisions() -> frozenset[str]:
    """Every revision that this version of the service knows."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def open_current(url: str) -> Database:
    """The database of a service that has been started: commands that work on it make none, and migrate none.

    Raises:
        DatabaseUnfit: there is none, or its tables are those of another version.
    """
    file = make_url(url).database
    if make_url(url).get_backend_name() == "sqlite" and not (file and Path(file).is_file()):
        raise DatabaseUnfit(f"there is no database {file}; TID_HOME or TID_DATABASE_URL should say where it is")
    current, newest = current_revision(url), newest_revision()
    if current != newest:
        raise DatabaseUnfit(
            f"the tables are at revision {current or 'none'}, this version works with {newest}; "
            "start the service once, or run `tid migrate`"
        )
    return Database(url)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
