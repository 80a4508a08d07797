"""Where artifacts may lie: a folder, or a bucket of S3 with a prefix."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_SCHEME: Final = "s3://"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class S3Place:
    """Everything below a prefix of a bucket; an empty prefix = the whole bucket."""

    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def parse_place(text: str) -> Path | S3Place:
    """A folder's path, or `s3://BUCKET/PREFIX`.

    Raises:
        ValueError: another scheme, or a bucket or prefix that S3 or this service does not take.
    """
    if not text.startswith(_SCHEME):
        if "://" in text or text.startswith("s3:"):
            raise ValueError(f"{text.partition(':')[0]}: is unknown here; write a folder's path or s3://BUCKET/PREFIX")
        return Path(text)
    bucket, _, prefix = text.removeprefix(_SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("not the name of a bucket; write s3://BUCKET/PREFIX, keys and endpoint in TID_S3_*")
    parts = [part for part in prefix.split("/") if part]
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValueError("not a prefix; write s3://BUCKET/PREFIX, its parts of letters, digits and ._-")
    return S3Place(bucket, "/".join(parts))


def checked_endpoint(url: str) -> str:
    """The URL of an S3 server, without a slash at its end.

    Raises:
        ValueError: not http(s)://HOST[:PORT]; the text does not repeat it, since it may hold a password.
    """
    right = "write http://HOST:PORT or https://HOST, keys in TID_S3_ACCESS_KEY_ID and TID_S3_SECRET_ACCESS_KEY"
    try:
        parsed = urlsplit(url)
        is_whole = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole:
        raise ValueError(f"not the URL of a server; {right}")
    if parsed.username or parsed.password or parsed.query or parsed.fragment or parsed.path.strip("/"):
        raise ValueError(f"has more in it than a server; {right}")
    return url.rstrip("/")
