"""What Prometheus reads, through its own parser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from api.app import create_app
from api.monitoring.instruments import Instruments
from api.monitoring.scraping import FRESH_SECONDS
from store import claims, metrics, workers
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.models import Job
from store.reaper import expire_leases
from store.settings import Settings
from store.states import Outcome

ROOT = Path(__file__).resolve().parents[2]
Values = dict[tuple[str, ...], float]


def scrape(client: TestClient | httpx.Client) -> dict[str, Metric]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def fresh(client: TestClient) -> dict[str, Metric]:
    """A scrape that is not answered from the census of a moment ago."""
    client.app.state.scraper._taken_at -= FRESH_SECONDS  # type: ignore[attr-defined]
    return scrape(client)


def values(family: Metric) -> Values:
    return {tuple(value for _, value in sorted(one.labels.items(), reverse=True)): one.value for one in family.samples}


GPU = {"index": 0, "uuid": "GPU-a", "name": "H200", "memory_total_mib": 1000, "memory_used_mib": 10, "load_percent": 97}


def test_jobs_queues_attempts_workers_and_gpus(
    client: TestClient, database: Database, submit: Callable[..., Any], start: Callable[[str], Claim]
) -> None:
    waiting, running = submit()["id"], submit()["id"]
    claim = start(running)
    with database.write() as session:
        workers.register("worker-1", hostname="host", pid=1, queues=["default"], device={}, session=session)
        gpus = [{**GPU, "celsius": None}]
        workers.heartbeat("worker-1", current_job=running, telemetry={"gpus": gpus}, session=session)
        pace = {"time/step_seconds": 0.25, "throughput/images_per_second": 64.0}
        metrics.record(claim, [Point(name, 3, 0, value) for name, value in pace.items()], session=session)
    found = fresh(client)
    assert values(found["tid_database_up"]) == {(): 1}
    jobs = values(found["tid_jobs"])
    assert (jobs[("queued",)], jobs[("running",)], jobs[("failed",)]) == (1, 1, 0)
    assert values(found["tid_queue_jobs"]) == {("default",): 1}
    assert values(found["tid_queue_oldest_age_seconds"])[("default",)] >= 0
    assert values(found["tid_waiting_jobs"])[("busy",)] == 1
    assert values(found["tid_attempts"])[("running",)] == 1
    assert values(found["tid_workers"]) == {("idle",): 0, ("busy",): 1, ("draining",): 0}
    assert values(found["tid_step_seconds"]) == {("worker-1",): 0.25}
    assert values(found["tid_images_per_second"]) == {("worker-1",): 64.0}
    assert values(found["tid_gpu_utilization_ratio"]) == {("worker-1", "GPU-a"): 0.97}
    assert values(found["tid_gpu_memory_used_bytes"]) == {("worker-1", "GPU-a"): 10 << 20}
    assert values(found["tid_gpu_memory_total_bytes"]) == {("worker-1", "GPU-a"): 1000 << 20}
    assert values(found["tid_gpu_temperature_celsius"]) == {}, "what a GPU does not tell is left out"
    assert waiting not in client.get("/metrics").text, "a job is no label"


def test_queues_beyond_the_fiftieth_are_told_together(
    client: TestClient, database: Database, submit: Callable[..., Any]
) -> None:
    """Whoever submits a job names its queue."""
    submit(resources={"queue": "largest"})
    for number in range(51):
        submit(resources={"queue": f"queue-{number}"})
    submit(resources={"queue": "largest"})
    found = values(fresh(client)["tid_queue_jobs"])
    assert len(found) == 51
    assert (found[("largest",)], found[("(others)",)]) == (2, 2)


def test_faults_that_a_job_survived_are_counted_and_those_it_did_not_are_not(
    client: TestClient, database: Database, submit: Callable[..., Any]
) -> None:
    survives = submit()["id"]
    gives_up = submit(resources={"max_attempts": 1})["id"]
    for job_id in (survives, gives_up):
        with database.write() as session:
            assert claims.claim(job_id, "worker-1", lease_seconds=-1.0, session=session)
    assert values(fresh(client)["tid_lease_oldest_age_seconds"])[()] > 20
    with database.write() as session:
        assert len(expire_leases(session=session)) == 2
        assert session.get_one(Job, gives_up).state == "failed"
    found = fresh(client)
    assert values(found["tid_attempts"])[(Outcome.LOST.value,)] == 2
    assert values(found["tid_faults_recovered"]) == {("lost",): 1, ("crashed",): 0}
    assert values(found["tid_lease_oldest_age_seconds"])[()] == 0


@pytest.fixture
def lite(sqlite_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0", reaper_seconds=3600)


def test_requests_are_counted_by_operation_and_class_of_status(lite: Settings) -> None:
    with TestClient(create_app(lite), base_url="http://127.0.0.1") as client:
        client.get("/jobs")
        for name in ("a", "b"):
            client.get(f"/jobs/{name}")
        client.get("/nothing")
        samples = scrape(client)["tid_http_request_duration_seconds"].samples
    counts = {
        (one.labels["operation"], one.labels["status"]): one.value for one in samples if one.name.endswith("_count")
    }
    assert counts == {("jobs-list", "2xx"): 1, ("jobs-get", "4xx"): 2, ("none", "4xx"): 1}


def test_a_message_that_the_broker_does_not_take_is_counted(lite: Settings) -> None:
    with TestClient(create_app(lite), base_url="http://127.0.0.1") as client:
        client.app.state.parts.doorbell._ring("job", "default")  # type: ignore[attr-defined]
        assert values(scrape(client)["tid_doorbell_failures"])[()] == 1


def test_open_streams_are_counted_until_they_end(
    server: httpx.Client, client: TestClient, submit: Callable[..., Any]
) -> None:
    job_id = submit()["id"]
    with server.stream("GET", f"/jobs/{job_id}/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        assert values(scrape(server)["tid_event_listeners"]) == {(): 1}
        client.post(f"/jobs/{job_id}/cancel")
        for _ in lines:
            pass
    while values(scrape(server)["tid_event_listeners"])[()]:
        pass


def test_a_census_serves_the_scrapes_of_a_second(lite: Settings) -> None:
    with TestClient(create_app(lite), base_url="http://127.0.0.1") as client:
        scrape(client)
        asked: list[str] = []
        engine = client.app.state.parts.database.engine  # type: ignore[attr-defined]
        client.app.state.scraper._taken_at = float("inf")  # type: ignore[attr-defined]
        event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
        scrape(client)
        assert asked == []
        client.app.state.scraper._taken_at = 0.0  # type: ignore[attr-defined]
        scrape(client)
        assert 0 < len(asked) < 15


def test_a_database_that_hangs_or_is_gone_leaves_the_figures_of_the_process(lone_postgres: Any, tmp_path: Path) -> None:
    url = lone_postgres.url
    settings = Settings(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0", reaper_seconds=3600)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert values(scrape(client)["tid_database_up"]) == {(): 1}
        lone_postgres.freeze()
        found = fresh(client)
        assert values(found["tid_database_up"]) == {(): 0}
        assert "tid_jobs" not in found
        assert found["tid_http_request_duration_seconds"].samples
        lone_postgres.thaw()
        while not values(fresh(client)["tid_database_up"])[()]:
            pass
        assert values(scrape(client)["tid_database_errors"]) == {(): 0}
        lone_postgres.stop()
        assert values(fresh(client)["tid_database_up"]) == {(): 0}
        assert values(scrape(client)["tid_database_errors"])[()] >= 1


def test_the_documents_and_alerts_name_metrics_that_there_are() -> None:
    instruments = Instruments("")
    families = [*instruments.census.describe(), *instruments.registry.collect()]
    endings = {"counter": ("_total",), "info": ("_info",), "histogram": ("", "_bucket", "_count", "_sum")}
    names = {family.name + ending for family in families for ending in endings.get(family.type, ("",))}
    rules = yaml.safe_load((ROOT / "examples" / "prometheus" / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) > 5
    operations = (ROOT / "docs" / "operations.md").read_text()
    table = (ROOT / "docs" / "metrics.md").read_text()
    for text in (*expressions, operations):
        for name in re.findall(r"\btid_[a-z_]+\b(?!\*)", text):
            assert name in names or name.endswith("_"), name
    assert {name for name in re.findall(r"^\| `(\w+)`", table, re.M) if name.startswith("tid_")} == {
        name for name in names if name.startswith("tid_") and not name.endswith(("_bucket", "_count", "_sum"))
    }
