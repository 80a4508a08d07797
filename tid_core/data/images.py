"""Image files: opened in the frame their annotations are in. Pillow only; free of torch."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tid_core.data.annotations import ImageRecord

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_END = b"\xff\xd9"


class ImageProblem(Exception):
    """An image that cannot be trained on; `code` is one of problems.UNUSABLE_IMAGES."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def open_image(folder: Path, record: ImageRecord) -> Image:
    """The decoded image in RGB, of the size that the annotation file gives.

    Pixels are taken as stored; only where the sizes agree after applying the EXIF orientation, it is applied.

    Raises:
        ImageProblem: missing, truncated, not an image, or of another size.
    """
    image = _open(folder, record)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageProblem("unreadable_image", f"{folder / record.file_name}: {error}") from error
    if image.size != (record.width, record.height):
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def check_image(folder: Path, record: ImageRecord) -> None:
    """As `open_image`, but decodes only where the end of the file leaves a doubt (a hundred times faster for JPEG).

    Raises:
        ImageProblem: missing, truncated, not an image, or of another size.
    """
    with _open(folder, record) as image:
        if image.format == "JPEG":
            with (folder / record.file_name).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                # The marker cannot occur inside the compressed data, so a file that has it is whole.
                if JPEG_END in file.read():
                    return
    open_image(folder, record)


def _open(folder: Path, record: ImageRecord) -> Image:
    from PIL import Image

    path = folder / record.file_name
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer
            raise ImageProblem("unreadable_image", f"{path}: not a file")
        image = Image.open(path)
    except FileNotFoundError as error:
        raise ImageProblem("missing_image", f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageProblem("unreadable_image", f"{path}: {error}") from error
    _check_size(image, record, path)
    return image


def _check_size(image: Image, record: ImageRecord, path: Path) -> None:
    expected = (record.width, record.height)
    orientation_tag = 0x0112
    if image.size == expected or (
        image.size[::-1] == expected and image.getexif().get(orientation_tag, 1) in (5, 6, 7, 8)
    ):
        return
    detail = f"{path}: the file is {image.size[0]} x {image.size[1]}, its annotations say {expected[0]} x {expected[1]}"
    raise ImageProblem("size_mismatch", detail)
