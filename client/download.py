"""Files that arrive whole or not at all: a broken download is continued, and its sha256 is checked."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from client.errors import ApiError, DownloadError, ServerUnreachable
from client.transport import BUSY, Transport

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that lie on disk and the size of the file, if known."""
PATIENCE = 8
"""Attempts in a row that bring no byte before it gives up."""


def fetch(
    transport: Transport,
    path: str,
    target: Path,
    *,
    params: dict[str, Any] | None = None,
    on_bytes: OnBytes | None = None,
) -> str:
    """GET `path` into the file `target`; return its sha256.

    Bytes go to `<target>.<sha256 begins>.part` and are continued from there, also by a later call; a file which changed
    on the server starts anew. The target appears by rename, after the check. The server may send to where the file lies
    (S3), which is not told the API key, and need not know the sha256.

    Raises:
        DownloadError: the bytes do not match the server's sha256, the disk is full, or the connection keeps breaking.
        ServerUnreachable, ApiError: as for every request.
    """
    if target.exists() and not target.is_file():
        raise DownloadError(f"{target} is not a file that can be replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    idle, part, have = 0, None, 0
    while True:
        try:
            sha256 = _announced(transport, path, params)
            part = target.with_name(f"{target.name}.{sha256[:12]}.part")
            have = _size(part)
            if _receive(transport, path, part, params=params, sha256=sha256, on_bytes=on_bytes):
                return _accept(part, target, sha256)
        except (httpx.TransportError, ServerUnreachable, ApiError) as error:
            if part is None or (isinstance(error, ApiError) and error.status not in BUSY):
                raise
            idle, have = (0 if _size(part) > have else idle + 1), _size(part)
            if idle >= PATIENCE:
                raise DownloadError(_gave_up(target, part, idle)) from error
            transport.pause(idle)
        except OSError as error:
            raise DownloadError(f"cannot write {part}: {error.strerror or error}") from error


def _gave_up(target: Path, part: Path, idle: int) -> str:
    return (
        f"{target.name}: the connection broke {idle} times without a new byte; {_size(part):,} bytes are kept, "
        "run the same command again to go on from there"
    )


def _announced(transport: Transport, path: str, params: dict[str, Any] | None) -> str:
    """The sha256 that the server states for the file, from its ETag `"sha256-<hex>"`."""
    try:
        return _stated(transport.request("HEAD", path, params=params), path)
    except ApiError:  # an answer to HEAD has no body, so only GET says what is wrong
        with transport.stream(path, params=params, headers={}, timeout=30) as response:
            return _stated(response, path)


def _stated(response: httpx.Response, path: str) -> str:
    if not (digest := _digest(response)):
        etag = response.headers.get("ETag", "")
        raise DownloadError(f"the server states no sha256 for {path} (ETag {etag!r}), so the file cannot be checked")
    return digest


def _digest(response: httpx.Response) -> str:
    """The sha256 that an answer, or one that led to it, states; empty = none."""
    for answer in (response, *response.history):
        etag = answer.headers.get("ETag", "").removeprefix("W/").strip('"')
        digest: str = etag.removeprefix("sha256-")
        if len(digest) == 64 and digest != etag:
            return digest
    return ""


def _receive(
    transport: Transport, path: str, part: Path, *, params: dict[str, Any] | None, sha256: str, on_bytes: OnBytes | None
) -> bool:
    """Append what is missing; False if the file on the server is no longer the announced one."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if have:  # without If-Range: whoever this is sent on to has an ETag of its own
        headers["Range"] = f"bytes={have}-"
    try:
        with transport.stream(path, params=params, headers=headers, timeout=30) as response:
            if _digest(response) not in (sha256, ""):
                return False
            with part.open("ab" if response.status_code == 206 else "wb") as file:
                _copy(response, file, on_bytes)
    except ApiError as error:
        # 416: every byte is here already, only the check and the rename are missing.
        if error.status != 416:
            raise
    return True


def _copy(response: httpx.Response, file: BinaryIO, on_bytes: OnBytes | None) -> None:
    have = file.tell()
    total = have + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
    # No chunk size: httpx would hold back what does not fill a chunk, and lose it when the connection breaks.
    for chunk in response.iter_raw():
        file.write(chunk)
        have += len(chunk)
        if on_bytes is not None:
            on_bytes(have, total)
    file.flush()
    os.fsync(file.fileno())


def _accept(part: Path, target: Path, sha256: str) -> str:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise DownloadError(
            f"{target.name}: what arrived has sha256 {found[:12]}..., the server states {sha256[:12]}...; "
            "it was thrown away, run the same command again"
        )
    part.replace(target)
    for stale in target.parent.glob(f"{target.name}.*.part"):
        stale.unlink()
    return sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
