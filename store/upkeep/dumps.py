"""The database as one file, of one moment, and back: SQLite by its own backup, PostgreSQL by pg_dump and pg_restore."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import URL, Engine, create_engine, make_url, select, text
from sqlalchemy.orm import Session

from store.artifacts import ArtifactStore, open_artifacts
from store.datasets import stored_archive
from store.db import make_engine
from store.errors import BackupError
from store.models import Artifact, Checkpoint, Dataset, ResumeState
from store.settings import Settings
from store.uploads.archives import digest_in

SQLITE: Final = "tid.db"
POSTGRESQL: Final = "tid.pgdump"


class Dump(NamedTuple):
    """A copy of the database, and the files that its rows name."""

    name: str
    revision: str
    files: dict[str, str | None]
    """Name, below `artifacts/` or `uploads/`, to the sha256 that it should have, where one is known."""


def dump(settings: Settings, folder: Path) -> Dump:
    """Copy the database into the folder, in place of an earlier copy.

    Raises:
        BackupError: PostgreSQL's own programs are not there, or fail.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        file = folder / SQLITE
        _copy_sqlite(Path(str(url.database)), file)
        engine = create_engine(f"sqlite:///{file}", connect_args={"isolation_level": None})
        try:
            with Session(engine) as session:
                return _described(SQLITE, settings, session)
        finally:
            engine.dispose()
    engine = make_engine(settings.database_url).execution_options(isolation_level="REPEATABLE READ")
    try:
        with Session(engine) as session:
            snapshot = session.scalars(text("SELECT pg_export_snapshot()")).one()
            target = folder / POSTGRESQL
            run_postgres("pg_dump", url, "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
            return _described(POSTGRESQL, settings, session)
    finally:
        engine.dispose()


def load_postgres(settings: Settings, file: Path) -> None:
    """Raises:
    BackupError: the database is not empty, or pg_restore is not there or fails; the database is as it was.
    """
    engine = make_engine(settings.database_url)
    try:
        if tables := _tables(engine):
            raise BackupError(f"the database is not empty, it has tables ({', '.join(tables[:3])}); name an empty one")
    finally:
        engine.dispose()
    url = make_url(settings.database_url)
    options = ("--no-owner", "--single-transaction", "--exit-on-error", f"--dbname={url.database}")
    run_postgres("pg_restore", url, *options, str(file), name_database=False)


def run_postgres(program: str, url: URL, *arguments: str, name_database: bool = True) -> None:
    """Run one of PostgreSQL's programs; where it connects to is told by its environment, which others cannot read.

    Raises:
        BackupError: it is not on PATH, or failed.
    """
    if shutil.which(program) is None:
        raise BackupError(
            f"{program} is not on PATH: install the client programs of PostgreSQL, of the server's version or newer"
        )
    query = {name: value if isinstance(value, str) else value[0] for name, value in url.query.items()}
    place: dict[str, Any] = {
        "PGHOST": url.host or query.get("host"),
        "PGPORT": url.port or query.get("port"),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database if name_database else None,
        "PGSSLMODE": query.get("sslmode"),
    }
    environment = {**os.environ, **{name: str(value) for name, value in place.items() if value}}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupError(f"{program} ended with code {done.returncode}: {' '.join(done.stderr.split())[-500:]}")


def _copy_sqlite(source: Path, target: Path) -> None:
    """In one step, which a writer neither waits for nor disturbs; as one file, without a log beside it."""
    target.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as reading,
        closing(sqlite3.connect(target)) as copy,
    ):
        reading.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
    if verdict != "ok":
        raise BackupError(f"the database {source} is damaged: {verdict}")


def _described(name: str, settings: Settings, session: Session) -> Dump:
    files: dict[str, str | None] = {}
    artifacts = open_artifacts(settings)
    for table in (Checkpoint, Artifact):
        for key, sha256 in session.execute(select(table.key, table.sha256)):
            files[f"artifacts/{key}"] = sha256
    for key in session.scalars(select(ResumeState.key)):
        files |= _state(artifacts, key)
    for prefix in session.scalars(select(Dataset.index_prefix).where(Dataset.index_prefix.is_not(None))):
        files |= {f"artifacts/{one.name}": None for one in artifacts.listing(str(prefix))}
    for dataset in session.scalars(select(Dataset).where(Dataset.source == "archive")):
        if stored := stored_archive(dataset):
            files[f"artifacts/{stored}"] = digest_in(stored)
        elif dataset.state == "ready":
            files |= _below(settings.uploads, f"{dataset.id}/data")
        elif (settings.uploads / dataset.id / "archive").is_file():  # to be looked through again
            files[f"uploads/{dataset.id}/archive"] = None
    revision = session.scalars(text("SELECT version_num FROM alembic_version")).one()
    return Dump(name, revision, dict(sorted(files.items())))


def _state(artifacts: ArtifactStore, key: str) -> dict[str, str | None]:
    """The files of a resume state, by its manifest; a state that was replaced is missing from the beginning."""
    manifest = f"{key}/manifest.json"
    try:
        entries = json.loads(b"".join(artifacts.stream(manifest)))["files"]
    except (FileNotFoundError, ValueError, KeyError):
        entries = {}
    digests = {f"artifacts/{key}/{name}": str(entry["sha256"]) for name, entry in entries.items()}
    return {f"artifacts/{manifest}": None, **digests}


def _below(uploads: Path, folder: str) -> dict[str, str | None]:
    found = (Path(inner, name) for inner, _, names in os.walk(uploads / folder) for name in names)
    return {f"uploads/{path.relative_to(uploads).as_posix()}": None for path in found}


def _tables(engine: Engine) -> list[str]:
    statement = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    with engine.connect() as connection:
        return list(connection.scalars(statement))
