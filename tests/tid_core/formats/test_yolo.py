"""YOLO: labels, data.yaml in the shapes people have, and files that are wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.tid_core.formats.small import CLASSES, example, picture, problems, read, write_yolo
from tid_core.data.problems import DatasetError

GOOD = "1 0.5 0.5 0.25 0.5\n"
"""In an image of 64 x 48 pixels: 16 x 24 around the centre."""


def refused(root: Path) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read(root)
    return caught.value


def configure(root: Path, text: str) -> Path:
    (root / "data.yaml").write_text(text)
    return root


def test_labels_polygons_and_images_without_boxes(tmp_path: Path) -> None:
    triangle = "2.0 0.25 0.25 0.75 0.25 0.25 0.5"
    write_yolo(tmp_path, {"train": {"a": GOOD + triangle, "b": "\n", "c": None}, "val": {"d": GOOD}})
    source = read(tmp_path)
    assert (source.format, source.classes, source.category_ids) == ("yolo", CLASSES, [1, 2, 3])
    train = source.splits["train"]
    assert [(box.label, box.xyxy, box.crowd) for box in train.boxes] == [
        (1, (24, 12, 40, 36), False),
        (2, (16, 12, 48, 24), False),
    ]
    assert [image.file_name for image in train.images] == [f"images/train/{stem}.jpg" for stem in "abc"]
    assert problems(source) == {"missing_label": 1}
    assert example(source, "missing_label") == "images/train/c.jpg"


def test_boxes_are_of_the_image_as_a_viewer_turns_it(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": GOOD}, "val": {"b": GOOD}})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "images/train/a.jpg", exif=exif)
    train = read(tmp_path).splits["train"]
    assert (train.images[0].width, train.images[0].height) == (48, 64)
    assert train.boxes[0].xyxy == (18, 16, 30, 48)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("1 0.5 0.5 0.25", "malformed_label"),
        ("1 0.5 0.5 0.25 0.5 0.9", "malformed_label"),
        ("cat 0.5 0.5 0.25 0.5", "malformed_label"),
        ("1.5 0.5 0.5 0.25 0.5", "malformed_label"),
        ("1 0.5 nan 0.25 0.5", "malformed_label"),
        ("1", "malformed_label"),
        ("1 0.5 0.5 1.25 0.5", "outside_0_1"),
        ("1 -0.1 0.5 0.25 0.5", "outside_0_1"),
        ("1 32 24 16 24", "outside_0_1"),
        ("3 0.5 0.5 0.25 0.5", "unknown_category"),
        ("-1 0.5 0.5 0.25 0.5", "unknown_category"),
        ("1 0.5 0.5 0 0.5", "zero_size_box"),
        ("1 0.95 0.5 0.25 0.5", "clipped_box"),
    ],
)
def test_a_bad_line_is_counted_and_named_with_file_and_line(tmp_path: Path, line: str, code: str) -> None:
    write_yolo(tmp_path, {"train": {"a": f"{GOOD}{line}\n"}, "val": {"b": GOOD}})
    source = read(tmp_path)
    assert problems(source) == {code: 1}
    assert example(source, code).startswith("labels/train/a.txt:2: ")
    assert len(source.splits["train"].boxes) == 1 + (code == "clipped_box")


def test_rounding_at_the_border_is_no_problem(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": "0 0.5 0.5 1.000001 1.0\n"}, "val": {"b": GOOD}})
    source = read(tmp_path)
    assert problems(source) == {}
    assert source.splits["train"].boxes[0].xyxy == (0, 0, 64, 48)


def test_key_points_after_the_box_are_left_out(tmp_path: Path) -> None:
    line = "1 0.5 0.5 0.25 0.5" + " 0.5 0.5 2" * 2
    write_yolo(tmp_path, {"train": {"a": line}, "val": {"b": line}}, kpt_shape=[2, 3])
    assert read(tmp_path).splits["train"].boxes[0].xyxy == (24, 12, 40, 36)


def test_images_of_which_none_has_labels_are_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": GOOD}, "val": {"b": None, "c": None}})
    error = refused(tmp_path)
    assert error.code == "no_labels"
    assert "not one of the 2 images of `val` has a label file; expected e.g. labels/val/b.txt" in str(error)


@pytest.mark.parametrize(
    "config",
    [
        {"train": ["images/train", "images/more"], "val": "images/val"},
        {"path": ".", "train": "train.txt", "val": "./images/val"},
        {"path": "images", "train": ["train", "more/"], "valid": "val"},
        {"train": "../images", "val": "../images/val", "names": dict(enumerate(CLASSES))},
    ],
)
def test_data_yaml_in_the_shapes_people_have(tmp_path: Path, config: dict[str, Any]) -> None:
    root = write_yolo(tmp_path / "root", {"train": {"a": GOOD}, "more": {"c": GOOD}, "val": {"b": GOOD}})
    (root / "train.txt").write_text("./images/train/a.jpg\nimages/more/c.jpg\n\n")
    configure(root, yaml.safe_dump({"names": CLASSES, **config}))
    source = read(root)
    found = {Path(image.file_name).name for image in source.splits["train"].images}
    assert found >= {"a.jpg", "c.jpg"}
    assert [image.file_name for image in source.splits["val"].images] == ["images/val/b.jpg"]
    assert source.classes == CLASSES
    assert all(split.boxes for split in source.splits.values())


def test_names_stay_as_they_are_written(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": GOOD}, "val": {"b": GOOD}})
    configure(tmp_path, "train: images/train\nval: images/val\nnames: [no, 1, null, 1_0]\n")
    assert read(tmp_path).classes == ["no", "1", "null", "1_0"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("names: [a", "data_yaml", "is not YAML"),
        ("- names", "data_yaml", "must hold a mapping"),
        ("train: images/train", "data_yaml", "`names` must be a list of class names"),
        ("{names: {1: a, 2: b}, train: x}", "data_yaml", "the keys of `names` must be 0 to 1"),
        ("{names: [a, b], nc: 3, train: x}", "data_yaml", "says nc: 3, but `names` has 2"),
        ("{names: [a, a], train: x}", "duplicate_category", "`names` has 'a' twice"),
        ("{names: [a, b], train: {x: y}}", "data_yaml", "`train` must be a folder"),
        ("{names: [a, b], train: nowhere, val: images/val}", "images_missing", "`train` is 'nowhere'"),
        ("{names: [a, b], val: images/val}", "split_missing", "no `train` split"),
        ("{names: [a, b], train: images/train}", "split_missing", "no `val` split"),
        ("{names: [a, b], train: empty, val: images/val}", "split_empty", "`train` (empty) has no images"),
        ("{names: [a, b], path: .., train: root/images/train, val: x}", "path_outside", "without `path`"),
        ("{names: [a, b], path: /etc, train: x, val: x}", "path_outside", "`path: /etc`"),
        ("{names: [a, b], path: gone, train: x, val: x}", "path_missing", "`path` is 'gone'"),
        ("{names: [a, b], path: gone, train: x, val: x}", "path_missing", "leave it away where splits are beside"),
        ("{names: [a, b], train: ../../, val: images/val}", "path_outside", "'../../'"),
        ("{names: [a, b], train: bad.txt, val: images/val}", "path_outside", "'/etc/passwd'"),
        ("{names: &a [*a, *a], train: x}", "data_yaml", "is not YAML"),
        ("{b: &b [&a [x, x], *a], c: &c [*b, *b], names: [*c, *c], train: x}", "data_yaml", "`names` must be a list"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_says_why(tmp_path: Path, text: str, code: str, words: str) -> None:
    root = write_yolo(tmp_path / "root", {"train": {"a": GOOD}, "val": {"b": GOOD}})
    (root / "empty").mkdir()
    (root / "bad.txt").write_text("images/train/a.jpg\n/etc/passwd\n")
    error = refused(configure(root, text))
    assert error.code == code
    assert words in str(error)


def test_links_out_of_the_folder_and_bad_files_are_told(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "root", {"train": {"a": GOOD, "c": GOOD, "e": GOOD}, "val": {"b": GOOD}})
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    (root / "images/train/c.jpg").write_bytes(b"GIF")
    source = read(root)
    assert problems(source) == {"unreadable_annotation": 1, "unreadable_image": 1}
    secret = picture(tmp_path / "secret.jpg")
    (tmp_path / "secret.yaml").write_text("secret: [")
    kept = (root / "data.yaml").read_bytes()
    (root / "data.yaml").unlink()
    (root / "data.yaml").symlink_to("../secret.yaml")
    assert "secret: [" not in str(refused(root))
    assert refused(root).code == "path_outside"
    (root / "data.yaml").unlink()
    (root / "data.yaml").write_bytes(kept)
    for file in ("labels/train/e.txt", "images/train/e.jpg"):
        kept = (root / file).read_bytes()
        (root / file).unlink()
        (root / file).symlink_to(secret)
        assert refused(root).code == "path_outside"
        (root / file).unlink()
        (root / file).write_bytes(kept)
