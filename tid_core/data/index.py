"""A dataset made ready for training: one annotation file a split in one form, what is in it, and a picture of it.

The index never changes after it was written, and names its content by a hash over annotations and images. No torch.

    python -m tid_core.data.index ROOT OUT --name NAME --options '{"val_fraction": 0.2}'
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tid_core.data.formats import read_source
from tid_core.data.formats.source import Source, Split
from tid_core.data.options import IndexOptions, read_options
from tid_core.data.problems import UNUSABLE_IMAGES, DatasetError
from tid_core.data.sample import draw_sample
from tid_core.data.scan import Tick, scan, untold
from tid_core.facts import DatasetFacts, facts_of
from tid_core.plan import SplitPaths
from tid_core.training.files import replace_file

__all__ = ["IndexOptions", "build_index", "index_splits", "write_index"]

SPLITS = ("train", "val", "test")
FACTS, SAMPLE = "facts.json", "sample.jpg"
INVALID = 3
"""Exit code for a dataset that cannot be used."""


def build_index(
    root: Path,
    out: Path,
    *,
    name: str,
    options: IndexOptions | None = None,
    tick: Tick = untold,
) -> DatasetFacts:
    """Read the dataset in `root`, check every image, and write the index into the folder `out`.

    It writes train.json, val.json and, where there is such a split, test.json: COCO, with `file_name` relative to
    `root`, the sha256 of every image, iscrowd=1 also for VOC's difficult boxes, and without boxes that cannot be used;
    ids are the dataset's own where COCO gave them. Then sample.jpg and, last, facts.json: without it there is no index.

    Args:
        tick: told how many images of how many were looked at.

    Raises:
        DatasetError: it cannot be trained on.
        OSError: `out` cannot be written.
    """
    source = read_source(root, options or IndexOptions())
    digests = scan(root, source, tick)
    _refuse_unusable(source, root)
    files = _files(source, digests)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {split}.json\n" for split, data in files.items()]
    facts = facts_of(source, name, "decoded", hashlib.sha256("".join(lines).encode()).hexdigest())
    _write(out, files, draw_sample(root, source), facts)
    return facts


def write_index(source: Source, facts: DatasetFacts, out: Path) -> None:
    """The index alone, of a dataset that was read and judged elsewhere: no hashes, no sample.

    Raises:
        OSError: `out` cannot be written.
    """
    _write(out, _files(source, {}), None, facts)


def index_splits(root: Path, index: Path) -> dict[str, SplitPaths]:
    """Where training finds the splits of the index in the folder `index`, made of the dataset in `root`."""
    files = {split: index / f"{split}.json" for split in SPLITS}
    return {split: SplitPaths(images=root, annotations=file) for split, file in files.items() if file.is_file()}


def _refuse_unusable(source: Source, root: Path) -> None:
    """Raises:
    DatasetError: `images_unusable`, or `no_boxes`.
    """
    found = {name: split.problems.report(UNUSABLE_IMAGES) for name, split in source.splits.items()}
    if any(found.values()):
        told = "; ".join(f"{name}: {problem}" for name, problems in found.items() for problem in problems)
        raise DatasetError("images_unusable", f"has images that cannot be trained on: {told}", root, found)
    for name in ("train", "val"):
        split = source.splits[name]
        if any(not box.crowd for box in split.boxes):
            continue
        problems = {name: split.problems.report()}
        why = "; ".join(str(problem) for problem in problems[name]) or "no image has a label"
        detail = f"no box of the `{name}` split ({len(split.images)} images) can be used: {why}"
        raise DatasetError("no_boxes", detail, root, problems)


def _files(source: Source, digests: dict[str, str]) -> dict[str, bytes]:
    categories = [
        {"id": identity, "name": name} for identity, name in zip(source.category_ids, source.classes, strict=True)
    ]
    return {
        name: json.dumps({**_content(split, source.category_ids, digests), "categories": categories}).encode()
        for name, split in sorted(source.splits.items())
    }


def _content(split: Split, category_ids: list[int], digests: dict[str, str]) -> dict[str, Any]:
    images = []
    for image in split.images:
        entry = {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
        digest = digests.get(image.file_name)
        images.append(entry if digest is None else {**entry, "sha256": digest})
    annotations = [
        {
            "id": i,
            "image_id": split.images[box.image].id,
            "category_id": category_ids[box.label],
            "bbox": box.xywh,
            "area": box.area,
            "iscrowd": int(box.crowd),
        }
        for i, box in enumerate(split.boxes, start=1)
    ]
    return {"images": images, "annotations": annotations}


def _write(out: Path, files: dict[str, bytes], sample: bytes | None, facts: DatasetFacts) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stale = [FACTS, SAMPLE, *(f"{split}.json" for split in SPLITS if split not in files)]
    for file in stale:
        (out / file).unlink(missing_ok=True)
    for split, data in files.items():
        replace_file(out / f"{split}.json", data)
    if sample is not None:
        replace_file(out / SAMPLE, sample)
    replace_file(out / FACTS, facts.model_dump_json(indent=1).encode())


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tid_core.data.index", description="Check and index a dataset.")
    parser.add_argument("root", type=Path, help="folder of the dataset")
    parser.add_argument("out", type=Path, help="folder to write the index into")
    parser.add_argument("--name", required=True, help="name of the dataset, for people")
    parser.add_argument("--options", default="{}", help="IndexOptions as JSON")
    parser.add_argument("--progress", action="store_true", help="tell `done total` on stderr")
    parsed = parser.parse_args(arguments)
    try:
        parsed.options = read_options(parsed.options)
    except ValueError as error:
        parser.error(f"--options: {error}")
    return parsed


def _tell(done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        sys.stderr.write(f"{done} {total}\n")
        sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """0, or 3 with one JSON object on stdout: code, detail, and problems by split where there are many places."""
    asked = _arguments(arguments)
    tick = _tell if asked.progress else untold
    try:
        build_index(asked.root, asked.out, name=asked.name, options=asked.options, tick=tick)
    except DatasetError as error:
        problems = {split: [one.model_dump() for one in found] for split, found in error.problems.items()}
        sys.stdout.write(json.dumps({"code": error.code, "detail": str(error), "problems": problems}) + "\n")
        return INVALID
    return 0


if __name__ == "__main__":
    sys.exit(main())
