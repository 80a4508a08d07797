"""`tid check --measure`, with the process that does it."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tid_core.detectors.build import build_detector
from tid_core.measurement import Measurement

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    detector = build_detector("fcos_conv5_tiny", num_classes=10)
    save_file(detector.model.state_dict(), path, metadata={"format": "pt", "classes": "\n".join(DIGITS)})
    return path


@pytest.fixture
def write_spec(teacher: Path, server, tmp_path: Path):
    """A small distillation with its twin, on the demo dataset's folder."""

    def write(**changes: object) -> Path:
        document = {
            "teacher": {"detector": "fcos_conv5_tiny", "weights": {"file": str(teacher)}, "cache": True},
            "student": {"detector": "fcos_conv5_tiny"},
            "dataset": str(server.data),
            "data": {"min_size": [64], "max_size": 96, "flip": 0},
            "training": {"epochs": 3, "batch_size": 4, "lr": 1e-5, "threads": 1, "device": "cpu"},
            "evaluation": {"maps": 0, "every_epochs": 2},
            **changes,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_job_and_its_twin_are_measured_and_nothing_is_left(tid, write_spec, server, scratch) -> None:
    before = files(server.data)
    ran = tid("check", write_spec(), "--local", "--measure", "--steps", 3, "--json")
    assert ran.code == 0, ran.err
    found = Measurement.model_validate_json(ran.out)
    student, twin = found.runs
    assert (student.run, twin.run, found.steps, found.device) == ("student", "baseline", 3, "cpu")
    assert student.total_steps == twin.total_steps == 6  # 10 images in batches of 4, three epochs
    assert student.images_per_second == pytest.approx(4 / student.step_seconds)
    assert student.teacher_share is not None
    assert 0 < student.teacher_share <= 1
    assert twin.teacher_share is None
    assert student.peak_memory_bytes is not None
    assert student.peak_memory_bytes > 50 << 20
    assert found.seconds == pytest.approx(sum(run.training_seconds + run.evaluation_seconds for run in found.runs))
    assert twin.training_seconds == pytest.approx(6 * twin.step_seconds)
    assert student.resume_state_bytes > student.checkpoint_bytes > torch.tensor([]).element_size() * 500_000
    assert student.disk_bytes == 2 * student.resume_state_bytes + 2 * student.checkpoint_bytes
    assert student.cache_bytes is not None
    assert student.cached_step_seconds is not None
    assert list(scratch.iterdir()) == []
    assert files(server.data) == before


def test_the_table_names_what_was_measured_and_where(tid, write_spec, server) -> None:
    spec = write_spec(dataset="digits", baseline=False, teacher=None)
    ran = tid("check", spec, "--measure", "--steps", 2, "--dataset", server.data)
    assert ran.code == 0, ran.err
    for text in ("is fine (checked by the server)", "images/s", "peak memory", "resume state", "cpu, fp32, 2 steps"):
        assert text in ran.out
    assert "teacher" not in ran.out
    assert "baseline" not in ran.out


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"dataset": "digits"}, (), "no folder on this machine; add --dataset FOLDER"),
        ({}, ("--dataset", "/nowhere"), "/nowhere: no such folder"),
        ({"teacher": {"weights": {"job": "abc"}}}, (), "only the service has"),
        ({"teacher": None, "data": {"min_size": [1_000_000], "max_size": 1_000_000}}, (), "(out_of_memory)"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(tid, write_spec, changes, options, told, scratch) -> None:
    ran = tid("check", write_spec(**changes), "--local", "--measure", *options)
    assert ran.code == 1
    assert told in ran.err
    assert "Traceback" not in ran.err
    assert list(scratch.iterdir()) == []


def test_options_of_the_measurement_need_it(tid, write_spec) -> None:
    refused = tid("check", write_spec(), "--json")
    assert refused.code == 2
    assert "--measure" in refused.err


def test_a_job_that_is_not_accepted_is_not_measured(tid, write_spec) -> None:
    ran = tid("check", write_spec(data={"flip": 0.5}), "--local", "--measure", "--json")
    assert ran.code == 1
    assert "/data/flip" in ran.err
    with pytest.raises(json.JSONDecodeError):
        json.loads(ran.out)
