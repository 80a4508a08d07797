"""How a run in several processes ends when something befalls it, and that it then goes on to the same bits."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tid_core.data.sampler import EpochSampler
from tid_core.events import Event, Finished
from tid_core.plan import SplitPaths
from tid_core.training import launcher
from tid_core.training.files import sha256_of
from tid_core.training.meeting import RANK_LOST, leave_word
from tid_core.training.verdict import verdict

FAILED = Finished(outcome="failed", reason="disk_full", detail="no space")
LOST = Finished(outcome="failed", reason=RANK_LOST, detail="gone")
STOPPED, DONE = Finished(outcome="stopped"), Finished(outcome="succeeded")


def processes_under(parent: int) -> dict[str, list[int]]:
    """The ranks of a launcher, in their order, and their loader processes."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    ranks = sorted(pid for pid, its_parent in parents.items() if its_parent == parent)
    ranks = [pid for pid in ranks if b"--rank-in" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {"ranks": ranks, "loaders": [pid for pid, its_parent in parents.items() if its_parent in ranks]}


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_for_the_end_of(family: dict[str, list[int]]) -> None:
    assert [len(pids) for pids in family.values()] == [3, 3]
    while not all(gone(pid) for pids in family.values() for pid in pids):  # the timeout of the test ends it
        time.sleep(0.02)


def at_step(event: Event, step: int) -> bool:
    return event.type == "metrics" and event.step == step and "lr" in event.values


@pytest.fixture
def whole(make_plan, run):
    """The plan of a run that nothing befalls, and its student."""
    # Everything with a state of its own, and BatchNorm, whose statistics each rank takes from its own images.
    options = {
        "data": {"min_size": [48, 64], "photometric": 0.5, "workers": 1},
        "training": {
            "epochs": 3,
            "batch_size": 6,
            "accumulate": 2,
            "ema": True,
            "save_every_steps": 2,
            "log_every_steps": 1,
        },
        "resources": {"gpus": 3},
    }
    plan = make_plan(out="whole", **options)
    finished = run(plan, trainer=launcher.run).finished
    assert finished.outcome == "succeeded", finished
    return lambda: make_plan(out="broken", **options), plan.out_dir / "checkpoints"


@pytest.mark.timeout(600)
def test_whatever_is_killed_the_run_goes_on_exactly(whole, start_process):
    make, expected = whole
    plan = make()

    # A rank is killed: by the system for want of memory, say.
    family: dict[str, list[int]] = {}

    def kill_a_rank(event: Event) -> None:
        if at_step(event, 3):
            family.update(processes_under(os.getpid()))
            os.kill(family["ranks"][1], signal.SIGKILL)

    finished = launcher.run(plan, kill_a_rank, lambda: False)
    assert (finished.outcome, finished.reason) == ("failed", "child_killed")
    assert finished.detail.startswith("rank 1 of 3 was killed")
    wait_for_the_end_of(family)

    # The launcher is killed: nobody else would end the ranks.
    process = start_process(plan)
    code = process.end_when(
        lambda event: at_step(event, 6) and not family.update(processes_under(process.process.pid)), signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    wait_for_the_end_of(family)

    # It is asked to stop.
    heard: list[Event] = []
    finished = launcher.run(plan, heard.append, lambda: any(at_step(event, 9) for event in heard))
    assert finished.outcome == "stopped"
    assert heard[-1] == finished
    stopped_at = [event.step for event in heard if event.type == "resume_state"][-1]
    assert stopped_at >= 9

    heard.clear()
    assert launcher.run(plan, heard.append, lambda: False).outcome == "succeeded"
    assert [event.resumed_from_step for event in heard if event.type == "started"] == [stopped_at]
    for name in ("best.safetensors", "last.safetensors"):
        assert sha256_of(plan.out_dir / "checkpoints" / name) == sha256_of(expected / name)


def test_a_rank_that_fails_alone_tells_why_and_ends_all(make_plan, run, dataset, tmp_path):
    copy = tmp_path / "digits"
    shutil.copytree(dataset, copy)
    train = SplitPaths(images=copy / "train", annotations=copy / "train.json")
    ((_, index), *_) = next(iter(EpochSampler(24, 4, rank=1, world=2)))
    victim = sorted((copy / "train").iterdir())[index]
    victim.write_bytes(victim.read_bytes()[:100])
    plan = make_plan(plain=True, resources={"gpus": 2}).model_copy(update={"train": train})
    done = run(plan, trainer=launcher.run)
    assert done.events[-1] == done.finished
    assert (done.finished.outcome, done.finished.reason) == ("failed", "dataset_invalid")
    assert done.finished.detail.startswith("rank 1 of 2: ")
    assert victim.name in done.finished.detail


@pytest.mark.parametrize(
    ("words", "codes", "expected", "part"),
    [
        ({0: DONE, 1: DONE}, {}, ("succeeded", None), None),
        ({0: STOPPED, 1: STOPPED}, {}, ("stopped", None), None),
        ({0: LOST, 1: FAILED}, {0: 1, 1: 1}, ("failed", "disk_full"), "rank 1 of 2: no space"),
        ({0: FAILED, 1: FAILED}, {0: 1, 1: 1}, ("failed", "disk_full"), "no space"),
        ({0: LOST}, {1: -9, 0: 1}, ("failed", "child_killed"), "rank 1 of 2 was killed"),
        ({}, {1: -11, 0: -9}, ("failed", "child_crashed"), "rank 1 of 2 was ended by signal 11"),
        ({0: LOST}, {0: 1, 1: 3}, ("failed", "child_crashed"), "rank 1 of 2 exited with code 3"),
        ({0: LOST, 1: LOST}, {0: 1, 1: 1}, ("failed", "rank_lost"), "gone"),
        ({0: DONE}, {}, ("failed", "child_crashed"), "rank 1 of 2"),
    ],
)
def test_the_verdict_is_the_cause_not_what_followed(tmp_path, words, codes, expected, part):
    for rank, word in words.items():
        leave_word(tmp_path, rank, word)
    found = verdict(tmp_path, 2, codes, None)
    assert (found.outcome, found.reason) == expected
    assert part is None or found.detail.startswith(part)


def test_ranks_that_could_not_be_started_are_told(tmp_path):
    found = verdict(tmp_path, 2, {}, OSError("no port is free"))
    assert (found.reason, found.detail) == ("internal_error", "OSError: no port is free")
