"""PASCAL VOC: coordinates, difficult boxes, years and lists, and files that are wrong."""

from pathlib import Path
from typing import Any

import pytest

from tests.tid_core.formats.small import example, picture, problems, read, voc_object, write_voc
from tid_core.data.problems import DatasetError

CAT, DOG = voc_object("cat", 1, 1, 10, 20), voc_object("dog", 11, 1, 30, 10)


def names(source: Any, split: str) -> list[str]:
    return [Path(image.file_name).stem for image in source.splits[split].images]


def test_pixels_are_counted_from_one_and_both_corners_belong_to_the_box(tmp_path: Path) -> None:
    whole = voc_object("cat", 1, 1, 64, 48)
    floats = voc_object("dog", "2.5", 3.0, "7.25", 1e1)
    write_voc(tmp_path / "VOC2007", {"train": {"a": whole + floats}, "val": {"b": CAT}})
    source = read(tmp_path)
    assert (source.format, source.classes, source.category_ids) == ("voc", ["cat", "dog"], [1, 2])
    first, second = source.splits["train"].boxes
    assert (first.label, first.xyxy, first.area) == (0, (0, 0, 64, 48), 64 * 48)
    assert (second.label, second.xyxy) == (1, (1.5, 2, 7.25, 10))
    assert problems(source) == {}


def test_a_split_of_another_folder_is_answered_with_those_that_are_here(tmp_path: Path) -> None:
    """As of an archive that holds one year alone: its folder is the dataset."""
    write_voc(tmp_path / "VOC2007", {"train": {"a": CAT}, "val": {"b": CAT}})
    with pytest.raises(DatasetError) as caught:
        read(tmp_path / "VOC2007", splits={"train": "VOC2007/train", "val": "val"})
    assert (caught.value.code, caught.value.detail) == (
        "split_missing",
        "has no split `VOC2007/train`; as voc it has `train`, `val`",
    )
    assert set(read(tmp_path, splits={"train": "train", "val": "val"}).splits) == {"train", "val"}


def test_difficult_boxes_are_crowds_and_parts_are_left_out(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    hard = voc_object("cat", 1, 1, 10, 20, "<difficult>1</difficult>")
    easy = voc_object("cat", 5, 5, 10, 20, "<difficult>0</difficult>" + part)
    write_voc(tmp_path / "VOC2007", {"train": {"a": hard + easy}, "val": {"b": CAT}})
    source = read(tmp_path)
    assert source.classes == ["cat"]
    assert [box.crowd for box in source.splits["train"].boxes] == [True, False]
    assert problems(source) == {"crowd": 1}


def test_the_twenty_classes_by_the_alphabet_are_vocs_own_order(tmp_path: Path) -> None:
    own = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
    own += ["horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    objects = "".join(voc_object(name, 1, 1, 9, 9) for name in reversed(own))
    write_voc(tmp_path / "VOC2007", {"train": {"a": objects}, "val": {"b": CAT}})
    assert read(tmp_path).classes == own


def test_trainval_of_all_years_against_the_first_annotated_test(tmp_path: Path) -> None:
    one = {stem: {stem: CAT} for stem in "abcdef"}
    write_voc(tmp_path / "VOC2007", {"trainval": one["a"], "train": one["a"], "test": one["b"]})
    late = write_voc(tmp_path / "VOC2012", {"trainval": one["c"], "train": one["c"], "val": one["d"]})
    (late / "ImageSets/Main/test.txt").write_text("z\n")  # whose annotations were never published
    (late / "ImageSets/Main/cat_train.txt").write_text("c  1\n")
    source = read(tmp_path)
    assert {split: names(source, split) for split in source.splits} == {"train": ["a", "c"], "val": ["b"]}
    assert source.splits["train"].images[1].file_name == "VOC2012/JPEGImages/c.jpg"
    assert [image.id for image in source.splits["train"].images] == [1, 2]
    own = read(tmp_path, splits={"train": "VOC2012/train", "val": "VOC2012/val", "test": "VOC2007/test"})
    assert {split: names(own, split) for split in own.splits} == {"train": ["c"], "val": ["d"], "test": ["b"]}
    assert names(read(late), "val") == ["d"], "one year alone: train against val"


def test_without_lists_every_annotated_image_is_train_and_val_is_carved(tmp_path: Path) -> None:
    write_voc(tmp_path, {"": {f"{i:02d}": CAT for i in range(20)}}, listed=False)
    with pytest.raises(DatasetError, match=r"no `val` split.*carve it out of `train` with val_fraction"):
        read(tmp_path)
    source = read(tmp_path, val_fraction=0.3)
    assert sorted(names(source, "train") + names(source, "val")) == [f"{i:02d}" for i in range(20)]


def test_images_and_xml_side_by_side_in_folders_of_splits(tmp_path: Path) -> None:
    write_voc(tmp_path / "x", {"": {"a": CAT, "b": DOG + CAT}}, listed=False)
    for split, stem in {"train": "b", "valid": "a"}.items():
        (tmp_path / "root" / split).mkdir(parents=True)
        (tmp_path / "x/JPEGImages" / f"{stem}.jpg").rename(tmp_path / "root" / split / f"{stem}.jpg")
        (tmp_path / "x/Annotations" / f"{stem}.xml").rename(tmp_path / "root" / split / f"{stem}.xml")
    source = read(tmp_path / "root")
    assert (names(source, "train"), names(source, "val")) == (["b"], ["a"])


def test_a_missing_size_is_read_from_the_image_and_its_name_from_the_file(tmp_path: Path) -> None:
    year = write_voc(tmp_path / "VOC2007", {"train": {"a": ""}, "val": {"b": CAT}})
    picture(year / "JPEGImages" / "photo 1.png", (30, 20))
    (year / "JPEGImages" / "a.jpg").unlink()
    text = f"<annotation><filename>photo 1.png</filename><size><width>0</width></size>{CAT}</annotation>"
    (year / "Annotations" / "a.xml").write_text(text)
    (image,) = read(tmp_path).splits["train"].images
    assert (image.file_name, image.width, image.height) == ("VOC2007/JPEGImages/photo 1.png", 30, 20)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
FOREIGN = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("<annotation><object>", "unreadable_annotation", "is not XML: no element found"),
        ("", "unreadable_annotation", "is not XML"),
        ("<html/>", "unreadable_annotation", "holds <html>, not <annotation>"),
        (BOMB, "unreadable_annotation", "declares a document type"),
        (FOREIGN, "unreadable_annotation", "declares a document type"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unreadable_annotation", "is not XML"),
        ("<annotation><filename>gone.jpg</filename></annotation>", None, None),
        (None, "missing_annotation", "VOC2007/Annotations/a.xml"),
    ],
)
def test_a_bad_annotation_file_is_named_with_what_is_wrong(
    tmp_path: Path, text: str | None, code: str | None, words: str | None
) -> None:
    year = write_voc(tmp_path / "VOC2007", {"train": {"a": CAT, "good": CAT}, "val": {"b": CAT}})
    file = year / "Annotations" / "a.xml"
    file.unlink()
    if text is not None:
        file.write_text(text)
    source = read(tmp_path)
    if code is None or words is None:
        assert problems(source) == {}
        return
    assert problems(source) == {code: 1}
    assert words in example(source, code)
    assert "VOC2007/Annotations/a.xml" in example(source, code)


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        (voc_object("cat", "one", 1, 9, 9), "malformed_box", "must hold the numbers xmin"),
        (voc_object("cat", "nan", 1, 9, 9), "malformed_box", "must hold the numbers"),
        (voc_object("cat", "inf", 1, 9, 9), "malformed_box", "must hold the numbers"),
        ("<object><name>cat</name></object>", "malformed_box", "must hold the numbers"),
        (voc_object("", 1, 1, 9, 9), "malformed_box", "<name>"),
        (voc_object("cat", 9, 9, 8, 20), "zero_size_box", "object 2 (cat)"),
        (voc_object("cat", 70, 1, 80, 9), "box_outside_image", "of 64 x 48"),
        (voc_object("cat", 60, 1, 80, 9), "clipped_box", "of 64 x 48"),
    ],
)
def test_a_bad_box_is_counted_and_named(tmp_path: Path, entry: str, code: str, words: str) -> None:
    write_voc(tmp_path / "VOC2007", {"train": {"a": CAT + entry}, "val": {"b": CAT}})
    source = read(tmp_path)
    assert problems(source) == {code: 1}
    assert words in example(source, code)
    assert example(source, code).startswith("VOC2007/Annotations/a.xml object 2")


def test_a_class_that_train_lacks_is_refused_with_an_example(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"train": {"a": CAT}, "val": {"b": CAT + DOG}})
    with pytest.raises(DatasetError, match=r"`val` has the classes \['dog'\], e\.g\. .*b\.xml object 2") as caught:
        read(tmp_path)
    assert caught.value.code == "classes_differ"


def test_a_missing_image_and_a_list_that_leads_out(tmp_path: Path) -> None:
    year = write_voc(tmp_path / "VOC2007", {"train": {"a": CAT, "good": CAT}, "val": {"b": CAT}})
    (year / "JPEGImages/a.jpg").unlink()
    source = read(tmp_path)
    assert problems(source) == {"missing_image": 1}
    assert "a.xml" in example(source, "missing_image")
    (tmp_path.parent / "secret.txt").write_text("secret line\n")
    (year / "ImageSets/Main/val.txt").unlink()
    (year / "ImageSets/Main/val.txt").symlink_to(tmp_path.parent / "secret.txt")
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    assert caught.value.code == "path_outside"
    assert "secret line" not in str(caught.value)
    (year / "ImageSets/Main/train.txt").write_text("../../../secret\n")
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    assert caught.value.code == "path_outside"
