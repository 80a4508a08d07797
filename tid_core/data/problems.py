"""What can be wrong with a dataset, and how it is told. Free of torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

MAX_EXAMPLES = 5

DETAILS = {
    "malformed_box": "the box is not four finite numbers; such boxes are not used",
    "malformed_label": "the line is neither `class x y width height` nor `class x1 y1 x2 y2 x3 y3 ...`; not used",
    "outside_0_1": "a YOLO label's coordinates are parts of the image, 0 to 1; such boxes are not used",
    "zero_size_box": "width or height is not positive; such boxes are not used",
    "box_outside_image": "the box lies entirely outside its image; such boxes are not used",
    "clipped_box": "the box reaches beyond its image; training uses the part inside",
    "box_from_mask": "bbox is missing; the box around the segmentation is used",
    "crowd": "COCO's iscrowd=1, VOC's difficult=1: not trained on; detections that fall on it are not counted as wrong",
    "unknown_category": "the category is not in the category list; such boxes are not used",
    "unknown_image": "image_id is not in the image list; such boxes are not used",
    "duplicate_image_id": "the image id is used twice; only the first entry is used",
    "duplicate_annotation_id": "the annotation id is used twice; both boxes are used",
    "duplicate_file": "the file is listed twice in the split; only the first entry and its boxes are used",
    "duplicate_image": "another image of the split has the same content",
    "leaked_image": "an image of `train` has the same content, so the evaluation is too kind",
    "hidden_orientation": "the file asks to be shown upside down or mirrored (EXIF); pixels are taken as stored",
    "missing_label": "there is no label file; the image counts as one without boxes",
    "missing_annotation": "the image is listed, but has no annotation file",
    "unreadable_annotation": "the annotation file cannot be understood",
    "missing_image": "the file does not exist",
    "unreadable_image": "the file is truncated or not an image",
    "size_mismatch": "width and height in the annotation file differ from the image file",
    "changed_image": "the file is no longer the one that was registered; a training that meets it stops",
}
"""Every code, with what it means and what happens."""

UNUSABLE_BOXES = (
    "malformed_box",
    "malformed_label",
    "outside_0_1",
    "zero_size_box",
    "box_outside_image",
    "unknown_category",
    "unknown_image",
)
"""Codes of boxes that are left out, and that `invalid_boxes: refuse` does not accept."""

UNUSABLE_IMAGES = ("missing_annotation", "unreadable_annotation", "missing_image", "unreadable_image", "size_mismatch")
"""Codes of images that cannot be trained on: with one of these a dataset is invalid."""


class DatasetError(Exception):
    """A dataset that cannot be used at all: a code, what is wrong and what would be right, and where.

    Where many places are at fault, `problems` counts them, by split.
    """

    def __init__(
        self, code: str, detail: str, path: Path, problems: "dict[str, list[DataProblem]] | None" = None
    ) -> None:
        super().__init__(f"{path}: {detail}")
        self.code = code
        self.detail = detail
        self.path = path
        self.problems = problems or {}


class DataProblem(BaseModel):
    """Something wrong in many places, reported once."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(description="A key of DETAILS, e.g. zero_size_box.")
    count: int
    examples: list[str] = Field(description=f"Up to {MAX_EXAMPLES} places.")
    detail: str = Field(description="What it means and what happens.")

    def __str__(self) -> str:
        return f"{self.count} x {self.code} ({self.detail}): {'; '.join(self.examples)}"


@dataclass
class Problems:
    """Counts problems by code, keeping a few examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, code: str, example: str) -> None:
        self.counts[code] = self.counts.get(code, 0) + 1
        kept = self.examples.setdefault(code, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(example)

    @classmethod
    def sum(cls, parts: "Iterable[Problems]") -> Self:
        """All of `parts` in one."""
        whole = cls()
        for part in parts:
            for code, count in part.counts.items():
                whole.counts[code] = whole.counts.get(code, 0) + count
                kept = whole.examples.setdefault(code, [])
                kept += part.examples[code][: MAX_EXAMPLES - len(kept)]
        return whole

    def report(self, codes: Sequence[str] = tuple(DETAILS)) -> list[DataProblem]:
        """Problems with one of `codes`, in the order of DETAILS."""
        return [
            DataProblem(code=code, count=self.counts[code], examples=self.examples[code], detail=DETAILS[code])
            for code in DETAILS
            if code in codes and code in self.counts
        ]
