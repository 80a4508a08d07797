"""Reading facts from folders that are right, slightly wrong and entirely wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tid_core.facts import DatasetError, DatasetFacts, read_facts

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]


def box(identity: int, bbox: Any, **fields: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": 1, "category_id": 2, "bbox": bbox, "iscrowd": 0, **fields}


GOOD = [box(1, [10, 10, 20, 20]), box(2, [30, 5, 5, 5], category_id=9)]


def write(root: Path, split: str, annotations: Any, **content: Any) -> None:
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), "red" if split == "train" else "blue").save(folder / "a.jpg")
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    coco = {"images": images, "annotations": annotations, "categories": CATEGORIES, **content}
    (root / f"{split}.json").write_text(json.dumps(coco))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "train", GOOD)
    write(tmp_path, "val", GOOD)
    return tmp_path


def problems(facts: DatasetFacts, split: str = "train") -> dict[str, int]:
    return {problem.code: problem.count for problem in facts.splits[split].problems}


def test_a_good_dataset_has_no_problems_and_its_classes_are_in_the_order_of_their_ids(root: Path) -> None:
    facts = read_facts(root, "pets", check_images=True)
    assert facts.classes == ["cat", "dog"]
    train = facts.splits["train"]
    assert (train.images, train.boxes, train.empty_images) == (1, 2, 0)
    assert train.per_class == {"cat": 1, "dog": 1}
    assert train.box_side is not None
    assert (train.box_side.smallest, train.box_side.largest) == (5, 20)
    assert problems(facts) == problems(facts, "val") == {}


def test_each_kind_of_bad_box_is_counted_with_examples(root: Path) -> None:
    bad = [
        box(3, [1, 1, 0, 5]),
        box(4, [1, 1, 5, -5]),
        box(5, [100, 1, 5, 5]),
        box(6, [60, 40, 10, 10]),
        box(7, [1, 1, 5]),
        box(8, [1, 1, 5, float("nan")]),
        box(9, None),
        box(13, [10**400, 1, 5, 5]),
        box(10, [1, 1, 5, 5], iscrowd=1),
        box(11, [1, 1, 5, 5], category_id=5),
        box(12, [1, 1, 5, 5], image_id=77),
        box(1, [1, 1, 5, 5]),
    ]
    write(root, "train", GOOD + bad)
    facts = read_facts(root, "pets", check_images=True)
    assert problems(facts) == {
        "malformed_box": 4,
        "zero_size_box": 2,
        "box_outside_image": 1,
        "clipped_box": 1,
        "crowd": 1,
        "unknown_category": 1,
        "unknown_image": 1,
        "duplicate_annotation_id": 1,
    }
    # Of them, the clipped one and the one with a repeated id can be trained on.
    assert facts.splits["train"].boxes == len(GOOD) + 2
    zero = next(problem for problem in facts.splits["train"].problems if problem.code == "zero_size_box")
    assert "annotations[2] (id 3)" in zero.examples[0]
    assert "a.jpg" in zero.examples[0]


def test_examples_are_few_however_many_problems_there_are(root: Path) -> None:
    write(root, "train", GOOD + [box(i, [1, 1, 0, 0]) for i in range(10, 510)])
    (problem,) = read_facts(root, "pets", check_images=False).splits["train"].problems
    assert (problem.count, len(problem.examples)) == (500, 5)


def test_rounding_beyond_the_border_is_no_problem(root: Path) -> None:
    write(root, "train", [box(1, [44.0, 28.0, 20.4, 20.4])])
    assert problems(read_facts(root, "pets", check_images=False)) == {}


def test_bad_image_files_are_found(root: Path) -> None:
    whole = (root / "train" / "a.jpg").read_bytes()
    (root / "train" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "text.jpg").write_text("not an image")
    Image.new("RGB", (64, 48)).save(root / "train" / "whole.png")
    png = (root / "train" / "whole.png").read_bytes()
    (root / "train" / "cut.png").write_bytes(png[: len(png) // 2])
    Image.new("RGB", (48, 64)).save(root / "train" / "turned.jpg")
    names = ["a.jpg", "cut.jpg", "text.jpg", "cut.png", "turned.jpg", "gone.jpg"]
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names, start=1)]
    write(root, "train", GOOD, images=[*images, {**images[0], "file_name": "again.jpg"}])
    facts = read_facts(root, "pets", check_images=True)
    assert problems(facts) == {
        "unreadable_image": 3,
        "size_mismatch": 1,
        "missing_image": 1,
        "duplicate_image_id": 1,
    }
    assert problems(read_facts(root, "pets", check_images=False)) == {"missing_image": 1, "duplicate_image_id": 1}


def test_a_pipe_is_no_image_and_is_not_waited_for(root: Path) -> None:
    (root / "train" / "a.jpg").unlink()
    os.mkfifo(root / "train" / "a.jpg")
    assert problems(read_facts(root, "pets", check_images=True)) == {"unreadable_image": 1}


@pytest.mark.parametrize("name", ["a\0.jpg", "\ud800.jpg", "x" * 1001])
def test_file_names_that_no_file_system_has_are_refused(root: Path, name: str) -> None:
    write(root, "train", GOOD, images=[{"id": 1, "file_name": name, "width": 64, "height": 48}])
    with pytest.raises(DatasetError, match=r"images\[0\].file_name") as caught:
        read_facts(root, "pets", check_images=True)
    assert str(caught.value).encode(), "an answer is UTF-8"


def test_an_image_annotated_in_its_exif_orientation_is_fine(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(root / "train" / "a.jpg", exif=exif)
    assert problems(read_facts(root, "pets", check_images=True)) == {}


def test_an_orientation_that_the_size_does_not_show_is_told(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (64, 48)).save(root / "train" / "a.jpg", exif=exif)
    assert problems(read_facts(root, "pets", check_images=True)) == {"hidden_orientation": 1}


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("{", "not_json", "not JSON"),
        ("[]", "not_coco", "is a list"),
        ('{"images": []}', "empty", "`images`"),
        ('{"images": [1], "categories": [1]}', "not_coco", "`annotations` is missing"),
        ('{"images": [{"id": 1}], "annotations": [1], "categories": [{"id": 1}]}', "not_coco", "categories[0].name"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [1], "categories": [{"id": 1, "name": "a"}]}',
            "not_coco",
            "images[0].width is missing",
        ),
        (
            '{"images": [{"id": 1, "file_name": "../a"}], "annotations": [1], "categories": [{"id": 1, "name": "k"}]}',
            "path_outside",
            "'../a' leaves the image folder",
        ),
        (
            '{"images": [1], "annotations": [1], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "duplicate_category",
            "categories[1]",
        ),
    ],
)
def test_a_file_that_is_not_coco_says_what_is_missing_where(root: Path, content: str, code: str, words: str) -> None:
    (root / "train.json").write_text(content)
    with pytest.raises(DatasetError) as caught:
        read_facts(root, "pets", check_images=False)
    assert caught.value.code == code
    assert words in caught.value.detail
    assert caught.value.path == root / "train.json"


def test_validation_may_lack_a_class_but_not_add_one(root: Path) -> None:
    write(root, "val", [box(1, [1, 1, 5, 5], category_id=1)], categories=[{"id": 1, "name": "dog"}])
    assert read_facts(root, "pets", check_images=False).splits["val"].per_class == {"cat": 0, "dog": 1}
    write(root, "val", GOOD, categories=[*CATEGORIES, {"id": 3, "name": "bird"}])
    with pytest.raises(DatasetError, match=r"\['bird'\]") as caught:
        read_facts(root, "pets", check_images=False)
    assert caught.value.code == "classes_differ"


def test_missing_splits_and_folders_are_named(root: Path) -> None:
    (root / "val" / "a.jpg").unlink()
    (root / "val").rmdir()
    with pytest.raises(DatasetError, match="image folder of `val`"):
        read_facts(root, "pets", check_images=False)
    (root / "val.json").unlink()
    with pytest.raises(DatasetError, match=r"no `val` split, but `train`; expected .* \(COCO: val\.json, "):
        read_facts(root, "pets", check_images=False)
    with pytest.raises(DatasetError) as caught:
        read_facts(root / "nowhere", "pets", check_images=False)
    assert caught.value.code == "dataset_not_found"


def test_facts_are_read_without_torch_or_numpy(root: Path) -> None:
    code = (
        "import sys, pathlib; from tid_core.facts import read_facts;"
        "read_facts(pathlib.Path(sys.argv[1]), 'pets', check_images=True);"
        "print(*({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
