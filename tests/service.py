"""The whole service on this machine, with patience cut short, and a dataset small enough to be trained in a moment."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from benchmarks.fire import processes
from benchmarks.fire.tiny import tiny
from client.client import Client
from client.embedded import Embedded
from client.errors import ServerUnreachable
from tid_core.data.synthetic import write_demo_data

SPEC = tiny(8)

PATIENCE = {
    "TID_LEASE_SECONDS": "6",
    "TID_HEARTBEAT_SECONDS": "1",
    "TID_REAPER_SECONDS": "0.5",
    "TID_RING_SECONDS": "2",
}


class Service:
    """`tid up`, a client of it, and ways to hurt it."""

    def __init__(self, home: Path, data: Path) -> None:
        self.home, self._data = home, data
        self.embedded: Embedded
        self.client: Client

    def start(self) -> None:
        environment = {"TID_DATA_ROOTS": str(self._data), "CUDA_VISIBLE_DEVICES": "", **PATIENCE}
        self.embedded = Embedded(self.home, port=0, environment=environment)
        self.embedded.start()
        self.client = Client(self.embedded.url)

    def stop(self) -> None:
        self.client.close()
        self.embedded.stop()

    def kill(self, name: str) -> int:
        """SIGKILL to one part; returns the process that was."""
        pid = self.embedded.parts[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def answers(self) -> bool:
        try:
            return self.client.ready().ready
        except ServerUnreachable:
            return False

    def wait_until_saved(self, job_id: str, *, step: int, attempt: int) -> int:
        """Until a state at `step` or later is recorded, of this attempt; returns the training's process."""
        query = "SELECT 1 FROM resume_states WHERE job_id = ? AND attempt = ? AND step >= ?"
        with closing(sqlite3.connect(self.home / "tid.db", timeout=30)) as connection:
            self.wait_for(lambda: connection.execute(query, (job_id, attempt, step)).fetchone())
        return processes.training(self.home / "work" / job_id / f"attempt-{attempt}")

    def ring(self, job_id: str) -> None:
        """One more message for the job."""
        with Celery("test", broker=f"redis+socket://{self.home}/run/valkey.sock", set_as_current=False) as app:
            app.send_task("tid.run_job", [job_id], queue="default", ignore_result=True)

    def curves(self, job_id: str) -> dict[tuple[str, int], float]:
        """Every point of every series, but for the speed, which no two runs share."""
        series = self.client.metrics(job_id).series
        points = [(one.name, point.step, point.value) for one in series for point in one.points]
        assert len({(name, step) for name, step, _ in points}) == len(points)
        by_chance = ("throughput/", "time/", "memory/")
        return {(name, step): value for name, step, value in points if not name.startswith(by_chance)}

    def weights(self, job_id: str) -> dict[str, str]:
        """Digest of each student's safetensors."""
        files = {one.name: one.files for one in self.client.checkpoints(job_id)}
        return {name: file.sha256 for name, of in files.items() for file in of if file.format == "safetensors"}

    @staticmethod
    def wait_for(condition: Callable[[], Any]) -> Any:
        """The first true value of the condition; the timeout of the test ends the wait."""
        while not (value := condition()):
            time.sleep(0.01)
        return value


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("data")
    write_demo_data(data / "digits", images=12, seed=1)
    service = Service(tmp_path_factory.mktemp("home"), data)
    service.start()
    try:
        service.client.add_dataset("digits", data / "digits")
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return SPEC
