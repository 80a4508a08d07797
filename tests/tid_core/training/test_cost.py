"""What a run tells of its cost."""

import subprocess
import sys

import pytest
import torch

from tid_core.training.cost import TeacherClock, peak_memory

CPU = torch.device("cpu")


def test_a_run_tells_its_speed_its_teachers_part_and_its_memory(make_plan, run):
    done = run(make_plan(training={"epochs": 1, "accumulate": 2}))
    assert done.finished.outcome == "succeeded", done.finished
    for name in ("throughput/images_per_second", "time/step_seconds", "time/teacher_share", "memory/peak_bytes"):
        assert list(done.series[name]) == [2, 4, 6], name
    for step, seconds in done.series["time/step_seconds"].items():
        assert done.series["throughput/images_per_second"][step] == pytest.approx(4 / seconds)
        assert 0 < done.series["time/teacher_share"][step] < 1
    assert min(done.series["memory/peak_bytes"].values()) > 50 << 20, "torch alone takes more"


def test_plain_training_has_no_teacher_to_tell_of(make_plan, run):
    done = run(make_plan(plain=True, training={"epochs": 1}))
    assert "time/step_seconds" in done.series
    assert "time/teacher_share" not in done.series


def test_the_first_step_and_what_was_read_do_not_count():
    clock = TeacherClock(CPU)
    with clock.teaching():
        sum(range(2_000_000))
    clock.step_done()
    assert clock.per_step() is None
    for _ in range(2):
        with clock.teaching():
            pass
        clock.step_done()
    mean = clock.per_step()
    assert mean is not None
    assert mean > 0
    assert clock.per_step() is None


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it():
    block = b"x" * (256 << 20)
    code = """
import torch
from tid_core.training.cost import peak_memory
cpu = torch.device("cpu")
print(peak_memory(cpu))
block = b"x" * (256 << 20)
del block
print(peak_memory(cpu))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert after - before > 200 << 20, "what has been given back counts, too"
    assert before < peak_memory(CPU) - len(block) // 2


@pytest.mark.skipif("not torch.cuda.is_available()", reason="needs a GPU")
def test_on_a_gpu_only_watched_steps_are_timed():
    clock = TeacherClock(torch.device("cuda"))
    x = torch.rand(2048, 2048, device="cuda")
    for logs in (True, False, True, False):
        clock.watch(logs=logs)
        with clock.teaching():
            for _ in range(20):
                x = x @ x.softmax(-1)
        clock.step_done()
    seconds = clock.per_step()  # of the third: the first warms up
    assert seconds is not None
    assert seconds > 0
    assert clock.per_step() is None
