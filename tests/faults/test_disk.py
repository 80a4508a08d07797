"""An artifact store without room, on a real disk of its own."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fire import disk
from store import checkpoints
from store.states import State
from worker.settings import WorkerSettings

WORKER = """
import hashlib, json, sys
from pathlib import Path
from benchmarks.fire import disk
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag
from worker.supervisor import supervise

settings = WorkerSettings.model_validate_json(sys.argv[2])
disk.mount(settings.artifacts / "jobs", 64)
disk.mount(settings.home / "work", 64)
supervise(sys.argv[1], settings, StopFlag())
files = [path for path in (settings.artifacts / "jobs").rglob("*") if path.is_file()]
digests = {str(path.relative_to(settings.artifacts)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
print(json.dumps(digests))
"""


pytestmark = pytest.mark.skipif(not disk.can_mount(), reason="this user may not make a mount namespace")


def test_a_full_store_is_waited_for(lite: Any) -> None:
    """Longer than one that is out of order would be; the training goes on and ends meanwhile."""
    job_id = lite.submit(training={"epochs": 2})
    settings = lite.settings.model_copy(update={"storage_seconds": 0.1})
    worker, states = start_worker(lite, job_id, settings)
    with full(worker, settings.artifacts / "jobs"):
        lite.wait_for(lambda: "disk_full" in {warning["code"] for warning in lite.job(job_id).warnings})
        lite.wait_for(lambda: lite.job(job_id).step == 6 and (states / "step-00000006").exists())
        assert lite.job(job_id).state is State.RUNNING
    assert_whole(lite, job_id, worker)


def test_a_training_waits_for_room_to_work_in(lite: Any) -> None:
    job_id = lite.submit(training={"epochs": 2})
    worker, _ = start_worker(lite, job_id, lite.settings)
    with full(worker, lite.settings.home / "work"):
        lite.wait_for(lambda: "disk_full" in {warning["code"] for warning in lite.job(job_id).warnings})
        assert lite.job(job_id).state is State.RUNNING
    assert_whole(lite, job_id, worker)


def assert_whole(lite: Any, job_id: str, worker: "subprocess.Popen[bytes]") -> None:
    """The job succeeds at the first attempt, and each file is what its row says."""
    out, _ = worker.communicate()
    job = lite.job(job_id)
    assert (job.state, job.status_reason, job.attempt) == (State.SUCCEEDED, None, 1)
    stored = json.loads(out)
    with lite.database.read() as session:
        rows = checkpoints.of_job(job_id, session=session)
    assert {row.step for row in rows if row.name == "last"} == {6}
    assert all(stored[row.key] == row.sha256 for row in rows)
    assert not [key for key in stored if key.endswith("state.pt")]


@contextmanager
def full(worker: "subprocess.Popen[bytes]", folder: Path) -> Iterator[None]:
    """No room on the disk that the worker sees at `folder`."""
    free = threading.Event()
    seen = Path(f"/proc/{worker.pid}/root") / folder.relative_to("/")
    filling = threading.Thread(target=disk.fill, args=(seen, free.is_set))
    filling.start()
    try:
        yield
    finally:
        free.set()
        filling.join()


def start_worker(lite: Any, job_id: str, settings: WorkerSettings) -> "tuple[subprocess.Popen[bytes], Path]":
    """A worker that trains, and the folder of its training's states; the first one is written."""
    command = [*disk.namespace(), sys.executable, "-c", WORKER, job_id, settings.model_dump_json()]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    states = settings.home / "work" / job_id / "attempt-1" / "out" / "resume"
    states = Path(f"/proc/{worker.pid}/root") / states.relative_to("/")
    lite.wait_for((states / "step-00000001").exists)
    return worker, states
