"""Metrics in and out, beside MLflow's tracking server: both on SQLite, then both on PostgreSQL, the same points.

uv run --with mlflow python benchmarks/metrics_vs_mlflow.py [--steps N] [--long N] [--rounds R]

One client asks one thing after another, so one process of MLflow's server answers as soon as its usual four would.
In: SERIES values a step, as a detection training has them.
  ours        `store.metrics.record` of 1000 points a transaction, with its fencing: what a worker does. It writes SQL
              itself; no HTTP lies on its way.
  log_batch   MLflow's client, 1000 metrics a request (the most it takes) to `mlflow server`: its fastest way over HTTP.
  store       MLflow's own SQL store, log_batch of 1000 called in this process: its way without HTTP.
  log_metric  MLflow's client, one metric a request: what most of its examples do.
Out: one series of `--long` points, over HTTP to parsed JSON, both with their servers: whole (MLflow gives it in pages),
and thinned for a chart (ours 1000 points with every peak; MLflow's bulk interval, as its own pages ask for it).
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.metrics_read import running_job
from benchmarks.rivals import Databases, databases, driver_of, load_average, mlflow_server, our_server
from store import metrics
from store.db import Database
from store.fencing import Claim
from store.ids import new_id
from store.metrics import Point

SERIES = 20
BATCH = 1000
THINNED = 1000
LONG = "loss/long"


def values(steps: int) -> list[Point]:
    """SERIES curves of so many steps, in the order in which a training gives them."""
    names = [f"loss/term_{number}" for number in range(SERIES)]
    return [
        Point(name, step, step // 1000, math.exp(-step / 3e4) + number)
        for step in range(steps)
        for number, name in enumerate(names)
    ]


def long_series(points: int) -> list[Point]:
    return [Point(LONG, step, 0, math.sin(step / 100)) for step in range(points)]


def batches(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    for first in range(0, len(points), BATCH):
        yield points[first : first + BATCH]


def rate(write: Callable[[Sequence[Point]], Any], points: Sequence[Point]) -> float:
    """Points a second."""
    began = time.perf_counter()
    write(points)
    return len(points) / (time.perf_counter() - began)


def write_ours(database: Database, claim: Claim, points: Sequence[Point]) -> None:
    for batch in batches(points):
        with database.write() as session:
            metrics.record(claim, batch, session=session)


def as_mlflow(points: Sequence[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(point.name, point.value, 1_700_000_000_000 + point.step, point.step) for point in points]


def write_batches(log_batch: Callable[..., Any], run_id: str, points: Sequence[Point]) -> None:
    """By the client, or by the store itself, which takes the same arguments."""
    for batch in batches(points):
        log_batch(run_id, metrics=as_mlflow(batch), params=[], tags=[])


def write_single(client: Any, run_id: str, points: Sequence[Point]) -> None:
    for point in points:
        client.log_metric(run_id, point.name, point.value, step=point.step)


def read_ours(client: httpx.Client, url: str, job_id: str, max_points: int) -> int:
    params: dict[str, str | int] = {"name": LONG, "max_points": max_points}
    answer = client.get(f"{url}/jobs/{job_id}/metrics", params=params).raise_for_status().json()
    return len(answer["series"][0]["points"])


def read_pages(client: httpx.Client, url: str, run_id: str) -> int:
    count, token = 0, None
    while token != "":
        params = {"run_id": run_id, "metric_key": LONG} | ({"page_token": token} if token else {})
        answer = client.get(f"{url}/api/2.0/mlflow/metrics/get-history", params=params)
        page = answer.raise_for_status().json()
        count += len(page["metrics"])
        token = page.get("next_page_token", "")
    return count


def read_interval(client: httpx.Client, url: str, run_id: str) -> int:
    params = {"run_ids": run_id, "metric_key": LONG, "max_results": str(THINNED)}
    path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval"
    answer = client.get(url + path, params=params).raise_for_status().json()
    return len(answer["metrics"])


def times(read: Callable[[], int], rounds: int) -> tuple[int, list[float]]:
    """Points of an answer, and the milliseconds of each."""
    took, count = [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        count = read()
        took.append((time.perf_counter() - began) * 1000)
    return count, took


def spread(numbers: Sequence[float], unit: str) -> str:
    return f"{min(numbers):,.0f} / {statistics.median(numbers):,.0f} / {max(numbers):,.0f} {unit} (min/median/max)"


def compare_writing(pair: Databases, home: Path, url: str, arguments: argparse.Namespace) -> tuple[str, str]:
    """Also leaves the long series on both sides; returns our job and the rival's run."""
    from mlflow import MlflowClient
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database = Database(pair.ours)
    client = MlflowClient(tracking_uri=url)
    experiment = client.create_experiment("benchmark")
    store = SqlAlchemyStore(driver_of(pair.rivals), str(home / "mlruns"))
    ways: dict[str, list[float]] = {"ours": [], "log_batch": [], "store": [], "log_metric": []}
    points = values(arguments.steps)
    few = points[: len(points) // 5]
    for _ in range(arguments.rounds):
        claim = running_job(database, dataset=new_id())
        runs = [client.create_run(experiment).info.run_id for _ in range(3)]
        ways["ours"].append(rate(partial(write_ours, database, claim), points))
        ways["log_batch"].append(rate(partial(write_batches, client.log_batch, runs[0]), few))
        ways["store"].append(rate(partial(write_batches, store.log_batch, runs[1]), few))
        ways["log_metric"].append(rate(partial(write_single, client, runs[2]), few[: arguments.single]))
    write_ours(database, claim, long_series(arguments.long))
    write_batches(client.log_batch, runs[0], long_series(arguments.long))
    database.close()
    print(f"{pair.kind}: in, {len(points):,} points for ours, {len(few):,} for MLflow's, {load_average()}")
    for name, rates in ways.items():
        factor = statistics.median(ways["ours"]) / statistics.median(rates)
        print(f"  {name:>10}: {spread(rates, 'points/s')}" + ("" if name == "ours" else f"; ours {factor:.1f}x"))
    return claim.job_id, runs[0]


def compare_reading(
    pair: Databases, home: Path, rival: str, job_id: str, run_id: str, arguments: argparse.Namespace
) -> None:
    rounds = 3 * arguments.rounds
    # A connection to each that is kept, as any page or program does.
    with our_server(pair.ours, home) as ours, httpx.Client(timeout=60) as client:
        ways: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {
            "whole": (lambda: read_ours(client, ours, job_id, 1_000_000), lambda: read_pages(client, rival, run_id)),
            "thinned": (lambda: read_ours(client, ours, job_id, THINNED), lambda: read_interval(client, rival, run_id)),
        }
        print(f"{pair.kind}: out, a series of {arguments.long:,} points, {load_average()}")
        for name, (our_way, their_way) in ways.items():
            our_count, our_times = times(our_way, rounds)
            their_count, their_times = times(their_way, rounds)
            factor = statistics.median(their_times) / statistics.median(our_times)
            print(f"  {name:>10}: ours {our_count:,} points in {spread(our_times, 'ms')}")
            print(f"  {'':>10}  MLflow {their_count:,} points in {spread(their_times, 'ms')}; ours {factor:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help=f"steps of {SERIES} values; MLflow's get a fifth")
    parser.add_argument("--long", type=int, default=20_000)
    parser.add_argument("--single", type=int, default=100, help="metrics that are sent one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of MLflow's server")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tid-bench-") as folder, databases(Path(folder)) as both:
        for pair in both:
            home = Path(folder) / pair.kind
            with mlflow_server(pair.rivals, home, workers=arguments.workers) as url:
                job_id, run_id = compare_writing(pair, home, url, arguments)
                compare_reading(pair, home, url, job_id, run_id, arguments)


if __name__ == "__main__":
    main()
