"""Image files: opened in the frame their annotations are in. Pillow only; free of torch."""

from __future__ import annotations

import hashlib
import io
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tid_core.data.annotations import ImageRecord

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_END = b"\xff\xd9"
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""Pillow knows more, some of which start other programs."""
ORIENTATION_TAG = 0x0112
TURNED = (5, 6, 7, 8)
"""Values of the tag that exchange width and height."""


class ImageProblem(Exception):
    """An image that cannot be trained on; `code` is one of problems.UNUSABLE_IMAGES, or `changed_image`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def open_image(folder: Path, record: ImageRecord) -> Image:
    """The decoded image in RGB, of the size that the annotation file gives.

    Pixels are taken as stored; only where the sizes agree after applying the EXIF orientation, it is applied.

    Raises:
        ImageProblem: missing, truncated, not an image, of another size, or other bytes than `record.sha256` says.
    """
    image = _open(folder, record)
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        raise ImageProblem("unreadable_image", f"{folder / record.file_name}: {error}") from error
    if image.size != (record.width, record.height):
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def check_image(folder: Path, record: ImageRecord) -> str | None:
    """As `open_image`, but decodes only where the end of the file leaves a doubt (a hundred times faster for JPEG).

    Returns:
        The code of a doubt that does not keep the image from being used.

    Raises:
        ImageProblem: missing, truncated, not an image, or of another size.
    """
    doubt = None
    with _open(folder, record) as image:
        if image.format == "JPEG":
            doubt = _hidden_orientation(image)
            with (folder / record.file_name).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                # The marker cannot occur inside the compressed data, so a file that has it is whole.
                if JPEG_END in file.read():
                    return doubt
    open_image(folder, record)
    return doubt


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as a viewer shows the image, with its EXIF orientation applied; pixels are not decoded.

    Raises:
        ImageProblem: missing or not an image.
    """
    with _open_path(path) as image:
        width, height = image.size
        return (height, width) if _is_turned(image) else (width, height)


def _open(folder: Path, record: ImageRecord) -> Image:
    path = folder / record.file_name
    image = _open_path(path, record.sha256)
    _check_size(image, record, path)
    return image


def _open_path(path: Path, sha256: str | None = None) -> Image:
    from PIL import Image

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer
            raise ImageProblem("unreadable_image", f"{path}: not a file")
        return Image.open(path if sha256 is None else _unchanged(path, sha256), formats=FORMATS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageProblem("missing_image", f"{path}: no such file") from error
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
        raise ImageProblem("unreadable_image", f"{path}: {error}") from error


def _unchanged(path: Path, sha256: str) -> io.BytesIO:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        detail = "is not the file that was registered; register the dataset as it is now under another name"
        raise ImageProblem("changed_image", f"{path}: {detail}")
    return io.BytesIO(data)


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data says nothing
        return 1


def _is_turned(image: Image) -> bool:
    return _orientation(image) in TURNED


def _hidden_orientation(image: Image) -> str | None:
    """Boxes drawn on the image as shown would be elsewhere on its pixels, and the sizes cannot tell."""
    hidden = (2, 3, 4, *TURNED) if image.width == image.height else (2, 3, 4)
    return "hidden_orientation" if _orientation(image) in hidden else None


def _check_size(image: Image, record: ImageRecord, path: Path) -> None:
    expected = (record.width, record.height)
    if image.size == expected or (image.size[::-1] == expected and _is_turned(image)):
        return
    detail = f"{path}: the file is {image.size[0]} x {image.size[1]}, its annotations say {expected[0]} x {expected[1]}"
    raise ImageProblem("size_mismatch", detail)
