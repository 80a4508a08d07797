"""COCO annotation files: read, checked and put in order. Free of torch, linear in the size of the file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from tid_core.data.masks import Mask, MaskError, read_mask
from tid_core.data.problems import DatasetError, Problems
from tid_core.text import CONTROLS

KEYS = ("images", "annotations", "categories")
SHA256 = re.compile(r"[0-9a-f]{64}")
MIN_SIDE = 0.01
"""Pixels. Thinner boxes vanish in fp32 once resized, and a detector refuses boxes of no size."""
CLIP_TOLERANCE = 1.0
"""Pixels beyond the border that are rounding, not worth a report."""
MAX_NAME, MAX_FILE_NAME = 200, 1000

Box = tuple[float, float, float, float]


class ImageRecord(NamedTuple):
    id: int | str
    file_name: str
    width: int
    height: int
    sha256: str | None = None
    """Of the file, in hexadecimal digits, where the annotations say it, as those of an index do."""


class BoxRecord(NamedTuple):
    image: int
    """Index in the list of images."""
    label: int
    """Index in the list of classes."""
    xyxy: Box
    """Clipped to the image: what training sees."""
    xywh: Box
    """As the file has it: what evaluation compares with."""
    area: float
    """The file's area (of the mask, where there is one), else the box's."""
    crowd: bool


@dataclass(frozen=True)
class CocoFile:
    path: Path
    classes: list[str]
    category_ids: list[int]
    """Per class, the file's category id; a fresh id for a class that this file does not list."""
    images: list[ImageRecord]
    """Sorted by id, the order in which COCOeval breaks ties of scores."""
    boxes: list[BoxRecord]
    problems: Problems


def read_coco(path: Path, classes: list[str] | None = None) -> CocoFile:
    """Read an annotation file. Boxes that cannot be used are left out and counted in `problems`.

    `classes` fixes the class order by name; without it, it is the category list sorted by category id.

    Raises:
        DatasetError: unreadable, not JSON, not COCO, empty, or (with `classes`) a category that is not among them.
    """
    return parse_coco(load_coco(path), path, classes)


def parse_coco(content: Mapping[str, list[Any]], path: Path, classes: list[str] | None = None) -> CocoFile:
    """As `read_coco`, from what `load_coco` gave."""
    problems = Problems()
    categories = read_categories(content["categories"], path)
    classes = list(categories.values()) if classes is None else classes
    labels = _labels(categories, classes, path)
    images = _images(content["images"], path, problems)
    boxes = _boxes(content["annotations"], images, labels, path, problems)
    return CocoFile(path, classes, _category_ids(labels, len(classes)), images, boxes, problems)


def load_coco(path: Path) -> dict[str, list[Any]]:
    """The three lists of an annotation file, their entries not yet looked at.

    Raises:
        DatasetError: unreadable, not JSON, not COCO, or without images or categories.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError("not_readable", f"cannot be read: {error.strerror}", path) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError("not_json", f"is not JSON: {error}", path) from error
    if isinstance(content, list):
        detail = (
            "is a list (COCO detection results?), not COCO annotations: {images: [], annotations: [], categories: []}"
        )
        raise DatasetError("not_coco", detail, path)
    for key in KEYS:
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list):
            raise DatasetError("not_coco", f"is not COCO: `{key}` is missing or not a list", path)
        if not value and key != "annotations":
            raise DatasetError("empty", f"`{key}` is empty", path)
    return {key: content[key] for key in KEYS}


def _need(entry: Any, key: str, kind: type | tuple[type, ...], where: str, path: Path) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        found = "missing" if value is None else f"{value!r:.60}"
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DatasetError("not_coco", f"is not COCO: {where}.{key} is {found}; it must be {names}", path)
    return value


def _text(entry: Any, key: str, limit: int, where: str, path: Path) -> str:
    """A name that can be stored and shown."""
    text: str = _need(entry, key, str, where, path)
    if not 1 <= len(text) <= limit or CONTROLS.search(text):
        detail = f"{where}.{key} is {text!a:.60}; it must be 1 to {limit} characters, none of them a control character"
        raise DatasetError("not_coco", detail, path)
    return text


def read_categories(entries: list[Any], path: Path) -> dict[int, str]:
    """Category id to name, sorted by id.

    Raises:
        DatasetError: an entry is no category, or repeats an id or a name.
    """
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries):
        where = f"categories[{i}]"
        identity, name = _need(entry, "id", int, where, path), _text(entry, "name", MAX_NAME, where, path)
        if identity in categories or name in categories.values():
            raise DatasetError("duplicate_category", f"{where} repeats the id {identity} or the name {name!r}", path)
        categories[identity] = name
    return dict(sorted(categories.items()))


def _labels(categories: dict[int, str], classes: list[str], path: Path) -> dict[int, int]:
    """Category id to label."""
    index = {name: i for i, name in enumerate(classes)}
    strangers = [name for name in categories.values() if name not in index]
    if strangers:
        detail = f"lists the categories {strangers} that are not among the training classes {classes}"
        raise DatasetError("classes_differ", detail, path)
    return {identity: index[name] for identity, name in categories.items()}


def _category_ids(labels: dict[int, int], num_classes: int) -> list[int]:
    ids = {label: identity for identity, label in labels.items()}
    fresh = max(labels) + 1
    return [ids.get(label, fresh + label) for label in range(num_classes)]


def _images(entries: list[Any], path: Path, problems: Problems) -> list[ImageRecord]:
    images: dict[int | str, ImageRecord] = {}
    for i, entry in enumerate(entries):
        where = f"images[{i}]"
        identity = _need(entry, "id", (int, str), where, path)
        name = _text(entry, "file_name", MAX_FILE_NAME, where, path)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DatasetError("path_outside", f"{where}.file_name {name!r} leaves the image folder", path)
        width, height = (_need(entry, key, (int, float), where, path) for key in ("width", "height"))
        if not (is_number(width) and is_number(height) and width >= 1 and height >= 1):
            raise DatasetError("not_coco", f"{where} is {width} x {height} pixels; both must be positive", path)
        if identity in images:
            problems.note("duplicate_image_id", f"{where} {name} (id {identity!r:.40})")
        else:
            images[identity] = ImageRecord(identity, name, int(width), int(height), _digest(entry))
    return sorted(images.values(), key=lambda image: (isinstance(image.id, str), image.id))


def _digest(entry: dict[str, Any]) -> str | None:
    value = entry.get("sha256")
    return value if isinstance(value, str) and SHA256.fullmatch(value) else None


class UnusableBox(Exception):
    """A box that is left out: code and what is wrong with it."""

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        self.what = what


def _boxes(
    entries: list[Any], images: list[ImageRecord], labels: dict[int, int], path: Path, problems: Problems
) -> list[BoxRecord]:
    index = {image.id: i for i, image in enumerate(images)}
    seen: set[Any] = set()
    boxes = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError("not_coco", f"is not COCO: annotations[{i}] is {entry!r:.60}, not an object", path)
        identity = entry.get("id", i)
        where = f"annotations[{i}] (id {identity!r:.40})"
        if isinstance(identity, int | str):
            if identity in seen:
                problems.note("duplicate_annotation_id", where)
            seen.add(identity)
        try:
            boxes.append(_box(entry, where, images, index, labels, problems))
        except UnusableBox as box:
            problems.note(box.code, f"{where}: {box.what}")
    return boxes


def _box(
    entry: dict[str, Any],
    where: str,
    images: list[ImageRecord],
    index: dict[int | str, int],
    labels: dict[int, int],
    problems: Problems,
) -> BoxRecord:
    image, label = _lookup(index, entry.get("image_id")), _lookup(labels, entry.get("category_id"))
    if image is None:
        raise UnusableBox("unknown_image", f"image_id {entry.get('image_id')!r:.40}")
    if label is None:
        raise UnusableBox("unknown_category", f"category_id {entry.get('category_id')!r:.40}")
    mask = _mask(entry) if entry.get("bbox") in (None, []) and entry.get("segmentation") else None
    if mask is not None:
        problems.note("box_from_mask", where)
    xywh = mask.xywh if mask else _numbers(entry.get("bbox"))
    xyxy, overhang = clip(xywh, images[image])
    if overhang > CLIP_TOLERANCE:
        problems.note("clipped_box", f"{where}: {describe(xywh, images[image])}")
    if crowd := bool(entry.get("iscrowd")):
        problems.note("crowd", f"{where} of {images[image].file_name}")
    area = read_area(entry.get("area"), mask.area if mask else xywh[2] * xywh[3])
    return BoxRecord(image, label, xyxy, xywh, area, crowd)


def _mask(entry: dict[str, Any]) -> Mask:
    try:
        return read_mask(entry["segmentation"])
    except MaskError as error:
        raise UnusableBox("malformed_box", f"no bbox, and its segmentation {error}") from error


def _lookup(table: Mapping[Any, int], key: Any) -> int | None:
    return table.get(key) if isinstance(key, int | str) else None


def _numbers(bbox: Any) -> Box:
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
        raise UnusableBox("malformed_box", f"bbox {bbox!r:.60}")
    x, y, w, h = bbox
    return x, y, w, h


def clip(xywh: Box, image: ImageRecord) -> tuple[Box, float]:
    """The part inside the image, xyxy, and by how many pixels the box reaches beyond it.

    Raises:
        UnusableBox: it has no size, or no part inside.
    """
    x, y, w, h = xywh
    if w < MIN_SIDE or h < MIN_SIDE:
        raise UnusableBox("zero_size_box", describe(xywh, image))
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, image.width), min(y + h, image.height)
    if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
        raise UnusableBox("box_outside_image", describe(xywh, image))
    return (x1, y1, x2, y2), max(x1 - x, y1 - y, x + w - x2, y + h - y2)


def read_area(area: Any, otherwise: float) -> float:
    return area if is_number(area) and area > 0 else otherwise


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and within what a float can hold exactly: JSON knows integers of any length, and Python NaN."""
    return isinstance(value, int | float) and -(2**53) < value < 2**53


def describe(xywh: Box, image: ImageRecord) -> str:
    return f"bbox {list(xywh)} in {image.file_name} of {image.width} x {image.height}"
