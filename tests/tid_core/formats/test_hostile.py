"""Whatever a dataset's files hold: a dataset with its boxes inside their images, or a DatasetError. Nothing else."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.tid_core.formats.small import CLASSES, picture, write_voc, write_yolo
from tid_core.data.annotations import read_coco
from tid_core.data.formats import read_source
from tid_core.data.index import build_index
from tid_core.data.options import IndexOptions
from tid_core.data.problems import DatasetError

QUICK = settings(max_examples=40, deadline=None)

NUMBERS = st.one_of(
    st.floats(), st.integers(-70, 70), st.floats(0, 1), st.sampled_from([10**400, -1e308, 1e308, 2**53, 0, 1, 0.5])
)
JUNK = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12), st.just([]), st.just({}))


def check(write: Callable[[Path], None], format_: str) -> None:
    """`write` puts a dataset into a folder; what is read of it must hold, and so must its index."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        write(root)
        options = IndexOptions(format=format_)  # type: ignore[arg-type]
        refusal = None
        try:
            source = read_source(root, options)
            inside([(split.images, split.boxes) for split in source.splits.values()])
            build_index(root, Path(folder, "out"), name="hostile", options=options)
        except DatasetError as error:
            refusal = error
        event(refusal.code if refusal else "read")
        if refusal:
            assert str(refusal).encode(), "an answer is UTF-8"
            assert not Path(folder, "out", "facts.json").exists()
            return
        written = [read_coco(file, source.classes) for file in Path(folder, "out").glob("[tv]*.json")]
        assert len(written) == len(source.splits)
        inside([(coco.images, coco.boxes) for coco in written])
        assert sum(len(coco.boxes) for coco in written) == sum(len(s.boxes) for s in source.splits.values())


def inside(splits: list[tuple[Any, Any]]) -> None:
    for images, boxes in splits:
        for box in boxes:
            x1, y1, x2, y2 = box.xyxy
            assert 0 <= x1 < x2 <= images[box.image].width
            assert 0 <= y1 < y2 <= images[box.image].height
            assert box.area > 0


GOOD_LINE = st.builds("{} .5 .5 {} .2".format, st.integers(0, 3), st.floats(0, 1.2))
LABELS = st.one_of(
    st.lists(st.one_of(GOOD_LINE, st.lists(NUMBERS.map(str), max_size=9).map(" ".join), st.text(max_size=30))).map(
        lambda lines: "\n".join(lines).encode("utf-8", "replace")
    ),
    st.binary(max_size=40),
)


@QUICK
@given(LABELS, LABELS)
def test_yolo_labels(first: bytes, second: bytes) -> None:
    def write(root: Path) -> None:
        write_yolo(root, {"train": {"a": "0 .5 .5 .1 .1", "b": ""}, "val": {"c": "1 .5 .5 .1 .1"}})
        (root / "labels/train/a.txt").write_bytes(first)
        (root / "labels/train/b.txt").write_bytes(second)

    check(write, "yolo")


PLACES = st.one_of(st.sampled_from(["images/train", "images/val", "list.txt", "..", "/", "../images/val"]), JUNK)
NAMES = st.one_of(
    st.just(CLASSES),
    st.just(CLASSES),
    st.just(CLASSES),
    st.lists(st.text(max_size=4)),
    st.dictionaries(st.integers(0, 3), JUNK),
    JUNK,
)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["train", "val", "valid", "test", "path", "nc", "kpt_shape"]),
        st.one_of(PLACES, st.lists(PLACES)),
    ),
    NAMES,
    st.binary(max_size=60),
)
def test_yolo_configurations(content: dict[str, Any], names: Any, listed: bytes) -> None:
    def write(root: Path) -> None:
        write_yolo(root, {"train": {"a": "0 .5 .5 .1 .1"}, "val": {"b": "1 .5 .5 .1 .1"}})
        (root / "list.txt").write_bytes(b"images/train/a.jpg\n" + listed)
        text = yaml.safe_dump({"train": "images/train", "val": ["images/val", "list.txt"], **content, "names": names})
        (root / "data.yaml").write_text(text, errors="replace")

    check(write, "yolo")


@QUICK
@given(st.binary(max_size=80))
def test_yolo_configurations_of_any_bytes(data: bytes) -> None:
    def write(root: Path) -> None:
        write_yolo(root, {"train": {"a": ""}, "val": {"b": ""}})
        (root / "data.yaml").write_bytes(data)

    check(write, "yolo")


def element(name: str, content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(content.map(lambda text: f"<{name}>{text}</{name}>"), st.sampled_from(["", f"<{name}/>"]))


TEXT = st.one_of(NUMBERS.map(str), st.text(st.characters(codec="ascii", exclude_characters="<&"), max_size=8))
OBJECT = st.tuples(
    element("name", st.sampled_from(["dog", "cat", ""])),
    element("difficult", TEXT),
    element("bndbox", st.tuples(*(element(side, TEXT) for side in ("xmin", "ymin", "xmax", "ymax"))).map("".join)),
).map(lambda parts: f"<object>{''.join(parts)}</object>")
TREE = st.tuples(
    element("filename", TEXT),
    element("size", st.tuples(element("width", TEXT), element("height", TEXT)).map("".join)),
    st.lists(OBJECT).map("".join),
).map(lambda parts: f"<annotation>{''.join(parts)}</annotation>".encode("utf-8", "replace"))


@QUICK
@given(st.one_of(TREE, st.binary(max_size=60)))
def test_voc_annotations(data: bytes) -> None:
    objects = (
        "<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )

    def write(root: Path) -> None:
        year = write_voc(root / "VOC2007", {"train": {"a": objects, "b": objects}, "val": {"c": objects}})
        (year / "Annotations" / "b.xml").write_bytes(data)

    check(write, "voc")


@QUICK
@given(st.one_of(st.lists(st.sampled_from(["a", "b", "../a", "/etc/passwd", "a/b", "\0", "x" * 300])), st.binary()))
def test_voc_lists(lines: list[str] | bytes) -> None:
    def write(root: Path) -> None:
        year = write_voc(root / "VOC2007", {"train": {"a": ""}, "val": {"b": ""}})
        data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
        (year / "ImageSets/Main/train.txt").write_bytes(data)

    check(write, "voc")


BOX = st.fixed_dictionaries(
    {"image_id": st.one_of(st.just(1), JUNK), "category_id": st.one_of(st.just(1), JUNK)},
    optional={
        "id": JUNK,
        "bbox": st.one_of(st.lists(NUMBERS, max_size=5), JUNK),
        "area": JUNK,
        "iscrowd": JUNK,
        "segmentation": st.one_of(
            st.lists(st.lists(NUMBERS, max_size=8), max_size=3),
            st.fixed_dictionaries(
                {"size": st.one_of(st.just([48, 64]), JUNK), "counts": st.one_of(st.text(max_size=9), st.lists(JUNK))}
            ),
            JUNK,
        ),
    },
)
IMAGE = st.fixed_dictionaries(
    {"id": st.one_of(st.just(1), JUNK), "file_name": st.one_of(st.just("a.jpg"), st.just("../a.jpg"), JUNK)},
    optional={"width": st.one_of(st.just(64), JUNK), "height": st.one_of(st.just(48), JUNK)},
)
GOOD_IMAGE = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
GOOD_BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
GOOD_CATEGORY = {"id": 1, "name": "dog"}


@QUICK
@given(st.lists(BOX, max_size=9), st.lists(BOX, max_size=9))
def test_coco_boxes(train: list[Any], val: list[Any]) -> None:
    def write(root: Path) -> None:
        for split, boxes in {"train": train, "val": val}.items():
            picture(root / split / "a.jpg", seed=len(split))
            content = {"images": [GOOD_IMAGE], "annotations": [*boxes, GOOD_BOX], "categories": [GOOD_CATEGORY]}
            (root / f"{split}.json").write_text(json.dumps(content))

    check(write, "coco")


@QUICK
@given(st.lists(st.one_of(IMAGE, JUNK), max_size=2), st.lists(JUNK, max_size=1), st.lists(JUNK, max_size=1))
def test_coco_images_and_categories(images: list[Any], boxes: list[Any], categories: list[Any]) -> None:
    def write(root: Path) -> None:
        for split in ("train", "val"):
            picture(root / split / "a.jpg", seed=len(split))
            lists = {"images": [GOOD_IMAGE, *images], "annotations": [GOOD_BOX, *boxes]}
            content = {**lists, "categories": [GOOD_CATEGORY, *categories]}
            (root / f"{split}.json").write_text(json.dumps(content))

    check(write, "coco")


@QUICK
@given(st.binary(max_size=60))
def test_coco_of_any_bytes(data: bytes) -> None:
    def write(root: Path) -> None:
        (root / "train").mkdir()
        (root / "train.json").write_bytes(data)
        (root / "val").mkdir()
        (root / "val.json").write_bytes(data)

    check(write, "coco")
