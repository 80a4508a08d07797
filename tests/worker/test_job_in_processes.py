"""A job whose training runs in several processes is a job like any other."""

import os
import signal
from pathlib import Path
from typing import Any

from store.states import Outcome, State


def ranks_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task").glob("*/children")
    pids = sorted(int(pid) for file in children for pid in file.read_text().split())
    return [pid for pid in pids if b"--rank-in" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_job_whose_rank_was_killed_is_tried_again_and_goes_on(lite: Any) -> None:
    job_id = lite.submit(training={"epochs": 4}, resources={"gpus": 2})
    thread = lite.start(job_id)
    launcher = lite.freeze(job_id, step=4)
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)
    os.kill(launcher, signal.SIGCONT)
    thread.join()
    assert lite.job(job_id).state is State.QUEUED

    job = lite.run(job_id)
    assert (job.state, job.status_reason, job.step) == (State.SUCCEEDED, None, 12)
    assert job.run_facts["device"] == "2 x cpu"
    killed, last = lite.attempts(job_id)
    assert (killed.outcome, killed.reason) == (Outcome.CRASHED, "child_killed")
    assert last.resumed_from_step >= 3  # the state at 4 may have been written and not yet announced
    curves = lite.curves(job_id)
    assert [step for name, step in sorted(curves) if name == "loss/total"] == list(range(1, 13))
    assert set(lite.weights(job_id)) == {"best", "last"}
