"""What a dataset holds and what is wrong with it, read before anything is trained. Free of torch."""

from collections import Counter
from collections.abc import Iterable
from math import floor, log2, sqrt
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tid_core.data.formats import read_source
from tid_core.data.formats.source import Format, Source, Split
from tid_core.data.options import IndexOptions
from tid_core.data.problems import DataProblem, DatasetError
from tid_core.data.scan import present, scan

__all__ = [
    "DataProblem",
    "DatasetError",
    "DatasetFacts",
    "HistogramBin",
    "SizeRange",
    "SplitFacts",
    "facts_of",
    "read_facts",
]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SizeRange(_Facts):
    """In pixels."""

    smallest: float
    mean: float
    largest: float


class HistogramBin(_Facts):
    """Boxes whose side is at least `low` and below `high` pixels."""

    low: int
    high: int
    boxes: int


class SplitFacts(_Facts):
    images: int
    boxes: int = Field(description="Boxes that can be trained on: neither invalid nor crowd.")
    empty_images: int = Field(description="Images without such a box.")
    per_class: dict[str, int] = Field(description="Such boxes of each class, in class order.")
    box_side: SizeRange | None = Field(description="Square root of width times height; null without boxes.")
    box_side_histogram: list[HistogramBin] = Field(description="Such boxes by side, in doublings of it.")
    image_short_side: SizeRange
    image_long_side: SizeRange
    images_checked: Literal["present", "decoded"] = Field(
        description="present: the files exist. decoded: they are also whole and of the stated size."
    )
    problems: list[DataProblem]


class DatasetFacts(_Facts):
    name: str
    classes: list[str] = Field(
        description="In label order: COCO by category id, VOC by the alphabet, YOLO as in data.yaml."
    )
    format: Format = Field("coco", description="In which the dataset came.")
    sha256: str | None = Field(
        None, description="Of images, boxes and classes of all splits; null where the images were not read."
    )
    splits: dict[str, SplitFacts]


def read_facts(root: Path, name: str, *, check_images: bool, options: IndexOptions | None = None) -> DatasetFacts:
    """Scan the annotations of the dataset in `root`, in whatever format it is, and its images.

    Image files are looked for in any case; with `check_images` they are also checked for being whole and of the
    stated size.

    Raises:
        DatasetError: the folder, a split or an annotation file cannot be used at all. Anything less is a problem in
            the split's facts.
    """
    source = read_source(root, options or IndexOptions())
    if check_images:
        scan(root, source)
    else:
        present(root, source)
    return facts_of(source, name, "decoded" if check_images else "present")


def facts_of(
    source: Source, name: str, checked: Literal["present", "decoded"], sha256: str | None = None
) -> DatasetFacts:
    splits = {ours: _split_facts(split, source.classes, checked) for ours, split in source.splits.items()}
    return DatasetFacts(name=name, classes=source.classes, format=source.format, sha256=sha256, splits=splits)


def _split_facts(split: Split, classes: list[str], checked: Literal["present", "decoded"]) -> SplitFacts:
    boxes = [box for box in split.boxes if not box.crowd]
    labels = Counter(box.label for box in boxes)
    sides = [sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in (box.xyxy for box in boxes)]
    return SplitFacts(
        images=len(split.images),
        boxes=len(boxes),
        empty_images=len(split.images) - len({box.image for box in boxes}),
        per_class={name: labels[i] for i, name in enumerate(classes)},
        box_side=_range(sides) if sides else None,
        box_side_histogram=_histogram(sides),
        image_short_side=_range(min(image.width, image.height) for image in split.images),
        image_long_side=_range(max(image.width, image.height) for image in split.images),
        images_checked=checked,
        problems=split.problems.report(),
    )


def _histogram(sides: list[float]) -> list[HistogramBin]:
    """Bins 0-1, 1-2, 2-4, 4-8, ... from the smallest box to the largest."""
    counts = Counter(floor(log2(side)) + 1 if side >= 1 else 0 for side in sides)
    if not counts:
        return []
    return [
        HistogramBin(low=2 ** (i - 1) if i else 0, high=2**i, boxes=counts[i])
        for i in range(min(counts), max(counts) + 1)
    ]


def _range(values: Iterable[float]) -> SizeRange:
    kept = list(values)
    return SizeRange(smallest=min(kept), mean=sum(kept) / len(kept), largest=max(kept))
