"""What a dataset holds and what is wrong with it, read before anything is trained. Free of torch."""

from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tid_core.data.annotations import CocoFile, ImageRecord, read_coco
from tid_core.data.images import ImageProblem, check_image
from tid_core.data.problems import DataProblem, DatasetError
from tid_core.plan import SplitPaths

__all__ = ["DataProblem", "DatasetError", "DatasetFacts", "SizeRange", "SplitFacts", "find_splits", "read_facts"]

LAYOUTS = (
    ("{split}.json", "{split}"),
    ("annotations/instances_{split}2017.json", "{split}2017"),
)
"""Annotation file and image folder of a split, under the dataset's root."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SizeRange(_Facts):
    """In pixels."""

    smallest: float
    mean: float
    largest: float


class SplitFacts(_Facts):
    images: int
    boxes: int = Field(description="Boxes that can be trained on: neither invalid nor crowd.")
    empty_images: int = Field(description="Images without such a box.")
    per_class: dict[str, int] = Field(description="Such boxes of each class, in class order.")
    box_side: SizeRange | None = Field(description="Square root of width times height; null without boxes.")
    image_short_side: SizeRange
    image_long_side: SizeRange
    images_checked: Literal["present", "decoded"] = Field(
        description="present: the files exist. decoded: they are also whole and of the stated size."
    )
    problems: list[DataProblem]


class DatasetFacts(_Facts):
    name: str
    classes: list[str] = Field(description="In label order: the training categories sorted by category id.")
    splits: dict[str, SplitFacts]


def find_splits(root: Path) -> dict[str, SplitPaths]:
    """Where `train`, `val` and, if there is one, `test` lie under `root`.

    Raises:
        DatasetError: there is no such folder, `train` or `val` is not found, or a split has no image folder.
    """
    if not root.is_dir():
        raise DatasetError("dataset_not_found", "there is no such folder", root)
    found = {split: paths for split in ("train", "val", "test") if (paths := _find_split(root, split)) is not None}
    for split in ("train", "val"):
        if split not in found:
            wanted = " or ".join(annotations.format(split=split) for annotations, _ in LAYOUTS)
            raise DatasetError("split_missing", f"has no `{split}` split; expected {wanted} in it", root)
    return found


def _find_split(root: Path, split: str) -> SplitPaths | None:
    for annotations, images in LAYOUTS:
        paths = SplitPaths(images=root / images.format(split=split), annotations=root / annotations.format(split=split))
        if paths.annotations.is_file():
            if not paths.images.is_dir():
                raise DatasetError("images_missing", f"the image folder of `{split}` does not exist", paths.images)
            return paths
    return None


def read_facts(root: Path, name: str, *, check_images: bool) -> DatasetFacts:
    """Scan the annotation files of the dataset in `root`, and its images.

    Image files are looked for in any case; with `check_images`, and where Pillow is installed, they are also checked
    for being whole and of the stated size.

    Raises:
        DatasetError: the folder, a split or an annotation file cannot be used at all, or a split has a category
            that `train` lacks. Anything less is a problem in the split's facts.
    """
    splits = find_splits(root)
    decode = check_images and find_spec("PIL") is not None
    train = read_coco(splits["train"].annotations)
    facts = {"train": _split_facts(train, splits["train"].images, decode)}
    for split, paths in splits.items():
        if split != "train":
            facts[split] = _split_facts(read_coco(paths.annotations, train.classes), paths.images, decode)
    return DatasetFacts(name=name, classes=train.classes, splits=facts)


def _split_facts(coco: CocoFile, folder: Path, decode: bool) -> SplitFacts:
    for image in coco.images:
        _check(image, folder, decode, coco)
    boxes = [box for box in coco.boxes if not box.crowd]
    labels = Counter(box.label for box in boxes)
    sides = [sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in (box.xyxy for box in boxes)]
    return SplitFacts(
        images=len(coco.images),
        boxes=len(boxes),
        empty_images=len(coco.images) - len({box.image for box in boxes}),
        per_class={name: labels[i] for i, name in enumerate(coco.classes)},
        box_side=_range(sides) if sides else None,
        image_short_side=_range(min(image.width, image.height) for image in coco.images),
        image_long_side=_range(max(image.width, image.height) for image in coco.images),
        images_checked="decoded" if decode else "present",
        problems=coco.problems.report(),
    )


def _check(image: ImageRecord, folder: Path, decode: bool, coco: CocoFile) -> None:
    if not decode:
        if not (folder / image.file_name).is_file():
            coco.problems.note("missing_image", image.file_name)
        return
    try:
        check_image(folder, image)
    except ImageProblem as problem:
        coco.problems.note(problem.code, problem.detail.removeprefix(f"{folder}/"))


def _range(values: Iterable[float]) -> SizeRange:
    kept = list(values)
    return SizeRange(smallest=min(kept), mean=sum(kept) / len(kept), largest=max(kept))
