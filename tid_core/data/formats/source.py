"""What each reader of a format gives: classes, and per split images, boxes and problems. Free of torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tid_core.data.annotations import CLIP_TOLERANCE, MAX_FILE_NAME, Box, BoxRecord, ImageRecord, describe
from tid_core.data.problems import DatasetError, Problems
from tid_core.text import CONTROLS

Format = Literal["coco", "voc", "yolo"]

OWN_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Our splits, and what datasets call them."""


@dataclass
class Split:
    images: list[ImageRecord] = field(default_factory=list)
    """`file_name` is relative to the dataset's root, with `/`."""
    boxes: list[BoxRecord] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


@dataclass
class Source:
    format: Format
    classes: list[str]
    category_ids: list[int]
    """Per class, its id in the index."""
    splits: dict[str, Split]


class Root:
    """The dataset's folder: the only place that files are taken from."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - lexically: links are followed in `name` alone
        self._real = os.path.realpath(path)

    def name(self, path: Path) -> str:
        """`path`, relative to the root, after making sure that it is inside, whatever links it goes through.

        Raises:
            DatasetError: `path_outside`, or `bad_file_name`.
        """
        if CONTROLS.search(str(path)):
            detail = f"the file name {str(path)[-80:]!a} holds a control character, or is in no known encoding"
            raise DatasetError("bad_file_name", detail, self.path)
        lexical = os.path.normpath(path)
        real = os.path.realpath(lexical)
        if real != self._real and not real.startswith(self._real + os.sep):
            raise DatasetError("path_outside", f"{path} leads outside of the dataset's folder, to {real}", self.path)
        name = os.path.relpath(lexical, self.path)
        if len(name) > MAX_FILE_NAME:
            detail = f"the file name {name[:80]!a}... is longer than {MAX_FILE_NAME} characters"
            raise DatasetError("bad_file_name", detail, self.path)
        return name


def merged(parts: Sequence[Split]) -> Split:
    """One split of several; a file that is listed twice counts once, with the boxes of its first entry.

    The images keep their ids where those differ, else they are numbered.
    """
    whole = Split(problems=Problems.sum(part.problems for part in parts))
    seen: set[str] = set()
    for part in parts:
        place: dict[int, int] = {}
        for i, image in enumerate(part.images):
            if image.file_name in seen:
                whole.problems.note("duplicate_file", image.file_name)
                continue
            seen.add(image.file_name)
            place[i] = len(whole.images)
            whole.images.append(image)
        whole.boxes += [box._replace(image=place[box.image]) for box in part.boxes if box.image in place]
    if len({image.id for image in whole.images}) < len(whole.images):
        whole.images = [image._replace(id=i) for i, image in enumerate(whole.images, start=1)]
    return whole


def note_overhang(problems: Problems, overhang: float, where: str, xywh: Box, image: ImageRecord) -> None:
    if overhang > CLIP_TOLERANCE:
        problems.note("clipped_box", f"{where}: {describe(xywh, image)}")
