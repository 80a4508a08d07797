"""Small datasets, and what was found in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tid_core.data.formats import read_source
from tid_core.data.formats.source import Source
from tid_core.data.options import IndexOptions

CLASSES = ["dog", "cat", "yak"]
"""By category id 3, 5, 9."""


def picture(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Noise, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_coco(root: Path, splits: dict[str, int], *, seed: int = 0, crowds: bool = True) -> Path:
    """ROOT/{split}.json and {split}/: boxes of tenths of a pixel, one image of three without any, some crowds."""
    random = np.random.default_rng(seed)
    categories = [{"id": identity, "name": name} for identity, name in zip((3, 5, 9), CLASSES, strict=True)]
    for split, count in splits.items():
        images, annotations = [], list[dict[str, Any]]()
        for i in range(count):
            width, height = (int(side) for side in random.integers(40, 80, 2))
            name = f"{split}{i:02d}.png"
            picture(root / split / name, (width, height), seed)
            images.append({"id": 100 - i, "file_name": name, "width": width, "height": height})
            for _ in range(0 if i % 3 == 2 else int(random.integers(1, 5))):
                w, h = random.uniform(4, 30, 2).round(1).tolist()
                x, y = (random.uniform(0, 1, 2) * [width - w, height - h]).round(1).tolist()
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(crowds and random.random() < 0.2)}
                category = int(random.choice([3, 5, 9]))
                annotations.append({"id": len(annotations) + 1, "image_id": 100 - i, "category_id": category, **box})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_voc(year: Path, lists: dict[str, dict[str, str]], *, listed: bool = True) -> Path:
    """A year of VOC: split to image stem to the <object>s of its XML file. All images are 64 x 48 pixels."""
    for split, images in lists.items():
        for stem, objects in images.items():
            picture(year / "JPEGImages" / f"{stem}.jpg")
            file = year / "Annotations" / f"{stem}.xml"
            file.parent.mkdir(exist_ok=True)
            size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
            file.write_text(f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>")
        if listed:
            list_file = year / "ImageSets" / "Main" / f"{split}.txt"
            list_file.parent.mkdir(parents=True, exist_ok=True)
            list_file.write_text("".join(f"{stem}\n" for stem in images))
    return year


def voc_object(name: str, xmin: Any, ymin: Any, xmax: Any, ymax: Any, extra: str = "") -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_yolo(root: Path, labels: dict[str, dict[str, str | None]], **config: Any) -> Path:
    """Split to image stem to its label file's text, None = no file. All images are 64 x 48 pixels."""
    for split, images in labels.items():
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        for stem, text in images.items():
            picture(root / "images" / split / f"{stem}.jpg")
            if text is not None:
                (root / "labels" / split / f"{stem}.txt").write_text(text)
    content = {"names": CLASSES, "nc": 3, **{split: f"images/{split}" for split in labels}, **config}
    (root / "data.yaml").write_text(json.dumps(content))
    return root


def read(root: Path, **options: Any) -> Source:
    return read_source(root, IndexOptions.model_validate(options))


def problems(source: Source, split: str = "train") -> dict[str, int]:
    return {problem.code: problem.count for problem in source.splits[split].problems.report()}


def example(source: Source, code: str, split: str = "train") -> str:
    """Of the first problem with the code."""
    return source.splits[split].problems.examples[code][0]
