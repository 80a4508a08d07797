"""The demonstration data: the same bytes for the same seed, valid COCO, tight boxes, nothing shared between splits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tid_core.data.synthetic import MAX_OVERLAP, SCENE, _shared, _sources, write_demo_data
from tid_core.facts import read_facts


def digest(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    parts = [path.relative_to(root).as_posix().encode() + path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "digits"
    write_demo_data(root, images=40, seed=0)
    return root


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(root: Path, tmp_path: Path) -> None:
    write_demo_data(tmp_path / "same", images=40, seed=0)
    write_demo_data(tmp_path / "other", images=40, seed=1)
    assert digest(root) == digest(tmp_path / "same") != digest(tmp_path / "other")


def test_the_facts_show_ten_classes_and_no_problem(root: Path) -> None:
    facts = read_facts(root, "digits", check_images=True)
    assert facts.classes == [str(digit) for digit in range(10)]
    assert {split: part.images for split, part in facts.splits.items()} == {"train": 40, "val": 12}
    assert all(part.problems == [] and part.empty_images == 0 for part in facts.splits.values())
    side = facts.splits["train"].image_short_side
    assert side.smallest == side.largest == SCENE


def test_no_digit_is_covered_by_more_than_a_third(root: Path) -> None:
    boxes: dict[int, list[tuple[int, int, int, int]]] = {}
    for entry in json.loads((root / "train.json").read_text())["annotations"]:
        boxes.setdefault(entry["image_id"], []).append(tuple(entry["bbox"]))
    shared = [_shared(a, b) for found in boxes.values() for i, a in enumerate(found) for b in found[:i]]
    assert max(shared) <= MAX_OVERLAP
    assert any(part > 0 for part in shared)


def test_train_and_val_share_no_scan() -> None:
    scans = [{scan.tobytes() for scan in _sources(split, 0).scans_N88} for split in ("train", "val")]
    assert not scans[0] & scans[1]
    counts = np.bincount(_sources("val", 0).digits_N, minlength=10)
    assert counts.min() > 20


def test_a_folder_that_holds_the_set_is_left_and_any_other_is_refused(root: Path, tmp_path: Path) -> None:
    before = (root / "train.json").stat().st_mtime_ns
    write_demo_data(root, images=40, seed=0)
    assert (root / "train.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="is not empty"):
        write_demo_data(root, images=41, seed=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_demo_data(tmp_path, images=1, seed=0)
