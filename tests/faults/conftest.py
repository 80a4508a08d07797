from collections.abc import Iterator

import pytest

from benchmarks.fire import clock
from benchmarks.fire.databases import Postgres
from benchmarks.fire.fleet import Fleet
from tests.service import service, spec
from tests.worker.conftest import digits, lite, make_lite
from tid_core.data.synthetic import write_demo_data

__all__ = ["digits", "lite", "make_lite", "service", "spec"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Scaled out: PostgreSQL, Valkey, the API, and two workers, one of them with a clock that is an hour ahead."""
    root = tmp_path_factory.mktemp("fleet")
    library = clock.build(root)
    wrong = clock.wrong_by(3600, library) if library else {}
    write_demo_data(root / "data" / "digits", images=12, seed=1)
    with Fleet(root / "home", root / "data", Postgres(), own={"worker-1": wrong}) as fleet:
        fleet.client.add_dataset("digits", root / "data" / "digits")
        yield fleet
