"""Image files in folders. Free of torch."""

import os
from collections.abc import Iterable
from pathlib import Path

from tid_core.data.problems import DatasetError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".mpo"}
)

MAX_LIST_BYTES = 64 << 20


def read_lines(path: Path) -> list[str]:
    """The lines of a list, stripped, without empty ones.

    Raises:
        DatasetError: `not_text`.
    """
    with path.open("rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    try:
        if len(data) > MAX_LIST_BYTES:
            raise ValueError(f"larger than {MAX_LIST_BYTES >> 20} MiB")
        return [stripped for line in data.decode("utf-8-sig").splitlines() if (stripped := line.strip())]
    except ValueError as error:
        raise DatasetError("not_text", f"is no list of names: {error}", path) from error


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a name, no path


def images_in(folder: Path) -> set[str]:
    """Names of the image files directly in `folder`."""
    return {name for name in os.listdir(folder) if is_image(name)}  # noqa: PTH208 - names are all that is wanted


def images_under(folder: Path) -> list[Path]:
    """The image files in `folder` and in folders within, sorted; links to folders are not followed."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names if is_image(name)]
    return sorted(found)


def stems(names: Iterable[str]) -> dict[str, str]:
    """Name without its suffix to the name; of several, the first by the alphabet."""
    return {os.path.splitext(name)[0]: name for name in sorted(names, reverse=True)}  # noqa: PTH122
