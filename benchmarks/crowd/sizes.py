"""What a job leaves in the database, in bytes, on SQLite and on PostgreSQL: written as a worker does, then counted.

uv run python -m benchmarks.crowd.sizes
"""

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

from benchmarks.crowd.members import NAMES, Member, Pace, settings_of, submit
from benchmarks.fire.databases import Postgres
from store.db import Database
from store.upgrade import upgrade

JOBS, LOGS, LINES = 200, 500, 300
_PRAGMAS = ("page_count", "freelist_count", "page_size")


def measure_sizes(home: Path) -> None:
    postgres = Postgres()
    try:
        for kind, url in {"SQLite": f"sqlite:///{home / 'sizes.db'}", "PostgreSQL": postgres.url}.items():
            upgrade(url)
            database = Database(url)
            show(kind, database, Member(settings_of(0, url, home), database, Pace()))
            database.close()
    finally:
        postgres.stop()


def show(kind: str, database: Database, member: Member) -> None:
    def grows_by(table: str, work: Callable[[], None]) -> int:
        before = num_bytes(table, database)
        work()
        return num_bytes(table, database) - before

    def log_points() -> None:
        for number in range(LOGS):
            member.tell([10 * number], 10 * number, "")

    def print_lines() -> None:
        for _ in range(LINES):
            member.tell([], 10 * LOGS, "x" * 89 + "\n")

    job = grows_by("jobs", lambda: submit(JOBS, database)) / JOBS
    member.sign_on()
    point = grows_by("metrics", log_points) / LOGS / len(NAMES)
    line = grows_by("log_chunks", print_lines) / LINES
    print(f"{kind}: {job:,.0f} bytes a queued job, {point:,.0f} a point, {line:,.0f} a line of 90 characters by itself")


def num_bytes(table: str, database: Database) -> int:
    """Of the table with its indices, once the space of dead rows was given back; of SQLite's file as a whole."""
    if database.engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(str(database.engine.url.database))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS)
            return int((pages - free) * size)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM"))
        return int(
            connection.execute(
                text("SELECT pg_total_relation_size(CAST(:table AS regclass))"), {"table": table}
            ).scalar_one()
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tid-sizes-") as folder:
        measure_sizes(Path(folder))
