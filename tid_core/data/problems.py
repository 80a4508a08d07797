"""What can be wrong with a dataset, and how it is told. Free of torch."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MAX_EXAMPLES = 5

DETAILS = {
    "malformed_box": "bbox is not four finite numbers [x, y, width, height]; such boxes are not used",
    "zero_size_box": "width or height is not positive; such boxes are not used",
    "box_outside_image": "the box lies entirely outside its image; such boxes are not used",
    "clipped_box": "the box reaches beyond its image; training uses the part inside",
    "crowd": "iscrowd=1: not trained on; detections that fall on it are not counted as wrong",
    "unknown_category": "category_id is not in the category list; such boxes are not used",
    "unknown_image": "image_id is not in the image list; such boxes are not used",
    "duplicate_image_id": "the image id is used twice; only the first entry is used",
    "duplicate_annotation_id": "the annotation id is used twice; both boxes are used",
    "missing_image": "the file does not exist",
    "unreadable_image": "the file is truncated or not an image",
    "size_mismatch": "width and height in the annotation file differ from the image file",
}
"""Every code, with what it means and what happens."""

UNUSABLE_BOXES = ("malformed_box", "zero_size_box", "box_outside_image", "unknown_category", "unknown_image")
"""Codes of boxes that `invalid_boxes: refuse` does not accept."""

UNUSABLE_IMAGES = ("missing_image", "unreadable_image", "size_mismatch")
"""Codes of images on which a training would stop."""


class DatasetError(Exception):
    """A dataset that cannot be used at all: a code, what is wrong and what would be right, and where."""

    def __init__(self, code: str, detail: str, path: Path) -> None:
        super().__init__(f"{path}: {detail}")
        self.code = code
        self.detail = detail
        self.path = path


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

    def report(self, codes: tuple[str, ...] = tuple(DETAILS)) -> list[DataProblem]:
        """Problems with one of `codes`, in the order of DETAILS."""
        return [
            DataProblem(code=code, count=self.counts[code], examples=self.examples[code], detail=DETAILS[code])
            for code in DETAILS
            if code in codes and code in self.counts
        ]
