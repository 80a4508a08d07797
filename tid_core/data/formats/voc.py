"""PASCAL VOC: an XML file an image. Free of torch.

VOC counts pixels from 1 and both corners belong to the box, so the box in continuous coordinates is
(xmin - 1, ymin - 1, xmax, ymax): the devkit's width xmax - xmin + 1 becomes the plain difference. `difficult` boxes
become crowds: not trained on, and detections of them not counted as wrong. Parts of objects (VOC's person layout) are
left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from tid_core.data.annotations import MAX_NAME, Box, BoxRecord, ImageRecord, UnusableBox, clip
from tid_core.data.formats.files import images_in, stems
from tid_core.data.formats.parts import Part, default_splits, find_part, has_splits
from tid_core.data.formats.source import Root, Source, Split, merged, note_overhang
from tid_core.data.formats.xml_tree import XmlError, read_xml
from tid_core.data.images import ImageProblem, image_size
from tid_core.data.problems import DatasetError, Problems
from tid_core.text import CONTROLS

__all__ = ["LOOKS_FOR", "default_splits", "has_splits", "read"]

LOOKS_FOR = (
    "VOC: JPEGImages/ and Annotations/ with XML files, with or without ImageSets/Main/train.txt, in the folder or in "
    "VOC2007/, VOC2012/ within; or train/ with images and XML files side by side"
)


class _Object(NamedTuple):
    image: int
    where: str
    name: str
    bndbox: Box
    difficult: bool


@dataclass
class _Part:
    """A split before its labels are known."""

    images: list[ImageRecord]
    objects: list[_Object]
    problems: Problems


def read(root: Root, base: Path, wanted: dict[str, list[str]]) -> Source:
    """The splits `wanted`, ours to the dataset's own, such as `VOC2007/trainval`.

    Classes are the names in `train` by the alphabet, which for VOC's own twenty is VOC's order.

    Raises:
        DatasetError: a split is missing or empty, or has a class that `train` lacks.
    """
    parts = {ours: [_read_part(root, find_part(base, name)) for name in names] for ours, names in wanted.items()}
    classes = sorted({entry.name for part in parts["train"] for entry in part.objects})
    if not classes:
        split = merged([Split(part.images, [], part.problems) for part in parts["train"]])
        told = "; ".join(str(problem) for problem in split.problems.report()) or "no annotation file names an object"
        raise DatasetError("no_boxes", f"no object of the `train` split can be used: {told}", base)
    labels = {name: i for i, name in enumerate(classes)}
    splits = {ours: merged([_labelled(part, labels, ours, base) for part in found]) for ours, found in parts.items()}
    return Source("voc", classes, list(range(1, len(classes) + 1)), splits)


def _read_part(root: Root, part: Part) -> _Part:
    found = _Part([], [], Problems())
    names = images_in(part.images)
    by_stem = stems(names)
    if part.names is not None:
        root.name(part.names)  # before anything of it is told
    for stem in part.listed():
        file = part.annotations / f"{stem}.xml"
        where = root.name(file)
        try:
            _read_file(root, file, part.images, by_stem.get(stem), names, found)
        except FileNotFoundError:
            found.problems.note("missing_annotation", where)
        except XmlError as error:
            found.problems.note("unreadable_annotation", f"{where} {error}")
        except ImageProblem as problem:
            found.problems.note(problem.code, f"{problem.detail.removeprefix(f'{root.path}/')} (of {where})")
    return found


def _read_file(root: Root, file: Path, folder: Path, image: str | None, names: set[str], found: _Part) -> None:
    """Add the image and the objects of one XML file."""
    if not file.is_file():
        raise FileNotFoundError(file)
    tree = read_xml(file)
    if tree.tag != "annotation":
        raise XmlError(f"holds <{tree.tag:.40}>, not <annotation>")
    if image is None:
        image = (tree.findtext("filename") or "").strip()
        if image not in names:
            raise ImageProblem("missing_image", f"no image {file.stem}.* in {folder}")
    name = root.name(folder / image)
    width, height = _size(tree) or image_size(folder / image)
    found.images.append(ImageRecord(len(found.images) + 1, name, width, height))
    for i, entry in enumerate(tree.iterfind("object")):
        where = f"{root.name(file)} object {i + 1}"
        try:
            found.objects.append(_object(entry, len(found.images) - 1, where))
        except UnusableBox as box:
            found.problems.note(box.code, f"{where}: {box.what}")


def _size(tree: Element) -> tuple[int, int] | None:
    """Width and height; None where the file has none, or 0 as some tools write."""
    width, height = (_number(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    if width is None or height is None or width < 1 or height < 1:
        return None
    return int(width), int(height)


def _object(entry: Element, image: int, where: str) -> _Object:
    name = (entry.findtext("name") or "").strip()
    if not 1 <= len(name) <= MAX_NAME or CONTROLS.search(name):
        raise UnusableBox("malformed_box", f"its <name> {name!a:.40} must be 1 to {MAX_NAME} plain characters")
    sides = [_number(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = sides
    if x1 is None or y1 is None or x2 is None or y2 is None:
        raise UnusableBox("malformed_box", f"{name}: its <bndbox> must hold the numbers xmin, ymin, xmax, ymax")
    difficult = _number(entry.findtext("difficult")) not in (None, 0)
    return _Object(image, f"{where} ({name})", name, (x1 - 1, y1 - 1, x2, y2), difficult)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if abs(value) < 2**53 else None


def _labelled(part: _Part, labels: dict[str, int], ours: str, base: Path) -> Split:
    strangers = sorted({entry.name for entry in part.objects} - labels.keys())
    if strangers:
        example = next(entry.where for entry in part.objects if entry.name == strangers[0])
        detail = f"`{ours}` has the classes {strangers[:20]}, e.g. {example}, that are not among those of `train`"
        raise DatasetError("classes_differ", f"{detail} {list(labels)[:40]}", base)
    return Split(part.images, list(_boxes(part, labels)), part.problems)


def _boxes(part: _Part, labels: dict[str, int]) -> Iterator[BoxRecord]:
    for entry in part.objects:
        x1, y1, x2, y2 = entry.bndbox
        xywh = (x1, y1, x2 - x1, y2 - y1)
        image = part.images[entry.image]
        try:
            xyxy, overhang = clip(xywh, image)
        except UnusableBox as box:
            part.problems.note(box.code, f"{entry.where}: {box.what}")
            continue
        note_overhang(part.problems, overhang, entry.where, xywh, image)
        if entry.difficult:
            part.problems.note("crowd", entry.where)
        yield BoxRecord(entry.image, labels[entry.name], xyxy, xywh, xywh[2] * xywh[3], entry.difficult)
