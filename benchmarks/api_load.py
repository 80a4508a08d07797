"""Fifty clients at once, mixed: how long one waits for an answer, of one API process, on SQLite and on PostgreSQL.

uv run --with mlflow python benchmarks/api_load.py [--clients N] [--seconds S] [--rates A B ...] [--no-rival]

Each client keeps a connection, listens to the events of a job on another, and sends one request after another: lists of
jobs (plain and filtered), single jobs, thinned metrics (5 series of 5,000 points), logs, dry runs of a submission.
`--rates` are requests a second of all clients together, at random moments (0 = each client asks again as soon as it is
answered, which loads any server fully: waits are then the number of clients over what it can do).
MLflow's server gets the same number of clients with what it has in place of these: search runs (50), get run, a series
for a chart, set a tag on a run.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import insert, select

from benchmarks.metrics_read import running_job
from benchmarks.metrics_vs_mlflow import as_mlflow
from benchmarks.rivals import Databases, databases, load_average, mlflow_server, our_server
from store import logs, metrics
from store.db import Database
from store.ids import new_id
from store.metrics import Point
from store.models import Attempt, Dataset, Job, MetricLatest
from store.states import State
from tid_core.spec import JobSpec

JOBS = 1000
SERIES, STEPS = 5, 5000
RUNS = 200
SIZES = {"smallest": 480, "mean": 600, "largest": 640}
SPLIT = {
    "images": 1000, "boxes": 2000, "empty_images": 0, "per_class": {"cat": 1000, "dog": 1000}, "box_side": SIZES,
    "box_side_histogram": [], "image_short_side": SIZES, "image_long_side": SIZES, "images_checked": "present",
    "problems": [],
}  # fmt: skip
FACTS: dict[str, Any] = {"name": "d", "classes": ["cat", "dog"], "splits": {"train": SPLIT, "val": SPLIT}}
SPEC = {"student": {"detector": "fcos_resnet18_small"}, "dataset": "d"}


class Request(NamedTuple):
    kind: str
    method: str
    path: str
    body: bytes = b""


class Client:
    """One connection that is kept; answers are read whole and not parsed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self, request: Request) -> int:
        """The status. A connection that the server closed because it was idle is opened again, as any client does."""
        try:
            await self.send(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.open()
            await self.send(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
        fields = head.lower()
        if b"content-length:" in fields:
            await self._reader.readexactly(int(fields.split(b"content-length:")[1].split(b"\r\n")[0]))
        elif b"transfer-encoding: chunked" in fields:
            while size := int(await self._reader.readline(), 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        return int(head.split(b" ", 2)[1])

    async def send(self, request: Request) -> None:
        head = f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(request.body)}\r\n\r\n"
        self._writer.write(head.encode() + request.body)

    async def listen(self, path: str) -> None:
        await self.send(Request("events", "GET", path))
        while await self._reader.read(65536):
            pass

    def close(self) -> None:
        self._writer.close()


def fill(url: str) -> list[str]:
    """JOBS jobs that have ended and one at work, which has metrics and a log; the ids of this and of some others."""
    database = Database(url)
    claim = running_job(database)
    spec = JobSpec.model_validate(SPEC).model_dump(mode="json")
    with database.write() as session:
        dataset = session.scalars(select(Dataset)).one()
        dataset.facts, dataset.classes = FACTS, FACTS["classes"]
        row: dict[str, Any] = {"spec": spec, "method": "none", "queue": "default", "max_attempts": 3, "epochs": 12}
        row |= {"dataset_id": dataset.id, "state": State.SUCCEEDED}
        rows = [{**row, "id": new_id(), "name": f"job {i}"} for i in range(JOBS)]
        session.execute(insert(Job), rows)
        ids = [str(one["id"]) for one in rows[:20]]
        attempts = [{"job_id": one["id"], "number": 1, "worker_id": "w", "lease_token": "t"} for one in rows]
        session.execute(insert(Attempt), attempts)
        latest = {"name": "loss", "step": 1, "epoch": 1, "value": 0.5}
        session.execute(insert(MetricLatest), [{"job_id": one["id"], **latest} for one in rows])
    for number in range(SERIES):
        points = [Point(f"loss/{number}", step, 0, random.random()) for step in range(STEPS)]
        with database.write() as session:
            metrics.record(claim, points, session=session)
    with database.write() as session:
        logs.append(claim, "epoch 1, step 20: loss 1.234\n" * 5000, cap_bytes=16 << 20, session=session)
    database.close()
    return [claim.job_id, *ids]


def our_requests(ids: Sequence[str]) -> list[tuple[int, Callable[[], Request]]]:
    busy = ids[0]
    spec = json.dumps(SPEC).encode()
    return [
        (20, lambda: Request("list", "GET", "/jobs?limit=50")),
        (5, lambda: Request("filtered", "GET", "/jobs?state=succeeded&search=job%2099&limit=50")),
        (30, lambda: Request("job", "GET", f"/jobs/{random.choice(ids)}")),
        (20, lambda: Request("metrics", "GET", f"/jobs/{busy}/metrics?name=loss/1&max_points=500")),
        (15, lambda: Request("logs", "GET", f"/jobs/{busy}/logs?offset=-16384")),
        (10, lambda: Request("dry run", "POST", "/jobs?dry_run=true", spec)),
    ]


def fill_rival(url: str) -> tuple[str, list[str]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url)
    experiment = client.create_experiment("load")
    runs = [client.create_run(experiment).info.run_id for _ in range(RUNS)]
    for number in range(SERIES):
        points = [Point(f"loss/{number}", step, 0, random.random()) for step in range(STEPS)]
        for first in range(0, STEPS, 1000):
            client.log_batch(runs[0], metrics=as_mlflow(points[first : first + 1000]))
    return experiment, runs


def rival_requests(experiment: str, runs: Sequence[str]) -> list[tuple[int, Callable[[], Request]]]:
    search = json.dumps({"experiment_ids": [experiment], "max_results": 50}).encode()
    series = (
        f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={runs[0]}&metric_key=loss/1&max_results=500"
    )
    tag = json.dumps({"run_id": runs[1], "key": "a", "value": "b"}).encode()
    return [
        (25, lambda: Request("list", "POST", "/api/2.0/mlflow/runs/search", search)),
        (45, lambda: Request("job", "GET", f"/api/2.0/mlflow/runs/get?run_id={random.choice(runs)}")),
        (20, lambda: Request("metrics", "GET", series)),
        (10, lambda: Request("tag", "POST", "/api/2.0/mlflow/runs/set-tag", tag)),
    ]


async def load(
    url: str, requests: list[tuple[int, Callable[[], Request]]], streams: Sequence[str], rate: float, clients: int,
    seconds: float,
) -> list[tuple[str, float, int]]:  # fmt: skip
    """Kind, milliseconds and status of every request."""
    port = int(url.rsplit(":", 1)[1])
    listeners = [await Client(port).open() for _ in streams]
    listening = [asyncio.create_task(one.listen(path)) for one, path in zip(listeners, streams, strict=True)]
    weights, makers = [weight for weight, _ in requests], [make for _, make in requests]
    took: list[tuple[str, float, int]] = []
    until = time.perf_counter() + seconds

    async def ask() -> None:
        client = await Client(port).open()
        due = time.perf_counter()
        while time.perf_counter() < until:
            if rate:
                due += random.expovariate(rate / clients)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            else:
                due = time.perf_counter()
            request = random.choices(makers, weights)[0]()
            status = await client.ask(request)
            # From the moment it was due: a client that is kept waiting does not make the figures better.
            took.append((request.kind, (time.perf_counter() - due) * 1000, status))
        client.close()

    await asyncio.gather(*(ask() for _ in range(clients)))
    for task, one in zip(listening, listeners, strict=True):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        one.close()
    return took


def tell(name: str, took: Sequence[tuple[str, float, int]], seconds: float, *, by_kind: bool) -> None:
    refused = dict(Counter(status for _, _, status in took if status >= 400))
    all_of_them = percentiles([ms for _, ms, _ in took])
    print(f"  {name}: {len(took) / seconds:.0f} requests/s, refused {refused or 'none'}, {all_of_them}")
    for kind in sorted({kind for kind, _, _ in took}) if by_kind else ():
        print(f"    {kind:>9}: {percentiles([ms for one, ms, _ in took if one == kind])}")


def percentiles(milliseconds: Sequence[float]) -> str:
    if len(milliseconds) < 2:
        return "too few"
    cuts = statistics.quantiles(milliseconds, n=100)
    return f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms, most {max(milliseconds):.0f} ms"


def compare(pair: Databases, home: Path, arguments: argparse.Namespace) -> None:
    ids = fill(pair.ours)
    streams = [f"/jobs/{ids[number % len(ids)]}/events" for number in range(arguments.clients)]
    with our_server(pair.ours, home) as url:
        asyncio.run(load(url, our_requests(ids), (), 50, 10, 2))  # what is loaded at the first request of a kind
        for rate in arguments.rates:
            took = asyncio.run(load(url, our_requests(ids), streams, rate, arguments.clients, arguments.seconds))
            tell(f"ours, {pair.kind}, {rate:g}/s asked, {load_average()}", took, arguments.seconds, by_kind=True)
    if arguments.no_rival:
        return
    with mlflow_server(pair.rivals, home, workers=1) as url:
        experiment, runs = fill_rival(url)
        asyncio.run(load(url, rival_requests(experiment, runs), (), 50, 10, 2))
        for rate in arguments.rates:
            requests = rival_requests(experiment, runs)
            took = asyncio.run(load(url, requests, (), rate, arguments.clients, arguments.seconds))
            tell(f"MLflow, {pair.kind}, {rate:g}/s asked, {load_average()}", took, arguments.seconds, by_kind=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[50, 100, 0])
    parser.add_argument("--no-rival", action="store_true")
    arguments = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="tid-bench-") as folder, databases(Path(folder)) as both:
        for pair in both:
            compare(pair, Path(folder) / pair.kind, arguments)


if __name__ == "__main__":
    main()
