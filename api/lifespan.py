"""What runs from the first request to the last: the database, the doorbell, the reaper, the indexer."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.doorbell import Doorbell
from api.indexing import Indexer
from api.readiness import Readiness
from api.reaping import Reaper
from store.artifacts import FolderArtifacts
from store.db import Database
from store.settings import Settings

log = logging.getLogger("api")


class NotMigrated(RuntimeError):
    """The tables are not those that this server was written for."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    await run_in_threadpool(prepare_database, settings)
    parts = Parts(
        settings=settings,
        database=Database(settings.database_url),
        artifacts=FolderArtifacts(settings.artifacts),
        doorbell=Doorbell(settings.broker_url),
    )
    app.state.parts = parts
    app.state.readiness = Readiness(parts)
    reaper, indexer = Reaper(parts), Indexer(parts)
    reaper.start()
    indexer.start()
    try:
        yield
    finally:
        await run_in_threadpool(indexer.stop)
        await run_in_threadpool(reaper.stop)
        parts.doorbell.close()
        parts.database.close()


def prepare_database(settings: Settings) -> None:
    """SQLite, which belongs to this machine, is migrated; a shared PostgreSQL is only looked at.

    Raises:
        NotMigrated: PostgreSQL is at another revision.
    """
    from store.upgrade import current_revision, newest_revision, upgrade

    if make_url(settings.database_url).get_backend_name() == "sqlite":
        settings.home.mkdir(parents=True, exist_ok=True)
        upgrade(settings.database_url)
        return
    current, newest = current_revision(settings.database_url), newest_revision()
    if current != newest:
        raise NotMigrated(
            f"the database is at revision {current or 'none'}, this server needs {newest}; "
            "run `alembic upgrade head` with the same TID_DATABASE_URL, then start again"
        )
