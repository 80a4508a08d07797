"""The training as a process: whom it lives with, how it ends, what a full disk leaves."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tid_core.data.coco import CocoDetection
from tid_core.data.loader import make_loader
from tid_core.events import EVENT
from tid_core.run import EXIT_CODES, ParentGone, PipeReporter
from tid_core.training.loop import train
from tid_core.training.resume import find_state
from tid_core.training.standalone import run_spec

PLAIN = {"plain": True, "training": {"epochs": 1}}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_plan_that_cannot_be_read_is_a_typed_failure(tmp_path):
    (tmp_path / "plan.json").write_text('{"spec": 1}')
    read, write = os.pipe()
    command = [sys.executable, "-m", "tid_core.run", str(tmp_path / "plan.json"), "--events-fd", str(write)]
    done = subprocess.run([*command, "--parent-pid", str(os.getpid())], pass_fds=(write,), capture_output=True)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        (event,) = [EVENT.validate_json(line) for line in pipe]
    assert (event.type, event.outcome, event.reason) == ("finished", "failed", "internal_error")
    assert b"Traceback" in done.stderr
    assert done.returncode == EXIT_CODES["failed"]


def test_without_the_parent_it_was_told_it_does_not_start(tmp_path):
    read, write = os.pipe()
    command = [sys.executable, "-m", "tid_core.run", str(tmp_path / "plan.json"), "--events-fd", str(write)]
    done = subprocess.run([*command, "--parent-pid", "1"], pass_fds=(write,), capture_output=True)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b""
    assert done.returncode == EXIT_CODES["failed"]
    assert b"is gone" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_dies_when_its_parent_is_killed():
    child = (
        "import os, sys, time; from tid_core.run import die_with_parent; die_with_parent(int(sys.argv[1]));"
        "print('alive', flush=True); time.sleep(30); print('survived', flush=True)"
    )
    parent = (
        "import os, subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"alive\n"
    process.kill()
    # The pipe ends when its last writer dies: before the child could say another word.
    assert process.stdout.read() == b""
    process.wait()


def test_a_run_ends_when_nobody_listens_any_more(make_plan):
    read, write = os.pipe()
    os.close(read)
    plan = make_plan(**PLAIN)
    with pytest.raises(ParentGone):  # and not a failed run: nobody is there to hear of it
        train(plan, PipeReporter(write), lambda: False)
    os.close(write)
    assert not plan.out_dir.exists()


def test_a_full_disk_is_told_and_leaves_nothing_half_written(make_plan, run):
    plan = make_plan(**PLAIN)
    assert run(plan, stop_after=2).finished.outcome == "stopped"
    before = find_state(plan.out_dir / "resume").state
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel stops every file at 200 kB, which the writer sees like a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        done = run(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.finished.reason == "disk_full"
    assert list((plan.out_dir / "checkpoints").iterdir()) == []
    assert leftovers(plan.out_dir) == []
    after = find_state(plan.out_dir / "resume")
    assert (after.state.step, after.rejected) == (before.step, [])
    assert run(plan).finished.outcome == "succeeded"


def can_mount() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


def write_spec(tmp_path: Path, root: Path, teacher_file: Path, **changes: object) -> Path:
    weights = {"file": str(teacher_file)}
    content = {
        "teacher": {"detector": "fcos_conv5_tiny", "weights": weights},
        "student": {"detector": "fcos_conv5_tiny"},
        "dataset": str(root),
        "data": {"min_size": [64], "max_size": 96},
        "training": {"epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu", "warmup_steps": 1},
        "evaluation": {"maps": 1},
        **changes,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.skipif("not can_mount()", reason="a small file system can only be mounted by root")
def test_a_disk_that_is_really_full(tmp_path, dataset, teacher_file):
    spec = write_spec(tmp_path, dataset, teacher_file, baseline=False)
    disk, listing = tmp_path / "disk", tmp_path / "listing"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=4m none {disk} && {sys.executable} -m tid_core.run {spec} --out {disk}/out;"
        f"code=$?; find {disk} -type f > {listing}; exit $code"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == EXIT_CODES["failed"]
    assert "disk_full" in done.stderr
    assert "No space left" in done.stderr or "no space left" in done.stderr
    written = {Path(line).name for line in listing.read_text().splitlines()}
    # The index and the first file fitted, the second did not.
    assert written == {"train.json", "val.json", "facts.json", "last.safetensors"}


def test_without_the_service_student_and_twin_are_compared(tmp_path, dataset, teacher_file, capsys):
    spec = write_spec(tmp_path, dataset, teacher_file)
    out = tmp_path / "out"
    assert run_spec(spec, out, None, lambda: False) == "succeeded"
    told = capsys.readouterr().out
    assert "[student] " in told
    assert "[baseline] " in told
    report = yaml.safe_load((out / "report.json").read_text())
    assert set(report) == {"student", "baseline", "teacher", "gain"}
    assert (out / "student/maps").is_dir()
    assert not (out / "baseline/maps").exists()
    weights = (out / "student/checkpoints/last.safetensors").stat()
    assert run_spec(spec, out, None, lambda: False) == "succeeded"  # nothing is left to train
    assert "from step 3 " in capsys.readouterr().out
    assert (out / "student/checkpoints/last.safetensors").stat() == weights
    assert yaml.safe_load((out / "report.json").read_text()) == report


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainig": {}}, "trainig: Extra inputs are not permitted"),
        ({"student": {"detector": "fcos_conv5_tinny"}}, "fcos_conv5_tiny"),
        ({"teacher": {"weights": {"job": "abc"}}, "baseline": False}, "names a job"),
        ({"dataset": "/nowhere"}, "/nowhere: there is no such folder"),
    ],
)
def test_without_the_service_a_bad_spec_is_explained(tmp_path, dataset, teacher_file, capsys, changes, expected):
    spec = write_spec(tmp_path, dataset, teacher_file, **changes)
    assert run_spec(spec, tmp_path / "out", None, lambda: False) == "failed"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_loader_processes_leave_a_signal_to_the_run(make_plan, number):
    """A terminal and a service manager signal the whole group; the run then stops as it would alone."""
    plan = make_plan(plain=True)
    loader = make_loader(CocoDetection(plan.train, None, plan.spec.data, train=True), batch_size=2, workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert len(list(batches)) == len(loader) - 1
