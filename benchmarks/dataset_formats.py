"""One dataset in three formats, read back: `python benchmarks/dataset_formats.py FOLDER [--options JSON] [--keep OUT]`.

Indexes FOLDER as it is, writes it as PASCAL VOC (whole pixels) and as YOLO (six decimals), indexes those, and tells for
each the boxes of every split, the largest difference of a box's side from the original and the seconds. Exits with 1 if
images, classes or counts differ, or a box by more than the rounding. YOLO cannot hold crowds; they are left out.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tid_core.data.index import IndexOptions, build_index, index_splits
from tid_core.data.options import read_options
from tid_core.data.problems import DatasetError
from tid_core.facts import DatasetFacts

ROUNDING = {"voc": 0.5, "yolo": 1e-6}
"""Of one side: pixels, and parts of the image's longer side (half a unit for the centre, half for half the size)."""

Boxes = dict[str, list[tuple[int, list[float]]]]
"""Image name without suffix to labels and boxes [x1, y1, x2, y2]."""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split(":", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--options", default="{}", help="IndexOptions of FOLDER as JSON")
    parser.add_argument("--keep", type=Path, help="folder for what is written; default: none is kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.keep or Path(scratch)
        try:
            return compare(asked.folder, out, read_options(asked.options))
        except (DatasetError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1


def compare(folder: Path, out: Path, options: IndexOptions) -> int:
    own = _indexed(folder, out / "index", options)
    to_voc(folder, out / "index", out / "voc")
    to_yolo(folder, out / "index", out / "yolo")
    plain = IndexOptions()
    found = {own.format: own, "voc": _indexed(out / "voc", out / "index-voc", plain)}
    found["yolo"] = _indexed(out / "yolo", out / "index-yolo", plain)
    wanted = counts(own)
    same = True
    for name, facts in found.items():
        difference = largest_difference(out / "index", out / ("index" if facts is own else f"index-{name}"))
        longest = max(split.image_long_side.largest for split in facts.splits.values())
        limit = ROUNDING["voc"] if name == "voc" else ROUNDING["yolo"] * longest
        agrees = counts(facts) == wanted and difference <= limit + 1e-9
        same &= agrees
        print(f"  largest difference of a side {difference:.2g} px, {'the same' if agrees else 'NOT the same'}: {name}")
    return 0 if same else 1


def _indexed(folder: Path, index: Path, options: IndexOptions) -> DatasetFacts:
    begun = time.perf_counter()
    facts = build_index(folder, index, name=folder.name, options=options)
    seconds = time.perf_counter() - begun
    for name, split in facts.splits.items():
        problems = {problem.code: problem.count for problem in split.problems}
        print(f"{facts.format} {name}: {split.images} images, {split.boxes} boxes {split.per_class} {problems}")
    print(f"  indexed in {seconds:.2f} s, {facts.sha256}")
    return facts


def counts(facts: DatasetFacts) -> dict[str, Any]:
    """What a format cannot change."""
    splits = {
        name: (split.images, split.boxes, split.empty_images, dict(sorted(split.per_class.items())))
        for name, split in facts.splits.items()
    }
    return {"classes": sorted(facts.classes), "splits": splits}


def largest_difference(index: Path, other: Path) -> float:
    """Pixels between the same side of the same box, in two indexes of the same images; crowds aside."""
    a, b = _boxes(index), _boxes(other)
    if a.keys() != b.keys():
        raise ValueError(f"the indexes hold different images: {sorted(a.keys() ^ b.keys())[:5]}")
    pairs = [(x, y) for name in a for (_, x), (_, y) in zip(a[name], b[name], strict=True)]
    return max(abs(p - q) for x, y in pairs for p, q in zip(x, y, strict=True))


def _boxes(index: Path) -> Boxes:
    found: Boxes = {}
    for split in index_splits(index, index):
        content = json.loads((index / f"{split}.json").read_bytes())
        classes = {entry["id"]: entry["name"] for entry in content["categories"]}
        order = {name: i for i, name in enumerate(sorted(classes.values()))}
        names = {entry["id"]: f"{split}/{Path(entry['file_name']).stem}" for entry in content["images"]}
        found |= {name: [] for name in names.values()}
        for entry in content["annotations"]:
            if not entry["iscrowd"]:
                x, y, w, h = entry["bbox"]
                label = order[classes[entry["category_id"]]]
                found[names[entry["image_id"]]].append((label, [x, y, x + w, y + h]))
    return found


def to_voc(root: Path, index: Path, out: Path) -> None:
    """Write the index's dataset to `out`/VOC2007, boxes rounded to whole pixels, crowds as difficult."""
    year = out / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for split, paths in index_splits(root, index).items():
        listed = []
        for image, boxes in _images(paths.annotations):
            source = root / image["file_name"]
            target = year / "JPEGImages" / source.name
            if target.exists():
                raise ValueError(f"{source.name} is in two splits; VOC keeps all images in one folder")
            shutil.copyfile(source, target)
            (year / "Annotations" / f"{source.stem}.xml").write_text(_xml(source.name, image, boxes))
            listed.append(source.stem)
        (year / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def _xml(name: str, image: dict[str, Any], boxes: list[dict[str, Any]]) -> str:
    size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
    objects = []
    for box in boxes:
        x, y, w, h = box["bbox"]
        corners = {"xmin": round(x) + 1, "ymin": round(y) + 1, "xmax": round(x + w), "ymax": round(y + h)}
        bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
        label = f"<name>{escape(box['class'])}</name><difficult>{box['iscrowd']}</difficult>"
        objects.append(f"<object>{label}<bndbox>{bndbox}</bndbox></object>")
    return f"<annotation><filename>{escape(name)}</filename>{size}{''.join(objects)}</annotation>\n"


def to_yolo(root: Path, index: Path, out: Path) -> None:
    """Write the index's dataset to `out`, without crowds."""
    names: list[str] = []
    splits = index_splits(root, index)
    for split, paths in splits.items():
        content = json.loads(paths.annotations.read_bytes())
        names = [entry["name"] for entry in content["categories"]]
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
        for image, boxes in _images(paths.annotations):
            source = root / image["file_name"]
            shutil.copyfile(source, out / "images" / split / source.name)
            lines = [_line(image, box, names) for box in boxes if not box["iscrowd"]]
            (out / "labels" / split / f"{source.stem}.txt").write_text("".join(lines))
    places = {split: f"images/{split}" for split in splits}
    (out / "data.yaml").write_text(json.dumps({**places, "nc": len(names), "names": names}))  # JSON is YAML


def _line(image: dict[str, Any], box: dict[str, Any], names: list[str]) -> str:
    x, y, w, h = box["bbox"]
    width, height = image["width"], image["height"]
    parts = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return f"{names.index(box['class'])} {' '.join(f'{part:.6f}' for part in parts)}\n"


def _images(annotations: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    content = json.loads(annotations.read_bytes())
    classes = {entry["id"]: entry["name"] for entry in content["categories"]}
    boxes = defaultdict(list)
    for entry in content["annotations"]:
        boxes[entry["image_id"]].append({**entry, "class": classes[entry["category_id"]]})
    return [(image, boxes[image["id"]]) for image in content["images"]]


if __name__ == "__main__":
    sys.exit(main())
