"""What runs from the first request to the last: the database, the doorbell, the reaper, the indexer."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api.collecting import Collector
from api.deps import Parts
from api.doorbell import Doorbell
from api.gate.keyring import KeyRing
from api.gate.stamping import Stamps
from api.gate.trail import Trail, TrailWriter
from api.ingest.indexing import Indexer
from api.monitoring.readiness import Readiness
from api.monitoring.scraping import Scraper
from api.reaping import Reaper
from api.streams.hub import Hub
from store.artifacts import open_artifacts
from store.db import Database
from store.monitoring import tracing
from store.settings import Settings
from store.upkeep.preparing import NotMigrated, prepare_database

__all__ = ["NotMigrated", "lifespan"]

log = logging.getLogger("api")


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
        artifacts=open_artifacts(settings),
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
    collector = Collector(parts)
    collector.start()
    try:
        yield
    finally:
        await parts.hub.stop()
        collector.stop()
        await run_in_threadpool(indexer.stop)
        await run_in_threadpool(reaper.stop)
        await run_in_threadpool(writer.stop)
        parts.doorbell.close()
        parts.database.close()
        await run_in_threadpool(tracing.stop)
