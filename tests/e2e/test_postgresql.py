"""`tid up` on a PostgreSQL database: a whole job, through the API, a worker and its training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.db import Database
from store.models import Metric
from store.settings import normal_url
from tests.service import Service
from tid_core.data.synthetic import write_demo_data


@pytest.fixture
def on_postgresql(
    tmp_path: Path, postgres_server: Any, postgres_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Service, str]]:
    postgres_server.run(f"CREATE DATABASE up TEMPLATE {postgres_template}")
    url = postgres_server.url("up")
    monkeypatch.setenv("TID_DATABASE_URL", url)
    for name in ("api", "worker", "store"):  # of somebody else, where `tid up` is called
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path / "mine")
    write_demo_data(tmp_path / "data" / "digits", images=12, seed=1)
    service = Service(tmp_path / "home", tmp_path / "data")
    service.start()
    try:
        yield service, url
    finally:
        service.stop()
        postgres_server.run("DROP DATABASE up WITH (FORCE)")


def test_a_job_from_its_request_to_its_files(
    on_postgresql: tuple[Service, str], spec: dict[str, Any], tmp_path: Path
) -> None:
    service, url = on_postgresql
    service.client.add_dataset("digits", tmp_path / "data" / "digits")
    quick = {**spec, "training": {**spec["training"], "epochs": 2}}
    job = service.client.wait(service.client.submit(quick).id)
    assert (job.state, job.attempt, job.progress.step) == ("succeeded", 1, 6)
    assert {one.name for one in service.client.checkpoints(job.id)} == {"best", "last"}
    assert len(next(one for one in service.client.metrics(job.id).series if one.name == "loss/total").points) == 6
    assert not (service.home / "tid.db").exists(), "nothing of it is in SQLite"
    database = Database(normal_url(url))
    with database.read() as session:
        assert session.get(Metric, (job.id, "loss/total", 6)) is not None
    database.close()
