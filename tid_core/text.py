"""Names from outside: which of them can be stored, shown and used. Free of torch."""

import re
from pathlib import Path

from pydantic_core import PydanticCustomError

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs: no database and no terminal takes all of them."""
MAX_PART = 255
"""Bytes of a file's or a folder's name that file systems take."""


def plain_text(text: str) -> str:
    """Raises:
    PydanticCustomError: it holds a control character.
    """
    if CONTROLS.search(text):
        raise PydanticCustomError("text_invalid", "the text holds a control character")
    return text


def plain_path(path: Path) -> Path:
    """Raises:
    PydanticCustomError: no file can have this path.
    """
    plain_text(str(path))
    if len(str(path).encode()) > 4000 or any(len(part.encode()) > MAX_PART for part in path.parts):
        raise PydanticCustomError("text_invalid", "the path is longer than any file's")
    return path
