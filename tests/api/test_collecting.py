"""Garbage collected by the API: once a period, whatever the number of its processes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import select, update

from api.app import create_app
from api.collecting import Collector
from store import workers
from store.db import Database
from store.models import Worker
from store.settings import Settings


def gone(database: Database, name: str) -> None:
    with database.write() as session:
        workers.register(name, hostname="host", pid=1, queues=["default"], device={}, session=session)
        session.execute(update(Worker).values(heartbeat_at=datetime.now(UTC) - timedelta(days=100)))


def test_one_round_a_period(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0", gc_every_hours=24)
    with TestClient(create_app(settings)) as client:
        parts = client.app.state.parts  # type: ignore[attr-defined]
        gone(parts.database, "first")
        Collector(parts)._round()
        gone(parts.database, "second")
        Collector(parts)._round()
        with parts.database.read() as session:
            assert list(session.scalars(select(Worker.id))) == ["second"]
