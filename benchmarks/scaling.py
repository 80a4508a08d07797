"""Many workers on one PostgreSQL of this machine: how late their heartbeats and reports are, and what they cost it.

    uv run python -m benchmarks.scaling [--workers 10 100 1000] [--seconds 30] [--way wire]
    uv run python -m benchmarks.crowd.sizes

Each worker has a job and writes what a real one writes: its own row once in TID_HEARTBEAT_SECONDS, over a connection of
its own, and what its training said once a second (progress, each 2.5 s also 20 values, each 10 s a line of log), with
the lease renewed in the same transaction. The reaper runs meanwhile. No worker has a process of its own: `--processes`
times `--threads` of them write at the same time.

  --way worker  by the code of a real worker (benchmarks/crowd/members.py). Real ones have a host each; here Python is
                what takes most of the CPU.
  --way wire    the statements that this code sends, noted once and sent for all (benchmarks/crowd/wire.py): PostgreSQL
                has the same to do, the writers a quarter. For more workers than this machine could run.

A beat or report that is late moves its worker's next one. By a worker's code a late report is a fuller one, as a real
one is; by wire it has the points of one log.
"""

import argparse
import heapq
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks.crowd.figures import Figures, Server
from benchmarks.crowd.members import Member, Pace, settings_of, submit
from benchmarks.crowd.wire import Tape, WireMember
from benchmarks.fire.databases import Postgres
from benchmarks.rivals import load_average
from store import reaper
from store.db import Database
from store.errors import LeaseLost
from store.ids import new_id
from store.settings import Settings
from store.upgrade import upgrade

REPORT_SECONDS = 1.0
"""Between two reports of a training: it tells its progress once a second."""
Lags = dict[str, list[float]]


class Due(NamedTuple):
    at: float
    number: int
    kind: str
    every: float
    do: Callable[[float], int | None]


class Writers:
    """The workers of one process, by several threads."""

    def __init__(self, members: Sequence[Member | WireMember], heartbeat_seconds: float) -> None:
        self.lags: Lags = defaultdict(list)
        self.points = 0
        self._queue: list[Due] = []
        self._lock, self._numbers = threading.Lock(), count()
        self._members, self._heartbeat_seconds = members, heartbeat_seconds

    def run(self, seconds: float, threads: int) -> None:
        now = time.monotonic()
        for place, member in enumerate(self._members):
            share = place / len(self._members)  # they did not all begin at once
            beat = partial(_beat, member)
            self._add(now + share * self._heartbeat_seconds, "beat", self._heartbeat_seconds, beat)
            self._add(now + share * REPORT_SECONDS, "report", REPORT_SECONDS, member.report)
            member.begin(now)
        end = now + seconds
        crew = [threading.Thread(target=self._work, args=(end,)) for _ in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    def _work(self, end: float) -> None:
        while (now := time.monotonic()) < end:
            with self._lock:
                due = heapq.heappop(self._queue) if self._queue else None
            if due is None or due.at >= end:  # the others have what there is, or nothing is due any more
                time.sleep(min(0.05, end - now))
            else:
                time.sleep(max(0.0, due.at - now))
                self._do(due)

    def _do(self, due: Due) -> None:
        try:
            result = due.do(time.monotonic())
        except LeaseLost:
            return  # this worker's job is another's now, which the reaper has counted
        done = time.monotonic()
        with self._lock:
            self.lags[due.kind].append(done - due.at)
            self.points += result or 0
            self._add(max(due.at + due.every, done), due.kind, due.every, due.do)

    def _add(self, at: float, kind: str, every: float, do: Callable[[float], int | None]) -> None:
        heapq.heappush(self._queue, Due(at, next(self._numbers), kind, every, do))


def _beat(member: Member | WireMember, _now: float) -> None:
    member.beat()


class Outcome(NamedTuple):
    """Of one process of writers."""

    lags: Lags
    points: int
    cpu_seconds: float


def write_for(numbers: Sequence[int], url: str, home: Path, arguments: argparse.Namespace, pipe: Connection) -> None:
    """The process: signs its workers on, waits for the word, writes for the time, and tells how it was."""
    database = Database(url)
    members = [Member(settings_of(number, url, home), database, Pace()) for number in numbers]
    for member in members:
        member.sign_on()
    brief = Database(url, keep_connections=False)
    tape = Tape(members[0]) if arguments.way == "wire" else None
    doing = [WireMember(member, tape, database, brief, Pace()) for member in members] if tape else members
    writers = Writers(doing, members[0].heartbeat_seconds)
    pipe.send("ready")
    pipe.recv()
    before = time.process_time()
    writers.run(arguments.seconds, arguments.threads)
    pipe.send(Outcome(dict(writers.lags), writers.points, time.process_time() - before))
    database.close()


@contextmanager
def reaping(database: Database, settings: Settings) -> Iterator[tuple[list[float], list[str]]]:
    """The reaper at its pace; how long each round took, and the jobs that it took from their workers."""
    times: list[float] = []
    lost: list[str] = []
    stop, token = threading.Event(), new_id()

    def rounds() -> None:
        while not stop.wait(settings.reaper_seconds):
            began = time.monotonic()
            done = reaper.reap_once(database, settings, token=token, ring=lambda _: None)
            times.append(time.monotonic() - began)
            lost.extend(expired.job_id for expired in (done.expired if done else ()))

    thread = threading.Thread(target=rounds)
    thread.start()
    try:
        yield times, lost
    finally:
        stop.set()
        thread.join()


def measure(number: int, home: Path, arguments: argparse.Namespace) -> None:
    postgres = Postgres()
    try:
        upgrade(postgres.url)
        server, database = Server(postgres.url), Database(postgres.url)
        for statement in arguments.sql:
            server.run(statement)
        submit(number, database)
        with crew_of(number, postgres.url, home, arguments) as pipes:
            before, began = server.figures(), time.monotonic()
            with reaping(database, Settings(home=home, database_url=postgres.url)) as (rounds, lost):
                for pipe in pipes:
                    pipe.send("go")
                time.sleep(arguments.seconds / 2)
                connections = server.connections()
                outcomes: list[Outcome] = [pipe.recv() for pipe in pipes]
                seconds = time.monotonic() - began
            spent = server.figures().since(before)
        show(number, seconds, outcomes, spent)
        print(f"    reaper: {len(rounds)} rounds, {spread(rounds)}; leases that ran out: {len(lost)}; "
              f"{connections} connections")  # fmt: skip
        database.close()
        server.close()
    finally:
        postgres.stop()


@contextmanager
def crew_of(number: int, url: str, home: Path, arguments: argparse.Namespace) -> Iterator[list[Connection]]:
    """Processes of writers that are ready to go."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for place in range(min(arguments.processes, number)):
        ours, theirs = context.Pipe()
        numbers = range(place, number, arguments.processes)
        process = context.Process(target=write_for, args=(numbers, url, home, arguments, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    yield pipes
    for process in processes:
        process.join(30)


def show(number: int, seconds: float, outcomes: Sequence[Outcome], spent: Figures) -> None:
    lags = {kind: [lag for outcome in outcomes for lag in outcome.lags.get(kind, ())] for kind in ("beat", "report")}
    done = max(1, sum(map(len, lags.values())))
    points = sum(outcome.points for outcome in outcomes) / seconds
    writers = sum(outcome.cpu_seconds for outcome in outcomes)
    hot = spent.job_hot_updates / max(1, spent.job_updates)
    print(f"{number} workers, {seconds:.0f} s, {load_average()}")
    print(f"    beats   {len(lags['beat']) / seconds:7.1f}/s, late by {spread(lags['beat'])}")
    print(
        f"    reports {len(lags['report']) / seconds:7.1f}/s, late by {spread(lags['report'])}; {points:,.0f} points/s"
    )
    print(
        f"    PostgreSQL: {spent.cpu_seconds / seconds:.2f} cores, {spent.cpu_seconds / done * 1e3:.2f} ms each, "
        f"{spent.transactions / seconds:,.0f} transactions/s, {spent.rows / seconds:,.0f} rows/s, "
        f"WAL {spent.wal_bytes / seconds / 1e3:,.0f} kB/s, tables {spent.bytes / seconds / 1e3:+,.0f} kB/s"
    )
    print(f"    updates of jobs that touch no index: {hot:.0%}")
    print(f"    writers: {writers / seconds:.2f} cores, {writers / done * 1e3:.1f} ms each")


def spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    inside = sorted(seconds)
    p99 = inside[min(len(inside) - 1, int(len(inside) * 0.99))]
    return f"{statistics.median(inside) * 1e3:,.0f} / {p99 * 1e3:,.0f} / {inside[-1] * 1e3:,.0f} ms (p50/p99/max)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--way", choices=["worker", "wire"], default="worker", help="whose code writes: see above")
    parser.add_argument("--sql", nargs="*", default=[], help="statements to begin with, to try another index")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the server would stay behind
    with tempfile.TemporaryDirectory(prefix="tid-scaling-") as folder:
        for number in arguments.workers:
            measure(number, Path(folder), arguments)


if __name__ == "__main__":
    main()
