"""Every image file of a dataset, looked at once: there, whole, of the stated size; and its sha256. Free of torch."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tid_core.data.annotations import ImageRecord
from tid_core.data.formats.source import Source, Split
from tid_core.data.images import ImageProblem, check_image

Tick = Callable[[int, int], None]


def untold(done: int, total: int) -> None:
    """A Tick for nobody."""


def present(root: Path, source: Source) -> None:
    """Note the images that do not exist."""
    for split in source.splits.values():
        for image in split.images:
            if not os.path.isfile(root / image.file_name):  # noqa: PTH113 - False also for impossible names
                split.problems.note("missing_image", image.file_name)


def scan(root: Path, source: Source, tick: Tick = untold) -> dict[str, str]:
    """Check every image and hash it; note what is wrong, and content that appears twice or both sides of the split.

    Returns:
        The sha256 of every usable image by its name.
    """
    places = [(split, image) for split in source.splits.values() for image in split.images]
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda place: _look(root, place[1]), places)
        for done, ((split, image), result) in enumerate(zip(places, found, strict=True), start=1):
            if isinstance(result, ImageProblem):
                split.problems.note(result.code, result.detail.removeprefix(f"{root}/"))
            else:
                digests[image.file_name], doubt = result
                if doubt is not None:
                    split.problems.note(doubt, image.file_name)
            tick(done, len(places))
    _note_copies(source.splits, digests)
    return digests


def _look(root: Path, image: ImageRecord) -> tuple[str, str | None] | ImageProblem:
    """The sha256 and the code of a doubt."""
    try:
        doubt = check_image(root, image)
        with (root / image.file_name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), doubt
    except ImageProblem as problem:
        return problem
    except OSError as error:
        return ImageProblem("unreadable_image", f"{image.file_name}: {error.strerror}")


def _note_copies(splits: dict[str, Split], digests: dict[str, str]) -> None:
    first_in_train: dict[str, str] = {}
    for name, split in splits.items():
        first: dict[str, str] = {}
        for image in split.images:
            digest = digests.get(image.file_name)
            if digest is None:
                continue
            if digest in first:
                split.problems.note("duplicate_image", f"{image.file_name} is {first[digest]}")
            first.setdefault(digest, image.file_name)
            if name != "train" and digest in first_in_train:
                split.problems.note("leaked_image", f"{image.file_name} is {first_in_train[digest]}")
        if name == "train":
            first_in_train = first
