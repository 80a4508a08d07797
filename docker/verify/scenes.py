"""A dataset for docker/verify.sh, drawn with Pillow alone: discs and squares on grey, as COCO JSON in one zip file.

scenes.py FILE
"""

import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIDE = 96
CLASSES = ("disc", "square")
SPLITS = {"train": 24, "val": 8}
"""Images of each split."""


def main(target: Path) -> None:
    rng = random.Random(0)  # noqa: S311 - a picture, not a secret
    with zipfile.ZipFile(target, "w") as archive:
        for split, count in SPLITS.items():
            images: list[dict[str, Any]] = []
            boxes: list[dict[str, Any]] = []
            for number in range(1, count + 1):
                name = f"{number:03d}.jpg"
                pixels, found = scene(rng)
                archive.writestr(f"{split}/{name}", pixels)
                images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
                boxes += [{**box, "image_id": number, "id": len(boxes) + at} for at, box in enumerate(found, start=1)]
            categories = [{"id": at, "name": name} for at, name in enumerate(CLASSES, start=1)]
            content = {"images": images, "annotations": boxes, "categories": categories}
            archive.writestr(f"{split}.json", json.dumps(content))


def scene(rng: random.Random) -> tuple[bytes, list[dict[str, Any]]]:
    """One image as JPEG, and its boxes; one object in each half, so that none hides another."""
    image = Image.new("RGB", (SIDE, SIDE), (rng.randrange(90, 170),) * 3)
    draw = ImageDraw.Draw(image)
    boxes: list[dict[str, Any]] = []
    for half in (0, SIDE // 2):
        side = rng.randrange(16, 44)
        x, y = half + rng.randrange(SIDE // 2 - side), rng.randrange(SIDE - side)
        corners = (x, y, x + side - 1, y + side - 1)
        category = rng.randrange(len(CLASSES)) + 1
        (draw.ellipse if category == 1 else draw.rectangle)(corners, fill=rng.choice(("white", "black", "red")))
        boxes.append({"category_id": category, "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0})
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), boxes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
