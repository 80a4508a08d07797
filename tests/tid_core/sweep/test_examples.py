"""Every example of a sweep can be handed in, and each table is about the setting that it names."""

from pathlib import Path

import pytest
import yaml

from tid_core.preflight import check
from tid_core.sweep import SweepSpec, expand

FILES = sorted((Path(__file__).resolve().parents[3] / "examples" / "sweeps").glob("*.yaml"))
POINTS = {"areas": 3, "iou": 3, "partition": 4, "tasks": 3, "weights": 5}


def read(path: Path) -> SweepSpec:
    return SweepSpec.model_validate(yaml.safe_load(path.read_text()))


def test_they_are_all_there() -> None:
    assert {path.stem for path in FILES} == {"cards", "methods", *(f"tid-ablations-{name}" for name in POINTS)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_expands_into_jobs_that_pass_the_preflight(path: Path) -> None:
    sweep = read(path)
    jobs = expand(sweep)
    assert sweep.name == path.stem
    assert [problem for job in jobs for problem in check(job.spec, dataset=None, teacher=None)] == []
    baselines = [job for job in jobs if job.role == "baseline"]
    assert [job.spec.training.seed for job in baselines] == [0, 1, 2]
    assert all(job.baseline is not None for job in jobs if job.role == "point")


@pytest.mark.parametrize("name", POINTS)
def test_a_table_of_ablations_moves_nothing_else(name: str) -> None:
    (path,) = (path for path in FILES if path.stem == f"tid-ablations-{name}")
    points = [job for job in expand(read(path)) if job.role == "point" and job.spec.training.seed == 0]
    assert len(points) == POINTS[name]
    first = points[0].spec.model_dump(exclude={"name"})
    for job in points[1:]:
        other = job.spec.model_dump(exclude={"name"})
        differing = {
            f"{section}.{field}"
            for section in ("tid", "loss")
            for field in first[section]
            if first[section][field] != other[section][field]
        }
        allowed = {"loss.high", "loss.medium", "loss.low"} if name == "weights" else {f"tid.{name}"}
        assert differing
        assert differing <= allowed
        assert {key for key in first if first[key] != other[key]} <= {"tid", "loss"}
