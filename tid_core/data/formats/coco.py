"""COCO JSON in the layouts that people have: one annotation file and one image folder a split. Free of torch."""

from pathlib import Path
from typing import Any

from tid_core.data.annotations import load_coco, parse_coco, read_categories
from tid_core.data.formats.source import OWN_NAMES, Root, Source, Split, merged
from tid_core.data.problems import DatasetError

LAYOUTS = (
    ("{split}.json", "{split}"),
    ("annotations/instances_{split}2017.json", "{split}2017"),
    ("annotations/instances_{split}.json", "{split}"),
    ("{split}/_annotations.coco.json", "{split}"),
)
"""Annotation file and image folder of a split, under the dataset's folder."""

LOOKS_FOR = "COCO: " + ", ".join(annotations.format(split="train") for annotations, _ in LAYOUTS)


def default_splits(base: Path) -> dict[str, str]:
    """Ours to the dataset's own; empty where there is no COCO file."""
    found = {}
    for ours, names in OWN_NAMES.items():
        for name in names:
            if _annotations(base, name) is not None:
                found[ours] = name
                break
    return found


def has_splits(base: Path, names: list[str]) -> bool:
    return all(_annotations(base, name) is not None for name in names)


def _annotations(base: Path, split: str) -> tuple[Path, Path] | None:
    for annotations, images in LAYOUTS:
        if (file := base / annotations.format(split=split)).is_file():
            return file, base / images.format(split=split)
    return None


def read(root: Root, base: Path, wanted: dict[str, list[str]]) -> Source:
    """The splits `wanted`, ours to the dataset's own.

    Classes are the categories of `train` sorted by id; another split may lack some, but not add any.

    Raises:
        DatasetError: a split or its image folder is missing, a file is not COCO, or categories do not fit.
    """
    files = {ours: [_need(root, base, name) for name in names] for ours, names in wanted.items()}
    train = [load_coco(annotations) for annotations, _ in files["train"]]
    categories = _categories(train, [annotations for annotations, _ in files["train"]])
    classes = list(categories)
    splits = {}
    for ours, places in files.items():
        contents = train if ours == "train" else [load_coco(annotations) for annotations, _ in places]
        parts = [_part(root, content, place, classes) for content, place in zip(contents, places, strict=True)]
        splits[ours] = merged(parts)
    return Source("coco", classes, list(categories.values()), splits)


def _need(root: Root, base: Path, name: str) -> tuple[Path, Path]:
    found = _annotations(base, name)
    if found is None:
        wanted = " or ".join(annotations.format(split=name) for annotations, _ in LAYOUTS)
        raise DatasetError("split_missing", f"has no split `{name}`; expected {wanted} in it", base)
    annotations, images = found
    root.name(annotations)  # before anything of it is read
    if not images.is_dir():
        raise DatasetError("images_missing", f"the image folder of `{name}` does not exist", images)
    return annotations, images


def _categories(contents: list[dict[str, list[Any]]], paths: list[Path]) -> dict[str, int]:
    """Name to id. Names that a later file adds come after those of the first."""
    categories: dict[str, int] = {}
    for content, path in zip(contents, paths, strict=True):
        for identity, name in read_categories(content["categories"], path).items():
            if name not in categories:
                taken = set(categories.values())
                categories[name] = identity if identity not in taken else max(taken) + 1
    return dict(sorted(categories.items(), key=lambda entry: entry[1]))


def _part(root: Root, content: dict[str, list[Any]], place: tuple[Path, Path], classes: list[str]) -> Split:
    annotations, folder = place
    coco = parse_coco(content, annotations, classes)
    # Hashes of the index are its own, of the files as they are now.
    images = [image._replace(file_name=root.name(folder / image.file_name), sha256=None) for image in coco.images]
    return Split(images, coco.boxes, coco.problems)
