"""Every example is a job that can be handed in, and the paper's are its protocol."""

import re
from pathlib import Path

import pytest

from tid_core.preflight import check
from tid_core.spec import JobSpec, load_spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "sweeps")
PAPER = EXAMPLES / "paper"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_resolves_and_passes_the_preflight(path: Path) -> None:
    spec = load_spec(path)
    assert check(spec, dataset=None, teacher=None) == []
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_papers_files_are_all_there_and_the_readme_names_them() -> None:
    pairs = {f"{family}-r101-r50-{data}.yaml" for family in ("gfl", "atss") for data in ("coco", "voc")}
    teachers = {f"{family}-r101-{data}-teacher.yaml" for family in ("gfl", "atss") for data in ("coco", "voc")}
    assert {path.name for path in PAPER.glob("*.yaml")} == pairs | teachers
    assert set(re.findall(r"[\w-]+\.yaml", (PAPER / "README.md").read_text())) == pairs | teachers


@pytest.mark.parametrize("family", ["gfl", "atss"])
def test_the_protocol_on_coco(family: str) -> None:
    teacher, pair = (
        load_spec(PAPER / f"{family}-r101-coco-teacher.yaml"),
        load_spec(PAPER / f"{family}-r101-r50-coco.yaml"),
    )
    assert teacher.student.detector == f"{family}_resnet101_fpn"
    assert (teacher.training.epochs, teacher.data.min_size[0], teacher.data.min_size[-1]) == (24, 640, 800)
    assert pair.teacher is not None
    assert (pair.teacher.detector, pair.student.detector) == (f"{family}_resnet101_fpn", f"{family}_resnet50_fpn")
    assert (pair.method, pair.baseline, pair.training.epochs, pair.data.min_size) == ("tid", True, 12, [800])
    for spec in (teacher, pair):
        assert (spec.training.lr, spec.training.batch_size, spec.student.weights) == (0.01, 16, "imagenet")
        assert (spec.data.max_size, spec.student.norm, spec.dataset) == (1333, "frozen", "coco")


@pytest.mark.parametrize("family", ["gfl", "atss"])
def test_the_protocol_on_voc(family: str) -> None:
    teacher, pair = (
        load_spec(PAPER / f"{family}-r101-voc-teacher.yaml"),
        load_spec(PAPER / f"{family}-r101-r50-voc.yaml"),
    )
    assert (teacher.training.epochs, pair.training.epochs) == (24, 12)
    assert teacher.training.milestones == pair.training.milestones == [9 / 12]
    for spec in (teacher, pair):
        assert (spec.evaluation.metrics, spec.data.min_size[-1], spec.dataset) == (["coco", "voc"], 600, "voc")
