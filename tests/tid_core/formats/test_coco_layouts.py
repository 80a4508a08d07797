"""COCO's layouts, splits by name, unions, masks for boxes; and how a format is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tid_core.formats.small import CLASSES, picture, problems, read, voc_object, write_coco, write_voc, write_yolo
from tid_core.data.problems import DatasetError


def refused(root: Path, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read(root, **options)
    return caught.value


@pytest.mark.parametrize(
    ("annotations", "images", "val"),
    [
        ("{}.json", "{}", "val"),
        ("annotations/instances_{}2017.json", "{}2017", "val"),
        ("annotations/instances_{}.json", "{}", "val"),
        ("{}/_annotations.coco.json", "{}", "valid"),
    ],
)
def test_every_layout_gives_the_same_dataset(tmp_path: Path, annotations: str, images: str, val: str) -> None:
    plain = read(write_coco(tmp_path / "plain", {"train": 4, "val": 2}))
    root = tmp_path / "other"
    write_coco(tmp_path / "source", {"train": 4, "val": 2})
    for ours, own in {"train": "train", "val": val}.items():
        (root / annotations.format(own)).parent.mkdir(parents=True, exist_ok=True)
        (root / images.format(own)).parent.mkdir(parents=True, exist_ok=True)
        if not (root / images.format(own)).exists():
            (tmp_path / "source" / ours).rename(root / images.format(own))
        else:
            for file in (tmp_path / "source" / ours).iterdir():
                file.rename(root / images.format(own) / file.name)
        (tmp_path / "source" / f"{ours}.json").rename(root / annotations.format(own))
    other = read(root)
    assert (other.classes, other.category_ids) == (CLASSES, [3, 5, 9])
    for split in ("train", "val"):
        assert other.splits[split].boxes == plain.splits[split].boxes
        assert [i.id for i in other.splits[split].images] == [i.id for i in plain.splits[split].images]
        assert all((root / image.file_name).is_file() for image in other.splits[split].images)


def test_splits_are_taken_by_name_and_joined(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": 3, "extra": 2, "test": 2})
    source = read(root, splits={"train": "train + extra", "val": "test"})
    names = [image.file_name for image in source.splits["train"].images]
    assert names == [*(f"train/train{i:02d}.png" for i in (2, 1, 0)), "extra/extra01.png", "extra/extra00.png"]
    ids = [image.id for image in source.splits["train"].images]
    assert ids == [1, 2, 3, 4, 5], "both files number their images from 100 down"
    assert set(source.splits) == {"train", "val"}
    error = refused(root, splits={"train": "train", "val": "tset"})
    assert (error.code, error.detail) == ("split_missing", "has no split `tset`; as coco it has `train`, `test`")
    assert "has no `val` split, but `train`, `test`" in str(refused(root))
    assert "options, or carve it" in str(refused(root))


def test_a_union_of_files_with_other_ids_keeps_the_names(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": 3, "extra": 3, "val": 2})
    content = json.loads((root / "extra.json").read_bytes())
    renamed = {3: 5, 5: 3, 9: 4}
    content["categories"] = [{"id": renamed[c["id"]], "name": c["name"]} for c in content["categories"]]
    content["categories"].append({"id": 9, "name": "bird"})
    for box in content["annotations"]:
        box["category_id"] = renamed[box["category_id"]]
    before = read(root, splits={"train": "train+extra", "val": "val"})
    (root / "extra.json").write_text(json.dumps(content))
    after = read(root, splits={"train": "train+extra", "val": "val"})
    assert after.classes == [*CLASSES, "bird"]
    assert after.splits["train"].boxes == before.splits["train"].boxes


def test_a_file_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": 4, "val": 2})
    once = read(root).splits["train"]
    source = read(root, splits={"train": "train+train", "val": "val"})
    assert source.splits["train"].boxes == once.boxes
    assert problems(source)["duplicate_file"] == 4


def test_boxes_come_from_masks_where_they_are_missing(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    runs = {"size": [48, 64], "counts": [48 * 2 + 10, 20, 48 * 62 - 30]}
    boxes: list[dict[str, Any]] = [
        {"segmentation": [[1, 2, 11, 2, 11, 12, 1, 12]]},
        {"bbox": [], "segmentation": runs, "iscrowd": 1, "area": 7},
        {"segmentation": [[1, 2]]},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, **box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "val").symlink_to("train")
    source = read(tmp_path)
    found = [(box.xywh, box.area, box.crowd) for box in source.splits["train"].boxes]
    assert found == [((1, 2, 10, 10), 100, False), ((2, 10, 1, 20), 7, True)]
    assert problems(source) == {"box_from_mask": 2, "malformed_box": 1, "crowd": 1}


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 2, "val": 2})
    outside = picture(tmp_path / "secret.png")
    (root / "train" / "train00.png").unlink()
    (root / "train" / "train00.png").symlink_to(outside)
    error = refused(root)
    assert error.code == "path_outside"
    assert "train00.png" in str(error)
    (root / "train" / "train00.png").unlink()
    os.link(outside, root / "train" / "train00.png")
    (tmp_path / "elsewhere.json").write_text("no JSON, and a secret")
    (root / "val.json").unlink()
    (root / "val.json").symlink_to("../elsewhere.json")
    assert "secret" not in refused(root).detail
    assert refused(root).code == "path_outside"


def test_a_format_that_cannot_be_told_says_what_was_looked_for(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.code == "format_unknown"
    for word in ("train.json", "instances_train2017.json", "JPEGImages/", "data.yaml"):
        assert word in str(error)
    write_coco(tmp_path, {"train": 2, "val": 2})
    write_yolo(tmp_path, {"train": {"a": "0 .5 .5 .1 .1"}, "val": {"b": "0 .5 .5 .1 .1"}})
    error = refused(tmp_path)
    assert (error.code, error.detail) == (
        "format_ambiguous",
        "looks like coco and like yolo; name the format in the options",
    )
    assert read(tmp_path, format="coco").format == "coco"
    assert read(tmp_path, format="yolo").format == "yolo"
    assert refused(tmp_path, format="voc").code == "format_unknown"


def test_an_only_folder_within_is_the_dataset(tmp_path: Path) -> None:
    """As most archives unpack."""
    inner = tmp_path / "pets" / "VOCdevkit"
    cat = voc_object("cat", 1, 1, 9, 9)
    write_voc(inner / "VOC2007", {"train": {"a": cat}, "val": {"b": cat}})
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".DS_Store").write_text("")
    source = read(tmp_path)
    assert source.splits["train"].images[0].file_name == "pets/VOCdevkit/VOC2007/JPEGImages/a.jpg"
