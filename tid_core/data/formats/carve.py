"""`val` made out of `train`. Free of torch."""

import hashlib
from pathlib import Path

from tid_core.data.formats.source import Source, Split
from tid_core.data.options import IndexOptions
from tid_core.data.problems import DatasetError, Problems


def carve(source: Source, options: IndexOptions, base: Path) -> Source:
    """Move to `val` the images of `train` that `_falls_below` says. What was found wrong stays told of `train`.

    Raises:
        DatasetError: one side would be empty.
    """
    train = source.splits["train"]
    fraction = options.val_fraction
    assert fraction is not None  # noqa: S101
    chosen = [_falls_below(fraction, options.val_seed, image.file_name) for image in train.images]
    if all(chosen) or not any(chosen):
        detail = (
            f"val_fraction {fraction} of {len(chosen)} images leaves {'no' if not any(chosen) else 'only'} `val`; "
            "another val_seed or fraction is needed"
        )
        raise DatasetError("split_empty", detail, base)
    kept, val = _part(train, chosen, False), _part(train, chosen, True)
    kept.problems = train.problems
    others = {name: split for name, split in source.splits.items() if name != "train"}
    return Source(source.format, source.classes, source.category_ids, {"train": kept, "val": val, **others})


def _falls_below(fraction: float, seed: int, name: str) -> bool:
    """A draw from name and seed alone, so an image stays on its side whatever else is in the set."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _part(split: Split, chosen: list[bool], side: bool) -> Split:
    place: dict[int, int] = {}
    for i, is_chosen in enumerate(chosen):
        if is_chosen is side:
            place[i] = len(place)
    images = [split.images[i] for i in place]
    boxes = [box._replace(image=place[box.image]) for box in split.boxes if box.image in place]
    return Split(images, boxes, Problems())
