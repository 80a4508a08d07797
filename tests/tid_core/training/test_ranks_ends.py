"""How a run in two processes ends when something befalls it, and that it then goes on to the same bits."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tid_core.data.sampler import EpochSampler
from tid_core.events import Finished
from tid_core.plan import SplitPaths
from tid_core.training import launcher
from tid_core.training.files import sha256_of
from tid_core.training.meeting import RANK_LOST, leave_word
from tid_core.training.verdict import verdict

FAILED = Finished(outcome="failed", reason="disk_full", detail="no space")
LOST = Finished(outcome="failed", reason=RANK_LOST, detail="gone")
STOPPED, DONE = Finished(outcome="stopped"), Finished(outcome="succeeded")


def ranks_of(parent: int) -> list[int]:
    """The processes that `parent` started as ranks, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"--rank-in" in command and str(parent).encode() in command:
                environment = (entry / "environ").read_bytes().split(b"\0")
                found[next(e for e in environment if e.startswith(b"RANK="))] = int(entry.name)
        except OSError:
            continue
    return [found[rank] for rank in sorted(found)]


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_for_the_end_of(pids: list[int]) -> None:
    while not all(gone(pid) for pid in pids):  # the timeout of the test ends it
        time.sleep(0.02)


def test_whatever_is_killed_the_run_goes_on_exactly(make_plan, run, start_process):
    # Everything with a state of its own, and BatchNorm, whose statistics are each rank's.
    options = {
        "data": {"min_size": [48, 64], "photometric": 0.5},
        "training": {"epochs": 2, "accumulate": 2, "ema": True, "save_every_steps": 2, "log_every_steps": 1},
        "resources": {"gpus": 2},
    }
    whole = run(make_plan(out="whole", **options), trainer=launcher.run)
    assert whole.finished.outcome == "succeeded", whole.finished

    plan = make_plan(out="broken", **options)
    last = {}
    for step, victim in ((3, "rank"), (6, "launcher"), (9, None)):
        process = start_process(plan)
        ranks = []
        for event in process.listen():
            if event.type == "metrics" and event.step == step and "lr" in event.values:
                ranks = ranks_of(process.process.pid)
                if victim is None:
                    process.process.send_signal(signal.SIGTERM)
                else:
                    os.kill(ranks[1] if victim == "rank" else process.process.pid, signal.SIGKILL)
                break
        assert len(ranks) == 2, process.log.read_text()
        code = process.wait()
        wait_for_the_end_of(ranks)
        last[victim] = (code, process.events[-1])
    assert last["rank"][0] == 1
    assert (last["rank"][1].outcome, last["rank"][1].reason) == ("failed", "child_killed")
    assert "rank 1 of 2" in last["rank"][1].detail
    assert last["launcher"][0] == -signal.SIGKILL
    assert (last[None][0], last[None][1].outcome) == (75, "stopped")

    final = start_process(plan)
    assert final.wait() == 0, final.log.read_text()
    resumed = next(event.resumed_from_step for event in final.events if event.type == "started")
    assert resumed >= 9
    for name in ("best.safetensors", "last.safetensors"):
        assert sha256_of(plan.out_dir / "checkpoints" / name) == sha256_of(
            make_plan(out="whole").out_dir / "checkpoints" / name
        )


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
