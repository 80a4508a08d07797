"""Everything that can be done to the service. Each fault is over when its function returns, which says what it did."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock

import redis

from benchmarks.fire import processes
from benchmarks.fire.clock import wrong_by
from benchmarks.fire.databases import Postgres
from benchmarks.fire.disk import fill
from benchmarks.fire.fleet import Fleet, patiently
from client.errors import ApiError
from store.states import State

LEASE_SECONDS = 6.0
_TARGET_SECONDS = 30.0
_LOOK_SECONDS = 0.3


class NoTarget(Exception):
    """There was nothing to hurt."""


@dataclass
class Scene:
    """What the faults of one run know."""

    fleet: Fleet
    clock: Path | None = None
    disk: Path | None = None
    """Where artifacts lie, on a disk of their own."""
    open_jobs: Callable[[], list[str]] = list
    cancelled: set[str] = field(default_factory=set)
    """Jobs that were asked to cancel."""
    database: Lock = field(default_factory=Lock)
    """The database can only be hurt in one way at a time."""


Fault = Callable[[Scene, Random], str]


def kill_training(scene: Scene, dice: Random) -> str:
    worker, pid = _busy(scene, dice)
    processes.send(signal.SIGKILL, [pid])
    return f"kill -9 of the training {pid} of {worker}"


def kill_worker(scene: Scene, dice: Random) -> str:
    worker = dice.choice(scene.fleet.workers)
    return f"kill -9 of {worker}, {scene.fleet.kill(worker)}"


def kill_pool(scene: Scene, dice: Random) -> str:
    """The process that runs the job, and not the one that hears the messages."""
    worker, training = _busy(scene, dice)
    parents = [process.parent for process in processes.listing() if process.pid == training]
    if not parents:
        raise NoTarget
    processes.send(signal.SIGKILL, parents)
    return f"kill -9 of the pool process {parents} of {worker}"


def stop_worker(scene: Scene, dice: Random) -> str:
    worker = dice.choice(scene.fleet.workers)
    return f"SIGTERM to {worker}, {scene.fleet.kill(worker, signal.SIGTERM)}"


def stop_whole_worker(scene: Scene, dice: Random) -> str:
    """As some service managers do it: SIGTERM to each of its processes, but for the training."""
    worker = dice.choice(scene.fleet.workers)
    pids = scene.fleet.pool(worker)
    processes.send(signal.SIGTERM, pids)
    return f"SIGTERM to all of {worker}, {pids}"


def kill_api(scene: Scene, _dice: Random) -> str:
    return f"kill -9 of the API, {scene.fleet.kill('api')}"


def kill_broker(scene: Scene, dice: Random) -> str:
    """With all its messages, and for a while."""
    seconds = dice.uniform(0.0, 4.0)
    scene.fleet.held.add("valkey")
    pid = scene.fleet.kill("valkey")
    time.sleep(seconds)
    scene.fleet.held.discard("valkey")
    return f"kill -9 of Valkey, {pid}, away for {seconds:.1f} s"


def lose_messages(scene: Scene, _dice: Random) -> str:
    try:
        with redis.Redis(unix_socket_path=str(scene.fleet.socket)) as broker:
            lost = broker.llen("default")
            broker.delete("default")
    except redis.exceptions.ConnectionError as error:
        raise NoTarget from error
    return f"{lost} messages lost"


def repeat_messages(scene: Scene, dice: Random) -> str:
    """For jobs that wait and for jobs that run, so that both workers are told at once."""
    for job_id in (told := scene.open_jobs()):
        _ring(scene, job_id, dice.randint(2, 4))
    return f"messages repeated for {len(told)} jobs"


def freeze_worker(scene: Scene, dice: Random) -> str:
    """Past its lease; its training goes on, or is frozen with it."""
    worker = dice.choice(scene.fleet.workers)
    seconds = LEASE_SECONDS + dice.uniform(0.5, 4.0)
    pids = scene.fleet.pool(worker)
    if dice.random() < 0.5 and (training := scene.fleet.training(worker)):
        pids.append(training)
    _freeze(pids, seconds)
    return f"{worker} frozen for {seconds:.1f} s, {pids}"


def freeze_training(scene: Scene, dice: Random) -> str:
    worker, pid = _busy(scene, dice)
    seconds = LEASE_SECONDS + dice.uniform(0.5, 3.0)
    _freeze([pid], seconds)
    return f"the training {pid} of {worker} frozen for {seconds:.1f} s"


def set_clock(scene: Scene, dice: Random) -> str:
    """One worker's clock is an hour off; it is killed so that it starts with it."""
    if scene.clock is None:
        raise NoTarget
    worker, seconds = dice.choice(scene.fleet.workers), dice.choice([-3600, 3600])
    part = scene.fleet.parts[worker]
    part.environment = {**part.environment, **wrong_by(seconds, scene.clock)}
    return f"the clock of {worker} is off by {seconds} s, kill -9 of {scene.fleet.kill(worker)}"


def fill_disk(scene: Scene, dice: Random) -> str:
    if scene.disk is None:
        raise NoTarget
    seconds = dice.uniform(2.0, 12.0)
    end = time.monotonic() + seconds
    fill(scene.disk, lambda: time.monotonic() > end)
    return f"no room for artifacts for {seconds:.1f} s"


def block_database(scene: Scene, dice: Random) -> str:
    """Often past the leases of all workers."""
    seconds = dice.uniform(2.0, LEASE_SECONDS + 4.0)
    with scene.database:
        scene.fleet.database.block(seconds)
    return f"the database blocked for {seconds:.1f} s"


def kill_database(scene: Scene, dice: Random) -> str:
    server, seconds = scene.fleet.database, dice.uniform(0.0, LEASE_SECONDS + 4.0)
    assert isinstance(server, Postgres), "only a server can be killed"
    with scene.database:
        server.kill(seconds)
    return f"kill -9 of the database, away for {seconds:.1f} s"


def cancel(scene: Scene, dice: Random) -> str:
    job_id = _job(scene, dice)
    scene.cancelled.add(job_id)
    return f"cancel of {job_id}: {_ask(lambda: scene.fleet.client.cancel(job_id).state)}"


def pause(scene: Scene, dice: Random) -> str:
    """And on it goes after a while."""
    client, job_id = scene.fleet.client, _job(scene, dice)
    told = _ask(lambda: client.pause(job_id).state)
    time.sleep(dice.uniform(0.0, 5.0))
    while patiently(lambda: client.job(job_id).state) in (State.PAUSING, State.PAUSED):
        _ask(lambda: client.resume(job_id).state)
        time.sleep(_LOOK_SECONDS)
    return f"pause of {job_id}: {told}, resumed"


def drain(scene: Scene, dice: Random) -> str:
    """A worker hands its job back, or finishes it, takes no other, and is let free again."""
    client, worker, wait = scene.fleet.client, dice.choice(scene.fleet.workers), dice.random() < 0.5
    told = _ask(lambda: client.drain(worker, wait=wait).state)
    seconds = dice.uniform(1.0, 6.0)
    time.sleep(seconds)
    return f"drain of {worker}, wait {wait}: {told}, {_ask(lambda: client.undrain(worker).state)} after {seconds:.1f} s"


KINDS: dict[str, Fault] = {
    "kill -9 of a training": kill_training,
    "kill -9 of a worker": kill_worker,
    "kill -9 of a pool process": kill_pool,
    "kill -9 of the API": kill_api,
    "kill -9 of Valkey": kill_broker,
    "SIGTERM to a worker": stop_worker,
    "SIGTERM to all of a worker": stop_whole_worker,
    "messages lost": lose_messages,
    "messages repeated": repeat_messages,
    "worker frozen past its lease": freeze_worker,
    "training frozen": freeze_training,
    "artifact disk full": fill_disk,
    "database blocked": block_database,
    "job cancelled": cancel,
    "job paused and resumed": pause,
    "worker drained": drain,
}
SERVER_KINDS: dict[str, Fault] = {"kill -9 of PostgreSQL": kill_database, "clock off by an hour": set_clock}
"""Where the database is a server, with a clock of its own; SQLite's is that of the one machine it is for."""

TAKE_AN_ATTEMPT = (
    "kill -9 of a training",
    "kill -9 of a worker",
    "kill -9 of a pool process",
    "worker frozen past its lease",
    "clock off by an hour",
)
"""Each of these at most one; nothing else counts against `max_attempts`."""


def _busy(scene: Scene, dice: Random) -> tuple[str, int]:
    """A worker that trains, and its training."""
    workers = dice.sample(scene.fleet.workers, len(scene.fleet.workers))
    deadline = time.monotonic() + _TARGET_SECONDS
    while time.monotonic() < deadline:
        for worker in workers:
            if (pid := scene.fleet.training(worker)) is not None:
                return worker, pid
        time.sleep(0.2)
    raise NoTarget


def _job(scene: Scene, dice: Random) -> str:
    job_ids = scene.open_jobs()
    if not job_ids:
        raise NoTarget
    return dice.choice(sorted(job_ids))


def _freeze(pids: list[int], seconds: float) -> None:
    processes.send(signal.SIGSTOP, pids)
    try:
        time.sleep(seconds)
    finally:
        processes.send(signal.SIGCONT, pids)


def _ring(scene: Scene, job_id: str, times: int) -> None:
    try:
        scene.fleet.ring(job_id, times)
    except Exception as error:  # whatever the transport says when the broker is away
        raise NoTarget from error


def _ask(action: Callable[[], object]) -> str:
    """The answer of the API, also where it refuses because the job has moved on."""

    def asked() -> object:
        try:
            return action()
        except ApiError as error:
            if error.status == 409:
                return error.code
            raise

    return str(patiently(asked))
