"""Detections beside the ground truth: which boxes are right, which are wrong, and what was missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Found:
    box: Box
    label: str
    score: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A box to draw; verdict is truth, right, wrong or missed."""

    box: Box
    text: str
    verdict: str


@dataclass(frozen=True)
class Panel:
    marks: list[Mark]
    summary: str = ""


@dataclass(frozen=True)
class Scene:
    """One image, its ground truth and what each model found; `pixels` is (H, W, 3) uint8."""

    pixels: Any
    width: int
    height: int
    truth: Panel
    found: dict[str, Panel]


def truth_panel(truth: Sequence[Found]) -> Panel:
    return Panel([Mark(item.box, item.label, "truth") for item in truth], _counted(len(truth), "object"))


def judged_panel(truth: Sequence[Found], found: Sequence[Found]) -> Panel:
    """Match as COCO does at IoU .5: by falling score, each to the free object of its class that it overlaps most."""
    free = list(range(len(truth)))
    marks: list[Mark] = []
    for item in sorted(found, key=lambda one: -one.score):
        rivals = [(overlap(item.box, truth[index].box), index) for index in free if truth[index].label == item.label]
        best, index = max(rivals, default=(0.0, -1))
        if best >= 0.5:
            free.remove(index)
        marks.append(Mark(item.box, f"{item.label} {item.score:.2f}", "right" if best >= 0.5 else "wrong"))
    wrong = sum(mark.verdict == "wrong" for mark in marks)
    missed = [Mark(truth[index].box, "", "missed") for index in free]
    summary = f"{len(truth) - len(free)} of {len(truth)} found" + (f", {wrong} wrong" if wrong else "")
    return Panel([*reversed(marks), *missed], summary)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(one) + _area(other) - shared)


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` indices spread over range(count): a choice that does not look at the results."""
    shown = min(count, wanted)
    return [index * count // shown for index in range(shown)]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Annotated:
    """A validation split as COCO JSON has it."""

    images: list[dict[str, Any]]
    truth: dict[int | str, list[Found]]
    """Image id to its objects."""
    classes: dict[int, str]
    """Category id to name."""
    folder: Path

    @classmethod
    def read(cls, annotations: Path, folder: Path) -> Annotated:
        document = json.loads(annotations.read_text())
        classes = {one["id"]: one["name"] for one in document["categories"]}
        images = sorted(document["images"], key=lambda one: str(one["file_name"]))
        return cls(images, _by_image(document["annotations"], classes), classes, folder)

    def scenes(self, results: dict[str, list[dict[str, Any]]], *, count: int, min_score: float) -> list[Scene]:
        """`count` images, evenly spaced, with each model's results of at least `min_score`."""
        found = {
            name: _by_image([row for row in rows if row["score"] >= min_score], self.classes)
            for name, rows in results.items()
        }
        chosen = [self.images[index] for index in evenly(len(self.images), count)]
        return [
            self._scene(image, {name: rows.get(image["id"], []) for name, rows in found.items()}) for image in chosen
        ]

    def _scene(self, image: dict[str, Any], found: dict[str, list[Found]]) -> Scene:
        truth = self.truth.get(image["id"], [])
        return Scene(
            pixels=_pixels(self.folder / image["file_name"]),
            width=image["width"],
            height=image["height"],
            truth=truth_panel(truth),
            found={name: judged_panel(truth, boxes) for name, boxes in found.items()},
        )


def _by_image(rows: Sequence[dict[str, Any]], classes: dict[int, str]) -> dict[int | str, list[Found]]:
    """COCO annotations or results, grouped; boxes from x, y, width, height to corners."""
    grouped: dict[int | str, list[Found]] = {}
    for row in rows:
        x, y, width, height = row["bbox"]
        one = Found((x, y, x + width, y + height), classes[row["category_id"]], row.get("score", 1.0))
        grouped.setdefault(row["image_id"], []).append(one)
    return grouped


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
