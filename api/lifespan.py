"""What runs from the first request to the last: the database, the doorbell, the reaper, the indexer."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.doorbell import Doorbell
from api.hub import Hub
from api.indexing import Indexer
from api.keyring import KeyRing
from api.readiness import Readiness
from api.reaping import Reaper
from api.scraping import Scraper
from api.stamping import Stamps
from api.trail import Trail, TrailWriter
from store import tracing
from store.artifacts import FolderArtifacts
from store.db import Database
from store.settings import Settings

log = logging.getLogger("api")


class NotMigrated(RuntimeError):
    """The tables are not those that this server was written for."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    tracing.configure("tid-api")
    await run_in_threadpool(prepare_database, settings)
    database = Database(settings.database_url)
    Stamps(settings).install(database)
    ring = KeyRing(database)
    await ring.known()
    parts = Parts(
        settings=settings,
        database=database,
        artifacts=FolderArtifacts(settings.artifacts),
        doorbell=Doorbell(settings.broker_url, on_failure=app.state.instruments.doorbell_failures.inc),
        keys=ring,
        trail=Trail(database, ring, settings.audit_days),
        hub=Hub(database),
    )
    app.state.parts = parts
    app.state.readiness = Readiness(parts)
    app.state.scraper = Scraper(parts, app.state.instruments)
    reaper, indexer, writer = Reaper(parts), Indexer(parts), TrailWriter(parts.trail)
    reaper.start()
    indexer.start()
    writer.start()
    try:
        yield
    finally:
        await parts.hub.stop()
        await run_in_threadpool(indexer.stop)
        await run_in_threadpool(reaper.stop)
        await run_in_threadpool(writer.stop)
        parts.doorbell.close()
        parts.database.close()
        await run_in_threadpool(tracing.stop)


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
