"""The API key of this client: where it comes from, and that it goes nowhere but to the server."""

import os
import re
from pathlib import Path

from client.errors import ClientError

VARIABLE, FILE_VARIABLE = "TID_API_KEY", "TID_API_KEY_FILE"
_SENDABLE = re.compile(r"[\x21-\x7e]{1,500}")


class BadKey(ClientError):
    """What was given as an API key cannot be one. Its text never repeats it."""


def find_key(given: str | None = None) -> str | None:
    """The key that was given, or TID_API_KEY, or what the file TID_API_KEY_FILE holds.

    Raises:
        BadKey: it cannot be sent, or the file cannot be read.
    """
    file = os.environ.get(FILE_VARIABLE)
    key, source = given or os.environ.get(VARIABLE), "the API key"
    if key is None and file:
        source = f"{file} ({FILE_VARIABLE})"
        try:
            key = Path(file).expanduser().read_text()
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not text"
            raise BadKey(f"the API key cannot be read from {source}: {why}") from None
    if not key or not (key := key.strip()):
        return None
    if not _SENDABLE.fullmatch(key):
        raise BadKey(f"{source} is no API key: one looks like tid_<id>_<secret>, without spaces and on one line")
    return key
