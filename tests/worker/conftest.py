"""A dataset, a database and jobs small enough to be trained in a moment, by the real training process."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from benchmarks.fire import processes
from benchmarks.fire.tiny import tiny
from store import checkpoints, claims, datasets, jobs
from store.artifacts import open_artifacts
from store.db import Database
from store.fencing import Claim
from store.ids import new_id
from store.models import Attempt, Job, Metric
from store.states import State
from store.upgrade import upgrade
from tid_core.data.index import build_index
from tid_core.data.synthetic import write_demo_data
from tid_core.spec import JobSpec
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag
from worker.supervisor import supervise

SPEC = tiny(8)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    write_demo_data(root, images=12, seed=1)
    return root


class World:
    """A service without API and broker: settings, a database with one dataset, and the supervisor in a thread."""

    let_in: Callable[[bool], None]
    cut_off: Callable[[], None]

    def __init__(self, home: Path, digits: Path, database_url: str, **changes: Any) -> None:
        self.settings = WorkerSettings(
            home=home, data_roots=(digits.parent,), database_url=database_url, worker_id="worker-1", **changes
        )
        self.stop = StopFlag()
        self.database = Database(self.settings.database_url)
        self.dataset_id = self.register("digits", digits)

    def register(self, name: str, root: Path) -> str:
        """A dataset that was looked through, as the API does it."""
        index = self.settings.home / f"index-{name}"
        facts = build_index(root, index, name=name)
        for file in index.iterdir():
            open_artifacts(self.settings).put(f"datasets/{name}/{file.name}", file)
        roots = (root.parent,)
        with self.database.write() as session:
            row = datasets.register(name=name, root=root, options={}, roots=roots, session=session)
            hold = datasets.hold(row.id, "validating", seconds=60.0, session=session)
            assert hold is not None
            told = facts.model_dump(mode="json")
            datasets.finish_ready(
                hold, root=root, facts=told, classes=facts.classes, index_prefix=f"datasets/{name}", session=session
            )
        return row.id

    def submit(self, **changes: Any) -> str:
        merged = {n: {**SPEC.get(n, {}), **part} if isinstance(part, dict) else part for n, part in changes.items()}
        spec = {**SPEC, **merged}
        with self.database.write() as session:
            created = jobs.create(JobSpec.model_validate(spec), dataset_id=self.dataset_id, session=session)
        return created.job.id

    def run(self, job_id: str) -> Job:
        """One attempt, from claim to end."""
        supervise(job_id, self.settings, self.stop)
        return self.job(job_id)

    def start(self, job_id: str) -> threading.Thread:
        thread = threading.Thread(target=supervise, args=(job_id, self.settings, self.stop), daemon=True)
        thread.start()
        return thread

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return jobs.get(job_id, session=session)

    def attempts(self, job_id: str) -> list[Attempt]:
        with self.database.read() as session:
            return [a for n in range(1, 9) if (a := session.get(Attempt, (job_id, n))) is not None]

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.request_cancel(job_id, session=session)

    def claim(self, job_id: str, worker_id: str) -> Claim:
        with self.database.write() as session:
            claim = claims.claim(job_id, worker_id, lease_seconds=60.0, session=session)
        assert claim is not None
        return claim

    def curves(self, job_id: str) -> dict[tuple[str, int], float]:
        """Every valid point of every series, but for the speed, which no two runs share."""
        query = select(Metric.name, Metric.step, Metric.value).where(Metric.job_id == job_id, ~Metric.superseded)
        with self.database.read() as session:
            rows = session.execute(query).all()
        by_chance = ("throughput/", "time/", "memory/")
        return {(name, step): value for name, step, value in rows if not name.startswith(by_chance)}

    def weights(self, job_id: str) -> dict[str, str]:
        """Digests of the students, as recorded, after a look at the files themselves."""
        found = {}
        with self.database.read() as session:
            rows = checkpoints.of_job(job_id, session=session)
        artifacts = open_artifacts(self.settings)
        for row in rows:
            content = b"".join(artifacts.stream(row.key))
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (row.sha256, row.bytes)
            if row.format == "safetensors":
                found[row.name] = row.sha256
        return found

    @staticmethod
    def wait_for(condition: Callable[[], Any]) -> Any:
        """The first true value of the condition; the timeout of the test ends the wait."""
        while not (value := condition()):
            time.sleep(0.005)
        return value

    @contextmanager
    def database_away(self) -> Iterator[None]:
        """PostgreSQL as after a stop: every connection is cut and none is let in."""
        self.let_in(False)
        self.cut_off()
        yield
        self.let_in(True)

    def freeze(self, job_id: str, *, step: int, attempt: int = 1) -> int:
        """Halt the training once it has saved a state at `step` or later; returns its process."""
        resume = self.settings.home / "work" / job_id / f"attempt-{attempt}" / "out" / "resume"
        self.wait_for(lambda: [path for path in resume.glob("step-????????") if int(path.name[5:]) >= step])
        pid = processes.training(resume.parent.parent)
        os.kill(pid, signal.SIGSTOP)
        return pid


@pytest.fixture
def remote(tmp_path: Path, digits: Path, postgres_server: Any, postgres_template: str) -> Iterator[World]:
    """On PostgreSQL alone, with a way to make it go away."""
    name = f"remote_{new_id()}"
    postgres_server.run(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    world = World(tmp_path / "home", digits, postgres_server.url(name))
    world.let_in = lambda yes: postgres_server.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {yes}")
    world.cut_off = lambda: postgres_server.run(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    yield world
    world.database.close()
    postgres_server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def make_lite(digits: Path) -> Callable[[Path], World]:
    """A world on SQLite under the given folder."""

    def make(home: Path) -> World:
        upgrade(f"sqlite:///{home}/tid.db")
        return World(home, digits, f"sqlite:///{home}/tid.db")

    return make


@pytest.fixture
def lite(tmp_path: Path, make_lite: Callable[[Path], World]) -> Iterator[World]:
    world = make_lite(tmp_path / "home")
    yield world
    world.database.close()


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, make_lite: Callable[[Path], World]
) -> tuple[dict[str, str], dict[tuple[str, int], float]]:
    """Students and curves of a run without any fault."""
    world = make_lite(tmp_path_factory.mktemp("undisturbed"))
    job_id = world.submit()
    assert world.run(job_id).state is State.SUCCEEDED
    world.database.close()
    return world.weights(job_id), world.curves(job_id)
