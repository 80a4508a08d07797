"""How a training is stopped, what is told of it, and what a worker does with the jobs that wait for it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fire.processes import has_pending
from store import control, workers
from store.models import Draining
from store.settings import Settings
from store.states import Outcome, State
from worker.child import Child
from worker.stopping import Reason, StopRequest
from worker.supervisor import work

DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
POLITE = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], Child]:
    """A process that lives until it is ended, once it has said that it is ready."""

    def make(handling: str) -> Child:
        script = tmp_path / "program.py"
        script.write_text(f"import signal, sys, time\n{handling}\nprint('ready', flush=True)\ntime.sleep(600)\n")
        child = Child(tmp_path / "plan.json", program=(str(script),))
        while "ready" not in child.listen(0.1).log:
            assert not child.exited()
        return child

    return make


def stop(request: StopRequest, child: Child) -> int:
    while not child.exited():
        request.apply(child, finished=False)
        time.sleep(0.01)
    code = child.close()
    request.ended()
    return code


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, cancel_grace_seconds=0.2, terminate_grace_seconds=600)


def test_a_training_that_ignores_sigterm_is_killed_after_the_time_of_its_setting(
    start: Callable[[str], Child], settings: Settings
) -> None:
    request = StopRequest(settings)
    request.see(State.CANCELLING, shutting_down=False, draining=None)
    assert stop(request, start(DEAF)) == -signal.SIGKILL
    told = request.describe(finished=False)
    seconds = float(told.split("had not ended ")[1].split(" s after SIGTERM")[0])
    assert seconds >= 0.2
    assert "killed (SIGKILL)" in told


def test_a_training_that_heeds_sigterm_is_not_killed(start: Callable[[str], Child], settings: Settings) -> None:
    request = StopRequest(settings)
    request.see(State.PAUSING, shutting_down=True, draining="now")
    assert request.reason is Reason.PAUSE
    assert stop(request, start(POLITE)) == 0
    assert "killed" not in request.describe(finished=False)
    assert "saved its state" in request.describe(finished=True)


def test_a_cancel_shortens_the_time_that_a_pause_gave(start: Callable[[str], Child], settings: Settings) -> None:
    request = StopRequest(settings)
    for state in (State.RUNNING, State.PAUSING, State.CANCELLING, State.PAUSING):
        request.see(state, shutting_down=False, draining="wait")
    assert request.reason is Reason.CANCEL
    assert stop(request, start(DEAF)) == -signal.SIGKILL


def test_without_a_training_there_is_nothing_to_wait_for(settings: Settings) -> None:
    request = StopRequest(settings)
    request.see(State.RUNNING, shutting_down=False, draining="now")
    assert request.reason is Reason.DRAIN
    assert "before its training" in request.describe(finished=False)


def test_a_worker_goes_from_job_to_job_by_priority_and_drains_as_it_is_told(lite: Any) -> None:
    """It is told to hand its job back at once; then, having taken it again, to finish it and take no other."""
    with lite.database.write() as session:
        workers.register("worker-1", hostname="h", pid=1, queues=["default"], device={}, session=session)
    last, second, first = (lite.submit(training={"epochs": n}) for n in (1, 2, 1))
    with lite.database.write() as session:
        control.set_priority(first, 0, session=session)
        control.set_priority(second, 4, session=session)

    thread = threading.Thread(target=work, args=(lite.settings, lite.stop), daemon=True)
    thread.start()
    child = lite.freeze(second, step=2)
    assert lite.job(first).state is State.SUCCEEDED, "the most urgent came first, and the worker went on by itself"
    drain(lite, "now")
    lite.wait_for(lambda: has_pending(child, signal.SIGTERM))
    os.kill(child, signal.SIGCONT)
    thread.join()
    job = lite.job(second)
    assert (job.state, job.status_reason) == (State.QUEUED, "worker_drained")
    (attempt,) = lite.attempts(second)
    assert (attempt.outcome, attempt.reason) == (Outcome.HANDED_BACK, "worker_drained")
    assert attempt.last_step >= 2
    assert lite.run(second).state is State.QUEUED, "a drained worker gets nothing, even by name"

    drain(lite, None)
    thread = threading.Thread(target=work, args=(lite.settings, lite.stop), daemon=True)
    thread.start()
    child = lite.freeze(second, step=4, attempt=2)
    drain(lite, "wait")
    os.kill(child, signal.SIGCONT)
    thread.join()
    assert (lite.job(second).state, lite.job(last).state) == (State.SUCCEEDED, State.QUEUED)


def drain(lite: Any, how: Draining | None) -> None:
    with lite.database.write() as session:
        if how is None:
            workers.undrain("worker-1", session=session)
        else:
            workers.drain("worker-1", how, session=session)
