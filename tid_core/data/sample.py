"""A picture that shows what was registered: some training images with their boxes. Pillow only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tid_core.data.annotations import BoxRecord, ImageRecord
from tid_core.data.formats.source import Source
from tid_core.data.images import ImageProblem, open_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

COLUMNS, CELL, GAP = 3, 320, 4
"""Images a row and a column; pixels."""
MAX_BOXES = 100
"""Drawn in one image."""
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


def draw_sample(root: Path, source: Source) -> bytes | None:
    """A JPEG of up to nine training images in a grid, spread evenly over those with boxes; None where none opens."""
    from PIL import Image

    train = source.splits["train"]
    boxes: dict[int, list[BoxRecord]] = {}
    for box in train.boxes:
        boxes.setdefault(box.image, []).append(box)
    cells = []
    for i in _spread(sorted(boxes), COLUMNS * COLUMNS):
        try:
            cells.append(_cell(root, train.images[i], boxes[i][:MAX_BOXES], source.classes))
        except ImageProblem:  # its header was whole, its pixels are not; training will tell
            continue
    if not cells:
        return None
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    grid = Image.new("RGB", (columns * (CELL + GAP) - GAP, rows * (CELL + GAP) - GAP), "white")
    for i, cell in enumerate(cells):
        left, top = (i % columns) * (CELL + GAP), (i // columns) * (CELL + GAP)
        grid.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
    buffer = io.BytesIO()
    grid.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _spread(values: Sequence[int], limit: int) -> list[int]:
    count = min(limit, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def _cell(root: Path, record: ImageRecord, boxes: list[BoxRecord], classes: list[str]) -> Image:
    from PIL import ImageDraw

    image = open_image(root, record)
    scale = CELL / max(image.size)
    cell = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(cell)
    for box in boxes:
        x1, y1, x2, y2 = (value * scale for value in box.xyxy)
        colour = COLOURS[box.label % len(COLOURS)]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=1 if box.crowd else 2)
        text = f"{classes[box.label][:24]}{' (crowd)' if box.crowd else ''}"
        _label(draw, (x1, max(0.0, y1 - 14)), text, colour)
    return cell


def _label(draw: ImageDraw, place: tuple[float, float], text: str, colour: str) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow's small built-in font has Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
    draw.rectangle(draw.textbbox(place, text, font=font), fill=colour)
    draw.text(place, text, fill="white", font=font)
