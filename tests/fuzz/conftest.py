"""How long to look: a moment in the suite, as long as one likes with `--fuzz-examples`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from schemathesis.python.asgi import ASGIClient, shutdown_lifespans

from api.app import create_app
from store.settings import Settings
from tests.fuzz.seeded import Known, seed
from tests.tid_core.formats.small import write_coco
from tid_core.data.index import build_index

SHORT = 3
NO_BROKER = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="session")
def examples(pytestconfig: pytest.Config) -> int:
    """Examples of each operation of the API."""
    asked: int | None = pytestconfig.getoption("--fuzz-examples")
    return asked or SHORT


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    return pytestconfig.getoption("--fuzz-examples") is not None


@pytest.fixture(scope="session")
def looked_through(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and its index."""
    root = write_coco(tmp_path_factory.mktemp("data") / "pets", {"train": 16, "val": 16})
    index = tmp_path_factory.mktemp("index")
    build_index(root, index, name="pets")
    return root, index


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    (tmp_path / "data").mkdir()
    patience = {"failed_per_minute": 10**9, "rate_per_minute": 0, "reaper_seconds": 3600}
    return Settings(home=tmp_path, database_url=database_url, broker_url=NO_BROKER, **patience)


@pytest.fixture
def client(settings: Settings) -> Iterator[ASGIClient]:
    """Of an application that runs in the event loop that schemathesis asks it in."""
    try:
        with ASGIClient(create_app(settings), "http://127.0.0.1") as client:
            yield client
    finally:
        shutdown_lifespans()


@pytest.fixture
def known(client: ASGIClient, settings: Settings, looked_through: tuple[Path, Path]) -> Known:
    return seed(client, settings, looked_through)
