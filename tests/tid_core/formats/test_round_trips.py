"""The same dataset in three formats gives the same statistics, and the same boxes but for the format's rounding."""

import json
from pathlib import Path

import pytest

from benchmarks.dataset_formats import counts, largest_difference, to_voc, to_yolo
from tests.tid_core.formats.small import write_coco
from tid_core.data.index import build_index
from tid_core.facts import DatasetFacts


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, DatasetFacts]]:
    base = tmp_path_factory.mktemp("formats")
    root = write_coco(base / "coco", {"train": 9, "val": 5, "test": 2})
    facts = {"coco": build_index(root, base / "index-coco", name="pets")}
    to_voc(root, base / "index-coco", base / "voc")
    to_yolo(root, base / "index-coco", base / "yolo")
    facts |= {name: build_index(base / name, base / f"index-{name}", name="pets") for name in ("voc", "yolo")}
    return base, facts


@pytest.mark.parametrize(("name", "rounding"), [("voc", 0.5), ("yolo", 80e-6)])
def test_statistics_and_boxes_survive(three: tuple[Path, dict[str, DatasetFacts]], name: str, rounding: float) -> None:
    base, facts = three
    assert facts[name].format == name
    assert counts(facts[name]) == counts(facts["coco"])
    assert 0 < largest_difference(base / "index-coco", base / f"index-{name}") <= rounding + 1e-9
    for split, found in facts[name].splits.items():
        original = facts["coco"].splits[split]
        assert found.image_short_side == original.image_short_side
        assert found.images_checked == "decoded"


def test_crowds_become_difficult_and_come_back(three: tuple[Path, dict[str, DatasetFacts]]) -> None:
    base, facts = three
    crowds = {
        name: [
            (box["image_id"], box["iscrowd"])
            for box in json.loads((base / f"index-{name}" / "train.json").read_bytes())["annotations"]
        ]
        for name in ("coco", "voc")
    }
    assert sum(crowd for _, crowd in crowds["coco"]) == sum(crowd for _, crowd in crowds["voc"]) > 0
    told = {problem.code: problem.count for problem in facts["voc"].splits["train"].problems}
    assert told["crowd"] == sum(crowd for _, crowd in crowds["voc"])
