"""Alembic's entry: one transaction for all revisions, under a lock, on the connection that it is handed or opens."""

from alembic import context
from sqlalchemy import Connection, text

from store.db import make_engine
from store.models import Base
from store.settings import load_settings

_LOCK = 0x7D15711
"""Key of the advisory lock that lets one process migrate at a time; SQLite has its write transaction."""


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
    context.run_migrations()


def _run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    url = context.get_x_argument(as_dictionary=True).get("url") or load_settings().database_url
    engine = make_engine(url, foreign_keys=False)
    with engine.begin() as own_connection:
        _migrate(own_connection)
    engine.dispose()


_run()
